"""dyndeploy-run on videos and cameras, through GStreamer where it is installed."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dyndeploy.bundle import Bundle
from dyndeploy.inference import classify
from tests.bundles import tiny_bundle
from tests.plugins.conftest import SOURCES, RuntimeBuild
from tests.plugins.test_runtime import run_program

pytestmark = pytest.mark.usefixtures("onnxruntime_library")
HERE = Path(__file__).parent


def elements_missing(*names: str) -> bool:
    inspect = shutil.which("gst-inspect-1.0")
    return inspect is None or any(subprocess.run([inspect, "--exists", name], check=False).returncode for name in names)


needs_gstreamer = pytest.mark.skipif(
    elements_missing("videotestsrc", "jpegenc", "avimux", "theoraenc", "oggmux", "pngdec", "multifilesrc", "appsink"),
    reason="no GStreamer, or not its base and good plugins",
)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle(tmp_path / "bundle")


def video(path: Path, encoder: str, width: int = 161, height: int = 99) -> Path:
    """Seven frames of GStreamer's test picture."""
    size = f"video/x-raw,width={width},height={height},framerate=5/1"
    pipeline = f"videotestsrc num-buffers=7 pattern=ball ! {size} ! {encoder} ! filesink location={path}"
    subprocess.run(["gst-launch-1.0", "-q", *pipeline.split()], check=True, capture_output=True)
    return path


@needs_gstreamer
def test_frames_are_those_of_the_pictures(runtime_build: RuntimeBuild, bundle: Bundle, tmp_path: Path) -> None:
    """PNG files as a stream, of a width that GStreamer fills up: classes and rates are those of the files."""
    frames = np.random.default_rng(3).integers(0, 256, (5, 30, 41, 3), np.uint8)
    paths = [tmp_path / f"frame{index}.png" for index in range(5)]
    for path, frame in zip(paths, frames, strict=True):
        Image.fromarray(frame).save(path)
    source = f'multifilesrc location={tmp_path}/frame%d.png stop-index=4 caps="image/png,framerate=5/1" ! pngdec'
    done = run_program(runtime_build, bundle.path, f"gst://{source}", "--json", "--repeat", 2)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    wanted = classify(bundle, paths)
    assert [(line["label"], line["rates"]) for line in lines] == [(one.label, one.rates) for one in wanted]
    assert [line["image"] for line in lines] == [f"frame {index}" for index in range(5)]
    for line in lines:
        assert set(line) == set(wanted[0].to_json()) | {"preprocessing_ms", "capture_ms", "repeats"}
        times = line["repeats"]
        assert times["count"] == 2 and times["min_ms"] <= line["ms"] <= times["max_ms"]
    assert done.stderr.startswith("dyndeploy-run: 5 frames in ") and "of waiting for it" in done.stderr


@needs_gstreamer
@pytest.mark.parametrize(("name", "encoder"), [("film.ogv", "theoraenc ! oggmux"), ("film.AVI", "jpegenc ! avimux")])
def test_a_video_is_run_frame_by_frame(
    runtime_build: RuntimeBuild, bundle: Bundle, tmp_path: Path, name: str, encoder: str
) -> None:
    film = video(tmp_path / name, encoder)
    done = run_program(runtime_build, bundle.path, film, "--json")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 7), done.stderr
    if encoder.startswith("jpegenc"):  # a file that is cut off gives the frames that it holds
        film.write_bytes(film.read_bytes()[: film.stat().st_size * 2 // 3])
    done = run_program(runtime_build, bundle.path, film, "--limit", 3, "--statistics")
    assert done.returncode == 0
    summary, statistics = done.stderr.splitlines()
    assert "3 frames in" in summary and json.loads(statistics)["images"] == 3


@needs_gstreamer
def test_a_source_that_breaks_off_ends_in_one_line_after_its_results(
    runtime_build: RuntimeBuild, bundle: Bundle
) -> None:
    done = run_program(runtime_build, bundle.path, "gst://videotestsrc ! identity error-after=4", "--json")
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 3
    summary, error = done.stderr.splitlines()
    assert "3 frames in" in summary
    assert "broke off after 3 frames: Failed after iterations as requested" in error


@needs_gstreamer
@pytest.mark.parametrize(
    ("source", "code", "said"),
    [
        ("nowhere.mp4", 1, "there is no such file"),
        ("text.mp4", 1, "The video text.mp4 cannot be read"),
        ("csi://x", 2, "csi:// with its number"),
        ("v4l2://video0", 2, "v4l2:// with its device"),
        ("v4l2:///dev/video_none", 1, "The camera v4l2:///dev/video_none cannot be read"),
        ("gst://nonsense", 2, 'no element "nonsense"'),
        ("gst://videotestsrc num-buffers=0", 1, "it holds no frames"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(
    runtime_build: RuntimeBuild,
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.mp4").write_text("no video\n" * 100)
    done = run_program(runtime_build, bundle.path, source, "--json")
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == ""


def test_without_gstreamer_a_line_says_how_to_get_it(
    runtime_build: RuntimeBuild, bundle: Bundle, tmp_path: Path
) -> None:
    """A file of that name that is no library stands for a missing one."""
    (tmp_path / "libgstreamer-1.0.so.0").write_text("no library")
    (tmp_path / "film.mp4").write_bytes(b"film")
    done = run_program(runtime_build, bundle.path, tmp_path / "film.mp4", LD_LIBRARY_PATH=str(tmp_path))
    assert done.returncode == 1
    assert "read by GStreamer, which is not here" in done.stderr and done.stderr.count("\n") == 1
    done = run_program(runtime_build, bundle.path, tmp_path / "film.mp4", tmp_path)
    assert (done.returncode, "one video or camera" in done.stderr) == (2, True)


def test_the_declarations_of_gstreamer_hold() -> None:
    compiler, config = shutil.which("g++") or shutil.which("clang++"), shutil.which("pkg-config")
    if compiler is None or config is None:
        pytest.skip("no C++ compiler or no pkg-config")
    flags = subprocess.run([config, "--cflags", "gstreamer-app-1.0"], capture_output=True, text=True, check=False)
    if flags.returncode:
        pytest.skip("no GStreamer headers")
    done = subprocess.run(
        [compiler, "-std=c++14", "-fsyntax-only", *flags.stdout.split(), "-I", str(SOURCES / "program"),
         str(HERE / "check_gstreamer_abi.cpp")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_library_is_asked_by_the_name_that_the_system_has() -> None:
    """The names that are opened are those of GStreamer 1.x everywhere, where it is installed."""
    text = (SOURCES / "program" / "video.cpp").read_text()
    if elements_missing("appsink"):
        pytest.skip("no GStreamer")
    for name in ("libgstreamer-1.0.so.0", "libgstapp-1.0.so.0", "libglib-2.0.so.0"):
        assert name in text
        ctypes.CDLL(name)
