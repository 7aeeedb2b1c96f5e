"""Exports in INT8: what the manifest says, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from dyndeploy import Bundle, ExportSettings, early_exits, export_model, verify_bundle
from dyndeploy.bundle import Manifest
from dyndeploy.cli import run
from dyndeploy.errors import BundleError, InputError, UsageError
from dyndeploy.files import read_json
from dyndeploy.inference import run_inputs
from dyndeploy.quantization import CalibrationTable, calibrate, runtime_integers
from dyndeploy.runtimes.tensorrt_bundle import ENGINE_PLANS
from dyndeploy.runtimes.tensorrt_plan import BuildPlan, plan_build
from tests.export.conftest import lively_network
from tests.quantized import exported

Pair = tuple[Bundle, Bundle, CalibrationTable]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return exported(tmp_path_factory.mktemp("pair"), mode="spatial")


def test_the_manifest_says_what_is_exact(pair: Pair) -> None:
    single, integers, table = pair
    info = integers.manifest.quantization
    assert info is not None and single.manifest.quantization is None
    assert (info.weight_bits, info.per_channel, info.method, info.images) == (7, True, "minmax", table.images)
    assert info.within_step == () and info.fp32_blocks == ()
    assert "to the bit on every CPU" in info.exact
    assert integers.manifest.precision == integers.manifest.cpu_precision == integers.manifest.graph_precision == "int8"
    assert Manifest.from_json(json.loads(json.dumps(integers.manifest.to_json()))) == integers.manifest
    assert "quantization" not in single.manifest.to_json()
    value = integers.manifest.to_json()
    with pytest.raises(BundleError, match="precision must be int8 where there is quantization"):
        Manifest.from_json(value | {"precision": "fp32"})
    with pytest.raises(BundleError, match=r"quantization\.weight_bits must be 7 or 8"):
        Manifest.from_json(value | {"quantization": value["quantization"] | {"weight_bits": 6}})
    assert integers.model.stat().st_size < 0.35 * single.model.stat().st_size


def test_it_runs_beside_fp32(pair: Pair) -> None:
    single, integers, _ = pair
    feeds = [{"input": single.reference()["input"][:1]}]
    (one,), (two,) = (run_inputs(bundle, feeds, native="off") for bundle in (single, integers))
    assert set(one.rates) == set(two.rates) and set(two.masks) == set(two.rates)
    difference = np.abs(one.outputs["logits"] - two.outputs["logits"]).max() / np.abs(one.outputs["logits"]).max()
    assert 0 < difference < 0.2


def test_blocks_left_in_fp32_are_named(pair: Pair, tmp_path: Path) -> None:
    table = replace(pair[2], precision={"layer2.0": "fp32", "stem": "fp32"})
    table.save(tmp_path / "t.json")
    settings = ExportSettings(precision="int8", calibration=tmp_path / "t.json")
    bundle = export_model(lively_network("spatial"), tmp_path / "b", settings)
    info = bundle.manifest.quantization
    assert info is not None and info.fp32_blocks == ("stem", "layer2.0") and info.within_step == ()
    kinds = {operator.block: operator.op_type for operator in bundle.manifest.operators}
    assert not kinds["layer2.0"].startswith("Quantized") and kinds["layer3.0"].startswith("Quantized")


def test_stages_without_dynamic_blocks_compute_their_convolutions_in_integers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    stages = [
        nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 1)),
        nn.Sequential(nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1)),
    ]
    heads = [nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4)) for width in (8, 16)]
    network = early_exits(stages, heads, confidence="margin").eval()
    single = export_model(network, tmp_path / "fp32", ExportSettings(input_size=(32, 32)))
    random = np.random.default_rng(0)
    images = [{"images": random.standard_normal((1, 3, 32, 32)).astype(np.float32)} for _ in range(16)]
    table = replace(calibrate(single, images, method="minmax"), network=single.manifest.network.name)
    settings = ExportSettings(input_size=(32, 32), precision="int8", calibration=table)
    integers = export_model(network, tmp_path / "int8", settings)
    assert integers.manifest.quantization is not None and integers.manifest.quantization.within_step
    assert integers.manifest.exits is not None
    graphs = [onnx.load(integers.path / stage.file) for stage in integers.manifest.exits.stages]
    assert [len(list(runtime_integers(graph))) for graph in graphs] == [2, 1]
    report = verify_bundle(integers, native="off")
    assert report.passed, [check for check in report.checks if not check.passed]
    assert any(check.name == "integers: standard layers" for check in report.checks)


def test_a_bundle_for_a_gpu_that_multiplies_bytes(pair: Pair, tmp_path: Path) -> None:
    """The graph stays one for any machine; beside it stands what TensorRT builds from."""
    settings = ExportSettings(target="agx_orin", precision="int8", calibration=pair[2], static=True)
    bundle = export_model(lively_network("spatial"), tmp_path / "b", settings)
    info = bundle.manifest.quantization
    assert info is not None and "to the bit on every CPU" in info.exact and "GPUs by the TensorRT plugins" in info.exact
    assert any("our operators compute on the same bytes" in note for note in bundle.manifest.notes)
    plans = read_json(bundle.path / ENGINE_PLANS)["graphs"]["model.onnx"]
    plan = BuildPlan.from_json(plans["plan"])
    assert (plan.precision, plan.typed, plan.integers) == ("int8", False, False)
    assert plan.precision_plan.half and "integers" not in plans["plan"]
    assert {"QuantizeBytes", "DequantizeBytes", "QuantizedSpatialMasker"} <= {name for name, _ in plan.plugins}
    words = {node.operator: node.shapes[0] for node in plan.plugin_nodes}
    assert words["QuantizedSpatialBottleneck"] == (1, 32, 32, 96 // 4)
    types = plan.plugin_types["QuantizedSpatialBottleneck"]
    assert types["writes"] == ["int32"] and types["reads"][:2] == ["int32", "float32"]
    assert plan.plugin_types["DequantizeBytes"] == {"reads": ["int32"], "writes": ["float16"]}
    # The twin has no operator of ours: its integers are TensorRT's own.
    twin, _ = plan_build(bundle.load_static(), "int8", "10.3.0")
    assert twin.integers and not twin.plugins and BuildPlan.from_json(twin.to_json()) == twin
    # Decisions of random weights may differ; graphs are what the target's parser reads, and operators are exact.
    checks = {check.name: check for check in verify_bundle(bundle, native="off").checks}
    assert checks["graph"].passed and checks["static twin: graph"].passed, checks
    assert all(check.passed for name, check in checks.items() if name.startswith("integers: dynamic")), checks


def test_what_does_not_fit_is_refused(pair: Pair, tmp_path: Path) -> None:
    table = pair[2]
    with pytest.raises(UsageError, match=r"needs a calibration table.*dyndeploy quantize"):
        ExportSettings(precision="int8")
    with pytest.raises(UsageError, match="is for int8, not for fp32"):
        ExportSettings(calibration=table)
    with pytest.raises(UsageError, match="no INT8 instructions"):
        ExportSettings(target="tx2", precision="int8", calibration=table)
    with pytest.raises(UsageError, match="mode spatial, not layer"):
        export_model(lively_network("layer"), tmp_path / "b", ExportSettings(precision="int8", calibration=table))
    with pytest.raises(UsageError, match="other weights"):
        export_model(
            lively_network("spatial", seed=1), tmp_path / "b", ExportSettings(precision="int8", calibration=table)
        )
    (tmp_path / "t.json").write_text('{"schema": 1, "tensors"', encoding="utf-8")
    with pytest.raises(InputError, match="not valid JSON"):
        export_model(
            lively_network("spatial"),
            tmp_path / "b",
            ExportSettings(precision="int8", calibration=tmp_path / "t.json"),
        )
    assert not (tmp_path / "b").exists()


def test_the_command_asks_for_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", "laud_resnet14_small", "-o", str(tmp_path / "b"), "--precision", "int8"]
    assert run(arguments) == 2
    assert "needs a calibration table" in capsys.readouterr().err
    assert run([*arguments, "--calibration", str(tmp_path / "none.json")]) == 1
    assert "none.json" in capsys.readouterr().err
