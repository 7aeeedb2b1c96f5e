"""Bundles for boards carry the agent, and the sources of the runtime and of the plugins."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dyndeploy import files
from dyndeploy.bundle import Bundle, Manifest
from dyndeploy.bundle.device_files import (
    PLUGIN_FOLDERS,
    PREBUILT_VARIABLE,
    RUNTIME_FOLDERS,
    device_files,
    plugin_sources,
    runtime_sources,
)
from tests.bundles import tiny_bundle

ROOT = Path(__file__).parents[2]


def nano_manifest(folder: Path) -> Manifest:
    return replace(tiny_bundle(folder).manifest, target="nano")


def test_everything_that_a_board_builds_is_found(tmp_path: Path) -> None:
    sources = {**plugin_sources(), **runtime_sources()}
    for folder in (*PLUGIN_FOLDERS, *RUNTIME_FOLDERS):
        here = ROOT / "plugins" / folder
        found = [here] if here.is_file() else here.rglob("*.[ch]*")
        wanted = {path.relative_to(ROOT / "plugins").as_posix() for path in found if path.is_file()}
        assert wanted and wanted <= set(sources)
    content = device_files(nano_manifest(tmp_path / "b"))
    remote = ROOT / "dyndeploy" / "remote"
    for name, path in (
        ("agent.py", remote / "agent.py"),
        ("by_hand.py", remote / "by_hand.py"),
        ("loop.py", ROOT / "dyndeploy" / "measure" / "loop.py"),
        ("tensorrt_device.py", ROOT / "dyndeploy" / "runtimes" / "tensorrt_device.py"),
        ("dyndeploy_runtime.py", ROOT / "plugins" / "runtime" / "python" / "dyndeploy_runtime.py"),
    ):
        assert content[name] == path.read_bytes()
    for name, path in sources.items():
        assert content[f"plugins/{name}"] == path.read_bytes()
    # Compilers look there.
    folders = ["adapters/tensorrt", "kernels/cuda", "adapters/onnxruntime", "runtime/src", "runtime/include"]
    for name, path in sources.items():
        for include in re.findall(r'^#include "(.+)"', path.read_text(), re.MULTILINE):
            places = (path.parent, *(ROOT / "plugins" / folder for folder in folders))
            found = [folder / include for folder in places if (folder / include).is_file()]
            carried = [file.resolve().relative_to(ROOT / "plugins").as_posix() for file in found]
            assert carried and carried[0] in sources, f"{name} includes {include}, which a board does not get"
    # The operators for processors are compiled for boards, not on them.
    assert not any(name.startswith("plugins/kernels/cpu") for name in content)


def test_prebuilt_files_are_carried_and_can_be_executed(
    make_bundle: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "prebuilt" / "aarch64"
    folder.mkdir(parents=True)
    for name in ("dyndeploy-run", "libdyndeploy.so", "libdyndeploy_ort_cpu.so", "notes.txt"):
        (folder / name).write_bytes(name.encode())
    monkeypatch.setenv(PREBUILT_VARIABLE, str(tmp_path / "prebuilt"))
    bundle = make_bundle("spatial", target="nano", input_size=(40, 40))
    carried = sorted(path.name for path in (bundle.path / "device" / "prebuilt" / "aarch64").iterdir())
    assert carried == ["dyndeploy-run", "libdyndeploy.so", "libdyndeploy_ort_cpu.so"]
    assert os.access(bundle.path / "device" / "prebuilt" / "aarch64" / "dyndeploy-run", os.X_OK)
    assert bundle.damaged_files() == {}
    assert "Prebuilt for `aarch64`" in (bundle.path / "device" / "README.md").read_text()


def test_a_bundle_for_a_board_is_whole(make_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = make_bundle("spatial", target="nano", input_size=(40, 48))
    carried = {name.removeprefix("device/") for name in bundle.manifest.files if name.startswith("device/")}
    assert carried == {*device_files(bundle.manifest), "engines.json", "engines/model.onnx"}
    assert (bundle.path / "device" / "README.md").read_text().startswith("# laud_resnet14_small on NVIDIA Jetson Nano")
    assert bundle.manifest.files["device/agent.py"] == files.sha256(ROOT / "dyndeploy" / "remote" / "agent.py")
    assert bundle.damaged_files() == {}
    copy = Bundle.open(shutil.copytree(bundle.path, tmp_path / "copy"))
    (copy.path / "device" / "agent.py").write_text("print('other')\n")
    assert copy.damaged_files() == {"device/agent.py": "content does not match its checksum"}


def test_a_bundle_for_a_processor_needs_none(make_bundle: Callable[..., Bundle]) -> None:
    bundle = make_bundle("spatial", input_size=(40, 48))
    assert not any(name.startswith("device/") for name in bundle.manifest.files)
    assert not (bundle.path / "device").exists()
