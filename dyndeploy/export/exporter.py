"""Export: any network -> captured graph -> passes -> bundle."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import platform
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

import dyndeploy
from dyndeploy import files
from dyndeploy.blocks import StagedNetwork, confidence_of
from dyndeploy.blocks.block import capacity_of, run_dense
from dyndeploy.blocks.macs import dense_macs, exit_macs
from dyndeploy.bundle import (
    BRANCHED,
    INPUT,
    LOGITS,
    MANIFEST,
    MODEL,
    REFERENCE,
    STATIC,
    BucketInfo,
    Bundle,
    ExitsInfo,
    Manifest,
    MaskInfo,
    NetworkInfo,
    OperatorInfo,
    PartInfo,
    PreprocessingInfo,
    QuantizationInfo,
    ReferenceInfo,
    TensorInfo,
    bucket_folder,
    write_manifest,
)
from dyndeploy.bundle.device_files import DEVICE_FOLDER, write_device_folder
from dyndeploy.bundle.reference_names import EXACT, FORCED, MARGIN, exit_logits
from dyndeploy.data import DIGITS, digits, images_from_folder, load_image, sample_photographs
from dyndeploy.errors import ExportError, InputError, UsageError, unknown_name
from dyndeploy.export.detection import category_ids as category_ids_of
from dyndeploy.export.detection import check_size, check_target, classes_of, detection_info, reference_inputs
from dyndeploy.export.graph import Built, build
from dyndeploy.export.reference import Reference, compute_reference
from dyndeploy.export.staged import build_stages, tensor_info
from dyndeploy.export.subject import ExampleInputs, Subject, make_subject
from dyndeploy.graphs.inspect import all_nodes, group_of, is_dynamic, not_finite_weights
from dyndeploy.graphs.macs import MacCounter
from dyndeploy.graphs.memory import model_footprint, require_memory
from dyndeploy.graphs.split import Segment, host_program
from dyndeploy.graphs.stages import branched_model, whole_model
from dyndeploy.graphs.tensorrt import PrecisionPlan, required_creators, tensorrt_model
from dyndeploy.graphs.tensorrt_bytes import blocks_in_floats, keeps_integers, with_plugin_bytes
from dyndeploy.nets import Preprocessing
from dyndeploy.ops import OPERATORS
from dyndeploy.quantization import FP32, CalibrationTable, quantize_model, quantize_twin, runtime_integers
from dyndeploy.runtimes.host_program import OPERATORS as HOST_OPERATORS
from dyndeploy.runtimes.tensorrt_bundle import write_engine_plans
from dyndeploy.targets import PORTABLE, Target, load_device, load_target

MIN_INPUT_SIZE = 32
REFERENCE_SAMPLES = 4
"""Samples in ``reference.npz`` at batch size 1; a larger batch takes whole batches of at least as many."""

GRAPHS = ("stages", "if")
EARLY_EXIT = "early_exit"
"""Mode of a network that exits early."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class ExportSettings:
    """Everything that shapes an export; the defaults live here and nowhere else.

    Attributes:
        target: Name of the target.
        batch: Static batch size.
        input_size: (H, W), or None for the network's default.
        input_sizes: Of a detector, every (H, W) that it shall run at, the main one first, in the place of
            ``input_size``: each further one becomes a bundle of its own inside the bundle.
        precision: What the dynamic bottlenecks compute in when the bundle runs (CPU), or the precision plan of the
            engine (boards). The graph stays FP32, so that it can be verified anywhere; of ``int8`` it computes in INT8.
        calibration: Calibration table of an ``int8`` export, or its path: scales, and which blocks stay in FP32.
        static: Also write the static twin; of a network that exits early, the whole network without exits.
        exits: Exits to keep, ascending, the last one included; None for all. Early exits only.
        graph: ``"stages"``, or ``"if"``: also write the stages as one graph with nested ``If``. Early exits only.
        data: Folder of images for the reference tensors; ``"digits"``: some of scikit-learn's; or None for its two
            sample photographs.
        checkpoint: Path the weights came from, for the record.
        weights: Which of its weights they are, where they are not the usual ones; for the record.
        dense: Blocks that run densely whatever their stage's mode: every mask bit is set, and there is no masker.
        notes: What else has to be said of the weights, for the record: phrases without a full stop.
        token_capacity: Static shapes with places for so many tokens of an image, or for such a share of them; an image
            that keeps more is computed on all. None lets shapes follow the masks.
    """

    target: str = "cpu"
    batch: int = 1
    input_size: tuple[int, int] | None = None
    input_sizes: tuple[tuple[int, int], ...] = ()
    precision: str = "fp32"
    calibration: CalibrationTable | str | os.PathLike[str] | None = None
    static: bool = False
    exits: tuple[int, ...] | None = None
    graph: str = "stages"
    data: str | os.PathLike[str] | None = None
    checkpoint: str | os.PathLike[str] | None = None
    weights: str | None = None
    dense: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    token_capacity: int | float | None = None

    def __post_init__(self) -> None:
        """Refuse what no network can be exported with; raises ``UsageError``."""
        target = load_target(self.target)
        target.require_precision(self.precision)
        if self.precision == "int8" and self.calibration is None:
            raise UsageError("An export in int8 needs a calibration table: make one with 'dyndeploy quantize'.")
        if self.precision != "int8" and self.calibration is not None:
            raise UsageError(f"A calibration table is for int8, not for {self.precision}: leave one of the two out.")
        if self.token_capacity is not None:
            capacity_of(self.token_capacity, 1)
        if self.graph not in GRAPHS:
            raise unknown_name("graph", self.graph, GRAPHS)
        if self.graph == "if" and "If" in target.refused:
            raise UsageError(f"--graph if is impossible on {target.name}: {target.refused['If']}. Export stages.")
        if isinstance(self.batch, bool) or not isinstance(self.batch, int) or self.batch < 1:
            raise UsageError(f"The batch size must be a whole number of at least 1, not {self.batch!r}.")
        for size in (*([] if self.input_size is None else [self.input_size]), *self.input_sizes):
            if not isinstance(size, tuple) or len(size) != 2 or not all(isinstance(side, int) for side in size):
                raise UsageError(f"The input size must be (height, width), not {size!r}.")
            if min(size) < MIN_INPUT_SIZE:
                raise UsageError(
                    f"Input size {size[0]}x{size[1]} is too small: give at least {MIN_INPUT_SIZE}x{MIN_INPUT_SIZE}."
                )
        if self.input_sizes:
            if self.input_size not in (None, self.input_sizes[0]):
                raise UsageError("input_size and the first of input_sizes differ: give one of them.")
            if len(set(self.input_sizes)) < len(self.input_sizes):
                listed = ", ".join(map(bucket_folder, self.input_sizes))
                raise UsageError(f"An input size is given twice: {listed}.")
            object.__setattr__(self, "input_size", self.input_sizes[0])


