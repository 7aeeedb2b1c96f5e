"""The CPU benchmark's arithmetic and models; it asserts no time."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

from dyndeploy.ops import OPERATORS, Element
from dyndeploy.runtimes import OnnxRuntimeSession, find_cpu_library
from dyndeploy.runtimes.native import ISA_VARIABLE
from tests.bundles import tiny_bundle


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports one of its modules, as the script beside them does."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks" / "cpu"))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def row(contestant: str = "best", rate: float | None = 1.0, realised: float = 1.0, **changes: Any) -> dict[str, Any]:
    ideal = 1.0 if rate is None else {1.0: 1.0, 0.5: 2.0}[rate]
    value = {
        "network": "laud_resnet50", "mode": "spatial", "granularity": "4-4-2-1", "batch": 1, "threads": 1,
        "contestant": contestant, "rate": rate, "realised_speedup": realised, "ideal_speedup": ideal,
        "realised_spread": [0.9 * realised, 1.1 * realised],
    }  # fmt: skip
    return {**value, **changes}


def test_limits(benchmark: Any) -> None:
    limits = benchmark("limits")
    rows = [
        row(realised=0.995), row(realised=0.995, threads=2), row(realised=1.01, mode="both", batch=8),
        row(rate=0.5, realised=1.96), row(realised=0.1, network="laud_resnet14_small"),
        row(realised=0.1, granularity="1-1-1-1"), row(realised=0.1, threads=4),
    ]  # fmt: skip
    found = [
        (o.limit.row, o.row["threads"], o.least, round(o.measured, 3), o.verdict)
        for o in limits.outcomes(rows, "4-4-2-1", "avx512")
    ]
    assert found == [
        ("rate 1.0, every mode", 1, 1.0, 0.995, "**missed**"),
        ("rate 1.0, every mode", 2, 0.99, 0.995, "met"),
        ("rate 1.0, every mode", 1, 1.0, 1.01, "met"),
        ("spatial 0.5", 1, 1.0, 0.98, "**missed**"),
    ]
    # A machine without AVX-512: shares may be less by 0.03, rate 1.0 may not.
    found = {o.limit.row: (o.least, o.verdict) for o in limits.outcomes(rows[:1] + rows[3:4], "4-4-2-1", "avx2")}
    assert found == {"rate 1.0, every mode": (1.0, "**missed**"), "spatial 0.5": (0.97, "met")}
    lines = limits.section(rows, "4-4-2-1", "avx512").splitlines()
    where = "laud_resnet50 spatial, batch 1"
    assert (
        f"| rate 1.0, every mode | 1 | speed over the static twin | 1.00 | 0.995 | {where} | **missed** (1 of 2 met) |"
        in lines
    )
    assert "| layer 0.5 | 2 | share of ideal | 0.98 | not measured | | |" in lines


def test_bf16_is_compared_with_openvino(benchmark: Any) -> None:
    limits = benchmark("limits")
    rows = [row("bf16", realised=1.8), row("openvino-bf16", None, 2.0), row("bf16", realised=1.8, threads=2)]
    (outcome,) = limits.outcomes(rows, "4-4-2-1", "avx512")
    assert outcome.measured == pytest.approx(0.9) and outcome.spread == pytest.approx((0.81, 0.99))
    assert outcome.verdict == "**missed**", "with two threads there is nothing to compare with"


def test_contestants_leave_the_environment_alone(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    contestants = benchmark("contestants")
    library = find_cpu_library()
    monkeypatch.delenv(ISA_VARIABLE, raising=False)
    dynamics, left_out = contestants.dynamics("off", None)
    assert [entry.name for entry in dynamics] == ["bodies"] and left_out == ["the operator library: switched off"]
    if library is None:
        pytest.skip("native library not built")
    dynamics, _ = contestants.dynamics("auto", None)
    names = [entry.name for entry in dynamics]
    assert names[0] == "best" and names[-1] == "bodies" and "generic" not in names
    assert set(names) - {"best", "bodies", "bf16"} == set(library.instruction_sets()[1:-1])
    with contestants.Dynamic("x", isa="generic").open(
        benchmark("small").one_operator(OPERATORS["LayerBottleneck"]).model, 1
    ) as s:
        assert s.info.native.instruction_set == "generic"
    assert ISA_VARIABLE not in os.environ
    monkeypatch.setenv(ISA_VARIABLE, "generic")
    assert [entry.name for entry in contestants.dynamics("auto", None)[0]] == ["best", "bf16", "bodies"]


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, spec in OPERATORS.items()
        if len(spec.inputs[0].shape) == 4 and spec.inputs[0].element is Element.DATA
    ],
)
def test_models_of_one_operator(benchmark: Any, name: str) -> None:
    operator = benchmark("small").one_operator(OPERATORS[name])
    onnx.checker.check_model(operator.model)
    feeds = {"x": np.ones((1, 4, 4, 16), np.float32)}
    feeds |= {mask: np.ones(shape, np.float32) for mask, shape in operator.masks.items()}
    for model in (operator.model, operator.relu):
        with OnnxRuntimeSession(model, native="off") as session:
            assert {info.name for info in session.inputs} == set(feeds)
            assert np.isfinite(session.run(feeds)["y"]).all()


def test_a_bundle_is_timed(benchmark: Any, tmp_path: Path) -> None:
    contestants = benchmark("contestants")
    bundle = tiny_bundle(tmp_path)
    static = contestants.Static(contestants.ORT_INT8, quantised=True, hint=None)
    rows = benchmark("timing").time_bundle(
        bundle, contestants.dynamics("off", None)[0], [static], threads=1, rates=(1.0, 0.5), seconds=0.0, repeats=2,
        quantised=tmp_path / "int8.onnx",
    )  # fmt: skip
    assert [(r["contestant"], r["rate"], r["masks"]) for r in rows] == [
        ("bodies", 1.0, "forced"), ("bodies", 0.5, "forced"), ("ort-int8", None, None),
    ]  # fmt: skip
    assert rows[0]["ideal_speedup"] < 1.01 < rows[1]["ideal_speedup"]
    assert all(r["realised_speedup"] > 0 and r["rounds"] == 2 for r in rows)
    quantised = {node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= quantised
