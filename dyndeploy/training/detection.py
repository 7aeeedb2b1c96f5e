"""Training of detectors: their losses and the FLOPs of their backbones, and what they are worth on held-out images."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dyndeploy.blocks import Tape
from dyndeploy.data import FloatArray, LabelArray
from dyndeploy.errors import DyndeployError, NotFiniteError, UsageError
from dyndeploy.finite import listed
from dyndeploy.nets.detection_losses import LOSSES, MMDETECTION, Losses
from dyndeploy.tasks.coco import CocoMetrics, coco_metrics
from dyndeploy.tasks.detection import Detections, DetectionTask, Placement, decode_mask, encode_mask
from dyndeploy.training.evaluation import BlockEvaluation, Evaluation, MaskStatistics, evaluating
from dyndeploy.training.losses import sparsity_loss
from dyndeploy.training.objectives import FLOPS_TOLERANCE, GatedObjective, Loss, Moment, autocast
from dyndeploy.training.processes import Processes, SharedNoise
from dyndeploy.training.recipe import Recipe
from dyndeploy.training.scenes import Collate, SceneBatch, Scenes


class DetectionObjective(GatedObjective):
    """The losses of a detector, and what its gates are held to.

    A detector is a network with a ``task`` (:class:`~dyndeploy.tasks.detection.DetectionTask`), with ``full_flops``,
    and with ``forward(images, image_size, targets)`` that gives ``losses`` by name beside the account of its backbone;
    see :class:`dyndeploy.nets.detector.Detector`.

    Args:
        recipe: The run.
        network: Made from it, on the CPU, before anything is done to it.
        training: Two of these images are tried.
        held_out: What it is evaluated on.
        processes: See :class:`GatedObjective`.
        noise: See there.

    Raises:
        UsageError: The network cannot be trained as the recipe says.
        NotFiniteError: Its losses are not finite before any training.
    """

    def __init__(
        self,
        recipe: Recipe,
        network: nn.Module,
        training: Scenes,
        held_out: Scenes,
        *,
        processes: Processes | None = None,
        noise: SharedNoise | None = None,
    ) -> None:
        super().__init__(recipe, network, processes, noise)
        assert recipe.detection is not None
        for name in ("proposal_samples", "region_samples"):
            if hasattr(network, name):
                setattr(network, name, getattr(recipe.detection, name))
        self._choose_losses(recipe.detection.losses)
        self._held_out = held_out
        task = network.task
        assert isinstance(task, DetectionTask)
        self._task = task
        self._full: dict[tuple[int, int], float] = {}
        self._check_classes(training)
        self.varies = self._rehearse(Collate(task.divisor, tensors=True)([training[0], training[1]]))

    def full(self, inputs: Tensor) -> float:
        """Return what the FLOPs of a pass over inputs (N, 3, H, W) are divided by: MACs of everything."""
        size = (inputs.shape[2], inputs.shape[3])
        if size not in self._full:
            self._full[size] = float(self.network.full_flops(size))  # type: ignore[operator]
        return self._full[size]

    def of_batch(self, network: nn.Module, batch: Any, moment: Moment, precision: torch.dtype) -> Loss:
        """See :meth:`GatedObjective.of_batch`; images with objects."""
        assert isinstance(batch, SceneBatch)
        tape = self.tape(moment)
        with tape, autocast(batch.inputs, precision):
            output = network(batch.inputs, batch.image_size, batch.targets)
        terms = dict(output.losses)
        total = torch.stack(list(terms.values())).sum()
        sparsity = self.recipe.sparsity
        if self.varies and sparsity is not None:
            full = self.full(batch.inputs)
            budget = sparsity_loss(output.flops, full, output.flops_ratio, sparsity.target, self.bounds(moment))
            total = total + sparsity.weight * budget
            terms |= {"sparsity": budget}
        for kind, (loss, weight, share) in self._usage(tape).items():
            total = total + weight * loss
            terms |= {f"usage.{kind}": loss, f"share.{kind}": share}
        if self.varies:
            terms["flops_ratio"] = output.flops / self.full(batch.inputs)
        return Loss(total, terms, None)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Any], gather: Any) -> Evaluation:
        """Evaluate the network: average precision, FLOPs, and its gates.

        Every image is padded as it would be alone: the padding is seen by the gates.

        Raises:
            NotFiniteError: An output or a gate's decision is NaN or infinite; the message names it.
        """
        found = _Found(self._task)
        with evaluating(self.network), Tape(self.network) as tape:
            for batch in batches:
                for part in batch.alike(self._task.divisor):
                    output = self.network(part.inputs, part.image_size)
                    found.add(part, output, tape, self.full(part.inputs))
        parts: list[_Found] = gather(found)
        broken = next((part.broken for part in parts if part.broken), "")
        if broken:
            raise NotFiniteError(
                f"The network gives no usable result in evaluation: {broken}. Its weights have gone astray."
            )
        return _evaluation(parts, self._task, self._held_out)

    def score(self, evaluation: Evaluation) -> float | None:
        """Return the AP50 of boxes, with masks the mean of both; None where the FLOPs budget is not kept."""
        sparsity, metrics = self.recipe.sparsity, evaluation.detection
        if self.varies and sparsity is not None and evaluation.flops_ratio > sparsity.target + FLOPS_TOLERANCE:
            return None
        assert metrics is not None
        scores = [part.ap50 or 0.0 for part in (metrics.boxes, metrics.masks) if part is not None]
        return sum(scores) / len(scores)

    def _choose_losses(self, name: str) -> None:
        own = getattr(self.network, "whose_losses", None)
        if not isinstance(own, Losses):
            if name != MMDETECTION.name:
                raise UsageError(f"detection.losses: {self.recipe.model.name} has losses of its own: leave it out.")
            return
        self.network.whose_losses = LOSSES[name]  # type: ignore[assignment]
        if name != MMDETECTION.name:
            self.notes = (f"The losses are {name}'s (detection.losses), not {MMDETECTION.name}'s, which LAUDNet used.",)

    def _check_classes(self, training: Scenes) -> None:
        config = getattr(self.network, "config", None)
        classes = getattr(config, "num_classes", len(training.classes))
        if classes != len(training.classes):
            raise UsageError(
                f"The annotations have {len(training.classes)} classes and the network has {classes}: set "
                f"model.options.num_classes to {len(training.classes)}, or leave it out."
            )

    def _rehearse(self, batch: SceneBatch) -> bool:
        """Train a copy of the network on two images; return whether its FLOPs vary.

        Raises:
            UsageError: It does not run on them, or no gate that is trained gets a gradient.
            NotFiniteError: A loss is NaN or infinite.
        """
        name = self.recipe.model.name
        twin = copy.deepcopy(self.network).train()
        with torch.random.fork_rng(devices=[]), Tape(twin) as tape:
            try:
                output = twin(batch.inputs, batch.image_size, batch.targets)
            except DyndeployError:
                raise
            except Exception as error:
                raise UsageError(
                    f"{name} cannot run on training images {tuple(batch.inputs.shape)}: {type(error).__name__}: "
                    f"{' '.join(str(error).split())[:200].rstrip('.')}. Check model.options."
                ) from error
        self._usage(tape)
        losses = {key: value.detach().double().cpu().numpy() for key, value in output.losses.items()}
        broken = listed(losses)
        if broken:
            raise NotFiniteError(
                f"{name} gives NaN or infinite losses before any training: {broken}. Check its initial weights."
            )
        decisions = list(tape.decisions.values())
        if decisions and not any(decision.margin.requires_grad for decision in decisions):
            raise UsageError(f"No gate of {name} is trained: freeze fewer stages (model.options.frozen_stages).")
        total = torch.stack(list(output.losses.values())).sum()
        (total + 0 * output.flops).backward()
        self.unused = any(p.grad is None for p in twin.parameters() if p.requires_grad)
        return bool(decisions)


@dataclass
class _Gate:
    """What one gate decided: rates of images, and, while all have equally many positions, what is needed of these."""

    block: str
    kind: str
    rates: list[float] = field(default_factory=list)
    counts: npt.NDArray[np.int64] | None = None
    seen: set[bytes] = field(default_factory=set)
    positions: int = 0
    alike: bool = True

    def add(self, mask: npt.NDArray[np.bool_]) -> None:
        """Note the masks (n, positions) of some images."""
        self.rates += mask.mean(1).tolist()
        self.alike = self.alike and self.positions in (0, mask.shape[1])
        self.positions = max(self.positions, mask.shape[1])
        if self.alike:
            sums = mask.sum(0, dtype=np.int64)
            self.counts = sums if self.counts is None else self.counts + sums
        self.seen |= {row.tobytes() for row in np.packbits(mask, axis=1)}

    def merge(self, other: _Gate) -> None:
        """Take over what another process found."""
        self.rates += other.rates
        self.alike = (
            self.alike and other.alike and 0 in (self.positions, other.positions, self.positions - other.positions)
        )
        self.positions = max(self.positions, other.positions)
        if self.alike and other.counts is not None:
            self.counts = other.counts if self.counts is None else self.counts + other.counts
        self.seen |= other.seen

    def statistics(self) -> MaskStatistics:
        """Return what an evaluation tells."""
        rates = np.asarray(self.rates)
        share = None if not self.alike or self.counts is None else self.counts / len(rates)
        return MaskStatistics(
            kind=self.kind,
            positions=self.positions,
            rate=float(rates.mean()),
            rate_std=float(rates.std()),
            variance=None if share is None else float((share * (1 - share)).mean()),
            varying=None if share is None else float(((share > 0) & (share < 1)).mean()),
            distinct=len(self.seen),
        )


class _Image(NamedTuple):
    """What was found in one image: detections, their masks as COCO encodes them, or an empty list.

    Where the network gives a mask of the whole input for each query, thousands of images would fill the memory.
    """

    boxes: FloatArray
    scores: FloatArray
    labels: LabelArray
    masks: list[dict[str, Any]]
    size: tuple[int, int]

    def detections(self) -> Detections:
        """Return them with masks again."""
        masks = np.zeros((len(self.masks), *self.size), np.bool_)
        for mask, encoded in zip(masks, self.masks, strict=True):
            mask[:] = decode_mask(encoded)
        return Detections(self.boxes, self.scores, self.labels, masks)


class _Found:
    """What one process found on its share of the images: plain, so that processes can send it."""

    def __init__(self, task: DetectionTask) -> None:
        self._task = task
        self.outputs: dict[int, tuple[dict[str, npt.NDArray[Any]], Placement]] = {}
        self.decoded: dict[int, _Image] = {}
        self.flops = 0.0
        self.ratio = 0.0
        self.blocks: dict[str, float] = {}
        self.gates: dict[str, _Gate] = {}
        self.broken = ""

    def add(self, batch: SceneBatch, output: Any, tape: Tape, full: float) -> None:
        """Note what the network gave for images of one size."""
        count = len(batch.indices)
        plain = {
            name: (value.float() if value.is_floating_point() else value).cpu().numpy()
            for name, value in output.outputs().items()
        }
        margins = {
            f"gate {name}": margin.double().nan_to_num(nan=math.nan, posinf=0, neginf=0).cpu().numpy()
            for name, margin in tape.margins.items()
        }
        self.broken = self.broken or listed({**plain, **margins})
        for row, (index, placement) in enumerate(zip(batch.indices, batch.placements, strict=True)):
            places = int(plain["count"][row]) if "count" in plain else None
            own = {
                name: value[row : row + 1] if name == "count" else value[row : row + 1, :places]
                for name, value in plain.items()
            }
            if self._task.decoding == "queries" and not self.broken:
                found = self._task.decode(own, placement)
                encoded = [] if found.masks is None else [encode_mask(mask) for mask in found.masks]
                size = (placement.height, placement.width)
                self.decoded[index] = _Image(found.boxes, found.scores, found.labels, encoded, size)
            else:
                self.outputs[index] = (own, placement)
        self.flops += float(output.flops) * count
        self.ratio += float(output.flops) / full * count
        for record, ratio in zip(output.masks, output.flops_ratio.double().tolist(), strict=True):
            self.blocks[record.name] = self.blocks.get(record.name, 0.0) + ratio * count
        for name, mask in tape.masks.items():
            decision = tape.decisions[name]
            gate = self.gates.setdefault(name, _Gate(decision.block, decision.kind))
            gate.add(mask.flatten(1).bool().cpu().numpy())


def _evaluation(parts: list[_Found], task: DetectionTask, images: Scenes) -> Evaluation:
    outputs = {index: value for part in parts for index, value in part.outputs.items()}
    done = {index: value for part in parts for index, value in part.decoded.items()}
    order = sorted({**outputs, **done})

    def decoded() -> Iterator[Detections]:
        for index in order:
            yield done[index].detections() if index in done else task.decode(*outputs[index])

    metrics: CocoMetrics = coco_metrics(decoded(), images.source, order)
    gates: dict[str, _Gate] = {}
    for part in parts:
        for name, gate in part.gates.items():
            gates.setdefault(name, _Gate(gate.block, gate.kind)).merge(gate)
    statistics = {name: gate.statistics() for name, gate in gates.items()}
    blocks = []
    for name in next((part.blocks for part in parts if part.blocks), {}):
        own = tuple(statistics[key] for key, gate in gates.items() if gate.block == name)
        ratio = sum(part.blocks.get(name, 0.0) for part in parts) / len(order)
        blocks.append(BlockEvaluation(name, ratio, math.prod(each.rate for each in own), own))
    return Evaluation(
        images=len(order),
        accuracy=None,
        cross_entropy=None,
        flops=sum(part.flops for part in parts) / len(order),
        flops_ratio=sum(part.ratio for part in parts) / len(order),
        blocks=tuple(blocks),
        detection=metrics,
    )
