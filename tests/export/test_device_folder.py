"""Bundles for boards carry the agent and the plugin sources."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from dyndeploy import files
from dyndeploy.bundle import Bundle
from dyndeploy.bundle.device_files import PLUGIN_FOLDERS, device_files, plugin_sources

ROOT = Path(__file__).parents[2]


def test_everything_that_a_board_builds_is_found() -> None:
    sources = plugin_sources()
    for folder in PLUGIN_FOLDERS:
        here = ROOT / "plugins" / folder
        wanted = {path.relative_to(ROOT / "plugins").as_posix() for path in here.rglob("*.[ch]*") if path.is_file()}
        assert wanted <= set(sources)
    content = device_files()
    assert content["agent.py"] == (ROOT / "dyndeploy" / "remote" / "agent.py").read_bytes()
    for name, path in (("loop.py", "measure/loop.py"), ("tensorrt_device.py", "runtimes/tensorrt_device.py")):
        assert content[name] == (ROOT / "dyndeploy" / path).read_bytes()
    for name, path in sources.items():
        assert content[f"plugins/{name}"] == path.read_bytes()
    folders = [ROOT / "plugins" / folder for folder in ("adapters/tensorrt", "kernels/cuda")]  # compilers look there
    for name, path in sources.items():
        for include in re.findall(r'^#include "(.+)"', path.read_text(), re.MULTILINE):
            found = [folder / include for folder in (path.parent, *folders) if (folder / include).is_file()]
            carried = [file.resolve().relative_to(ROOT / "plugins").as_posix() for file in found]
            assert carried and carried[0] in sources, f"{name} includes {include}, which a board does not get"
    assert not any("onnxruntime" in name or "kernels/cpu" in name for name in content)


def test_a_bundle_for_a_board_is_whole(make_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = make_bundle("spatial", target="nano", input_size=(40, 48))
    carried = {name.removeprefix("device/") for name in bundle.manifest.files if name.startswith("device/")}
    assert carried == {*device_files(), "engines.json", "engines/model.onnx"}
    assert bundle.manifest.files["device/agent.py"] == files.sha256(ROOT / "dyndeploy" / "remote" / "agent.py")
    assert bundle.damaged_files() == {}
    copy = Bundle.open(shutil.copytree(bundle.path, tmp_path / "copy"))
    (copy.path / "device" / "agent.py").write_text("print('other')\n")
    assert copy.damaged_files() == {"device/agent.py": "content does not match its checksum"}


def test_a_bundle_for_a_processor_needs_none(make_bundle: Callable[..., Bundle]) -> None:
    bundle = make_bundle("spatial", input_size=(40, 48))
    assert not any(name.startswith("device/") for name in bundle.manifest.files)
    assert not (bundle.path / "device").exists()
