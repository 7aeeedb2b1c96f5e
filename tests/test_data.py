from __future__ import annotations

import errno
import os
import re
import shutil
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dyndeploy.bundle import PreprocessingInfo
from dyndeploy.data import (
    DIGITS_HELD_OUT,
    ImageFolderDataset,
    LabelledImages,
    ShiftedImages,
    damaged_images,
    digits,
    image_paths,
    images_from_folder,
    images_of_classes,
    load_image,
    normalise,
    read_image,
    rgb_pixels,
    sample_photographs,
)
from dyndeploy.errors import InputError, UsageError
from dyndeploy.nets import Preprocessing


@dataclass(frozen=True)
class Plain:
    """Values stay in [0, 1], so that a pixel can be recognised."""

    resize: int = 8
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    interpolation: str = "nearest"


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), [(35, 17), (17, 35)])
def test_every_pillow_resizes_along_the_rows_first(tmp_path: Path, height: int, width: int) -> None:
    # Pillow 13 shrinks tall images along the columns first, which rounds otherwise.
    pixels = noise(height, width, 3)
    image = load_image(save(tmp_path / "a.png", pixels), Plain(16, interpolation="bicubic"), (16, 16))
    wide, tall = max(16 * width // min(width, height), 16), max(16 * height // min(width, height), 16)
    rows = Image.fromarray(pixels).resize((wide, height), Image.Resampling.BICUBIC)
    both = np.asarray(rows.resize((wide, tall), Image.Resampling.BICUBIC))
    left, top = round((wide - 16) / 2), round((tall - 16) / 2)
    crop = both[top : top + 16, left : left + 16]
    np.testing.assert_array_equal(np.round(image * 255).astype(np.uint8).transpose(1, 2, 0), crop)


def test_load_image_normalises_per_channel(tmp_path: Path) -> None:
    pixels = noise(8, 8, 3)
    preprocessing = Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0), resize=8)
    image = load_image(save(tmp_path / "a.png", pixels), preprocessing, (8, 8))
    assert image.dtype == np.float32
    assert image.shape == (3, 8, 8)
    for c in range(3):
        expected = (pixels[..., c] / 255 - preprocessing.mean[c]) / preprocessing.std[c]
        np.testing.assert_allclose(image[c], expected, atol=1e-6)


def test_bundle_preprocessing_fits(tmp_path: Path) -> None:
    info = PreprocessingInfo(resize=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation="nearest")
    path = save(tmp_path / "a.png", noise(8, 8, 3))
    np.testing.assert_array_equal(load_image(path, info, (8, 8)), load_image(path, Plain(), (8, 8)))


def test_crop_is_central(tmp_path: Path) -> None:
    # 8 rows x 12 columns, every pixel its own value: the 8x8 crop starts at column 2.
    pixels = np.repeat(np.arange(96, dtype=np.uint8).reshape(8, 12, 1), 3, axis=2)
    image = load_image(save(tmp_path / "a.png", pixels), Plain(), (8, 8))
    np.testing.assert_allclose(image[0] * 255, pixels[:, 2:10, 0], atol=1e-4)
    image = load_image(save(tmp_path / "b.png", pixels), Plain(), (4, 6))
    np.testing.assert_allclose(image[0] * 255, pixels[2:6, 3:9, 0], atol=1e-4)


def test_resize_then_crop_as_torchvision_documents(tmp_path: Path) -> None:
    # 427x640 photograph: shorter side 256, longer side int(256 * 640 / 427) = 383, crop at round((383 - 224) / 2).
    path = sample_photographs()[0]
    preprocessing = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), resize=256)
    with Image.open(path) as source:
        resized = np.asarray(source.resize((383, 256), Image.Resampling.BILINEAR))
    expected = resized[16:240, 80:304].transpose(2, 0, 1) / 255
    np.testing.assert_allclose(load_image(path, preprocessing, (224, 224)), expected, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    source=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    resize=st.integers(1, 40),
)
def test_any_source_fills_any_crop(
    tmp_path_factory: pytest.TempPathFactory, source: tuple[int, int], size: tuple[int, int], resize: int
) -> None:
    # White everywhere: a crop reaching beyond the image would bring in black.
    path = save(tmp_path_factory.mktemp("white") / "a.png", np.full((*source, 3), 255, np.uint8))
    image = load_image(path, Plain(resize=resize, interpolation="bilinear"), size)
    assert image.shape == (3, *size)
    np.testing.assert_array_equal(image, 1.0)


