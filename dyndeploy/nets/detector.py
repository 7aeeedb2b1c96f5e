"""What detectors share: dynamic backbones, feature pyramids, boxes, and the accounting of a pass.

Reference: mmdetection's detectors as LAUDNet's reference code runs them ("Latency-Aware Unified Dynamic Networks for
Efficient Image Recognition", Han et al., TPAMI 2024), on torchvision's modules. Where torchvision's constants differ
(anchors, strides, P6 and P7, RoIAlign, the order of classes), mmdetection's hold.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from dyndeploy.blocks.boxes import EMPTY, keep_boxes, torchvision
from dyndeploy.errors import UsageError
from dyndeploy.nets import laud_regnet, laud_resnet  # noqa: F401  # register the backbones
from dyndeploy.nets.detection_losses import MMDETECTION, Losses, Target
from dyndeploy.nets.detector_checkpoints import DetectorRules
from dyndeploy.nets.laud import LaudConfig, LaudNetwork, check_positive_int
from dyndeploy.nets.registry import Preprocessing, create_model, model_info, register_model
from dyndeploy.nets.results import Features, NetworkFacts
from dyndeploy.tasks.detection import Detections, DetectionTask
from dyndeploy.tasks.parts import BACKBONE, HEADS, NECK

CANDIDATES = 1000
"""Boxes of a level, and proposals of an image, that go on to non-maximum suppression."""

RATIOS = (0.5, 1.0, 2.0)
"""Height over width of anchors."""

SMALL_HEADS = MappingProxyType({"pyramid_channels": 64, "tower": 2})
"""Options of the small forms of detectors with anchors."""


@dataclass(frozen=True)
class DetectorConfig(LaudConfig):
    """The options of every detector: those of its backbone (:class:`~dyndeploy.nets.LaudConfig`), and its own.

    Attributes:
        num_classes: Classes of objects; there is none for the background.
        size: Longest and shortest side that images are resized to, keeping their ratio: (long, short) in pixels.
        pyramid_channels: Channels of the neck's maps, and of what reads them.
        detections: Most detections of an image.
        frozen_stages: The stem and so many stages are not trained, and their gates do not sample.
        width_mult: Multiplies all widths of the backbone, of families that can be widened.
    """

    num_classes: int = 80
    size: tuple[int, int] = (1333, 800)
    pyramid_channels: int = 256
    detections: int = 100
    frozen_stages: int = 1
    width_mult: float = 1.0

    def __post_init__(self) -> None:
        """Check every value that can be checked without the architecture; raises ``UsageError`` naming the option."""
        super().__post_init__()
        for name in ("pyramid_channels", "detections"):
            check_positive_int(name, getattr(self, name))
        size = self.size
        if not isinstance(size, (tuple, list)) or len(size) != 2:
            raise UsageError(f"size={size!r} is not valid: give the longest and the shortest side, (long, short).")
        for side in size:
            check_positive_int("size", side)
        self._set("size", tuple(size))
        if type(self.frozen_stages) is not int or self.frozen_stages not in range(5):
            raise UsageError(f"frozen_stages={self.frozen_stages!r} is not valid: give a whole number from 0 to 4.")


@dataclass(frozen=True)
class AnchorDetectorConfig(DetectorConfig):
    """Every option of a detector whose boxes begin as anchors.

    Attributes:
        tower: 3x3 convolutions of a dense head's tower, or of the mask head.
        score_threshold: Detections need a higher score.
        nms_threshold: Of two detections of a class whose IoU is greater, the one with the lower score is left out.
    """

    tower: int = 4
    score_threshold: float = 0.05
    nms_threshold: float = 0.5

    def __post_init__(self) -> None:
        """Check every value; raises ``UsageError`` naming the option."""
        super().__post_init__()
        check_positive_int("tower", self.tower)
        for name in ("score_threshold", "nms_threshold"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise UsageError(f"{name}={value!r} is not valid: give a number from 0 to 1.")


class DetectorOutput(NamedTuple):
    """Result of one pass in evaluation, with a fixed number K of places for detections.

    Attributes:
        boxes: (N, K, 4): x1, y1, x2, y2 in pixels of the network's input; 0 in places without a detection, as below.
        scores: (N, K), falling.
        labels: (N, K), int64, from 0.
        counts: (N,), int64: how many of the places hold detections.
        masks: As of a classifier: one record of masks per block of the backbone.
        flops: MACs per image of the backbone, 0-d.
        flops_ratio: Computed over dense MACs of each block of the backbone, (blocks,).
        densities: Of the backbone; see :class:`~dyndeploy.nets.Densities`.
        instance_masks: (N, K, 28, 28): probabilities in the frame of each box; None of a detector without masks.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    counts: Tensor
    masks: Any
    flops: Tensor
    flops_ratio: Tensor
    densities: Any
    instance_masks: Tensor | None = None

    def outputs(self) -> dict[str, Tensor]:
        """Return what a deployed network gives."""
        found = {"boxes": self.boxes, "scores": self.scores, "labels": self.labels, "count": self.counts}
        return found if self.instance_masks is None else {**found, "masks": self.instance_masks}


