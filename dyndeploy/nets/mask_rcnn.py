"""Mask R-CNN on LAUD backbones.

Reference: "Mask R-CNN" (He et al., ICCV 2017), as mmdetection builds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from dyndeploy.nets.detection_losses import REGION_WITH_MASK, Overlap, Regions, Target, mask_losses
from dyndeploy.nets.detector import register_detectors
from dyndeploy.nets.faster_rcnn import SMALL, FasterRCNN, RegionConfig

MASK_SIZE = 14
"""Side in cells of what the mask head reads; masks have twice that."""


class MaskRCNN(FasterRCNN):
    """A Faster R-CNN that gives a mask for every detection as well.

    Args:
        name: Registered name.
        backbone: Registered name of the backbone.
        config: Options.
    """

    task_options: ClassVar[Mapping[str, Any]] = MappingProxyType({"masks": True})
    region_rule: ClassVar[Overlap] = REGION_WITH_MASK

    def __init__(self, name: str, backbone: str, config: RegionConfig) -> None:
        super().__init__(name, backbone, config)
        from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

        channels = config.pyramid_channels
        self.roi_heads.mask_head = MaskRCNNHeads(channels, (channels,) * config.tower, 1)
        self.roi_heads.mask_predictor = MaskRCNNPredictor(channels, channels, config.num_classes)
        self.train()

    def mask_logits(self, regions: Tensor) -> Tensor:
        """Return the logits (M, classes, 28, 28) of regions (M, C, 14, 14)."""
        heads = self.roi_heads
        logits: Tensor = heads.mask_predictor(heads.mask_head(regions))  # type: ignore[operator]
        return logits

    def detected(self, pyramid: Sequence[Tensor], image_size: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`~dyndeploy.nets.detector.Detector.detected`."""
        boxes, scores, labels, count = self.boxes(pyramid, image_size)
        logits = self.mask_logits(self.read(pyramid, boxes, MASK_SIZE))
        own = logits[torch.arange(len(labels), device=labels.device), labels]
        return boxes, scores, labels, count, own.to(boxes.dtype).sigmoid()

    def further_losses(
        self, maps: Sequence[Sequence[Tensor]], regions: Sequence[Regions], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Return the loss of the masks."""
        read = [
            self.read(own, found.boxes[: len(found.owners)], MASK_SIZE)
            for own, found in zip(maps, regions, strict=True)
        ]
        logits = self.mask_logits(torch.cat(read))
        wide = torch.promote_types(logits.dtype, torch.float32)
        return mask_losses(logits.to(wide), regions, targets, self.whose_losses)


register_detectors("mask_rcnn", "Mask R-CNN", MaskRCNN, RegionConfig, small=SMALL)
