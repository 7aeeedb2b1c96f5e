"""Faster R-CNN on LAUD backbones.

Reference: "Faster R-CNN" (Ren et al., NeurIPS 2015) on a feature pyramid, as mmdetection builds it: three anchors per
cell of P2 to P6, RoIAlign with half-pixel coordinates, the background as last class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from dyndeploy.blocks.boxes import EMPTY, keep_boxes, pyramid_roi_align
from dyndeploy.nets.detection_losses import (
    PROPOSALS,
    REGION,
    REGIONS,
    Overlap,
    Regions,
    Target,
    dense,
    proposal_losses,
    region_losses,
    sampled_regions,
)
from dyndeploy.nets.detector import (
    CANDIDATES,
    RATIOS,
    SMALL_HEADS,
    AnchorDetector,
    AnchorDetectorConfig,
    best_scores,
    box_coder,
    clipped,
    decoded,
    final,
    of_each,
    placed,
    read_cells,
    register_detectors,
    wide,
)
from dyndeploy.nets.laud import check_positive_int

SCALE = 8.0
"""Side of a square anchor, in strides."""

PROPOSAL_IOU = 0.7
"""Of two proposals of a level whose IoU is greater, the one with the lower score is left out."""

BOX_SIZE = 7
"""Side in cells of what the box head reads."""

FINEST = 14.0
"""Boxes of less than twice so many cells of the finest level, as side of a square, are read from it."""

HIDDEN = 1024
"""Width of the box head."""

DEVIATIONS = (0.1, 0.1, 0.2, 0.2)
"""Units of the box head's deltas of x, y, width and height."""

_NO_SCORE = -1.0
_TRAINING = 2
"""So many times as many candidates there are in training, as mmdetection has it."""


@dataclass(frozen=True)
class RegionConfig(AnchorDetectorConfig):
    """The options of a detector that looks at regions: those of every detector, and its own.

    Attributes:
        candidates: Boxes of a level that go on to non-maximum suppression, which leaves the proposals; twice as many in
            training.
        proposals: Most regions of an image that are looked at.
        hidden: Width of the box head.
    """

    candidates: int = CANDIDATES
    proposals: int = CANDIDATES
    hidden: int = HIDDEN

    def __post_init__(self) -> None:
        """Check every value; raises ``UsageError`` naming the option."""
        super().__post_init__()
        for name in ("candidates", "proposals", "hidden"):
            check_positive_int(name, getattr(self, name))


SMALL = {**SMALL_HEADS, "candidates": 200, "proposals": 100, "hidden": 256, "pyramid_channels": 48}
"""Of the small variants."""


class Proposals(NamedTuple):
    """What the region proposal network gives for one image, with a fixed number of places.

    Attributes:
        boxes: (M, 4) in pixels of the input, by falling score; 0 in empty places.
        there: Which places hold a proposal, (M,).
    """

    boxes: Tensor
    there: Tensor


