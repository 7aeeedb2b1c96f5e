"""Faster R-CNN on LAUD backbones.

Reference: "Faster R-CNN" (Ren et al., NeurIPS 2015) on a feature pyramid, as mmdetection builds it: three anchors per
cell of P2 to P6, RoIAlign with half-pixel coordinates, the background as last class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dyndeploy.blocks.boxes import EMPTY, keep_boxes, pyramid_roi_align
from dyndeploy.nets.detector import (
    CANDIDATES,
    RATIOS,
    SMALL_HEADS,
    AnchorDetector,
    AnchorDetectorConfig,
    Level,
    base_anchors,
    best_scores,
    box_coder,
    clipped,
    decoded,
    final,
    read_cells,
    register_detectors,
)

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

    def __init__(self, config: AnchorDetectorConfig) -> None:
        super().__init__()
        from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

        self.box_head = TwoMLPHead(config.pyramid_channels * BOX_SIZE**2, HIDDEN)
        self.box_predictor = FastRCNNPredictor(HIDDEN, config.num_classes + 1)
        # No deltas for the background.
        self.box_predictor.bbox_pred = nn.Linear(HIDDEN, 4 * config.num_classes)


class FasterRCNN(AnchorDetector):
    """A detector of two stages on P2 to P6: proposals, and what they hold.

    Args:
        name: Registered name.
        backbone: Registered name of the backbone.
        config: Options.

    Attributes:
        rpn: torchvision's head of the region proposal network.
        roi_heads: What looks at the proposals.
    """

    def __init__(self, name: str, backbone: str, config: AnchorDetectorConfig) -> None:
        super().__init__(name, backbone, config, first_stage=0, convolutions=False)
        from torchvision.models.detection.rpn import RPNHead

        self.rpn = RPNHead(config.pyramid_channels, len(RATIOS))
        self.roi_heads = RegionHeads(config)
        for level, stride in enumerate(self.strides):
            self.register_buffer(f"anchors{level}", base_anchors(stride, (SCALE,)), persistent=False)
        self.anchor_coder, self.box_coder = box_coder((1.0, 1.0, 1.0, 1.0)), box_coder(DEVIATIONS)
        self.train()

    def level(self, index: int, width: int) -> Level:
        """Return the anchors of a level whose map is so wide."""
        return Level(getattr(self, f"anchors{index}"), self.strides[index], width)

    def propose(
        self, raw: Sequence[tuple[Tensor, Tensor]], image_size: Tensor, candidates: int = CANDIDATES
    ) -> Proposals:
        """Return the proposals of one image.

        Args:
            raw: Maps of the head for each level: logits (1, anchors, h, w) and deltas (1, anchors * 4, h, w).
            image_size: (height, width) of the image before padding.
            candidates: Boxes of a level that go on to non-maximum suppression.
        """
        found = []
        for index, (logits, deltas) in enumerate(raw):
            scores, anchor, cell = best_scores(logits, candidates)
            anchors = self.level(index, logits.shape[3]).at(anchor, cell)
            boxes = decoded(self.anchor_coder, read_cells(deltas, 4 * anchor, cell), anchors, image_size)
            there = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
            found.append((boxes, torch.where(there, scores, _NO_SCORE), torch.full_like(anchor, index)))
        boxes, scores, levels = (torch.cat(values) for values in zip(*found, strict=True))
        kept = keep_boxes(
            boxes,
            scores,
            levels,
            iou_threshold=PROPOSAL_IOU,
            score_threshold=_NO_SCORE,
            limit=min(CANDIDATES, len(boxes)),
        )
        there = kept != EMPTY
        return Proposals(torch.where(there[:, None], boxes[kept.clamp(min=0)], 0.0), there)

    def read(self, pyramid: Sequence[Tensor], boxes: Tensor, size: int) -> Tensor:
        """Return what the pyramid of one image holds in boxes (M, 4): (M, C, size, size)."""
        maps, strides = pyramid[:-1], self.strides[:-1]
        return pyramid_roi_align(maps, boxes, strides, finest=FINEST * strides[0], size=size)

    def classify(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (M, classes + 1), the background last, and deltas (M, classes * 4) of regions (M, C, 7, 7)."""
        heads = self.roi_heads
        hidden = heads.box_head(regions)
        return heads.box_predictor.cls_score(hidden), heads.box_predictor.bbox_pred(hidden)

    def boxes(self, pyramid: Sequence[Tensor], image_size: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return boxes (K, 4), scores (K,), labels (K,) and count of one image (height, width)."""
        proposals = self.propose([(logits, deltas) for logits, deltas in self.raw(pyramid)], image_size)
        logits, deltas = self.classify(self.read(pyramid, proposals.boxes, BOX_SIZE))
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


register_detectors("faster_rcnn", "Faster R-CNN", FasterRCNN, AnchorDetectorConfig, small=SMALL_HEADS)
