"""Calibration tables: the scale of every quantised tensor, with all that says where it comes from, as JSON."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dyndeploy import files
from dyndeploy.errors import InputError, UsageError, unknown_name
from dyndeploy.fields import Document, Field
from dyndeploy.graphs.inspect import all_graphs, all_nodes, is_dynamic
from dyndeploy.quantization.foreign import foreign_reason

if TYPE_CHECKING:
    import onnx

    from dyndeploy.bundle import Bundle, NetworkInfo

Array = npt.NDArray[Any]

SCHEMA = 1
INT8, FP32 = "int8", "fp32"
METHODS = ("minmax", "percentile", "entropy", "mse")
"""How a scale is found from what was observed."""
WEIGHT_BITS = (7, 8)
_ADVICE = "Calibrate again with 'dyndeploy quantize'."
_DOCUMENT = Document("The calibration table", _ADVICE, InputError)
_FLOAT32 = np.finfo(np.float32)
_MULTIPLIED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Histogram:
    """How often which values were observed.

    Attributes:
        edges: Of the bins, rising; one more than there are bins.
        counts: Values from each edge to the next.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class TensorScale:
    """The scale of one point: ``real = scale * (q - zero_point)`` with ``q`` an unsigned byte.

    Attributes:
        scale: Finite and positive.
        zero_point: In [0, 255]; 0 wherever a dynamic operator reads or writes.
        min: Least observed value.
        max: Largest observed value.
        count: Observed values: only those that are computed.
        clipped: Share of them beyond what 8 bits stand for.
        histogram: Of the observed values; None in a table without histograms.
    """

    scale: float
    zero_point: int
    min: float
    max: float
    count: int
    clipped: float = 0.0
    histogram: Histogram | None = None


@dataclass(frozen=True)
class BlockSensitivity:
    """What quantising one block alone costs, on the images that it was measured on.

    Attributes:
        block: Path of the block.
        output_error: Error of the network's output under FP32's masks: the norm of the difference over that of FP32's.
        accuracy_drop: Accuracy in FP32 less that with the block quantised, in [-1, 1]; None without labels.
        precision: ``"int8"`` or ``"fp32"``: what the plan chose.
        why: Why the block stays in FP32; empty where it does not.
    """

    block: str
    output_error: float
    accuracy_drop: float | None
    precision: str
    why: str = ""


@dataclass(frozen=True)
class Sensitivity:
    """What quantising costs, block by block and as planned.

    Attributes:
        images: How many images it was measured on.
        labels: Whether they had labels.
        blocks: One per block that can be quantised, in order of execution.
        accuracy_fp32: Share of the images whose class is right, in FP32; None without labels.
        accuracy_int8: The same with every block quantised; None without labels.
        accuracy: The same of the plan; None without labels.
        error_int8: Error of the output with every block quantised, as :attr:`BlockSensitivity.output_error`.
        error: The same of the plan.
        budget: What the plan had to keep, in words; empty where nothing was asked.
        mask_bits: Mask bits compared between FP32 and the plan, each network with masks of its own.
        mask_flips: How many of them differ.
    """

    images: int
    labels: bool
    blocks: tuple[BlockSensitivity, ...]
    accuracy_fp32: float | None
    accuracy_int8: float | None
    accuracy: float | None
    error_int8: float
    error: float
    budget: str = ""
    mask_bits: int = 0
    mask_flips: int = 0


