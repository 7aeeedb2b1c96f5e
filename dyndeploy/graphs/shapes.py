"""Shapes of all tensors of a graph, and the numbers in it that follow from sizes alone.

Exporters write sizes as arithmetic: the target of a Reshape is Shape, Slice and Concat, the anchors of a detector are
Range and Expand. Once the sizes of the inputs are known, all of that is known too. Here ONNX's shape inference and its
reference evaluator take turns: the first says how large tensors are, the second computes what needs nothing else. No
weights are needed for either.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dyndeploy.errors import BundleError
from dyndeploy.graphs.inspect import (
    all_graphs,
    all_nodes,
    drop_unused,
    is_dynamic,
    operator_attributes,
    shape_of,
    subgraphs,
)
from dyndeploy.ops import OPERATORS
from dyndeploy.ops.base import Shape

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]

_SHAPE_CONSTANT = 1024
"""Initialisers up to this size may hold shapes and stay; larger ones are weights, of which the shape suffices."""

_LARGEST_VALUE = 1 << 20
"""Elements up to which a tensor is computed: grids of anchors, but nothing that would fill the memory."""

_READ_SIZES = ("Shape", "Size")
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)


@dataclass(frozen=True)
class Sizes:
    """What follows from the sizes of a graph's inputs.

    Attributes:
        shapes: By tensor name, of the constants too; a size that is not static is -1.
        values: Tensors that nodes compute from sizes and small constants alone, by name: a runtime that knows the
            sizes computes them once, when it loads the graph.
        widths: Bytes of an element, of tensors that hold whole numbers, truth values or doubles: those keep their
            width whatever precision a network runs in.
        assumed: Nodes whose results have as many entries as the data says, by name, with what was assumed instead.
    """

    shapes: Mapping[str, Shape]
    values: Mapping[str, Array]
    widths: Mapping[str, int]
    assumed: Mapping[str, str] = field(default_factory=dict)


def static_shapes(
    model: onnx.ModelProto, input_shape: Shape | None = None, *, assume: bool = False, strict: bool = False
) -> dict[str, Shape]:
    """Shapes of all tensors of a graph; arguments and errors are those of :func:`known_sizes`.

    Returns:
        Shapes by tensor name; a size that is not static is -1.
    """
    return dict(known_sizes(model, input_shape, assume=assume, strict=strict).shapes)


def known_sizes(
    model: onnx.ModelProto, input_shape: Shape | None = None, *, assume: bool = False, strict: bool = False
) -> Sizes:
    """What follows from the sizes of a graph's inputs; shapes behind a dynamic operator come from its own rule.

    Inside skipped blocks shapes are those of a whole batch.

    Args:
        model: The graph; its weights may be missing.
        input_shape: Shape of the first input; None leaves it as the graph has it.
        assume: Whether an operator of a domain gives what the file says of its outputs and, where it says nothing of
            one of another domain than ours, maps of its first input's size; and whether suppression leaves as many
            boxes as it may, and entries are shared out evenly among the values that they are compared with. Else
            nothing is known behind that.
        strict: Whether a node whose inputs do not fit it is an error; else nothing is known behind it, unless it is one
            that weights are multiplied in (:func:`contradiction`), which always is.

    Raises:
        BundleError: The sizes contradict each other.
    """
    from dyndeploy.graphs.branches import flattened

    search = _Search(flattened(model).model, input_shape, assume)
    while search.infer(strict) and (
        search.apply_rules() | search.evaluate() or search.assume_counts() or search.assume_one()
    ):
        pass
    for node in all_nodes(search.inferred.graph):
        wrong = contradiction(node, search.shapes)
        if wrong:
            raise BundleError(f"Node '{node.name or node.output[0]}' ({node.op_type}) contradicts itself: {wrong}.")
    return Sizes(search.shapes, search.values, search.widths(), search.assumed)


def with_values(model: onnx.ModelProto) -> onnx.ModelProto:
    """Write what follows from sizes into a graph as constants.

    A graph that reads no sizes is left as it is.

    Args:
        model: A graph whose inputs have static shapes; it is not changed.

    Raises:
        BundleError: As for :func:`known_sizes`.
    """
    import onnx
    from onnx import numpy_helper

    if not any(node.op_type in _READ_SIZES and not node.domain for node in model.graph.node):
        return model
    outputs = {value.name for value in model.graph.output}
    values = {name: value for name, value in known_sizes(model, assume=True).values.items() if name not in outputs}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = [node for node in model.graph.node if not all(name in values for name in node.output)]
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    made = {name for node in kept for name in node.output}
    copy.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in values.items() if name not in made
    )
    drop_unused(copy)
    return copy


class _Search:
    """Shape inference, the rules of dynamic operators and evaluation in turn, until nothing more is found.

    Args:
        model: Without skipped blocks.
        input_shape: As for :func:`known_sizes`.
        assume: As for :func:`known_sizes`.

    Attributes:
        inferred: The graph with the shapes that inference found.
        shapes: By tensor name.
        values: What was evaluated, by tensor name.
        assumed: As :attr:`Sizes.assumed`.
    """

    def __init__(self, model: onnx.ModelProto, input_shape: Shape | None, assume: bool) -> None:
        import onnx
        from onnx import helper

        slim = self._slim = onnx.ModelProto(ir_version=model.ir_version)
        slim.opset_import.extend(model.opset_import)
        slim.graph.name = model.graph.name
        slim.graph.node.extend(model.graph.node)
        slim.graph.input.extend(model.graph.input)
        if input_shape is None:
            slim.graph.output.extend(model.graph.output)
        else:
            first = slim.graph.input[0]
            kind = first.type.tensor_type.elem_type
            first.CopyFrom(helper.make_tensor_value_info(first.name, kind, input_shape))
            # The declared outputs are those of another input size.
            slim.graph.output.extend(onnx.ValueInfoProto(name=value.name) for value in model.graph.output)
        for item in model.graph.initializer:
            if math.prod(item.dims) <= _SHAPE_CONSTANT:
                slim.graph.initializer.append(item)
            else:
                slim.graph.input.append(helper.make_tensor_value_info(item.name, item.data_type, item.dims))
        self._places = [(graph, node) for graph in all_graphs(slim.graph) for node in graph.node if is_dynamic(node)]
        self._foreign = [node for node in slim.graph.node if assume and node.domain and not is_dynamic(node)]
        said_of = (*model.graph.value_info, *model.graph.output)
        stated = {value.name: value for value in said_of if value.type.tensor_type.HasField("shape")}
        self._stated = {value.name for value in slim.graph.output} & set(stated) if input_shape is None else set()
        if input_shape is None:
            said = (*self._foreign, *((node for _, node in self._places) if assume else ()))
            outputs = {name for node in said for name in node.output}
            slim.graph.value_info.extend(stated[name] for name in outputs - self._stated if name in stated)
            self._stated |= outputs & set(stated)
        self._weights = {item.name: tuple(item.dims) for item in model.graph.initializer}
        self._opsets = list(model.opset_import)
        self._known = dict(_small_constants(slim.graph))
        self.inferred, self.shapes = slim, dict[str, Shape]()
        self.values: dict[str, Array] = {}
        self.assumed: dict[str, str] = {}
        self._assume = assume

    def infer(self, strict: bool) -> bool:
        """Infer the shapes of all tensors; raises ``BundleError`` where that finds a contradiction."""
        import onnx

        try:
            self.inferred = onnx.shape_inference.infer_shapes(self._slim, strict_mode=strict, data_prop=True)
        except onnx.shape_inference.InferenceError as error:
            raise BundleError(f"The shapes of the graph cannot be inferred: {' '.join(str(error).split())}") from error
        shapes = dict(self._weights)
        parts = list(all_graphs(self.inferred.graph))
        shapes |= {item.name: tuple(item.dims) for part in parts[1:] for item in part.initializer}
        for value in (value for part in parts for value in (*part.input, *part.output, *part.value_info)):
            if value.type.tensor_type.HasField("shape"):
                shapes[value.name] = shape_of(value)
        self.shapes = shapes | {name: value.shape for name, value in self.values.items()}
        return True

    def widths(self) -> dict[str, int]:
        """As :attr:`Sizes.widths`."""
        from onnx import TensorProto as Kind

        wide = {Kind.INT64: 8, Kind.UINT64: 8, Kind.DOUBLE: 8, Kind.INT32: 4, Kind.UINT32: 4}
        wide |= dict.fromkeys((Kind.BOOL, Kind.UINT8, Kind.INT8), 1)
        graphs = all_graphs(self.inferred.graph)
        known = (value for graph in graphs for value in (*graph.input, *graph.output, *graph.value_info))
        kinds = {value.name: value.type.tensor_type.elem_type for value in known}
        return {name: wide[kind] for name, kind in kinds.items() if kind in wide}

    def apply_rules(self) -> bool:
        """Let the dynamic operators whose inputs are known say what they give; returns whether any did."""
        from onnx import helper

        progress = False
        for graph, node in self._places:
            inputs = [self.shapes.get(name) for name in node.input]
            if node.output[0] in self._stated or any(shape is None or -1 in shape for shape in inputs):
                continue
            spec = OPERATORS[node.op_type]
            results = spec.output_shapes([s for s in inputs if s is not None], operator_attributes(node))
            for port, output, shape in zip(spec.outputs, node.output, results, strict=True):
                kind = helper.np_dtype_to_tensor_dtype(np.dtype(port.element.dtype or "float32"))
                self.shapes[output] = shape
                graph.value_info.append(helper.make_tensor_value_info(output, kind, shape))
                self._stated.add(output)
            progress = True
        return progress

    def evaluate(self) -> bool:
        """Compute what only needs sizes and small constants; returns whether that tells inference anything new."""
        from onnx import numpy_helper

        kept, found = [], dict[str, Array]()
        for node in self._slim.graph.node:
            outputs = self._value(node)
            if outputs is None:
                kept.append(node)
                continue
            found |= outputs
            self._known |= outputs
        if not found:
            return False
        del self._slim.graph.node[:]
        self._slim.graph.node.extend(kept)
        self._slim.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in found.items())
        self.values |= found
        self.shapes |= {name: value.shape for name, value in found.items()}
        return any(-1 in self.shapes.get(name, (-1,)) for node in kept for name in node.output if name)

    def _value(self, node: onnx.NodeProto) -> dict[str, Array] | None:
        """What a node computes, or None where that is not known, not fixed, or too large."""
        if node.domain not in ("", "ai.onnx") or node.op_type in _RANDOM or any(subgraphs(node)):
            return None
        if node.op_type in _READ_SIZES:
            shape = self.shapes.get(node.input[0])
            if shape is None or -1 in shape:
                return None
            return {node.output[0]: _size(node, shape)}
        if any(name and name not in self._known for name in node.input):
            return None
        if any(math.prod(self.shapes.get(name, ())) > _LARGEST_VALUE for name in node.output if name):
            return None
        return _evaluated(node, {name: self._known[name] for name in node.input if name}, self._opsets)

    def assume_counts(self) -> bool:
        """Assume how many entries standard operators give where the data decides; returns whether any was open."""
        from onnx import TensorProto, helper

        if not self._assume:
            return False
        makers = {name: node for node in self._slim.graph.node for name in node.output}
        found: dict[str, Shape] = {}
        for node in self._slim.graph.node:
            name = node.output[0]
            if node.domain or name in self._stated or -1 not in self.shapes.get(name, ()):
                continue
            left = self._left(node) if node.op_type == "NonMaxSuppression" else None
            part = self._equal_part(node, makers) if node.op_type == "NonZero" else None
            if left is not None:
                found[name], self.assumed[node.name or name] = (left, 3), f"{left}, the most it may leave"
            elif part is not None:
                found[name], self.assumed[node.name or name] = (1, part[0]), f"{part[0]}, one of {part[1]} equal parts"
        for name, shape in found.items():
            self._slim.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.INT64, shape))
            self._stated.add(name)
        return bool(found)

    def _left(self, node: onnx.NodeProto) -> int | None:
        """Most boxes that suppression leaves, where its own limit says so."""
        limit = self._known.get(node.input[2]) if len(node.input) > 2 else None
        scores = self.shapes.get(node.input[1], ())
        if limit is None or limit.size != 1 or len(scores) != 3 or scores[:2] != (1, 1):
            return None
        most = int(limit.reshape(-1)[0])
        return most if 0 < most <= scores[2] else None

    def _equal_part(self, node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> tuple[int, int] | None:
        """Entries of a vector that equal a constant, and of how many constants it is one: parts of equal size.

        The entries of all parts together are those of the vector, as levels of a pyramid share out boxes.
        """
        own = makers.get(node.input[0])
        if own is None or own.op_type != "Equal" or own.input[1] not in self._known:
            return None
        shape = self.shapes.get(own.input[0], ())
        alike = [
            name
            for other in self._slim.graph.node
            if other.op_type == "NonZero"
            for name in other.input
            if name in makers and makers[name].op_type == "Equal" and makers[name].input[0] == own.input[0]
        ]
        if len(shape) != 1 or shape[0] < 0:
            return None
        share, rest = divmod(shape[0], len(alike))
        return share + (alike.index(node.input[0]) < rest), len(alike)

    def assume_one(self) -> bool:
        """Let one operator of another domain give maps of its first input's size; returns whether there was one.

        One at a time and the first one first: what stands behind it may be inferred once it is known.
        """
        from onnx import TensorProto, helper

        for node in self._foreign:
            shape = self.shapes.get(node.input[0]) if node.input else None
            if not shape:
                continue
            self._foreign.remove(node)
            for output in node.output:
                if output not in self._stated and output not in self.shapes:
                    value = helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)
                    self._slim.graph.value_info.append(value)
                    self._stated.add(output)
            return True
        return False


def _small_constants(graph: onnx.GraphProto) -> Iterator[tuple[str, Array]]:
    """The constants that may hold sizes, except those whose numbers lie in a file that was not read."""
    from onnx import TensorProto, numpy_helper

    for item in graph.initializer:
        if item.data_location != TensorProto.EXTERNAL:
            with contextlib.suppress(ValueError):  # The weights may be missing.
                yield item.name, numpy_helper.to_array(item)


def _size(node: onnx.NodeProto, shape: Shape) -> Array:
    """What a ``Shape`` or ``Size`` gives."""
    if node.op_type == "Size":
        return np.array(math.prod(shape), np.int64)
    given = {item.name: item.i for item in node.attribute}
    return np.array(shape[given.get("start", 0) : given.get("end", len(shape))], np.int64)


def _evaluated(
    node: onnx.NodeProto, inputs: Mapping[str, Array], opsets: list[onnx.OperatorSetIdProto]
) -> dict[str, Array] | None:
    """What a node computes from its inputs; None where ONNX's reference has no answer."""
    from onnx import ValueInfoProto, helper
    from onnx.reference import ReferenceEvaluator

    names = [name for name in node.output if name]
    graph = helper.make_graph(
        [node], "sizes", [ValueInfoProto(name=name) for name in inputs], [ValueInfoProto(name=name) for name in names]
    )
    try:
        results = ReferenceEvaluator(helper.make_model(graph, opset_imports=opsets)).run(None, dict(inputs))
    except Exception:
        # Whatever it stumbles over, the node stays for inference and for the runtime.
        return None
    # A sequence is no tensor.
    arrays = [np.asarray(value) for value in results if isinstance(value, (np.ndarray, np.generic))]
    return dict(zip(names, arrays, strict=True)) if len(arrays) == len(names) else None


