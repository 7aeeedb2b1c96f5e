"""What does not fit is refused in words, whether the plugin, the graph or the builder is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from dyndeploy.errors import DyndeployError
from dyndeploy.graphs.tensorrt import HALF_ONLY
from dyndeploy.measure.laziness import branch_model
from dyndeploy.runtimes.native import NativeLibrary
from dyndeploy.runtimes.tensorrt_ahead import BuilderPackage, build_ahead, build_planned, require_planned
from dyndeploy.runtimes.tensorrt_plan import plan_build
from dyndeploy.targets import load_target
from tests.bundles import tiny_models
from tests.tensorrt_rtx import wrong_plugin

WORKER = str(Path(wrong_plugin.__file__))


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("float output", "SpatialChannelBottleneck: x has type FLOAT, expected HALF"),
        ("three outputs", "layer1.0/SpatialMasker.*expected output size is 3, actual output size is 1"),
        (
            "one input less",
            "SpatialChannelBottleneckProjection: the node has 13 inputs and 1 outputs, expected 12 and 1",
        ),
        (
            "half the height",
            r"layer1.0/SpatialChannelBottleneckProjection writes \(1, 4, 8, 16\), and the graph says \(1, 8,",
        ),
        ("abort", "ended by SIGABRT before the engine was built"),
    ],
)
def test_a_wrong_plugin_fails(way: str, message: str, rtx: BuilderPackage) -> None:
    source, _, _ = tiny_models("both")
    plan, copy = plan_build(source, "fp16", rtx.text, capabilities=("8.6",))
    with pytest.raises(DyndeployError, match=message):
        require_planned(build_planned(plan, copy, rtx, worker=(WORKER, way)), source)


def _changed(copy: onnx.ModelProto, way: str) -> None:
    node = next(node for node in copy.graph.node if node.op_type == "SpatialChannelBottleneck")
    weights = {item.name: item for item in copy.graph.initializer}
    if way == "count":
        del node.input[-1]
    elif way == "type":
        item = weights[node.input[3]]
        item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item).astype(np.float16), item.name))
    elif way == "shape":
        item = weights[node.input[3]]
        item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item).T.copy(), item.name))
    elif way == "precision":
        next(entry for entry in node.attribute if entry.name == HALF_ONLY).i = 1
    else:
        del node.attribute[0]


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("count", "SpatialChannelBottleneck: the node has 10 inputs and 1 outputs, expected 11 and 1"),
        ("type", "SpatialChannelBottleneck: w1 has type HALF, expected FLOAT"),
        ("shape", "SpatialChannelBottleneck: dimension 0 of w1 is 4, expected 16"),
        ("attribute", "attribute dilations is missing"),
        ("precision", "SpatialChannelBottleneck: x has type FLOAT, expected HALF"),
    ],
)
def test_a_wrong_graph_fails(way: str, message: str, rtx: BuilderPackage) -> None:
    assert message in refusal(way, rtx)


def refusal(way: str, rtx: BuilderPackage, library: NativeLibrary | None = None) -> str:
    """What is said of a graph that is wrong in one way."""
    plan, copy = plan_build(tiny_models("both")[0], "fp32", rtx.text, capabilities=("8.6",))
    _changed(copy, way)
    with pytest.raises(DyndeployError) as caught:
        build_planned(plan, copy, rtx, library)
    return str(caught.value)


def test_a_gpu_that_the_builder_does_not_know(rtx: BuilderPackage) -> None:
    with pytest.raises(DyndeployError, match=r"cannot build for compute capability 5\.3"):
        build_ahead(tiny_models()[0], package=rtx, capabilities=("5.3",))


def test_a_graph_that_is_none(rtx: BuilderPackage) -> None:
    plan, _ = plan_build(tiny_models()[0], "fp32", rtx.text)
    with pytest.raises(DyndeployError, match="Network must have at least one output"):
        build_planned(plan, onnx.ModelProto(), rtx)


def test_a_plugin_with_scratch_memory_in_a_branch(rtx: BuilderPackage) -> None:
    model = branch_model(load_target("agx_orin"), operators=True)
    with pytest.raises(DyndeployError, match=r"work/0 \(LayerBottleneck\) stands in a branch.*scratch memory"):
        build_ahead(model, package=rtx)
    plan, copy = plan_build(model, "fp32", rtx.text, capabilities=("8.6",))
    # The builder's own words, which a later version may no longer say.
    with pytest.raises(DyndeployError, match="wksp with TYPE unspecified"):
        build_planned(plan, copy, rtx)
