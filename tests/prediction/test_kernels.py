from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from dyndeploy.errors import BundleError, UsageError
from dyndeploy.graphs.macs import MacCounter
from dyndeploy.graphs.shapes import static_shapes
from dyndeploy.ops import DOMAIN, OPERATORS
from dyndeploy.ops.gates import PATCH
from dyndeploy.prediction import Graph, GraphWalker, Rates, walk
from dyndeploy.prediction.kernels import REORDER, Kernel, conv_kernel
from dyndeploy.prediction.nodes import NodeGraph, read_nodes
from tests.bundles import BLOCK_MACS, HEAD_MACS, MODES, STATIC_MACS, STEM_MACS, tiny_models
from tests.prediction.calls import bottleneck


def _weight(name: str, *shape: int) -> onnx.TensorProto:
    return helper.make_tensor(name, TensorProto.FLOAT, shape, np.zeros(shape, np.float32).tobytes(), raw=True)


def _model(nodes: list[onnx.NodeProto], shape: tuple[object, ...], *weights: onnx.TensorProto, out: str = "y"):
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)],
        list(weights),
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("custom", 1), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=imports)


def _node(kind: str, inputs: str, output: str, domain: str = "", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], f"{kind}_{output}", domain=domain, **attributes)


def _conv(inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return _node("Conv", inputs, output, kernel_shape=[3, 3], pads=[1] * 4, **attributes)


def _kinds(graph: Graph) -> list[str]:
    return [kernel.kind for kernel in _work(graph)]


def _work(graph: Graph) -> list[Kernel]:
    """Kernels without conversions of layouts, which have tests of their own (test_layouts.py)."""
    return [kernel for kernel in graph.kernels if kernel.kind != REORDER]


IMAGE = (1, 8, 6, 6)
MAP = 8 * 6 * 6
W = _weight("w", 8, 8, 3, 3)


def test_conv_batch_norm_addition_and_relu_are_one_kernel() -> None:
    vectors = [_weight(name, 8) for name in ("s", "b", "m", "v")]
    nodes = [
        _conv("x w", "e"),
        _conv("e w", "c"),
        _node("BatchNormalization", "c s b m v", "n"),
        _node("Add", "n e", "a"),
        _node("Relu", "a", "y"),
    ]
    model = _model(nodes, IMAGE, W, *vectors)
    for runtime in ("onnxruntime", "tensorrt"):
        _, kernel = _work(walk(model, runtime=runtime))
        assert (kernel.kind, kernel.macs) == ("conv", MAP * 8 * 9)
        assert (kernel.features["residual"], kernel.features["activation"]) == (1, 1)
        assert (kernel.read_bytes, kernel.written_bytes) == (4 * 2 * MAP, 4 * MAP)
        assert kernel.weight_bytes == 4 * 8 * 8 * 9
    assert _kinds(walk(model, runtime="pytorch")) == ["conv", "conv", *["elementwise"] * 3]
    _, kernel = walk(model, runtime="tensorrt", precision="int8").kernels
    assert kernel.bytes == (3 * MAP + 8 * 8 * 9)


def test_a_map_that_is_read_twice_ends_the_fusion() -> None:
    nodes = [_conv("x w", "c"), _node("Relu", "c", "r"), _conv("r w", "d"), _node("Add", "d r", "y")]
    graph = walk(_model(nodes, IMAGE, W))
    assert _kinds(graph) == ["conv", "conv"]
    assert [kernel.features["residual"] for kernel in _work(graph)] == [0, 1]
    nodes = [_conv("x w", "c"), _node("Relu", "c", "r"), _node("Add", "c r", "y")]
    # The ReLU reads what the addition reads too: the convolution has to write it.
    assert _kinds(walk(_model(nodes, IMAGE, W))) == ["conv", "elementwise", "elementwise"]


def test_swish_is_fused_where_the_runtime_does_it() -> None:
    nodes = [_conv("x w", "c"), _node("Sigmoid", "c", "s"), _node("Mul", "c s", "y")]
    model = _model(nodes, IMAGE, W)
    assert _kinds(walk(model, runtime="tensorrt")) == ["conv"]
    # One operator by itself, which reads and writes the map once.
    quick = _work(walk(model, runtime="onnxruntime"))[1]
    assert _kinds(walk(model, runtime="onnxruntime")) == ["conv", "elementwise"]
    assert (quick.bytes, quick.features["cost"]) == (4 * 2 * MAP, 3)


def test_gelu_of_five_operators_is_one_kernel_on_a_cpu() -> None:
    numbers = {"root": 2**0.5, "one": 1.0, "half": 0.5}
    constants = [helper.make_tensor(name, TensorProto.FLOAT, [], [value]) for name, value in numbers.items()]
    start = [_node("Div", "x root", "d"), _node("Erf", "d", "e"), _node("Add", "e one", "a")]
    for end in (
        [_node("Mul", "x a", "m"), _node("Mul", "m half", "y")],
        [_node("Mul", "x half", "h"), _node("Mul", "h a", "y")],
    ):
        model = _model([*start, *end], IMAGE, *constants)
        (kernel,) = walk(model).kernels
        assert (kernel.kind, kernel.bytes, kernel.features["cost"]) == ("elementwise", 4 * 2 * MAP, 3)
    # What is read elsewhere has to be written.
    model = _model([*start, _node("Mul", "x a", "m"), _node("Mul", "m e", "y")], IMAGE, *constants)
    assert _kinds(walk(model)) == ["elementwise"] * 5


def test_the_gate_of_a_squeeze_excite_is_no_part_of_the_layer_before_it() -> None:
    nodes = [
        _conv("x w", "c"),
        _node("GlobalAveragePool", "c", "p"),
        _node("Conv", "p v", "g"),
        _node("Sigmoid", "g", "s"),
        _node("Mul", "c s", "y"),
    ]
    graph = walk(_model(nodes, IMAGE, W, _weight("v", 8, 8, 1, 1)), runtime="tensorrt")
    assert _kinds(graph) == ["conv", "pool", "conv", "elementwise"]
    assert graph.kernels[-1].read_bytes == 4 * (MAP + 8)
    assert graph.kernels[1].features["global"] == 1


def test_constants_views_and_quantisation_leave_no_kernel() -> None:
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [1, -1])
    nodes = [
        _node("Constant", "", "k", value=helper.make_tensor("k", TensorProto.FLOAT, [1], [0.1])),
        _node("QuantizeLinear", "x k", "q"),
        _node("DequantizeLinear", "q k", "d"),
        _node("Mul", "w k", "scaled"),
        _conv("d scaled", "c"),
        _node("Reshape", "c shape", "r"),
        _node("Gemm", "r v", "g", transB=1),
        _node("Identity", "g", "y"),
    ]
    graph = walk(_model(nodes, IMAGE, W, _weight("v", 5, MAP), shape))
    assert _kinds(graph) == ["conv", "gemm"]
    assert _work(graph)[1].macs == MAP * 5
    assert _work(graph)[1].weight_bytes == 4 * MAP * 5


