"""RetinaNet on LAUD backbones.

Reference: "Focal Loss for Dense Object Detection" (Lin et al., ICCV 2017), as mmdetection builds it: P6 from C5, no
ReLU between P6 and P7, nine anchors per cell, one sigmoid per class.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dyndeploy.nets.detection_losses import Target, dense, focal_losses
from dyndeploy.nets.detector import (
    CANDIDATES,
    RATIOS,
    SMALL_HEADS,
    AnchorDetector,
    AnchorDetectorConfig,
    Level,
    base_anchors,
    best_of_maps,
    box_coder,
    decoded,
    final,
    placed,
    read_cells,
    register_detectors,
)

SCALES = tuple(4 * 2 ** (step / 3) for step in range(3))
"""Sides of square anchors, in strides."""


class RetinaNet(AnchorDetector):
    """A dense detector on P3 to P7.

    Args:
        name: Registered name.
        backbone: Registered name of the backbone.
        config: Options.

    Attributes:
        head: torchvision's: two towers, the logits of every anchor and class, and the deltas of every anchor.
    """

    def __init__(self, name: str, backbone: str, config: AnchorDetectorConfig) -> None:
        super().__init__(name, backbone, config, first_stage=1, convolutions=True)
        from torchvision.models.detection.retinanet import RetinaNetHead

        anchors = len(RATIOS) * len(SCALES)
        self.head = RetinaNetHead(config.pyramid_channels, anchors, config.num_classes)
        for tower in (self.head.classification_head, self.head.regression_head):
            tower.conv = tower.conv[: config.tower]
        for level, stride in enumerate(self.strides):
            self.register_buffer(f"anchors{level}", base_anchors(stride, SCALES), persistent=False)
        self._coder = box_coder((1.0, 1.0, 1.0, 1.0))
        self.train()

    def raw(self, pyramid: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return the head's maps for each level: logits (N, anchors * classes, h, w), deltas (N, anchors * 4, h, w).

        The class, or the coordinate, runs fastest among the channels.
        """
        classes, boxes = self.head.classification_head, self.head.regression_head
        return [(classes.cls_logits(classes.conv(x)), boxes.bbox_reg(boxes.conv(x))) for x in pyramid]

    def level(self, index: int, width: int) -> Level:
        """Return the anchors of a level whose map is so wide."""
        return Level(getattr(self, f"anchors{index}"), self.strides[index], width)

    def detected(self, pyramid: Sequence[Tensor], image_size: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`Detector.detected`."""
        logits, deltas = zip(*self.raw(pyramid), strict=True)
        best = best_of_maps(logits, CANDIDATES)
        anchor = best.channels // self.config.num_classes
        labels = best.channels - anchor * self.config.num_classes
        levels = [self.level(index, level.shape[3]) for index, level in enumerate(logits)]
        anchors = placed(levels, best.counts, anchor, best.cells)
        read = read_cells(deltas, best.counts, 4 * anchor, best.cells)
        boxes = decoded(self._coder, read, anchors, image_size)
        return final(boxes, best.values.sigmoid(), labels, self.config)

    def losses(self, pyramid: Sequence[Tensor], image_size: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """See :meth:`Detector.losses`."""
        raw = self.raw(pyramid)
        sizes = [(logits.shape[2], logits.shape[3]) for logits, _ in raw]
        logits = torch.cat([dense(logits, self.config.num_classes) for logits, _ in raw], 1)
        deltas = torch.cat([dense(deltas, 4) for _, deltas in raw], 1)
        anchors = torch.cat([self.level(index, width).all(height) for index, (height, width) in enumerate(sizes)])
        inside = self.inside(sizes, image_size, len(RATIOS) * len(SCALES))
        return focal_losses(logits, deltas, anchors.to(deltas), inside, targets, self._coder)


register_detectors("retinanet", "RetinaNet", RetinaNet, AnchorDetectorConfig, small=SMALL_HEADS)
