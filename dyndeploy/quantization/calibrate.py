"""Calibration: run a network in FP32, look at the values that it really computes, and give every tensor a scale."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dyndeploy.bundle import CONFIDENCE, Bundle
from dyndeploy.chunks import Part, Tick, Work, chunk_results, require_same_list
from dyndeploy.errors import InputError, NotFiniteError, UsageError
from dyndeploy.files import sha256
from dyndeploy.finite import not_finite
from dyndeploy.graphs.inspect import operator_attributes
from dyndeploy.precisions import PRECISIONS
from dyndeploy.quantization.images import CalibrationImages
from dyndeploy.quantization.observers import BINS, Observer
from dyndeploy.quantization.points import DynamicPoints, Points, find_points
from dyndeploy.quantization.scales import PERCENTILE, Found, find_scale, settings_of
from dyndeploy.quantization.table import (
    FP32,
    INT8,
    WEIGHT_BITS,
    CalibrationTable,
    TensorScale,
    weights_sha256,
)
from dyndeploy.runtimes.base import ANY_SIZE
from dyndeploy.runtimes.onnxruntime import OnnxRuntimeSession
from dyndeploy.runtimes.staged import chosen_thresholds, filled

if TYPE_CHECKING:
    import onnx
    import torch

Array = npt.NDArray[Any]
Samples = Iterable[Mapping[str, Array]]
Progress = Callable[[str, float], None]

MIN_IMAGES = 16
"""So many different images are needed at least: ranges of fewer say little about the next image."""
MAX_SATURATION = 0.01
"""Largest share of a tensor's values that may be clipped, unless another limit is given."""
_NAMED = 4
_PACKAGES = ("dyndeploy", "numpy", "onnx", "onnxruntime", "torch")


def calibrate(
    model: Bundle | onnx.ModelProto,
    samples: Samples,
    *,
    method: str = "mse",
    weight_bits: int = 7,
    per_channel: bool = True,
    percentile: float = PERCENTILE,
    max_saturation: float = MAX_SATURATION,
    min_images: int = MIN_IMAGES,
    thresholds: Sequence[float] | None = None,
    data: str = "samples of the caller's",
    names: Callable[[int], str] = lambda index: f"image {index + 1}",
    settings: Mapping[str, Any] | None = None,
    threads: int = 1,
    native: str | os.PathLike[str] = "auto",
    total: int | None = None,
    progress: Progress = lambda message, fraction: None,
) -> CalibrationTable:
    """Find a scale for every tensor that is quantised.

    The network runs in FP32, with its own masks. Of a dynamic operator only what it computes is observed: active and
    dilated pixels, active groups of channels, blocks that run. Stages behind an exit see the images that reach them.
    Histograms are kept, no activations.

    Args:
        model: A bundle in FP32, or a graph as export writes it.
        samples: Inputs of the network by name, preprocessed; each array holds one image or several.
        method: One of :data:`~dyndeploy.quantization.METHODS`, see :func:`~dyndeploy.quantization.find_scale`.
        weight_bits: 7: two products of bytes fit 16 bits, so that every CPU computes the same; or 8.
        per_channel: Whether the weights of standard layers have a scale per output channel.
        percentile: Of the method ``"percentile"``, in (50, 100].
        max_saturation: Largest share of a tensor's values that may be clipped.
        min_images: Fewest images that are different from each other.
        thresholds: Of a network that exits early, as for :func:`~dyndeploy.runtimes.open_staged`; None for the
            bundle's of FP32. Without either every image goes to the last exit, and a note says so.
        data: Where the images come from, in words.
        names: Says in messages which image is meant, by its number from 0.
        settings: What else of the calibration is worth to keep in the table, e.g. a seed.
        threads: Threads that compute, of ONNX Runtime and of PyTorch.
        native: As for :class:`~dyndeploy.runtimes.OnnxRuntimeSession`.
        total: Number of images, for progress; None where it is not known.
        progress: Called with a message and the fraction done.

    Raises:
        UsageError: Wrong options, a bundle that is quantised already, nothing to quantise, or a tensor of which more
            is clipped than ``max_saturation``.
        InputError: Too few images, constant ones, or inputs that do not fit.
        NotFiniteError: A value is NaN or infinite; the message names the tensor and the image.
        DyndeployError: The runtime failed.
    """
    options = TableOptions(method, weight_bits, per_channel, percentile, max_saturation, data, settings or {})
    options.require_valid()
    subject = _Subject.of(model, thresholds)
    with subject.running(names=names, threads=threads, native=native) as run:
        for batch in _batches(samples, run.inputs, run.batch):
            run.add(batch)
            seen = run.seen.images
            progress(f"observed {seen} images", 0.0 if not total else min(1.0, seen / total))
    return _table(subject, run.seen, options, min_images)