class DetectorLosses(NamedTuple):
    """Result of one pass in training.

    Attributes:
        losses: 0-d tensors by name, to be summed; see :mod:`dyndeploy.nets.detection_losses`.
        masks: As of :class:`DetectorOutput`, like the following ones.
        flops: See there.
        flops_ratio: See there.
        densities: See there.
    """

    losses: dict[str, Tensor]
    masks: Any
    flops: Tensor
    flops_ratio: Tensor
    densities: Any


class LastLevels(nn.Module):
    """P6 and P7 of RetinaNet: 3x3 convolutions of stride 2 of the last map of the backbone, nothing in between.

    Args:
        in_channels: Channels of that map.
        channels: Channels of the pyramid.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.p6 = nn.Conv2d(in_channels, channels, 3, 2, 1)
        self.p7 = nn.Conv2d(channels, channels, 3, 2, 1)
        for layer in (self.p6, self.p7):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, last: Tensor, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """Return both for the backbone's last map (N, C, h, w) and the pyramid's other levels."""
        p6 = self.p6(last)
        return [p6, self.p7(p6)]


class LastLevelsOfPyramid(LastLevels):
    """P6 and P7 of P5, with a ReLU between them: torchvision's.

    Args:
        channels: Channels of the pyramid.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, last: Tensor, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """See :meth:`LastLevels.forward`."""
        p6 = self.p6(pyramid[-1])
        return [p6, self.p7(p6.relu())]


class Neck(nn.Module):
    """A feature pyramid (torchvision's) and the levels that follow it.

    Args:
        in_channels: Channels of the backbone's maps, the finest first.
        channels: Channels of the pyramid.
        convolutions: Whether P6 and P7 are convolutions of the last map; else there is P6, every other pixel of P5.

    Raises:
        UsageError: torchvision is missing or does not fit this torch.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, *, convolutions: bool) -> None:
        super().__init__()
        self.fpn = torchvision().ops.FeaturePyramidNetwork(list(in_channels), channels)
        self.extra = LastLevels(in_channels[-1], channels) if convolutions else None

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the levels of the pyramid for maps of the backbone, the finest first."""
        levels = list(self.fpn(OrderedDict((str(index), features) for index, features in enumerate(maps))).values())
        if self.extra is not None:
            return [*levels, *self.extra(maps[-1], levels)]
        return [*levels, levels[-1][:, :, ::2, ::2]]


_PARTS = {"backbone": BACKBONE, "neck": NECK, "head": HEADS, "rpn": HEADS, "roi_heads": HEADS}
"""Of a detector's modules."""


_ANCHORS = "anchors"
"""Begins the names of the buffers with each level's anchors."""


