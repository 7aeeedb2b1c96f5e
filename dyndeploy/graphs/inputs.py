"""Inputs of a graph whose sizes are open, as exporters leave them, closed with what a user says of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from dyndeploy.errors import BundleError, UsageError, unknown_name

if TYPE_CHECKING:
    import onnx

_IMAGE_AXES = 4
_CHANNELS = (1, 3)
"""Of an image: grey or RGB."""


def real_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Inputs that a caller gives: older files list their weights among the inputs too."""
    weights = {item.name for item in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def image_sides(graph: onnx.GraphProto) -> tuple[onnx.ValueInfoProto, tuple[int, int]] | None:
    """The input that is an image, and its axes of height and width; None where there is none.

    It is the first one of four axes: (N, C, H, W), or (N, H, W, C) where the axis behind the batch is open and the last
    one is 1 or 3.
    """
    for value in real_inputs(graph):
        shape = _shape(value)
        if len(shape) == _IMAGE_AXES:
            last = shape[3] in _CHANNELS and shape[1] < 1
            return value, (1, 2) if last else (2, 3)
    return None


def open_sizes(model: onnx.ModelProto) -> list[str]:
    """Names of the sizes that a graph leaves open, as :func:`with_sizes` takes them, in order."""
    return list(dict.fromkeys(name for value in real_inputs(model.graph) for _, name, _ in _open_axes(value)))


def with_sizes(
    model: onnx.ModelProto,
    *,
    batch: int | None = None,
    input_size: tuple[int, int] | None = None,
    dims: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """Close the sizes that a graph leaves open.

    Args:
        model: Any graph; it is not changed.
        batch: Size of the first axis of the first input, and of every first axis that is open; None takes the graph's
            own, 1 where it is open.
        input_size: (height, width) of the input that is an image (:func:`image_sides`).
        dims: Sizes by name: the symbolic name of an axis, or ``INPUT:AXIS`` of one that has none. A name closes every
            axis that bears it.

    Returns:
        A graph whose inputs have static shapes; the given one if nothing changes. What the file says of the shapes
        behind the inputs is left out where it does.

    Raises:
        UsageError: A size for an input that is no image, a name that the graph does not have, or a size below 1.
        BundleError: There is no input, or a size stays open; the message says which, and how to give it.
    """
    import onnx

    inputs = real_inputs(model.graph)
    if not inputs:
        raise BundleError("The graph has no input: nothing can be predicted.")
    for value in inputs:
        if not value.type.tensor_type.HasField("shape"):
            raise BundleError(
                f"Input '{value.name}' is no tensor with a known number of axes: it cannot be given sizes."
            )
    wanted = _wanted(model, inputs, batch, input_size, dims or {})
    image = image_sides(model.graph)
    for value in inputs:
        sides = image[1] if image is not None and image[0].name == value.name else ()
        _require_closed(value, wanted[value.name], sides)
    if all(wanted[value.name] == _shape(value) for value in inputs):
        return model
    closed = onnx.ModelProto()
    closed.CopyFrom(model)
    for value in closed.graph.input:
        for axis, size in zip(value.type.tensor_type.shape.dim, wanted.get(value.name, ()), strict=False):
            axis.dim_value = size
    # Those are of other sizes, or name sizes that are known now.
    del closed.graph.value_info[:]
    for value in closed.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    return closed


def _shape(value: onnx.ValueInfoProto) -> list[int]:
    """Sizes of an input; one that is open is -1 (some exporters write 0 or -1 where it has no name)."""
    return [dim.dim_value if dim.dim_value > 0 else -1 for dim in value.type.tensor_type.shape.dim]


def _open_axes(value: onnx.ValueInfoProto) -> Iterator[tuple[int, str, str]]:
    """Axis, name for a user, and symbolic name (which may be missing, or mean nothing) of the open axes."""
    for axis, dim in enumerate(value.type.tensor_type.shape.dim):
        if dim.dim_value < 1:
            symbol = dim.dim_param if dim.dim_param.strip("?") else ""
            yield axis, symbol or f"{value.name}:{axis}", symbol


def _wanted(
    model: onnx.ModelProto,
    inputs: list[onnx.ValueInfoProto],
    batch: int | None,
    input_size: tuple[int, int] | None,
    dims: Mapping[str, int],
) -> dict[str, list[int]]:
    """Sizes of every input by name, -1 where they stay open."""
    known = dict(dims)
    addresses = {f"{value.name}:{axis}" for value in inputs for axis, _, _ in _open_axes(value)}
    for name, size in dims.items():
        if name not in addresses and name not in open_sizes(model):
            if not open_sizes(model):
                raise UsageError(f"All sizes of the graph's inputs are fixed: leave --dim {name}={size} out.")
            raise unknown_name("open size", name, open_sizes(model))
        if size < 1:
            raise UsageError(f"--dim {name}={size}: a size is at least 1.")
    shapes = {value.name: _shape(value) for value in inputs}
    asked: dict[tuple[str, int], int] = {}
    if batch is not None and shapes[inputs[0].name]:
        asked[inputs[0].name, 0] = batch
    if input_size is not None:
        image = image_sides(model.graph)
        if image is None:
            raise UsageError(
                f"Input '{inputs[0].name}' has {len(shapes[inputs[0].name])} axes: it is no image, so it has no height "
                "and width. Give --dim NAME=N for open sizes."
            )
        asked |= {(image[0].name, axis): side for axis, side in zip(image[1], input_size, strict=True)}
    for value in inputs:
        for axis, _, symbol in _open_axes(value):
            if symbol and (value.name, axis) in asked:
                known.setdefault(symbol, asked[value.name, axis])
    for value in inputs:
        for axis, name, _ in _open_axes(value):
            fallback = (batch or 1) if axis == 0 else -1
            shapes[value.name][axis] = known.get(f"{value.name}:{axis}", known.get(name, fallback))
    for (name, axis), size in asked.items():
        shapes[name][axis] = size
    return shapes


def _require_closed(value: onnx.ValueInfoProto, shape: list[int], sides: tuple[int, ...]) -> None:
    """Raise ``BundleError`` if a size stays open, with the option that gives it; ``sides`` are an image's axes."""
    missing = [(axis, name) for axis, name, _ in _open_axes(value) if shape[axis] < 1]
    if not missing:
        return
    shown = ", ".join(
        dim.dim_param or "?" if size < 1 else str(size)
        for dim, size in zip(value.type.tensor_type.shape.dim, shape, strict=True)
    )
    image = all(axis in sides for axis, _ in missing)
    options = " ".join(f"--dim {name}=N" for name in dict.fromkeys(name for _, name in missing))
    hint = f"Give --input-size HxW, or {options}" if image else f"Give {options}"
    raise BundleError(f"Input '{value.name}' has the open shape ({shown}). {hint}.")
