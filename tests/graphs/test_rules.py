"""The graph's own rules: a pass that breaks one is named."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
from onnx import TensorProto, helper

from dyndeploy.errors import ExportError
from dyndeploy.graphs.passes import PIPELINE, Context, run_pipeline
from dyndeploy.graphs.rules import RULES

CONTEXT = Context({}, ["y"], 17, 8, None, "cpu", inputs=["x"])


def graph_of(names: str = "") -> onnx.ModelProto:
    """A masker whose mask chooses between two branches that read what surrounds them."""
    value = helper.make_tensor_value_info

    def branch(kind: str) -> onnx.GraphProto:
        node = helper.make_node(kind, ["x"], [f"{kind}1"], name=f"head/{kind}")
        return helper.make_graph([node], kind, [], [value(f"{kind}1", TensorProto.FLOAT, (1, 4, 4, 2))])

    plugin = {"domain": "dyndeploy", "plugin_version": "1", "plugin_namespace": ""}
    nodes = [
        helper.make_node(
            "SpatialMasker", ["x", "w", "b"], ["mask"], name="head/Masker", mask_height=1, mask_width=1, **plugin
        ),
        helper.make_node("Squeeze", ["mask"], ["one"], name="head/Squeeze"),
        helper.make_node("Cast", ["one"], ["is"], name="head/Cast", to=TensorProto.BOOL),
        helper.make_node("If", ["is"], ["y"], name="head/If", then_branch=branch("Relu"), else_branch=branch("Neg")),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, (1, 4, 4, 2))],
        [value("y", TensorProto.FLOAT, (1, 4, 4, 2))],
        [
            helper.make_tensor("w", TensorProto.FLOAT, (1, 2), [1, 1]),
            helper.make_tensor("b", TensorProto.FLOAT, (1,), [0]),
        ],
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("dyndeploy", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def then(model: onnx.ModelProto) -> onnx.GraphProto:
    node = next(node for node in model.graph.node if node.op_type == "If")
    return next(item.g for item in node.attribute if item.name == "then_branch")


def node_of(model: onnx.ModelProto, kind: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == kind)


def swap(model: onnx.ModelProto) -> None:
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([nodes[1], nodes[0], *nodes[2:]])


def add_to_branch(model: onnx.ModelProto, **changes: str) -> None:
    made = {"output": "more", "input": "x", "name": "head/more", **changes}
    then(model).node.append(helper.make_node("Relu", [made["input"]], [made["output"]], name=made["name"]))


Breaker = Callable[[onnx.ModelProto], object]
CASES: dict[str, tuple[Breaker, str]] = {
    "reads nothing": (
        lambda m: node_of(m, "Cast").input.__setitem__(0, "gone"),
        "node head/Cast reads tensor gone that nothing produces",
    ),
    "reads too early": (swap, "node head/Squeeze reads tensor mask that is made behind it"),
    "branch reads nothing": (lambda m: add_to_branch(m, input="gone"), "node head/more reads tensor gone that nothing"),
    "branch reads the other": (lambda m: add_to_branch(m, input="Neg1"), "reads tensor Neg1 that nothing produces"),
    "output is gone": (lambda m: then(m).output.__getitem__(0).__setattr__("name", "z"), "output z is a tensor that"),
    "made twice": (
        lambda m: m.graph.node.append(helper.make_node("Relu", ["x"], ["mask"], name="head/again")),
        "node head/again makes tensor mask that exists already",
    ),
    "branch hides a tensor": (
        lambda m: add_to_branch(m, output="mask"),
        "node head/more makes tensor mask that exists",
    ),
    "two constants": (lambda m: m.graph.initializer.append(m.graph.initializer[0]), "there are two tensors w"),
    "returned twice": (lambda m: m.graph.output.append(m.graph.output[0]), "output y is returned twice"),
    "another input": (
        lambda m: m.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ())),
        r"the inputs are \['x', 'z'\], not \['x'\]",
    ),
    "no name": (lambda m: node_of(m, "Cast").__setattr__("name", ""), "a Cast that makes is has no name"),
    "no group": (lambda m: node_of(m, "Cast").__setattr__("name", "Cast"), "node Cast has no group in its name"),
    "one name twice": (lambda m: add_to_branch(m, name="head/Relu"), "two nodes are called head/Relu"),
    "unknown operator": (
        lambda m: node_of(m, "SpatialMasker").__setattr__("op_type", "Wish"),
        "no registered operator",
    ),
    "ports": (lambda m: node_of(m, "SpatialMasker").input.pop(), "has 2 inputs where SpatialMasker has 3"),
    "attributes": (lambda m: node_of(m, "SpatialMasker").attribute.pop(0), r"needs the attributes \['mask_height'"),
    "opset": (lambda m: m.opset_import.__getitem__(0).__setattr__("version", 16), "the opset is 16, not 17"),
    "domain": (lambda m: m.opset_import.pop(), "operators of domain dyndeploy are used, but it is not imported"),
    "IR": (lambda m: m.__setattr__("ir_version", 9), "the IR version is 9, not 8"),
    "bodies": (lambda m: m.functions.pop(), "operator SpatialMasker has no function body"),
    "metadata": (
        lambda m: then(m).node[0].metadata_props.append(onnx.StringStringEntryProto(key="k", value="v")),
        "head/Relu carries metadata",
    ),
}


def test_the_graph_is_right_as_it_is() -> None:
    run_pipeline(graph_of(), CONTEXT)


@pytest.mark.parametrize("case", CASES)
def test_a_pass_that_breaks_a_rule_is_named(case: str) -> None:
    breaker, message = CASES[case]

    def apply(model: onnx.ModelProto, context: Context) -> None:
        breaker(model)

    passes = [*PIPELINE[:-1], ("bad::pass", apply)]
    with pytest.raises(ExportError, match=f"^Pass bad::pass broke the graph: .*{message}.*please report it"):
        run_pipeline(graph_of(), CONTEXT, passes)


def test_rules_hold_only_after_the_pass_that_makes_them_hold() -> None:
    ids = {name for name, _ in PIPELINE}
    assert {rule.after for rule in RULES} <= ids | {""}
    model = graph_of()
    node_of(model, "Cast").name = ""
    run_pipeline(model, CONTEXT)
    model = graph_of()
    node_of(model, "Cast").input[0] = "gone"
    with pytest.raises(ExportError, match=r"^The capture gave a broken graph: node head/Cast reads tensor gone"):
        run_pipeline(model, CONTEXT)
