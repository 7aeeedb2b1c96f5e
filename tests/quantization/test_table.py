"""Calibration tables: what is written is read, what does not belong together or was tampered with is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from dyndeploy.bundle import NetworkInfo
from dyndeploy.errors import DyndeployError, InputError, NotFiniteError, OutputError, UsageError
from dyndeploy.quantization import (
    BlockSensitivity,
    CalibrationTable,
    Histogram,
    Sensitivity,
    TensorScale,
    weights_sha256,
)

NETWORK = NetworkInfo("net", "spatial", (4, 2), (2, 2), 10, {}, None, None)


def graph(weight: float = 1.0, mean: float = 0.25, batch: int = 1) -> onnx.ModelProto:
    """A convolution and a mean whose constant is no weight."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "stem/Conv"),
        helper.make_node("Mul", ["c", "mean"], ["y"], "head/Mul"),
    ]
    weights = [
        numpy_helper.from_array(np.full((2, 3, 1, 1), weight, np.float32), "w"),
        numpy_helper.from_array(np.float32(mean), "mean"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 4, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 2, 4, 4])
    return helper.make_model(helper.make_graph(nodes, "net", [x], [y], weights))


def table(**changes: Any) -> CalibrationTable:
    tensors = {
        "layer1.0/x": TensorScale(0.5, 0, 0.0, 130.0, 100, 0.01, Histogram((0.0, 64.0, 128.0), (60, 40))),
        "stem/Conv:x": TensorScale(0.02, 117, -2.0, 2.5, 48),
    }
    blocks = (BlockSensitivity("layer1.0", 0.01, 0.002, "int8"), BlockSensitivity("layer2.0", 0.5, 0.1, "fp32", "drop"))
    given: dict[str, Any] = {
        "network": "net",
        "mode": "spatial",
        "granularity": (4, 2),
        "channel_granularity": (2, 2),
        "weights_sha256": weights_sha256(graph()),
        "weight_bits": 7,
        "per_channel": True,
        "method": "percentile",
        "settings": {"percentile": 99.99},
        "data": "digits",
        "images": 128,
        "precision": {"layer2.0": "fp32"},
        "tensors": tensors,
        "tools": {"dyndeploy": "1"},
        "sensitivity": Sensitivity(64, True, blocks, 0.9, 0.8, 0.89, 0.6, 0.01, "drop of at most 0.01", 1000, 2),
        "notes": ("One block never ran.",),
    }
    return CalibrationTable(**given | changes)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    table().save(path)
    assert CalibrationTable.load(path) == table()
    small = table().without_histograms()
    small.save(path)
    assert CalibrationTable.load(path) == small and small.tensors["layer1.0/x"].histogram is None
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.json"]


def test_scales_are_looked_up_by_point_and_blocks_are_int8_unless_said() -> None:
    assert table().scale("layer1.0/x") == 0.5 and table().zero_point("stem/Conv:x") == 117
    with pytest.raises(UsageError, match=r"Unknown point of the calibration table 'layer1.0/h1'.*Known: layer1.0/x"):
        table().scale("layer1.0/h1")
    assert table().precision_of("layer2.0") == "fp32" and table().precision_of("layer1.0") == "int8"


def test_a_table_fits_its_weights_and_nothing_else() -> None:
    table().check(graph(), NETWORK)
    # Neither the order of the constants, the batch nor what is no weight matters.
    other = graph(mean=0.5, batch=3)
    other.graph.initializer.reverse()
    table().check(other)
    with pytest.raises(UsageError, match="belongs to other weights of net"):
        table().check(graph(weight=1.0000001))
    renamed = graph()
    renamed.graph.initializer[0].name = renamed.graph.node[0].input[1] = "v"
    with pytest.raises(UsageError, match="other weights"):
        table().check(renamed)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "other"}, "network net, not other"),
        ({"mode": "layer"}, "mode spatial, not layer"),
        ({"granularity": (4, 4)}, r"granularity \(4, 2\), not \(4, 4\)"),
        ({"channel_granularity": ()}, r"channel granularity \(2, 2\), not none"),
    ],
)
def test_another_network_mode_or_granularity_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=f"belongs to another network: {said}"):
        table().check(graph(), dataclasses.replace(NETWORK, **changes))


def test_stages_are_known_together_and_alone() -> None:
    first, second = graph(1.0), graph(2.0)
    of_stages = table(
        weights_sha256=weights_sha256([first, second]),
        stages_sha256=(weights_sha256(first), weights_sha256(second)),
    )
    for fits in (first, second, [first, second], [second, first]):
        of_stages.check(fits)
    with pytest.raises(UsageError, match="other weights"):
        of_stages.check([first, graph(3.0)])