def test_grey_is_repeated(tmp_path: Path) -> None:
    pixels = noise(8, 8)
    image = load_image(save(tmp_path / "a.png", pixels), Plain(), (8, 8))
    for c in range(3):
        np.testing.assert_allclose(image[c] * 255, pixels, atol=1e-4)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    pixels = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    image = load_image(save(tmp_path / "a.png", pixels), Plain(), (8, 8))
    np.testing.assert_allclose(image[0], pixels / 65535, atol=1 / 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_white(tmp_path: Path, mode: str) -> None:
    if mode == "P":
        image = Image.new("P", (8, 8), 0)
        image.putpalette([0, 0, 0, 200, 100, 50])
        image.putpixel((3, 2), 1)
        image.save(tmp_path / "a.png", transparency=0)
        opaque = (200, 100, 50)
    else:
        color = (200, 100, 50, 255) if mode == "RGBA" else (77, 255)
        image = Image.new(mode, (8, 8), 0)
        image.putpixel((3, 2), color)
        image.save(tmp_path / "a.png")
        opaque = color[:3] if mode == "RGBA" else (77, 77, 77)
    loaded = np.round(load_image(tmp_path / "a.png", Plain(), (8, 8)) * 255)
    assert tuple(loaded[:, 2, 3]) == opaque
    assert tuple(loaded[:, 0, 0]) == (255, 255, 255)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    pixels = noise(8, 8, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera was turned: rotate by 90 degrees clockwise to see it upright.
    image = load_image(save(tmp_path / "a.png", pixels, exif=exif), Plain(), (8, 8))
    upright = np.rot90(pixels, k=-1).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(image, upright, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "I;16"])
def test_arrays_become_rgb_as_files_do(tmp_path: Path, mode: str) -> None:
    values = np.random.default_rng(0).integers(0, 256, (5, 7, 4), np.uint8)
    if mode == "I;16":
        image = Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(values, "RGBA").convert(mode)
    image.save(tmp_path / "image.png")
    pixels = read_image(tmp_path / "image.png")
    assert pixels.shape == (5, 7, 3) and pixels.dtype == np.uint8
    assert np.array_equal(rgb_pixels(image), pixels)
    if mode in ("L", "RGB", "RGBA"):
        assert np.array_equal(rgb_pixels(np.asarray(image)), pixels)
    if mode == "L":
        assert np.array_equal(rgb_pixels(np.asarray(image)[..., None]), pixels)
        assert np.array_equal(pixels[..., 1], np.asarray(image))


def test_images_are_read_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    upright = read_image(tmp_path / "turned.png")
    assert upright.shape == (16, 8, 3) and upright[:8].all() and not upright[8:].any()


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "0 to 255.*float32"),
        (np.zeros((4, 4, 3), np.uint16), "0 to 255.*uint16"),
        (np.zeros((4, 4), bool), "0 to 255.*bool"),
        (np.zeros((3, 4, 5), np.uint8), r"channels last: image.transpose\(1, 2, 0\)"),
        (np.zeros((2, 4, 5, 3), np.uint8), "one image at a time"),
        (np.zeros((4, 5, 2), np.uint8), r"not an array \(4, 5, 2\)"),
        (np.zeros((0, 5, 3), np.uint8), "must have pixels"),
        (np.zeros(7, np.uint8), r"not an array \(7,\)"),
    ],
)
def test_arrays_that_are_no_image_are_refused(pixels: np.ndarray, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        rgb_pixels(pixels)


def test_folder_is_searched_in_depth_in_sorted_order(tmp_path: Path) -> None:
    for value, name in enumerate(("a/2.png", "a/b/1.PNG", "c.jpeg", ".hidden/x.png", "a/._2.png", "note.txt")):
        if name.endswith("txt"):
            (tmp_path / name).write_text("not an image")
        else:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (value * 40,) * 3).save(path, format="JPEG" if "jpeg" in name else "PNG")
    names = [p.relative_to(tmp_path).as_posix() for p in image_paths(tmp_path)]
    assert names == ["a/2.png", "a/b/1.PNG", "c.jpeg"]
    images = images_from_folder(tmp_path, Plain(), (8, 8))
    assert images.shape == (3, 3, 8, 8)
    assert images.dtype == np.float32
    np.testing.assert_allclose(images[:, 0, 4, 4] * 255, [0, 40, 80], atol=2)


