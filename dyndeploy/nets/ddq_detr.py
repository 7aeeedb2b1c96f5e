"""DDQ-DETR on LAUD backbones.

Reference: "Dense Distinct Query for End-to-End Object Detection" (Zhang et al., CVPR 2023) with four levels, as
mmdetection 3.3 builds it. Queries are distinct: after each layer of the decoder those that suppress none of the
others are told apart, and which these are is read from the first row of the mask of the self-attention, as there: where
query 0 is among them, all queries count as distinct.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from dyndeploy.blocks.boxes import EMPTY, keep_boxes, torchvision
from dyndeploy.blocks.deformable import DeformableAttention, Size, sine_code, sine_code_of_map
from dyndeploy.nets.box_geometry import corners, inverse_sigmoid
from dyndeploy.nets.ddq_losses import (
    DENSE_RATIO,
    Objects,
    attention_blocks,
    denoising_losses,
    dense_losses,
    noisy_queries,
    objects_of,
    one_to_one_losses,
)
from dyndeploy.nets.detection_losses import Target
from dyndeploy.nets.detector import Detector, clipped, register_detectors, smallest_convolution_bias
from dyndeploy.nets.laud import check_positive_int
from dyndeploy.nets.query_detectors import GROUPS, MaskedAttention, QueryDetectorConfig, of_all_heads

LEVELS = 4
"""Maps that the transformer reads: the last three of the backbone, and one that follows them."""

DISTINCT_IOU = 0.8
"""Of two queries whose boxes have a greater IoU, the one with the lower score is not distinct."""

MAP_TEMPERATURE = 20.0
BOX_TEMPERATURE = 10000.0

PROPOSAL_SIDE = 0.05
"""Side of the boxes that the cells of the finest level propose, in parts of the image; doubled with every level."""

MARGIN = 0.01
"""Cells propose boxes whose centre and sides are farther than this from 0 and from 1."""

_OUTSIDE = 1e4
"""Logit of boxes that cells do not propose; its sigmoid is 1."""
_NO_SCORE = -1.0


@dataclass(frozen=True)
class DdqDetrConfig(QueryDetectorConfig):
    """Every option of a DDQ-DETR.

    Attributes:
        points: That a head of the deformable attention reads from each level.
    """

    queries: int = 900
    detections: int = 300
    points: int = 4

    def __post_init__(self) -> None:
        """See :class:`~dyndeploy.nets.DetectorConfig`."""
        super().__post_init__()
        check_positive_int("points", self.points)


class NormedConvolution(nn.Module):
    """A convolution without bias, and a group norm.

    Args:
        in_channels: Of the map.
        channels: Of the result.
        side: Of the kernel, in cells.
        stride: Of the convolution.
    """

    def __init__(self, in_channels: int, channels: int, side: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, side, stride, side // 2, bias=False)
        self.gn = nn.GroupNorm(GROUPS, channels)
        nn.init.xavier_uniform_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map."""
        normed: Tensor = self.gn(self.conv(x))
        return normed


class ChannelMapper(nn.Module):
    """Maps of the backbone with equal numbers of channels, and one more level of the last map.

    Args:
        in_channels: Of the backbone's maps, the finest first.
        channels: Of the results.
    """

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(NormedConvolution(count, channels, 1, 1) for count in in_channels)
        self.extra_convs = nn.ModuleList([NormedConvolution(in_channels[-1], channels, 3, 2)])

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the levels for maps of the backbone, the finest first."""
        levels = [conv(features) for conv, features in zip(self.convs, maps, strict=True)]
        return [*levels, *(conv(maps[-1]) for conv in self.extra_convs)]


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between them.

    Args:
        width: Of input and output.
        hidden: Width between them.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the result (..., width)."""
        result: Tensor = self.fc2(self.fc1(x).relu())
        return result


