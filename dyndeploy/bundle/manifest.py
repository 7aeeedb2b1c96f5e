"""What a bundle says about itself: ``bundle.json`` as typed data."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from dyndeploy.confidences import CONFIDENCES
from dyndeploy.errors import BundleError, UsageError
from dyndeploy.fields import Document, Field
from dyndeploy.ops.gates import GATE_KINDS
from dyndeploy.precisions import cpu_precision, precision_of

if TYPE_CHECKING:
    from dyndeploy.tasks.detection import DetectionTask

SCHEMA_VERSION = 1
SEAL = "manifest_sha256"
"""Key of ``bundle.json`` under which the manifest protects itself."""

LOGITS, CONFIDENCE = "logits", "confidence"
"""Names of the outputs that every stage has."""

INPUT = "input"
"""Name of images, as a graph's input and in ``reference.npz``."""

IMAGE_SIZE = "image_size"
"""Name of a detector's second input."""

BOXES, SCORES, LABELS, COUNT, MASKS = "boxes", "scores", "labels", "count", "masks"
"""Names of the outputs of a detector that gives boxes, in order; the last one only where it gives masks."""

SAVES_NOTHING = "saves nothing"
"""Words of every note on what the target computes although it was to be skipped."""

_DOCUMENT = Document("bundle.json", "Export the bundle again.", BundleError)