def test_depthwise_grouped_dilated_and_transposed_convolutions() -> None:
    kinds = {
        "depthwise": (_conv("x u", "y", group=8), _weight("u", 8, 1, 3, 3), "depthwise", MAP * 9),
        "grouped": (_conv("x u", "y", group=2), _weight("u", 8, 4, 3, 3), "conv", MAP * 4 * 9),
        "dilated": (
            _node("Conv", "x u", "y", kernel_shape=[3, 3], pads=[2] * 4, dilations=[2, 2]),
            _weight("u", 8, 8, 3, 3),
            "conv",
            MAP * 8 * 9,
        ),
        # Every one of the 6 x 6 input positions is multiplied with the whole 4-channel kernel.
        "transposed": (
            _node("ConvTranspose", "x u", "y", kernel_shape=[2, 2], strides=[2, 2]),
            _weight("u", 8, 4, 2, 2),
            "conv",
            36 * 8 * 4 * 4,
        ),
    }
    for node, weight, kind, macs in kinds.values():
        (kernel,) = _work(walk(_model([node], IMAGE, weight)))
        assert (kernel.kind, kernel.macs) == (kind, macs)
    assert walk(_model([kinds["dilated"][0]], IMAGE, kinds["dilated"][1])).kernels[0].features["dilation"] == 2


def test_unknown_operators_are_named_and_priced_by_their_bytes() -> None:
    nodes = [_node("Relu", "x", "r"), _node("DeformRoi", "r", "y", domain="custom")]
    model = _model(nodes, IMAGE)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, IMAGE))
    graph = walk(model)
    assert graph.unknown == ("DeformRoi",)
    kernel = graph.kernels[1]
    assert (kernel.kind, kernel.bytes) == ("unknown:DeformRoi", 4 * 2 * MAP)