class RegionHeads(nn.Module):
    """What looks at regions: box head and predictor, of a Mask R-CNN mask head and predictor as well (torchvision's).

    Args:
        config: Options of the detector.
    """

    def __init__(self, config: RegionConfig) -> None:
        super().__init__()
        from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

        self.box_head = TwoMLPHead(config.pyramid_channels * BOX_SIZE**2, config.hidden)
        self.box_predictor = FastRCNNPredictor(config.hidden, config.num_classes + 1)
        # No deltas for the background.
        self.box_predictor.bbox_pred = nn.Linear(config.hidden, 4 * config.num_classes)
        for layer, spread in ((self.box_predictor.cls_score, 0.01), (self.box_predictor.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=spread)
            nn.init.zeros_(layer.bias)


class FasterRCNN(AnchorDetector):
    """A detector of two stages on P2 to P6: proposals, and what they hold.

    Args:
        name: Registered name.
        backbone: Registered name of the backbone.
        config: Options.

    Attributes:
        rpn: torchvision's head of the region proposal network.
        roi_heads: What looks at the proposals.
        proposal_samples: Anchors of an image that training takes.
        region_samples: Regions of an image that training takes.
    """

    scales = (SCALE,)
    region_rule: ClassVar[Overlap] = REGION
    proposal_samples = PROPOSALS.boxes
    region_samples = REGIONS.boxes

    config: RegionConfig

    def __init__(self, name: str, backbone: str, config: RegionConfig) -> None:
        super().__init__(name, backbone, config, first_stage=0, convolutions=False)
        from torchvision.models.detection.rpn import RPNHead

        self.rpn = RPNHead(config.pyramid_channels, len(RATIOS))
        self.roi_heads = RegionHeads(config)
        self.anchor_coder, self.box_coder = box_coder((1.0, 1.0, 1.0, 1.0)), box_coder(DEVIATIONS)
        self.train()

    def propose(
        self, raw: Sequence[tuple[Tensor, Tensor]], image_size: Tensor, candidates: int | None = None
    ) -> Proposals:
        """Return the proposals of one image.

        Args:
            raw: Maps of the head for each level: logits (1, anchors, h, w) and deltas (1, anchors * 4, h, w).
            image_size: (height, width) of the image before padding.
            candidates: Boxes of a level that go on to non-maximum suppression; None for what the options say.
        """
        logits, deltas = zip(*raw, strict=True)
        scores, anchor, cell, counts = best_scores(logits, candidates or self.config.candidates)
        own = [self.level(index, level.shape[3]) for index, level in enumerate(logits)]
        anchors = placed(own, counts, anchor, cell)
        boxes = decoded(self.anchor_coder, read_cells(deltas, counts, 4 * anchor, cell), anchors, image_size)
        scores = torch.where((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]), scores, _NO_SCORE)
        levels = of_each(range(len(logits)), counts, cell)
        kept = keep_boxes(
            boxes,
            scores,
            levels,
            iou_threshold=PROPOSAL_IOU,
            score_threshold=_NO_SCORE,
            limit=min(self.config.proposals, len(boxes)),
        )
        there = kept != EMPTY
        return Proposals(torch.where(there[:, None], boxes.index_select(0, kept.clamp(min=0)), 0.0), there)

    def read(self, pyramid: Sequence[Tensor], boxes: Tensor, size: int) -> Tensor:
        """Return what the pyramid of one image holds in boxes (M, 4): (M, C, size, size), in the pyramid's dtype."""
        maps, strides = [level.to(boxes.dtype) for level in pyramid[:-1]], self.strides[:-1]
        read = pyramid_roi_align(maps, boxes, strides, finest=FINEST * strides[0], size=size)
        return read.to(pyramid[0].dtype)

    def classify(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (M, classes + 1), the background last, and deltas (M, classes * 4) of regions (M, C, 7, 7)."""
        heads = self.roi_heads
        hidden = heads.box_head(regions)
        return heads.box_predictor.cls_score(hidden), heads.box_predictor.bbox_pred(hidden)

    def boxes(self, pyramid: Sequence[Tensor], image_size: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return boxes (K, 4), scores (K,), labels (K,) and count of one image (height, width)."""
        proposals = self.propose(wide(self.raw(pyramid)), image_size)
        logits, deltas = wide([self.classify(self.read(pyramid, proposals.boxes, BOX_SIZE))])[0]
        classes = self.config.num_classes
        boxes = self.box_coder.decode_single(deltas, proposals.boxes).reshape(-1, 4)
        scores = torch.where(proposals.there[:, None], logits.softmax(1)[:, :classes], _NO_SCORE).flatten()
        labels = torch.arange(classes, device=scores.device).repeat(len(proposals.boxes))
        return final(clipped(boxes, image_size), scores, labels, self.config)

    def raw(self, pyramid: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return the maps of the proposal head per level: logits (N, anchors, h, w), deltas (N, anchors * 4, h, w)."""
        logits, deltas = self.rpn(list(pyramid))
        return list(zip(logits, deltas, strict=True))

    def detected(self, pyramid: Sequence[Tensor], image_size: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`~dyndeploy.nets.detector.Detector.detected`."""
        return self.boxes(pyramid, image_size)

    def losses(self, pyramid: Sequence[Tensor], image_size: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """See :meth:`Detector.losses`."""
        raw = wide(self.raw(pyramid))
        sizes = [(logits.shape[2], logits.shape[3]) for logits, _ in raw]
        anchors = torch.cat([self.level(index, width).all(height) for index, (height, width) in enumerate(sizes)])
        losses = proposal_losses(
            torch.cat([dense(logits, 1) for logits, _ in raw], 1),
            torch.cat([dense(deltas, 4) for _, deltas in raw], 1),
            anchors.to(raw[0][0]),
            self.inside(sizes, image_size, len(RATIOS)),
            targets,
            self.anchor_coder,
            PROPOSALS._replace(boxes=self.proposal_samples),
            self.whose_losses,
        )
        regions = self.regions(raw, image_size, targets)
        maps = [[level[index : index + 1] for level in pyramid] for index in range(len(targets))]
        read = [self.read(own, found.boxes, BOX_SIZE) for own, found in zip(maps, regions, strict=True)]
        logits, deltas = wide([self.classify(torch.cat(read))])[0]
        losses |= region_losses(logits, deltas, regions, targets, self.box_coder, self.whose_losses)
        return losses | self.further_losses(maps, regions, targets)

    @torch.no_grad()
    def regions(
        self, raw: Sequence[tuple[Tensor, Tensor]], image_size: Tensor, targets: Sequence[Target]
    ) -> list[Regions]:
        """Return the regions of each image that its heads are trained on; ``raw`` is what :meth:`raw` gives."""
        found, sampling = [], REGIONS._replace(boxes=self.region_samples)
        for index, target in enumerate(targets):
            own = [(logits[index : index + 1], deltas[index : index + 1]) for logits, deltas in raw]
            proposals = self.propose(own, image_size[index], _TRAINING * self.config.candidates)
            own_proposals = proposals.boxes[proposals.there]
            found.append(sampled_regions(own_proposals, target, self.region_rule, sampling, self.whose_losses))
        return found

    def further_losses(
        self, maps: Sequence[Sequence[Tensor]], regions: Sequence[Regions], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Return the losses of heads that a detector has beside these; ``maps`` is each image's pyramid."""
        return {}


register_detectors("faster_rcnn", "Faster R-CNN", FasterRCNN, RegionConfig, small=SMALL)