@dataclass(frozen=True)
class TensorInfo:
    """A graph input or output: name, shape and NumPy dtype name."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class MaskInfo:
    """A mask tensor of the graph (also a graph output).

    Attributes:
        name: Tensor name, e.g. ``"mask/layer1.0/spatial"``.
        block: Dotted module name of the block, e.g. ``"layer1.0"``.
        kind: Name of the kind of its gate, e.g. ``"spatial"``, ``"channel"`` or ``"layer"``.
        shape: Its shape, with the axes of its kind: (N, 1, mh, mw) for a spatial mask, (N, G) for a channel mask.
        stage: Index of the stage whose graph makes it; None for a network that is one graph.
    """

    name: str
    block: str
    kind: str
    shape: tuple[int, ...]
    stage: int | None = None


@dataclass(frozen=True)
class OperatorInfo:
    """A dynamic operator node: its name in the graph, ``op_type``, version, and the block it belongs to."""

    node: str
    op_type: str
    version: int
    block: str


@dataclass(frozen=True)
class NetworkInfo:
    """The network that was exported.

    Attributes:
        name: Registered name, or name of the class of a network of a user's own.
        mode: What it skips: ``"spatial"``, ``"channel"``, ``"layer"``, ``"both"``, ``"static"``, one per stage joined
            by ``-``, ``"early_exit"``, or the kinds of its gates joined by ``+``.
        granularity: Patch side of every stage; empty where it has none.
        channel_granularity: Channels per group of every stage; empty where it has none.
        num_classes: Size of its logits; None where it gives none.
        options: Every option that it was built with; empty where it does not say.
        checkpoint: File name of the checkpoint that its weights came from.
        checkpoint_sha256: Checksum of that file.
        class_names: Names of the classes in the order of the logits; empty where they are not known.
    """

    name: str
    mode: str
    granularity: tuple[int, ...]
    channel_granularity: tuple[int, ...]
    num_classes: int | None
    options: dict[str, Any]
    checkpoint: str | None
    checkpoint_sha256: str | None
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class PreprocessingInfo:
    """How an image becomes the input: resize the shorter side, centre crop, scale to [0, 1], normalise."""

    resize: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str


@dataclass(frozen=True)
class ReferenceInfo:
    """What ``reference.npz`` holds: where the images come from and the rates that they cause.

    Attributes:
        source: Human-readable origin of the images.
        rates: Mean activation rate of every mask over the reference images, by mask name.
        flops_ratio: MACs needed over MACs of the static twin, averaged over the reference images.
    """

    source: str
    images: int
    rates: dict[str, float]
    flops_ratio: float


@dataclass(frozen=True)
class StageInfo:
    """One stage of a network that exits early: everything between the exit before it and its own.

    Attributes:
        file: Name of its graph in the bundle, e.g. ``"stage0.onnx"``.
        exit: Number of its exit in the network, from 1.
        inputs: Graph inputs: the images, or tensors that earlier stages carry to it.
        outputs: Graph outputs: ``"logits"`` first, then tensors carried to later stages, ``"confidence"`` last.
        macs: Multiply-accumulates per image up to and with this exit.
    """

    file: str
    exit: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    macs: int


@dataclass(frozen=True)
class ThresholdInfo:
    """When to leave: an image takes the first exit whose confidence reaches its threshold.

    Attributes:
        values: Least confidence (largest softmax probability) of every stage, as float32 compares it; the last stage
            always takes, its value is ``-inf``.
        source: Where they come from, in words.
        images: Images that they were chosen on.
        exit_shares: Share of those images that leaves at each stage.
        accuracy: On those images, in [0, 1], or None where they have no labels.
        budget: What was asked for, in words.
    """

    values: tuple[float, ...]
    source: str
    images: int
    exit_shares: tuple[float, ...]
    accuracy: float | None
    budget: str


@dataclass(frozen=True)
class ExitsInfo:
    """How a network leaves early.

    Attributes:
        stages: In order of execution.
        thresholds: By precision of the engine or session that they were calibrated on.
        disabled: Exits of the network that the bundle leaves out.
        confidence: What an image leaves by: the name of a measure of :mod:`dyndeploy.confidences`.
        dynamic_batch: Whether the stages take any number of images; otherwise exactly the bundle's batch size.
    """

    stages: tuple[StageInfo, ...]
    thresholds: dict[str, ThresholdInfo]
    disabled: tuple[int, ...] = ()
    dynamic_batch: bool = False
    confidence: str = "max_softmax"

    def check_thresholds(self, values: Sequence[float]) -> None:
        """Raise ``UsageError`` unless there is one number per stage and the last stage always takes."""
        if len(values) != len(self.stages):
            raise UsageError(f"{len(values)} thresholds are given for {len(self.stages)} stages: give one per stage.")
        if values[-1] != -math.inf:
            raise UsageError(f"The last exit always takes: its threshold is -inf, not {values[-1]:g}.")
        if not all(math.isfinite(value) for value in values[:-1]):
            raise UsageError("A threshold must be a finite number (above 1: the exit is never taken).")


@dataclass(frozen=True)
class QuantizationInfo:
    """How a graph in INT8 was made, and what of it is exact.

    Attributes:
        weight_bits: 7 or 8: weights are whole numbers up to 64 or 127 in magnitude.
        per_channel: Whether weights of standard convolutions have one scale per output channel; those of dynamic
            operators always have.
        method: How the scales of activations were found, e.g. ``"mse"``.
        images: Images that they were found on.
        data: Where those come from, in words.
        table_sha256: Checksum of the calibration table: of its canonical JSON, so that layout does not count.
        fp32_blocks: Blocks that the table leaves in FP32.
        within_step: Nodes that the runtime computes in integers of its own: another runtime, or another processor, may
            round a result the other way, by one step of its scale. Everything else in integers is exact to the bit.
        exact: Where that holds, in words.
    """

    weight_bits: int
    per_channel: bool
    method: str
    images: int
    data: str
    table_sha256: str
    fp32_blocks: tuple[str, ...]
    within_step: tuple[str, ...]
    exact: str


CLASSIFICATION, DETECTION = "classification", "detection"
"""Tasks of a network."""


@dataclass(frozen=True)
class BucketInfo:
    """One size of input that a detector was exported at.

    Attributes:
        size: (H, W) of the input, in pixels.
        folder: Of its bundle, in this one; empty for this bundle itself.
    """

    size: tuple[int, int]
    folder: str = ""


@dataclass(frozen=True)
class PartInfo:
    """One step of a detector that its target runs as several engines, with the host in between.

    Attributes:
        file: Name in the bundle: of an engine's graph, or of a host program (:mod:`dyndeploy.runtimes.host_program`).
        host: Whether the host computes it.
        inputs: What it reads: inputs of the network, or what earlier parts give.
        outputs: What later parts read, and outputs and masks of the network.
    """

    file: str
    host: bool
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


@dataclass(frozen=True)
class DetectionInfo:
    """How images become a detector's inputs, and its outputs detections: a :class:`~dyndeploy.tasks.DetectionTask`.

    Attributes:
        classes: Names of the classes, those of the network; empty where they are not known.
        category_ids: COCO's category of each class; empty where it is not known.
        size: (long, short): what the sides of a resized image are bounded by.
        divisor: Sizes of inputs are multiples of it.
        mean: Mean per RGB channel, of values in [0, 255].
        std: Standard deviation per RGB channel, of values in [0, 255].
        detections: Most detections of an image, K.
        score_threshold: Detections have a higher score.
        masks: Whether it gives a mask for every detection.
        rounding: Whether resized pixels are rounded; this and what follows as of the task.
        decoding: What the graph gives.
        mask_stride: Pixels of the input per cell of queries' masks.
        host: What is computed outside of the graph, in words.
        buckets: Every size that it was exported at, this bundle's own first.
        parts: What the target runs in the place of the one graph, in order; empty where it runs that.
        static_parts: The same of the static twin, engine by engine and program by program; empty without one.
        places: Why operators run where they do in those parts, in words.
    """

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    size: tuple[int, int]
    divisor: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    detections: int
    score_threshold: float
    masks: bool
    rounding: bool
    decoding: str
    mask_stride: int
    host: tuple[str, ...]
    buckets: tuple[BucketInfo, ...]
    parts: tuple[PartInfo, ...] = ()
    static_parts: tuple[PartInfo, ...] = ()
    places: tuple[str, ...] = ()

    def task(self) -> DetectionTask:
        """Return what prepares images and decodes outputs."""
        from dyndeploy.tasks.detection import DetectionTask

        return DetectionTask(
            self.size,
            self.divisor,
            self.mean,
            self.std,
            self.masks,
            rounding=self.rounding,
            decoding=self.decoding,
            detections=self.detections,
            mask_stride=self.mask_stride,
        )


@dataclass(frozen=True)
class Manifest:
    """Content of ``bundle.json``.

    Attributes:
        network: What was exported.
        target: Name of the target.
        opset: ONNX opset of ``model.onnx``.
        ir_version: ONNX IR version.
        batch: Static batch size N.
        input_size: (H, W) in pixels; None where the inputs are no images.
        precision: ``"fp32"``; ``"bf16"``: the dynamic bottlenecks compute in it on a CPU; ``"fp16"``: the plan of the
            engine. The graph itself is in FP32 in each case. ``"int8"``: the graph computes in it.
        inputs: Graph inputs.
        outputs: Graph outputs without the masks.
        masks: Mask tensors in order of execution.
        operators: Dynamic operator nodes in order of execution.
        preprocessing: How images become its input; None where the inputs are no images.
        reference: About the reference tensors.
        static_macs: MACs of convolutions and linear layers of the static twin per image.
        network_spec: The network as the reproduction of the LAUDNet predictor sees it (JSON of its ``NetworkSpec``);
            empty where the network cannot describe itself so.
        files: SHA-256 of every other file of the bundle by relative path.
        tools: Versions of the tools that wrote the bundle.
        notes: What export had to change or leave out, in words; empty when nothing.
        exits: Of a network that exits early, else None.
        quantization: Of a graph in INT8, else None.
        detection: Of a detector, else None.
    """

    network: NetworkInfo
    target: str
    opset: int
    ir_version: int
    batch: int
    input_size: tuple[int, int] | None
    precision: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    masks: tuple[MaskInfo, ...]
    operators: tuple[OperatorInfo, ...]
    preprocessing: PreprocessingInfo | None
    reference: ReferenceInfo
    static_macs: int
    network_spec: dict[str, Any]
    files: dict[str, str]
    tools: dict[str, str]
    notes: tuple[str, ...] = ()
    exits: ExitsInfo | None = None
    quantization: QuantizationInfo | None = None
    detection: DetectionInfo | None = None
    schema_version: int = field(default=SCHEMA_VERSION)

    @property
    def task(self) -> str:
        """:data:`DETECTION`, or :data:`CLASSIFICATION` of every other network."""
        return CLASSIFICATION if self.detection is None else DETECTION

    @property
    def operator_types(self) -> tuple[str, ...]:
        """Types of the dynamic operators, each once."""
        return tuple(sorted({operator.op_type for operator in self.operators}))

    @property
    def cpu_precision(self) -> str:
        """What the dynamic bottlenecks compute in on a CPU; raises ``UsageError`` where a CPU cannot."""
        return cpu_precision(self.precision)

    @property
    def graph_precision(self) -> str:
        """What the graph is written in: what function bodies, and ONNX Runtime's own operators, compute in."""
        return self.precision if precision_of(self.precision).in_graph else "fp32"

    def images(self) -> tuple[PreprocessingInfo, tuple[int, int]]:
        """How images become the input, and its (H, W); raises ``UsageError`` where the inputs are no images."""
        if self.detection is not None:
            raise UsageError(
                f"{self.network.name} is a detector: images of any size become its inputs. dyndeploy.open_bundle() "
                "takes them as they are."
            )
        if self.preprocessing is None or self.input_size is None or len(self.inputs) != 1:
            names = ", ".join(info.name for info in self.inputs)
            raise UsageError(
                f"{self.network.name} takes {names}, not one image: give its inputs as arrays (--input NAME=FILE.npy), "
                "or export it with preprocessing."
            )
        return self.preprocessing, self.input_size

    def detector(self) -> DetectionInfo:
        """Return how it detects; raises ``UsageError`` for a network that does not."""
        if self.detection is None:
            raise UsageError(f"{self.network.name} is no detector: it finds no objects in images.")
        return self.detection

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        value = dataclasses.asdict(self)
        if self.quantization is None:
            # Bundles read as they did before there was such a thing; so below.
            del value["quantization"]
        if self.detection is None:
            del value["detection"]
        else:
            value["task"] = self.task
            if not self.detection.parts:
                del value["detection"]["parts"], value["detection"]["places"]
            if not self.detection.static_parts:
                del value["detection"]["static_parts"]
        if self.exits is None:
            del value["exits"]
            return value
        for info in value["exits"]["thresholds"].values():
            # JSON has no infinity.
            info["values"] = [None if item == -math.inf else item for item in info["values"]]
        return value

    @classmethod
    def from_json(cls, value: Any) -> Manifest:
        """Parse ``bundle.json``.

        Every field is checked for its type and range, because a hand-edited or damaged manifest must fail here,
        by name, and not as a strange error in a later step. Unknown fields are ignored.

        Raises:
            BundleError: Another schema version, or a field is missing or malformed; the message names the field.
        """
        version = value.get("schema_version") if isinstance(value, dict) else None
        if type(version) is not int or version != SCHEMA_VERSION:
            raise BundleError(
                f"The bundle has schema version {version!r}; this release reads version {SCHEMA_VERSION}. "
                "Export it again with this release."
            )
        root = _DOCUMENT.root(value)
        manifest = cls(
            network=_network(root["network"]),
            target=root["target"].text(),
            opset=root["opset"].count(),
            ir_version=root["ir_version"].count(),
            batch=root["batch"].count(),
            input_size=root["input_size"].optional(_pair),
            precision=root["precision"].text(),
            inputs=root["inputs"].sequence(_tensor, at_least=1),
            outputs=root["outputs"].sequence(_tensor, at_least=1),
            masks=root["masks"].sequence(_mask),
            operators=root["operators"].sequence(_operator),
            preprocessing=root["preprocessing"].optional(_preprocessing),
            reference=_reference(root["reference"]),
            static_macs=root["static_macs"].count(),
            network_spec=root["network_spec"].facts(),
            files=_files(root["files"]),
            tools=root["tools"].mapping(Field.text),
            notes=root["notes"].sequence(Field.text),
            exits=root.get("exits").optional(_exits),
            quantization=root.get("quantization").optional(_quantization),
            detection=root.get("detection").optional(_detection),
        )
        root["precision"].require(
            (manifest.quantization is None) != (manifest.precision == "int8"), "int8 where there is quantization"
        )
        tensors = [tensor.name for tensor in (*manifest.inputs, *manifest.outputs)]
        _require_unique("inputs, outputs and masks", (*tensors, *(mask.name for mask in manifest.masks)))
        _require_unique("operators", (operator.node for operator in manifest.operators))
        if manifest.detection is not None:
            _require_detector(manifest, root)
        return manifest


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """Add ``manifest_sha256`` to the content of ``bundle.json``, or renew it.

    The hash is the SHA-256 of the UTF-8 text of everything else as canonical JSON: keys sorted, no blanks, other
    than ASCII escaped. It protects against damage, not against forgery: whoever edits a manifest can seal it again.
    """
    content = {key: item for key, item in value.items() if key != SEAL}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return content | {SEAL: hashlib.sha256(text.encode()).hexdigest()}