def test_batch_and_size_may_be_asked_for() -> None:
    nodes = [
        _conv("x w", "c"),
        _node("GlobalAveragePool", "c", "p"),
        _node("Flatten", "p", "f"),
        _node("Gemm", "f v", "y"),
    ]
    model = _model(nodes, ("N", 8, "H", "W"), W, _weight("v", 8, 5))
    with pytest.raises(BundleError, match="Give --input-size"):
        walk(model)
    graph = walk(model, batch=3, input_size=(10, 4))
    assert (graph.batch, graph.input_size) == (3, (10, 4))
    assert [kernel.macs for kernel in _work(graph)] == [3 * 8 * 40 * 72, 0, 3 * 40]
    fixed = _model(nodes, IMAGE, W, _weight("v", 8, 5))
    assert walk(fixed).batch == 1
    assert walk(fixed, batch=4).kernels[0].macs == 4 * walk(fixed).kernels[0].macs


def test_blocks_come_from_names_of_either_exporter() -> None:
    def named(name: str, scopes: str | None = None) -> str | None:
        node = _conv("x w", "y")
        node.name = name
        if scopes is not None:
            node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
        return walk(_model([node], IMAGE, W)).kernels[0].block

    assert named("layer1.0/Conv") == "layer1.0"
    assert named("stem/Conv") is None
    assert named("/layer2/layer2.1/conv1/Conv") == "layer2.1"
    assert named("/conv1/Conv") is None
    assert named("node_conv2d_3", "['', 'features', 'features.4', 'features.4.block', 'conv2d_3']") == "features.4"


def test_attention_products_are_counted_once_for_each_head() -> None:
    nodes = [
        _node("MatMul", "x w", "q"),
        _node("Transpose", "q", "t", perm=[0, 2, 1]),
        _node("MatMul", "q t", "s"),
        _node("Softmax", "s", "p", axis=-1),
        _node("MatMul", "p q", "y"),
    ]
    graph = walk(_model(nodes, (2, 10, 16), _weight("w", 16, 16)))
    assert _kinds(graph) == ["gemm", "transpose", "gemm", "softmax", "gemm"]
    assert [kernel.macs for kernel in graph.kernels if kernel.kind == "gemm"] == [
        2 * 10 * 16 * 16, 2 * 10 * 10 * 16, 2 * 10 * 10 * 16,
    ]  # fmt: skip
    assert graph.kernels[2].features["count"] == 2
    assert graph.kernels[2].weight_bytes == 0


@pytest.mark.parametrize("mode", MODES)
def test_macs_are_those_of_the_counter(mode: str) -> None:
    model, static, *_ = tiny_models(mode, batch=2)
    assert sum(kernel.macs for kernel in walk(static).kernels) == 2 * STATIC_MACS
    dense = walk(model)
    counter = MacCounter(model)
    masks = {name: np.ones(shape, np.float32) for name, shape in _mask_shapes(model).items()}
    assert sum(kernel.macs for kernel in dense.kernels) == pytest.approx(counter.count(masks).per_sample.sum())
    blocks = {name: sum(dense.kernels[i].dense_macs for i in part) for name, part in dense.parts.items()}
    assert blocks["stem"] == 2 * STEM_MACS
    assert blocks["head"] >= 2 * HEAD_MACS
    for name, macs in BLOCK_MACS.items():
        assert blocks[name] >= 2 * macs  # and the maskers


def _mask_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    shapes = static_shapes(model)
    found = {}
    for node in model.graph.node:
        if node.domain == DOMAIN:
            spec = OPERATORS[node.op_type]
            found |= {
                node.input[spec.input_index(port)]: shapes[node.input[spec.input_index(port)]]
                for port in spec.mask_inputs()
            }
    return found


def test_expected_macs_are_the_mean_over_random_masks() -> None:
    model, *_ = tiny_models("spatial", batch=1)
    counter, walker = MacCounter(model), GraphWalker(model)
    shapes = _mask_shapes(model)
    generator = np.random.default_rng(0)

    def drawn() -> float:
        masks = {name: (generator.random(shape) < 0.4).astype(np.float32) for name, shape in shapes.items()}
        return float(counter.count(masks).per_sample.sum())

    counted = np.mean([drawn() for _ in range(600)])
    graph = walker.graph(0.4)
    assert walker.gates == {"layer1.0": (PATCH,), "layer2.0": (PATCH,)}
    assert sum(kernel.macs for kernel in graph.kernels) == pytest.approx(counted, rel=0.02)


