"""What the engine inspector would say of a TensorRT copy, in the form of a version; shared by both fakes."""

from __future__ import annotations

import json
from typing import Any

import onnx

from dyndeploy.ops import DOMAIN, OPERATORS
from dyndeploy.ops.base import Element

_SENTENCES = {
    "float32": "Row major linear FP32",
    "float16": "Row major linear FP16 format",
    "int32": "Row major linear INT32",
}
_WORDS = {"float32": "Float", "float16": "Half", "int32": "Int32"}


def inspection(model: onnx.ModelProto, major: int, data: str) -> str:
    """JSON of the engine inspector.

    Args:
        model: The graph that the engine was built from.
        major: Of TensorRT's version: up to 9 types are sentences, and a plugin's layer has its node's name.
        data: Type in which the bottlenecks run, and that maskers read: ``"float32"`` or ``"float16"``.
    """
    names = _SENTENCES if major < 10 else _WORDS

    def tensor(name: str, element: Element) -> dict[str, Any]:
        kind = element.plugin_dtype or data
        entry = {"Name": name, "Dimensions": [1], "Format/Datatype": names[kind]}
        return {**entry, "Location": "Device"} if major < 10 else entry

    layers = []
    for node in model.graph.node:
        if node.domain != DOMAIN:
            continue
        spec = OPERATORS[node.op_type]
        ports = spec.native_inputs("tensorrt")
        entry = {
            "Name": node.name if major < 10 else f"{node.name}_myl0_{len(layers)}",
            "LayerType": "PluginV2" if major < 10 else "PluginV3",
            "Inputs": [tensor(port.name, port.element) for port in ports],
            "Outputs": [tensor(port.name, port.element) for port in spec.outputs],
            "TacticValue": "0x0000000000000000",
        }
        layers.append(entry if major < 10 else {**entry, "Metadata": f"[ONNX Layer: {node.name}]"})
    return json.dumps({"Layers": layers, "Bindings": [value.name for value in model.graph.input]})