def _network(item: Field) -> NetworkInfo:
    return NetworkInfo(
        name=item["name"].text(),
        mode=item["mode"].text(),
        granularity=item["granularity"].sequence(Field.count),
        channel_granularity=item["channel_granularity"].sequence(Field.count),
        num_classes=item["num_classes"].optional(Field.count),
        options=item["options"].facts(),
        checkpoint=item["checkpoint"].optional(Field.text),
        checkpoint_sha256=item["checkpoint_sha256"].optional(Field.sha256),
        class_names=item.get("class_names").optional(lambda names: names.sequence(Field.text)) or (),
    )


def _shape(item: Field) -> tuple[int, ...]:
    return item.sequence(Field.count, at_least=1)


def _pair(item: Field) -> tuple[int, int]:
    height, width = item.sequence(Field.count, length=2)
    return height, width


def _tensor(item: Field) -> TensorInfo:
    return TensorInfo(item["name"].text(), _shape(item["shape"]), item["dtype"].text())


def _mask(item: Field) -> MaskInfo:
    kind = GATE_KINDS[item["kind"].one_of(*GATE_KINDS)]
    shape = _shape(item["shape"])
    item["shape"].require(len(shape) == len(kind.axes), f"of rank {len(kind.axes)} for a {kind.name} mask")
    stage = item.get("stage").optional(lambda entry: int(entry.number(0)))
    return MaskInfo(item["name"].text(), item["block"].text(), kind.name, shape, stage)


