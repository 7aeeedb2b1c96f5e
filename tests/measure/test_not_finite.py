"""Times of wrong results are worth nothing: nothing is measured or calibrated on what is not finite."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper

from dyndeploy.cli import run
from dyndeploy.device_calibration.graphs import micro_graph
from dyndeploy.device_calibration.measure import measure
from dyndeploy.errors import NotFiniteError
from dyndeploy.measure import profile_bundle
from dyndeploy.measure.exits import profile_exits
from tests.bundles import tiny_bundle
from tests.digits_bundles import digits_bundle
from tests.spoiled import BAD, spoiled
from tests.staged_bundles import EXITS, staged_bundle


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("file", ["model.onnx", "static.onnx"])
def test_a_network_or_its_twin_is_not_profiled(tmp_path: Path, value: float, file: str) -> None:
    bundle = spoiled(tiny_bundle(tmp_path / "b"), file, "head.b", value)
    with pytest.raises(NotFiniteError, match="'logits' holds"):
        profile_bundle(bundle, repeats=2, warmup=1)
    assert run(["profile", str(bundle.path), "--repeats", "2", "--json", str(tmp_path / "p.json")]) == 1
    assert not (tmp_path / "p.json").exists()


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_exits_are_not_profiled(tmp_path: Path, stage: int) -> None:
    bundle = spoiled(staged_bundle(tmp_path / "b"), f"stage{stage}.onnx", "head/b", float("nan"))
    with pytest.raises(NotFiniteError, match=f"exit {EXITS[stage]}: "):
        profile_exits(bundle, repeats=2, warmup=1)


@pytest.mark.parametrize(("stage", "weight"), [(0, "b1"), (1, "b2"), (3, "c4")])
@pytest.mark.parametrize("value", BAD)
def test_thresholds_are_not_calibrated(
    tmp_path: Path, stage: int, weight: str, value: float, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = spoiled(digits_bundle(tmp_path / "b"), f"stage{stage}.onnx", weight, value)
    before = (bundle.path / "bundle.json").read_bytes()
    assert run(["calibrate", str(bundle.path), "--data", "digits", "--limit", "40", "--json"]) == 1
    printed = capsys.readouterr()
    assert f"exit {stage + 1}: " in printed.err and not printed.out
    assert (bundle.path / "bundle.json").read_bytes() == before


def test_a_device_is_not_calibrated_on_wrong_results() -> None:
    graph = micro_graph("plain", 1)
    read = {name for node in graph.model.graph.node if node.op_type in ("Conv", "Gemm") for name in node.input[1:2]}
    tensor = next(t for t in graph.model.graph.initializer if t.name in read)
    tensor.CopyFrom(numpy_helper.from_array(np.full(tuple(tensor.dims), np.nan, np.float32), tensor.name))
    with pytest.raises(NotFiniteError):
        measure([graph], draws=1, rounds=1)
