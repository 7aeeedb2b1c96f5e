"""Detections drawn on their image."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dyndeploy.data import ByteArray, rgb_pixels
from dyndeploy.errors import UsageError
from dyndeploy.tasks.annotations import boxes_around
from dyndeploy.tasks.detection import Detections

_COVER = 0.45
"""How much of a mask's colour is laid over the image."""

_GOLDEN = 0.6180339887498949
"""Steps of the hue from class to class: the golden ratio keeps any number of them apart."""

_LEAST_FONT, _FONTS = 9, 40
"""Smallest size of text in pixels; and an image's longer side is so many times as long as its text is high."""

_Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class _Label:
    """A text on a filled rectangle."""

    place: _Box
    text: str
    fill: tuple[int, int, int]


def draw(
    image: ByteArray | Image.Image, detections: Detections, class_names: Sequence[str] = (), *, score: float = 0.0
) -> ByteArray:
    """Draw boxes, masks, names and scores on an image, in one colour per class; the surest lie on top.

    A name is left out where there is no room for it beside those of surer detections.

    Args:
        image: 8-bit RGB, (height, width, 3); or what :func:`dyndeploy.data.rgb_pixels` makes that of.
        detections: What was found in it.
        class_names: Name of each class; a label beyond them stands as a number.
        score: Detections below it are left out.

    Returns:
        A new image, (height, width, 3).

    Raises:
        UsageError: No such image, or masks of another size.
    """
    pixels = rgb_pixels(image)
    shown = detections.select(score)
    if shown.masks is not None and shown.masks.shape[1:] != pixels.shape[:2]:
        raise UsageError(f"Masks {shown.masks.shape[1:]} do not fit an image {pixels.shape[:2]}.")
    colours = [colour(label) for label in shown.labels.tolist()]
    canvas = Image.fromarray(_with_masks(pixels, shown, colours))
    long = max(canvas.size)
    line = max(1, round(long / 300))
    font = ImageFont.load_default(max(_LEAST_FONT, round(long / _FONTS)))
    pen = ImageDraw.Draw(canvas)
    order = range(len(shown) - 1, -1, -1)
    for index in order:
        x1, y1, x2, y2 = shown.boxes[index].tolist()
        corners = (round(x1), round(y1), max(round(x2) - 1, round(x1)), max(round(y2) - 1, round(y1)))
        pen.rectangle(corners, outline=colours[index], width=line)
    # One height for all texts, whatever letters they have.
    _, rise, _, fall = pen.textbbox((0, 0), "Hg", font)
    labels: list[_Label] = []
    for index in reversed(order):
        label = int(shown.labels[index])
        name = " ".join(class_names[label].split()) if 0 <= label < len(class_names) else str(label)
        for text in (f"{name} {shown.scores[index]:.2f}", name):
            size = (math.ceil(pen.textlength(text, font)) + 2 * line + 1, math.ceil(fall - rise) + 2 * line)
            place = _label_place(size, shown.boxes[index].tolist(), canvas.size, [item.place for item in labels])
            if place is not None:
                labels.append(_Label(place, text, colours[index]))
                break
    for item in labels:
        left, top, right, bottom = item.place
        pen.rectangle((left, top, right - 1, bottom - 1), fill=item.fill)
        ink = (0, 0, 0) if _brightness(item.fill) > 140 else (255, 255, 255)
        pen.text((left + line + 1, top + line - rise), item.text, fill=ink, font=font)
    return np.asarray(canvas)


def colour(label: int) -> tuple[int, int, int]:
    """The colour (RGB, 8 bits) of a class: those of neighbouring labels lie far apart."""
    hue = label * _GOLDEN % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.85, 0.65)[label // 8 % 2], (1.0, 0.8)[label // 16 % 2])
    return round(red * 255), round(green * 255), round(blue * 255)


def _with_masks(pixels: ByteArray, shown: Detections, colours: Sequence[tuple[int, int, int]]) -> ByteArray:
    painted = pixels.copy()
    if shown.masks is None:
        return painted
    for mask, fill in zip(shown.masks[::-1], colours[::-1], strict=True):
        if not mask.any():
            continue
        left, top, right, bottom = boxes_around(mask[None])[0].astype(int).tolist()
        part, inside = painted[top:bottom, left:right], mask[top:bottom, left:right]
        blended = part[inside] * (1 - _COVER) + np.array(fill) * _COVER
        part[inside] = np.rint(blended).astype(np.uint8)
    return painted


def _label_place(
    label: tuple[int, int], box: Sequence[float], size: tuple[int, int], taken: Sequence[_Box]
) -> _Box | None:
    """Where a label lies: above its box, else inside or below it; inside the image, and over no surer label."""
    (width, height), (x1, y1, _, y2) = label, box
    left = max(0, min(round(x1), size[0] - width))
    for top in (round(y1) - height, round(y1), round(y2), round(y2) - height):
        place = (left, top, left + width, top + height)
        inside = top >= 0 and place[2] <= size[0] and place[3] <= size[1]
        if inside and not any(_overlap(place, other) for other in taken):
            return place
    return None


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _brightness(fill: tuple[int, int, int]) -> float:
    return 0.299 * fill[0] + 0.587 * fill[1] + 0.114 * fill[2]