def _operator(item: Field) -> OperatorInfo:
    return OperatorInfo(
        node=item["node"].text(),
        op_type=item["op_type"].text(),
        version=item["version"].count(),
        block=item["block"].text(),
    )


def _preprocessing(item: Field) -> PreprocessingInfo:
    red, green, blue = item["mean"].sequence(Field.number, length=3)
    deviations = item["std"].sequence(Field.number, length=3)
    item["std"].require(min(deviations) > 0, "positive")
    return PreprocessingInfo(
        resize=item["resize"].count(),
        mean=(red, green, blue),
        std=(deviations[0], deviations[1], deviations[2]),
        interpolation=item["interpolation"].text(),
    )


def _reference(item: Field) -> ReferenceInfo:
    return ReferenceInfo(
        source=item["source"].text(),
        images=item["images"].count(),
        rates=item["rates"].mapping(lambda rate: rate.number(0, 1)),
        flops_ratio=item["flops_ratio"].number(0),
    )


def _exits(item: Field) -> ExitsInfo:
    stages = item["stages"].sequence(_stage, at_least=1)
    exits = [stage.exit for stage in stages]
    item["stages"].require(exits == sorted(set(exits)), "in order of their exits")
    _require_unique("stages", (stage.file for stage in stages))
    carried: dict[str, TensorInfo] = {}
    for index, stage in enumerate(stages):
        place = Field(_DOCUMENT, f"exits.stages[{index}]", stage.file)
        if index:
            unknown = [info.name for info in stage.inputs if carried.get(info.name) != info]
            place.require(not unknown, f"a stage whose inputs earlier stages carry ({', '.join(unknown)} differ)")
        place.require(stage.outputs[0].name == LOGITS and stage.outputs[-1].name == CONFIDENCE, "logits ... confidence")
        carried |= {info.name: info for info in stage.outputs[1:-1]}
    return ExitsInfo(
        stages=stages,
        thresholds=item["thresholds"].mapping(lambda entry: _thresholds(entry, len(stages))),
        disabled=item["disabled"].sequence(Field.count),
        dynamic_batch=item["dynamic_batch"].boolean(),
        confidence=item.get("confidence").optional(lambda name: name.one_of(*CONFIDENCES)) or "max_softmax",
    )