def test_rates_may_differ_by_block() -> None:
    model, *_ = tiny_models("both", batch=1)
    graph = walk(model, {"layer1.0": Rates(0.25, 0.5)})
    by_block = {kernel.block: kernel for kernel in graph.kernels if kernel.kind == "spatial_channel_bottleneck"}
    assert (by_block["layer1.0"].features["rate"], by_block["layer1.0"].features["channel_rate"]) == (0.25, 0.5)
    assert by_block["layer2.0"].macs == by_block["layer2.0"].dense_macs
    with pytest.raises(UsageError, match=r"in \[0, 1\]"):
        walk(model, 1.5)
    with pytest.raises(UsageError, match="Did you mean 'fp16'"):
        walk(model, precision="fp-16")


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["spatial", "layer", "channel", "spatial_channel"]),
    rates=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    side=st.integers(4, 20),
    mask=st.integers(1, 4),
    stride=st.sampled_from([1, 2]),
    dilation=st.integers(1, 2),
)
def test_a_bottleneck_never_gets_cheaper_by_running_more(kind, rates, side, mask, stride, dilation) -> None:
    mask = min(mask, (side - 1) // stride + 1)

    def kernel(rate: float):
        return bottleneck(
            kind, batch=2, size=(side, side), cin=16, cmid=8, cout=16, stride=stride, dilation=dilation,
            projection=stride == 2, rates=Rates(rate, rate), mask_size=(mask, mask),
        )  # fmt: skip

    low, high = kernel(min(rates)), kernel(max(rates))
    assert low.macs <= high.macs * (1 + 1e-9)
    assert high.macs <= high.dense_macs * (1 + 1e-9)
    assert kernel(1.0).macs == pytest.approx(kernel(1.0).dense_macs)
    assert low.features["rate_conv1"] <= high.features["rate_conv1"] + 1e-12


def test_a_constant_map_is_read_like_any_map() -> None:
    """A vector stays in a cache as weights do; a constant of the result's size is one more map."""
    nodes = [_node("Add", "x map", "a"), _node("Mul", "a vector", "y")]
    graph = walk(_model(nodes, IMAGE, _weight("map", *IMAGE), _weight("vector", 1, 8, 1, 1)))
    first, second = _work(graph)
    assert (first.read_bytes, first.weight_bytes, first.features["inputs"]) == (4.0 * 2 * MAP, 0.0, 2)
    assert (second.read_bytes, second.weight_bytes, second.features["inputs"]) == (4.0 * MAP, 4.0 * 8, 1)


def test_a_strided_pointwise_convolution_reads_what_it_uses() -> None:
    kernel = conv_kernel("c", None, batch=1, cin=4, cout=8, size=(8, 8), out_size=(4, 4), stride=2)
    assert kernel.read_bytes == 4 * 4 * 16
    kernel = conv_kernel("c", None, batch=1, cin=4, cout=8, size=(8, 8), out_size=(4, 4), kernel=(3, 3), stride=2)
    assert kernel.read_bytes == 4 * 4 * 64


def test_whole_numbers_are_as_wide_as_they_are() -> None:
    """PyTorch's ``one_hot(x).float()``: eight bytes a number, then four."""
    nodes = [
        helper.make_node("OneHot", ["x", "depth", "values"], ["codes"], name="a/onehot", axis=-1),
        helper.make_node("Cast", ["codes"], ["y"], name="a/cast", to=TensorProto.FLOAT),
    ]
    constants = [
        numpy_helper.from_array(np.array(16), "depth"),
        numpy_helper.from_array(np.array([0, 1], np.int64), "values"),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "hot", [info("x", TensorProto.INT64, (1, 100))], [info("y", TensorProto.FLOAT, (1, 100, 16))], constants
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    onehot, cast = walk(model).kernels
    assert (onehot.read_bytes, onehot.written_bytes) == (100 * 8, 1600 * 8)
    assert (cast.kind, cast.read_bytes, cast.written_bytes) == ("cast", 1600 * 8, 1600 * 4)
    record = NodeGraph.from_json(read_nodes(model).to_json())
    assert GraphWalker(record).graph().kernels == walk(model).kernels


@pytest.mark.parametrize(
    ("node", "shape", "run"),
    [
        (helper.make_node("Transpose", ["x"], ["y"], perm=[0, 2, 1, 3]), (1, 8, 4, 32), 32),
        (helper.make_node("Transpose", ["x"], ["y"], perm=[0, 2, 3, 1]), (1, 8, 4, 32), 1),
        (helper.make_node("Concat", ["x", "x"], ["y"], axis=1), (1, 8, 4, 32), 8 * 4 * 32),
        (helper.make_node("Split", ["x"], ["y", "z"], axis=3), (1, 8, 4, 32), 16),
    ],
)
def test_rows_that_are_moved_as_they_are(node: onnx.NodeProto, shape: tuple[int, ...], run: int) -> None:
    info = helper.make_tensor_value_info
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
    graph = helper.make_graph([node], "moves", [info("x", TensorProto.FLOAT, shape)], outputs)
    (kernel,) = walk(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])).kernels
    assert math.expm1(kernel.features["run"]) == pytest.approx(run)
