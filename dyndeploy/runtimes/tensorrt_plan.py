"""A build plan: everything that decides, for a TensorRT copy of a graph, what engine is built from it.

The host computes it once, as JSON; :func:`dyndeploy.runtimes.tensorrt_device.build` carries it out, on this machine and
on a board, call by call the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dyndeploy.errors import UsageError
from dyndeploy.fields import Document, Field
from dyndeploy.graphs.inspect import all_graphs, all_nodes, operator_attributes
from dyndeploy.graphs.shapes import static_shapes
from dyndeploy.graphs.tensorrt import PrecisionPlan, float_nodes, precision_plan, required_creators, tensorrt_model
from dyndeploy.graphs.tensorrt_bytes import keeps_integers, with_plugin_bytes, word_shape
from dyndeploy.ops import DOMAIN, OPERATORS, Role
from dyndeploy.ops.base import OperatorSpec
from dyndeploy.runtimes import tensorrt_inspector
from dyndeploy.runtimes.tensorrt_device import interface_version

if TYPE_CHECKING:
    import onnx

FAMILY = "tensorrt"
"""The family of kernels that the plugins are."""

_DOCUMENT = Document("The build plan", "Make it again with this release.", UsageError)


@dataclass(frozen=True)
class BuildOptions:
    """What a user may choose of a build besides the precision; the defaults live here and nowhere else.

    Attributes:
        workspace_mib: Scratch memory that a layer may use, in MiB.
        tf32: Whether FP32 convolutions may round their inputs to TF32 on GPUs that have it.
        cuda_graph: Whether runs are captured in a CUDA graph where that is possible.
        tuning: Whether plugins choose the sizes of their tiles by timing, else by a formula; results are the same.
    """

    workspace_mib: int = 1024
    tf32: bool = False
    cuda_graph: bool = True
    tuning: bool = True


@dataclass(frozen=True)
class PluginNode:
    """A node of the graph that a plugin computes.

    Attributes:
        name: Its name, which the engine's layer keeps.
        operator: Its ``op_type``.
        attributes: The values of all its attributes, one after the other as its operator declares them; those that
            are no integers as the bits of a 32-bit float, as the plugin library takes them.
        shapes: Of all its inputs in the TensorRT copy; -1 where a size is open.
    """

    name: str
    operator: str
    attributes: tuple[int, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class BuildPlan:
    """How an engine is built and run.

    Attributes:
        tensorrt: Version of the TensorRT that the plan is for, as that writes it.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        typed: Whether the graph carries the types (strongly typed networks) instead of builder flags.
        integers: Whether TensorRT makes layers in integers of its own (:class:`PrecisionPlan`).
        float_layers: Names of the layers that builder flags pin to float: maskers and the head; empty where the graph
            carries the types.
        workspace_mib: Scratch memory that a layer may use, in MiB.
        tf32: Whether FP32 convolutions may round their inputs to TF32.
        plugins: Name and version of every plugin creator that the graph needs.
        plugin_nodes: The nodes that plugins compute.
        plugin_types: By operator, the types that its plugin ``reads`` and ``writes`` (:func:`planned_types`); what the
            built engine says otherwise fails the build.
        library_sha256: SHA-256 of the plugin library, or None if no plugin is needed or the library is not built yet.
        cuda_graph: Whether runs are captured in a CUDA graph; it changes how the engine runs, not the engine.
        capabilities: Compute capabilities of the GPUs that it is built for; empty for the one at hand.
        tuning: Whether plugins may choose the sizes of their tiles by timing, where a builder times.
    """

    tensorrt: str
    precision: str
    typed: bool
    integers: bool = False
    float_layers: tuple[str, ...] = ()
    workspace_mib: int = BuildOptions.workspace_mib
    tf32: bool = BuildOptions.tf32
    plugins: tuple[tuple[str, str], ...] = field(default=())
    plugin_nodes: tuple[PluginNode, ...] = ()
    plugin_types: Mapping[str, Mapping[str, list[str]]] = field(default_factory=dict)
    library_sha256: str | None = None
    cuda_graph: bool = BuildOptions.cuda_graph
    capabilities: tuple[str, ...] = ()
    tuning: bool = BuildOptions.tuning

    @property
    def precision_plan(self) -> PrecisionPlan:
        """Which numbers flow where."""
        return PrecisionPlan(self.precision, self.typed, self.integers)

    def with_library(self, sha256: str | None) -> BuildPlan:
        """The plan with a plugin library; without plugins it needs none, and stays as it is."""
        return replace(self, library_sha256=sha256) if self.plugins else self

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        value = asdict(self)
        if not self.integers:  # So plans without have the keys of engines that they always had.
            del value["integers"]
        return {
            **value,
            "float_layers": list(self.float_layers),
            "plugins": [list(each) for each in self.plugins],
            "plugin_nodes": {
                node.name: {
                    "operator": node.operator,
                    "attributes": list(node.attributes),
                    "shapes": [list(shape) for shape in node.shapes],
                }
                for node in self.plugin_nodes
            },
            "capabilities": list(self.capabilities),
        }

    @classmethod
    def from_json(cls, value: Any) -> BuildPlan:
        """Read what :meth:`to_json` wrote; raises ``UsageError`` that names the field."""
        root = _DOCUMENT.root(value)
        return cls(
            tensorrt=root["tensorrt"].text(),
            precision=root["precision"].one_of("fp32", "fp16", "int8"),
            typed=root["typed"].boolean(),
            integers=root.get("integers").optional(Field.boolean) or False,
            float_layers=root["float_layers"].sequence(Field.text),
            workspace_mib=root["workspace_mib"].count(),
            tf32=root["tf32"].boolean(),
            plugins=root["plugins"].sequence(_plugin),
            plugin_nodes=tuple(
                PluginNode(name, *values) for name, values in root["plugin_nodes"].mapping(_plugin_node).items()
            ),
            plugin_types=root["plugin_types"].mapping(_plugin_types),
            library_sha256=root["library_sha256"].optional(Field.sha256),
            cuda_graph=root["cuda_graph"].boolean(),
            capabilities=root["capabilities"].sequence(Field.text),
            tuning=root["tuning"].boolean(),
        )


def _plugin(item: Field) -> tuple[str, str]:
    name, version = item.sequence(Field.text, length=2)
    return name, version


def _plugin_node(item: Field) -> tuple[str, tuple[int, ...], tuple[tuple[int, ...], ...]]:
    attributes = item["attributes"].sequence(lambda value: value.count(-(2**31), 2**31 - 1))
    return item["operator"].text(), attributes, item["shapes"].sequence(lambda shape: shape.sequence(_size))


def _size(item: Field) -> int:
    return item.tally(-1)


def _plugin_types(item: Field) -> dict[str, list[str]]:
    return {part: list(item[part].sequence(Field.text)) for part in ("reads", "writes")}


def planned_types(spec: OperatorSpec, *, half: bool) -> dict[str, list[str]]:
    """What a plugin reads and writes by the plan: types by NumPy's names, in the order of its inputs and outputs.

    Args:
        spec: Its operator. One that decides reads its x as it comes (:data:`tensorrt_inspector.ANY`).
        half: Whether the plan computes the plugins in half.
    """
    data = "float16" if half else "float32"
    x = tensorrt_inspector.ANY if spec.decides else data
    return {
        "reads": [port.element.plugin_dtype or x for port in spec.native_inputs(FAMILY)],
        "writes": [port.element.plugin_dtype or data for port in spec.outputs],
    }


def _plugin_nodes(source: onnx.ModelProto, copy: onnx.ModelProto) -> tuple[PluginNode, ...]:
    found = []
    shapes = dict(static_shapes(source)) | {
        item.name: tuple(item.dims) for part in all_graphs(copy.graph) for item in part.initializer
    }
    inputs = {node.name: node.input for node in all_nodes(copy.graph)}
    for node in all_nodes(source.graph):
        if node.domain != DOMAIN or FAMILY not in OPERATORS[node.op_type].kernels:
            continue
        spec, values_of = OPERATORS[node.op_type], operator_attributes(node)
        values = []
        for attribute in spec.attributes:
            row = np.atleast_1d(values_of[attribute.name])
            bits = row.astype(np.float32).view(np.int32) if attribute.type is float else row
            values += [int(value) for value in bits]
        # Casts give activations other names in the copy; only weights are repacked.
        given_by_graph = [
            name for port, name in zip(spec.inputs, node.input, strict=False) if port.role is not Role.WEIGHT
        ]
        constants = inputs[node.name][len(given_by_graph) :]
        known = [
            *(
                word_shape(port.element, shapes.get(name, ()))
                for port, name in zip(spec.inputs, given_by_graph, strict=False)
            ),
            *(shapes.get(name, ()) for name in constants),
        ]
        sizes = tuple(tuple(int(size) for size in shape) for shape in known) if all(known) else ()
        found.append(PluginNode(node.name, node.op_type, tuple(values), sizes))
    return tuple(found)


def _float_layers(source: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the nodes that flags pin to float: those of :func:`float_nodes` that give floats.

    A comparison gives none, and trtexec would have it give some; what it compares is pinned.
    """
    import onnx

    inferred = onnx.shape_inference.infer_shapes(source).graph
    others = {
        value.name
        for value in (*inferred.value_info, *inferred.output)
        if value.type.tensor_type.elem_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.UNDEFINED)
    }
    kept = float_nodes(source)
    return tuple(sorted(node.name for node in source.graph.node if node.name in kept and not others & {*node.output}))