@pytest.mark.parametrize(("limit", "expected"), [(1, [0]), (2, [0, 3]), (3, [0, 2, 4]), (6, range(6)), (99, range(6))])
def test_limit_spreads_over_the_folder(tmp_path: Path, limit: int, expected: list[int]) -> None:
    for value in range(6):
        save(tmp_path / f"class{value}" / "a.png", np.full((8, 8, 3), value, np.uint8))
    images = images_from_folder(tmp_path, Plain(), (8, 8), limit)
    assert list(np.round(images[:, 0, 0, 0] * 255)) == list(expected)


def test_empty_missing_and_unreadable(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        images_from_folder(tmp_path / "absent", Plain(), (8, 8))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        images_from_folder(tmp_path / "empty", Plain(), (8, 8))
    whole = save(tmp_path / "some" / "whole.png", noise(64, 64, 3))
    with pytest.raises(InputError, match="is not a folder"):
        images_from_folder(whole, Plain(), (8, 8))
    (tmp_path / "some" / "cut.png").write_bytes(whole.read_bytes()[:4000])
    with pytest.raises(InputError, match=r"cut\.png"):
        images_from_folder(tmp_path / "some", Plain(), (8, 8))
    (tmp_path / "some" / "cut.png").write_bytes(b"these are no pixels")
    with pytest.raises(InputError, match=r"cut\.png is not an image"):
        images_from_folder(tmp_path / "some", Plain(), (8, 8))
    with pytest.raises(InputError, match=r"no image .*gone\.png"):
        load_image(tmp_path / "gone.png", Plain(), (8, 8))


def test_impossible_requests(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", noise(8, 8, 3))
    with pytest.raises(UsageError, match="0x8"):
        load_image(path, Plain(), (0, 8))
    with pytest.raises(UsageError, match="Did you mean 'bilinear'"):
        load_image(path, Plain(interpolation="bilinar"), (8, 8))
    with pytest.raises(UsageError, match="limit=0"):
        images_from_folder(tmp_path, Plain(), (8, 8), 0)


def test_sample_photographs_are_real_photographs() -> None:
    china, flower = sample_photographs()
    assert (china.name, flower.name) == ("china.jpg", "flower.jpg")
    images = [load_image(p, Plain(resize=256, interpolation="bilinear"), (224, 224)) for p in (china, flower)]
    assert all(image.shape == (3, 224, 224) for image in images)
    assert images[0].std() > 0.1
    assert np.abs(images[0] - images[1]).mean() > 0.1


def test_digits_are_stratified_disjoint_and_seeded() -> None:
    split = digits(Plain(), (8, 8), seed=3)
    assert (len(split.train), len(split.held_out)) == (1437, 360)
    for part, total in ((split.train, 1437), (split.held_out, 360)):
        assert part.images.shape == (total, 3, 8, 8)
        assert part.labels.dtype == np.int64
        counts = np.bincount(part.labels, minlength=10)
        everything = np.bincount(np.concatenate([split.train.labels, split.held_out.labels]))
        share = DIGITS_HELD_OUT if part is split.held_out else 1 - DIGITS_HELD_OUT
        assert np.abs(counts - everything * share).max() <= 1
    # 8x8 is the original size: both parts together are scikit-learn's images, each once.
    from sklearn.datasets import load_digits

    original = np.sort(load_digits().images.reshape(1797, 64) @ np.arange(1, 65))
    mine = np.concatenate([split.train.images, split.held_out.images])[:, 0].reshape(1797, 64) * 16
    np.testing.assert_allclose(np.sort(mine @ np.arange(1, 65)), original, rtol=0.01)

    again, other = digits(Plain(), (8, 8), seed=3), digits(Plain(), (8, 8), seed=4)
    np.testing.assert_array_equal(split.train.images, again.train.images)
    assert not np.array_equal(split.train.labels, other.train.labels)


def test_digits_written_as_png_come_back_the_same(tmp_path: Path) -> None:
    preprocessing = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), resize=32)
    images = digits(preprocessing, (32, 32)).held_out.images[:5]
    assert images.min() >= -1
    assert images.max() <= 1
    for i, image in enumerate(images):
        pixels = np.round((image.transpose(1, 2, 0) * 0.5 + 0.5) * 255).astype(np.uint8)
        save(tmp_path / f"{i}.png", pixels)
    np.testing.assert_array_equal(images_from_folder(tmp_path, preprocessing, (32, 32)), images)


