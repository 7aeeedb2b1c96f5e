"""The TensorRT copy of a graph: what the parser is given instead of the bundle's ``model.onnx``.

The bundle's graph stays portable FP32 with function bodies. The copy differs in what TensorRT's plugins need: no
function bodies (some parsers prefer them to a plugin), weights in the kernels' layout so that no plugin repacks
anything, the constants of channel skipping as further inputs, and the types of the precision plan.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dyndeploy.errors import BundleError, UsageError
from dyndeploy.graphs.inspect import (
    all_graphs,
    all_nodes,
    drop_unused,
    is_dynamic,
    operator_attributes,
    reads,
)
from dyndeploy.graphs.kept_float import float_in_parts, in_parts
from dyndeploy.graphs.shapes import static_shapes, with_values
from dyndeploy.graphs.tensorrt_bytes import as_words
from dyndeploy.ops import DOMAIN, OPERATORS, Element, Role
from dyndeploy.precisions import precision_of

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]

FIRST_STRONGLY_TYPED = 10
"""First major version of TensorRT that builds strongly typed networks."""

FIRST_WITHOUT_PRECISION_FLAGS = 11
"""First major version of TensorRT whose builder takes precisions from the graph only."""

HALF_ONLY = "plugin_half_only"
"""Attribute of a plugin's node: 1 where it may compute in half only, 0 where the builder may choose."""

LARGEST_BATCH = "plugin_largest_batch"
"""Attribute of a plugin's node: the largest batch that the engine is for. Kernels that round otherwise than others may
follow from it, never from the batch at hand, so that a sample has the same bits in any."""

TUNING = "plugin_tuning"
"""Attribute of a plugin's node: 1 where the sizes of its tiles may be chosen by timing, 0 where by formula alone."""

TIMING_RATES = "plugin_timing_rates"
"""Attribute of a plugin's node: active bits of a thousand of each mask, in the order of its inputs, with which its
kernels run while TensorRT times them; 0 reads the mask. Masks hold nothing meaningful then."""

TIMED_MASKS = 4
"""Length of that attribute: the most masks of a plugin; rates of masks that a plugin does not have are 0."""

DEFAULT_TIMING_RATE = 0.5
"""Share of active bits to time with where nobody knows the rate of a mask."""

_AXES_ARE_INPUTS = 18
"""First opset in which the axes of ReduceMean are an input."""

_MEAN_AXES = "dyndeploy/mean_axes"

_HALF_MAX = float(np.finfo(np.float16).max)
FLOAT_ONLY_INPUTS = {"Resize": (1, 2)}
"""Inputs that ONNX defines as float whatever the type of the data."""


@dataclass(frozen=True)
class PrecisionPlan:
    """Which numbers flow where in an engine.

    What FP16 means says :data:`dyndeploy.precisions.PRECISIONS`; the constants of channel skipping are biases, maskers
    stay float with their weights and sums, the head with its global mean and classifier.

    Attributes:
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        typed: The graph itself carries the types (strongly typed networks) instead of builder flags.
        integers: TensorRT makes layers in integers of its own, from QuantizeLinear and DequantizeLinear
            (:func:`dyndeploy.graphs.tensorrt_bytes.keeps_integers`).
    """

    precision: str
    typed: bool
    integers: bool = False

    @property
    def half(self) -> bool:
        """Whether activations that are no integers are half; beside TensorRT's own, a typed graph has them in float."""
        return self.precision == "fp16" or (self.precision == "int8" and not (self.integers and self.typed))

    @property
    def description(self) -> str:
        """One clause for reports."""
        how = "types in the graph" if self.typed else "builder flags"
        return f"{self.precision}, {how}: {precision_of(self.precision).engine}"


