"""Running images and arrays on a board: read here, run there by the engines and the code that profiles them."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dyndeploy.bundle import LOGITS, Bundle
from dyndeploy.data import ByteArray, load_image, read_image, with_folders
from dyndeploy.errors import DeviceError, DyndeployError, InputError, NotFiniteError, UsageError
from dyndeploy.fields import Document, Field
from dyndeploy.finite import require_finite
from dyndeploy.inference import Classification, DetectionResult, Failure, Result, classified
from dyndeploy.inference.detection import detection_result
from dyndeploy.inference.session import Preparation, Prepared, Size, detected, filled_batch
from dyndeploy.remote.client import Content, DeviceClient, Progress
from dyndeploy.remote.devices import DeviceEntry
from dyndeploy.remote.exits import chain_stages
from dyndeploy.remote.payload import module_contents, plugin_contents, run_graphs, unpacked_arrays
from dyndeploy.remote.profiling import BoardWork, ask_board, require_runnable, require_space, sent_and_run
from dyndeploy.runtimes.base import ANY_SIZE, Array, checked_feeds
from dyndeploy.runtimes.native import operator_code
from dyndeploy.runtimes.staged import chosen_thresholds

CHUNK_BYTES = 32 << 20
"""Inputs that are sent at a time: about fifty images of 224 x 224 pixels."""

_ADVICE = "'dyndeploy verify BUNDLE' tells whether the bundle is right on this machine."


def run_on_device(
    bundle: Bundle,
    client: DeviceClient,
    entry: DeviceEntry,
    images: Iterable[str | os.PathLike[str]],
    *,
    threads: int = 1,
    thresholds: Sequence[float] | None = None,
    progress: Progress = lambda message, fraction: None,
) -> Iterator[Classification | Result | Failure]:
    """Run image files on a board, as :func:`dyndeploy.inference.classify_images` and ``run_images`` do here.

    Images become inputs on this machine, so that they are the same to the bit; the board gets those. They are sent some
    dozens at a time, and results come as soon as such a part is done. Engines are built there once and kept; what
    :func:`~dyndeploy.remote.profile_on_device` has built is used, and the other way round.

    Args:
        bundle: For the board's target; it needs no static twin.
        client: Connected to the board.
        entry: The board.
        images: Files and folders of images.
        threads: How many threads a processor's sessions compute with; on a GPU it means nothing.
        thresholds: Of a network that exits early: least confidence of every exit but the last; None for the bundle's
            of the precision that the board computes in.
        progress: Called with what is being done and the fraction done of that step.

    Yields:
        One result per image in their order; ``ms`` is the wall-clock time there from the inputs in memory to the
        outputs in memory.

    Raises:
        UsageError: The request is impossible: another board, no TensorRT, too little disk, thresholds that are missing
            or do not fit.
        DeviceError: The board, or the connection to it, failed.
    """
    manifest = bundle.manifest
    preprocessing, size = manifest.images()
    files = list(with_folders(images))
    board = _Board(bundle, client, entry, threads, thresholds, progress)
    name = manifest.inputs[0].name

    def run(batches: Sequence[Array]) -> list[_Outcome]:
        return board.run([{name: value} for value in batches])

    def each() -> Iterator[Result | Failure]:
        waiting: list[str] = []
        read: list[Array] = []
        for path in files:
            try:
                image = load_image(path, preprocessing, size)
            except InputError as error:
                # The order of the images stays that of the results.
                yield from _rows(waiting, read, board, run)
                waiting, read = [], []
                yield Failure(os.fspath(path), error)
                continue
            waiting.append(os.fspath(path))
            read.append(image)
            if len(read) % board.batch == 0 and sum(value.nbytes for value in read) >= CHUNK_BYTES:
                yield from _rows(waiting, read, board, run)
                waiting, read = [], []
        yield from _rows(waiting, read, board, run)

    if LOGITS in {info.name for info in manifest.outputs}:
        yield from classified(each(), manifest.network)
    else:
        yield from each()


def run_inputs_on_device(
    bundle: Bundle,
    client: DeviceClient,
    entry: DeviceEntry,
    inputs: Sequence[Mapping[str, Array]],
    *,
    threads: int = 1,
    thresholds: Sequence[float] | None = None,
    progress: Progress = lambda message, fraction: None,
) -> list[Result]:
    """Run arrays on a board, as :func:`dyndeploy.inference.run_inputs` does here, with the engines of a profile.

    Args:
        bundle: As for :func:`run_on_device`; it need not take images.
        client: Connected to the board.
        entry: The board.
        inputs: Arrays by name, with the bundle's batch as first axis. Of a network that exits early any number of
            images: they run there one after the other, ``ms`` is the sum, and ``exit`` that of the first, as here.
        threads: As for :func:`run_on_device`.
        thresholds: As for :func:`run_on_device`.
        progress: As for :func:`run_on_device`.

    Returns:
        One result for each; those for a network's masks have their rates.

    Raises:
        UsageError: As for :func:`run_on_device`, or there are no inputs.
        InputError: An input is missing, is of another shape or type, or holds NaN or infinite values.
        NotFiniteError: What the network gives is not finite.
        DeviceError: The board, or the connection to it, failed.
    """
    manifest = bundle.manifest
    if not inputs:
        raise UsageError("Give at least one input.")
    infos = manifest.inputs
    if manifest.exits is not None:
        infos = tuple(replace(info, shape=(ANY_SIZE, *info.shape[1:])) for info in infos)
    # Wrong arrays are told before a board is asked.
    checked = [checked_feeds(infos, feeds) for feeds in inputs]
    batches = checked if manifest.exits is None else [row for feeds in checked for row in _single_rows(feeds)]
    board = _Board(bundle, client, entry, threads, thresholds, progress)
    outcomes = iter(board.run(batches))
    results = []
    for feeds in checked:
        count = 1 if manifest.exits is None else len(feeds[infos[0].name])
        parts = []
        for found in itertools.islice(outcomes, count):
            if isinstance(found, DyndeployError):
                raise found
            parts.append(found)
        outputs = parts[0][0]
        if manifest.exits is not None:
            outputs = {key: np.concatenate([part[0][key] for part in parts]) for key in outputs}
        results.append(board.result(outputs, parts[0][1], sum(part[2] for part in parts), None))
    return results


def _single_rows(feeds: Mapping[str, Array]) -> list[dict[str, Array]]:
    [(name, images)] = feeds.items()
    if not len(images):
        raise InputError("There are no images: give at least one.")
    return [{name: images[row : row + 1]} for row in range(len(images))]


def detect_on_device(
    bundle: Bundle,
    client: DeviceClient,
    entry: DeviceEntry,
    images: Iterable[str | os.PathLike[str]],
    *,
    threads: int = 1,
    progress: Progress = lambda message, fraction: None,
) -> Iterator[DetectionResult | Failure]:
    """Detect objects in image files on a board, as :func:`dyndeploy.inference.detect_images` does here.

    Images are resized and padded on this machine, and detections decoded; the board runs the network, in parts where
    its target does. Engines of a size of inputs are built there when the first image needs it, and kept.

    Args:
        bundle: Of a detector, for the board's target; it needs no static twin.
        client: Connected to the board.
        entry: The board.
        images: As for :func:`run_on_device`, like all that follow.
        threads: Of a processor's sessions.
        progress: Called with what is being done and the fraction done of that step.

    Yields:
        One result per image in their order; ``ms`` is the wall-clock time there.

    Raises:
        UsageError: The request is impossible: no detector, another board, no TensorRT, too little disk.
        DeviceError: The board, or the connection to it, failed.
    """
    prepare, batch = Preparation(bundle.manifest), bundle.manifest.batch
    files = list(with_folders(images))
    boards = {bundle.manifest.input_size: _Board(bundle, client, entry, threads, None, progress)}

    def board(size: Size) -> _Board:
        if size not in boards:
            folder = next(bucket.folder for bucket in bundle.manifest.detector().buckets if bucket.size == size)
            boards[size] = _Board(Bundle.open(bundle.path / folder), client, entry, threads, None, progress)
        return boards[size]

    def found(waiting: Sequence[tuple[str, ByteArray, Prepared]]) -> Iterator[DetectionResult | Failure]:
        results: dict[int, DetectionResult | Failure] = {}
        for size in dict.fromkeys(item.bucket for _, _, item in waiting):
            own, there = [entry for entry in waiting if entry[2].bucket == size], board(size)
            groups = [own[start : start + batch] for start in range(0, len(own), batch)]
            outcomes = there.run([filled_batch([item for _, _, item in group], batch) for group in groups])
            for group, outcome in zip(groups, outcomes, strict=True):
                try:
                    if isinstance(outcome, DyndeployError):
                        raise outcome
                    ones = detected(bundle.manifest, [item for _, _, item in group], outcome[0], outcome[2])
                except DyndeployError as error:
                    results |= {item.place: Failure(name, error) for name, _, item in group}
                    continue
                for (name, pixels, item), one in zip(group, ones, strict=True):
                    results[item.place] = detection_result(bundle.manifest, name, pixels, one, there.code, {})
        yield from (results[place] for place in sorted(results))

    waiting: list[tuple[str, ByteArray, Prepared]] = []
    for place, path in enumerate(files):
        try:
            pixels = read_image(path)
            waiting.append((os.fspath(path), pixels, prepare(place, pixels)))
        except InputError as error:
            # The order of the images stays that of the results.
            yield from found(waiting)
            waiting = []
            yield Failure(os.fspath(path), error)
            continue
        if sum(value.nbytes for _, _, item in waiting for value in item.feeds.values()) >= CHUNK_BYTES:
            yield from found(waiting)
            waiting = []
    yield from found(waiting)


_Outcome = tuple[dict[str, Array], int | None, float] | DyndeployError
"""Outputs, exit and milliseconds of a batch; or why there are none."""


class _Board:
    """A board that has been asked what it is; engines are built when something runs.

    Attributes:
        batch: How many images run at once.
        code: Which code runs the dynamic operators; None without such operators, and before the first run.
    """

    def __init__(
        self,
        bundle: Bundle,
        client: DeviceClient,
        entry: DeviceEntry,
        threads: int,
        thresholds: Sequence[float] | None,
        progress: Progress,
    ) -> None:
        manifest = bundle.manifest
        if manifest.exits is None and thresholds is not None:
            raise UsageError(f"{manifest.network.name} has no exits: leave the thresholds out.")
        target, facts, versions = ask_board(bundle, client, entry, progress, require=require_runnable)
        progress("preparing graphs", 0.0)
        self._bundle, self._client, self._progress = bundle, client, progress
        self._graphs = run_graphs(bundle, target.runtime, versions.get("tensorrt"))
        modules = module_contents(bundle)
        self._sources = plugin_contents(bundle) if target.runtime == "tensorrt" else {}
        self._kept = [
            *self._graphs.contents.values(),
            *self._graphs.programs,
            *modules.values(),
            *self._sources.values(),
        ]
        require_space(client, self._kept, self._graphs.contents, facts)
        self._work = BoardWork(bundle, client, target, versions, threads, modules, progress)
        self._chain = _chain(bundle, thresholds, self._work.precision)
        self._keep = [LOGITS] if manifest.exits is not None else _graph_outputs(bundle)
        self._model = facts["model"] or "the board"
        self.code: str | None = None
        self.batch = manifest.batch if manifest.exits is None else 1

    def run(self, batches: Sequence[Mapping[str, Array]]) -> list[_Outcome]:
        """Run batches of arrays by name, one after the other."""
        names = [info.name for info in self._bundle.manifest.inputs]
        content = _packed({f"input/{at}/{name}": feeds[name] for at, feeds in enumerate(batches) for name in names})

        def steps() -> Any:
            built = self._work.build(self._graphs.contents, self._graphs.plans, self._sources)
            own = self._work.chained(self._graphs.chains, self._keep, built)
            spec = {**own, **self._chain, "batches": len(batches), "inputs": names, "keep": self._keep}
            return self._work.run("run", "run", {**spec, "content": content.sha256})

        result = sent_and_run(self._client, [*self._kept, content], self._progress, steps)
        self._client.forget(result.key)
        self.code = self.code or operator_code(self._bundle.manifest.operator_types, self._work.native())
        return _results(self._bundle, result.value, len(batches), self._keep, self._model)

    def result(self, outputs: dict[str, Array], taken: int | None, ms: float, image: str | None) -> Result:
        """What was computed, with the rates of the masks among the outputs."""
        masks = [mask.name for mask in self._bundle.manifest.masks if mask.name in outputs]
        rates = {mask: float(outputs.pop(mask).mean()) for mask in masks}
        return Result(outputs, ms, taken, rates, image, self.code)


def _graph_outputs(bundle: Bundle) -> list[str]:
    return [info.name for info in bundle.manifest.outputs] + [mask.name for mask in bundle.manifest.masks]


def _chain(bundle: Bundle, thresholds: Sequence[float] | None, precision: str) -> dict[str, Any]:
    """What the board is told of stages; nothing for a network without exits."""
    if bundle.manifest.exits is None:
        return {}
    if not bundle.exits.dynamic_batch and bundle.manifest.batch != 1:
        raise UsageError(f"The bundle runs batches of {bundle.manifest.batch}; exits run image by image on a board.")
    limits = chosen_thresholds(bundle, thresholds, precision)
    if limits is None:
        raise UsageError(
            f"The bundle {bundle.path} holds no exit thresholds for {precision}. Find them with 'dyndeploy calibrate', "
            "or give --thresholds."
        )
    # Confidences are float32: so is what they are compared with, here and there.
    return {"stages": chain_stages(bundle), "thresholds": [float(np.float32(limit)) for limit in limits[:-1]]}


def _packed(arrays: Mapping[str, Array]) -> Content:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return Content.of(stream.getvalue())


def _rows(
    names: Sequence[str], images: Sequence[Array], board: _Board, run: Callable[[Sequence[Array]], list[_Outcome]]
) -> Iterator[Result | Failure]:
    """Results of some images, whose last batch is filled up with its last image."""
    if not images:
        return
    batch = board.batch
    filled = [*images, *[images[-1]] * (-len(images) % batch)]
    batches = [np.stack(filled[start : start + batch]) for start in range(0, len(filled), batch)]
    for number, found in enumerate(run(batches)):
        own = names[number * batch : (number + 1) * batch]
        if isinstance(found, DyndeployError):
            yield from (Failure(name, found) for name in own)
            continue
        outputs, taken, ms = found
        for row, name in enumerate(own):
            values = {
                key: value[row : row + 1] if value.shape[:1] == (batch,) else value for key, value in outputs.items()
            }
            yield board.result(values, taken, ms / len(own), name)


def _results(bundle: Bundle, value: object, count: int, keep: Sequence[str], where: str) -> list[_Outcome]:
    """What the board sent, checked."""
    root = Document(f"The result of {where}", "Run once more.", DeviceError).root(value)
    exits = None if bundle.manifest.exits is None else [stage.exit for stage in bundle.exits.stages]
    runs = root["runs"].sequence(lambda item: item, length=count)
    arrays = unpacked_arrays(root["results"])
    found: list[_Outcome] = []
    for index, item in enumerate(runs):
        if "error" in item.value:
            found.append(NotFiniteError(f"{item['error'].label()}. {_ADVICE}"))
            continue
        left = item["exit"].optional(Field.tally)
        fits = (left is None) == (exits is None) and (left is None or left < len(exits or ()))
        item["exit"].require(fits, "the index of a stage, or null without stages")
        outputs = {name: arrays.get(f"{index}/{name}") for name in keep}
        lacking = [name for name, array in outputs.items() if array is None]
        root["results"].require(not lacking, f"an array of {', '.join(lacking)}")
        named = {name: array for name, array in outputs.items() if array is not None}
        try:
            require_finite(named, _ADVICE)
        except NotFiniteError as error:
            found.append(error)
            continue
        found.append((named, None if left is None or exits is None else exits[left], item["ms"].positive()))
    return found