def export_model(
    module: torch.nn.Module,
    output: str | os.PathLike[str],
    settings: ExportSettings | None = None,
    *,
    example_inputs: ExampleInputs | None = None,
    preprocessing: Preprocessing | None = None,
    class_names: Sequence[str] | None = None,
    category_ids: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Write a bundle.

    The module's own ``forward`` is captured; the dynamic blocks in it become operators or branches. A module with
    ``segments`` (:class:`~dyndeploy.blocks.StagedNetwork`) becomes one graph per exit.

    Args:
        module: Any network, of any dtype and in any mode; it is not changed.
        output: Folder to write; an earlier bundle there is replaced, anything else is left alone.
        settings: See :class:`ExportSettings`.
        example_inputs: What its forward takes: a tensor, a tuple, or tensors by parameter name, with the batch as first
            axis; None for images of the network's own or the settings' size.
        preprocessing: How images become the input; None for the network's own, else values in [-1, 1].
        class_names: Names of the classes, in the order of the logits.
        category_ids: Of a detector, COCO's category of each class; None for COCO's own where the names are COCO's, else
            counted from 1.
        progress: Called with a line at the start of each step.

    Returns:
        The bundle.

    Raises:
        UsageError: A network that cannot be captured as it is written: a block that is used twice, outputs that are no
            tensors, inputs that do not fit, an option that has no operator; or one that needs more memory than the
            target has.
        ExportError: Weights or reference results that are not finite, control flow on data, or a graph that the target
            could not run.
        OutputError: The folder cannot be written; nothing is left behind.
    """
    settings, progress = settings or ExportSettings(), progress or (lambda message: None)
    target = load_target(settings.target)
    subject = make_subject(
        module,
        batch=settings.batch,
        input_size=settings.input_size,
        example_inputs=example_inputs,
        preprocessing=preprocessing,
    )
    table = _calibration(settings)
    write = _write_stages if isinstance(subject.network, StagedNetwork) else _write_graph
    _require_fitting(subject, settings)
    classes = tuple(class_names or ())
    categories = _categories(subject, classes, category_ids)
    sizes = () if subject.input_size is None else (subject.input_size, *settings.input_sizes[1:])
    buckets = [BucketInfo(size, bucket_folder(size) if index else "") for index, size in enumerate(sizes)]
    # The output path is claimed first, so that an impossible one costs no export time.
    with files.atomic_directory(output, replace_if=MANIFEST) as folder:
        progress("reading reference inputs")
        inputs, source = _reference_inputs(settings, subject)
        content = write(_Export(folder, settings, target, subject, inputs, table, progress))
        for bucket in buckets[1:]:
            _write_bucket(module, folder, bucket, settings, classes, categories, progress)
        if target.runtime == "tensorrt":
            progress("preparing the graphs for TensorRT")
            names = [MODEL] if content.exits is None else [stage.file for stage in content.exits.stages]
            names = [part.file for part in content.parts if not part.host] or names
            graphs = {name: onnx.load(folder / name) for name in names}
            write_engine_plans(folder, graphs, target, settings.precision, content.rates)
        graphs_target = load_target(PORTABLE) if content.parts else target
        manifest = Manifest(
            network=_network_info(subject, settings, content, class_names),
            target=target.name,
            opset=graphs_target.opset,
            ir_version=graphs_target.ir_version,
            batch=settings.batch,
            input_size=subject.input_size,
            precision=settings.precision,
            inputs=content.inputs,
            outputs=content.outputs,
            masks=content.masks,
            operators=content.operators,
            preprocessing=None if subject.preprocessing is None else PreprocessingInfo(**asdict(subject.preprocessing)),
            reference=ReferenceInfo(source, len(next(iter(inputs.values()))), content.rates, content.flops_ratio),
            static_macs=max(1, content.static_macs),
            network_spec=content.network_spec,
            files=_checksums(folder, folder),
            tools={
                "dyndeploy": dyndeploy.__version__,
                "torch": torch.__version__,
                "onnx": onnx.__version__,
                "python": platform.python_version(),
            },
            notes=(*content.notes, *_subject_notes(subject), *_weights_notes(settings), *settings.notes),
            exits=content.exits,
            quantization=content.quantization,
            detection=None
            if subject.task is None
            else detection_info(subject, classes, buckets, categories, content.parts, content.static_parts, target),
        )
        if target.runtime == "tensorrt":
            write_device_folder(folder, manifest)
            carried = _checksums(folder, folder / DEVICE_FOLDER)
            manifest = replace(manifest, files=dict(sorted({**manifest.files, **carried}.items())))
        write_manifest(folder, manifest)
    return Bundle.open(output)


def _write_bucket(
    module: torch.nn.Module,
    folder: Path,
    bucket: BucketInfo,
    settings: ExportSettings,
    class_names: Sequence[str],
    category_ids: Sequence[int],
    progress: Progress,
) -> None:
    """Write a further size of a detector: a bundle of its own inside its bundle."""
    own = replace(settings, input_size=bucket.size, input_sizes=())

    def say(message: str) -> None:
        progress(f"{bucket.folder}: {message}")

    export_model(module, folder / bucket.folder, own, class_names=class_names, category_ids=category_ids, progress=say)


def _checksums(bundle: Path, folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder of a bundle, by path in the bundle."""
    return {
        path.relative_to(bundle).as_posix(): files.sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }


@dataclass(frozen=True)
class _Export:
    """What both kinds of networks are written from."""

    folder: Path
    settings: ExportSettings
    target: Target
    subject: Subject
    inputs: dict[str, torch.Tensor]
    table: CalibrationTable | None
    progress: Progress


@dataclass(frozen=True)
class _Content:
    """What a kind of network says about itself in the manifest."""

    mode: str
    classes: int | None
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    static_macs: int
    notes: tuple[str, ...]
    masks: tuple[MaskInfo, ...] = ()
    operators: tuple[OperatorInfo, ...] = ()
    rates: dict[str, float] = field(default_factory=dict)
    flops_ratio: float = 1.0
    exits: ExitsInfo | None = None
    network_spec: dict[str, Any] = field(default_factory=dict)
    quantization: QuantizationInfo | None = None
    parts: tuple[PartInfo, ...] = ()
    static_parts: tuple[PartInfo, ...] = ()


def _write_graph(export: _Export) -> _Content:
    """Write ``model.onnx``, the static twin and the reference tensors of a network that is one graph."""
    settings, subject, folder = export.settings, export.subject, export.folder
    export.progress("capturing the dynamic graph")
    built = build(
        subject.network,
        subject.inputs,
        export.target,
        dense=settings.dense,
        token_capacity=settings.token_capacity,
    )
    engines = [part.model for part in built.parts if not part.host] or [built.model]
    _require_memory(export, engines)
    (written,) = _quantised(export, [built.model], built.masks)
    planned = engines if built.parts else [written]
    notes = _apply_plan(planned, export.target, settings.precision, in_parts=bool(built.parts))
    notes += (*_dense_notes(settings.dense), *built.notes)
    notes += _plugin_notes(engines, export.target)
    _save(written, folder / MODEL)
    parts = _write_parts(built.parts, "part", folder)
    static_parts: tuple[PartInfo, ...] = ()
    if settings.static:
        export.progress("capturing the static twin")
        whole = build(subject.network, subject.inputs, export.target, static=True)
        _apply_plan((part.model for part in whole.parts if not part.host), export.target, settings.precision)
        twin, static_parts = whole.model, _write_parts(whole.parts, "static", folder)
        if export.table is not None:
            twin = quantize_twin(twin, built.model, built.masks, export.table, _batches(export))
        _save(twin, folder / STATIC)
    export.progress("computing reference tensors")
    reference = compute_reference(_with_dense(subject.network, settings.dense), export.inputs)
    np.savez(folder / REFERENCE, **reference.tensors)  # type: ignore[arg-type]
    shapes = {value.name: value for value in built.model.graph.output}
    names = [name for name in shapes if name not in {mask.name for mask in built.masks}]
    outputs = tuple(tensor_info(shapes[name]) for name in names)
    describe = getattr(subject.network, "describe", None)
    return _Content(
        mode=_mode(built.masks),
        classes=_classes(subject, outputs),
        inputs=tuple(tensor_info(value) for value in built.model.graph.input),
        outputs=outputs,
        static_macs=dense_macs(subject.network, subject.examples).total // settings.batch,
        notes=notes,
        masks=built.masks,
        operators=_operators([written]),
        rates=reference.rates,
        flops_ratio=_flops_ratio(built, reference, settings.batch),
        network_spec=(describe(subject.input_size) if callable(describe) and subject.input_size else None) or {},
        quantization=_quantization_info(export, [built.model], [written]),
        parts=parts,
        static_parts=static_parts,
    )


def _write_parts(segments: Sequence[Segment], stem: str, folder: Path) -> tuple[PartInfo, ...]:
    return tuple(_write_part(segment, f"{stem}{index}", folder) for index, segment in enumerate(segments))


def _write_part(segment: Segment, stem: str, folder: Path) -> PartInfo:
    """Write an engine's graph or a host program, and describe it."""
    name = f"{stem}.npz" if segment.host else f"{stem}.onnx"
    if segment.host:
        np.savez(folder / name, **host_program(segment.model, HOST_OPERATORS))  # type: ignore[arg-type]
    else:
        _save(segment.model, folder / name)
    graph = segment.model.graph
    return PartInfo(name, segment.host, tuple(map(tensor_info, graph.input)), tuple(map(tensor_info, graph.output)))


def _require_memory(export: _Export, models: Sequence[onnx.ModelProto]) -> None:
    """Refuse what the target's memory cannot hold; raises ``UsageError``."""
    if export.target.runtime == "onnxruntime":
        return  # Whose memory is anybody's guess.
    first, *others = (model_footprint(model, export.settings.precision) for model in models)
    require_memory(export.subject.name, load_device(export.target.name), sum(others, first))


def _classes(subject: Subject, outputs: Sequence[TensorInfo]) -> int | None:
    if subject.task is not None:
        return classes_of(subject)
    return next((info.shape[1] for info in outputs if info.name == LOGITS and len(info.shape) == 2), None)


def _write_stages(export: _Export) -> _Content:
    """Write the stages, what else was asked for, and the reference tensors of a network that exits early."""
    settings, target, folder, subject = export.settings, export.target, export.folder, export.subject
    network = subject.network
    assert isinstance(network, StagedNetwork) and subject.input_size is not None
    export.progress("capturing the stages")
    # A CPU takes any number of survivors; an engine has the shapes that it was built with.
    batch = None if target.runtime == "onnxruntime" else settings.batch
    stages = build_stages(network, target, settings.exits, batch, subject.input_size, settings.dense)
    models = [stage.model for stage in stages]
    _require_memory(export, models)
    written = _quantised(export, models, [mask for stage in stages for mask in stage.masks])
    notes = (*_apply_plan(written, target, settings.precision), *_dense_notes(settings.dense))
    notes += tuple(dict.fromkeys(note for stage in stages for note in stage.notes)) + _plugin_notes(models, target)
    for stage, model in zip(stages, written, strict=True):
        _save(model, folder / stage.file)
    if settings.static:
        twins = written
        if any(stage.masks for stage in stages):
            built = build_stages(network, target, settings.exits, batch, subject.input_size, static=True)
            twins = [stage.model for stage in built]
            if export.table is not None:
                raise UsageError(
                    f"{subject.name} exits early and has dynamic blocks: there is no INT8 form of it without exits in "
                    "this release. Leave --static out."
                )
        _save(whole_model(twins), folder / STATIC)
    if settings.graph == "if":
        _save(branched_model(written, [stage.exit for stage in stages]), folder / BRANCHED)
    export.progress("computing reference tensors")
    reference = compute_reference(_with_dense(network, settings.dense), export.inputs)
    np.savez(folder / REFERENCE, **exit_tensors(reference.tensors, network.exits))
    macs = exit_macs(network, subject.input_size, tuple(stage.exit for stage in stages))
    infos = tuple(stage.info(count, settings.batch) for stage, count in zip(stages, macs, strict=True))
    return _Content(
        mode=EARLY_EXIT,
        classes=infos[-1].outputs[0].shape[1],
        inputs=infos[0].inputs,
        outputs=infos[0].outputs[:1],
        static_macs=exit_macs(network, subject.input_size, (network.exits,))[0],
        notes=notes,
        masks=tuple(
            replace(mask, stage=index, shape=(settings.batch, *mask.shape[1:]))
            for index, stage in enumerate(stages)
            for mask in stage.masks
        ),
        operators=_operators(written),
        rates=reference.rates,
        quantization=_quantization_info(export, models, written),
        exits=ExitsInfo(
            stages=infos,
            thresholds={},
            disabled=tuple(sorted(set(range(1, network.exits + 1)) - {stage.exit for stage in stages})),
            dynamic_batch=batch is None,
            confidence=confidence_of(network),
        ),
    )


def _calibration(settings: ExportSettings) -> CalibrationTable | None:
    given = settings.calibration
    return given if given is None or isinstance(given, CalibrationTable) else CalibrationTable.load(given)


def _quantised(
    export: _Export, models: Sequence[onnx.ModelProto], masks: Sequence[MaskInfo]
) -> Sequence[onnx.ModelProto]:
    """The graphs in INT8 where there is a calibration table; raises ``UsageError`` if it belongs to another network."""
    table, subject = export.table, export.subject
    if table is None:
        return models
    export.progress("quantising")
    facts = subject.facts
    mode = facts.mode or (EARLY_EXIT if isinstance(subject.network, StagedNetwork) else _mode(masks))
    network = NetworkInfo(subject.name, mode, facts.granularity, facts.channel_granularity, None, {}, None, None)
    table.check(models, network)
    return [quantize_model(model, table) for model in models]


def _quantization_info(
    export: _Export, models: Sequence[onnx.ModelProto], written: Sequence[onnx.ModelProto]
) -> QuantizationInfo | None:
    table = export.table
    if table is None:
        return None
    text = json.dumps(table.to_json(), sort_keys=True, separators=(",", ":"))
    blocks = dict.fromkeys(group_of(node.name) for model in models for node in all_nodes(model.graph))
    everywhere = "on every CPU, by the operator library and by function bodies"
    if export.target.runtime == "tensorrt":
        everywhere += ", and on GPUs by the TensorRT plugins"
    return QuantizationInfo(
        weight_bits=table.weight_bits,
        per_channel=table.per_channel,
        method=table.method,
        images=table.images,
        data=table.data,
        table_sha256=hashlib.sha256(text.encode()).hexdigest(),
        fp32_blocks=tuple(block for block in blocks if table.precision_of(block) == FP32),
        within_step=tuple(name for model in written for name in runtime_integers(model)),
        exact="dynamic operators: to the bit "
        + (everywhere if table.weight_bits == 7 else "by the operator library; function bodies may saturate on AVX2"),
    )


def _batches(export: _Export) -> Iterator[dict[str, Any]]:
    """The reference inputs in batches."""
    size = export.settings.batch
    for start in range(0, len(next(iter(export.inputs.values()))), size):
        yield {name: value[start : start + size].numpy() for name, value in export.inputs.items()}


def exit_tensors(tensors: dict[str, Any], exits: int) -> dict[str, Any]:
    """Reference tensors of a network with exits: its outputs, in order, are the logits of its exits."""
    ignored = (MARGIN, FORCED, EXACT, "mask/")
    outputs = [name for name in tensors if name != INPUT and not name.startswith(ignored)][:exits]
    names = dict(zip(outputs, map(exit_logits, range(1, exits + 1)), strict=True))
    names |= {f"{FORCED}{name}": f"{FORCED}{exit}" for name, exit in names.items()}
    return {names.get(name, name): value for name, value in tensors.items()}


def _with_dense(network: torch.nn.Module, dense: Collection[str]) -> torch.nn.Module:
    if not dense:
        return network
    network = copy.deepcopy(network)
    run_dense(network, dense)
    return network


def _mode(masks: Sequence[MaskInfo]) -> str:
    """What a network skips that does not say it itself."""
    return "+".join(dict.fromkeys(mask.kind for mask in masks)) or "static"


def _operators(models: Sequence[onnx.ModelProto]) -> tuple[OperatorInfo, ...]:
    return tuple(
        OperatorInfo(node.name, node.op_type, OPERATORS[node.op_type].version, group_of(node.name))
        for model in models
        for node in all_nodes(model.graph)
        if is_dynamic(node)
    )


def _flops_ratio(built: Built, reference: Reference, batch: int) -> float:
    """MACs that the reference inputs need over those with every mask bit set, averaged over the inputs."""
    masks = {mask.name: reference.tensors[mask.name] for mask in built.masks}
    if not masks:
        return 1.0
    counter = MacCounter(built.model)
    everything = counter.count({name: np.ones_like(value[:batch]) for name, value in masks.items()}).per_sample
    count = len(next(iter(masks.values())))
    ratios = [
        counter.count({name: value[start : start + batch] for name, value in masks.items()}).per_sample / everything
        for start in range(0, count, batch)
    ]
    return float(np.mean(ratios))


def _network_info(
    subject: Subject, settings: ExportSettings, content: _Content, class_names: Sequence[str] | None
) -> NetworkInfo:
    names = tuple(class_names or ())
    if names and content.classes != len(names):
        raise UsageError(f"{len(names)} class names are given, and the network has {content.classes or 'no'} classes.")
    return NetworkInfo(
        name=subject.name,
        mode=subject.facts.mode or content.mode,
        granularity=subject.facts.granularity,
        channel_granularity=subject.facts.channel_granularity,
        num_classes=content.classes,
        options=dict(subject.facts.options),
        class_names=names,
        **_checkpoint_facts(settings),
    )


def _categories(subject: Subject, classes: Sequence[str], given: Sequence[int] | None) -> tuple[int, ...]:
    """COCO's categories of a detector's classes; raises ``UsageError`` where those given are none."""
    if subject.task is None:
        if given:
            raise UsageError(f"{subject.name} is no detector: leave category_ids out.")
        return ()
    if given is None:
        return category_ids_of(classes)
    if len(given) != len(classes) or len(set(given)) != len(given) or min(given, default=0) < 0:
        raise UsageError(
            f"category_ids has {len(given)} numbers for {len(classes)} class names: give each class a number of its "
            "own, 0 or above."
        )
    return tuple(map(int, given))


def _require_fitting(subject: Subject, settings: ExportSettings) -> None:
    """Refuse what the kind of network cannot be exported with; raises ``UsageError``."""
    network = subject.network
    if subject.task is not None:
        check_target(subject.name, load_target(settings.target), settings.precision)
        for size in settings.input_sizes:
            check_size(subject.name, subject.task, size)
    elif len(settings.input_sizes) > 1:
        raise UsageError(f"{subject.name} is no detector: it has one input size.")
    if not isinstance(network, StagedNetwork):
        if settings.exits is not None or settings.graph != "stages":
            raise UsageError(f"{subject.name} has no early exits: leave --exits and --graph out.")
    elif settings.token_capacity is not None:
        raise UsageError(f"{subject.name} exits early: its stages take no capacity of tokens.")
    elif subject.input_size is None:
        raise UsageError(f"{subject.name} exits early: its stages begin with images (N, 3, H, W), and nothing else.")
    elif settings.precision == "bf16":
        raise UsageError(
            f"{subject.name} exits early: ONNX Runtime computes its stages in fp32, because thresholds of one "
            "precision do not hold for another. Use fp32."
        )
    if settings.data is not None and subject.input_size is None:
        raise UsageError(f"{subject.name} takes no images: leave --data out.")
    _with_dense(network, settings.dense)


def _subject_notes(subject: Subject) -> tuple[str, ...]:
    if not subject.assumed or subject.preprocessing is None:
        return subject.facts.notes
    return (
        *subject.facts.notes,
        f"nobody said how images become the input of {subject.name}: their shorter side is resized to "
        f"{subject.preprocessing.resize} pixels, and values are scaled to [-1, 1] (preprocessing= says otherwise)",
    )


def _weights_notes(settings: ExportSettings) -> tuple[str, ...]:
    if settings.checkpoint is None or settings.weights is None:
        return ()
    return (f"the weights are '{settings.weights}' of {Path(settings.checkpoint).name}",)


def _apply_plan(
    models: Iterable[onnx.ModelProto], target: Target, precision: str, *, in_parts: bool = False
) -> tuple[str, ...]:
    """Notes on the precision plan; raises ``UsageError`` now rather than on the board if the weights do not fit it."""
    if precision not in ("fp16", "int8") or (precision == "int8" and target.runtime != "tensorrt"):
        return ()
    plan = PrecisionPlan(precision, typed=True)
    if precision == "fp16":
        for model in models:
            tensorrt_model(model, plan)
        return (
            "model.onnx is FP32; engines are built in FP16: activations and weights half, maskers, masks, biases and "
            "the head float" + (", of a detector what decides, adds up or places points" if in_parts else ""),
        )
    notes = [
        "model.onnx is in INT8; in an engine our operators compute on the same bytes, to the bit, and what TensorRT "
        "computes itself is FP16, with the head and the maskers' decisions in float"
    ]
    for model in models:
        copy = with_plugin_bytes(model)
        integers = keeps_integers(model)
        tensorrt_model(copy, replace(plan, integers=integers))
        if integers:
            notes = [
                "model.onnx is in INT8; the engine's layers in integers are TensorRT's own, with a sign and scales of "
                "its kind, and the rest is float"
            ]
        if blocks := blocks_in_floats(model, copy):
            notes.append(
                f"{', '.join(blocks)}: no kernel in integers (a squeeze-and-excitation, or channels that are no "
                "multiple of 4); these compute in FP16, between bytes"
            )
    return tuple(dict.fromkeys(notes))


def _plugin_notes(models: Iterable[onnx.ModelProto], target: Target) -> tuple[str, ...]:
    """Say which operators no plugin of this package runs, so that nobody waits for an engine in vain."""
    if target.runtime == "onnxruntime":
        return ()
    names = {name for model in models for name in required_creators(model)}
    without = sorted(name for name in names if "tensorrt" not in OPERATORS[name].kernels)
    if not without:
        return ()
    return (f"this package has no TensorRT plugin for {', '.join(without)}: an engine needs one of your own",)


def _dense_notes(dense: tuple[str, ...]) -> tuple[str, ...]:
    if not dense:
        return ()
    return (
        f"{', '.join(dense)}: run densely, as if every bit of their masks were set; reference tensors and "
        "verification are those of this network, whose outputs differ from the checkpoint's wherever a mask would have "
        "skipped something",
    )


def _reference_inputs(settings: ExportSettings, subject: Subject) -> tuple[dict[str, torch.Tensor], str]:
    """Whole batches of real inputs, and where they come from."""
    wanted = -(-REFERENCE_SAMPLES // settings.batch) * settings.batch
    if subject.task is not None and subject.input_size is not None:
        return reference_inputs(settings.data, subject.task, subject.input_size, settings.batch)
    if subject.input_size is None or subject.preprocessing is None:
        examples = {
            name: value.repeat(wanted // settings.batch, *[1] * (value.ndim - 1))
            for name, value in subject.inputs.items()
        }
        return examples, f"the example inputs, repeated to {wanted} samples"
    (name,) = subject.inputs
    size = subject.input_size
    if settings.data is not None and os.fspath(settings.data) == DIGITS:
        images = digits(subject.preprocessing, size).train.images[:wanted]
        source = f"{len(images)} of scikit-learn's digits, those that networks are trained on"
    elif settings.data is not None:
        images = images_from_folder(settings.data, subject.preprocessing, size, limit=wanted)
        source = f"{len(images)} images of the folder {files.shown(Path(settings.data).name)}"
    else:
        images = np.stack([load_image(path, subject.preprocessing, size) for path in sample_photographs()])
        source = "scikit-learn's sample photographs china.jpg and flower.jpg"
    distinct = len(images)
    if distinct < wanted:
        # Mirrored and shifted copies are real image content too, and give every sample masks of its own.
        variants = [np.roll(images[i % distinct], 13 * (i // distinct), axis=2) for i in range(wanted)]
        images = np.stack([v[:, :, ::-1] if (i // distinct) % 2 else v for i, v in enumerate(variants)])
        source += f", {wanted - distinct} of {wanted} mirrored and shifted copies"
    return {name: torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))}, source


def _save(model: onnx.ModelProto, path: Path) -> None:
    damaged = not_finite_weights(model)
    if damaged:
        raise ExportError(
            f"The weights of the network are finite, but what follows from them in {path.name} is not: {damaged}. They "
            "are too large for float32: export an earlier checkpoint."
        )
    try:
        path.write_bytes(model.SerializeToString())
    except ValueError as error:
        raise ExportError(f"The graph is larger than the 2 GB that one ONNX file can hold: {error}") from error


def _checkpoint_facts(settings: ExportSettings) -> dict[str, str | None]:
    if settings.checkpoint is None:
        return {"checkpoint": None, "checkpoint_sha256": None}
    checkpoint = Path(settings.checkpoint)
    return {"checkpoint": files.shown(checkpoint.name), "checkpoint_sha256": _checkpoint_sha256(checkpoint)}


def _checkpoint_sha256(path: Path) -> str:
    try:
        return files.sha256(path)
    except OSError as error:
        raise InputError(f"Cannot read the checkpoint {path}: {error.strerror or error}.") from error
