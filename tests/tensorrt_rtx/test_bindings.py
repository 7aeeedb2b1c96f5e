"""TensorRT 11's own Python package runs dyndeploy's builder path: loading, plugins, engines, caches."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dyndeploy.ops import OPERATORS
from dyndeploy.runtimes.tensorrt_ahead import BuilderPackage, build_ahead
from tests.bundles import tiny_models
from tests.tensorrt_rtx import bindings

SCRIPT = Path(__file__).parent / "through_bindings.py"


@pytest.fixture(scope="module")
def tensorrt(rtx: BuilderPackage, tmp_path_factory: pytest.TempPathFactory) -> BuilderPackage:
    folder = bindings.folder()
    if folder is None or shutil.which("cc") is None:
        if os.environ.get("DYNDEPLOY_REQUIRE_RTX"):
            pytest.fail(f"{bindings.FOLDER_VARIABLE} does not name TensorRT's bindings")
        pytest.skip(f"no TensorRT bindings: set {bindings.FOLDER_VARIABLE}")
    return bindings.bindings_package(rtx, folder, tmp_path_factory.mktemp("links"))


PLUGINS = sum("tensorrt" in spec.kernels for spec in OPERATORS.values())


def through(package: BuilderPackage, folder: Path, library: Path, stand_ins: bool) -> dict[str, Any]:
    with package.process_environment() as environment:
        command = [sys.executable, str(SCRIPT), str(folder), str(library), str(int(stand_ins))]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    said: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return said


def check(said: dict[str, Any]) -> None:
    assert said["text"] == bindings.VERSION and said["version"][:2] == [11, 4]
    assert len(said["creators"]) == PLUGINS
    assert [engine["cached"] for engine in said["engines"]] == [[False, True]] * 4
    assert all(engine["same"] and engine["bytes"] > 100_000 for engine in said["engines"])
    assert [bool(engine["operators"]) for engine in said["engines"]] == [True, False, True, False]
    assert "fp16, types in the graph" in said["engines"][2]["plan"]
    assert said["files"] == 4 and said["timing_cache"] > 0
    assert "refuses the engine" in said["refused"], "a machine with a GPU would have read it"


def test_the_builder_path(tensorrt: BuilderPackage, tmp_path: Path) -> None:
    said = through(tensorrt, tmp_path, tensorrt.links["libnvinfer_plugin.so.11"], stand_ins=True)
    assert said["stand_ins"] == PLUGINS
    check(said)


def test_a_library_without_our_plugins_is_refused(tensorrt: BuilderPackage, tmp_path: Path) -> None:
    """NVIDIA's registry loads nothing from a library that has no plugins."""
    with pytest.raises(AssertionError, match="cannot use the plugin library"):
        through(tensorrt, tmp_path, tensorrt.links["libnvinfer_plugin.so.11"], stand_ins=False)


def test_engines_of_tensorrt_11_have_the_same_layers(tensorrt: BuilderPackage, rtx: BuilderPackage) -> None:
    source, _, _ = tiny_models("both")
    ours = build_ahead(source, "fp16", package=tensorrt, capabilities=())
    assert ours.plan.tensorrt == bindings.VERSION
    other = build_ahead(source, "fp16", package=rtx)
    assert [layer.nodes for layer in ours.built.plugins()] == [layer.nodes for layer in other.built.plugins()]
    assert ours.built.between_blocks() == ()
