"""Examples for applications: C++ by CMake's find_package, and GStreamer in the system's Python."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dyndeploy.inference import classify
from tests.bundles import tiny_bundle
from tests.detector_bundles import detector_bundle_by_hand
from tests.plugins.conftest import RuntimeBuild, onnxruntime_library, runtime_build  # noqa: F401
from tests.plugins.device_runtime import BINDING, binding

EXAMPLES = Path(__file__).parents[2] / "examples" / "applications"


def pictures(folder: Path) -> list[Path]:
    pixels = np.random.default_rng(3).integers(0, 256, (2, 40, 52, 3), np.uint8)
    paths = [folder / f"picture{index}.png" for index in range(2)]
    for path, each in zip(paths, pixels, strict=True):
        Image.fromarray(each).save(path)
    return paths


def environment(library: Path, build: RuntimeBuild) -> dict[str, str]:
    return {
        **os.environ, "DYNDEPLOY_ONNXRUNTIME": str(library), "DYNDEPLOY_RUNTIME": str(build.library),
        "PYTHONPATH": str(BINDING.parent),
    }  # fmt: skip


@pytest.fixture
def example(runtime_build: RuntimeBuild, tmp_path: Path) -> Path:  # noqa: F811
    folder = tmp_path / "example"
    made = [f"-Ddyndeploy_DIR={runtime_build.library.parent}", "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror"]
    for command in (["cmake", "-S", EXAMPLES, "-B", folder, *made], ["cmake", "--build", folder]):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "example"


def test_the_program_in_c_plus_plus_classifies_and_detects(
    runtime_build: RuntimeBuild,  # noqa: F811
    onnxruntime_library: Path,  # noqa: F811
    example: Path,
    tmp_path: Path,
) -> None:
    paths = pictures(tmp_path)

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(example), *map(str, arguments)],
            env=environment(onnxruntime_library, runtime_build), capture_output=True, text=True, check=False,
        )  # fmt: skip

    bundle = tiny_bundle(tmp_path / "bundle")
    done = run("classify", bundle.path, *paths)
    assert done.returncode == 0, done.stderr
    *lines, statistics = done.stdout.splitlines()
    for line, path, wanted in zip(lines, paths, classify(bundle, paths), strict=True):
        assert line.startswith(f"{path}: {wanted.label} {wanted.confidence:.4f}, exit 0, ")
    assert json.loads(statistics)["images"] == 2

    detector = detector_bundle_by_hand(tmp_path / "detector")
    done = run("detect", detector.path, paths[0])
    assert done.returncode == 0, done.stderr
    # Which tests/plugins/test_runtime_detectors.py holds against Python's.
    with binding().open_bundle(
        detector.path, library=runtime_build.library, onnxruntime=onnxruntime_library
    ) as session:
        wanted = session.detect(paths[0])
    first, *found, _ = done.stdout.splitlines()
    assert first.startswith(f"{paths[0]}: {len(wanted.scores)} found, ") and len(found) == len(wanted.scores) > 0
    for line, score, box in zip(found, wanted.scores, wanted.boxes, strict=True):
        x1, y1, x2, y2 = box
        assert line.endswith(f" {score:.4f} at {x1:.1f}, {y1:.1f} to {x2:.1f}, {y2:.1f}")

    for arguments, code, said in (
        (("classify", tmp_path / "nowhere", paths[0]), 1, "example: "),
        (("classify", bundle.path, tmp_path / "no.png"), 1, "no.png"),
        (("look", bundle.path, paths[0]), 2, "usage: "),
    ):
        done = run(*arguments)
        assert (done.returncode, done.stderr.count("\n"), said in done.stderr) == (code, 1, True), done.stderr


SYSTEM_PYTHON = "/usr/bin/python3"


FIND_GSTREAMER = """
import gi, numpy, sys
gi.require_version("Gst", "1.0")
from gi.repository import Gst
Gst.init(None)
sys.exit(not all(map(Gst.ElementFactory.find, ("videotestsrc", "videoconvert", "appsink"))))
"""


def gstreamer_is_missing() -> bool:
    if shutil.which(SYSTEM_PYTHON) is None:
        return True
    return bool(subprocess.run([SYSTEM_PYTHON, "-c", FIND_GSTREAMER], capture_output=True, check=False).returncode)


@pytest.mark.skipif(gstreamer_is_missing(), reason="no GStreamer, or no python3-gi and python3-numpy of the system")
def test_frames_of_a_pipeline_are_those_that_dyndeploy_run_sees(
    runtime_build: RuntimeBuild,  # noqa: F811
    onnxruntime_library: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Of a width that GStreamer fills up to four bytes."""
    bundle = tiny_bundle(tmp_path / "bundle")
    source = "videotestsrc num-buffers=6 pattern=ball ! video/x-raw,format=RGB,width=41,height=30,framerate=5/1"
    env = environment(onnxruntime_library, runtime_build)

    def run(*command: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True, check=False)

    program = run(runtime_build.program, bundle.path, f"gst://{source}", "--json")
    wanted = [json.loads(line) for line in program.stdout.splitlines()]
    assert len(wanted) == 6, program.stderr
    script = EXAMPLES / "gstreamer_appsink.py"
    done = run(SYSTEM_PYTHON, script, bundle.path, source)
    assert done.returncode == 0, done.stderr
    *lines, statistics = done.stdout.splitlines()
    for number, (line, each) in enumerate(zip(lines, wanted, strict=True)):
        assert line.startswith(f"frame {number}: {each['label']} {each['confidence']:.4f}, exit None, ")
    assert "'images': 6" in statistics

    for arguments, said in (
        ((bundle.path, "videotestsrc ! nonsense"), "nonsense"),
        ((bundle.path, "videotestsrc ! identity error-after=3"), "Failed after iterations as requested"),
        ((tmp_path / "nowhere", source), "nowhere"),
    ):
        done = run(SYSTEM_PYTHON, script, *arguments)
        assert done.returncode == 1 and said in done.stderr.splitlines()[-1], done.stderr
        assert "Traceback" not in done.stderr
