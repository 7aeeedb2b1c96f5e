"""RetinaNet on LAUD backbones.

Reference: "Focal Loss for Dense Object Detection" (Lin et al., ICCV 2017), as mmdetection builds it: P6 from C5, no
ReLU between P6 and P7, nine anchors per cell, one sigmoid per class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dyndeploy.errors import UsageError
from dyndeploy.nets.detection_losses import Target, dense, focal_losses
from dyndeploy.nets.detector import (
    CANDIDATES,
    RATIOS,
    SMALL_HEADS,
    AnchorDetector,
    AnchorDetectorConfig,
    LastLevelsOfPyramid,
    best_of_maps,
    box_coder,
    decoded,
    final,
    placed,
    read_cells,
    register_detectors,
    wide,
)
from dyndeploy.nets.laud import check_choice

_WIDE = 256
"""Channels of the published heads."""

OCTAVE = tuple(2 ** (step / 3) for step in range(3))
"""Sides of square anchors, in those of the smallest of their level."""

SMALL = {**SMALL_HEADS, "first_stage": 3, "anchor_scale": 2.5}
"""Of the small variants, whose backbones begin with a stride of 2: objects of 20 pixels lie on the map of stride 8."""


LAST_LEVELS = ("c5", "p5")

TOWER = 4
"""Most convolutions of a tower: as many as torchvision's head has."""


@dataclass(frozen=True)
class RetinaNetConfig(AnchorDetectorConfig):
    """The options of a RetinaNet: those of every detector, and its own.

    Attributes:
        last_levels: What P6 is a convolution of: "c5", the backbone's last map, as in mmdetection; or "p5", the
            pyramid's, with a ReLU between P6 and P7, as in the paper and in torchvision's first version.
        first_stage: First stage whose map the pyramid takes, from 1 to 4.
        anchor_scale: Side of the smallest square anchors of a level, in strides.
    """

    last_levels: str = "c5"
    first_stage: int = 2
    anchor_scale: float = 4.0

    def __post_init__(self) -> None:
        """Check every value; raises ``UsageError`` naming the option."""
        super().__post_init__()
        check_choice("last_levels", self.last_levels, LAST_LEVELS)
        if self.tower > TOWER:
            raise UsageError(f"tower={self.tower!r} is not valid: give 1 to {TOWER} convolutions.")
        if isinstance(self.first_stage, bool) or self.first_stage not in range(1, 5):
            raise UsageError(f"first_stage={self.first_stage!r} is not valid: give a whole number from 1 to 4.")
        scale = self.anchor_scale
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < math.inf:
            raise UsageError(f"anchor_scale={scale!r} is not valid: give a number above 0.")


class RetinaNet(AnchorDetector):
    """A dense detector on P3 to P7, or on later levels.

    Args:
        name: Registered name.
        backbone: Registered name of the backbone.
        config: Options.

    Attributes:
        head: torchvision's: two towers, the logits of every anchor and class, and the deltas of every anchor.
    """

    config: RetinaNetConfig

    def __init__(self, name: str, backbone: str, config: RetinaNetConfig) -> None:
        self.scales = tuple(config.anchor_scale * side for side in OCTAVE)
        super().__init__(name, backbone, config, first_stage=config.first_stage - 1, convolutions=True)
        if config.last_levels == "p5":
            self.neck.extra = LastLevelsOfPyramid(config.pyramid_channels)
        from torchvision.models.detection.retinanet import RetinaNetHead

        anchors = len(RATIOS) * len(OCTAVE)
        self.head = RetinaNetHead(config.pyramid_channels, anchors, config.num_classes)
        for tower in (self.head.classification_head, self.head.regression_head):
            tower.conv = tower.conv[: config.tower]
            if config.pyramid_channels < _WIDE:
                # The published ones begin with weights so small that little passes through fewer channels.
                for layer in tower.conv:
                    nn.init.kaiming_normal_(layer[0].weight, nonlinearity="relu")
        self._coder = box_coder((1.0, 1.0, 1.0, 1.0))
        self.train()

    def raw(self, pyramid: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return the head's maps for each level: logits (N, anchors * classes, h, w), deltas (N, anchors * 4, h, w).

        The class, or the coordinate, runs fastest among the channels.
        """
        classes, boxes = self.head.classification_head, self.head.regression_head
        return [(classes.cls_logits(classes.conv(x)), boxes.bbox_reg(boxes.conv(x))) for x in pyramid]

    def detected(self, pyramid: Sequence[Tensor], image_size: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`Detector.detected`."""
        logits, deltas = zip(*wide(self.raw(pyramid)), strict=True)
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
        inside = self.inside(sizes, image_size, len(RATIOS) * len(OCTAVE))
        return focal_losses(logits, deltas, anchors.to(deltas), inside, targets, self._coder, self.whose_losses)


register_detectors("retinanet", "RetinaNet", RetinaNet, RetinaNetConfig, small=SMALL)
