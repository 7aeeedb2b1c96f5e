"""What the host computes between the engines of a network: a list of operators, in NumPy.

A bundle holds such a list as one ``.npz`` file: its constants, and the operators as JSON. The file is read by this
package and, as it stands, by programs on a board, which have Python 3.6, NumPy 1.13 and nothing else. Operators are
those of ONNX at opset 18, and two of boxes; sums and products are in the type of what they are made of.
"""

import json
import math
import zipfile
from typing import Any, Dict, List

import numpy as np

Array = Any
"""A NumPy array: NumPy 1.13 has no types."""

PROGRAM = "program"
"""Entry of the file that holds the operators, as the bytes of a JSON text."""

FORMAT = 1
"""Version of the text."""

CONSTANT = "constant/"
"""Begins the names of entries with constants; a number follows, which is a place in the list of their names."""

KEEP_BOXES = "KeepBoxes"
PYRAMID_ROI_ALIGN = "PyramidRoiAlign"

_TYPES = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_, 11: np.float64}
"""NumPy's types by ONNX's number."""


class ProgramError(Exception):
    """A file that is no program, or one of another release; or an operator that has no rule."""


class HostProgram:
    """Operators in order.

    Args:
        text: What the file says: ``format``, ``inputs``, ``outputs``, ``constants`` (names) and ``operators``, each
            with ``type``, ``inputs``, ``outputs`` and ``attributes``.
        constants: By name.

    Attributes:
        inputs: Names of what :meth:`run` wants.
        outputs: Names of what it gives.

    Raises:
        ProgramError: Another format, or an operator that has no rule.
    """

    def __init__(self, text: Any, constants: Any) -> None:
        if text.get("format") != FORMAT:
            raise ProgramError(
                f"The host program has format {text.get('format')!r}, this release reads {FORMAT}. Export the bundle "
                "again."
            )
        lacking = sorted({step["type"] for step in text["operators"]} - set(OPERATORS))
        if lacking:
            raise ProgramError(f"The host has no rule for {', '.join(lacking)}.")
        self.inputs, self.outputs = list(text["inputs"]), list(text["outputs"])
        self._steps, self._constants = text["operators"], dict(constants)
        last = {}
        for index, step in enumerate(self._steps):
            for name in step["inputs"]:
                last[name] = index
        # What nothing reads later is dropped, so that maps do not pile up.
        self._ends = [
            [name for name in set(step["inputs"]) if last[name] == index and name not in self.outputs]
            for index, step in enumerate(self._steps)
        ]

    @classmethod
    def load(cls, path: Any) -> "HostProgram":
        """Read a file; raises ``ProgramError`` where it is no program."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                text = json.loads(stored[PROGRAM].tobytes().decode("utf-8"))
                constants = {name: stored[f"{CONSTANT}{place}"] for place, name in enumerate(text["constants"])}
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ProgramError(f"{path} is no host program: {error}. Export the bundle again.")
        return cls(text, constants)

    def run(self, feeds: Any) -> Dict[str, Array]:
        """Compute the outputs.

        Args:
            feeds: Arrays by the names of :attr:`inputs`.

        Returns:
            Arrays by the names of :attr:`outputs`.
        """
        values = dict(self._constants)
        values.update((name, feeds[name]) for name in self.inputs)
        values[""] = None
        for step, ends in zip(self._steps, self._ends):
            found = OPERATORS[step["type"]](step["attributes"], *[values[name] for name in step["inputs"]])
            results = found if isinstance(found, tuple) else (found,)
            values.update(zip(step["outputs"], results))
            for name in ends:
                values.pop(name, None)
            values[""] = None
        return {name: values[name] for name in self.outputs}


# ---------------------------------------------------------------- operators of boxes


def keep_boxes(boxes: Any, scores: Any, groups: Any, iou_threshold: Any, score_threshold: Any, limit: Any) -> Any:
    """Greedy non-maximum suppression within groups, as :func:`dyndeploy.blocks.boxes.keep_boxes` defines it.

    Args:
        boxes: (M, 4), float32: x1, y1, x2, y2, none negative.
        scores: (M,), float32.
        groups: (M,), whole numbers.
        iou_threshold: Boxes of a group that overlap more are suppressed by the better one.
        score_threshold: Boxes with this score or less do not count.
        limit: Places.

    Returns:
        Indices (limit,), int64, by falling score, of equal ones the first; -1 fills up.
    """
    kept = np.full(limit, -1, np.int64)
    valid = np.flatnonzero(scores > np.float32(score_threshold))
    if not len(valid):
        return kept
    boxes, groups, scores = boxes[valid], groups[valid], scores[valid]
    # Groups lie apart anyway; the coordinates are shifted because that is how the reference rounds them.
    shifted = boxes + (groups.astype(np.float32) * (boxes.max() + np.float32(1)))[:, None]
    order = np.argsort(-scores, kind="mergesort")
    threshold = np.float32(iou_threshold)
    found = [_suppressed(shifted, order[groups[order] == group], threshold, limit) for group in np.unique(groups)]
    left = np.concatenate(found)
    # By score, and of equal ones by place.
    left = left[np.lexsort((left, -scores[left]))][:limit]
    kept[: len(left)] = valid[left]
    return kept


def _suppressed(boxes: Any, order: Any, threshold: Any, limit: Any) -> Any:
    """Boxes of one group that are left, of those in an order; at most ``limit``."""
    left: List[Any] = []
    x1, y1, x2, y2 = (boxes[order, axis] for axis in range(4))
    areas = (x2 - x1) * (y2 - y1)
    zero = np.float32(0)
    while len(order) and len(left) < limit:
        left.append(order[0])
        width = np.maximum(np.minimum(x2[1:], x2[0]) - np.maximum(x1[1:], x1[0]), zero)
        height = np.maximum(np.minimum(y2[1:], y2[0]) - np.maximum(y1[1:], y1[0]), zero)
        shared = width * height
        with np.errstate(divide="ignore", invalid="ignore"):
            overlap = shared / (areas[0] + areas[1:] - shared)
        # Two boxes without extent have no overlap: not a number is not greater.
        with np.errstate(invalid="ignore"):
            stays = ~(overlap > threshold)
        order, areas = order[1:][stays], areas[1:][stays]
        x1, y1, x2, y2 = (side[1:][stays] for side in (x1, y1, x2, y2))
    return np.array(left, np.int64)


def pyramid_roi_align(maps: Any, boxes: Any, levels: Any, strides: Any, size: Any) -> Any:
    """Average pooling of bilinear samples, as :func:`dyndeploy.blocks.boxes.pyramid_roi_align` defines it.

    A mean of bilinear samples on a grid is a product with one matrix of weights for the rows and one for the columns.

    Args:
        maps: Of one image, (1, C, h, w) each.
        boxes: (M, 4) in pixels of the network's input.
        levels: (M,): which map each box is read from.
        strides: Of the maps.
        size: Side of the result.

    Returns:
        (M, C, size, size), float32.
    """
    channels = maps[0].shape[1]
    result = np.zeros((len(boxes), channels, size, size), np.float32)
    for level, (features, stride) in enumerate(zip(maps, strides)):
        scale = np.float32(1.0 / stride)
        # With the channels last a product runs over all of them.
        own = np.flatnonzero(levels == level)
        last = np.ascontiguousarray(np.moveaxis(features[0] if len(own) else features[0, :, :0], 0, -1))
        for index in own:
            x1, y1, x2, y2 = (value * scale - np.float32(0.5) for value in boxes[index])
            rows, down = _sampling(y1, y2, size, features.shape[2])
            columns, across = _sampling(x1, x2, size, features.shape[3])
            if rows is None or columns is None:
                continue
            part = last[rows[0] : rows[1], columns[0] : columns[1]]
            narrow = np.matmul(down, part.reshape(len(part), -1)).reshape(size, -1, channels)
            result[index] = np.moveaxis(np.matmul(across, narrow), -1, 0)
    return result


def _sampling(low: Any, high: Any, size: Any, side: Any) -> Any:
    """The pixels of an axis that samples between two coordinates read, and their weights (size, pixels).

    None and None where there is no sample, as in a box without extent.
    """
    extent = np.float32(high) - np.float32(low)
    count = int(math.ceil(extent / size))
    if count < 1:
        return None, None
    step = np.float32(extent / np.float32(size))
    inner = (np.arange(count, dtype=np.float32) + np.float32(0.5)) * step / np.float32(count)
    position = np.float32(low) + np.arange(size, dtype=np.float32)[:, None] * step + inner[None]
    inside = (position >= -1) & (position <= side)
    position = np.maximum(position, np.float32(0))
    first = np.minimum(position.astype(np.int64), side - 1)
    second = np.minimum(first + 1, side - 1)
    share = np.where(first == side - 1, np.float32(0), position - first.astype(np.float32)).astype(np.float32)
    each = np.where(inside, np.float32(1.0 / count), np.float32(0)).astype(np.float32)
    begin, end = int(first.min()), int(second.max()) + 1
    weights = np.zeros((size, end - begin), np.float32)
    bins = np.repeat(np.arange(size), count)
    np.add.at(weights, (bins, (first - begin).ravel()), (each * (np.float32(1) - share)).ravel())
    np.add.at(weights, (bins, (second - begin).ravel()), (each * share).ravel())
    return (begin, end), weights


# ---------------------------------------------------------------- standard operators


def top_k(values: Any, count: Any, axis: Any = -1, largest: Any = True) -> Any:
    """The best of each row and their places, sorted; of equal ones those that come first, as ONNX Runtime takes them.

    Args:
        values: Any shape.
        count: How many.
        axis: Along which.
        largest: Whether the largest or the smallest are the best.
    """
    moved = np.moveaxis(values, axis, -1)
    keys = moved if not largest else (-moved if moved.dtype.kind == "f" else -moved.astype(np.int64))
    rows = keys.reshape(int(np.prod(moved.shape[:-1], dtype=np.int64)), keys.shape[-1])
    places = np.stack([_best(row, count) for row in rows]) if len(rows) else np.zeros((0, count), np.int64)
    places = places.reshape(moved.shape[:-1] + (count,))
    found = moved[_along(places, -1)]
    return np.moveaxis(found, -1, axis), np.moveaxis(places, -1, axis)


def _along(places: Any, axis: Any) -> Any:
    """What indexes an array by places along one axis, and by position along the others."""
    index = list(np.ogrid[tuple(slice(size) for size in places.shape)])
    index[axis] = places
    return tuple(index)


def _best(keys: Any, count: Any) -> Any:
    """Places of the smallest keys, sorted, of equal ones the first."""
    if count < len(keys):
        cut = np.partition(keys, count - 1)[count - 1] if count else None
        sure = np.flatnonzero(keys < cut) if count else np.zeros(0, np.int64)
        ties = np.flatnonzero(keys == cut)[: count - len(sure)] if count else sure
        chosen = np.sort(np.concatenate([sure, ties]))
    else:
        chosen = np.arange(len(keys))
    return chosen[np.argsort(keys[chosen], kind="mergesort")].astype(np.int64)


def _divide(attributes: Any, one: Any, other: Any) -> Any:
    if np.result_type(one, other).kind == "f":
        return one / other
    # Towards zero, as ONNX has it.
    return (np.sign(one) * np.sign(other) * (np.abs(one) // np.abs(other))).astype(one.dtype)


def _modulo(attributes: Any, one: Any, other: Any) -> Any:
    return np.fmod(one, other) if attributes.get("fmod", 0) else np.mod(one, other)


def _clip(attributes: Any, x: Any, low: Any = None, high: Any = None) -> Any:
    x = x if low is None else np.maximum(x, low)
    return x if high is None else np.minimum(x, high)


def _reshape(attributes: Any, x: Any, shape: Any) -> Any:
    wanted = [int(size) for size in shape]
    if not attributes.get("allowzero", 0):
        wanted = [x.shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    return x.reshape(wanted)


def _slice(attributes: Any, x: Any, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Any:
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    places = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps):
        # The end of a negative step may lie before the first element, which no slice of Python says.
        last = None if step < 0 and end < -x.shape[axis] else int(end)
        places[int(axis)] = slice(int(start), last, int(step))
    return x[tuple(places)]


def _unsqueeze(attributes: Any, x: Any, axes: Any) -> Any:
    rank = x.ndim + len(axes)
    for axis in sorted(int(axis) % rank for axis in axes):
        x = np.expand_dims(x, axis)
    return x


def _squeeze(attributes: Any, x: Any, axes: Any = None) -> Any:
    return np.squeeze(x, None if axes is None else tuple(int(axis) for axis in axes))


def _reduced(function: Any) -> Any:
    def reduce(attributes: Any, x: Any, axes: Any = None) -> Any:
        if axes is None or not len(axes):
            if attributes.get("noop_with_empty_axes", 0):
                return x
            axes = range(x.ndim)
        keep = bool(attributes.get("keepdims", 1))
        return np.asarray(function(x, axis=tuple(int(axis) for axis in axes), keepdims=keep)).astype(x.dtype)

    return reduce


def _softmax(attributes: Any, x: Any) -> Any:
    axis = attributes.get("axis", -1)
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def _sigmoid(attributes: Any, x: Any) -> Any:
    with np.errstate(over="ignore"):
        return (np.float32(1) / (np.float32(1) + np.exp(-x))).astype(x.dtype)


def _gather_nd(attributes: Any, x: Any, places: Any) -> Any:
    if attributes.get("batch_dims", 0):
        raise ProgramError("GatherND with batch_dims has no rule on the host.")
    return x[tuple(np.moveaxis(places, -1, 0))]


def _expand(attributes: Any, x: Any, shape: Any) -> Any:
    return np.broadcast_to(x, np.broadcast(x, np.empty(tuple(int(size) for size in shape), np.bool_)).shape)


def _scatter_elements(attributes: Any, x: Any, places: Any, updates: Any) -> Any:
    if attributes.get("reduction", "none") != "none":
        raise ProgramError("ScatterElements with a reduction has no rule on the host.")
    result = x.copy()
    result[_along(places, attributes.get("axis", 0))] = updates
    return result


def _keep(attributes: Any, boxes: Any, scores: Any, groups: Any) -> Any:
    return keep_boxes(
        boxes, scores, groups, attributes["iou_threshold"], attributes["score_threshold"], int(attributes["limit"])
    )


def _align(attributes: Any, *inputs: Any) -> Any:
    maps, boxes, levels = inputs[:-2], inputs[-2], inputs[-1]
    return pyramid_roi_align(maps, boxes, levels, attributes["strides"], int(attributes["size"]))


def _folded(function: Any) -> Any:
    def fold(attributes: Any, *inputs: Any) -> Any:
        result = inputs[0]
        for other in inputs[1:]:
            result = function(result, other)
        return result

    return fold


OPERATORS = {
    "Abs": lambda attributes, x: np.abs(x),
    "Add": lambda attributes, one, other: one + other,
    "And": lambda attributes, one, other: one & other,
    "Cast": lambda attributes, x: x.astype(_TYPES[attributes["to"]]),
    "Ceil": lambda attributes, x: np.ceil(x),
    "Clip": _clip,
    "Concat": lambda attributes, *inputs: np.concatenate(inputs, attributes["axis"]),
    "Div": _divide,
    "Equal": lambda attributes, one, other: one == other,
    "Exp": lambda attributes, x: np.exp(x),
    "Expand": _expand,
    "Floor": lambda attributes, x: np.floor(x),
    "Gather": lambda attributes, x, places: np.take(x, places, axis=attributes.get("axis", 0)),
    "GatherElements": lambda attributes, x, places: x[_along(places, attributes.get("axis", 0))],
    "GatherND": _gather_nd,
    "Greater": lambda attributes, one, other: one > other,
    "GreaterOrEqual": lambda attributes, one, other: one >= other,
    "Identity": lambda attributes, x: x,
    "Less": lambda attributes, one, other: one < other,
    "LessOrEqual": lambda attributes, one, other: one <= other,
    "Log": lambda attributes, x: np.log(x),
    "Max": _folded(np.maximum),
    "Min": _folded(np.minimum),
    "Mod": _modulo,
    "Mul": lambda attributes, one, other: one * other,
    "Neg": lambda attributes, x: -x,
    "Not": lambda attributes, x: ~x,
    "Or": lambda attributes, one, other: one | other,
    "Pow": lambda attributes, one, other: np.power(one, other).astype(one.dtype),
    "ReduceMax": _reduced(np.max),
    "ReduceMin": _reduced(np.min),
    "ReduceSum": _reduced(np.sum),
    "Reshape": _reshape,
    "ScatterElements": _scatter_elements,
    "Sigmoid": _sigmoid,
    "Slice": _slice,
    "Softmax": _softmax,
    "Sqrt": lambda attributes, x: np.sqrt(x),
    "Squeeze": _squeeze,
    "Sub": lambda attributes, one, other: one - other,
    "TopK": lambda attributes, x, count: top_k(
        x, int(np.reshape(count, -1)[0]), attributes.get("axis", -1), bool(attributes.get("largest", 1))
    ),
    "Transpose": lambda attributes, x: np.transpose(x, attributes.get("perm")),
    "Unsqueeze": _unsqueeze,
    "Where": lambda attributes, condition, one, other: np.where(condition, one, other),
    KEEP_BOXES: _keep,
    PYRAMID_ROI_ALIGN: _align,
}
"""``(attributes, *inputs) -> output, or a tuple of several``, by operator; an input that is left out is None."""
