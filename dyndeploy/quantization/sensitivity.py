"""Sensitivity: what quantising each block costs, and which blocks to leave in FP32 for a budget."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dyndeploy.bundle import LOGITS, Bundle, MaskInfo
from dyndeploy.bundle.reference_names import exit_logits
from dyndeploy.errors import InputError, UsageError
from dyndeploy.graphs.forced import forced_feeds, overlay_forced_masks
from dyndeploy.quantization.graph import quantize_model
from dyndeploy.quantization.points import find_points
from dyndeploy.quantization.table import FP32, INT8, BlockSensitivity, CalibrationTable, Sensitivity
from dyndeploy.runtimes.base import ANY_SIZE
from dyndeploy.runtimes.onnxruntime import OnnxRuntimeSession
from dyndeploy.runtimes.staged import filled

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Budget:
    """What a mixed plan has to keep.

    Attributes:
        accuracy_drop: Accuracy in FP32 less that of the plan, at most, each with masks of its own; None: not asked.
        output_error: Error of the output under FP32's masks, at most, relative; None: not asked.
    """

    accuracy_drop: float | None = None
    output_error: float | None = None

    def __post_init__(self) -> None:
        """Raise ``UsageError`` for a budget that is no share."""
        for what, value in (("accuracy drop", self.accuracy_drop), ("output error", self.output_error)):
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"The largest {what} is a share in [0, 1], e.g. 0.005, not {value:g}.")

    def __bool__(self) -> bool:
        """Whether anything is asked."""
        return self.accuracy_drop is not None or self.output_error is not None

    def describe(self) -> str:
        """In words."""
        parts = []
        if self.accuracy_drop is not None:
            parts.append(f"accuracy at most {self.accuracy_drop:.2%} below FP32's")
        if self.output_error is not None:
            parts.append(f"output error at most {self.output_error:.2%}")
        return ", ".join(parts)

    def keeps(self, cost: Cost) -> bool:
        """Whether a cost is within it."""
        drop = self.accuracy_drop is None or (cost.drop is not None and cost.drop <= self.accuracy_drop + 1e-12)
        return drop and (self.output_error is None or cost.error <= self.output_error)


@dataclass(frozen=True)
class Cost:
    """What a set of blocks in INT8 costs.

    Attributes:
        error: Norm of the difference of the outputs under FP32's masks, over the norm of FP32's.
        accuracy: Share of the images whose class is right, the network with masks of its own; None without labels.
        drop: Accuracy in FP32 less that; None without labels.
        forced_accuracy: As ``accuracy``, under FP32's masks.
        bits: Compared mask bits.
        flips: How many differ from FP32's, each decided on activations that FP32's masks led to.
    """

    error: float
    accuracy: float | None
    drop: float | None
    forced_accuracy: float | None
    bits: int
    flips: int


def measure_sensitivity(
    bundle: Bundle,
    table: CalibrationTable,
    images: Iterable[Mapping[str, Array]],
    labels: Sequence[int] | None = None,
    *,
    budget: Budget | None = None,
    threads: int = 1,
    native: str | os.PathLike[str] = "auto",
    progress: Progress = lambda message, fraction: None,
) -> CalibrationTable:
    """Measure what quantising costs, block by block, and choose the blocks that stay in FP32.

    Every block is quantised alone, under the masks of FP32, so that an error is the block's own. For a budget the
    blocks that cost most stay in FP32, no more of them than the budget asks for.

    Args:
        bundle: In FP32.
        table: Its calibration.
        images: Inputs by name; each array holds one image or several. They are kept in memory.
        labels: Class of every image; None where they are not known.
        budget: What the plan has to keep; None measures only.
        threads: Threads of ONNX Runtime.
        native: As for :class:`~dyndeploy.runtimes.OnnxRuntimeSession`.
        progress: Called with a message and the fraction done.

    Returns:
        The table with the plan as its ``precision``, and what was measured as its ``sensitivity``.

    Raises:
        UsageError: The table belongs to another network, a budget of accuracy without labels, or one that even FP32
            misses.
        InputError: There are no images.
        DyndeployError: The runtime failed.
    """
    budget = budget or Budget()
    table.check(bundle)
    if budget.accuracy_drop is not None and labels is None:
        raise UsageError(
            "A largest drop of accuracy needs labelled images: one sub-folder per class. Without labels give a largest "
            "error of the output (--max-output-error 0.05)."
        )
    comparison = Comparison(bundle, table, images, labels, threads=threads, native=native)
    candidates = [block for block in comparison.blocks if table.precision_of(block) == INT8]
    steps = len(candidates) + 2
    costs = {}
    for done, block in enumerate(candidates):
        progress(f"{block} alone in INT8", done / steps)
        costs[block] = comparison.cost([block], own_masks=False)
    progress("all blocks in INT8", (steps - 2) / steps)
    everything = comparison.cost(candidates)
    order = sorted(candidates, key=lambda block: _rank(costs[block]), reverse=True)
    chosen, kept = everything, 0
    if budget and not budget.keeps(everything):
        progress("searching the blocks that stay in FP32", (steps - 1) / steps)
        chosen, kept = _search(comparison, order, budget)
    left_out = order[:kept]
    rows = tuple(
        BlockSensitivity(
            block,
            costs[block].error,
            _drop(comparison.accuracy, costs[block].forced_accuracy),
            FP32 if block in left_out else INT8,
            "costs most" if block in left_out else "",
        )
        for block in candidates
    )
    sensitivity = Sensitivity(
        images=comparison.images,
        labels=labels is not None,
        blocks=rows,
        accuracy_fp32=comparison.accuracy,
        accuracy_int8=everything.accuracy,
        accuracy=chosen.accuracy,
        error_int8=everything.error,
        error=chosen.error,
        budget=budget.describe(),
        mask_bits=chosen.bits,
        mask_flips=chosen.flips,
    )
    plan = {**table.precision, **dict.fromkeys(left_out, FP32)}
    return dataclasses.replace(table, precision=plan, sensitivity=sensitivity)


def _rank(cost: Cost) -> tuple[float, float]:
    """What a block costs, for sorting: images that go wrong, then the error of the output."""
    return (-cost.forced_accuracy if cost.forced_accuracy is not None else 0.0, cost.error)


def _drop(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else before - after


def _search(comparison: Comparison, order: Sequence[str], budget: Budget) -> tuple[Cost, int]:
    """Fewest of the costliest blocks that have to stay in FP32: by halves, since fewer blocks in INT8 cost less."""
    low, high = 0, len(order)
    best = comparison.cost([])
    if not budget.keeps(best):
        raise UsageError(f"Even the network in FP32 misses the budget: {budget.describe()}.")
    while high - low > 1:
        middle = (low + high) // 2
        cost = comparison.cost(order[middle:])
        if budget.keeps(cost):
            best, high = cost, middle
        else:
            low = middle
    return best, high


class Comparison:
    """A network in FP32 to compare plans with.

    Args:
        bundle: In FP32.
        table: Its calibration.
        images: As for :func:`measure_sensitivity`.
        labels: As for :func:`measure_sensitivity`.
        threads: Threads of ONNX Runtime.
        native: As for :class:`~dyndeploy.runtimes.OnnxRuntimeSession`.

    Attributes:
        blocks: What can be quantised.
        images: How many images are compared.
        accuracy: Of FP32; None without labels.
    """

    def __init__(
        self,
        bundle: Bundle,
        table: CalibrationTable,
        images: Iterable[Mapping[str, Array]],
        labels: Sequence[int] | None,
        *,
        threads: int = 1,
        native: str | os.PathLike[str] = "auto",
    ) -> None:
        self._bundle, self._table = bundle, table
        self._options: dict[str, Any] = {"threads": threads, "native": native}
        staged = bundle.manifest.exits is not None
        self._graphs = bundle.load_stages() if staged else (bundle.load_model(),)
        self.blocks = tuple(find_points(self._graphs).blocks)
        names = [info.name for info in bundle.manifest.inputs]
        self._samples = [
            {name: value[name][row : row + 1] for name in names}
            for value in images
            for row in range(len(value[names[0]]))
        ]
        self._labels = None if labels is None else list(labels)
        self.images = len(self._samples)
        if not self.images:
            raise InputError("There are no images to measure on.")
        if self._labels is not None and len(self._labels) != self.images:
            raise UsageError(f"{len(self._labels)} labels were given for {self.images} images.")
        self._exact = self._run(self._graphs, forced=False)
        self.accuracy = self._accuracy(self._exact)

    def of(self, table: CalibrationTable) -> Comparison:
        """The same comparison for another table of the network; what FP32 gives is not computed again."""
        table.check(self._bundle)
        other = copy.copy(self)
        other._table = table
        return other

    def cost(self, blocks: Collection[str], *, own_masks: bool = True) -> Cost:
        """What these blocks in INT8, and all others in FP32, cost.

        Args:
            blocks: Of :attr:`blocks`.
            own_masks: Also run the network with the masks that it decides on itself, for its accuracy.
        """
        if blocks:
            plan = {block: INT8 if block in blocks else FP32 for block in self.blocks}
            table = dataclasses.replace(self._table, precision={**self._table.precision, **plan})
            graphs = tuple(quantize_model(graph, table) for graph in self._graphs)
            forced = self._run(graphs, forced=True)
        else:
            graphs, forced = self._graphs, self._exact
        if not own_masks:
            own = None
        else:
            own = self._run(graphs, forced=False) if self._masks(0) and blocks else forced
        accuracy = None if own is None else self._accuracy(own)
        masks = [mask.name for mask in self._bundle.manifest.masks]
        pairs = [(one[name], other[name]) for one, other in zip(self._exact, forced, strict=True) for name in masks]
        return Cost(
            error=self._error(forced),
            accuracy=accuracy,
            drop=_drop(self.accuracy, accuracy),
            forced_accuracy=self._accuracy(forced),
            bits=sum(one.size for one, _ in pairs),
            flips=sum(int((one != other).sum()) for one, other in pairs),
        )

    def _masks(self, stage: int) -> tuple[MaskInfo, ...]:
        manifest = self._bundle.manifest
        return manifest.masks if manifest.exits is None else self._bundle.stage_masks(manifest.exits.stages[stage])

    def _error(self, results: Sequence[Mapping[str, Array]]) -> float:
        names = self._outputs()
        difference = norm = 0.0
        for exact, result in zip(self._exact, results, strict=True):
            for name in names:
                reference = exact[name].astype(np.float64)
                difference += float(((result[name] - reference) ** 2).sum())
                norm += float((reference**2).sum())
        return math.sqrt(difference / norm) if norm else 0.0

    def _outputs(self) -> list[str]:
        manifest = self._bundle.manifest
        if manifest.exits is None:
            return [info.name for info in manifest.outputs if "float" in info.dtype]
        return [exit_logits(stage.exit) for stage in manifest.exits.stages]

    def _accuracy(self, results: Sequence[Mapping[str, Array]]) -> float | None:
        name = LOGITS if self._bundle.manifest.exits is None else self._outputs()[-1]
        if self._labels is None or any(name not in result for result in results):
            return None
        right = [int(r[name][0].argmax()) == label for r, label in zip(results, self._labels, strict=True)]
        return sum(right) / len(right)

    def _run(self, graphs: Sequence[onnx.ModelProto], *, forced: bool) -> list[dict[str, Array]]:
        """Outputs and masks of every image; all stages run on each."""
        results: list[dict[str, Array]] = [{} for _ in self._samples]
        with ExitStack() as stack:
            sessions = []
            for index, graph in enumerate(graphs):
                masks = self._masks(index)
                model = overlay_forced_masks(graph, masks) if forced and masks else graph
                shared = len(graphs) > 1
                sessions.append(stack.enter_context(OnnxRuntimeSession(model, shared=shared, **self._options)))
            batch = sessions[0].inputs[0].shape[0]
            size = 1 if batch == ANY_SIZE else batch
            for start in range(0, self.images, size):
                rows = range(start, min(start + size, self.images))
                samples = [self._samples[row] for row in rows]
                tensors = {name: np.concatenate([s[name] for s in samples]) for name in samples[0]}
                exact = [self._exact[row] for row in rows] if forced else []
                for index, session in enumerate(sessions):
                    given = self._run_stage(index, session, tensors, exact)
                    for offset, row in enumerate(rows):
                        results[row] |= {name: value[offset : offset + 1] for name, value in given.items()}
        return results

    def _run_stage(
        self, index: int, session: OnnxRuntimeSession, tensors: dict[str, Array], exact: Sequence[Mapping[str, Array]]
    ) -> dict[str, Array]:
        """Run a stage; returns its masks and outputs, and leaves what it carries on among the tensors."""
        manifest, masks = self._bundle.manifest, self._masks(index)
        count = len(next(iter(tensors.values())))
        feeds: dict[str, Array] = {}
        if exact and masks:
            size = masks[0].shape[0]
            given = {m.name: filled(np.concatenate([each[m.name] for each in exact]), size) for m in masks}
            feeds = dict(forced_feeds(given, masks))
        for info in session.inputs:
            if info.name not in feeds:
                batch = None if info.shape[0] == ANY_SIZE else info.shape[0]
                feeds[info.name] = filled(tensors[info.name], batch)
        found = {name: value[:count] for name, value in session.run(feeds, finite=False).items()}
        kept = {mask.name: found[mask.name] for mask in masks}
        if manifest.exits is None:
            return kept | {info.name: found[info.name] for info in manifest.outputs}
        tensors |= found
        return kept | {exit_logits(manifest.exits.stages[index].exit): found[LOGITS]}
