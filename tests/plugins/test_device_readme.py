"""The README of a bundle for a board, run line by line on this machine as far as it goes; and what is done by hand.

The runtime is not compiled once more: ``cmake`` configures what the bundle carries, and its build step takes what the
tests have built from the same sources. ``DYNDEPLOY_README_BUILD=1`` compiles it (a minute).
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from dyndeploy import ExportSettings, export_model
from dyndeploy.bundle import Bundle
from dyndeploy.bundle.device_files import write_device_folder
from dyndeploy.bundle.device_readme import BUILD_PACKAGES, CAMERA_PACKAGES
from dyndeploy.cli import COMMANDS, build_app
from dyndeploy.data import sample_photographs
from tests.export.conftest import lively_network
from tests.plugins.conftest import RuntimeBuild
from tests.remote.test_energy import tegrastats
from tests.staged_bundles import staged_bundle

BLOCK = re.compile(r"^```(sh|py) ([\w ]+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PYTHONS = [sys.executable, *filter(None, [os.environ.get("DYNDEPLOY_OLD_PYTHON")])]
ELSEWHERE = {"ssh", "stick", "apt", "network", "tensorrt", "camera", "prebuilt"}
"""Needs of blocks that this machine does not meet."""

CMAKE = """#!/bin/sh
# Configures as cmake does; what a build makes is taken from a build of the same sources.
if [ "$1" = --build ] && [ -z "$DYNDEPLOY_README_BUILD" ]; then
  grep -q "dyndeploy_runtime" CMakeCache.txt && cp {build}/libdyndeploy.so {build}/dyndeploy-run . && exit 0
fi
exec {cmake} "$@"
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("readme") / "bundle"
    settings = ExportSettings(target="nano", static=True, input_size=(40, 48))
    return export_model(lively_network("spatial"), folder, settings)


