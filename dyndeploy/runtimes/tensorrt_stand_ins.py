"""Stand-ins in Python for the TensorRT plugins: with them an engine is built where there is no plugin library.

They have the name, version, attributes, inputs, types, formats, shapes and workspace of the plugins in
``plugins/adapters/tensorrt``, all read from ``dyndeploy.ops``, and they put the same fields into an engine. They
compute nothing: the engine needs the library where it runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from dyndeploy.graphs.tensorrt import HALF_ONLY, LARGEST_BATCH, TIMED_MASKS, TIMING_RATES, TUNING
from dyndeploy.ops.base import WORD_BYTES, Element, OperatorSpec, Port
from dyndeploy.runtimes.tensorrt_plan import FAMILY

FORMAT_FIELD, FORMAT = "dyndeploy_format", 3
"""Field of an engine that says how the other fields of a plugin are to be read, and its value (``attributes.h``)."""

TACTIC_FIELD = "dyndeploy_tactic"
"""Field of an engine with the sizes of the plugin's tiles; 0 is the formula's choice."""

_NOT_ATTRIBUTES = ("plugin_version", "plugin_namespace")
_OUTPUT_ATTRIBUTES = {"mh": "mask_height", "mw": "mask_width", "S": "size"}
_STRIDED = {"Ho": "H", "Wo": "W"}
_DTYPES: Mapping[type, type[np.generic]] = {int: np.int32, float: np.float32}
_SYMBOL = re.compile(r"(?:(\d+(?:\|\d+)*)\*)?([A-Za-z]\w*)(?:/([A-Za-z]\w*))?")


class StandInError(Exception):
    """A node does not fit its plugin; the message says what is wrong, in the words of the C++ plugins."""


def described(specs: Iterable[OperatorSpec]) -> str:
    """What an engine's metadata say of stand-ins: ``"stand-ins, operator version 1"``."""
    versions = sorted({spec.version for spec in specs})
    return f"stand-ins, operator version {', '.join(map(str, versions))}"


Number = int | float


def bind_sizes(
    spec: OperatorSpec, shapes: Sequence[Sequence[int]], attributes: Mapping[str, Sequence[Number]]
) -> dict[str, int]:
    """The sizes of a node's inputs by symbol.

    Args:
        spec: Its operator.
        shapes: Of its inputs in the TensorRT copy.
        attributes: By name, each as a list.

    Raises:
        StandInError: The inputs do not fit the operator or each other.
    """
    ports = spec.native_inputs(FAMILY)
    _require_count(spec, len(shapes))
    sizes: dict[str, int] = {name: int(values[0]) for name, values in attributes.items() if len(values) == 1}
    axes = [
        (port, axis, symbol, int(size) * _unit(port, axis))
        for port, shape in zip(ports, shapes, strict=True)
        for axis, (symbol, size) in enumerate(zip(_ranked(spec, port, shape), shape, strict=True))
    ]
    for _, _, symbol, size in axes:
        if symbol.isidentifier():
            sizes.setdefault(symbol, size)
    for port, axis, symbol, size in axes:
        expected = _values(symbol, sizes)
        if size not in expected:
            told = " or ".join(map(str, expected))
            raise StandInError(f"{spec.name}: dimension {axis} of {port.name} is {size}, expected {told} ({symbol})")
    return sizes


def _unit(port: Port, axis: int) -> int:
    """Elements in one along an axis of a plugin's tensor: bytes stand in words."""
    return WORD_BYTES if port.element.in_words and axis == len(port.shape) - 1 else 1


def _ranked(spec: OperatorSpec, port: Port, shape: Sequence[int]) -> tuple[str, ...]:
    if len(shape) != len(port.shape):
        raise StandInError(f"{spec.name}: {port.name} has {len(shape)} dimensions, expected {len(port.shape)}")
    return port.shape


def _require_count(spec: OperatorSpec, inputs: int) -> None:
    expected = len(spec.native_inputs(FAMILY))
    if inputs != expected:
        raise StandInError(f"{spec.name}: the node has {inputs} inputs and 1 outputs, expected {expected} and 1")


