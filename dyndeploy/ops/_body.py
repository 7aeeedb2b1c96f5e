"""A small builder for ONNX function bodies: operators as methods, integer arithmetic as Python operators.

Everything in a body that depends on shapes alone is written as graph arithmetic, so that one body serves every
size; with static shapes a runtime folds it to constants when it loads the model.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


@dataclass(frozen=True)
class AttributeRef:
    """Reference to an attribute of the enclosing function; ``kind`` is an ``onnx.AttributeProto`` type."""

    FLOAT = onnx.AttributeProto.FLOAT
    INT = onnx.AttributeProto.INT
    INTS = onnx.AttributeProto.INTS

    name: str
    kind: int = INTS


@dataclass(frozen=True)
class Value:
    """A tensor inside a body; arithmetic on it appends nodes. ``//`` is integer division towards zero."""

    body: Body
    name: str

    def __add__(self, other: Value | int) -> Value:
        return self._with("Add", other)

    def __sub__(self, other: Value | int) -> Value:
        return self._with("Sub", other)

    def __mul__(self, other: Value | int) -> Value:
        return self._with("Mul", other)

    def __floordiv__(self, other: Value | int) -> Value:
        return self._with("Div", other)

    def _with(self, op_type: str, other: Value | int) -> Value:
        # Of a body and one inside it, only the inner one knows both values.
        inner = other.body if isinstance(other, Value) and other.body.depth > self.body.depth else self.body
        return inner.op(op_type, self, other)