def calibrate_images(
    bundle: Bundle,
    data: str | os.PathLike[str],
    numbers: Sequence[int] | None = None,
    *,
    options: TableOptions,
    min_images: int = MIN_IMAGES,
    thresholds: Sequence[float] | None = None,
    threads: int = 1,
    native: str | os.PathLike[str] = "auto",
    workers: int = 1,
    state: str | os.PathLike[str] | None = None,
    progress: Progress = lambda message, fraction: None,
) -> CalibrationTable:
    """Do the same on images of a folder, in chunks (:mod:`dyndeploy.chunks`): by several processes, also torchrun's.

    Histograms depend neither on the order of the images nor on how they are shared out, so that the table is the same
    to the bit.

    Args:
        bundle: A bundle in FP32.
        data: As for :meth:`~dyndeploy.quantization.images.CalibrationImages.open`.
        numbers: Which of its images; None for all.
        options: What the table is to be.
        min_images: As for :func:`calibrate`.
        thresholds: As for :func:`calibrate`.
        threads: As for :func:`calibrate`; each process has as many.
        native: As for :func:`calibrate`.
        workers: Processes that share the images; several start the script again that calls this, so it has to be
            guarded by ``if __name__ == "__main__":``.
        state: A folder that keeps what each chunk gave. A run that was broken off goes on from there; a changed image
            of the same name is not noticed.
        progress: Called with a message and the fraction done.

    Raises:
        UsageError: As for :func:`calibrate`; also fewer than 1 worker, or a state of another run.
        InputError: As for :func:`calibrate`; also where there are no such images.
        OutputError: The state cannot be written, or a process was killed.
        NotFiniteError: A value is NaN or infinite; the message names the tensor and the image.
        DyndeployError: The runtime failed.
    """
    options.require_valid()
    subject = _Subject.of(bundle, thresholds)
    images = CalibrationImages.open(bundle, data)
    work = _Work(bundle.path, data, subject.thresholds, threads, native, images.fingerprint())
    parts = chunk_results(
        work,
        range(images.count) if numbers is None else [int(number) for number in numbers],
        identity=work.identity(),
        workers=workers,
        state=state,
        said="observed",
        progress=progress,
    )
    seen = Seen.empty(subject.points)
    for part in parts:
        seen.merge(Seen.from_json(part))
    return _table(subject, seen, options, min_images)


@dataclass(frozen=True)
class TableOptions:
    """What a table is to be; the fields are arguments of :func:`calibrate`."""

    method: str = "mse"
    weight_bits: int = 7
    per_channel: bool = True
    percentile: float = PERCENTILE
    max_saturation: float = MAX_SATURATION
    data: str = "samples of the caller's"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def require_valid(self) -> None:
        """Refuse wrong options; raises ``UsageError``."""
        settings_of(self.method, self.percentile)
        if self.weight_bits not in WEIGHT_BITS:
            raise UsageError(f"Weights have 7 or 8 bits, not {self.weight_bits!r}.")
        if not 0 <= self.max_saturation < 1:
            raise UsageError(f"The largest share of clipped values lies in [0, 1), not {self.max_saturation:g}.")


@dataclass(frozen=True)
class _Subject:
    """What is calibrated."""

    graphs: Sequence[onnx.ModelProto]
    points: Points
    bundle: Bundle | None
    thresholds: Sequence[float] | None

    @classmethod
    def of(cls, model: Bundle | onnx.ModelProto, thresholds: Sequence[float] | None) -> _Subject:
        graphs = _graphs(model)
        points = find_points(graphs)
        if not points.group_of:
            raise UsageError("The network has nothing to quantise: no dynamic operator with a counterpart in integers.")
        bundle = model if isinstance(model, Bundle) else None
        if bundle is not None and bundle.manifest.exits is not None:
            return cls(graphs, points, bundle, chosen_thresholds(bundle, thresholds, "fp32"))
        if thresholds is not None:
            raise UsageError("The network has no exits: leave the thresholds out.")
        return cls(graphs, points, bundle, None)

    @contextmanager
    def running(self, *, names: Callable[[int], str], threads: int, native: str | os.PathLike[str]) -> Iterator[_Run]:
        """Open the graphs with everything that is observed as further outputs."""
        with ExitStack() as stack:
            stack.enter_context(_torch_threads(threads))
            yield _Run(
                self.graphs, self.points, stack, names=names, thresholds=self.thresholds, threads=threads, native=native
            )