def _quantization(item: Field) -> QuantizationInfo:
    bits = item["weight_bits"]
    bits.require(type(bits.value) is int and bits.value in (7, 8), "7 or 8")
    return QuantizationInfo(
        weight_bits=bits.value,
        per_channel=item["per_channel"].boolean(),
        method=item["method"].text(),
        images=item["images"].count(),
        data=item["data"].text(),
        table_sha256=item["table_sha256"].sha256(),
        fp32_blocks=item["fp32_blocks"].sequence(Field.text),
        within_step=item["within_step"].sequence(Field.text),
        exact=item["exact"].text(),
    )


def _detection(item: Field) -> DetectionInfo:
    from dyndeploy.tasks.detection import DECODINGS

    red, green, blue = item["mean"].sequence(Field.number, length=3)
    deviations = item["std"].sequence(Field.number, length=3)
    item["std"].require(min(deviations) > 0, "positive")
    return DetectionInfo(
        classes=item["classes"].sequence(Field.text),
        category_ids=item["category_ids"].sequence(lambda category: category.count(0)),
        size=_pair(item["size"]),
        divisor=item["divisor"].count(),
        mean=(red, green, blue),
        std=(deviations[0], deviations[1], deviations[2]),
        detections=item["detections"].count(),
        score_threshold=item["score_threshold"].number(0, 1),
        masks=item["masks"].boolean(),
        rounding=item["rounding"].boolean(),
        decoding=item["decoding"].one_of(*DECODINGS),
        mask_stride=item["mask_stride"].count(),
        host=item["host"].sequence(Field.text),
        buckets=item["buckets"].sequence(
            lambda bucket: BucketInfo(_pair(bucket["size"]), bucket["folder"].label()), at_least=1
        ),
        parts=item.get("parts").optional(lambda parts: parts.sequence(_part)) or (),
        static_parts=item.get("static_parts").optional(lambda parts: parts.sequence(_part)) or (),
        places=item.get("places").optional(lambda places: places.sequence(Field.text)) or (),
    )