class EncoderLayer(nn.Module):
    """Deformable self-attention of the cells, and a feed-forward network.

    Args:
        config: Options of the detector.
    """

    def __init__(self, config: DdqDetrConfig) -> None:
        super().__init__()
        width = config.pyramid_channels
        self.self_attn = DeformableAttention(width, config.heads, LEVELS, config.points)
        self.ffn = FeedForward(width, config.feedforward)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

    def forward(self, memory: Tensor, code: Tensor, references: Tensor, sizes: Sequence[Size], blank: Tensor) -> Tensor:
        """Return the cells (N, S, width); see :class:`DeformableAttention` for the arguments."""
        memory = self.norms[0](memory + self.self_attn(memory + code, references, memory, sizes, blank))
        result: Tensor = self.norms[1](memory + self.ffn(memory))
        return result


class DecoderLayer(nn.Module):
    """Self-attention of the queries, deformable attention to the cells, and a feed-forward network.

    Args:
        config: Options of the detector.
    """

    def __init__(self, config: DdqDetrConfig) -> None:
        super().__init__()
        width = config.pyramid_channels
        self.self_attn = MaskedAttention(width, config.heads, batch_first=True)
        self.cross_attn = DeformableAttention(width, config.heads, LEVELS, config.points)
        self.ffn = FeedForward(width, config.feedforward)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(
        self, query: Tensor, code: Tensor, closed: Tensor | None, references: Tensor, pyramid: EncodedPyramid
    ) -> Tensor:
        """Return the queries.

        Args:
            query: (N, Q, width).
            code: Of the queries' boxes, (N, Q, width).
            closed: Which query (row) may not attend to which (column), (N, Q, Q); None where all may.
            references: Boxes per query and level, (N, Q, levels, 4), in parts of the maps.
            pyramid: What is attended to.
        """
        if closed is not None:
            closed = of_all_heads(closed, self.self_attn.num_heads)
        keys = query + code
        attended, _ = self.self_attn(keys, keys, query, attn_mask=closed, need_weights=False)
        query = self.norms[0](query + attended)
        read = self.cross_attn(query + code, references, pyramid.memory, pyramid.sizes, pyramid.blank)
        query = self.norms[1](query + read)
        result: Tensor = self.norms[2](query + self.ffn(query))
        return result


class EncodedPyramid(NamedTuple):
    """The cells of all levels, one level behind the other, row by row.

    Attributes:
        memory: (N, S, width).
        sizes: (height, width) of each level's map.
        blank: Cells outside the images, (N, S).
        ratios: Share of each map that belongs to the image, x before y: (N, levels, 2).
        proposals: Logits of the boxes that the cells propose, x, y, width, height in parts of the image: (N, S, 4).
        proposing: Cells that propose a box, (N, S).
    """

    memory: Tensor
    sizes: list[Size]
    blank: Tensor
    ratios: Tensor
    proposals: Tensor
    proposing: Tensor


class Selected(NamedTuple):
    """Cells that become queries.

    Attributes:
        content: (N, Q, width).
        logits: Of the classes, (N, Q, classes); 0 in places without a query.
        boxes: Logits of x, y, width, height, (N, Q, 4); 0 in places without a query.
    """

    content: Tensor
    logits: Tensor
    boxes: Tensor

    def prediction(self) -> Prediction:
        """Return what the cells stand for."""
        return Prediction(self.logits, self.boxes.sigmoid())


class Further(NamedTuple):
    """Queries of training, beside the distinct ones.

    Attributes:
        content: Of noisy queries, (N, noisy, width).
        boxes: Logits of theirs, (N, noisy, 4).
        dense: Queries of the dense branch.
        closed: Which query (row) may not attend to which (column), (T, T): noisy, distinct, dense ones.
    """

    content: Tensor
    boxes: Tensor
    dense: Selected
    closed: Tensor


class Decoded(NamedTuple):
    """What one layer of the decoder gives.

    Attributes:
        hidden: The queries behind the decoder's norm, (N, T, width): noisy, distinct and dense ones.
        reference: The boxes that the layer read, (N, T, 4): x, y, width, height in parts of the image.
        distinct: Which of the distinct queries still counted as such in this layer, (N, Q).
    """

    hidden: Tensor
    reference: Tensor
    distinct: Tensor


