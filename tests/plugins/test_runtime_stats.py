"""dyndeploy-run --stats: lines into a file and to a socket, what they say, and what happens to both."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dyndeploy.bundle import Bundle
from dyndeploy.watching.reading import read_line
from dyndeploy.watching.sources import open_source
from tests.bundles import tiny_bundle
from tests.plugins.conftest import RuntimeBuild
from tests.plugins.test_runtime import run_program
from tests.staged_bundles import images, staged_bundle
from tests.watching.helpers import BOUNDS

pytestmark = pytest.mark.usefixtures("onnxruntime_library")
SIDE = 24


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle(tmp_path / "bundle")


def frames(count: int, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8).tobytes()


class Running:
    """dyndeploy-run that reads frames from a pipe, one by one as the test gives them."""

    def __init__(self, build: RuntimeBuild, bundle: Bundle, library: Path, *arguments: object) -> None:
        command = [build.program, bundle.path, "--frames", f"{SIDE}x{SIDE}", "--json", *arguments]
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "DYNDEPLOY_ONNXRUNTIME": str(library)},
        )  # fmt: skip

    def give(self, count: int) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(frames(count))
        self.process.stdin.flush()
        for _ in range(count):
            assert b'"label"' in self.process.stdout.readline()

    def end(self) -> int:
        """End the frames; returns the exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.stdin = None  # communicate() would flush it
        return self.process.wait(60)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def wait_for(path: Path, wanted: Any) -> list[Any]:
    """Whole lines of a file once they satisfy a condition."""
    for _ in range(3000):
        text = path.read_text() if path.exists() else ""
        found = [read_line(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        if found and wanted(found):
            return found
        time.sleep(0.02)
    raise AssertionError(text)


def test_lines_say_what_the_session_did(
    runtime_build: RuntimeBuild, bundle: Bundle, onnxruntime_library: Path, tmp_path: Path
) -> None:
    path = tmp_path / "stats.jsonl"
    with Running(runtime_build, bundle, onnxruntime_library, "--stats", path, "--stats-every", 0.05) as running:
        running.give(5)
        wait_for(path, lambda lines: lines[-1].counters.images == 5)
        running.give(7)
        wait_for(path, lambda lines: lines[-1].counters.images == 12)
        assert running.end() == 0
    *earlier, last = [read_line(line) for line in path.read_text().splitlines()]
    assert last.ended and not any(line.ended for line in earlier)
    assert last.counters.images == 12 and last.counters.failed == 0 and last.model == "tiny"
    assert last.started is not None and last.started[1] == running.process.pid and last.every == 0.05
    assert set(last.counters.rates) == {mask.name for mask in bundle.manifest.masks}
    assert last.counters.histogram is not None
    assert list(last.counters.histogram.bounds) == BOUNDS and sum(last.counters.histogram.counts) == 12
    assert last.recent_images == 12 and 0 < last.recent["p50"] <= last.recent["p95"] <= last.recent["p99"]
    for before, after in zip(earlier, [*earlier[1:], last], strict=True):
        # The very first image is run once more, and not counted: then counters may begin again.
        assert after.time >= before.time and (after.same_session(before) or before.counters.images <= 1)


def test_exits_and_failures_are_counted_and_sessions_add_to_a_file(runtime_build: RuntimeBuild, tmp_path: Path) -> None:
    bundle = staged_bundle(tmp_path / "staged")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index, pixels in enumerate(images(6)):
        Image.fromarray(((pixels.transpose(1, 2, 0) * 60 + 128).clip(0, 255)).astype(np.uint8)).save(
            pictures / f"{index}.png"
        )
    (pictures / "broken.png").write_text("no picture")
    path = tmp_path / "stats.jsonl"
    path.write_text('{"torn": ')  # by a disk that was full
    for _ in range(2):
        done = run_program(runtime_build, bundle.path, pictures, "--json", "--stats", path, "--stats-every", 3600)
        assert done.returncode == 1
    torn, *whole = path.read_text().splitlines()
    assert torn == '{"torn": ' and len(whole) == 2
    lines = [read_line(line) for line in whole]
    taken = [json.loads(line).get("exit") for line in done.stdout.splitlines()]
    for line in lines:
        assert (line.counters.images, line.counters.failed, line.ended) == (6, 1, True)
        assert line.counters.exits == {str(number): taken.count(number) for number in (1, 2, 4)}
        assert line.thresholds is not None and line.thresholds[:-1] == pytest.approx((0.5, 0.4))
    assert lines[0].started != lines[1].started


def test_a_rotated_file_is_made_anew(
    runtime_build: RuntimeBuild, bundle: Bundle, onnxruntime_library: Path, tmp_path: Path
) -> None:
    path = tmp_path / "stats.jsonl"
    with Running(runtime_build, bundle, onnxruntime_library, "--stats", path, "--stats-every", 0.05) as running:
        running.give(2)
        wait_for(path, lambda lines: lines[-1].counters.images == 2)
        path.rename(tmp_path / "old")
        running.give(3)
        wait_for(path, lambda lines: lines[-1].counters.images == 5)
    assert all(read_line(line).counters.images < 5 for line in (tmp_path / "old").read_text().splitlines())


def test_whoever_connects_gets_the_line_of_the_moment_and_the_next_ones(
    runtime_build: RuntimeBuild, bundle: Bundle, onnxruntime_library: Path, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    arguments = ("--stats", f"unix:{path}", "--stats-every", 3600)
    with Running(runtime_build, bundle, onnxruntime_library, *arguments) as running:
        running.give(3)
        assert path.stat().st_mode & 0o777 == 0o600
        source = open_source(f"unix:{path}")
        (now,) = source.poll()
        assert now.counters.images == 3  # type: ignore[union-attr]
        # A client that goes away, and one that never reads, trouble nobody.
        for _ in range(2):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                client.connect(str(path))
        second = Running(runtime_build, bundle, onnxruntime_library, *arguments)
        assert "another program answers" in second.process.communicate()[1].decode()
        assert second.process.returncode == 2
        running.give(2)
        assert running.end() == 0
        last, ended = source.poll()
        assert last.counters.images == 5 and last.ended  # type: ignore[union-attr]
        assert "the session has ended" in str(ended)
        source.close()
    assert not path.exists()


def test_the_socket_of_a_killed_session_is_taken_over(
    runtime_build: RuntimeBuild, bundle: Bundle, onnxruntime_library: Path, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    for _ in range(2):
        with Running(runtime_build, bundle, onnxruntime_library, "--stats", f"unix:{path}") as running:
            running.give(1)
            assert open_source(f"unix:{path}").poll()
        assert path.exists()  # killed


NVML = """
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **card) { *card = (char *)0 + i + 1; return 0; }
int nvmlDeviceGetPowerUsage(void *card, unsigned *mw) { *mw = 71500; return card == (char *)0 + 2; }
int nvmlDeviceGetTemperature(void *card, int kind, unsigned *degrees) { *degrees = 40 + kind; return 0; }
"""
"""NVIDIA's library as far as it is used, with two cards, of which the second one does not know its power."""


def test_cards_are_asked_for_power_and_temperature(runtime_build: RuntimeBuild, bundle: Bundle, tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    (tmp_path / "nvml.c").write_text(NVML)
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "nvml.c"], check=True)
    Image.new("RGB", (20, 20)).save(tmp_path / "picture.png")
    path = tmp_path / "stats.jsonl"
    done = run_program(
        runtime_build, bundle.path, tmp_path / "picture.png", "--stats", path, LD_LIBRARY_PATH=str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    reading = read_line(path.read_text().splitlines()[-1])
    assert reading.rails_mw["card 0"] == 71500 and "card 1" not in reading.rails_mw
    assert reading.temperatures_c["card 0"] == reading.temperatures_c["card 1"] == 40


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--stats", "{}/nowhere/stats"], "cannot write"),
        (["--stats", "{}"], "cannot write"),
        (["--stats", "/dev/null"], "cannot write"),
        (["--stats", "unix:{}/file"], "is there and no socket"),
        (["--stats", "unix:{}/nowhere/socket"], "no socket can be made"),
        (["--stats", "unix:"], "1 to 107 bytes, not 0"),
        (["--stats", "unix:/" + 200 * "x"], "1 to 107 bytes, not 201"),
        (["--stats", ""], "--stats takes a file"),
        (["--stats", "x", "--stats-every", "0"], "--stats-every takes seconds"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    runtime_build: RuntimeBuild, bundle: Bundle, tmp_path: Path, arguments: list[str], said: str
) -> None:
    (tmp_path / "file").write_text("mine")
    named = [each.format(tmp_path) for each in arguments]
    done = run_program(runtime_build, bundle.path, "--info", *named)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert said in done.stderr
    assert (tmp_path / "file").read_text() == "mine"
