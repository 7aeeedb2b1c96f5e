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
from onnx import numpy_helper

from dyndeploy.ops import OPERATORS, Element
from dyndeploy.quantization import CalibrationTable
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
    ideal = {None: 1.0, 1.0: 1.0, 0.85: 1.15, 0.5: 2.0}[rate]
    value = {
        "network": "laud_resnet50", "mode": "spatial", "granularity": "4-4-2-1", "batch": 1, "threads": 1,
        "contestant": contestant, "rate": rate, "realised_speedup": realised, "ideal_speedup": ideal,
        "realised_spread": [0.9 * realised, 1.1 * realised], "masks": None if rate is None else "forced",
        "median_ms": 10.0 / realised, "size_ratio": 1.0, "load": 0.5, "realised_speedup_cpu": None,
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


INT8_ROWS = [
    row("int8", 1.0, 3.4, size_ratio=0.32), row("int8", 0.85, 3.7), row("int8", 0.5, 6.0), row("best", 0.5, 1.8),
    row("ort-int8", None, 9.9, realised_speedup_cpu=3.5, integer_convolutions=(53, 53)),
    row("openvino-int8", None, 3.6),
    row("int8", 0.5, 6.0, threads=2), row("openvino-int8", None, 3.6, threads=2),
]  # fmt: skip


def test_limits_of_int8(benchmark: Any) -> None:
    limits = benchmark("limits")
    found = [
        (o.limit.row, o.limit.what, o.row["threads"], o.least, round(o.measured, 3), o.verdict)
        for o in limits.outcomes(INT8_ROWS, "4-4-2-1", "avx512")
        if o.limit.contestant == "int8"
    ]
    own = "share of ideal over its own rate 1.0"
    assert found == [
        ("INT8 rate 1.0, every mode", "speed over ort-int8", 1, 1.0, 0.971, "**missed**"),
        ("INT8 rate 1.0, every mode", "speed over openvino-int8", 1, 0.95, 0.944, "**missed**"),
        ("INT8 spatial and layer 0.85", "speed over openvino-int8", 1, 1.0, 1.028, "met"),
        ("INT8 spatial 0.5", "speed over openvino-int8", 1, 1.45, 1.667, "met"),
        ("INT8 spatial 0.5", "speed over openvino-int8", 2, 1.4, 1.667, "met"),
        ("INT8 spatial 0.5", own, 1, 0.92, 0.882, "**missed**"),
    ]
    assert "| laud_resnet50 | spatial | 0.33 | 0.320 | met |" in limits.sizes(INT8_ROWS[:1]).splitlines()
    big = row("int8", 1.0, 3.4, size_ratio=0.32, network="laud_resnet101")
    assert "| laud_resnet101 | spatial | 0.31 | 0.320 | **missed** |" in limits.sizes([big])
    assert limits.sizes(INT8_ROWS[3:5]) == ""


def test_the_table_of_int8(benchmark: Any) -> None:
    lines = benchmark("tables").int8_table([*INT8_ROWS[:6], row("bf16", 1.0, 2.0)]).splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")][4:] for line in lines]
    assert [(c[0], c[1], c[4], c[5], c[7]) for c in cells] == [
        ("int8", "1.00", "0.97", "0.94", "1.00"),
        ("int8", "0.85", "1.06", "1.03", "0.95"),
        ("int8", "0.50", "1.71", "1.67", "0.88"),
        ("best", "0.50", "0.51", "0.50", ""),
        ("ort-int8 (53 of 53 convolutions in integers)", "static", "1.00", "0.97", ""),
        ("openvino-int8", "static", "1.03", "1.00", ""),
    ]


def test_contestants_leave_the_environment_alone(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    contestants = benchmark("contestants")
    library = find_cpu_library()
    monkeypatch.delenv(ISA_VARIABLE, raising=False)
    dynamics, left_out = contestants.dynamics("off", None)
    assert [entry.name for entry in dynamics] == ["bodies", "int8-bodies"] and left_out == [
        "the operator library: switched off"
    ]
    if library is None:
        pytest.skip("native library not built")
    dynamics, _ = contestants.dynamics("auto", None)
    names = [entry.name for entry in dynamics]
    assert names[0] == "best" and names[-2:] == ["bodies", "int8-bodies"] and not any("generic" in n for n in names)
    of_floats, of_integers = (library.instruction_sets(precision)[1:] for precision in ("fp32", "int8"))
    expected = {*of_floats, *(f"int8-{name}" for name in of_integers), "int8"} - {"generic", "int8-generic"}
    assert set(names[1:-2]) - {"bf16"} == expected
    with contestants.Dynamic("x", isa="generic").open(
        benchmark("small").one_operator(OPERATORS["LayerBottleneck"]).model, 1
    ) as s:
        assert s.info.native.instruction_set == "generic"
    assert ISA_VARIABLE not in os.environ
    monkeypatch.setenv(ISA_VARIABLE, "generic")
    names = [entry.name for entry in contestants.dynamics("auto", None)[0]]
    assert set(names) - {"bf16"} == {"best", "int8", "bodies", "int8-bodies"}


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, spec in OPERATORS.items()
        if len(spec.inputs[0].shape) == 4 and spec.inputs[0].element is Element.DATA and spec.inputs[0].name == "x"
        if "cpu" in spec.kernels
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
        quantised=tmp_path,
    )  # fmt: skip
    assert [(r["contestant"], r["rate"], r["masks"]) for r in rows] == [
        ("bodies", 1.0, "forced"), ("bodies", 0.5, "forced"), ("int8-bodies", 1.0, "forced"),
        ("int8-bodies", 0.5, "forced"), ("ort-int8", None, None),
    ]  # fmt: skip
    assert rows[0]["ideal_speedup"] < 1.01 < rows[1]["ideal_speedup"]
    assert all(r["realised_speedup"] > 0 and r["rounds"] == 2 for r in rows)
    (written,) = set(tmp_path.glob("*.onnx")) - {bundle.model, bundle.static, *tmp_path.glob("*.static.onnx")}
    assert rows[0]["size_ratio"] == 1.0
    assert rows[2]["size_ratio"] == pytest.approx(written.stat().st_size / bundle.model.stat().st_size)
    done, of = rows[4]["integer_convolutions"]
    assert done == of > 3
    # Both networks in INT8 have the same scales.
    table, twin = CalibrationTable.load(next(tmp_path.glob("*.json"))), onnx.load(next(tmp_path.glob("*.static.onnx")))
    scales = {item.name: numpy_helper.to_array(item) for item in twin.graph.initializer if item.name.endswith("_scale")}
    found = benchmark("quantised").scales_of_twin(bundle.load_static(), table)
    blocks = {point.rpartition("/")[0] for point in table.tensors if point.endswith("/h1")}
    assert len(blocks) > 1 and len(found) == 1 + 3 * len(blocks)
    for tensor, ((override),) in found.items():
        assert scales[f"{tensor}_scale"] == override["scale"]


def test_nodes_are_placed(benchmark: Any, tmp_path: Path) -> None:
    nodes = benchmark("nodes")
    placed = list(
        nodes.placed(
            [("image_QuantizeLinear", "QuantizeLinear", 3.0), ("stem/Conv_token_1", "QLinearConv", 20.0),
             ("layer1.0/m", "QuantizedSpatialMasker", 2.0), ("layer1.1/b", "QuantizedSpatialBottleneck", 30.0),
             ("Transpose_token_9", "Transpose", 1.0), ("head/Gemm", "Gemm", 5.0)]
        )
    )  # fmt: skip
    assert [(node.part, node.does) for node in placed] == [
        ("stem", "Q/DQ"), ("stem", "convolution"), ("layer1", "masker"), ("layer1", "block"), ("layer1", "layout"),
        ("head", "product"),
    ]  # fmt: skip
    lines = nodes.summary(placed).splitlines()
    assert lines[0] == "| part | all, us | Q/DQ | masker | block | layout | convolution | product |"
    assert "| layer1 | 33 |  | 2 | 30 | 1 |  |  |" in lines and lines[-1] == "| all | 61 | 3 | 2 | 30 | 1 | 20 | 5 |"
    contestant = benchmark("contestants").Dynamic("x", "off")
    found = nodes.onnxruntime_nodes(tiny_bundle(tmp_path), contestant, rate=0.5, threads=1, runs=1)
    assert {"stem", "layer1", "head"} <= {node.part for node in found} and all(node.us >= 0 for node in found)