@dataclass(frozen=True)
class _Work:
    """Observes the images of a chunk; it can be pickled."""

    path: Path
    data: str | os.PathLike[str]
    thresholds: Sequence[float] | None
    threads: int
    native: str | os.PathLike[str]
    images_sha256: str

    def identity(self) -> dict[str, Any]:
        """All that the histograms depend on."""
        bundle = Bundle.open(self.path)
        graphs = [bundle.model] if bundle.manifest.exits is None else bundle.stages
        return {
            "kind": "calibration",
            "graphs_sha256": [sha256(graph) for graph in graphs],
            "images_sha256": self.images_sha256,
            "thresholds": None if self.thresholds is None else list(filter(math.isfinite, self.thresholds)),
            "threads": self.threads,
            "native": os.fspath(self.native),
            "tools": _tools(),
        }

    @contextmanager
    def __call__(self) -> Iterator[Work]:
        bundle = Bundle.open(self.path)
        images = CalibrationImages.open(bundle, self.data)
        require_same_list(images.fingerprint(), self.images_sha256, self.data)
        names: list[str] = []
        # Thresholds are found again from those of all exits but the last.
        limits = None if self.thresholds is None else self.thresholds[: len(bundle.exits.stages) - 1]
        subject = _Subject.of(bundle, limits)
        with subject.running(names=lambda row: names[row], threads=self.threads, native=self.native) as run:

            def observed(indices: Sequence[int], tick: Tick) -> Part:
                run.seen = Seen.empty(subject.points)
                names[:] = [images.name(index) for index in indices]
                for batch in _batches(images.samples(indices, run.inputs[0]), run.inputs, run.batch):
                    run.add(batch)
                    for _ in range(len(batch[run.inputs[0]])):
                        tick()
                return run.seen.to_json()

            yield observed