def precision_plan(
    precision: str, version: Sequence[int], *, strongly_typed: bool | None = None, integers: bool = False
) -> PrecisionPlan:
    """Choose how a precision reaches an engine.

    Args:
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        version: TensorRT's version.
        strongly_typed: Ask for one way; None takes builder flags where they exist.
        integers: See :class:`PrecisionPlan`.

    Raises:
        UsageError: The precision has no plan, or the version cannot build it that way.
    """
    if precision_of(precision).no_engine:
        raise UsageError(precision_of(precision).no_engine)
    major, text = version[0], ".".join(map(str, version))
    if strongly_typed and major < FIRST_STRONGLY_TYPED:
        raise UsageError(
            f"TensorRT {text} cannot build strongly typed networks (10 and later can). Leave --strongly-typed out."
        )
    if strongly_typed is False and major >= FIRST_WITHOUT_PRECISION_FLAGS:
        raise UsageError(f"TensorRT {text} has no precision flags: networks are always strongly typed.")
    if strongly_typed is None:
        strongly_typed = major >= FIRST_WITHOUT_PRECISION_FLAGS
    return PrecisionPlan(precision, strongly_typed, integers)


# ---------------------------------------------------------------- weights


def to_half(value: Array, name: str) -> npt.NDArray[np.float16]:
    """Round to half; raises ``UsageError`` where a weight does not fit."""
    largest = float(np.abs(value).max(initial=0))
    if largest > _HALF_MAX:
        raise UsageError(
            f"{name} holds {largest:g}, which is beyond the range of FP16 (65504). Use fp32 for this network."
        )
    return value.astype(np.float16)


# ---------------------------------------------------------------- the copy