def test_normalise_keeps_leading_axes() -> None:
    pixels = noise(2, 5, 4, 6, 3)
    assert normalise(pixels, Plain()).shape == (2, 5, 3, 4, 6)


def test_shifted_images_move_content_and_repeat_the_border() -> None:
    images = np.arange(2 * 3 * 5 * 6, dtype=np.float32).reshape(2, 3, 5, 6)
    source = LabelledImages(images, np.array([4, 7]), ("a",) * 8)
    dataset = ShiftedImages(source, 2, seed=1)
    assert (len(dataset), dataset.classes) == (2, source.classes)
    seen = set()
    for epoch in range(200):
        dataset.set_epoch(epoch)
        for index, label in ((0, 4), (1, 7)):
            shifted, own_label = dataset[index]
            assert own_label == label
            np.testing.assert_array_equal(shifted, dataset[index][0])
            padded = np.pad(images[index], ((0, 0), (2, 2), (2, 2)), mode="edge")
            matches = [
                (y - 2, x - 2)
                for y in range(5)
                for x in range(5)
                if np.array_equal(shifted, padded[:, y : y + 5, x : x + 6])
            ]
            assert matches
            seen.update(matches)
    # All 25 shifts come up.
    assert len(seen) == 25
    np.testing.assert_array_equal(ShiftedImages(source, 0)[1][0], images[1])
    with pytest.raises(UsageError, match="-1 pixels"):
        ShiftedImages(source, -1)


@pytest.fixture
def class_folder(tmp_path: Path) -> Path:
    for index, name in enumerate(("cat", "ant", "bee")):
        for i in range(index + 1):
            save(tmp_path / name / f"{i}.png", noise(20, 30, 3, seed=10 * index + i))
    return tmp_path


def test_image_folder_classes_are_sorted_sub_folders(class_folder: Path) -> None:
    dataset = ImageFolderDataset(class_folder, Plain(), (8, 8))
    assert dataset.classes == ("ant", "bee", "cat")
    assert [dataset[i][1] for i in range(len(dataset))] == [0, 0, 1, 1, 1, 2]
    np.testing.assert_array_equal(dataset[0][0], load_image(class_folder / "ant" / "0.png", Plain(), (8, 8)))