class Prediction(NamedTuple):
    """What the heads make of a layer's queries.

    Attributes:
        logits: (N, Q, classes).
        boxes: (N, Q, 4): x, y, width, height in parts of the image.
    """

    logits: Tensor
    boxes: Tensor


class Branches(nn.Module):
    """A classifier and a regression of boxes for each of several layers.

    Args:
        config: Options of the detector.
        count: How many layers.
    """

    def __init__(self, config: DdqDetrConfig, count: int) -> None:
        super().__init__()
        width = config.pyramid_channels
        self.cls = nn.ModuleList(nn.Linear(width, config.num_classes) for _ in range(count))
        self.reg = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))
            for _ in range(count)
        )
        for classifier, regression in zip(self.cls, self.reg, strict=True):
            nn.init.constant_(classifier.bias, smallest_convolution_bias())  # type: ignore[arg-type]
            nn.init.zeros_(regression[-1].weight)  # type: ignore[index]
            nn.init.zeros_(regression[-1].bias)  # type: ignore[index]


class DdqHead(nn.Module):
    """Encoder, choice of the queries, decoder, and their predictions.

    Args:
        config: Options of the detector.

    Attributes:
        branches: Of the decoder's layers, then of the encoder's choice, then of the dense choice of training.
        aux_branches: Of the dense queries, which only training has.
        label_embedding: Content of the queries that training adds noise to, by class.
    """

    def __init__(self, config: DdqDetrConfig) -> None:
        super().__init__()
        width = config.pyramid_channels
        self.config = config
        self.level_embed = nn.Parameter(torch.empty(LEVELS, width))
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.memory_trans_fc, self.memory_trans_norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.query_map = nn.Linear(width, width)
        self.ref_point_head = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, width))
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(width)
        self.branches = Branches(config, config.decoder_layers + 2)
        self.aux_branches = Branches(config, config.decoder_layers)
        self.label_embedding = nn.Embedding(config.num_classes, width)
        self._initialise()

    def _initialise(self) -> None:
        layers = (*self.encoder, *self.decoder)
        for layer in (*layers, self.memory_trans_fc, self.query_map):
            for parameter in layer.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
        for layer in layers:
            for module in layer.modules():
                if isinstance(module, DeformableAttention):
                    module.reset_parameters()
        nn.init.normal_(self.level_embed)

    def forward(
        self, pyramid: Sequence[Tensor], strides: Sequence[int], image_size: Tensor
    ) -> tuple[Prediction, Tensor]:
        """Return what the last layer's queries stand for, and which of them are distinct, (N, Q).

        See :meth:`encode` for the arguments.
        """
        encoded = self.encode(pyramid, strides, image_size)
        last = self.decode(self.select(encoded), encoded)[-1]
        return self.predict(last, len(self.decoder) - 1), last.distinct

    def encode(self, pyramid: Sequence[Tensor], strides: Sequence[int], image_size: Tensor) -> EncodedPyramid:
        """Run the encoder.

        Args:
            pyramid: Maps, the finest first: (N, width, h, w).
            strides: Pixels of the input per cell of each map.
            image_size: Height and width of each image before padding, in pixels: (N, 2).
        """
        features = self.config.pyramid_channels // 2
        sizes, codes, blanks, centres, ratios, boxes = [], [], [], [], [], []
        for index, (level, stride) in enumerate(zip(pyramid, strides, strict=True)):
            size = (level.shape[2], level.shape[3])
            cells = image_size.new_tensor(size)
            # As many as the image would have, were it alone.
            own = (image_size / stride).ceil().minimum(cells)
            rows, columns = own[:, :1, None], own[:, 1:, None]
            row, column = (torch.arange(count, dtype=own.dtype, device=own.device) for count in size)
            y, x = ((row + 0.5)[:, None] / rows).expand(-1, *size), ((column + 0.5) / columns).expand(-1, *size)
            centre = torch.stack([x, y], -1).flatten(1, 2)
            sizes.append(size)
            codes.append(sine_code_of_map(size, own, features, MAP_TEMPERATURE) + self.level_embed[index])
            blanks.append(((row[:, None] >= rows) | (column >= columns)).flatten(1))
            centres.append(centre)
            ratios.append((own / cells).flip(-1))
            boxes.append(torch.cat([centre, torch.full_like(centre, PROPOSAL_SIDE * 2**index)], -1))
        memory = torch.cat([level.flatten(2).transpose(1, 2) for level in pyramid], 1)
        code, blank, ratio = torch.cat(codes, 1), torch.cat(blanks, 1), torch.stack(ratios, 1)
        references = torch.cat(centres, 1)[:, :, None] * ratio[:, None]
        for layer in self.encoder:
            memory = layer(memory, code, references, sizes, blank)
        box = torch.cat(boxes, 1)
        proposing = ((box > MARGIN) & (box < 1 - MARGIN)).all(-1) & ~blank
        proposals = torch.where(proposing[..., None], torch.log(box / (1 - box)), _OUTSIDE)
        return EncodedPyramid(memory, sizes, blank, ratio, proposals, proposing)

    def propose(self, encoded: EncodedPyramid, branch: int) -> tuple[Tensor, Tensor]:
        """Return logits (N, S, classes) and logits of boxes (N, S, 4) of all cells, by branches of this number."""
        hidden = encoded.memory * encoded.proposing[..., None].to(encoded.memory.dtype)
        hidden = self.memory_trans_norm(self.memory_trans_fc(hidden))
        return self.branches.cls[branch](hidden), self.branches.reg[branch](hidden) + encoded.proposals

    def select(self, encoded: EncodedPyramid) -> Selected:
        """Return the distinct cells with the highest scores as queries.

        Cells that propose no box all have the same one, as in mmdetection; the best of them may become a query.
        """
        logits, boxes = self.propose(encoded, self.config.decoder_layers)
        kept = torch.stack(
            [
                distinct(*values, self.config.queries)
                for values in zip(
                    boxes.detach().sigmoid(), logits.detach().sigmoid().amax(-1), ~encoded.blank, strict=True
                )
            ]
        )
        there, index = (kept != EMPTY)[..., None], kept.clamp(min=0)[..., None]
        content = self.query_map(encoded.memory)

        def chosen(values: Tensor) -> Tensor:
            return torch.where(there, values.gather(1, index.expand(-1, -1, values.shape[-1])), 0.0)

        return Selected(chosen(content), chosen(logits), chosen(boxes))

    def decode(self, selected: Selected, encoded: EncodedPyramid, further: Further | None = None) -> list[Decoded]:
        """Run the decoder; one result per layer.

        Args:
            selected: The distinct queries at first.
            encoded: What is attended to.
            further: Other queries, in training.
        """
        query, reference, dense = selected.content, selected.boxes.detach().sigmoid(), 0
        noisy, count = 0, query.shape[1]
        closed: Tensor | None = None
        if further is not None:
            noisy, dense = further.content.shape[1], further.dense.content.shape[1]
            query = torch.cat([further.content, query, further.dense.content], 1)
            reference = torch.cat([further.boxes.sigmoid(), reference, further.dense.boxes.detach().sigmoid()], 1)
            closed = further.closed.expand(len(query), -1, -1)
        own = slice(noisy, noisy + count)
        open_columns = torch.ones_like(selected.boxes[..., 0], dtype=torch.bool)
        features = self.config.pyramid_channels // 2
        found = []
        for number, layer in enumerate(self.decoder):
            read = reference.detach()
            boxes = read[:, :, None] * encoded.ratios.repeat(1, 1, 2)[:, None]
            query = layer(query, self.ref_point_head(_box_code(read, features)), closed, boxes, encoded)
            found.append(Decoded(self.norm(query), reference, open_columns))
            if number + 1 == len(self.decoder):
                break
            reference = (self._offsets(number, query, dense) + inverse_sigmoid(read, 1e-3)).sigmoid()
            survivors = self._survivors(query[:, own].detach(), reference[:, own].detach(), open_columns, number)
            mask = ~(survivors[:, :, None] | survivors[:, None])
            open_columns = ~mask[:, 0]
            closed = mask if closed is None or not noisy + dense else _replaced(closed, mask, noisy)
        return found

    def _offsets(self, number: int, query: Tensor, dense: int) -> Tensor:
        """What a layer adds to the logits of its queries' boxes; the last ones are dense."""
        first: Tensor = self.branches.reg[number](query[:, : query.shape[1] - dense])
        return torch.cat([first, self.aux_branches.reg[number](query[:, -dense:])], 1) if dense else first

    def _survivors(self, query: Tensor, reference: Tensor, candidates: Tensor, number: int) -> Tensor:
        """Which of the candidates are distinct by their new boxes, (N, Q)."""
        scores = self.branches.cls[number](query).sigmoid().amax(-1)
        return torch.stack(
            [_marked(distinct(*values, query.shape[1])) for values in zip(reference, scores, candidates, strict=True)]
        )

    def predict(
        self, decoded: Decoded, number: int, part: slice = slice(None), branches: Branches | None = None
    ) -> Prediction:
        """Return what a part of a layer's queries stand for, by branches of their own or those of the layer."""
        branches = branches or self.branches
        hidden, reference = decoded.hidden[:, part], decoded.reference[:, part]
        boxes = (branches.reg[number](hidden) + inverse_sigmoid(reference, 1e-5)).sigmoid()
        return Prediction(branches.cls[number](hidden), boxes)

    def select_dense(self, encoded: EncodedPyramid) -> Selected:
        """Return the cells with the highest scores of the dense branch, of which many may be of one object."""
        logits, boxes = self.propose(encoded, len(self.decoder) + 1)
        count = min(int(DENSE_RATIO * self.config.queries), logits.shape[1])
        index = logits.detach().amax(-1).masked_fill(encoded.blank, -torch.inf).topk(count).indices[..., None]
        content, chosen, best = (
            values.gather(1, index.expand(-1, -1, values.shape[-1]))
            for values in (self.query_map(encoded.memory), logits, boxes)
        )
        return Selected(content, chosen, best)

    def losses(
        self, pyramid: Sequence[Tensor], strides: Sequence[int], image_size: Tensor, objects: Sequence[Objects]
    ) -> dict[str, Tensor]:
        """Return the losses of every layer, of the encoder's choices, and of the queries that only training has.

        See :meth:`encode` for the arguments; ``objects`` says what is in each image.
        """
        encoded = self.encode(pyramid, strides, image_size)
        selected, dense = self.select(encoded), self.select_dense(encoded)
        noisy = noisy_queries(objects, self.config.num_classes)
        first, count, last = noisy.labels.shape[1], selected.content.shape[1], dense.content.shape[1]
        there = (noisy.labels >= 0)[..., None]
        content = torch.where(there, self.label_embedding(noisy.labels.clamp(min=0)), 0.0)
        # A batch without objects uses the embedding all the same: processes wait for each other's gradients.
        content = content + 0.0 * self.label_embedding.weight.sum()
        further = Further(content, noisy.boxes, dense, attention_blocks(noisy, count, last))
        own = slice(first, first + count)
        found: dict[str, Tensor] = {}

        def add(where: str, losses: Mapping[str, Tensor]) -> None:
            found.update({f"{where}.{name}": value for name, value in losses.items()})

        every = torch.ones_like(selected.boxes[..., 0], dtype=torch.bool)
        add("encoder", one_to_one_losses(*selected.prediction(), every, objects))
        add("encoder", dense_losses(*dense.prediction(), objects))
        for number, decoded in enumerate(self.decode(selected, encoded, further)):
            where = f"layer{number}"
            add(where, one_to_one_losses(*self.predict(decoded, number, own), decoded.distinct, objects))
            add(f"{where}.noisy", denoising_losses(*self.predict(decoded, number, slice(first)), noisy, objects))
            aux = self.predict(decoded, number, slice(first + count, None), self.aux_branches)
            add(where, dense_losses(*aux, objects))
        return found