def tensorrt_model(
    model: onnx.ModelProto,
    plan: PrecisionPlan,
    rates: Mapping[str, float] | None = None,
    *,
    tuning: bool = True,
) -> onnx.ModelProto:
    """Make the TensorRT copy of a bundle's graph.

    Args:
        model: ``model.onnx`` of a bundle, of one in INT8 as :func:`~dyndeploy.graphs.tensorrt_bytes.with_plugin_bytes`
            writes it; it is not changed.
        plan: Precision plan of the engine.
        rates: Expected activation rate of every mask by name; plugins are timed at it. None leaves timing to whatever
            the masks hold, and masks without a rate count as :data:`DEFAULT_TIMING_RATE`.
        tuning: Whether the sizes of the plugins' tiles may be chosen by timing.

    Returns:
        A graph with the same inputs, outputs and node names.

    Raises:
        BundleError: A weight of a bottleneck is no constant of the graph.
        UsageError: FP16 cannot hold a weight, or the graph has branches whose types no plan writes.
    """
    import onnx

    # Arithmetic on sizes is exact in the graph, and would not be in half.
    model = with_values(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.functions[:]
    del copy.graph.value_info[:]
    _reduce_means(copy)
    if plan.half and plan.typed:
        if any(attribute.HasField("g") for node in model.graph.node for attribute in node.attribute):
            raise UsageError("A graph with branches (If) has no typed FP16 plan. Use fp32 for it.")
        _Typing(model, copy).apply()
    _repack(model, copy, half=plan.half)
    _narrow_indices(copy)
    _state_precision(copy, half=plan.half)
    _state_batch(copy)
    if rates is not None:
        _state_rates(copy, rates)
    _state_tuning(copy, tuning=tuning)
    drop_unused(copy)
    return copy


def _state_precision(copy: onnx.ModelProto, *, half: bool) -> None:
    """Leave a builder with flags no choice: timed against each other, float plugins may win where the plan says half.

    Maskers decide in float anyway and take their input as it comes.
    """
    from onnx import helper

    for node in all_nodes(copy.graph):
        if is_dynamic(node) and "tensorrt" in OPERATORS[node.op_type].kernels:
            only = half and not OPERATORS[node.op_type].decides
            node.attribute.append(helper.make_attribute(HALF_ONLY, int(only)))


def _state_batch(copy: onnx.ModelProto) -> None:
    """Where the graph's own inputs say it."""
    from onnx import helper

    first = copy.graph.input[0].type.tensor_type.shape.dim if copy.graph.input else ()
    batch = first[0].dim_value if first else 0
    for node in all_nodes(copy.graph):
        if batch > 0 and is_dynamic(node) and "tensorrt" in OPERATORS[node.op_type].kernels:
            node.attribute.append(helper.make_attribute(LARGEST_BATCH, batch))


def _state_rates(copy: onnx.ModelProto, rates: Mapping[str, float]) -> None:
    from onnx import helper

    from dyndeploy.graphs.forced import PREFIX

    for node in all_nodes(copy.graph):
        kernel = OPERATORS[node.op_type].kernels.get("tensorrt") if is_dynamic(node) else None
        if kernel is None or not OPERATORS[node.op_type].gates:
            continue
        spec = OPERATORS[node.op_type]
        masks = [node.input[spec.input_index(name)].removeprefix(PREFIX) for name in spec.mask_inputs()]
        timed = [max(1, round(1000 * rates.get(mask, DEFAULT_TIMING_RATE))) for mask in masks]
        timed += [0] * (TIMED_MASKS - len(timed))
        node.attribute.append(helper.make_attribute(TIMING_RATES, timed))


def _state_tuning(copy: onnx.ModelProto, *, tuning: bool) -> None:
    from onnx import helper

    for node in all_nodes(copy.graph):
        if is_dynamic(node) and "tensorrt" in OPERATORS[node.op_type].kernels:
            node.attribute.append(helper.make_attribute(TUNING, int(tuning)))


def _constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {item.name: item for part in all_graphs(model.graph) for item in part.initializer}


def _reduce_means(copy: onnx.ModelProto) -> None:
    """Write means as such: a product with a constant row is faster in ONNX Runtime, but TensorRT pads the map."""
    from onnx import helper, numpy_helper

    constants = _constants(copy)
    opset = next(entry.version for entry in copy.opset_import if not entry.domain)
    rows = [node for node in copy.graph.node if node.op_type == "MatMul" and _is_mean(constants.get(node.input[0]))]
    if not rows:
        return
    if opset >= _AXES_ARE_INPUTS:
        copy.graph.initializer.append(numpy_helper.from_array(np.array([-2], np.int64), _MEAN_AXES))
    for node in rows:
        mean = helper.make_node("ReduceMean", [node.input[1]], list(node.output), name=node.name, keepdims=1)
        if opset >= _AXES_ARE_INPUTS:
            mean.input.append(_MEAN_AXES)
        else:
            mean.attribute.append(helper.make_attribute("axes", [-2]))
        node.CopyFrom(mean)


def _is_mean(row: onnx.TensorProto | None) -> bool:
    """Whether a constant is (..., 1, K) with 1 / K throughout."""
    from onnx import numpy_helper

    if row is None or len(row.dims) < 2 or math.prod(row.dims[:-1]) != 1:
        return False
    return bool(np.all(numpy_helper.to_array(row) == np.float32(1 / row.dims[-1])))


def _repack(model: onnx.ModelProto, copy: onnx.ModelProto, *, half: bool) -> None:
    from onnx import numpy_helper

    constants = _constants(model)
    for node in all_nodes(copy.graph):
        kernel = OPERATORS[node.op_type].kernels.get("tensorrt") if is_dynamic(node) else None
        if kernel is None or kernel.pack is None:
            continue
        weights: dict[str, Array] = {}
        elements = {port.name: port.element for port in kernel.constants}
        kept = []
        for port, name in zip(OPERATORS[node.op_type].inputs, node.input, strict=False):
            if port.role is not Role.WEIGHT:
                kept.append(name)
            elif name in constants:
                weights[port.name] = numpy_helper.to_array(constants[name])
            else:
                raise BundleError(f"{node.name}: its input {port.name} is no constant. Export the bundle again.")
        for name, value in kernel.pack(weights, operator_attributes(node)).items():
            # A name of its own: the exporter lets operators share equal constants, which are laid out differently here.
            full = f"{node.name}/{name}"
            typed = _typed(value, full, elements[name], half=half)
            copy.graph.initializer.append(numpy_helper.from_array(typed, full))
            kept.append(full)
        node.input[:] = kept


def _typed(value: Array, name: str, element: Element, *, half: bool) -> Array:
    """A packed constant in the type that plugins take."""
    if element.in_words:
        return as_words(value)
    if element is Element.INT32:
        return value.astype(np.int32)
    return to_half(value, name) if half and element is Element.DATA else value.astype(np.float32)


def _narrow_indices(copy: onnx.ModelProto) -> None:
    """Give plugins whole numbers as 32-bit ones, which every release has."""
    from onnx import TensorProto, helper

    for graph in all_graphs(copy.graph):
        nodes = []
        for node in graph.node:
            kernel = OPERATORS[node.op_type].kernels.get("tensorrt") if is_dynamic(node) else None
            ports = () if kernel is None else OPERATORS[node.op_type].native_inputs("tensorrt")
            for index, port in enumerate(ports):
                if port.element is Element.INDEX:
                    name, narrow = node.input[index], f"{node.name}/{port.name}/int32"
                    nodes.append(helper.make_node("Cast", [name], [narrow], name=narrow, to=TensorProto.INT32))
                    node.input[index] = narrow
            nodes.append(node)
        if len(nodes) > len(graph.node):
            del graph.node[:]
            graph.node.extend(nodes)


def in_head(node_name: str) -> bool:
    """Whether a node stands behind the last block of its network, or of its stage where stages are joined.

    Of a network that tells its parts these are all parts but the backbone.
    """
    return _in_classifier(node_name) or in_parts(node_name)


def _in_classifier(node_name: str) -> bool:
    return "/head/" in f"/{node_name}"


def float_nodes(model: onnx.ModelProto) -> set[str]:
    """Names of the standard nodes that compute in float under FP16: parts of maskers, the head, and what is exact.

    A convolutional masker has standard operators in front of its decision; a bit must not flip through their
    rounding. The head is the global mean, which multiplies by 1 / pixels (half holds that to three digits only), and
    all that computes with the vectors behind it: classifier and confidence. Of a network that tells its parts it is
    what :mod:`dyndeploy.graphs.kept_float` says.
    """
    outputs = {value.name for value in model.graph.output}
    shapes = static_shapes(model)
    consumers: dict[str, list[int]] = {}
    for index, node in enumerate(model.graph.node):
        for name in reads(node):
            consumers.setdefault(name, []).append(index)
    masker: set[int] = set()
    head: set[int] = set()
    for index in reversed(range(len(model.graph.node))):
        node = model.graph.node[index]
        readers = [reader for name in node.output for reader in consumers.get(name, [])]
        if node.domain == DOMAIN:
            spec = OPERATORS.get(node.op_type)
            if spec is not None and spec.decides:
                masker.add(index)
        elif in_parts(node.name):
            continue
        elif _in_classifier(node.name) and head.issuperset(readers) and all(map(_is_vector, _known(node, shapes))):
            head.add(index)
        elif not outputs & set(node.output) and readers and masker.issuperset(readers):
            masker.add(index)
    kept = masker | head | float_in_parts(model)
    return {node.name for index, node in enumerate(model.graph.node) if not node.domain and index in kept}


def _known(node: onnx.NodeProto, shapes: Mapping[str, Sequence[int]]) -> list[Sequence[int]]:
    return [shapes[name] for name in node.output if name in shapes]


def _is_vector(shape: Sequence[int]) -> bool:
    """Whether a tensor has at most one axis besides the batch, which comes first."""
    return sum(size != 1 for size in shape[1:]) <= 1


class _Typing:
    """Writes the types of an FP16 plan into a graph: Cast nodes where they meet, half constants.

    Args:
        model: The original; its types are inferred through the function bodies.
        copy: The graph to change.
    """

    def __init__(self, model: onnx.ModelProto, copy: onnx.ModelProto) -> None:
        import onnx

        inferred = onnx.shape_inference.infer_shapes(model).graph
        values = (*inferred.value_info, *inferred.input, *inferred.output)
        self._float = onnx.TensorProto.FLOAT
        self._half = onnx.TensorProto.FLOAT16
        self._types = {value.name: value.type.tensor_type.elem_type for value in values}
        self._types |= {item.name: item.data_type for item in copy.graph.initializer}
        for node in model.graph.node:
            # Shape inference may stop at a function body; dynamic operators give floats, or bytes.
            if node.domain == DOMAIN:
                bytes_made = OPERATORS[node.op_type].outputs[0].element is Element.UINT8
                self._types[node.output[0]] = onnx.TensorProto.UINT8 if bytes_made else self._float
        self._copy = copy
        self._keep_float = float_nodes(model)
        self._nodes: list[onnx.NodeProto] = []
        self._cast: dict[tuple[str, int], str] = {}
        self._constants = _constants(copy)
        self._added: list[onnx.TensorProto] = []

    def apply(self) -> None:
        from onnx import helper

        graph = self._copy.graph
        outputs = {value.name for value in graph.output}
        for node in graph.node:
            wanted = self._type_of(node)
            if wanted is None:  # a masker: its input may be half, its weights and result are float
                self._nodes.append(node)
                continue
            for index, name in enumerate(node.input):
                if self._types.get(name) not in (self._float, self._half):
                    continue
                if self._takes_data(node, index):
                    node.input[index] = self._as(name, wanted, node.name)
                elif self._takes_float(node, index):
                    node.input[index] = self._as(name, self._float, node.name)
            self._nodes.append(node)
            for index, name in enumerate(node.output):
                if self._types.get(name) != self._float or node.op_type in ("Cast", "Constant"):
                    continue
                if wanted == self._half and name in outputs:
                    # The engine's outputs stay float; inside, the half tensor has another name.
                    node.output[index] = f"{name}/half"
                    self._types[f"{name}/half"] = self._half
                    cast = helper.make_node("Cast", [f"{name}/half"], [name], name=f"{name}/Cast", to=self._float)
                    self._nodes.append(cast)
                else:
                    self._types[name] = wanted
        del graph.node[:]
        graph.node.extend(self._nodes)
        graph.initializer.extend(self._added)

    def _type_of(self, node: onnx.NodeProto) -> int | None:
        if node.domain != DOMAIN:
            return self._float if node.name in self._keep_float else self._half
        return None if OPERATORS[node.op_type].decides else self._half

    def _takes_data(self, node: onnx.NodeProto, index: int) -> bool:
        if node.domain == DOMAIN:  # weights are written when they are repacked; masks stay float
            port = OPERATORS[node.op_type].inputs[index]
            return port.role is Role.ACTIVATION and port.element is Element.DATA
        return index not in FLOAT_ONLY_INPUTS.get(node.op_type, ()) and node.op_type != "Cast"

    @staticmethod
    def _takes_float(node: onnx.NodeProto, index: int) -> bool:
        """Whether an operator of ours reads an activation as float whatever it computes in."""
        if node.domain != DOMAIN:
            return False
        port = OPERATORS[node.op_type].inputs[index]
        return port.role is Role.ACTIVATION and port.element is Element.FLOAT

    def _as(self, name: str, wanted: int, where: str) -> str:
        """The tensor ``name`` in the wanted type: itself, a rounded constant, or behind a Cast."""
        from onnx import helper, numpy_helper

        if self._types[name] == wanted:
            return name
        if (name, wanted) not in self._cast:
            label = "half" if wanted == self._half else "float"
            converted = f"{name}/as_{label}"
            if name in self._constants:
                value = numpy_helper.to_array(self._constants[name])
                self._added.append(numpy_helper.from_array(to_half(value, name), converted))
            else:
                cast_name = f"{where.rsplit('/', 1)[0]}/Cast_{len(self._cast)}"
                self._nodes.append(helper.make_node("Cast", [name], [converted], name=cast_name, to=wanted))
            self._types[converted] = wanted
            self._cast[name, wanted] = converted
        return self._cast[name, wanted]


def required_creators(model: onnx.ModelProto) -> list[str]:
    """Plugin creators that a TensorRT copy needs (``op_type``, version 1, namespace empty), sorted."""
    return sorted({node.op_type for node in all_nodes(model.graph) if node.domain == DOMAIN})


def missing_creators(model: onnx.ModelProto, creators: Iterable[tuple[str, str]]) -> list[str]:
    """Operators of the graph that no registered plugin creator serves.

    Args:
        model: A TensorRT copy.
        creators: Name and version of every registered creator.
    """
    known = set(creators)
    return [name for name in required_creators(model) if (name, str(OPERATORS[name].version)) not in known]
