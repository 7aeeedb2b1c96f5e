"""What TensorRT-RTX says of engines inside a session's process, on a machine without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dyndeploy.errors import UsageError
from dyndeploy.runtimes.cuda import GpuInfo
from dyndeploy.runtimes.tensorrt_ahead import BuilderPackage
from dyndeploy.runtimes.tensorrt_engine import ENGINES, EngineSettings
from dyndeploy.runtimes.tensorrt_rtx import build_bundle_ahead, build_rtx_engine
from tests.bundles import tiny_bundle
from tests.tensorrt_rtx import in_process

GPU = GpuInfo("NVIDIA GeForce RTX 4090", "8.9", "13.0", "13.0")


def test_a_session_finds_the_engine_that_was_built_ahead(rtx: BuilderPackage, tmp_path: Path) -> None:
    """Of the static twin: without plugins no plugin library is needed."""
    bundle = tiny_bundle(tmp_path / "b", target="rtx4090")
    [ahead] = build_bundle_ahead(bundle, EngineSettings(static=True), package=rtx)
    settings = EngineSettings(runtime="tensorrt_rtx").of(bundle)
    found = build_rtx_engine(bundle.load_static(), GPU, settings, package=rtx)
    assert found.cached and found.path == ahead.path and found.path.parent == bundle.path / ENGINES
    assert found.plan.tensorrt == rtx.text and found.plan.cuda_graph and found.library is None
    h200 = GpuInfo("NVIDIA H200", "9.0", "13.0", "13.0")
    with pytest.raises(UsageError, match=r"does not support compute capability 9\.0: it has engines for 7\.5, 8\.6"):
        build_rtx_engine(bundle.load_static(), h200, settings, package=rtx)

    # A process of its own has it refuse, in words, without a driver.
    command = [sys.executable, in_process.__file__, str(ahead.path)]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert ended.returncode == 0, ended.stderr[-3000:]
    said = json.loads(ended.stdout.splitlines()[-1])
    assert (said["text"], said["runtime"]) == (rtx.text, "tensorrt_rtx")
    assert said["lacking"] == {"real": [], "fake": []}
    assert "refuses the engine; its own messages stand above" in said["whole"]
    assert "refuses the engine (malformed engine); its own" in said["half"]
