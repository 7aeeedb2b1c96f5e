"""How many mask bits FP16 would flip: rounding simulated on the CPU, bit by bit against FP32.

A mask decides what is computed, so a flipped bit is no small error: a whole patch, channel group or block is computed
or left out. FP16 plans therefore keep the maskers' weights and sums in float; what they see is still rounded, because
activations are stored as half. This module counts what remains, and what rounding the maskers as well would do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dyndeploy.bundle import Bundle, MaskInfo
from dyndeploy.errors import UsageError
from dyndeploy.graphs.forced import FLAG, PREFIX, overlay_forced_masks
from dyndeploy.graphs.tensorrt import float_nodes, is_bottleneck, to_half
from dyndeploy.ops import DOMAIN, OPERATORS, Role
from dyndeploy.runtimes import OnnxRuntimeSession

if TYPE_CHECKING:
    import os

    import onnx


@dataclass(frozen=True)
class MaskFlips:
    """Bits of one mask that differ from FP32's over all images.

    Attributes:
        mask: Name of the mask.
        bits: Compared bits.
        kept_float: Flips where the masker computes in float on rounded activations: the FP16 plan.
        in_half: Flips where the masker's weights and intermediate results are rounded to half as well.
    """

    mask: str
    bits: int
    kept_float: int
    in_half: int


@dataclass(frozen=True)
class RoundingReport:
    """Result of :func:`measure_mask_flips`.

    Attributes:
        images: How many images were run.
        masks: In order of execution.
        logits_error: Largest error of the logits under FP32's masks, over their largest magnitude.
    """

    images: int
    masks: tuple[MaskFlips, ...]
    logits_error: float

    @property
    def bits(self) -> int:
        """Compared bits of all masks."""
        return sum(mask.bits for mask in self.masks)

    @property
    def kept_float(self) -> int:
        """Flips with maskers in float."""
        return sum(mask.kept_float for mask in self.masks)

    @property
    def in_half(self) -> int:
        """Flips with maskers in half."""
        return sum(mask.in_half for mask in self.masks)

    @property
    def line(self) -> str:
        """One sentence for reports."""
        if not self.bits:
            return "FP16: the network has no masks that could flip."
        return (
            f"FP16, simulated on {self.images} images: {self.kept_float} of {self.bits} mask bits flip with the "
            f"maskers in float ({self.kept_float / self.bits:.3%}), {self.in_half} would with maskers in half "
            f"({self.in_half / self.bits:.3%}); logits under FP32's masks move by {self.logits_error:.2%}."
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "bits": self.bits, "kept_float": self.kept_float, "in_half": self.in_half}


def measure_mask_flips(
    bundle: Bundle,
    images: npt.NDArray[np.float32] | None = None,
    *,
    threads: int = 1,
    native: str | os.PathLike[str] = "auto",
) -> RoundingReport:
    """Count the mask bits that FP16 would flip.

    Activations are rounded to half wherever an engine stores them, weights likewise; sums are float, as in the
    kernels. FP32's masks are forced on the operators, so that a flip is counted where it arises and not again in every
    later block. What the kernels keep between their convolutions is not rounded here.

    Args:
        bundle: Any bundle.
        images: (n, 3, H, W) with n a multiple of the batch size, preprocessed; None takes the reference images.
        threads: Threads of the sessions.
        native: As for :class:`~dyndeploy.runtimes.OnnxRuntimeSession`.

    Raises:
        UsageError: The number of images does not fit, or a weight is beyond the range of FP16.
    """
    manifest = bundle.manifest
    pictures = bundle.reference()["input"] if images is None else images
    batch = manifest.batch
    if not len(pictures) or len(pictures) % batch:
        raise UsageError(f"{len(pictures)} images do not fill batches of {batch}. Give a multiple of it.")
    chunks = [pictures[start : start + batch] for start in range(0, len(pictures), batch)]
    model, masks = bundle.load_model(), manifest.masks
    name = manifest.inputs[0].name
    with OnnxRuntimeSession(model, threads=threads, native=native) as session:
        exact = [session.run({name: chunk}) for chunk in chunks]
    flips = {}
    error = 0.0
    for half_maskers in (False, True):
        rounded = rounded_model(model, masks, half_maskers=half_maskers)
        count = dict.fromkeys((mask.name for mask in masks), 0)
        with OnnxRuntimeSession(rounded, threads=threads, native=native) as session:
            for chunk, expected in zip(chunks, exact, strict=True):
                result = session.run({name: chunk, **_forced(masks, expected)})
                for mask in masks:
                    count[mask.name] += int((result[mask.name] != expected[mask.name]).sum())
                if not half_maskers:
                    scale = float(np.abs(expected["logits"]).max()) or 1.0
                    error = max(error, float(np.abs(result["logits"] - expected["logits"]).max()) / scale)
        flips[half_maskers] = count
    bits = {mask.name: int(np.prod(mask.shape)) * len(chunks) for mask in masks}
    rows = tuple(MaskFlips(n, bits[n], flips[False][n], flips[True][n]) for n in bits)
    return RoundingReport(len(pictures), rows, error)


def _forced(masks: Sequence[MaskInfo], values: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    if not masks:
        return {}
    return {FLAG: np.array(True), **{PREFIX + mask.name: values[mask.name] for mask in masks}}


def rounded_model(model: onnx.ModelProto, masks: Sequence[MaskInfo], *, half_maskers: bool) -> onnx.ModelProto:
    """A float graph that gives what FP16 storage gives: every stored value passes through half and back.

    Args:
        model: ``model.onnx`` of a bundle.
        masks: Its masks; they are forced on the operators (see :func:`overlay_forced_masks`).
        half_maskers: Round the maskers too: their weights and every intermediate result.

    Raises:
        UsageError: A weight is beyond the range of FP16.
    """
    import onnx
    from onnx import inliner

    keep = float_nodes(model)
    forced = overlay_forced_masks(model, masks) if masks else model
    graph_nodes = {name for node in forced.graph.node for name in node.output}
    maskers = [(DOMAIN, spec.name) for spec in OPERATORS.values() if not is_bottleneck(spec)]
    if half_maskers:
        present = {(function.domain, function.name) for function in forced.functions}
        forced = inliner.inline_selected_functions(forced, [m for m in maskers if m in present], exclude=False)
    result = onnx.ModelProto()
    result.CopyFrom(forced)
    inferred = onnx.shape_inference.infer_shapes(forced).graph
    floats = {
        value.name
        for value in (*inferred.value_info, *inferred.input, *inferred.output)
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    floats |= {node.output[0] for node in forced.graph.node if node.domain == DOMAIN}
    rounding = _Rounding(result, floats)
    for node in forced.graph.node:
        current = onnx.NodeProto.FromString(node.SerializeToString())
        inlined = node.output[0] not in graph_nodes
        masker = node.name in keep and not node.name.startswith("head/")
        forcing = any(name.startswith(PREFIX) for name in node.output)
        stored = False
        if node.domain == DOMAIN:
            spec = OPERATORS[node.op_type]
            stored = is_bottleneck(spec)
            if stored:
                halves = spec.kernels["tensorrt"].half if "tensorrt" in spec.kernels else frozenset()
                weights = [i for i, port in enumerate(spec.inputs) if port.role is Role.WEIGHT and port.name in halves]
                rounding.round_weights(current, weights)
        elif not forcing and (inlined or masker or node.name not in keep):
            stored = half_maskers or not (inlined or masker)
            if stored:
                rounding.round_weights(current, range(len(node.input)))
        rounding.add(current, stored=stored, input_too=node.op_type == "Conv")
    rounding.finish()
    return result


class _Rounding:
    """Rewrites a graph node by node."""

    def __init__(self, model: onnx.ModelProto, floats: set[str]) -> None:
        self._graph = model.graph
        self._floats = floats
        self._constants = {item.name: item for item in model.graph.initializer}
        self._nodes: list[onnx.NodeProto] = []
        self._rounded: set[str] = set()

    def round_weights(self, node: onnx.NodeProto, indices: Iterable[int]) -> None:
        """Let a node read rounded copies of its constants."""
        from onnx import TensorProto, numpy_helper

        for index in indices:
            name = node.input[index]
            item = self._constants.get(name)
            if item is None or item.data_type != TensorProto.FLOAT:
                continue
            copy = f"{name}/rounded"
            if copy not in self._rounded:
                self._rounded.add(copy)
                value = to_half(numpy_helper.to_array(item), name).astype(np.float32)
                self._graph.initializer.append(numpy_helper.from_array(value, copy))
            node.input[index] = copy

    def add(self, node: onnx.NodeProto, *, stored: bool, input_too: bool) -> None:
        """Append a node; what it stores passes through half."""
        if stored and input_too:  # the image is no node's output
            for index, name in enumerate(node.input):
                if name in {value.name for value in self._graph.input}:
                    node.input[index] = self._through_half(name, f"{name}/rounded")
        self._nodes.append(node)
        if not stored:
            return
        for index, name in enumerate(node.output):
            if name in self._floats:
                node.output[index] = f"{name}/exact"
                self._through_half(f"{name}/exact", name)

    def _through_half(self, source: str, target: str) -> str:
        from onnx import TensorProto, helper

        middle = f"{target}/as_half"
        self._nodes.append(helper.make_node("Cast", [source], [middle], to=TensorProto.FLOAT16))
        self._nodes.append(helper.make_node("Cast", [middle], [target], to=TensorProto.FLOAT))
        return target

    def finish(self) -> None:
        """Put the nodes into the graph."""
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        del self._graph.value_info[:]
