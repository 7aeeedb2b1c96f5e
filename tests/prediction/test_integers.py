"""INT8 on a calibrated CPU: what it is modelled from, and by how much."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dyndeploy.cli import run
from dyndeploy.errors import UsageError
from dyndeploy.ops import DOMAIN, OPERATORS, OperatorSpec
from dyndeploy.prediction import Estimator, GraphWalker, NodeGraph, Rates, predict, read_nodes
from dyndeploy.prediction.calibrated import CalibratedModel, Calibration, class_of, term_names, terms
from dyndeploy.prediction.device_model import AnalyticalModel
from dyndeploy.prediction.integers import IntegerModel, integer_gain
from dyndeploy.prediction.kernels import Kernel, conv_kernel, moving_kernel, reorder_kernel
from dyndeploy.targets.devices import load_device
from tests.prediction.calls import bottleneck

AVX512 = ["avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni"]


def with_flags(calibration: Calibration, *isa: str, used: str | None = None) -> Calibration:
    runtime = {**calibration.runtime, "instruction_set": used}
    return dataclasses.replace(calibration, machine={**calibration.machine, "isa": list(isa)}, runtime=runtime)


def conv(precision: str) -> Kernel:
    return conv_kernel(
        "c", "b", batch=1, cin=128, cout=128, size=(28, 28), out_size=(28, 28), kernel=(3, 3), precision=precision
    )


@pytest.mark.parametrize(
    ("isa", "used", "gain"),
    [
        (AVX512, "avx512", 4.0),
        (AVX512, "avx2", 2.0),  # Held to it by DYNDEPLOY_CPU_ISA.
        (["avx2", "avx_vnni"], "avx2", 4.0),  # All that the processor has.
        (["avx2"], "avx2", 2.0),
        (["neon", "asimddp"], "neon", 4.0),
        (["neon"], "neon", 1.0),
        ([], None, 1.0),
    ],
)
def test_gain_of_instruction_sets(isa: list[str], used: str | None, gain: float) -> None:
    assert integer_gain({"isa": isa}, used)[0] == gain


@pytest.mark.parametrize("gain", [4.0, 2.0])
def test_arithmetic_gains_by_instructions_and_the_rest_by_width(calibration: Calibration, gain: float) -> None:
    made = with_flags(calibration, *(AVX512 if gain == 4.0 else ["avx2"]))
    model, floats = IntegerModel(made), CalibratedModel(made)
    for kernel, wide in (
        (conv("int8"), conv("fp32")),
        (bottleneck(precision="int8", rates=Rates(0.5)), bottleneck(rates=Rates(0.5))),
    ):
        resident = np.array([1e7])
        ms, low, high = model.price([kernel], resident)
        expected, _, _ = floats.price([wide], resident)
        own = made.classes[class_of(wide)]
        parts = dict(zip(term_names(wide), terms([wide], resident)[0] * own.constants, strict=True))
        fixed = sum(parts.get(name, 0.0) for name in ("call", "operators", "mask_bits", "pixels"))
        macs = sum(value for name, value in parts.items() if name.endswith("macs"))
        total = sum(parts.values())
        share = max(fixed + macs / gain + (total - fixed - macs) / 4, own.floor_ms) / max(total, own.floor_ms)
        assert ms[0] == pytest.approx(expected[0] * share)
        assert 0.25 <= share < 1.0 and low[0] < ms[0] < high[0]
    assert f"arithmetic {gain:g} times as fast" in model.basis and "not measured" in model.basis


def test_what_stays_in_floats_is_as_measured(calibration: Calibration) -> None:
    made = with_flags(calibration, *AVX512)
    kernels = [conv("fp32"), conv("int8"), moving_kernel("m", None, "pool", read=1e5, written=1e5, k=3.0)]
    resident = np.full(3, 1e7)
    mixed, plain = IntegerModel(made).price(kernels, resident), CalibratedModel(made).price(kernels, resident)
    for one, other in zip(mixed, plain, strict=True):
        assert one[[0, 2]] == pytest.approx(other[[0, 2]])
    blocked = reorder_kernel("r", None, (1, 64, 56, 56), inward=True, precision="int8")
    assert IntegerModel(made).price([blocked])[0][0] == 0.0


def test_a_network_on_this_machine(
    calibration: Calibration, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cpu.json"
    path.write_text(json.dumps(with_flags(calibration, *AVX512).to_json()))
    found = {p: Estimator("cpu", precision=p, calibration=path).predict("resnet50") for p in ("fp32", "int8")}
    assert 0.25 < found["int8"].latency_ms / found["fp32"].latency_ms < 0.8
    assert found["int8"].kind == "predicted" and "INT8 modelled from FP32, not measured" in found["int8"].basis
    assert any("as if all of it computed in INT8" in note for note in found["int8"].notes)
    with pytest.raises(UsageError, match="int8 is modelled from it"):
        Estimator("cpu", precision="fp16", calibration=path)
    plan = ["plan", "laud_resnet14_small", "--modes", "layer,static", "--calibration", str(path), "--json"]
    ms = {}
    for precision in ("fp32", "int8"):
        assert run([*plan, "--precision", precision]) == 0
        chosen = json.loads(capsys.readouterr().out)["chosen"]
        ms[precision] = chosen["latency_ms"]
        assert chosen["precision"] == precision and ("not measured" in chosen["basis"]) == (precision == "int8")
    assert ms["int8"] < ms["fp32"]
    assert run([*plan, "--precision", "int8", "--measure"]) == 2
    assert "needs trained weights" in capsys.readouterr().err


def quantised_graph() -> onnx.ModelProto:
    """A convolution between Q and DQ, a masker and a bottleneck on bytes, and a head in floats."""
    rng = np.random.default_rng(0)

    def weights(spec: OperatorSpec, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        names = []
        for port in spec.inputs:
            if port.name in shapes:
                values = rng.integers(-9, 9, shapes[port.name])
                names.append(f"{spec.name}/{port.name}")
                constants[names[-1]] = values.astype(port.element.dtype or "float32")
        return names

    constants: dict[str, Any] = {
        "s": np.float32(0.02), "zero": np.uint8(0), "stem/w": rng.integers(-9, 9, (16, 3, 3, 3)).astype(np.int8),
        "ws": np.ones(16, np.float32), "wz": np.zeros(16, np.int8), "fc/w": np.ones((16, 10), np.float32),
    }  # fmt: skip
    masker, block = OPERATORS["QuantizedSpatialMasker"], OPERATORS["QuantizedSpatialBottleneck"]
    of_masker = weights(masker, {"weight": (1, 16), "bias": (1,)})
    layers = {"1": (8, 16), "2": (8, 8, 3, 3), "3": (16, 8)}
    shapes = {f"{kind}{layer}": s if kind == "w" else s[:1] for layer, s in layers.items() for kind in "wbm"}
    of_block = weights(block, shapes)
    square = {"strides": [1, 1], "dilations": [1, 1], "pads": [1, 1, 1, 1], "group": 1}
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "s", "zero"], ["q"], "stem/q"),
        helper.make_node("DequantizeLinear", ["q", "s", "zero"], ["d"], "stem/d"),
        helper.make_node("DequantizeLinear", ["stem/w", "ws", "wz"], ["w"], "stem/dw", axis=0),
        helper.make_node("Conv", ["d", "w"], ["c"], "stem/Conv", kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("QuantizeLinear", ["c", "s", "zero"], ["cq"], "stem/cq"),
        helper.make_node("Transpose", ["cq"], ["x"], "layer1.0/t", perm=[0, 2, 3, 1]),
        helper.make_node(
            masker.name, ["x", *of_masker], ["mask"], "layer1.0/m", domain=DOMAIN, mask_height=4, mask_width=4
        ),
        helper.make_node(block.name, ["x", "mask", *of_block], ["y"], "layer1.0/b", domain=DOMAIN, **square),
        helper.make_node("DequantizeLinear", ["y", "s", "zero"], ["yd"], "head/d"),
        helper.make_node("ReduceMean", ["yd"], ["mean"], "head/mean", axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["mean", "fc/w"], ["logits"], "head/fc"),
    ]
    ends = {"image": (1, 3, 16, 16), "logits": (1, 10)}
    image, logits = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in ends.items())
    graph = helper.make_graph(
        nodes, "g", [image], [logits],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)])


def test_a_graph_in_integers_is_the_work_of_the_one_in_floats() -> None:
    nodes = read_nodes(quantised_graph())
    assert NodeGraph.from_json(json.loads(json.dumps(nodes.to_json()))).nodes == nodes.nodes
    kernels = {
        kernel.name: kernel for kernel in GraphWalker(nodes, precision="int8", runtime="tensorrt").graph(0.5).kernels
    }
    found = {name: (kernel.kind, kernel.precision) for name, kernel in kernels.items()}
    assert found == {
        "stem/Conv": ("conv", "int8"),
        "layer1.0/t": ("transpose", "int8"),
        "layer1.0/m": ("spatial_masker", "fp16"),
        "layer1.0/b": ("spatial_bottleneck", "int8"),
        "head/mean": ("pool", "fp16"),
        "head/fc": ("gemm", "fp16"),
    }
    assert kernels["stem/Conv"].macs == 8 * 8 * 16 * 27 and kernels["stem/Conv"].weight_bytes == 16 * 27
    assert kernels["layer1.0/t"].read_bytes == 8 * 8 * 16, "bytes are moved"
    assert kernels["head/fc"].weight_bytes == 2 * 16 * 10, "TensorRT computes in half what is not in integers"
    block = kernels["layer1.0/b"]
    assert block.weight_bytes == pytest.approx(2 * 16 * 8 + 9 * 64 + 32, abs=64) and block.launches is not None
    # Asked for in FP32, it is the FP32 network.
    floats = {kernel.name: kernel for kernel in GraphWalker(nodes, runtime="tensorrt").graph(0.5).kernels}
    assert floats["layer1.0/b"].macs == block.macs and floats["layer1.0/b"].precision == "fp32"


def test_what_a_board_keeps_in_floats_is_priced_in_floats() -> None:
    nodes = read_nodes(quantised_graph())
    mixed = GraphWalker(nodes, precision="int8", runtime="tensorrt").graph(0.5).kernels
    device = load_device("agx_orin")
    ms = AnalyticalModel(device, "int8").price(mixed)[0]
    resident = np.full(1, sum(kernel.weight_bytes for kernel in mixed))
    for kernel, found in zip(mixed, ms, strict=True):
        assert found == AnalyticalModel(device, kernel.precision).price([kernel], resident)[0][0]
    assert not any(
        "Not to be had yet" in note for note in predict(quantised_graph(), "agx_orin", precision="int8").notes
    )
    with pytest.raises(UsageError, match="no INT8 arithmetic"):
        predict(quantised_graph(), "tx2", precision="int8")
