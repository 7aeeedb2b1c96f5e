"""Calibrate a bundle: run all exits on held-out images, choose thresholds, keep them in the bundle."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dyndeploy.bundle import Bundle
from dyndeploy.chunks import Part, Tick, Work, chunk_results, require_same_list
from dyndeploy.data import DIGITS, ImageFolderDataset, LabelledImages, images_of_classes, spread
from dyndeploy.errors import UsageError
from dyndeploy.exits.calibrate import SEARCH, calibrate
from dyndeploy.exits.costs import CostsOf, counted_costs
from dyndeploy.exits.frontier import Constraint
from dyndeploy.exits.result import CalibrationResult
from dyndeploy.exits.scores import ExitScores, FloatArray
from dyndeploy.files import sha256, shown
from dyndeploy.runtimes import StagedSession, open_staged
from dyndeploy.runtimes.choice import RuntimeChoice, choose_runtime
from dyndeploy.runtimes.machine import machine_facts
from dyndeploy.runtimes.staged import stage_precision

BATCH = 32
"""Images that are read and run at a time; chunks of a long list are cut into whole ones."""

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class HeldOutImages:
    """Labelled images that the network was not trained on.

    Attributes:
        dataset: An item is an input (3, h, w) and a class index.
        indices: The items to use.
        source: Where they come from, in words.
    """

    dataset: LabelledImages | ImageFolderDataset
    indices: npt.NDArray[np.int64]
    source: str

    @classmethod
    def open(cls, bundle: Bundle, data: str | os.PathLike[str], limit: int | None = None) -> HeldOutImages:
        """Find the images.

        Args:
            bundle: Its preprocessing and input size are used.
            data: A folder with one sub-folder of images per class, or ``"digits"``.
            limit: At most so many images, spread evenly over the classes; None for all.

        Raises:
            InputError: See :func:`~dyndeploy.data.images_of_classes`.
            UsageError: A limit below 2.
        """
        manifest = bundle.manifest
        preprocessing, size = manifest.images()
        dataset = images_of_classes(
            data, preprocessing, size, names=manifest.network.class_names, count=manifest.network.num_classes
        )
        source = "scikit-learn's held-out digits" if os.fspath(data) == DIGITS else shown(data)
        if limit is not None and limit < 2:
            raise UsageError(f"{limit} images are too few to calibrate with: give at least 2, better thousands.")
        return cls(dataset, np.array(spread(len(dataset), limit), np.int64), source)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.indices)

    def select(self, indices: Sequence[int]) -> HeldOutImages:
        """Some of the items of the dataset."""
        return replace(self, indices=np.array(indices, np.int64))

    def batches(self) -> Iterator[tuple[FloatArray, npt.NDArray[np.int64]]]:
        """Read the images a few at a time: inputs (n, 3, h, w) and class indices (n,)."""
        for start in range(0, len(self), BATCH):
            items = [self.dataset[int(index)] for index in self.indices[start : start + BATCH]]
            yield np.stack([image for image, _ in items]), np.array([label for _, label in items], np.int64)


def score_images(session: StagedSession, images: HeldOutImages, progress: Progress | None = None) -> ExitScores:
    """Run all exits on the images.

    Args:
        session: The stages of a bundle.
        images: With their classes.
        progress: Called with a message and the fraction done.

    Raises:
        InputError: An image cannot be read, or a label is no class of the network.
        DyndeployError: The runtime failed.
    """
    parts, done = [], 0
    for part in _scores(session, images):
        parts.append(part)
        done += part.images
        if progress is not None:
            progress(f"running all exits on {done} of {len(images)} images", done / len(images))
    return ExitScores.joined(parts)


def _scores(session: StagedSession, images: HeldOutImages) -> Iterator[ExitScores]:
    """Run all exits, a batch at a time."""
    info = session.bundle.exits
    exits = tuple(stage.exit for stage in info.stages)
    for inputs, labels in images.batches():
        yield ExitScores.from_logits(session.run_all(inputs), labels, exits, info.confidence)


def calibrate_bundle(
    bundle: Bundle,
    data: str | os.PathLike[str],
    constraint: Constraint | None = None,
    *,
    costs: CostsOf = counted_costs,
    method: str = SEARCH,
    switch_off: bool = True,
    limit: int | None = None,
    runtime: str | RuntimeChoice = "onnxruntime",
    precision: str | None = None,
    threads: int = 1,
    workers: int = 1,
    state: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> CalibrationResult:
    """Choose exit thresholds for a staged bundle; :func:`store_thresholds` keeps them in it.

    Images are run in chunks (:mod:`dyndeploy.chunks`): the thresholds are the same to the bit however many processes
    compute, also those of torchrun, and after a break.

    Args:
        bundle: A bundle of a network that exits early.
        data: See :meth:`HeldOutImages.open`.
        constraint: See :func:`~dyndeploy.exits.calibrate`.
        costs: Gives the cost of each exit: :func:`counted_costs`, :func:`measured_costs`, or :func:`profiled_costs`
            of a profile.
        method: See :func:`~dyndeploy.exits.calibrate`.
        switch_off: See :func:`~dyndeploy.exits.calibrate`.
        limit: At most so many images.
        runtime: What runs the stages, as for :func:`~dyndeploy.inference.run_inputs`.
        precision: See :func:`~dyndeploy.runtimes.staged.stage_precision`.
        threads: Threads of ONNX Runtime; each process has as many.
        workers: Processes that share the images; several start the script again that calls this, so it has to be
            guarded by ``if __name__ == "__main__":``.
        state: A folder that keeps what each chunk gave. A run that was broken off goes on from there; a changed image
            of the same name is not noticed.
        progress: Called with a message and the fraction done.

    Raises:
        InputError: The images do not fit the network.
        UsageError: The network has no exits, the constraint cannot be kept, a precision that the runtime does not
            compute in, fewer than 1 worker, or a state of another run.
        OutputError: The state cannot be written, or a process was killed.
        DyndeployError: The runtime failed.
    """
    stages = bundle.exits.stages
    choice = choose_runtime(bundle, runtime)
    computed = stage_precision(bundle, choice.runtime, precision)
    images = HeldOutImages.open(bundle, data, limit)
    with open_staged(bundle, choice.runtime, threads=threads, precision=computed) as session:
        # Costs first: a profile of another bundle is refused before minutes of work.
        known = costs(session, computed)
        info = session.info
    work = _Work(bundle.path, data, limit, choice.runtime, threads, computed, images.dataset.fingerprint())
    parts = chunk_results(
        work,
        images.indices.tolist(),
        identity=work.identity(),
        workers=workers,
        state=state,
        said="ran all exits on",
        progress=progress or (lambda message, fraction: None),
    )
    scores = ExitScores.joined(map(ExitScores.from_json, parts))
    return CalibrationResult(
        calibration=calibrate(scores, known, constraint, method=method, switch_off=switch_off),
        network=bundle.manifest.network.name,
        precision=computed,
        macs=tuple(float(stage.macs) for stage in stages),
        source=images.source,
        runtime={**info.to_json(), "why": choice.reason},
        machine=machine_facts(),
    )


@dataclass(frozen=True)
class _Work:
    """Scores the images of a chunk; it can be pickled."""

    path: Path
    data: str | os.PathLike[str]
    limit: int | None
    runtime: str
    threads: int
    precision: str
    images_sha256: str

    def identity(self) -> dict[str, Any]:
        """All that the scores depend on; thresholds that the bundle holds are not among it."""
        stages = Bundle.open(self.path).stages
        return {
            "kind": "exit_scores",
            "stages_sha256": [sha256(stage) for stage in stages],
            "images_sha256": self.images_sha256,
            "runtime": self.runtime,
            "threads": self.threads,
            "precision": self.precision,
        }

    @contextmanager
    def __call__(self) -> Iterator[Work]:
        bundle = Bundle.open(self.path)
        images = HeldOutImages.open(bundle, self.data, self.limit)
        require_same_list(images.dataset.fingerprint(), self.images_sha256, self.data)
        with open_staged(bundle, self.runtime, threads=self.threads, precision=self.precision) as session:
            yield functools.partial(_scored, session, images)


def _scored(session: StagedSession, images: HeldOutImages, indices: Sequence[int], tick: Tick) -> Part:
    """The scores of the images of a chunk."""
    parts = []
    for part in _scores(session, images.select(indices)):
        parts.append(part)
        for _ in range(part.images):
            tick()
    return ExitScores.joined(parts).to_json()


def store_thresholds(bundle: Bundle, result: CalibrationResult) -> Bundle:
    """Keep thresholds in a bundle, for the precision that they were calibrated in.

    Raises:
        UsageError: A bare sweep, or the calibration is of another network or other exits.
        OutputError: The manifest cannot be written.
    """
    exits = tuple(stage.exit for stage in bundle.exits.stages)
    if (result.network, result.calibration.exits) != (bundle.manifest.network.name, exits):
        raise UsageError(
            f"The calibration is of {result.network} with the exits {result.calibration.exits}, the bundle "
            f"{bundle.path} holds {bundle.manifest.network.name} with {exits}. Calibrate this bundle."
        )
    return bundle.with_thresholds(result.precision, result.threshold_info())