class Detector(nn.Module):
    """A detector on a LAUD backbone, with static shapes from images to detections.

    Args:
        name: Registered name.
        backbone: Registered name of the backbone.
        config: Options.
        first_stage: Index of the first stage whose map the neck takes.
        neck: Makes the neck for the channels of the maps that it takes.
        added: Levels that the neck adds.

    Attributes:
        name: Registered name.
        config: The options it was built with.
        task: How images become inputs, and outputs detections.
        backbone: The dynamic network, without its classifier.
        neck: Makes the levels of a pyramid of the backbone's maps.
        strides: Pixels of the input per pixel of each level.
        whose_losses: Which package's losses it is trained with.
        task_options: Of :class:`~dyndeploy.tasks.detection.DetectionTask`, what differs from its defaults.
        trains_norms: Whether scales and shifts of the backbone's batch norms are trained.

    Raises:
        UsageError: A package is missing or does not fit this torch, or options that do not fit the backbone.
    """

    config: DetectorConfig
    instance_masks: ClassVar[bool] = False
    whose_losses: Losses = MMDETECTION
    scales: tuple[float, ...] = ()
    """Sides of square anchors, in strides; none of detectors without anchors."""
    task_options: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    trains_norms: ClassVar[bool] = True

    def __init__(
        self,
        name: str,
        backbone: str,
        config: DetectorConfig,
        *,
        first_stage: int,
        neck: Callable[[Sequence[int]], nn.Module],
        added: int,
    ) -> None:
        super().__init__()
        self.name, self.config = name, config
        network = create_model(backbone, **_backbone_options(config, backbone))
        assert isinstance(network, LaudNetwork)
        del network.fc, network.avgpool
        self.backbone = network
        self.task = _task(config, model_info(backbone).preprocessing, self.task_options)
        self._first = first_stage
        stages = [stage[-1].out_channels for stage in network.stages()]
        self.neck = neck(stages[first_stage:])
        finest = _stride(network, first_stage)
        self.strides = tuple(finest * 2**level for level in range(len(stages) - first_stage + added))
        self.train()

    def facts(self) -> NetworkFacts:
        """Return what a bundle says of the network."""
        modules = {name: part for name, part in _PARTS.items() if hasattr(self, name)}
        return self.backbone.facts()._replace(options=self.config.as_dict(), parts=modules)

    def checkpoint_rules(self) -> DetectorRules:
        """Return what its files of weights may lack, and how those of mmdetection and torchvision are made to fit."""
        return DetectorRules(self)

    def full_flops(self, input_size: tuple[int, int]) -> int:
        """Return what :attr:`DetectorOutput.flops` are divided by for inputs of (height, width): dense MACs."""
        network, (height, width) = self.backbone, input_size
        total = network.stem_macs(height, width) + network.pool_macs(height, width)
        for block, rows, columns in network.block_inputs(height, width):
            total += block.dense_macs(rows, columns) + block.masker_macs(rows, columns)
        return total

    def train(self, mode: bool = True) -> Detector:
        """Switch to training, where batch norms keep their statistics and frozen stages decide as in evaluation."""
        super().train(mode)
        stages = list(self.backbone.stages())
        for module in self.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
                module.requires_grad_(self.trains_norms)
        if self.config.frozen_stages:
            inside = {id(part) for stage in stages for block in stage for part in block.modules()}
            stem = [part for part in self.backbone.modules() if id(part) not in inside and not any(part.children())]
            frozen = [*stem, *(block for stage in stages[: self.config.frozen_stages] for block in stage)]
            for part in frozen:
                part.eval()
                part.requires_grad_(False)
        return self

    def features(self, images: Tensor) -> tuple[list[Tensor], Features]:
        """Return the pyramid of images (N, 3, H, W), the finest level first, and the account of the backbone."""
        found = self.backbone.features(images)
        return self.neck(found.maps[self._first :]), found

    def forward(self, images: Tensor, image_size: Tensor, targets: Sequence[Target] | None = None) -> Any:
        """Detect; or, where it is said what there is to be found, compute the losses.

        Args:
            images: Normalised, padded at the right and at the bottom with 0: (N, 3, H, W).
            image_size: Height and width of each image before padding, in pixels: (N, 2), float32.
            targets: What is in each image, for training.

        Returns:
            A :class:`DetectorOutput`, or what takes its place in a kind of detectors; for training
            :class:`DetectorLosses`.
        """
        pyramid, found = self.features(images)
        account = self.account(found)
        if targets is not None:
            return DetectorLosses(self.losses(pyramid, image_size, targets), *account)
        return self.output(pyramid, image_size, account)

    def output(self, pyramid: Sequence[Tensor], image_size: Tensor, account: tuple[Any, Tensor, Tensor, Any]) -> Any:
        """Return the result of a pass; see :meth:`features`, :meth:`forward` and :meth:`account` for the arguments."""
        each = [
            self.detected([level[index : index + 1] for level in pyramid], image_size[index])
            for index in range(len(image_size))
        ]
        boxes, scores, labels, counts, *masks = (torch.stack(values) for values in zip(*each, strict=True))
        return DetectorOutput(boxes, scores, labels, counts, *account, masks[0] if masks else None)

    def account(self, found: Features) -> tuple[Any, Tensor, Tensor, Any]:
        """Return masks, MACs, ratios and densities of a pass, as :class:`DetectorOutput` has them."""
        records = tuple(record._replace(name=f"{BACKBONE}.{record.name}") for record in found.masks)
        # Of a captured graph there is no account.
        return records, found.flops if records else found.macs, found.flops_ratio, found.densities

    def detected(self, pyramid: Sequence[Tensor], image_size: Tensor) -> tuple[Tensor, ...]:
        """Return boxes, scores, labels, count, and masks where there are some, of one image (height, width).

        All of them are float32 at least: half precision counts pixels up to 2048 only.
        """
        raise NotImplementedError

    def losses(self, pyramid: Sequence[Tensor], image_size: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return the losses of a batch, to be summed.

        Boxes are drawn at random from torch's global generator, where they are drawn.

        Args:
            pyramid: See :meth:`features`.
            image_size: See :meth:`forward`.
            targets: What is in each image.
        """
        raise NotImplementedError

    def inside(self, sizes: Sequence[tuple[int, int]], image_size: Tensor, anchors: int) -> list[Tensor]:
        """Return which anchors of all levels lie where each image would have maps, were it alone: (anchors,) each.

        Args:
            sizes: (h, w) of the levels' maps.
            image_size: See :meth:`forward`.
            anchors: Per cell.
        """
        found = []
        for height, width in image_size.tolist():
            padded = self.task.padded(int(height), int(width))
            parts = []
            for (rows, columns), stride in zip(sizes, self.strides, strict=True):
                cells = torch.zeros(rows, columns, anchors, dtype=torch.bool, device=image_size.device)
                cells[: -(-padded[0] // stride), : -(-padded[1] // stride)] = True
                parts.append(cells.flatten())
            found.append(torch.cat(parts))
        return found

    @torch.no_grad()
    def detect(self, images: Sequence[Any], size: tuple[int, int] | None = None) -> list[Detections]:
        """Detect objects in images, one by one, in evaluation.

        Candidates with equal scores come in mmdetection's order (:func:`equals_as_sorted`).

        Args:
            images: RGB arrays (H, W, 3), uint8, of any size.
            size: Longest and shortest side that images are resized to; None for the network's.

        Returns:
            One result per image, in that image's own pixels.

        Raises:
            UsageError: Something that is no such array, or a size below 1.
        """
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        parameter = next(self.parameters())
        try:
            found = []
            for image in images:
                feeds, placement = self.task.prepare(image, size=size)
                images_in, image_size = (torch.from_numpy(value).to(parameter.device) for value in feeds.values())
                with equals_as_sorted():
                    result = self(images_in.to(parameter.dtype), image_size)
                outputs = {name: value.cpu().numpy() for name, value in result.outputs().items()}
                found.append(self.task.decode(outputs, placement))
            return found
        finally:
            for module, training in modes:
                module.training = training


class AnchorDetector(Detector):
    """A detector whose boxes begin as anchors on the levels of a pyramid.

    Args:
        name: Registered name.
        backbone: Registered name of the backbone.
        config: Options.
        first_stage: Index of the first stage whose map the pyramid takes.
        convolutions: Whether P6 and P7 are convolutions of the last map.

    Raises:
        UsageError: torchvision is missing or does not fit this torch, or options that do not fit the backbone.
    """

    config: AnchorDetectorConfig
    scales: tuple[float, ...] = ()
    """Sides of square anchors, in strides."""

    def __init__(
        self, name: str, backbone: str, config: AnchorDetectorConfig, *, first_stage: int, convolutions: bool
    ) -> None:
        super().__init__(
            name,
            backbone,
            config,
            first_stage=first_stage,
            neck=lambda channels: Neck(channels, config.pyramid_channels, convolutions=convolutions),
            added=2 if convolutions else 1,
        )
        for level, stride in enumerate(self.strides):
            self.register_buffer(f"{_ANCHORS}{level}", base_anchors(stride, self.scales), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AnchorDetector:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, anchors in self.named_buffers(recurse=False):
            # Half precision cannot hold them.
            if anchors.dtype in (torch.float16, torch.bfloat16):
                exact = base_anchors(self.strides[int(name.removeprefix(_ANCHORS))], self.scales)
                self.register_buffer(name, exact.to(anchors.device), persistent=False)
        return self

    def level(self, index: int, width: int) -> Level:
        """Return the anchors of a level whose map is so wide."""
        return Level(getattr(self, f"{_ANCHORS}{index}"), self.strides[index], width)


class Level(NamedTuple):
    """Anchors of one level of a pyramid.

    Attributes:
        base: Anchors of the cell at the origin (A, 4).
        stride: Of the level, in pixels.
        width: Of its map, in cells.
    """

    base: Tensor
    stride: int
    width: int

    def at(self, anchor: Tensor, cell: Tensor) -> Tensor:
        """Return the boxes (k, 4) of anchors by their number and their cell, counted row by row: (k,) each."""
        x, y = cell % self.width * self.stride, cell // self.width * self.stride
        return self.base[anchor] + torch.stack([x, y, x, y], 1).to(self.base)

    def all(self, height: int) -> Tensor:
        """Return the anchors of a map so high, (height * width * A, 4): the anchor's number runs fastest."""
        count, cells = len(self.base), torch.arange(height * self.width, device=self.base.device)
        numbers = torch.arange(count, device=self.base.device)
        return self.at(numbers.repeat(len(cells)), cells.repeat_interleave(count))


def base_anchors(stride: int, scales: Sequence[float]) -> Tensor:
    """Return the anchors (ratios * scales, 4) of the cell at the origin: the scale runs fastest; not rounded.

    An anchor has ``stride * scale`` as side of the square of its area, and :data:`RATIOS` as height over width; it is
    centred on the corner of its cell.
    """
    scale = torch.tensor(scales)
    height_ratio = torch.sqrt(torch.tensor(RATIOS))
    widths = (stride * (1 / height_ratio)[:, None] * scale[None]).flatten()
    heights = (stride * height_ratio[:, None] * scale[None]).flatten()
    return torch.stack([-0.5 * widths, -0.5 * heights, 0.5 * widths, 0.5 * heights], 1)


def decoded(coder: Any, deltas: Tensor, boxes: Tensor, image_size: Tensor) -> Tensor:
    """Return the boxes (k, 4) that deltas (k, 4) make of boxes (k, 4), clipped to an image of (height, width)."""
    return clipped(coder.decode_single(deltas, boxes).view(-1, 4), image_size)


def clipped(boxes: Tensor, image_size: Tensor) -> Tensor:
    """Return boxes (k, 4) within an image of (height, width)."""
    height, width = image_size[0], image_size[1]
    x, y = boxes[:, 0::2], boxes[:, 1::2]
    x, y = torch.minimum(x.clamp(min=0), width), torch.minimum(y.clamp(min=0), height)
    return torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1)


