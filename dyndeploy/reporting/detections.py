"""Pictures of detections beside what a detector's backbone computed for them, and average precisions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

import numpy as np
import numpy.typing as npt

from dyndeploy.bundle import Bundle, MaskInfo
from dyndeploy.inference import DetectionResult
from dyndeploy.ops.gates import BLOCK, PATCH, gate_kind
from dyndeploy.reporting.gallery import GalleryItem, Pixels, group_grid, mask_overlay
from dyndeploy.reporting.html import ReportExtras
from dyndeploy.reporting.page import Table
from dyndeploy.tasks.coco import AveragePrecision
from dyndeploy.tasks.detection import Detections, resize
from dyndeploy.tasks.drawing import draw

GALLERY_TITLE = "What it finds, and what it computes for that"
GALLERY_NOTE = (
    "Left what the deployed network found; right what one block of its backbone computed for the same image: patches "
    "that it computes are framed, skipped ones are greyed. Groups of channels are cells, orange where computed."
)

_SIDE = 384
"""Longer side of a picture, in pixels: of small images so much that names of classes can be read."""


def detection_gallery(
    results: Sequence[DetectionResult],
    masks: Sequence[MaskInfo],
    names: Sequence[str] = (),
    *,
    score: float = 0.3,
    blocks: int = 2,
) -> tuple[GalleryItem, ...]:
    """Draw what was found in images, each beside what single blocks computed for it.

    Args:
        results: Of a few images.
        masks: Those of the bundle.
        names: Of the classes.
        score: Least score of what is drawn.
        blocks: So many masks are shown of each image: those that differ most from image to image, and within one.
    """
    chosen = _telling(results, masks, blocks)
    items = []
    for result in results:
        shown = result.detections.select(score)
        pixels, moved = _fitted(result.pixels, shown)
        picture = draw(pixels, moved, names)
        name = PurePath(result.image).name
        count = f"{len(shown)} detection{'' if len(shown) == 1 else 's'}"
        for info in chosen:
            mask = result.masks[info.name][0]
            caption = f"{name}: {count}; {info.block}, {info.kind} mask: {_computed(result, info):.0%} computed"
            kind = gate_kind(info.kind)
            drawn = (
                mask_overlay(pixels, mask[0], _covered(result)) if kind == PATCH else group_grid(pixels, mask.ravel())
            )
            items.append(GalleryItem(picture, drawn, caption))
        if not chosen:
            items.append(GalleryItem(picture, pixels, f"{name}: {count}"))
    return tuple(items)


def detection_extras(results: Sequence[DetectionResult], bundle: Bundle) -> ReportExtras:
    """What a detector's page shows beside its measurement: :func:`detection_gallery`, with words.

    Args:
        results: Of a few images.
        bundle: That they are of.
    """
    manifest = bundle.manifest
    items = detection_gallery(results, manifest.masks, manifest.detector().classes)
    return ReportExtras(gallery=items, gallery_title=GALLERY_TITLE, gallery_note=GALLERY_NOTE)


def _covered(result: DetectionResult) -> tuple[float, float]:
    """Share of the input's height and width that the image fills."""
    (height, width), (rows, columns) = result.input_size, result.resized
    return rows / height, columns / width


def _telling(results: Sequence[DetectionResult], masks: Sequence[MaskInfo], blocks: int) -> list[MaskInfo]:
    """The masks that show most, in order of execution; those of whole blocks show nothing in a picture."""
    known = [info for info in masks if gate_kind(info.kind) != BLOCK and all(info.name in r.masks for r in results)]

    def variety(info: MaskInfo) -> float:
        rates = [_computed(result, info) for result in results]
        return float(np.mean([rate * (1 - rate) for rate in rates]))

    # Of masks that show as much, large ones show it better.
    best = sorted(known, key=lambda info: (-round(variety(info), 2), -int(np.prod(info.shape))))[:blocks]
    return [info for info in known if info in best]


def _computed(result: DetectionResult, info: MaskInfo) -> float:
    """Share of what a mask decides on for the image, padding excepted, that is computed."""
    mask: npt.NDArray[np.float32] = result.masks[info.name][0]
    if gate_kind(info.kind) == PATCH:
        rows, columns = (
            max(1, round(side * share)) for side, share in zip(mask.shape[1:], _covered(result), strict=True)
        )
        mask = mask[:, :rows, :columns]
    return float(mask.mean())


def _fitted(pixels: Pixels, detections: Detections) -> tuple[Pixels, Detections]:
    """An image with its detections at the size of a picture."""
    height, width = pixels.shape[:2]
    factor = _SIDE / max(height, width)
    rows, columns = max(1, round(height * factor)), max(1, round(width * factor))
    scale = np.array([columns / width, rows / height] * 2, np.float32)
    masks = detections.masks
    if masks is not None:
        at = np.arange(rows) * height // rows, np.arange(columns) * width // columns
        masks = masks[:, at[0]][:, :, at[1]]
    moved = Detections(detections.boxes * scale, detections.scores, detections.labels, masks)
    return resize(pixels, (rows, columns)), moved


def precision_table(boxes: AveragePrecision, masks: AveragePrecision | None = None) -> Table:
    """Average precisions, of all classes and of each."""
    kinds = [("boxes", boxes), *([] if masks is None else [("masks", masks)])]
    columns = [f"{kind} {name}" for kind, _ in kinds for name in ("AP", "AP50", "AP75")]
    values: list[tuple[object, ...]] = [
        (
            "all classes",
            sum(one.objects for one in boxes.classes),
            *(v for _, p in kinds for v in (p.ap, p.ap50, p.ap75)),
        )
    ]
    values += [
        (each[0].name, each[0].objects, *(v for one in each for v in (one.ap, one.ap50, one.ap75)))
        for each in zip(*(precision.classes for _, precision in kinds), strict=True)
    ]
    return Table(
        "Average precision, measured on held-out images",
        ("class", "objects", *columns),
        [(str(name), str(count), *map(_precision, rest)) for name, count, *rest in values],
        file="precision.csv",
        fields=("class", "objects", *(column.replace(" ", "_").lower() for column in columns)),
        values=values,
    )


def _precision(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "-"