def _part(item: Field) -> PartInfo:
    return PartInfo(
        file=item["file"].text(),
        host=item["host"].boolean(),
        inputs=item["inputs"].sequence(_any_tensor, at_least=1),
        outputs=item["outputs"].sequence(_any_tensor, at_least=1),
    )


def _any_tensor(item: Field) -> TensorInfo:
    """A tensor, or a single number."""
    return TensorInfo(item["name"].text(), item["shape"].sequence(Field.count), item["dtype"].text())


def _require_chain(manifest: Manifest, item: Field) -> None:
    """Check that every part reads what is there before it, and that the network's outputs are all made."""
    info = manifest.detection
    assert info is not None
    _require_unique("parts", (part.file for part in (*info.parts, *info.static_parts)))
    outputs = [output.name for output in manifest.outputs]
    chains = {"parts": (info.parts, [*outputs, *(mask.name for mask in manifest.masks)])}
    if info.static_parts:
        chains["static_parts"] = (info.static_parts, outputs)
        kinds = [part.host for part in info.static_parts]
        item["static_parts"].require(kinds == [part.host for part in info.parts], "as many and such parts as parts has")
    for key, (parts, results) in chains.items():
        there = {tensor.name: tensor for tensor in manifest.inputs}
        for index, part in enumerate(parts):
            place = Field(_DOCUMENT, f"detection.{key}[{index}]", part.file)
            unknown = [tensor.name for tensor in part.inputs if there.get(tensor.name) != tensor]
            place.require(not unknown, f"a part whose inputs are there before it ({', '.join(unknown)} differ)")
            there |= {tensor.name: tensor for tensor in part.outputs}
        lacking = [name for name in results if name not in there]
        item[key].require(not lacking, f"parts that give {', '.join(lacking)} as well")


