"""Names of what a captured detector calls on boxes; :mod:`dyndeploy.blocks.boxes` computes it, export writes it out."""

from __future__ import annotations

BOXES = "dyndeploy.boxes"
"""Domain of the placeholders in a captured graph."""

KEEP_BOXES = "KeepBoxes"
"""Inputs boxes (M, 4), scores (M,), groups (M,); attributes iou_threshold, score_threshold, limit; gives (limit,)."""

PYRAMID_ROI_ALIGN = "PyramidRoiAlign"
"""Inputs the maps, boxes (M, 4), levels (M,); attributes strides, size; gives (M, C, size, size)."""

EMPTY = -1
"""Index of a place without a box."""