def _table(subject: _Subject, run: Seen, options: TableOptions, min_images: int) -> CalibrationTable:
    """Give every tensor a scale from what was seen."""
    run.require_varied(min_images)
    graphs, points, bundle, used = subject.graphs, subject.points, subject.bundle, subject.thresholds
    known = settings_of(options.method, options.percentile)
    notes = list(run.notes())
    if bundle is not None and bundle.manifest.exits is not None:
        if used is None:
            notes.append("The bundle holds no thresholds for fp32: every image ran to the last exit.")
        known["thresholds"] = None if used is None else [float(value) for value in used[:-1]]
    network = None if bundle is None else bundle.manifest.network
    scales = _scales(run, points, options.method, options.percentile, options.max_saturation)
    precision, why = _precisions(run, points, scales)
    return CalibrationTable(
        network=graphs[0].graph.name if network is None else network.name,
        mode="" if network is None else network.mode,
        granularity=() if network is None else network.granularity,
        channel_granularity=() if network is None else network.channel_granularity,
        weights_sha256=weights_sha256(graphs),
        stages_sha256=tuple(map(weights_sha256, graphs)) if len(graphs) > 1 else (),
        weight_bits=options.weight_bits,
        per_channel=options.per_channel,
        method=options.method,
        settings={**known, "bins": BINS, "max_saturation": options.max_saturation, **options.settings},
        data=options.data,
        images=run.images,
        precision=precision,
        tensors=_tensors(run, points, scales),
        tools=_tools(),
        notes=(*notes, *why),
    )


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    """PyTorch computes with as many threads as ONNX Runtime: its own choice slows both down where cores are shared."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _graphs(model: Bundle | onnx.ModelProto) -> Sequence[onnx.ModelProto]:
    if not isinstance(model, Bundle):
        return [model]
    if model.manifest.precision in PRECISIONS and PRECISIONS[model.manifest.precision].element_bytes == 1:
        raise UsageError(f"The bundle {model.path} is quantised already. Calibrate one in FP32.")
    return [model.load_model()] if model.manifest.exits is None else model.load_stages()


# ---------------------------------------------------------------- running


class _Stage:
    """A graph with everything that is observed as further outputs."""

    def __init__(self, graph: onnx.ModelProto, index: int, points: Points, session: OnnxRuntimeSession) -> None:
        self.session = session
        self.watched = points.watched[index]
        first = {group: point for point, group in sorted(points.group_of.items(), reverse=True)}
        self.called = {name: first[group] for name, group in self.watched.items()}
        self.dynamic = [point for point in points.dynamic if point.stage == index]
        self.outputs = [value.name for value in graph.graph.output]
        # In order of execution: what is not finite is named where it arises.
        asked = {info.name for info in session.outputs}
        self._asked = [name for node in graph.graph.node for name in node.output if name in asked]
        shape = session.inputs[0].shape
        self.batch = None if not shape or shape[0] == ANY_SIZE else shape[0]
        self._constants = _constants(graph, {name for point in self.dynamic for name in point.node.input})
        self._attributes = {point.node.name: operator_attributes(point.node) for point in self.dynamic}

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Everything that the stage is asked for, and what it was given, for as many images as were given."""
        count = len(tensors[self.session.inputs[0].name])
        feeds = {info.name: filled(tensors[info.name], self.batch) for info in self.session.inputs}
        results = self.session.run(feeds, self._asked, finite=False)
        given = {name: tensors[name] for name in feeds}
        return {**given, **{name: value[:count] if value.ndim else value for name, value in results.items()}}

    def inputs_of(self, point: DynamicPoints, results: Mapping[str, Array]) -> list[torch.Tensor]:
        """Inputs of a dynamic operator, as its reference takes them."""
        import torch

        names = [name for name in point.node.input if name]
        return [
            self._constants[name] if name in self._constants else torch.from_numpy(np.ascontiguousarray(results[name]))
            for name in names
        ]

    def attributes_of(self, point: DynamicPoints) -> dict[str, Any]:
        return self._attributes[point.node.name]


def _constants(graph: onnx.ModelProto, names: set[str]) -> dict[str, torch.Tensor]:
    import torch
    from onnx import numpy_helper

    # Copied: what a graph holds is not writable, which PyTorch warns of.
    return {
        item.name: torch.from_numpy(numpy_helper.to_array(item).copy())
        for item in graph.graph.initializer
        if item.name in names
    }


def _opened(graph: onnx.ModelProto, index: int, points: Points, stack: ExitStack, **options: Any) -> _Stage:
    import onnx

    wanted = {name for point in points.dynamic if point.stage == index for name in point.node.input if name}
    wanted |= set(points.watched[index])
    have = {item.name for item in graph.graph.initializer} | {value.name for value in graph.graph.input}
    have |= {value.name for value in graph.graph.output}
    asked = onnx.ModelProto()
    asked.CopyFrom(graph)
    # Their types are known to whoever runs the graph.
    asked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(wanted - have))
    return _Stage(graph, index, points, stack.enter_context(OnnxRuntimeSession(asked, **options)))


