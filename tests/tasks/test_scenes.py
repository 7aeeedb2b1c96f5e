from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dyndeploy.data import digit_pixels, read_image
from dyndeploy.errors import OutputError, UsageError
from dyndeploy.tasks import scenes
from dyndeploy.tasks.annotations import boxes_around
from dyndeploy.tasks.scenes import digit_scenes, write_coco


def test_scenes_depend_on_seed_split_epoch_and_index_only() -> None:
    dataset = digit_scenes(10**9)
    item = dataset[7]
    again = digit_scenes(8)
    assert len(dataset) == 10**9 and np.array_equal(again[-1].image, item.image)
    again.set_epoch(1)
    others = [dataset[8], again[7], digit_scenes(8, seed=1)[7], digit_scenes(8, split="held_out")[7]]
    assert not any(np.array_equal(other.image, item.image) for other in others)
    again.set_epoch(0)
    assert np.array_equal(again[7].masks, item.masks)


@pytest.mark.parametrize("split", scenes.SPLITS)
def test_a_scene_holds_what_it_says(split: str) -> None:
    dataset = digit_scenes(40, (96, 128), split)
    counts = set()
    for item in dataset:
        assert item.image.shape == (96, 128, 3) and item.image.dtype == np.uint8
        assert item.masks is not None and item.masks.shape == (len(item.labels), 96, 128)
        assert np.array_equal(item.boxes, boxes_around(item.masks)) and item.boxes.dtype == np.float32
        assert item.labels.dtype == np.int64 and set(item.labels.tolist()) <= set(range(10)) and not item.crowd.any()
        assert item.masks.sum(0).max() == 1, "a pixel belongs to one digit"
        counts.add(len(item.labels))
    assert counts == {1, 2, 3, 4, 5}
    assert dataset.classes == tuple("0123456789") and dataset.category_ids == tuple(range(1, 11))


def test_masks_are_the_pixels_that_digits_cover(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "_background", lambda rng, size, part: np.full((*size, 3), 40, np.uint8))
    shown = 0
    for item in digit_scenes(20, digits_per_image=(1, 1)):
        assert item.masks is not None
        mask, distance = item.masks[0], np.abs(item.image.astype(int) - 40).sum(-1)
        colour = distance.max()
        assert (distance[mask] >= colour / 2 - 3).all() and (distance[~mask] <= colour / 2 + 3).all()
        shown += mask.sum()
    assert shown > 20 * 30


def test_no_digit_is_hidden_by_more_than_half(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "_drawn", lambda rng, digit, sizes: np.full((20, 20), 255, np.uint8))
    areas: list[int] = []
    for item in digit_scenes(15, (64, 64), digits_per_image=(12, 12)):
        assert item.masks is not None and item.masks[-1].sum() == 400, "the last one lies on top"
        areas += item.masks.sum((1, 2)).tolist()
    assert 200 <= min(areas) < 260, "some are hidden in part, none by more than half"
    assert 15 * 6 < len(areas) < 15 * 12, "where no place is left there are fewer"


def test_held_out_scenes_share_nothing_with_training(monkeypatch: pytest.MonkeyPatch) -> None:
    used: dict[str, set[tuple[int, ...]]] = {"train": set(), "held_out": set()}
    rows: dict[str, list[tuple[int, int]]] = {"train": [], "held_out": []}
    original = scenes._drawn

    class Photograph:
        width, height = 640, 427

        def crop(self, box: tuple[int, int, int, int]) -> scenes.Image.Image:
            assert 0 <= box[0] < box[2] <= 640
            rows[split].append((box[1], box[3]))
            return scenes.Image.new("RGB", (box[2] - box[0], box[3] - box[1]))

    def drawn(rng: np.random.Generator, digit: np.ndarray, sizes: tuple[int, int]) -> np.ndarray:
        used[split].add(tuple(digit.ravel().tolist()))
        return original(rng, digit, sizes)

    monkeypatch.setattr(scenes, "_photographs", lambda: (Photograph(),))
    monkeypatch.setattr(scenes, "_drawn", drawn)
    for split in scenes.SPLITS:
        for item in digit_scenes(150, split=split, seed=3):
            assert len(item.labels)
        for item in digit_scenes(3, (300, 700), split=split):
            assert len(item.labels)
    source = digit_pixels()
    held_out = {tuple(source.pixels[index].ravel().tolist()) for index in source.held_out}
    assert used["held_out"] <= held_out and len(used["held_out"]) > 200
    assert not used["train"] & held_out
    lowest, highest = max(stop for _, stop in rows["train"]), min(start for start, _ in rows["held_out"])
    assert lowest == 248 and highest == 265 and min(rows["train"])[0] == 0
    assert max(stop for _, stop in rows["held_out"]) == 427


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "val"}, "Unknown split 'val'"),
        ({"size": (32, 100)}, "14 to 40 pixels do not fit on images of 32x100"),
        ({"digits_per_image": (0, 3)}, "digits_per_image"),
        ({"digits_per_image": (4, 3)}, "lower first"),
        ({"digit_size": (0, 3)}, "do not fit"),
        ({"count": 0}, "at least 1"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_impossible_scenes_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        digit_scenes(**{"count": 3, **arguments})


def test_an_index_beyond_the_last_ends_a_loop() -> None:
    assert len(list(digit_scenes(2))) == 2
    with pytest.raises(IndexError, match="2 scenes"):
        digit_scenes(2)[2]


def test_scenes_are_written_as_coco(tmp_path: Path) -> None:
    dataset = digit_scenes(3, (64, 80), digit_size=(14, 20))
    write_coco(tmp_path / "scenes", dataset)
    content = json.loads((tmp_path / "scenes" / "annotations.json").read_text())
    assert content["images"][1] == {"id": 2, "file_name": "000001.png", "height": 64, "width": 80}
    assert content["categories"][9] == {"id": 10, "name": "9"}
    assert [item["id"] for item in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
    for index, item in enumerate(dataset):
        assert np.array_equal(read_image(tmp_path / "scenes" / "images" / f"{index:06}.png"), item.image)
        found = [a for a in content["annotations"] if a["image_id"] == index + 1]
        assert [a["category_id"] - 1 for a in found] == item.labels.tolist()
        assert [a["area"] for a in found] == item.masks.sum((1, 2)).tolist()
        corners = [[x, y, x + width, y + height] for x, y, width, height in (a["bbox"] for a in found)]
        assert corners == item.boxes.tolist()
    assert content == json.loads(json.dumps(dataset.coco(range(3))))
    with pytest.raises(OutputError, match="scenes"):
        write_coco(tmp_path / "scenes", dataset)


def test_digits_stand_out_by_the_contrast_that_is_asked_for() -> None:
    weights = np.array([0.299, 0.587, 0.114])
    for contrast in (20, 120):
        scenes_of = [digit_scenes(12, (40, 40), "train", 0, (1, 1), (20, 40), level) for level in (contrast, contrast)]
        assert np.array_equal(scenes_of[0][3].image, scenes_of[1][3].image)
        differences = []
        for item in scenes_of[0]:
            assert item.masks is not None
            ink = (item.image @ weights)[item.masks[0]].mean()
            around = (item.image @ weights)[~item.masks[0]].mean()
            differences.append(abs(ink - around))
        assert (np.median(differences) > 100) == (contrast == 120)
    with pytest.raises(UsageError, match="contrast=128 must be from 0 to 127"):
        digit_scenes(1, contrast=128)