def plan_build(
    source: onnx.ModelProto,
    precision: str,
    tensorrt: str,
    *,
    strongly_typed: bool | None = None,
    options: BuildOptions | None = None,
    capabilities: Sequence[str] = (),
    rates: Mapping[str, float] | None = None,
) -> tuple[BuildPlan, onnx.ModelProto]:
    """Plan an engine, and make the TensorRT copy that the plan is for.

    Args:
        source: ``model.onnx`` or ``static.onnx`` of a bundle, perhaps with forced masks or labels.
        precision: ``"fp32"``, ``"fp16"``, or ``"int8"`` for a graph that is written in it.
        tensorrt: Version of the TensorRT that will build, as that writes it; ``"RTX 1.7.1.116"`` for TensorRT-RTX.
        strongly_typed: Ask for types in the graph or for builder flags; None takes flags where they exist.
        options: Workspace, TF32, CUDA graphs and tuning; None takes the defaults.
        capabilities: Compute capabilities to build for; empty takes the GPU at hand.
        rates: Expected activation rate of every mask by name, at which plugins are timed; where there is none,
            :data:`dyndeploy.graphs.tensorrt.DEFAULT_TIMING_RATE`.

    Returns:
        The plan, without its plugin library (see :meth:`BuildPlan.with_library`), and the copy.

    Raises:
        UsageError: There is no plan for the precision, or this TensorRT cannot build it that way.
        BundleError: A weight of a dynamic operator is no constant of the graph.
    """
    options = options or BuildOptions()
    source, integers = with_plugin_bytes(source), keeps_integers(source)
    types = precision_plan(precision, interface_version(tensorrt), strongly_typed=strongly_typed, integers=integers)
    copy = tensorrt_model(source, types, rates or {}, tuning=options.tuning)
    nodes = _plugin_nodes(source, copy)
    plan = BuildPlan(
        tensorrt=tensorrt,
        precision=types.precision,
        typed=types.typed,
        integers=types.integers,
        float_layers=_float_layers(source) if types.half and not types.typed else (),
        workspace_mib=options.workspace_mib,
        tf32=options.tf32,
        plugins=tuple((name, str(OPERATORS[name].version)) for name in required_creators(copy)),
        plugin_nodes=nodes,
        plugin_types={
            name: planned_types(OPERATORS[name], half=types.half) for name in sorted({node.operator for node in nodes})
        },
        cuda_graph=options.cuda_graph,
        capabilities=tuple(capabilities),
        tuning=options.tuning,
    )
    return plan, copy
