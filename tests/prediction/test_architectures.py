from __future__ import annotations

import pytest

from dyndeploy.errors import UsageError
from dyndeploy.prediction import Graph, static_graph, static_names
from dyndeploy.prediction.architectures import static_name

PUBLISHED = {  # torchvision's table: GFLOPS (multiply-accumulates) and parameters
    "resnet18": (1.81, 11689512),
    "resnet34": (3.66, 21797672),
    "resnet50": (4.09, 25557032),
    "resnet101": (7.80, 44549160),
    "resnet152": (11.51, 60192808),
    "vgg16": (15.47, 138357544),
    "mobilenet_v3_large": (0.22, 5483032),
    "regnet_y_400mf": (0.40, 4344144),
    "regnet_y_800mf": (0.83, 6432512),
    "regnet_y_1_6gf": (1.61, 11202430),
    "regnet_y_3_2gf": (3.18, 19436338),
    "regnet_y_8gf": (8.47, 39381472),
    "regnet_y_16gf": (15.91, 83590140),
    "regnet_y_32gf": (32.28, 145046770),
}


def _macs(graph: Graph) -> float:
    return sum(kernel.macs for kernel in graph.kernels)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_macs_and_weights_are_the_published_ones(name):
    macs, parameters = PUBLISHED[name]
    graph = static_graph(name)
    assert _macs(graph) / 1e9 == pytest.approx(macs, abs=0.0051)
    weights = sum(kernel.weight_bytes for kernel in graph.kernels) / 4
    # The table also counts biases and batch norm.
    assert 0.99 * parameters < weights < parameters
    assert not graph.unknown


def test_larger_images_and_batches():
    assert _macs(static_graph("regnet_y_128gf", input_size=(384, 384))) / 1e9 == pytest.approx(374.57, rel=2e-3)
    one, many = static_graph("mobilenet_v3_large"), static_graph("mobilenet_v3_large", batch=8)
    assert _macs(many) == 8 * _macs(one)
    assert [k.weight_bytes for k in many.kernels] == [k.weight_bytes for k in one.kernels]
    half = static_graph("mobilenet_v3_large", precision="fp16")
    assert [k.bytes for k in half.kernels] == [k.bytes / 2 for k in one.kernels]


def test_the_ends_and_the_blocks_are_there():
    graph = static_graph("resnet50", runtime="tensorrt")
    parts = graph.parts
    names = list(parts)
    assert (names[0], names[-1], len(names)) == ("stem", "head", 18)
    assert [graph.kernels[i].kind for i in parts["stem"]] == ["conv", "pool"]
    assert [graph.kernels[i].kind for i in parts["head"]] == ["pool", "gemm"]
    assert [graph.kernels[i].name for i in parts["layer2.0"]] == [
        "layer2.0/conv1", "layer2.0/conv2", "layer2.0/conv3", "layer2.0/downsample",
    ]  # fmt: skip
    assert sum(map(len, parts.values())) == len(graph.kernels)


@pytest.mark.parametrize("name", static_names())
def test_what_is_fused_is_not_lost(name):
    fused, separate = static_graph(name, runtime="tensorrt"), static_graph(name, runtime="pytorch")
    assert _macs(fused) == _macs(separate)
    assert len(fused.kernels) < len(separate.kernels)
    assert sum(k.bytes for k in fused.kernels) < sum(k.bytes for k in separate.kernels)


def test_names():
    assert static_name("RegNetY_004") == "regnet_y_400mf" and static_name("laud_resnet50") is None
    with pytest.raises(UsageError, match="Did you mean 'resnet50'"):
        static_graph("resnet5")
    with pytest.raises(UsageError, match="must be positive"):
        static_graph("resnet50", input_size=(0, 224))