class Body:
    """Nodes of one function (or of a subgraph inside it).

    Attributes:
        opset: Of the model that the function is for, at least 13.
    """

    def __init__(self, parent: Body | None = None, *, opset: int = 13) -> None:
        self.opset: int = parent.opset if parent else opset
        self.nodes: list[onnx.NodeProto] = []
        self.depth: int = parent.depth + 1 if parent else 0
        self._names: itertools.count[int] = parent._names if parent else itertools.count()
        self._constants: dict[tuple[Any, ...], str] = parent._constants if parent else {}
        self._constant_nodes: list[onnx.NodeProto] = parent._constant_nodes if parent else []

    def _fresh(self, hint: str) -> str:
        return f"{hint.lower()}_{next(self._names)}"

    def input(self, name: str) -> Value:
        """A value that is defined outside this body."""
        return Value(self, name)

    def value(self, value: Value | int | Sequence[int]) -> Value:
        """``value`` itself, or an int64 constant (scalar for an int, vector for a sequence)."""
        if isinstance(value, Value):
            return Value(self, value.name)
        array = np.asarray(value, np.int64)
        key = (array.shape, array.tobytes())
        if key not in self._constants:
            name = self._fresh("const")
            # Constants stand before everything else, so that subgraphs may share them.
            self._constant_nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array)))
            self._constants[key] = name
        return Value(self, self._constants[key])

    def attribute(self, name: str) -> Value:
        """An INTS attribute of the function as an int64 vector."""
        return self.op("Constant", value_ints=AttributeRef(name))

    def integer(self, name: str) -> Value:
        """An INT attribute of the function as an int64 scalar."""
        return self.op("Constant", value_int=AttributeRef(name, AttributeRef.INT))

    def number(self, name: str) -> Value:
        """A FLOAT attribute of the function as a float scalar."""
        return self.op("Constant", value_float=AttributeRef(name, AttributeRef.FLOAT))

    def op(self, op_type: str, *inputs: Value | int | Sequence[int], **attributes: Any) -> Value:
        """Append a node of a standard operator with one output."""
        return self.several(op_type, 1, *inputs, **attributes)[0]

    def several(
        self, op_type: str, count: int, *inputs: Value | int | Sequence[int], **attributes: Any
    ) -> tuple[Value, ...]:
        """Append a node of a standard operator with that many outputs."""
        names = [self.value(item).name for item in inputs]
        outputs = [self._fresh(op_type) for _ in range(count)]
        references = {k: v for k, v in attributes.items() if isinstance(v, AttributeRef)}
        plain = {k: v for k, v in attributes.items() if not isinstance(v, AttributeRef)}
        node = helper.make_node(op_type, names, outputs, **plain)
        for name, reference in references.items():
            node.attribute.append(
                onnx.AttributeProto(name=name, type=reference.kind, ref_attr_name=reference.name)  # type: ignore[arg-type]
            )
        self.nodes.append(node)
        return tuple(Value(self, output) for output in outputs)

    # ------------------------------------------------------------ shorthands

    def dim(self, tensor: Value, axis: int) -> Value:
        """Size of an axis as an int64 scalar."""
        return self.op("Gather", self.op("Shape", tensor), axis, axis=0)

    def arange(self, stop: Value, start: Value | int = 0) -> Value:
        """``[start, ..., stop - 1]``."""
        return self.op("Range", start, stop, 1)

    def reshape(self, tensor: Value, *sizes: Value | int) -> Value:
        """Reshape to sizes given as integers or int64 scalars."""
        if all(isinstance(size, int) for size in sizes):
            return self.op("Reshape", tensor, [size for size in sizes if isinstance(size, int)])
        parts = [self.value([size]) if isinstance(size, int) else self.op("Unsqueeze", size, [0]) for size in sizes]
        return self.op("Reshape", tensor, self.op("Concat", *parts, axis=0))

    def unsqueeze(self, tensor: Value, *axes: int) -> Value:
        """Insert axes of size 1."""
        return self.op("Unsqueeze", tensor, axes)

    def gather(self, data: Value, indices: Value, axis: int = 0) -> Value:
        """ONNX Gather."""
        return self.op("Gather", data, indices, axis=axis)

    def linear(self, rows: Value, weight: Value, bias: Value) -> Value:
        """``rows @ weight.T + bias`` as one Gemm."""
        return self.op("Gemm", rows, weight, bias, transB=1)

    def zeros_like(self, tensor: Value) -> Value:
        """Zeros of the same shape and type, whatever the type is."""
        return self.op("Sub", tensor, tensor)

    def ones(self, like: Value, *sizes: Value | int) -> Value:
        """Ones of these sizes, of the type of the vector ``like``, whatever the type is."""
        one = self.op("Exp", self.zeros_like(self.op("Slice", like, [0], [1])))
        parts = [self.value([size]) if isinstance(size, int) else self.op("Unsqueeze", size, [0]) for size in sizes]
        return self.op("Expand", one, self.op("Concat", *parts, axis=0))

    # ------------------------------------------------------------ control flow

    def branch(self, condition: Value, then: Callable[[Body], Value], otherwise: Callable[[Body], Value]) -> Value:
        """ONNX ``If`` on a scalar, with one output; only the chosen branch runs."""
        graphs = {}
        for key, build in (("then_branch", then), ("else_branch", otherwise)):
            inner = Body(self)
            result = inner.op("Identity", build(inner))
            graphs[key] = helper.make_graph(inner.nodes, self._fresh(key), [], [onnx.ValueInfoProto(name=result.name)])
        return self.op("If", condition, **graphs)

    def for_each_sample(self, inputs: Sequence[Value], build: Callable[[Body, list[Value]], Value]) -> Value:
        """ONNX ``Scan`` over the first axis of every input; the results, two axes each, are stacked."""
        inner = Body(self)
        slices = [inner.input(self._fresh("sample")) for _ in inputs]
        # It copies nothing, and tells the rank: releases before 1.28 of ONNX Runtime run no Scan that leaves it open.
        result = inner.op("Reshape", build(inner, slices), [0, 0])
        graph = helper.make_graph(
            inner.nodes,
            self._fresh("scan"),
            [onnx.ValueInfoProto(name=item.name) for item in slices],
            [onnx.ValueInfoProto(name=result.name)],
        )
        return self.op("Scan", *inputs, body=graph, num_scan_inputs=len(inputs))

    def function_nodes(self, results: Sequence[Value], outputs: Sequence[str]) -> list[onnx.NodeProto]:
        """All nodes in order, which end with the function's outputs."""
        read = [name for node in self.nodes for name in _names_read(node)] + [result.name for result in results]
        made = {node.output[0] for node in self.nodes}
        renamed, copies = {}, []
        for result, output in zip(results, outputs, strict=True):
            if result.name in made and read.count(result.name) == 1:
                renamed[result.name] = output
            else:
                copies.append(helper.make_node("Identity", [result.name], [output]))
        nodes = []
        for node in self.nodes:
            nodes.append(onnx.NodeProto())
            nodes[-1].CopyFrom(node)
            nodes[-1].output[0] = renamed.get(node.output[0], node.output[0])
        return [*self._constant_nodes, *nodes, *copies]


def _names_read(node: onnx.NodeProto) -> list[str]:
    """Values that a node or the graphs in it read."""
    graphs = [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]
    inner = [name for graph in graphs for part in graph.node for name in _names_read(part)]
    return [*node.input, *inner, *(value.name for graph in graphs for value in graph.output)]