@dataclass(frozen=True)
class CalibrationTable:
    """Scales of a network's activations, and which blocks are quantised.

    Points are named ``<block>/<point>``, e.g. ``layer1.0/x``, and of standard layers ``<node>:x`` and ``<node>:y``.
    Where several points are one tensor, or have to have one scale, every one of them carries it.

    Attributes:
        network: Name of the network.
        mode: What it skips, as in a bundle's manifest; empty where only a graph was given.
        granularity: Patch side per stage.
        channel_granularity: Channels per group per stage.
        weights_sha256: Of the weights that the scales belong to, see :func:`weights_sha256`.
        stages_sha256: The same of every stage of a network that exits early; else empty.
        weight_bits: 7 or 8.
        per_channel: Whether weights have one scale per output channel (of standard layers; those of dynamic operators
            always have).
        method: One of :data:`METHODS`.
        settings: Of the method.
        data: Where the images come from, in words.
        images: How many were observed.
        precision: ``"int8"`` or ``"fp32"`` by block; a block that is missing is ``"int8"``.
        tensors: By point.
        tools: Versions of what made the table.
        sensitivity: What quantising costs; None where it was not measured.
        notes: What a reader should know, as sentences.
    """

    network: str
    mode: str
    granularity: tuple[int, ...]
    channel_granularity: tuple[int, ...]
    weights_sha256: str
    weight_bits: int
    per_channel: bool
    method: str
    settings: Mapping[str, Any]
    data: str
    images: int
    precision: Mapping[str, str]
    tensors: Mapping[str, TensorScale]
    tools: Mapping[str, str]
    stages_sha256: tuple[str, ...] = ()
    sensitivity: Sensitivity | None = None
    notes: tuple[str, ...] = field(default=())

    def scale(self, point: str) -> float:
        """Scale of a point; raises ``UsageError`` where the table has none."""
        return self._tensor(point).scale

    def zero_point(self, point: str) -> int:
        """Zero point of a point; raises ``UsageError`` where the table has none."""
        return self._tensor(point).zero_point

    def _tensor(self, point: str) -> TensorScale:
        if point not in self.tensors:
            raise unknown_name("point of the calibration table", point, self.tensors)
        return self.tensors[point]

    def precision_of(self, block: str) -> str:
        """``"int8"`` or ``"fp32"``: what a block computes in."""
        return self.precision.get(block, INT8)

    def check(
        self,
        model: Bundle | onnx.ModelProto | Sequence[onnx.ModelProto],
        network: NetworkInfo | None = None,
    ) -> None:
        """Refuse a network that the scales do not belong to.

        Args:
            model: A bundle in FP32, one graph (of a network that exits early: one stage), or all stages.
            network: What a manifest says of the network; None: only the weights are compared, and what a bundle says.

        Raises:
            UsageError: The network, its mode, its granularity or its weights are others.
        """
        graphs, network = _graphs(model, network)
        if network is not None:
            wrong = [
                f"{what} {mine or 'none'}, not {theirs or 'none'}"
                for what, mine, theirs in (
                    ("network", self.network, network.name),
                    ("mode", self.mode, network.mode),
                    ("granularity", self.granularity, network.granularity),
                    ("channel granularity", self.channel_granularity, network.channel_granularity),
                )
                if mine != theirs
            ]
            if wrong:
                raise UsageError(f"The calibration table belongs to another network: {'; '.join(wrong)}. {_ADVICE}")
        if weights_sha256(graphs) in (self.weights_sha256, *self.stages_sha256):
            return
        raise UsageError(
            f"The calibration table belongs to other weights of {self.network}: scales found for one checkpoint do "
            f"not hold for another. {_ADVICE}"
        )

    def without_histograms(self) -> CalibrationTable:
        """The same table, small: histograms are for people and tools, no scale needs them."""
        tensors = {point: dataclasses.replace(item, histogram=None) for point, item in self.tensors.items()}
        return dataclasses.replace(self, tensors=tensors)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        tensors = {point: vars(item) | {"histogram": _plain(item.histogram)} for point, item in self.tensors.items()}
        return {
            "schema": SCHEMA,
            "network": self.network,
            "mode": self.mode,
            "granularity": list(self.granularity),
            "channel_granularity": list(self.channel_granularity),
            "weights_sha256": self.weights_sha256,
            "stages_sha256": list(self.stages_sha256),
            "weight_bits": self.weight_bits,
            "per_channel": self.per_channel,
            "method": self.method,
            "settings": dict(self.settings),
            "data": self.data,
            "images": self.images,
            "precision": dict(self.precision),
            "tensors": tensors,
            "sensitivity": None if self.sensitivity is None else dataclasses.asdict(self.sensitivity),
            "notes": list(self.notes),
            "tools": dict(self.tools),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as JSON under a temporary name and move it into place.

        Raises:
            OutputError: The file cannot be written; an earlier one is as it was.
            NotFiniteError: A number is NaN or infinite.
        """
        files.write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CalibrationTable:
        """Read a table.

        Raises:
            InputError: The file is missing, no JSON, of another schema version, malformed (the message names the
                field), or what another tool wrote.
        """
        reason = foreign_reason(path)
        if reason:
            raise InputError(f"{path} is no calibration table of dyndeploy: {reason} {_ADVICE}")
        return cls.from_json(files.read_json(path))

    @classmethod
    def from_json(cls, value: Any) -> CalibrationTable:
        """Read what :meth:`to_json` gives; every field is checked, unknown ones are ignored.

        Raises:
            InputError: Another schema version, or a field is missing or malformed.
        """
        if not isinstance(value, dict) or "schema" not in value or "tensors" not in value:
            raise InputError(f"This is no calibration table: it has no schema and tensors. {_ADVICE}")
        version = value["schema"]
        if type(version) is not int or version != SCHEMA:
            raise InputError(
                f"The calibration table has schema version {version!r}; this release reads version {SCHEMA}. {_ADVICE}"
            )
        root = _DOCUMENT.root(value)
        bits = root["weight_bits"]
        bits.require(type(bits.value) is int and bits.value in WEIGHT_BITS, "7 or 8")
        return cls(
            network=root["network"].text(),
            mode=root["mode"].label(),
            granularity=root["granularity"].sequence(Field.count),
            channel_granularity=root.get("channel_granularity").optional(lambda item: item.sequence(Field.count)) or (),
            weights_sha256=root["weights_sha256"].sha256(),
            stages_sha256=root.get("stages_sha256").optional(lambda item: item.sequence(Field.sha256)) or (),
            weight_bits=bits.value,
            per_channel=root["per_channel"].boolean(),
            method=root["method"].one_of(*METHODS),
            settings=root["settings"].facts(),
            data=root["data"].text(),
            images=root["images"].count(),
            precision=root["precision"].mapping(lambda item: item.one_of(INT8, FP32)),
            tensors=root["tensors"].mapping(_tensor),
            sensitivity=root.get("sensitivity").optional(_sensitivity),
            notes=root.get("notes").optional(lambda item: item.sequence(Field.text)) or (),
            tools=root["tools"].mapping(Field.text),
        )


def weights_sha256(model: onnx.ModelProto | Iterable[onnx.ModelProto]) -> str:
    """Checksum of the weights of a network in FP32: what a table belongs to.

    Every floating-point constant counts that a dynamic operator reads, or a convolution or linear layer behind its
    first input, by name, type, shape and bytes; their order does not. What else a graph has of constants depends on
    the batch and the size of the images, and scales do not.

    Args:
        model: The graph, or all stages.

    Returns:
        SHA-256 in lower-case hex.
    """
    import onnx
    from onnx import numpy_helper

    found = set()
    for graph in [model] if isinstance(model, onnx.ModelProto) else model:
        read = {
            name
            for node in all_nodes(graph.graph)
            if is_dynamic(node) or (node.op_type in _MULTIPLIED and not node.domain)
            for name in node.input[1:]
        }
        for item in (item for part in all_graphs(graph.graph) for item in part.initializer):
            if item.name in read and item.data_type in _FLOATS:
                value = np.ascontiguousarray(numpy_helper.to_array(item))
                digest = hashlib.sha256(f"{item.name} {item.data_type} {list(item.dims)} ".encode())
                digest.update(value.view(np.uint8).data if value.size else b"")
                found.add(digest.hexdigest())
    return hashlib.sha256(" ".join(sorted(found)).encode()).hexdigest()


_FLOATS = (1, 10, 11, 16)
"""ONNX's numbers of float, half, double and bfloat16."""


def _graphs(
    model: Bundle | onnx.ModelProto | Sequence[onnx.ModelProto], network: NetworkInfo | None
) -> tuple[Sequence[onnx.ModelProto], NetworkInfo | None]:
    import onnx

    from dyndeploy.bundle import Bundle

    if isinstance(model, Bundle):
        staged = model.manifest.exits is not None
        return model.load_stages() if staged else [model.load_model()], network or model.manifest.network
    return [model] if isinstance(model, onnx.ModelProto) else model, network


def _plain(histogram: Histogram | None) -> dict[str, Any] | None:
    return None if histogram is None else {"edges": list(histogram.edges), "counts": list(histogram.counts)}


def _tensor(item: Field) -> TensorScale:
    least, most = item["min"].number(), item["max"].number()
    item["max"].require(least <= most, "at least min")
    return TensorScale(
        scale=item["scale"].number(float(_FLOAT32.tiny), float(_FLOAT32.max)),
        zero_point=item["zero_point"].count(0, 255),
        min=least,
        max=most,
        count=item["count"].count(0),
        clipped=item.get("clipped").optional(lambda share: share.number(0, 1)) or 0.0,
        histogram=item["histogram"].optional(_histogram),
    )


def _histogram(item: Field) -> Histogram:
    edges = item["edges"].sequence(Field.number, at_least=2)
    item["edges"].require(all(low < high for low, high in itertools.pairwise(edges)), "rising numbers")
    return Histogram(edges, item["counts"].sequence(lambda count: count.count(0), length=len(edges) - 1))


def _sensitivity(item: Field) -> Sensitivity:
    def share(name: str) -> float | None:
        return item[name].optional(lambda value: value.number(0, 1))

    return Sensitivity(
        images=item["images"].count(),
        labels=item["labels"].boolean(),
        blocks=item["blocks"].sequence(_block),
        accuracy_fp32=share("accuracy_fp32"),
        accuracy_int8=share("accuracy_int8"),
        accuracy=share("accuracy"),
        error_int8=item["error_int8"].number(0),
        error=item["error"].number(0),
        budget=item["budget"].label(),
        mask_bits=item["mask_bits"].count(0),
        mask_flips=item["mask_flips"].count(0),
    )


def _block(item: Field) -> BlockSensitivity:
    return BlockSensitivity(
        block=item["block"].text(),
        output_error=item["output_error"].number(0),
        accuracy_drop=item["accuracy_drop"].optional(lambda value: value.number(-1, 1)),
        precision=item["precision"].one_of(INT8, FP32),
        why=item["why"].label(),
    )