@pytest.fixture
def board(
    bundle: Bundle, runtime_build: RuntimeBuild, onnxruntime_library: Path, tmp_path: Path
) -> tuple[Path, dict[str, str]]:
    """A copy of the device folder as a board has it, and the environment of a shell there."""
    folder = Path(shutil.copytree(bundle.path, tmp_path / "bundle")) / "device"
    shutil.copyfile(sample_photographs()[0], folder / "photo.jpg")
    tools = tmp_path / "tools"
    tools.mkdir()
    cmake = shutil.which("cmake")
    for name, text in (
        ("cmake", CMAKE.format(build=runtime_build.library.parent, cmake=cmake)),
        ("dyndeploy", f'#!/bin/sh\nexec {sys.executable} -m dyndeploy.cli "$@"\n'),
        ("python3", f'#!/bin/sh\nexec {sys.executable} "$@"\n'),
    ):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    environment |= {"DYNDEPLOY_ONNXRUNTIME": str(onnxruntime_library), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("DYNDEPLOY_RUNTIME", None)
    return folder, environment


def blocks(folder: Path) -> list[tuple[str, set[str], str]]:
    """Language, where it runs and what it needs, and text of every block."""
    page = (folder / "README.md").read_text()
    found = [(kind, set(words.split()), text) for kind, words, text in BLOCK.findall(page)]
    assert len(found) == page.count("```") // 2, "every block says where it runs"
    return found


def shell(text: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-e", "-c", text], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def test_every_line_runs_or_names_what_exists(board: tuple[Path, dict[str, str]]) -> None:
    folder, environment = board
    gstreamer = shutil.which("gst-launch-1.0") is not None
    ran = []
    for kind, needs, text in blocks(folder):
        if kind == "py":
            done = subprocess.run(
                [sys.executable, "-c", text], cwd=folder, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            # A line that can be read, however many classes there are.
            assert re.fullmatch(r"Classification\(label=\d+, .*, logits=<10 values>\)\n", done.stdout), done.stdout
            continue
        if needs & ELSEWHERE or ("gstreamer" in needs and not gstreamer):
            check_words(text, folder)
            continue
        if text.startswith("cd "):  # to where this is
            continue
        if "build/runtime" in text:
            shutil.rmtree(folder / "built")
        done = shell(text, folder, environment)
        assert done.returncode == 0, f"{text}: {done.stdout} {done.stderr}"
        ran.append((text, done.stdout))
    said = "\n".join(out for _, out in ran)
    assert len(ran) == 5 + gstreamer
    assert "runtime: compiled here" in said
    assert "plugins: left out: this machine has no TensorRT headers" in said or "plugins: compiled here" in said
    assert "verified: " in said and "static twin" in said
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert {"label", "confidence", "ms", "rates"} <= set(lines[0]) and lines[0]["image"] == "photo.jpg"
    assert (folder / "built" / "libdyndeploy.so").is_file() and os.access(folder / "built" / "dyndeploy-run", os.X_OK)
    assert (folder / "trtexec.sh").read_text().count("trtexec --") == 2
    assert f"--onnx=trtexec{os.sep}model.fp32.trt.onnx" in (folder / "trtexec.sh").read_text()
    assert (folder / "trtexec" / "model.fp32.trt.onnx").is_file()


def check_words(text: str, folder: Path) -> None:
    """Paths that a line names are carried, commands of dyndeploy know its options, projects its definitions."""
    for line in text.splitlines():
        words = shlex.split(line.replace("(", " ").replace(")", " "), comments=True)
        for path in re.findall(r"\.\./\.\./(plugins/[\w/]+)", line):
            assert (folder / path / "CMakeLists.txt").is_file(), path
        for name in re.findall(r"-D(DYNDEPLOY_\w+)=", line):
            carried = [path.read_text() for path in (folder / "plugins").rglob("CMakeLists.txt")]
            assert any(f"({name} " in project for project in carried), name
        if words[:1] == ["dyndeploy"]:
            check_command(words[1:])


def check_command(words: list[str]) -> None:
    assert words[0] in COMMANDS
    command = typer.main.get_command(build_app()).commands[words[0]]  # type: ignore[attr-defined]
    if hasattr(command, "commands"):
        words = words[1:]
        command = command.commands[words[0]]
    known = {name for parameter in command.params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_a_network_with_exits(runtime_build: RuntimeBuild, onnxruntime_library: Path, tmp_path: Path) -> None:
    bundle = staged_bundle(tmp_path / "b", batch=1)
    write_device_folder(bundle.path, bundle.manifest)
    folder = bundle.path / "device"
    page = (folder / "README.md").read_text()
    given = re.search(r"`--thresholds ([\d.,]+)`", page)
    assert given is not None and len(given.group(1).split(",")) == len(bundle.exits.stages) - 1
    assert "is the sum of theirs" in page.replace("\n", " ")
    (folder / "built").mkdir()
    shutil.copyfile(runtime_build.library, folder / "built" / "libdyndeploy.so")
    tools = tmp_path / "tools"
    tools.mkdir()
    tegrastats(tools)
    (tools / "loaded").touch()
    environment = {**os.environ, "DYNDEPLOY_ONNXRUNTIME": str(onnxruntime_library)}
    environment["PATH"] = f"{tools}:{environment['PATH']}"
    done = shell(f"{sys.executable} agent.py profile .. --json --repeats 2 --energy-seconds 0.4", folder, environment)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    names = [row["name"] for row in result["results"]]
    assert names == ["static twin", *(f"exit {stage.exit}" for stage in bundle.exits.stages)]
    assert all(row["median_ms"] > 0 for row in result["results"])
    assert result["energy"]["rail"] == "POM_5V_IN" and result["energy"]["source"] == "tegrastats"
    assert all(row["mj_per_image"] == pytest.approx(7654 * row["mj_per_image"] / row["power_mw"]) for row in
               result["results"])  # fmt: skip


def test_the_documentation_names_the_same_packages() -> None:
    page = (Path(__file__).parents[2] / "docs" / "boards.md").read_text()
    assert f"apt-get install -y {' '.join((*BUILD_PACKAGES, *CAMERA_PACKAGES))}\n" in page


@pytest.mark.parametrize("python", PYTHONS)
def test_by_hand(python: str, board: tuple[Path, dict[str, str]], runtime_build: RuntimeBuild) -> None:
    folder, environment = board
    (folder / "built").mkdir()
    shutil.copyfile(runtime_build.library, folder / "built" / "libdyndeploy.so")

    def agent(*arguments: str, code: int = 0) -> tuple[str, str]:
        done = subprocess.run(
            [python, "agent.py", *arguments], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == code, done.stderr
        return done.stdout, done.stderr

    for command in ("build", "run", "verify", "profile"):
        assert f"agent.py {command}" in agent(command, "--help")[0]
    line = json.loads(agent("run", "..", "photo.jpg", "--json")[0])
    assert line["image"] == "photo.jpg" and set(line["rates"]) and line["exit"] is None
    assert json.loads(agent("verify", "..", "--json")[0])["verified"] is True
    result = json.loads(agent("profile", "..", "--json", "--repeats", "3")[0])
    network, twin = result["results"][1], result["results"][0]
    assert [twin["name"], network["name"]] == ["static twin", "network"]
    assert result["rounds"] == 3 and network["speedup"] > 0 and 0 < network["mean_rate"] < 1
    assert result["energy"] is None and network["mj_per_image"] is None
    for arguments, code, message in (
        (["run", "..", "missing.jpg"], 1, "missing.jpg"),
        (["verify", "nowhere"], 1, "nowhere"),
        (["profile", ".", "--json"], 1, "no bundle.json"),
        (["run", "..", "photo.jpg", "--thresholds", "0.5"], 1, "has no exits"),
        (["profile", "..", "--repeats", "0"], 2, "at least 1"),
    ):
        out, err = agent(*arguments, code=code)
        assert out == "" and message in err and "Traceback" not in err
    (folder / "by_hand.py").unlink()
    assert "copy the whole device folder" in agent("run", "..", "photo.jpg", code=2)[1]


def test_a_board_without_tools_takes_what_is_prebuilt(board: tuple[Path, dict[str, str]]) -> None:
    folder, environment = board
    empty = folder / "nothing"
    empty.mkdir()
    environment = {**environment, "PATH": str(empty)}

    def build(code: int) -> tuple[str, str]:
        # The agent looks where a login without a profile does not: not in this test.
        call = "agent.main(['build', '--json', '--no-plugins'])"
        program = f"import sys, agent; agent.tool = lambda name: None; sys.exit({call})"
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == code, done.stderr
        return done.stdout, done.stderr

    assert "nothing prebuilt for" in build(1)[1]
    ready = folder / "prebuilt" / os.uname().machine
    ready.mkdir(parents=True)
    (ready / "libdyndeploy.so").write_bytes(b"library")
    assert json.loads(build(0)[0])["runtime"].startswith("prebuilt (cmake is missing)")
    assert (folder / "built" / "libdyndeploy.so").read_bytes() == b"library"