def _values(symbol: str, sizes: Mapping[str, int]) -> list[int]:
    """What a symbol such as ``"16"``, ``"C"`` or ``"9|25*M/group"`` may be."""
    if symbol.isdigit():
        return [int(symbol)]
    match = _SYMBOL.fullmatch(symbol)
    assert match is not None, symbol
    factors, name, divisor = match.groups()
    size = sizes[name]
    return [int(factor) * size // (sizes[divisor] if divisor else 1) for factor in (factors or "1").split("|")]


def plugin_attributes(spec: OperatorSpec, fields: Iterable[Any]) -> dict[str, list[Number]]:
    """Attributes of a node as TensorRT's parser hands them over; raises :class:`StandInError`."""
    lengths = {attribute.name: attribute.length or 1 for attribute in spec.attributes}
    types = {attribute.name: attribute.type for attribute in spec.attributes}
    found: dict[str, list[Number]] = {}
    added: dict[str, list[Number]] = {
        HALF_ONLY: [0], LARGEST_BATCH: [0], TIMING_RATES: [0] * TIMED_MASKS, TUNING: [1],
    }  # fmt: skip
    for field in fields:
        if field.name in (*_NOT_ATTRIBUTES, FORMAT_FIELD, TACTIC_FIELD):
            continue
        if field.name in added:
            added[field.name] = [int(value) for value in np.asarray(field.data).ravel()]
            continue
        if field.name not in lengths:
            raise StandInError(f"{spec.name}: unknown attribute {field.name}; this operator has {', '.join(lengths)}")
        values = [types[field.name](value) for value in np.asarray(field.data).ravel()]
        if len(values) != lengths[field.name]:
            raise StandInError(
                f"{spec.name}: attribute {field.name} has {len(values)} values, expected {lengths[field.name]}"
            )
        found[field.name] = values
    for name in lengths:
        if name not in found:
            raise StandInError(f"{spec.name}: attribute {name} is missing")
    if added[HALF_ONLY] not in ([0], [1]):
        raise StandInError(f"{spec.name}: attribute {HALF_ONLY} is {added[HALF_ONLY]}, expected 0 or 1")
    if added[TUNING] not in ([0], [1]):
        raise StandInError(f"{spec.name}: attribute {TUNING} is {added[TUNING]}, expected 0 or 1")
    if len(added[LARGEST_BATCH]) != 1 or added[LARGEST_BATCH][0] < 0:
        raise StandInError(f"{spec.name}: attribute {LARGEST_BATCH} is {added[LARGEST_BATCH]}, expected 0 or more")
    if len(added[TIMING_RATES]) != TIMED_MASKS or not all(0 <= rate <= 1000 for rate in added[TIMING_RATES]):
        raise StandInError(
            f"{spec.name}: attribute {TIMING_RATES} is {added[TIMING_RATES]}, expected {TIMED_MASKS} of 0 to 1000"
        )
    return {**{name: found[name] for name in lengths}, **added}


def stored_fields(
    spec: OperatorSpec, attributes: Mapping[str, Sequence[Number]]
) -> list[tuple[str, np.ndarray[Any, Any]]]:
    """Names and values of the fields that an engine keeps of a plugin, in their order."""
    types = {attribute.name: _DTYPES[attribute.type] for attribute in spec.attributes}
    # The rates and tuning are for the builder alone: what an engine keeps runs on real masks.
    kept = {name: entries for name, entries in attributes.items() if name not in (TIMING_RATES, TUNING)}
    values = [(name, np.asarray(entries, types.get(name, np.int32))) for name, entries in kept.items()]
    # Stand-ins offer no tactics, as the plugins without a device to time.
    return [*values, (FORMAT_FIELD, np.asarray([FORMAT], np.int32)), (TACTIC_FIELD, np.zeros(1, np.int32))]


def plugin_class(trt: Any, problems: list[str]) -> Any:
    """The class of all stand-ins.

    Args:
        trt: The package of TensorRT 10 or later, or of TensorRT-RTX.
        problems: Takes what is wrong with nodes: TensorRT says of an exception only that there was one.
    """
    bases = (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime)
    number, half = trt.float32, trt.float16

    class StandIn(*bases):  # type: ignore[misc]
        def __init__(self, spec: OperatorSpec, attributes: dict[str, list[Number]]) -> None:
            for base in bases:
                base.__init__(self)
            self.spec, self.attributes = spec, attributes
            self.ports = spec.native_inputs(FAMILY)
            self.num_outputs = len(spec.outputs)
            self.plugin_name, self.plugin_version, self.plugin_namespace = spec.name, str(spec.version), ""
            self.timing_cache_id = " ".join(map(str, (spec.name, *(v for row in attributes.values() for v in row))))

        def get_capability_interface(self, kind: Any) -> Any:
            return self

        def clone(self) -> Any:
            return StandIn(self.spec, self.attributes)

        def attach_to_context(self, context: Any) -> Any:
            return self.clone()

        def get_output_data_types(self, types: Sequence[Any]) -> list[Any]:
            with _told(problems):
                _require_count(self.spec, len(types))
                self._require_types(types)
            return [self._type(port, types[0]) for port in self.spec.outputs]

        def _type(self, port: Port, x: Any) -> Any:
            if port.element is not Element.DATA:
                return getattr(trt, port.element.plugin_dtype or "")
            return x if self._has_data() else self._types_of_data()[0]

        def _has_data(self) -> bool:
            return self.ports[0].element is Element.DATA

        def _types_of_data(self) -> tuple[Any, ...]:
            return (half,) if self.attributes[HALF_ONLY] == [1] else (number, half)

        def _types_of_x(self) -> tuple[Any, ...]:
            return self._types_of_data() if self._has_data() else (self._type(self.ports[0], None),)

        def _require_types(self, types: Sequence[Any]) -> None:
            # In a strongly typed network, the only kind that TensorRT 11 builds, these types are final.
            for port, found in zip(self.ports, types, strict=True):
                first = port.name == self.ports[0].name
                wanted = self._types_of_x() if first else (self._type(port, types[0]),)
                if found not in wanted:
                    names = " or ".join(item.name for item in wanted)
                    raise StandInError(f"{self.spec.name}: {port.name} has type {found.name}, expected {names}")

        def get_output_shapes(self, inputs: Sequence[Any], shape_inputs: Sequence[Any], builder: Any) -> list[Any]:
            with _told(problems):
                _require_count(self.spec, len(inputs))
                known = {
                    symbol: self._counted(port, axis, shape[axis], builder)
                    for port, shape in zip(self.ports, inputs, strict=True)
                    for axis, symbol in enumerate(_ranked(self.spec, port, list(range(len(shape)))))
                }
            results = []
            for port in self.spec.outputs:
                result = trt.DimsExprs(len(port.shape))
                for axis, symbol in enumerate(port.shape):
                    size = self._size(symbol, known, builder)
                    if _unit(port, axis) > 1:
                        words = builder.constant(_unit(port, axis))
                        size = builder.operation(trt.DimensionOperation.CEIL_DIV, size, words)
                    result[axis] = size
                results.append(result)
            return results

        @staticmethod
        def _counted(port: Port, axis: int, size: Any, builder: Any) -> Any:
            """A size in elements."""
            unit = _unit(port, axis)
            if unit == 1:
                return size
            return builder.operation(trt.DimensionOperation.PROD, size, builder.constant(unit))

        def _size(self, symbol: str, known: Mapping[str, Any], builder: Any) -> Any:
            if symbol.isdigit():
                return builder.constant(int(symbol))
            if symbol in known:
                return known[symbol]
            if symbol in _OUTPUT_ATTRIBUTES:
                return builder.constant(self.attributes[_OUTPUT_ATTRIBUTES[symbol]][0])
            stride = builder.constant(self.attributes["strides"][0])
            return builder.operation(trt.DimensionOperation.CEIL_DIV, known[_STRIDED[symbol]], stride)

        def supports_format_combination(self, position: int, tensors: Sequence[Any], inputs: int) -> bool:
            tensor = tensors[position].desc
            if tensor.format != trt.TensorFormat.LINEAR or inputs != len(self.ports):
                return False
            if position == 0:
                return tensor.type in self._types_of_x()
            port = (*self.ports, *self.spec.outputs)[position]
            if port.element is Element.DATA and not self._has_data():
                return tensor.type in self._types_of_data()
            return bool(tensor.type == self._type(port, tensors[0].desc.type))

        def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            with _told(problems):
                shapes = [[int(size) for size in tensor.desc.dims] for tensor in inputs]
                if all(size >= 0 for shape in shapes for size in shape):
                    bind_sizes(self.spec, shapes, self.attributes)

        def get_workspace_size(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
            workspace = self.spec.kernels[FAMILY].workspace
            if workspace is None:
                return 0
            with _told(problems):
                shapes = [[int(size) for size in tensor.max] for tensor in inputs]
                sizes = bind_sizes(self.spec, shapes, self.attributes)
            return workspace(sizes, self._node_attributes(), 2 if inputs[0].desc.type == half else 4)

        def _node_attributes(self) -> dict[str, Any]:
            lengths = {attribute.name: attribute.length for attribute in self.spec.attributes}
            return {
                name: self.attributes[name] if length is not None else self.attributes[name][0]
                for name, length in lengths.items()
            }

        def set_tactic(self, tactic: int) -> None:
            pass

        def on_shape_change(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            pass

        def enqueue(self, *arguments: Any) -> None:
            raise RuntimeError(f"{self.spec.name} is a stand-in: it computes nothing")

        def get_fields_to_serialize(self) -> Any:
            # A field only points at its data.
            self._stored = stored_fields(self.spec, self.attributes)
            return _fields(trt, self._stored)

    return StandIn


def _fields(trt: Any, entries: Sequence[tuple[str, np.ndarray[Any, Any]]]) -> Any:
    """A collection of fields, which only points at the arrays."""
    kinds = {np.dtype(np.int32): trt.PluginFieldType.INT32, np.dtype(np.float32): trt.PluginFieldType.FLOAT32}
    return trt.PluginFieldCollection([trt.PluginField(name, data, kinds[data.dtype]) for name, data in entries])


@contextmanager
def _told(problems: list[str]) -> Iterator[None]:
    """Note what is wrong before the exception passes through TensorRT, which says only that there was one."""
    try:
        yield
    except BaseException as error:
        if str(error) not in problems:
            problems.append(str(error))
        raise


def register_stand_ins(trt: Any, specs: Iterable[OperatorSpec], problems: list[str]) -> list[Any]:
    """Register a stand-in for every operator that has TensorRT kernels.

    Args:
        trt: The package of TensorRT 10 or later, or of TensorRT-RTX.
        specs: The operators.
        problems: Takes what is wrong with nodes.

    Returns:
        The creators; they must live as long as the process, because the registry only points at them.
    """
    stand_in = plugin_class(trt, problems)

    class Creator(trt.IPluginCreatorV3One):  # type: ignore[misc]
        def __init__(self, spec: OperatorSpec) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.spec = spec
            self.name, self.plugin_version, self.plugin_namespace = spec.name, str(spec.version), ""
            self._declared = [(a.name, np.zeros(a.length or 1, _DTYPES[a.type])) for a in spec.attributes]
            self._declared += [(HALF_ONLY, np.zeros(1, np.int32)), (LARGEST_BATCH, np.zeros(1, np.int32))]
            self._declared += [(TIMING_RATES, np.zeros(TIMED_MASKS, np.int32)), (TUNING, np.zeros(1, np.int32))]
            self.field_names = _fields(trt, self._declared)

        def create_plugin(self, name: str, fields: Iterable[Any], phase: Any) -> Any:
            with _told(problems):
                return stand_in(self.spec, plugin_attributes(self.spec, fields))

    creators = [Creator(spec) for spec in specs if FAMILY in spec.kernels]
    for creator in creators:
        trt.get_plugin_registry().register_creator(creator, "")
    return creators
