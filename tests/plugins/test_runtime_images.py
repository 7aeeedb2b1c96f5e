"""The runtime's preprocessing against Python's, bit by bit."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dyndeploy.bundle import Bundle, PreprocessingInfo
from dyndeploy.data import load_image
from dyndeploy.errors import InputError
from tests.bundles import resealed, tiny_bundle
from tests.plugins.conftest import RuntimeBuild
from tests.plugins.device_runtime import binding
from tests.plugins.odd_images import write_odd_images

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = (16, 16)
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
pytestmark = pytest.mark.usefixtures("onnxruntime_library")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle(tmp_path / "bundle", static=False)


@pytest.fixture(scope="module")
def odd_images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return write_odd_images(tmp_path_factory.mktemp("odd"))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("resize", [16, 37])
def test_odd_images_are_read_as_python_reads_them(
    runtime_build: RuntimeBuild, bundle: Bundle, odd_images: list[Path], interpolation: str, resize: int
) -> None:
    assert len(odd_images) >= 100
    info = PreprocessingInfo(resize, MEAN, STD, interpolation)
    opened = resealed(bundle, preprocessing=info)
    with binding().open_bundle(opened.path, library=runtime_build.library) as session:
        wrong = [
            path.name
            for path in odd_images
            if not np.array_equal(session.preprocess(path), load_image(path, info, SIZE))
        ]
    assert wrong == []


@pytest.fixture(scope="module")
def opened(
    runtime_build: RuntimeBuild, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[tuple[PreprocessingInfo, Any]]]:
    """A session for every filter and a few sizes."""
    kinds = [PreprocessingInfo(resize, MEAN, STD, name) for name in INTERPOLATIONS for resize in (1, 16, 23)]
    with ExitStack() as stack:
        sessions = []
        for info in kinds:
            tiny = tiny_bundle(tmp_path_factory.mktemp("bundle"), static=False)
            path = resealed(tiny, preprocessing=info).path
            sessions.append((info, stack.enter_context(binding().open_bundle(path, library=runtime_build.library))))
        yield sessions


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**31))
def test_any_size_is_resized_as_pillow_does(
    opened: list[tuple[PreprocessingInfo, Any]], tmp_path: Path, height: int, width: int, seed: int
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png", compress_level=0)
    for info, session in opened:
        np.testing.assert_array_equal(session.preprocess(pixels), load_image(tmp_path / "image.png", info, SIZE))


def _damaged(folder: Path) -> list[Path]:
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 70, 3), np.uint8))
    picture.save(folder / "whole.jpg")
    picture.save(folder / "whole.png")
    paths = []
    for name in ("whole.jpg", "whole.png"):
        content = (folder / name).read_bytes()
        for part in (0, 3, 40, len(content) // 2, len(content) - (2 if name.endswith("jpg") else 60)):
            paths.append(folder / f"{part}_{name}")
            paths[-1].write_bytes(content[:part])
    spoiled = bytearray((folder / "whole.png").read_bytes())
    spoiled[60] ^= 0xFF  # within the compressed rows: their checksum does not fit any more
    (folder / "spoiled.png").write_bytes(spoiled)
    (folder / "text.jpg").write_text("no image")
    bomb = struct.pack(">IIBBBBB", 200_000, 200_000, 8, 2, 0, 0, 0)
    content = (folder / "whole.png").read_bytes()
    (folder / "bomb.png").write_bytes(content[:16] + bomb + content[29:])
    return [*paths, folder / "spoiled.png", folder / "text.jpg", folder / "bomb.png", folder / "missing.png", folder]


def test_what_python_refuses_is_refused_in_one_line_that_names_the_file(
    runtime_build: RuntimeBuild, bundle: Bundle, tmp_path: Path
) -> None:
    module = binding()
    info = bundle.manifest.preprocessing
    assert info is not None
    with module.open_bundle(bundle.path, library=runtime_build.library) as session:
        for path in _damaged(tmp_path):
            with pytest.raises(InputError):
                load_image(path, info, SIZE)
            with pytest.raises(module.DyndeployError) as raised:
                session.preprocess(path)
            assert raised.value.code == 3
            assert str(path) in str(raised.value)
            assert "\n" not in str(raised.value)


def test_formats_that_only_python_reads_are_refused_by_name(
    runtime_build: RuntimeBuild, bundle: Bundle, tmp_path: Path
) -> None:
    module = binding()
    Image.new("RGB", (8, 8)).save(tmp_path / "image.bmp")
    with (
        module.open_bundle(bundle.path, library=runtime_build.library) as session,
        pytest.raises(module.DyndeployError, match=r"image\.bmp is not an image .* Give one of \.jpg"),
    ):
        session.preprocess(tmp_path / "image.bmp")


def test_a_png_that_ends_behind_its_pixels_is_read(runtime_build: RuntimeBuild, bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 70, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-12])
    info = bundle.manifest.preprocessing
    assert info is not None
    with binding().open_bundle(bundle.path, library=runtime_build.library) as session:
        np.testing.assert_array_equal(session.preprocess(path), load_image(path, info, SIZE))
