"""The graph's own rules, written down once and checked after every pass: a bad pass is named by the pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx

from dyndeploy.errors import ExportError, UsageError
from dyndeploy.graphs.inspect import all_graphs, all_nodes, operator_attributes, subgraphs
from dyndeploy.ops import DOMAIN, OPERATORS

if TYPE_CHECKING:
    from dyndeploy.graphs.passes.pipeline import Context


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        after: Id of the pass that makes it hold; empty for what holds always.
        broken: Gives one clause for every place where a graph breaks it, such as "node a reads b".
    """

    after: str
    broken: Callable[[onnx.ModelProto, Context], Iterator[str]]


def _title(node: onnx.NodeProto) -> str:
    return f"node {node.name or node.op_type}"


def _reads_what_exists(model: onnx.ModelProto, context: Context | None = None) -> Iterator[str]:
    """Everything read is an input, a constant, or made earlier; branches see what surrounds them."""

    def walk(graph: onnx.GraphProto, around: Collection[str]) -> Iterator[str]:
        known = {*around, *(value.name for value in (*graph.input, *graph.initializer))}
        made = {name for node in graph.node for name in node.output}
        for node in graph.node:
            for name in node.input:
                if name and name not in known:
                    late = "is made behind it" if name in made else "nothing produces"
                    yield f"{_title(node)} reads tensor {name} that {late}"
            for inner in subgraphs(node):
                yield from walk(inner, known)
            known.update(node.output)
        for value in graph.output:
            if value.name not in known:
                yield f"output {value.name} is a tensor that nothing produces"

    yield from walk(model.graph, ())


def _makes_tensors_once(model: onnx.ModelProto, context: Context | None = None) -> Iterator[str]:
    """No tensor is made twice, nor inside a branch where it exists already."""

    def walk(graph: onnx.GraphProto, around: Collection[str]) -> Iterator[str]:
        known = set(around)
        for value in (*graph.input, *graph.initializer):
            if value.name in known:
                yield f"there are two tensors {value.name}"
            known.add(value.name)
        for node in graph.node:
            for inner in subgraphs(node):
                yield from walk(inner, known)
            for name in node.output:
                if name in known:
                    yield f"{_title(node)} makes tensor {name} that exists already"
                if name:
                    known.add(name)

    yield from walk(model.graph, ())


def _returns_tensors_once(model: onnx.ModelProto, context: Context | None = None) -> Iterator[str]:
    """Outputs, of branches too, are tensors of their own, and inputs are no outputs."""
    for graph in all_graphs(model.graph):
        seen = {value.name for value in graph.input}
        for value in graph.output:
            if value.name in seen:
                yield f"output {value.name} is returned twice or is an input"
            seen.add(value.name)


def _keeps_inputs_and_outputs(model: onnx.ModelProto, context: Context) -> Iterator[str]:
    """Inputs and outputs are those that the bundle lists, in order."""
    inputs = [value.name for value in model.graph.input]
    outputs = [value.name for value in model.graph.output]
    # The confidence is a further output, which a pass of its own adds.
    expected = [list(context.outputs), [*context.outputs, context.confidence]]
    if inputs != list(context.inputs):
        yield f"the inputs are {inputs}, not {list(context.inputs)}"
    if outputs not in expected:
        yield f"the outputs are {outputs}, not {list(context.outputs)}"


def _names_nodes(model: onnx.ModelProto, context: Context | None = None) -> Iterator[str]:
    """Names of nodes, in branches too, are unique and of the form ``group/...``."""
    seen: set[str] = set()
    for node in all_nodes(model.graph):
        if not node.name:
            yield f"a {node.op_type} that makes {', '.join(node.output)} has no name"
        elif "/" not in node.name.lstrip("/"):
            yield f"{_title(node)} has no group in its name"
        elif node.name in seen:
            yield f"two nodes are called {node.name}"
        seen.add(node.name)


