"""The static twin in INT8: with the scales of the dynamic network wherever both have the same tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from dyndeploy.bundle import MaskInfo
from dyndeploy.errors import UsageError
from dyndeploy.graphs.forced import forced_feeds, overlay_forced_masks
from dyndeploy.graphs.inspect import group_of, is_dynamic, operator_attributes
from dyndeploy.ops import OPERATORS
from dyndeploy.quantization.graph import quantized_with, standard_layers
from dyndeploy.quantization.table import CalibrationTable, TensorScale
from dyndeploy.runtimes import OnnxRuntimeSession

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]

_SAME = 1e-3
"""Two networks round differently: largest and mean values of one tensor agree to this share."""


class _Values(NamedTuple):
    """What a tensor is recognised by, and its range."""

    number: int
    least: float
    largest: float
    mean: float

    @classmethod
    def of(cls, values: Array) -> _Values:
        return cls(values.size, float(values.min()), float(values.max()), float(values.mean(dtype=np.float64)))

    def matches(self, other: _Values) -> bool:
        close = [abs(a - b) <= _SAME * max(abs(a), abs(b), 1e-12) for a, b in zip(self[1:], other[1:], strict=True)]
        return self.number == other.number and all(close)


def quantize_twin(
    twin: onnx.ModelProto,
    model: onnx.ModelProto,
    masks: Sequence[MaskInfo],
    table: CalibrationTable,
    samples: Iterable[Feeds],
) -> onnx.ModelProto:
    """Return a copy of a static twin in INT8, for ONNX Runtime: Q/DQ around its convolutions and sums.

    Where the twin has a tensor that the dynamic network has too when every mask bit is set (the tensors are compared,
    block by block, by what they hold for the first sample), its scale is the calibration table's. Others, such as the
    operands of a residual sum, which a dynamic operator does not round, get the range that they have in these samples.

    Args:
        twin: The static twin in FP32; it is not changed.
        model: The dynamic graph in FP32, which the table was made for.
        masks: Its masks.
        table: The calibration table: scales, bits of a weight, and blocks that stay in FP32.
        samples: Inputs by name, a batch each; at least one.

    Raises:
        UsageError: No samples, or a table of another network.
    """
    table.check(model)
    given = list(samples)
    if not given:
        raise UsageError("Give at least one sample: some tensors of a static twin have no scale in the table.")
    layers = list(standard_layers(twin))
    points = {f"{node.name}:{end}": tensor for node, *ends in layers for end, tensor in zip("xy", ends, strict=True)}
    known = _points(model, masks, given[0])
    tensors: dict[str, TensorScale] = {}
    ranges: dict[str, _Values] = {}
    for index, values in enumerate(_outputs(twin, given, set(points.values()))):
        for point, tensor in points.items():
            found = _Values.of(values[tensor])
            before = ranges.get(tensor, found)
            ranges[tensor] = found._replace(
                least=min(before.least, found.least), largest=max(before.largest, found.largest)
            )
            block = group_of(point.rpartition(":")[0])
            same = [p for p, other in known.items() if p.rpartition("/")[0] == block and found.matches(other)]
            if not index and point in table.tensors:
                tensors[tensor] = table.tensors[point]
            elif not index and same and same[0] in table.tensors:
                tensors[tensor] = table.tensors[same[0]]
    scales = {tensor: tensors.get(tensor) or _scale(values) for tensor, values in ranges.items()}
    return quantized_with(
        twin, dataclasses.replace(table, tensors={point: scales[tensor] for point, tensor in points.items()})
    )


def _scale(values: _Values) -> TensorScale:
    least, largest = min(values.least, 0.0), max(values.largest, 0.0)
    scale = float(np.float32((largest - least) / 255)) or 1.0
    zero = min(255, max(0, round(-least / scale)))
    return TensorScale(scale, zero, values.least, values.largest, values.number)


def _points(model: onnx.ModelProto, masks: Sequence[MaskInfo], feeds: Feeds) -> dict[str, _Values]:
    """What every point of the dynamic network holds for one batch when every mask bit is set."""
    import torch

    forced = overlay_forced_masks(model, masks) if masks else model
    everything = forced_feeds({mask.name: np.ones(mask.shape, np.float32) for mask in masks}, masks) if masks else {}
    constants = {item.name: numpy_helper.to_array(item) for item in forced.graph.initializer}
    nodes = [node for node in forced.graph.node if is_dynamic(node)]
    wanted = {name for node in nodes for name in node.input if name and name not in constants}
    (values,) = _outputs(forced, [{**feeds, **everything}], wanted)
    found: dict[str, _Values] = {}
    for node in nodes:
        how = OPERATORS[node.op_type].quantization
        if how is None or not how.output:
            continue
        inputs = [torch.from_numpy(np.array(constants.get(name, values.get(name)))) for name in node.input]
        observed = {"x": inputs[0], **how.observe(inputs, operator_attributes(node))}
        block = group_of(node.name)
        found |= {f"{block}/{name}": _Values.of(value.numpy()) for name, value in observed.items() if value.numel()}
    return found


def _outputs(model: onnx.ModelProto, samples: Iterable[Feeds], names: set[str]) -> Iterator[dict[str, Array]]:
    """Tensors of a graph by name, inputs too, for every batch."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    present = {value.name for value in (*model.graph.input, *model.graph.output)}
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(names - present))
    with OnnxRuntimeSession(exposed, native="off") as session:
        for feeds in samples:
            taken = {info.name: feeds[info.name] for info in session.inputs}
            yield {**taken, **session.run(taken)}