def test_folders_are_matched_to_classes_by_name(class_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    present = sorted(entry.name for entry in class_folder.iterdir())
    names = present[::-1]
    found = images_of_classes(class_folder, Plain(), (8, 8), names=names, count=len(names))
    by_folder = {path.parent.name: label for path, label in found.samples}  # type: ignore[union-attr]
    assert by_folder == {name: index for index, name in enumerate(names)}
    assert not caplog.records
    unnamed = images_of_classes(class_folder, Plain(), (8, 8), names=(), count=len(names))
    assert unnamed.classes == tuple(present)
    assert "in the order of their names" in caplog.text


def test_folders_that_are_not_the_classes_are_refused(class_folder: Path) -> None:
    present = sorted(entry.name for entry in class_folder.iterdir())
    with pytest.raises(InputError, match=f"missing zebra; unknown to the network {present[0]}"):
        images_of_classes(class_folder, Plain(), (8, 8), names=[*present[1:], "zebra"], count=len(present))
    with pytest.raises(InputError, match="not the network's classes: missing zebra"):
        images_of_classes(class_folder, Plain(), (8, 8), names=[*present, "zebra"], count=len(present) + 1)
    with pytest.raises(InputError, match=f"has {len(present)} classes .* the network 7"):
        images_of_classes(class_folder, Plain(), (8, 8), names=(), count=7)
    with pytest.raises(InputError, match=f"several classes named {present[0]}"):
        images_of_classes(class_folder, Plain(), (8, 8), names=[present[0], *present], count=len(present) + 1)


def test_the_folder_above_the_classes_is_answered_with_the_one_that_is_meant(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for part in ("train", "val"):
        (photos / part / "cat").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(photos / part / "cat" / "a.png")
    with pytest.raises(InputError, match=re.escape(f"Did you mean {photos / 'val'}?")):
        images_of_classes(photos, Plain(), (8, 8), names=["cat", "dog"], count=2)


def test_digits_are_matched_by_name_too() -> None:
    sorted_digits = images_of_classes("digits", Plain(), (16, 16), names=(), count=10)
    names = [str(9 - index) for index in range(10)]
    turned = images_of_classes("digits", Plain(), (16, 16), names=names, count=10)
    assert [turned[i][1] for i in range(50)] == [9 - sorted_digits[i][1] for i in range(50)]
    with pytest.raises(InputError, match="digits are not the network's classes"):
        images_of_classes("digits", Plain(), (16, 16), names=("cat", "dog"), count=2)


def test_image_folder_works_in_a_loader(class_folder: Path) -> None:
    import torch
    from torch.utils.data import DataLoader

    images, labels = next(iter(DataLoader(ImageFolderDataset(class_folder, Plain(), (8, 8)), batch_size=4)))
    assert images.shape == (4, 3, 8, 8)
    assert images.dtype == torch.float32
    assert labels.tolist() == [0, 0, 1, 1]


def test_augmentation_depends_on_seed_epoch_and_index_only(class_folder: Path) -> None:
    def items(seed: int, epoch: int, order: range) -> dict[int, np.ndarray]:
        dataset = ImageFolderDataset(class_folder, Plain(), (8, 8), augment=True, seed=seed)
        dataset.set_epoch(epoch)
        return {i: dataset[i][0] for i in order}

    first, reverse = items(1, 2, range(6)), items(1, 2, range(5, -1, -1))
    for i in range(6):
        assert first[i].shape == (3, 8, 8)
        np.testing.assert_array_equal(first[i], reverse[i])
    for other in (items(1, 3, range(6)), items(2, 2, range(6))):
        assert any(not np.array_equal(first[i], other[i]) for i in range(6))


@settings(max_examples=30, deadline=None)
@given(source=st.tuples(st.integers(1, 60), st.integers(1, 60)), epoch=st.integers(0, 50))
def test_random_crop_stays_inside(
    tmp_path_factory: pytest.TempPathFactory, source: tuple[int, int], epoch: int
) -> None:
    root = tmp_path_factory.mktemp("white")
    save(root / "only" / "a.png", np.full((*source, 3), 255, np.uint8))
    dataset = ImageFolderDataset(root, Plain(interpolation="bilinear"), (8, 8), augment=True)
    dataset.set_epoch(epoch)
    np.testing.assert_array_equal(dataset[0][0], 1.0)


def test_image_folder_errors(class_folder: Path) -> None:
    with pytest.raises(InputError, match="no sub-folders"):
        ImageFolderDataset(class_folder / "cat", Plain(), (8, 8))
    (class_folder / "void").mkdir()
    with pytest.raises(InputError, match=r"void holds no images"):
        ImageFolderDataset(class_folder, Plain(), (8, 8))
    shutil.rmtree(class_folder / "void")
    with pytest.raises(InputError, match="missing dog; unknown bee, cat"):
        ImageFolderDataset(class_folder, Plain(), (8, 8), classes=("ant", "dog"))


@pytest.mark.parametrize("ending", ["jpg", "JPEG", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm"])
def test_folders_hold_the_formats_that_single_files_have(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    Image.fromarray(noise(9, 9, 3)).convert("L").save(path)
    assert image_paths(tmp_path) == (path,)
    np.testing.assert_array_equal(images_from_folder(tmp_path, Plain(), (8, 8))[0], load_image(path, Plain(), (8, 8)))


def test_what_runs_programs_is_no_image(tmp_path: Path) -> None:
    Image.fromarray(noise(9, 9, 3)).save(tmp_path / "a.eps")
    with pytest.raises(InputError, match=r"a\.eps is not an image that can be read"):
        load_image(tmp_path / "a.eps", Plain(), (8, 8))


def test_links_are_followed_but_never_in_circles(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("all/a/0.png", "all/b/1.png", "all/b/more/2.png"):
        save(tmp_path / name, noise(8, 8, 3))
    subset = tmp_path / "subset"
    (subset / "c").mkdir(parents=True)
    (subset / "a").symlink_to(tmp_path / "all" / "a")
    (subset / "c" / "b").symlink_to("../../all/b")
    assert [p.relative_to(subset).as_posix() for p in image_paths(subset)] == ["a/0.png", "c/b/1.png", "c/b/more/2.png"]
    assert ImageFolderDataset(subset, Plain(), (8, 8)).classes == ("a", "c")
    assert caplog.messages == []
    for name, target in (("up", ".."), ("root", str(tmp_path)), ("itself", "itself"), ("gone.png", "nowhere")):
        (subset / "c" / name).symlink_to(target)
    dataset = ImageFolderDataset(subset, Plain(), (8, 8))
    assert [(path.name, label) for path, label in dataset.samples] == [("0.png", 0), ("1.png", 1), ("2.png", 1)]
    assert len(image_paths(subset)) == 3
    for message in caplog.messages:
        assert str(subset) in message and "Left out: 4" in message
        for why in ("c/up: leads to a folder that it lies in", "c/gone.png: leads nowhere", "c/root", "c/itself"):
            assert why in message


def test_what_is_left_out_is_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path / "a" / "0.png", noise(8, 8, 3))
    for name in ("a/1.heic", "a/2", "stray.png", "a/.3.png", "a/list.csv", "a/.DS_Store"):
        (tmp_path / name).write_bytes(b"x")
    os.mkfifo(tmp_path / "a" / "pipe.jpg")
    dataset = ImageFolderDataset(tmp_path, Plain(), (8, 8))
    assert [path.name for path, _ in dataset.samples] == ["0.png"]
    [message] = caplog.messages
    assert "Left out: 5 (" in message
    for name in ("a/1.heic", "a/2", "stray.png: lies beside the classes", "a/.3.png: hidden", "a/pipe.jpg: is no file"):
        assert name in message
    caplog.clear()
    for number in range(20):
        (tmp_path / "a" / f"{number}.raw").write_bytes(b"x")
    image_paths(tmp_path / "a")
    assert "Left out: 24 (" in caplog.text and "and 19 more" in caplog.text
    (tmp_path / "a" / "0.png").unlink()
    with pytest.raises(InputError, match=r"holds no images.*Left out: 24"):
        image_paths(tmp_path / "a")


def test_a_folder_that_cannot_be_looked_into_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        save(tmp_path / name / "0.png", noise(8, 8, 3))
    scandir = os.scandir

    def refuse(folder: Path) -> object:  # As the system does for those who are not root.
        if Path(folder).name == "b":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    for look in (image_paths, lambda folder: ImageFolderDataset(folder, Plain(), (8, 8))):
        with pytest.raises(InputError, match=r"folder .*b: Permission denied"):
            look(tmp_path)


def test_broken_notes_of_a_camera_do_not_matter(tmp_path: Path) -> None:
    pixels = noise(16, 12, 3)
    plain = save(tmp_path / "plain.png", pixels)
    exif = Image.Exif()
    exif[274] = 6
    turned = load_image(save(tmp_path / "turned.png", pixels, exif=exif), Plain(), (8, 8))
    assert not np.array_equal(turned, load_image(plain, Plain(), (8, 8)))
    good = exif.tobytes()
    odd = {
        "cut": good[:20],
        "junk": b"Exif\0\0junk",
        "type": good.replace(b"\x01\x12\x00\x03", b"\x01\x12\x00\x02"),
        "none": b"",
    }
    assert odd["type"] != good
    exif[274] = 99
    odd["99"] = exif.tobytes()
    for name, value in odd.items():
        path = save(tmp_path / f"{name}.png", pixels, exif=value)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_array_equal(load_image(path, Plain(), (8, 8)), load_image(plain, Plain(), (8, 8)))


def test_whatever_a_decoder_raises_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", noise(8, 8, 3))
    for error, reason in (
        (struct.error("unpack requires a buffer"), r"a\.png: unpack requires.*damaged"),
        (TypeError(), r"a\.png: TypeError\. .*damaged"),
        (PermissionError(errno.EACCES, "Permission denied"), r"a\.png: Permission denied\.$"),
    ):

        def fail(self: Image.Image, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
        with pytest.raises(InputError, match=reason):
            load_image(path, Plain(), (8, 8))


@pytest.mark.parametrize("decoded", [0, 1 << 30])
def test_damaged_images_are_found_without_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: int
) -> None:
    monkeypatch.setattr("dyndeploy.data._DECODED_BYTES", decoded)
    paths = []
    for ending in ("jpg", "png", "bmp", "webp"):
        whole, cut = tmp_path / f"whole.{ending}", tmp_path / f"cut.{ending}"
        Image.fromarray(noise(64, 64, 3)).save(whole)
        cut.write_bytes(whole.read_bytes()[:-300])
        paths += [whole, cut]
    (tmp_path / "empty.jpg").touch()
    found = damaged_images([*paths, tmp_path / "empty.jpg", tmp_path / "gone.jpg"], threads=2)
    assert len(found) == 6
    for text, name in zip(found, ("cut.jpg", "cut.png", "cut.bmp", "cut.webp", "empty.jpg", "gone.jpg"), strict=True):
        assert name in text
