"""The whole agent under the Python of a JetPack 4 board: 3.6 with the numpy and ONNX Runtime of that time."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path

import onnx
import onnxruntime
import pytest

import tests.bundles
from dyndeploy.remote import DeviceClient, DeviceEntry, payload, profile_on_device, profiling
from dyndeploy.remote.client import Content
from tests.remote.conftest import verifiable_bundle

PYTHON = os.environ.get("DYNDEPLOY_OLD_PYTHON")
PACKAGES = "import numpy, onnxruntime"


def usable() -> bool:
    return PYTHON is not None and subprocess.run([PYTHON, "-c", PACKAGES], capture_output=True).returncode == 0


def plain(content: Content, folder: Path) -> Content:
    """A graph of standard operators only: ONNX Runtime of that time knows no function bodies."""
    assert isinstance(content.source, bytes)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / f"{content.sha256}.onnx")
    onnxruntime.InferenceSession(content.source, options, providers=["CPUExecutionProvider"])
    model = onnx.load(options.optimized_model_filepath)
    model.ir_version = 7
    assert {node.domain for node in model.graph.node} == {""}
    del model.functions[:]
    imports = [entry for entry in model.opset_import if entry.domain == ""]
    del model.opset_import[:]
    model.opset_import.extend(imports)
    return Content.of(model.SerializeToString(deterministic=True))


@pytest.mark.skipif(
    not usable(), reason="DYNDEPLOY_OLD_PYTHON names no Python with numpy and onnxruntime (.ci/old-python)"
)
@pytest.mark.parametrize("mode", ["spatial", "both"])
def test_the_whole_way_under_an_old_python(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tests.bundles, "_OPSET", 13)
    bundle = verifiable_bundle(tmp_path / "bundle", mode)
    prepare = payload.device_graphs

    def graphs(*arguments: object) -> payload.Graphs:
        made = prepare(*arguments)  # type: ignore[arg-type]
        return dataclasses.replace(made, contents={name: plain(item, tmp_path) for name, item in made.contents.items()})

    monkeypatch.setattr(profiling, "device_graphs", graphs)
    board = DeviceEntry("old", "local:", work=str(tmp_path / "agent"), python=PYTHON)
    with DeviceClient(board.transport(), work=board.work) as client:
        report = profile_on_device(bundle, client, board, rates=(0.5,), repeats=4, warmup=1)
    assert report.facts["python"].startswith(("3.6.", "3.7.", "3.8.", "3.9."))
    assert len(report.checks) == 5 and all(check["passed"] for check in report.checks)
    assert report.profile.rates[0].samples.median > 0
    assert {block.name for block in report.profile.rates[0].blocks} == {"layer1.0", "layer2.0"}
    assert all(block.dynamic_ms > 0 for block in report.profile.rates[0].blocks)
