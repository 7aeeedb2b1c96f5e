from __future__ import annotations

import numpy as np
import pytest

from dyndeploy.errors import UsageError
from dyndeploy.tasks.detection import Detections
from dyndeploy.tasks.drawing import colour, draw

GREY = np.full((200, 300, 3), 128, np.uint8)


def found(*rows: tuple[float, ...], masks: np.ndarray | None = None) -> Detections:
    """Rows of x1, y1, x2, y2, score, label."""
    table = np.asarray(rows, np.float64).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5], masks)


def test_nothing_found_leaves_the_image() -> None:
    drawn = draw(GREY, found())
    assert np.array_equal(drawn, GREY) and drawn is not GREY
    assert np.array_equal(draw(GREY, found((20, 40, 99, 99, 0.4, 1)), score=0.5), GREY)


def test_a_box_is_drawn_on_its_outermost_pixels() -> None:
    drawn = draw(GREY, found((20, 40, 120, 160, 0.9, 1)), ["cat", "dog"])
    fill = np.array(colour(1))
    assert (GREY == 128).all(), "the image itself is not touched"
    for edge in (drawn[40:160, 20], drawn[40:160, 119], drawn[159, 20:120]):
        assert (edge == fill).all()
    assert (drawn[41:159, 21:119] == 128).all()
    changed = np.argwhere((drawn != 128).any(-1))
    top, left = changed.min(0)
    assert (left, *changed.max(0)) == (20, 159, 119) and 20 < top < 36, "the label stands on the box"
    label = drawn[top:40, 20:60]
    assert {tuple(pixel) for pixel in label.reshape(-1, 3).tolist()} > {tuple(fill.tolist())}


def test_masks_are_translucent() -> None:
    mask = np.zeros((1, 200, 300), bool)
    mask[0, 50:150, 30:110] = True
    drawn = draw(GREY, found((20, 40, 120, 160, 0.9, 3), masks=mask))
    inside = np.rint(128 * 0.55 + np.array(colour(3)) * 0.45)
    assert (drawn[60:140, 40:100] == inside).all()
    assert (drawn[152:158, 22:118] == 128).all()
    empty = draw(GREY, found((20, 40, 120, 160, 0.9, 3), masks=np.zeros_like(mask)))
    assert (empty[60:140, 40:100] == 128).all()
    with pytest.raises(UsageError, match=r"Masks \(200, 300\) do not fit an image \(100, 300"):
        draw(GREY[:100], found((20, 40, 120, 160, 0.9, 3), masks=mask))


@pytest.mark.parametrize(
    "box", [(0, 0, 300, 200), (0, 0, 20, 10), (290, 0, 300, 8), (290, 190, 300, 200), (0, 100, 4, 200)]
)
def test_labels_stay_inside_the_image(box: tuple[float, ...]) -> None:
    def text(box: tuple[float, ...]) -> tuple[int, int]:
        """Number of pixels in which letters stand, and their sum."""
        drawn = draw(GREY, found((*box, 0.9, 0)), ["traffic light"])
        letters = drawn[(drawn != 128).any(-1) & (drawn != colour(0)).any(-1)]
        return len(letters), int(letters.sum())

    assert text(box) == text((100, 100, 200, 150)) and text(box)[0] > 200


def test_surer_detections_keep_their_labels() -> None:
    same = (100, 100, 200, 150)
    drawn = draw(GREY, found(*((*same, 0.9 - index / 10, index) for index in range(5))))
    shown = [index for index in range(5) if (drawn == colour(index)).all(-1).sum() > 100]
    assert shown == [0, 1, 2, 3], "above, inside and below is room for four"
    assert (drawn[120, 100] == colour(0)).all(), "the surest box lies on top"


def test_colours_are_apart() -> None:
    colours = np.array([colour(label) for label in range(20)])
    apart = np.abs(colours[:, None] - colours[None]).sum(-1) + 1000 * np.eye(20)
    assert apart.min() > 40
    assert np.min([np.abs(colours[i] - colours[i + 1]).sum() for i in range(19)]) > 200


def test_lines_and_texts_grow_with_the_image() -> None:
    box = np.array((100, 100, 250, 180))
    small = draw(GREY, found((*box, 0.9, 1)))
    large = draw(np.full((2000, 3000, 3), 128, np.uint8), found((*(box * 10), 0.9, 1)))
    widths = [(image[image.shape[0] * 7 // 10] != 128).any(-1).sum() // 2 for image in (small, large)]
    assert widths == [1, 10]
    areas = [(image[: image.shape[0] // 2] != 128).any(-1).sum() for image in (small, large)]
    assert 30 < areas[1] / areas[0] < 100


@pytest.mark.parametrize("shape", [(1, 1), (8, 8, 1), (5, 64, 4), (64, 5, 3)])
def test_odd_images_and_boxes_are_drawn(shape: tuple[int, ...]) -> None:
    rows = [(0, 0, 1, 1, 0.9, 0), (3, 3, 3, 3, 0.8, 99), (-50, -50, -10, 400, 0.7, 1), (2, 2, 9e4, 9e4, 0.6, 2)]
    drawn = draw(np.zeros(shape, np.uint8), found(*rows), ["a\nb", ""])
    assert drawn.shape == (*shape[:2], 3) and drawn.dtype == np.uint8 and drawn.any()
