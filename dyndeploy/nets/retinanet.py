"""RetinaNet on LAUD backbones.

Reference: "Focal Loss for Dense Object Detection" (Lin et al., ICCV 2017), as mmdetection builds it: P6 from C5, no
ReLU between P6 and P7, nine anchors per cell, one sigmoid per class.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dyndeploy.nets.detector import (
    CANDIDATES,
    RATIOS,
    SMALL_HEADS,
    AnchorDetector,
    AnchorDetectorConfig,
    Level,
    base_anchors,
    best_of_map,
    box_coder,
    decoded,
    final,
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
        """See :meth:`~dyndeploy.nets.detector.Detector.detected`."""
        found = []
        for index, (logits, deltas) in enumerate(self.raw(pyramid)):
            value, channel, cell = best_of_map(logits, CANDIDATES)
            anchor, label = channel // self.config.num_classes, channel % self.config.num_classes
            anchors = self.level(index, logits.shape[3]).at(anchor, cell)
            boxes = decoded(self._coder, read_cells(deltas, 4 * anchor, cell), anchors, image_size)
            found.append((boxes, value.sigmoid(), label))
        boxes, scores, labels = (torch.cat(values) for values in zip(*found, strict=True))
        return final(boxes, scores, labels, self.config)


register_detectors("retinanet", "RetinaNet", RetinaNet, AnchorDetectorConfig, small=SMALL_HEADS)