def distinct(boxes: Tensor, scores: Tensor, candidates: Tensor, limit: int) -> Tensor:
    """Return the indices (limit,) of the distinct boxes of one image, by falling score; -1 fills up.

    Args:
        boxes: x, y, width, height, (M, 4).
        scores: (M,).
        candidates: Which boxes take part, (M,).
        limit: How many are returned.
    """
    return keep_boxes(
        corners(boxes),
        torch.where(candidates, scores, _NO_SCORE),
        # mmdetection shifts them, which rounds them otherwise.
        torch.ones_like(candidates, dtype=torch.int64),
        iou_threshold=DISTINCT_IOU,
        score_threshold=_NO_SCORE,
        limit=limit,
    )


def _marked(indices: Tensor) -> Tensor:
    """Return which of as many places as there are indices (k,) are named by them; -1 names none."""
    count = len(indices)
    places = torch.where(indices == EMPTY, count, indices)
    marks = torch.zeros(count + 1, dtype=torch.int64, device=indices.device)
    return marks.scatter(0, places, torch.ones_like(places))[:count] > 0


def _replaced(closed: Tensor, mask: Tensor, first: int) -> Tensor:
    """Return a mask (N, T, T) with another one (N, Q, Q) in the place of its block from ``first`` on."""
    block = slice(first, first + mask.shape[1])
    replaced = closed.clone()
    replaced[:, block, block] = mask
    return replaced