def wide(raw: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Return what heads give in float32 at least."""
    dtype = torch.promote_types(raw[0][0].dtype, torch.float32)
    return [(logits.to(dtype), deltas.to(dtype)) for logits, deltas in raw]


class Best(NamedTuple):
    """The best entries of a dense head's maps, one level after the other, (k,) each.

    Attributes:
        values: As the maps have them.
        channels: Of each entry.
        cells: Of each entry, counted row by row.
        counts: How many there are of each level.
    """

    values: Tensor
    channels: Tensor
    cells: Tensor
    counts: tuple[int, ...]


def of_each(values: Sequence[int], counts: Sequence[int], like: Tensor) -> Tensor:
    """Return a number for every entry (k,) of several levels, one for each level, as whole numbers."""
    entries = [value for value, count in zip(values, counts, strict=True) for _ in range(count)]
    return torch.tensor(entries, device=like.device)


def _cells(raw: Sequence[Tensor]) -> list[int]:
    return [level.shape[2] * level.shape[3] for level in raw]


_EQUALS_AS_SORTED: ContextVar[bool] = ContextVar("equals_as_sorted", default=False)


@contextmanager
def equals_as_sorted() -> Iterator[None]:
    """Let :func:`best_scores` order equal scores as mmdetection does, which no other runtime can repeat."""
    token = _EQUALS_AS_SORTED.set(True)
    try:
        yield
    finally:
        _EQUALS_AS_SORTED.reset(token)


def best_of_maps(raw: Sequence[Tensor], limit: int) -> Best:
    """Return the entries with the highest values of each map (1, channels, h, w), in mmdetection's order: by cells.

    Non-maximum suppression takes the first of equal scores, so the order decides.
    """
    found = [level.flatten().topk(min(limit, level.numel())) for level in raw]
    counts = tuple(len(values) for values, _ in found)
    values, index = (torch.cat(parts) for parts in zip(*found, strict=True))
    channels, cells = raw[0].shape[1], _cells(raw)
    own = of_each(cells, counts, index)
    channel = index // own
    cell = index - channel * own
    before = of_each([sum(cells[:level]) for level in range(len(cells))], counts, index)
    # Of each level as many as before, so that what holds for a level holds for the same places.
    order = torch.sort((before + cell) * channels + channel).indices
    return Best(values.index_select(0, order), channel.index_select(0, order), cell.index_select(0, order), counts)


def best_scores(raw: Sequence[Tensor], limit: int) -> Best:
    """Return the highest sigmoids of each map (1, channels, h, w); of equal ones those that come first, by cells.

    Sigmoids of large logits are equal, and mmdetection chooses by sigmoids. It leaves the order of equal ones to
    ``torch.sort``, which promises none: within :func:`equals_as_sorted` it decides here, too.
    """
    channels, found = raw[0].shape[1], []
    for level in raw:
        scores, count = level[0].permute(1, 2, 0).flatten().sigmoid(), min(limit, level.numel())
        if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export():
            # ONNX's TopK takes the first of equal values; torch.topk promises nothing, and a sort has no limit.
            values, index = scores.topk(count)
        else:
            # mmdetection sorts only where there are more than it takes.
            stable = not _EQUALS_AS_SORTED.get() or count == level.numel()
            values, index = (part[:count] for part in torch.sort(scores, descending=True, stable=stable))
        found.append((values, index))
    values, index = (torch.cat(parts) for parts in zip(*found, strict=True))
    cell = index // channels
    return Best(values, index - cell * channels, cell, tuple(len(values) for values, _ in found))


def read_cells(raw: Sequence[Tensor], counts: Sequence[int], channel: Tensor, cell: Tensor, width: int = 4) -> Tensor:
    """Read several successive channels of each map (1, channels, h, w) at some cells.

    Args:
        raw: The maps.
        counts: How many entries there are of each.
        channel: First channel of each entry, (k,).
        cell: Of each entry, (k,).
        width: How many channels to read.

    Returns:
        (k, width).
    """
    cells, sizes = of_each(_cells(raw), counts, cell), [level.numel() for level in raw]
    before = of_each([sum(sizes[:level]) for level in range(len(sizes))], counts, cell)
    steps = torch.arange(width, device=cell.device)
    place = (before + channel * cells + cell)[:, None] + cells[:, None] * steps
    return torch.cat([level.flatten() for level in raw]).index_select(0, place.flatten()).view(-1, width)


def placed(levels: Sequence[Level], counts: Sequence[int], anchor: Tensor, cell: Tensor) -> Tensor:
    """Return the boxes (k, 4) of anchors by their number and their cell, (k,) each, so many of each level."""
    base = torch.cat([level.base for level in levels])
    width = of_each([level.width for level in levels], counts, cell)
    stride = of_each([level.stride for level in levels], counts, cell)
    number = anchor + of_each([index * len(level.base) for index, level in enumerate(levels)], counts, cell)
    row = cell // width
    column = cell - row * width
    corner = torch.stack([column, row, column, row], 1) * stride[:, None]
    return base.index_select(0, number) + corner.to(base)


def final(
    boxes: Tensor, scores: Tensor, labels: Tensor, config: AnchorDetectorConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Suppress within classes and keep the best: boxes (K, 4), scores (K,), labels (K,) and their number (0-d)."""
    kept = keep_boxes(
        boxes,
        scores,
        labels,
        iou_threshold=config.nms_threshold,
        score_threshold=config.score_threshold,
        limit=config.detections,
    )
    there, index = kept != EMPTY, kept.clamp(min=0)
    return (
        torch.where(there[:, None], boxes.index_select(0, index), 0.0),
        torch.where(there, scores.index_select(0, index), 0.0),
        torch.where(there, labels.index_select(0, index), 0),
        there.sum(),
    )


def box_coder(deviations: Sequence[float]) -> Any:
    """Return torchvision's coder for deltas in units of these deviations of x, y, width and height."""
    from torchvision.models.detection import _utils

    return _utils.BoxCoder(tuple(1 / deviation for deviation in deviations))


def smallest_convolution_bias(prior: float = 0.01) -> float:
    """Return the bias with which a sigmoid begins at a probability."""
    return -math.log((1 - prior) / prior)


def _backbone_options(config: DetectorConfig, backbone: str) -> dict[str, Any]:
    names = [field.name for field in fields(LaudConfig) if field.name != "num_classes"]
    # Families of one width do not know the option.
    names += [_WIDTH] if config.width_mult != 1 or _WIDTH in model_info(backbone).defaults else []
    return {name: getattr(config, name) for name in names}


def _task(config: DetectorConfig, preprocessing: Preprocessing, options: Mapping[str, Any]) -> DetectionTask:
    red, green, blue = (255 * value for value in preprocessing.mean)
    deviations = tuple(255 * value for value in preprocessing.std)
    return DetectionTask(
        size=config.size,
        mean=(red, green, blue),
        std=(deviations[0], deviations[1], deviations[2]),
        detections=config.detections,
        **options,
    )


def _stride(network: LaudNetwork, stage: int) -> int:
    """Pixels of the input per pixel of the map that a stage ends with."""
    side = 2**12
    height, _ = network.first_size(side, side)
    for blocks in network.stages()[: stage + 1]:
        for block in blocks:
            height, _ = block.output_size(height, height)
    return side // height


_WIDTH = "width_mult"

Build = Callable[[str, str, Any], Detector]
"""Registered name, backbone and options -> detector."""

PUBLISHED = (
    "resnet50",
    "resnet101",
    "regnety_400mf",
    "regnety_800mf",
    "regnety_1_6gf",
    "regnety_3_2gf",
    "regnety_8gf",
    "regnety_16gf",
)
"""Backbones of the registered detectors, without ``laud_``."""


def register_detectors(
    kind: str,
    title: str,
    build: Build,
    config: type[DetectorConfig],
    *,
    small: Mapping[str, Any],
) -> None:
    """Register a kind of detector with every backbone, dynamic and static, and in its small forms.

    Args:
        kind: Part of the names, such as ``"retinanet"``.
        title: What it is called in descriptions.
        build: Builds one.
        config: Class of its options.
        small: Options of the small form, beside its size and its number of classes.
    """
    for variant in _variants(small):
        info = model_info(variant.backbone)
        for dynamic in (True, False):
            name = f"{'laud_' if dynamic else ''}{kind}_{variant.suffix}"
            further = small if variant.suffix == "small" else {}
            defaults = {**variant.defaults, **further, **({} if dynamic else {"mode": "static"})}

            def entry(options: DetectorConfig, name: str = name, backbone: str = variant.backbone) -> Detector:
                return build(name, backbone, options)

            # The network's own module, by which what was built is told from subclasses that were written elsewhere.
            entry.__name__, entry.__module__ = name, build.__module__
            what = "a LAUD" if dynamic else "a static"
            entry.__doc__ = f"{title} on {what} {variant.title} for {variant.images}."
            register_model(
                family="detector",
                config_type=config,
                input_size=variant.input_size,
                preprocessing=info.preprocessing.scaled(info.input_size, variant.input_size),
                defaults=defaults,
            )(entry)


class _Variant(NamedTuple):
    suffix: str
    backbone: str
    title: str
    images: str
    input_size: tuple[int, int]
    defaults: dict[str, Any]


def _variants(small: Mapping[str, Any]) -> Iterator[_Variant]:
    for name in PUBLISHED:
        title = name.replace("resnet", "ResNet-").replace("regnety_", "RegNetY-").replace("_", ".")
        title = title.replace("mf", "MF").replace("gf", "GF")
        yield _Variant(name, f"laud_{name}", title, "images up to 1333x800", (800, 1344), {})
    yield _Variant(
        "resnet50_512", "laud_resnet50", "ResNet-50", "images up to 512x512", (512, 512), {"size": (512, 512)}
    )
    options = {"size": (128, 128), "num_classes": 10, "width_mult": 0.67, **small}
    yield _Variant("small", "laud_resnet26_small", "ResNet-26", "images up to 128x128", (128, 128), options)