def _fits_operators(model: onnx.ModelProto, context: Context | None = None) -> Iterator[str]:
    """Dynamic operators are registered, with an input for every port and exactly their attributes."""
    for node in all_nodes(model.graph):
        if node.domain != DOMAIN:
            continue
        spec = OPERATORS.get(node.op_type)
        if spec is None:
            yield f"{_title(node)} is a {node.op_type}, which is no registered operator"
            continue
        least = sum(not port.optional for port in spec.inputs)
        if not least <= len(node.input) <= len(spec.inputs):
            yield f"{_title(node)} has {len(node.input)} inputs where {spec.name} has {len(spec.inputs)}"
        try:
            spec.check_attributes(operator_attributes(node))
        except UsageError as error:
            yield f"{_title(node)}: {str(error).rstrip('.')}"


def _has_promised_version(model: onnx.ModelProto, context: Context) -> Iterator[str]:
    """Opset and IR version are the target's, and every domain is imported."""
    versions = {entry.domain: entry.version for entry in model.opset_import}
    if versions.get("") != context.opset:
        yield f"the opset is {versions.get('')}, not {context.opset}"
    if model.ir_version != context.ir_version:
        yield f"the IR version is {model.ir_version}, not {context.ir_version}"
    for domain in sorted({node.domain for node in all_nodes(model.graph)} - versions.keys()):
        yield f"operators of domain {domain} are used, but it is not imported"


def _has_bodies(model: onnx.ModelProto, context: Context | None = None) -> Iterator[str]:
    """Every dynamic operator has its function body, if it can be written at the opset."""
    bodies = {function.name for function in model.functions if function.domain == DOMAIN}
    opset = next((entry.version for entry in model.opset_import if not entry.domain), 0)
    for name in sorted({node.op_type for node in all_nodes(model.graph) if node.domain == DOMAIN} - bodies):
        spec = OPERATORS.get(name)
        if spec is None or spec.least_opset <= opset:
            yield f"operator {name} has no function body"


def _has_no_metadata(model: onnx.ModelProto, context: Context) -> Iterator[str]:
    """Nothing that only the capture needed is left."""
    for graph in all_graphs(model.graph):
        for item in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
            if item.metadata_props:
                yield f"{item.name} carries metadata"


RULES: tuple[Rule, ...] = (
    Rule("", _reads_what_exists),
    Rule("", _makes_tensors_once),
    Rule("", _fits_operators),
    Rule("names::nodes", _names_nodes),
    Rule("names::tensors", _returns_tensors_once),
    Rule("names::tensors", _keeps_inputs_and_outputs),
    Rule("opset::legalise", _has_promised_version),
    Rule("functions::attach", _has_bodies),
    Rule("metadata::strip", _has_no_metadata),
)
"""All rules."""


def check_structure(model: onnx.ModelProto, who: str) -> None:
    """Check the rules that need no context: tensors, operators, names of nodes, bodies.

    Args:
        model: A graph with its function bodies.
        who: What made it, as the beginning of a sentence, e.g. "Pass fold::constants broke the graph".

    Raises:
        ExportError: A rule is broken.
    """
    for broken in (_reads_what_exists, _makes_tensors_once, _fits_operators, _names_nodes, _returns_tensors_once):
        _raise_first(broken(model), who)
    _raise_first(_has_bodies(model), who)


def _raise_first(clauses: Iterator[str], who: str) -> None:
    for clause in clauses:
        raise ExportError(f"{who}: {clause}; this is a fault of the exporter, please report it.")


def check_rules(model: onnx.ModelProto, context: Context, done: Sequence[str]) -> None:
    """Check every rule that holds after some passes.

    Args:
        model: The graph.
        context: What the passes were told.
        done: Ids of the passes that have run, in order.

    Raises:
        ExportError: A rule is broken; the message names the last pass, and the place.
    """
    for rule in RULES:
        if not rule.after or rule.after in done:
            who = f"Pass {done[-1]} broke the graph" if done else "The capture gave a broken graph"
            _raise_first(rule.broken(model, context), who)