@dataclass
class Seen:
    """What images cause.

    Attributes:
        observers: By number of a group.
        images: How many were run.
        constant: How many of them have the same value everywhere.
        different: Checksums of them.
    """

    observers: dict[int, Observer]
    images: int = 0
    constant: int = 0
    different: set[str] = field(default_factory=set)

    @classmethod
    def empty(cls, points: Points) -> Seen:
        """Nothing yet."""
        return cls({number: Observer() for number in points.group_of.values()})

    def merge(self, other: Seen) -> None:
        """Add what other images caused in the same network."""
        self.images += other.images
        self.constant += other.constant
        self.different |= other.different
        for number, observer in other.observers.items():
            self.observers[number].merge(observer)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, which hold everything."""
        return {
            "images": self.images,
            "constant": self.constant,
            "different": sorted(self.different),
            "observers": {str(number): observer.to_json() for number, observer in self.observers.items()},
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Seen:
        """The same from what :meth:`to_json` gives."""
        observers = {int(number): Observer.from_json(each) for number, each in plain["observers"].items()}
        return cls(observers, plain["images"], plain["constant"], set(plain["different"]))

    def require_varied(self, least: int) -> None:
        """Refuse images that say too little about others; raises ``InputError``."""
        if self.images < least:
            raise InputError(
                f"{self.images} images are too few to calibrate on: give at least {least} that show what the network "
                "will see."
            )
        if self.constant > self.images / 2:
            raise InputError(
                f"{self.constant} of {self.images} images are constant, every value the same: they cause no usual "
                "activations. Check how they are read."
            )
        if len(self.different) < least:
            raise InputError(
                f"Only {len(self.different)} of {self.images} images are different from each other: give at least "
                f"{least} different ones."
            )

    def notes(self) -> Iterator[str]:
        """What a reader should know of the images."""
        if self.constant:
            yield f"{self.constant} of {self.images} images are constant, every value the same."
        if len(self.different) < self.images:
            yield f"{self.images - len(self.different)} of {self.images} images are copies of others."


class _Run:
    """Runs images and counts what they cause.

    Attributes:
        seen: What they caused so far.
        inputs: Names of the network's inputs.
        batch: Images that are run at a time.
    """

    def __init__(
        self,
        graphs: Sequence[onnx.ModelProto],
        points: Points,
        stack: ExitStack,
        *,
        names: Callable[[int], str],
        thresholds: Sequence[float] | None,
        threads: int,
        native: str | os.PathLike[str],
    ) -> None:
        self._stages = [
            _opened(graph, index, points, stack, threads=threads, native=native, shared=len(graphs) > 1)
            for index, graph in enumerate(graphs)
        ]
        self._points, self._names, self._thresholds = points, names, thresholds
        self.seen = Seen.empty(points)
        self.batch = next((stage.batch for stage in self._stages if stage.batch is not None), 1)
        self.inputs = [info.name for info in self._stages[0].session.inputs]

    def add(self, tensors: Mapping[str, Array]) -> None:
        """Run images through all stages, each as far as it goes."""
        import torch

        count = len(next(iter(tensors.values())))
        rows = np.arange(self.seen.images, self.seen.images + count)
        self._look_at(tensors, rows)
        with torch.no_grad():
            for index, stage in enumerate(self._stages):
                results = stage.run(tensors)
                self._require_finite(results, rows, stage.called)
                self._observe(stage, results, rows)
                if index + 1 == len(self._stages):
                    break
                tensors = {**tensors, **{name: results[name] for name in stage.outputs}}
                if self._thresholds is not None:
                    stays = ~(results[CONFIDENCE] >= np.float32(self._thresholds[index]))
                    tensors, rows = {name: value[stays] for name, value in tensors.items()}, rows[stays]
                if not len(rows):
                    break
        self.seen.images += count

    def _look_at(self, tensors: Mapping[str, Array], rows: npt.NDArray[np.int64]) -> None:
        self._require_finite(tensors, rows)
        for row in range(len(rows)):
            values = [np.ascontiguousarray(tensors[name][row]) for name in self.inputs]
            self.seen.different.add(hashlib.blake2b(b"".join(value.tobytes() for value in values)).hexdigest())
            self.seen.constant += all(bool((value == value.flat[0]).all()) for value in values if value.size)

    def _require_finite(
        self,
        results: Mapping[str, Array],
        rows: npt.NDArray[np.int64],
        called: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        for name, value in results.items():
            if not not_finite(value):
                continue
            bad = next((row for row in range(len(rows)) if not_finite(value[row : row + 1])), 0)
            point = f" ({called[name]})" if name in called else ""
            raise NotFiniteError(
                f"'{name}'{point} holds {not_finite(value[bad : bad + 1])} for {self._names(int(rows[bad]))}: there is "
                "no scale for that. Leave the image out, or look for a damaged weight with 'dyndeploy verify'."
            )

    def _observe(self, stage: _Stage, results: Mapping[str, Array], rows: npt.NDArray[np.int64]) -> None:
        for name, group in stage.watched.items():
            self.seen.observers[group].add(results[name])
        for point in stage.dynamic:
            found = point.face.observe(stage.inputs_of(point, results), stage.attributes_of(point))
            for inside, value in found.items():
                name, array = point.names[inside], value.numpy()
                if not_finite(array):
                    raise NotFiniteError(
                        f"'{name}' holds {not_finite(array)} for {self._named(rows)}: there is no scale for that. Look "
                        "for a damaged weight with 'dyndeploy verify'."
                    )
                self.seen.observers[self._points.group_of[name]].add(array)

    def _named(self, rows: npt.NDArray[np.int64]) -> str:
        return " or ".join(self._names(int(row)) for row in rows)


def _batches(samples: Samples, inputs: Sequence[str], size: int) -> Iterator[dict[str, Array]]:
    """The samples, ``size`` images at a time, the last ones maybe fewer."""
    waiting: dict[str, list[Array]] = {name: [] for name in inputs}
    for sample in samples:
        missing = [name for name in inputs if name not in sample]
        if missing:
            raise InputError(f"A sample lacks {', '.join(missing)}: it holds {', '.join(sample) or 'nothing'}.")
        arrays = {name: np.asarray(sample[name]) for name in inputs}
        counts = {value.shape[:1] for value in arrays.values()}
        if len(counts) != 1 or () in counts:
            raise InputError("The inputs of a sample need one first axis, the batch, of the same length.")
        for row in range(counts.pop()[0]):
            for name, value in arrays.items():
                waiting[name].append(value[row : row + 1])
            if len(waiting[inputs[0]]) == size:
                yield {name: np.concatenate(values) for name, values in waiting.items()}
                waiting = {name: [] for name in inputs}
    if waiting[inputs[0]]:
        yield {name: np.concatenate(values) for name, values in waiting.items()}


# ---------------------------------------------------------------- the table


def _scales(run: Seen, points: Points, method: str, percentile: float, max_saturation: float) -> dict[int, Found]:
    """Scale of every group that has one; raises ``UsageError`` where too much is clipped."""
    found: dict[int, Found] = {}
    for number, observer in run.observers.items():
        if not observer.count or (number in points.unsigned and observer.min < 0):
            continue
        found[number] = find_scale(observer, method, percentile=percentile, max_clipped=max_saturation)
    worst = max(found, key=lambda number: found[number].clipped, default=None)
    if worst is not None and found[worst].clipped > max_saturation:
        named = [point for point, number in points.group_of.items() if number == worst]
        raise UsageError(
            f"The method {method} clips {found[worst].clipped:.2%} of the values of {', '.join(named[:_NAMED])}, more "
            f"than the limit of {max_saturation:.2%}: its range is too small for what the images cause. Use another "
            "method (mse, minmax), a higher percentile or more images, or raise the limit."
        )
    return found


def _precisions(run: Seen, points: Points, scales: Mapping[int, Found]) -> tuple[dict[str, str], list[str]]:
    """Precision of every block, and why some cannot be quantised."""
    never: list[str] = []
    negative: list[str] = []
    precision = dict.fromkeys(points.blocks, INT8)
    for block, groups in points.blocks.items():
        if all(number in scales for number in groups):
            continue
        precision[block] = FP32
        below = any(run.observers[number].min < 0 for number in groups)
        (negative if below else never).append(block)
    why = []
    if never:
        why.append(f"{_few(never)} computed nothing on these images, and stay in FP32: there is nothing to scale by.")
    if negative:
        why.append(f"{_few(negative)} read or write negative values, and stay in FP32: bytes have no sign here.")
    if points.inside:
        why.append(f"{_few(points.inside)} may be skipped as a whole, in a branch: what is inside stays in FP32.")
    return precision | dict.fromkeys(points.inside, FP32), why


def _few(blocks: Sequence[str]) -> str:
    more = f" and {len(blocks) - _NAMED} more" if len(blocks) > _NAMED else ""
    return f"{', '.join(blocks[:_NAMED])}{more}"


def _tensors(run: Seen, points: Points, scales: Mapping[int, Found]) -> dict[str, TensorScale]:
    histograms = {number: run.observers[number].histogram() for number in scales}
    return {
        point: TensorScale(
            scale=scales[number].scale,
            zero_point=scales[number].zero_point,
            min=run.observers[number].min,
            max=run.observers[number].max,
            count=run.observers[number].count,
            clipped=scales[number].clipped,
            histogram=histograms[number],
        )
        for point, number in sorted(points.group_of.items())
        if number in scales
    }


def _tools() -> dict[str, str]:
    import dyndeploy

    found = {"dyndeploy": dyndeploy.__version__}
    for package in _PACKAGES[1:]:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