def _at(*path: Any) -> Callable[[dict[str, Any], Any], None]:
    def put(value: dict[str, Any], item: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = item

    return put


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (_at("schema"), 2, "schema version 2; this release reads version 1"),
        (_at("schema"), True, "schema version True"),
        (_at("weight_bits"), 6, "weight_bits must be 7 or 8, not 6"),
        (_at("weight_bits"), 7.0, "weight_bits must be 7 or 8"),
        (_at("method"), "guess", "method must be one of minmax, percentile, entropy, mse"),
        (_at("weights_sha256"), "abc", "weights_sha256 must be a SHA-256"),
        (_at("images"), 0, "images must be a whole number of at least 1"),
        (_at("precision", "layer2.0"), "fp16", "must be one of int8, fp32"),
        (_at("tensors", "layer1.0/x", "scale"), 0, r"tensors\['layer1.0/x'\].scale must be a finite number in"),
        (_at("tensors", "layer1.0/x", "scale"), -0.5, "scale must be a finite number in"),
        (_at("tensors", "layer1.0/x", "scale"), 1e-60, "scale must be a finite number in"),
        (_at("tensors", "layer1.0/x", "scale"), 1e39, "scale must be a finite number"),
        (_at("tensors", "layer1.0/x", "zero_point"), 256, "zero_point must be a whole number"),
        (_at("tensors", "layer1.0/x", "max"), -1, "max must be at least min"),
        (_at("tensors", "layer1.0/x", "clipped"), 1.5, "clipped must be a finite number in"),
        (_at("tensors", "layer1.0/x", "histogram", "edges"), [0, 2, 1], "edges must be rising numbers"),
        (_at("tensors", "layer1.0/x", "histogram", "counts"), [1], "counts must be a list of 2"),
        (_at("sensitivity", "accuracy"), 2, "sensitivity.accuracy must be a finite number"),
        (_at("tools"), [], "tools must be an object"),
    ],
)
def test_a_field_that_is_wrong_is_named(
    place: Callable[[dict[str, Any], Any], None], value: Any, said: str, tmp_path: Path
) -> None:
    content = json.loads(json.dumps(table().to_json()))
    place(content, value)
    path = tmp_path / "t.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=said):
        CalibrationTable.load(path)


@pytest.mark.parametrize("name", ["network", "weights_sha256", "tensors", "tools", "images"])
def test_a_field_that_is_missing_is_named(name: str) -> None:
    content = table().to_json()
    del content[name]
    with pytest.raises(InputError, match=f"{name} is missing|no calibration table"):
        CalibrationTable.from_json(content)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not valid JSON: it is empty"),
        ('{"schema": 1', "not valid JSON"),
        ("[]", "This is no calibration table"),
        ('{"tensors": {}}', "it has no schema"),
        ("TRT-8503-EntropyCalibration2\ninput: 3c010a14\n", "calibration cache of TensorRT"),
        ('{"quantization_config": {"quant_method": "torchao", "quant_type": "int8"}}', "that torchao quantised"),
        ('{"producer": {"name": "modelopt", "version": "0.23"}, "quantization": {}}', "that ModelOpt quantised"),
        ('{"activation_encodings": {}, "param_encodings": {}}', "AIMET"),
        ('{"CLASS": "TensorsData", "data": {"x": {"CLASS": "TensorData"}}}', "ONNX Runtime's calibrators"),
    ],
)
def test_no_table_is_said_to_be_none(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        CalibrationTable.load(path)
    assert said and (not text.startswith("TRT") or "scales" not in said)


def test_a_missing_table_and_a_folder_are_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Cannot read .*none\.json"):
        CalibrationTable.load(tmp_path / "none.json")
    with pytest.raises(DyndeployError, match="Cannot read"):
        CalibrationTable.load(tmp_path)


def test_checkpoints_of_other_tools_are_refused_with_the_reason(tmp_path: Path) -> None:
    weight = {"layer.weight_quantizer._amax": torch.ones(1), "layer.weight": torch.ones(2)}
    torch.save(weight, tmp_path / "modelopt.pth")
    torch.save({"state": weight}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"layer.weight": torch.ones(2)}, tmp_path / "plain.pt")
    byte = {"dtype": "I8", "shape": [1], "data_offsets": [0, 1]}
    header = json.dumps({"__metadata__": {"quant": "torchao"}, "w": byte})
    (tmp_path / "ao.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode() + b"\1")
    onnx.save(graph(), tmp_path / "g.onnx")
    for name, said in {
        "modelopt.pth": "a PyTorch checkpoint that ModelOpt quantised. Its scales belong to single layers",
        "old.pth": "a pickled checkpoint that ModelOpt quantised",
        "plain.pt": "a PyTorch checkpoint; the table is a JSON file of its own",
        "ao.safetensors": "a safetensors checkpoint that torchao quantised",
        "g.onnx": "it is a binary file",
    }.items():
        with pytest.raises(InputError, match=said):
            CalibrationTable.load(tmp_path / name)


def test_an_earlier_table_stays_whole(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    table().save(path)
    before = path.read_bytes()
    broken = dataclasses.replace(table(), settings={"percentile": float("nan")})
    with pytest.raises(NotFiniteError):
        broken.save(path)
    assert path.read_bytes() == before
    with pytest.raises(OutputError):
        table().save(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.json"]
