"""A builder's log becomes layers, and layers that are not the plan's are named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dyndeploy.errors import DyndeployError
from dyndeploy.runtimes.tensorrt_layers import EngineLayers, Layer, LayerTensor, read_layers, wrong_layers
from tests.bundles import tiny_models

LOG = [
    "Total Activation Memory: 17 bytes",
    "Total Activation Memory: 4096 bytes",
    "Layers:\n"
    "Name: __myl_Cast_myl0_0, LayerType: kgen, Inputs: [ { Name: input, Dimensions: [1,3,16,16], Strides: "
    "[768,256,16,1], StrideOrder: [3,2,1,0], Datatype: Float, Format: (Linear) Row major linear format }], Constants: "
    "[], Outputs: [ { Name: x0, Dimensions: [1,4,16,16], Strides: [1024,1,64,4], StrideOrder: [3,0,2,1], Datatype: "
    "Half, Format: (NHWC) Channel major format }], TacticName: __myl_Cast_0xcabb, StreamId: 0, Metadata: [ONNX Layer: "
    "stem/Cast_0][ONNX Layer: stem/conv1]\n"
    "Name: b/Masker_myl0_1, LayerType: custom_layer, Inputs: [ { Name: x, Dimensions: [1,8,8,16], Strides: "
    "[1024,128,16,1], StrideOrder: [3,2,1,0], Datatype: Half, Format: (Linear) Row major linear format }], Constants: "
    "[ { Name: w, Dimensions: [2,16], Strides: [16,1], StrideOrder: [1,0], Datatype: Float, Format: (Linear) Row "
    "major linear format }], Outputs: [ { Name: mask, Dimensions: [1,2], Strides: [2,1], StrideOrder: [1,0], Datatype: "
    "Float, Format: (Linear) Row major linear format }, { Name: b/Masker_wksp.1_myl0, Dimensions: [512], Strides: [1], "
    "StrideOrder: [0], Datatype: UInt8, Format: (Linear) Row major linear format }], StreamId: 0, Metadata: [ONNX "
    "Layer: b/Masker]\n"
    "\nI/O Tensors:\n"
    " Name: input, IOMode: Input, DataType: Float, Dimensions: [1,3,16,16], Location: Device\n"
    " Name: mask, IOMode: Output, DataType: Float, Dimensions: [1,2], Location: Device\n"
    "\nEngine Metadata:\n Multi-Device: Disabled",
]


def test_layers_are_read() -> None:
    built = read_layers(LOG)
    cast, masker = built.layers
    assert (cast.kind, cast.nodes, cast.tactic) == ("kgen", ("stem/Cast_0", "stem/conv1"), "__myl_Cast_0xcabb")
    assert cast.outputs == (LayerTensor("x0", (1, 4, 16, 16), "float16", packed=False),)
    assert masker.is_plugin and masker.workspace == 512
    assert [tensor.type for tensor in (*masker.inputs, *masker.constants)] == ["float16", "float32"]
    assert masker.outputs == (LayerTensor("mask", (1, 2), "float32"),)
    assert built.inputs == (LayerTensor("input", (1, 3, 16, 16), "float32"),)
    assert built.outputs[0].name == "mask" and built.activation_bytes == 4096
    assert built.summary() == {"custom_layer": 1, "kgen": 1}


@pytest.mark.parametrize("log", [[], ["Layers:"], ["Layers:\nLayer 0: conv"], ["Engine generation completed"]])
def test_another_log_is_refused(log: list[str]) -> None:
    with pytest.raises(DyndeployError, match=r"another form than that of TensorRT-RTX 1\.7"):
        read_layers(log)


def test_what_stands_between_blocks() -> None:
    plugin = Layer("p", "custom_layer", ("p",), (), (), ())
    cast = replace(plugin, kind="kgen")
    assert EngineLayers((cast, plugin, plugin, cast)).between_blocks() == ()
    assert EngineLayers((plugin, cast, plugin)).between_blocks() == (cast,)
    assert EngineLayers((cast,)).between_blocks() == ()


def planned(mode: str = "layer") -> EngineLayers:
    """The layers that an FP32 engine of the tiny network should have."""
    source, _, _ = tiny_models(mode)
    number = {"layer1.0": (1, 8, 8, 16), "layer2.0": (1, 8, 8, 16)}

    def tensor(name: str, *shape: int, type: str = "float32") -> LayerTensor:
        return LayerTensor(name, shape, type)

    layers = []
    for node in source.graph.node:
        if node.domain:
            decides = node.op_type.endswith("Masker")
            shape = (1, 1, 1, 1) if decides else number[node.name.split("/")[0]]
            read = tuple(tensor(name, 1) for name in node.input)
            layers.append(Layer(node.name, "custom_layer", (node.name,), read, (), (tensor(node.output[0], *shape),)))
    outputs = [tensor(v.name, *(d.dim_value for d in v.type.tensor_type.shape.dim)) for v in source.graph.output]
    return EngineLayers(tuple(layers), (), tuple(outputs))


def test_deviations_from_the_plan_are_named() -> None:
    source, _, _ = tiny_models("layer")
    built = planned()
    assert wrong_layers(built, source, half=False) == []

    def after(index: int, **changes: object) -> list[str]:
        layers = [*built.layers]
        layers[index] = replace(layers[index], **changes)  # type: ignore[arg-type]
        return wrong_layers(replace(built, layers=tuple(layers)), source, half=False)

    last = built.layers[-1]
    (y,) = last.outputs
    assert after(-1, kind="kgen") == ["layer2.0/LayerBottleneck (LayerBottleneck) is no plugin of the engine"]
    assert after(-1, outputs=(replace(y, type="float16"),)) == [
        "layer2.0/LayerBottleneck writes float16, and the plan says float32"
    ]
    assert after(-1, outputs=(replace(y, shape=(1, 4, 8, 16)),)) == [
        "layer2.0/LayerBottleneck writes (1, 4, 8, 16), and the graph says (1, 8, 8, 16)"
    ]
    assert after(-1, outputs=(y, y)) == ["layer2.0/LayerBottleneck writes 2 tensors, and LayerBottleneck has 1 outputs"]
    assert after(-1, inputs=last.inputs[1:]) == [
        "layer2.0/LayerBottleneck reads 7 tensors, and LayerBottleneck has 8 inputs"
    ]
    assert after(-1, inputs=(replace(last.inputs[0], packed=False), *last.inputs[1:])) == [
        "layer2.0/LayerBottleneck is given y1 in a layout that plugins cannot read"
    ]
    half = wrong_layers(built, source, half=True)
    assert "layer2.0/LayerBottleneck reads 8 x float32, and the plan gives it 4 x float16, 4 x float32" in half
    assert not any("SpatialMasker" in problem for problem in half), "a masker takes x as it comes"
    assert wrong_layers(replace(built, outputs=built.outputs[1:]), source, half=False) == [
        "the engine has no output logits"
    ]