def _box_code(boxes: Tensor, features: int) -> Tensor:
    """Return the code (..., 4 * features) of boxes (..., 4), x, y, width, height: of y, x, width and height."""
    order = torch.cat([boxes[..., 1:2], boxes[..., :1], boxes[..., 2:]], -1) * (2 * math.pi)
    return sine_code(order, features, BOX_TEMPERATURE).flatten(-2)


class DdqDetr(Detector):
    """A detector whose queries are the distinct ones of its encoder's cells.

    Args:
        name: Registered name.
        backbone: Registered name of the backbone.
        config: Options.

    Attributes:
        neck: The levels.
        head: Encoder, decoder and predictions.
    """

    config: DdqDetrConfig
    trains_norms: ClassVar[bool] = False
    task_options: ClassVar[Mapping[str, Any]] = MappingProxyType({"divisor": 1})

    def __init__(self, name: str, backbone: str, config: DdqDetrConfig) -> None:
        torchvision()
        super().__init__(
            name,
            backbone,
            config,
            first_stage=1,
            neck=lambda channels: ChannelMapper(channels, config.pyramid_channels),
            added=1,
        )
        self.head = DdqHead(config)
        self.train()

    def losses(self, pyramid: Sequence[Tensor], image_size: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """See :meth:`~dyndeploy.nets.detector.Detector.losses`; noise comes from the same generator."""
        return self.head.losses(pyramid, self.strides, image_size, objects_of(targets, image_size))

    def detected(self, pyramid: Sequence[Tensor], image_size: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`~dyndeploy.nets.detector.Detector.detected`."""
        (logits, boxes), distinct = self.head(pyramid, self.strides, image_size[None])
        classes = self.config.num_classes
        scores = torch.where(distinct[0, :, None], logits[0].sigmoid(), _NO_SCORE).flatten()
        values, index = scores.topk(min(self.config.detections, len(scores)))
        there, query = values > _NO_SCORE, index // classes
        height, width = image_size[0], image_size[1]
        pixels = corners(boxes[0].index_select(0, query)) * torch.stack([width, height, width, height])
        return (
            torch.where(there[:, None], clipped(pixels, image_size), 0.0),
            torch.where(there, values, 0.0),
            torch.where(there, index - query * classes, 0),
            there.sum(),
        )


register_detectors(
    "ddq_detr",
    "DDQ-DETR",
    DdqDetr,
    DdqDetrConfig,
    small={
        "pyramid_channels": 128,
        "queries": 50,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "feedforward": 512,
        "detections": 100,
    },
)