def _require_detector(manifest: Manifest, root: Field) -> None:
    """Check what a detector's parts say of each other."""
    info, item = manifest.detection, root["detection"]
    assert info is not None
    count = manifest.network.num_classes
    item["classes"].require(info.classes == manifest.network.class_names, "the network's class names")
    item["category_ids"].require(len(info.category_ids) in (0, count), f"{count} numbers, or none")
    inputs = {tensor.name: tensor.shape for tensor in manifest.inputs}
    size = manifest.input_size
    expected = {INPUT: (manifest.batch, 3, *(size or ())), IMAGE_SIZE: (manifest.batch, 2)}
    root["inputs"].require(inputs == expected, f"{INPUT} (N, 3, H, W) and {IMAGE_SIZE} (N, 2) of a detector")
    names = [tensor.name for tensor in manifest.outputs]
    wanted = list(info.task().output_names)
    root["outputs"].require(names == wanted, f"{', '.join(wanted)} of a detector")
    own, *others = info.buckets
    item["buckets"].require(own == BucketInfo(size or (0, 0)), "the bundle's own size first")
    inside = all(bucket.folder == bucket_folder(bucket.size) for bucket in others)
    item["buckets"].require(inside, "folders that are named after their sizes")
    sizes = [bucket.size for bucket in info.buckets]
    item["buckets"].require(len(set(sizes)) == len(sizes), "sizes that differ")
    if info.parts:
        _require_chain(manifest, item)


def bucket_folder(size: tuple[int, int]) -> str:
    """Name of the folder of a further bucket (H, W) in a detector's bundle."""
    return f"{size[0]}x{size[1]}"


def _stage(item: Field) -> StageInfo:
    return StageInfo(
        file=item["file"].text(),
        exit=item["exit"].count(),
        inputs=item["inputs"].sequence(_tensor, at_least=1),
        outputs=item["outputs"].sequence(_tensor, at_least=2),
        macs=item["macs"].count(),
    )


def _thresholds(item: Field, stages: int) -> ThresholdInfo:
    *values, last = item["values"].sequence(lambda value: value.optional(Field.number), length=stages)
    item["values"].require(last is None and None not in values, "numbers, and null for the last stage")
    return ThresholdInfo(
        values=(*(value for value in values if value is not None), -math.inf),
        source=item["source"].text(),
        images=item["images"].count(),
        exit_shares=item["exit_shares"].sequence(lambda share: share.number(0, 1), length=stages),
        accuracy=item["accuracy"].optional(lambda accuracy: accuracy.number(0, 1)),
        budget=item["budget"].text(),
    )


def _files(item: Field) -> dict[str, str]:
    checksums = item.mapping(Field.sha256)
    for name in checksums:
        path = PurePosixPath(name)
        # A checksum of a file elsewhere would make checking a foreign bundle read that file.
        inside = bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name
        Field(_DOCUMENT, f"files[{name!r}]", name).require(inside, "a path inside the bundle")
    return checksums


def _require_unique(place: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise _DOCUMENT.complaint(f"{place} name {name!r} twice")
        seen.add(name)