def unknown_size(tensor: str, shape: Shape | None, maker: str = "") -> str:
    """Say which size of a tensor is not known; a sentence for an error.

    Args:
        tensor: Its name.
        shape: As far as it is known; None where not even the number of axes is.
        maker: The node that makes it, for a reader; empty for an input.
    """
    axes = "" if shape is None else ", ".join(str(axis) for axis, size in enumerate(shape) if size < 0)
    what = f"The number of axes of '{tensor}'" if shape is None else f"The size of '{tensor}' along axis {axes}"
    if not maker:
        return f"{what} is not static."
    return f"{what} is not static: node {maker} makes it, and it does not follow from the sizes of the inputs."


def contradiction(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> str:
    """How the sizes of a convolution's or matrix product's inputs disagree; empty where they fit or are not known.

    ONNX's shape inference looks at the outer sizes of weights only.

    Args:
        node: Any node.
        shapes: By tensor; a size that is not static is -1.
    """
    from onnx import helper

    if node.domain or node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return ""
    data, weight, bias = (shapes.get(name) if name else None for name in (*node.input, "")[:3])
    if data is None or weight is None:
        return ""
    given = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    if node.op_type in ("Gemm", "MatMul"):
        left = data[0] if given.get("transA") else data[-1] if data else -1
        right = weight[-1] if given.get("transB") or len(weight) == 1 else weight[-2] if weight else -1
        fits = left == right or -1 in (left, right)
        return "" if fits else f"{left} columns of {data} are multiplied with {right} rows of {weight}"
    if len(data) != len(weight) or len(data) < 3:
        return f"its input has {len(data)} axes {data}, its weights {len(weight)} {weight}"
    group, channels = given.get("group", 1), data[1]
    wanted, made = weight[1] * group, weight[0]
    if node.op_type == "ConvTranspose":
        wanted, made = weight[0], weight[1] * group
    if channels != wanted and -1 not in (channels, *weight[:2]):
        return f"its input has {channels} channels, its weights {weight} in {group} group(s) take {wanted}"
    if weight[0] > 0 and weight[0] % group:
        return f"{weight[0]} channels of its weights {weight} are no multiple of its {group} groups"
    kernel = tuple(given.get("kernel_shape", weight[2:]))
    if kernel != weight[2:] and -1 not in weight[2:]:
        return f"its kernel is {kernel}, that of its weights {weight[2:]}"
    pads = given.get("pads", [0] * 2 * len(kernel))
    for size, side, dilation, before, after in zip(
        data[2:], kernel, given.get("dilations", [1] * len(kernel)), pads, pads[len(kernel) :], strict=False
    ):
        fixed = node.op_type == "Conv" and size > 0 and not given.get("auto_pad", b"").startswith(b"SAME")
        if fixed and dilation * (side - 1) + 1 > size + before + after:
            return f"its kernel {kernel} is larger than its input {data}, padded by {list(pads)}"
    if bias is not None and bias != (made,) and -1 not in (*bias, made):
        return f"its bias has the shape {bias}, and it makes {made} channels"
    return ""
