"""Export: network -> lowered module -> captured graph -> passes -> bundle."""

from __future__ import annotations

import copy
import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

import dyndeploy
from dyndeploy import files
from dyndeploy.bundle import (
    BRANCHED,
    MANIFEST,
    MODEL,
    REFERENCE,
    STATIC,
    Bundle,
    ExitsInfo,
    Manifest,
    MaskInfo,
    NetworkInfo,
    OperatorInfo,
    PreprocessingInfo,
    ReferenceInfo,
    TensorInfo,
    write_manifest,
)
from dyndeploy.bundle.device_files import write_device_folder
from dyndeploy.data import images_from_folder, load_image, sample_photographs
from dyndeploy.errors import ExportError, InputError, UsageError, unknown_name
from dyndeploy.export.capture import capture
from dyndeploy.export.describe import describe
from dyndeploy.export.lowering import LoweredNetwork, lower, require_exportable
from dyndeploy.export.reference import compute_reference
from dyndeploy.export.staged import (
    EarlyExitNetwork,
    build_stages,
    reference_logits,
    tensor_info,
)
from dyndeploy.graphs.passes import Context, run_pipeline
from dyndeploy.graphs.stages import branched_model, whole_model
from dyndeploy.graphs.tensorrt import PrecisionPlan, tensorrt_model
from dyndeploy.nets import LaudResNet, exit_macs, model_info, static_macs
from dyndeploy.ops import DOMAIN, OPERATORS
from dyndeploy.targets import Target, load_target

MIN_INPUT_SIZE = 32
REFERENCE_IMAGES = 4
"""Images in ``reference.npz`` at batch size 1; a larger batch takes whole batches of at least as many."""

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
        precision: What the dynamic bottlenecks compute in when the bundle runs (CPU), or the precision plan of the
            engine (boards). The graph stays FP32, so that it can be verified anywhere.
        static: Also write the static twin; of a network that exits early, the whole network without exits.
        exits: Exits to keep, ascending, the last one included; None for all. Early exits only.
        graph: ``"stages"``, or ``"if"``: also write the stages as one graph with nested ``If``. Early exits only.
        data: Folder of images for the reference tensors, or None for scikit-learn's two sample photographs.
        checkpoint: Path the weights came from, for the record.
        dense: Blocks that run densely whatever their stage's mode: every mask bit is set, and there is no masker.
    """

    target: str = "cpu"
    batch: int = 1
    input_size: tuple[int, int] | None = None
    precision: str = "fp32"
    static: bool = False
    exits: tuple[int, ...] | None = None
    graph: str = "stages"
    data: str | os.PathLike[str] | None = None
    checkpoint: str | os.PathLike[str] | None = None
    dense: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what no network can be exported with; raises ``UsageError``."""
        target = load_target(self.target)
        target.require_precision(self.precision)
        if self.graph not in GRAPHS:
            raise unknown_name("graph", self.graph, GRAPHS)
        if self.graph == "if" and "If" in target.refused:
            raise UsageError(f"--graph if is impossible on {target.name}: {target.refused['If']}. Export stages.")
        if isinstance(self.batch, bool) or not isinstance(self.batch, int) or self.batch < 1:
            raise UsageError(f"The batch size must be a whole number of at least 1, not {self.batch!r}.")
        size = self.input_size
        if size is None:
            return
        if not isinstance(size, tuple) or len(size) != 2 or not all(isinstance(side, int) for side in size):
            raise UsageError(f"The input size must be (height, width), not {size!r}.")
        if min(size) < MIN_INPUT_SIZE:
            raise UsageError(
                f"Input size {size[0]}x{size[1]} is too small: give at least {MIN_INPUT_SIZE}x{MIN_INPUT_SIZE}."
            )


def build_graph(
    network: LaudResNet, target: Target, batch: int, input_size: tuple[int, int], *, static: bool
) -> tuple[onnx.ModelProto, LoweredNetwork]:
    """Lower, capture and legalise a network for a target."""
    lowered = lower(network, input_size, static=static)
    model = capture(lowered, (torch.zeros(batch, 3, *input_size),))
    context = Context(
        scopes=lowered.scopes(),
        outputs=["logits", *(output.name for output in lowered.mask_outputs)],
        opset=target.opset,
        ir_version=target.ir_version,
        allowed_operators=target.allowed_operators,
        target=target.name,
        runtime=target.runtime,
    )
    run_pipeline(model, context)
    return model, lowered


def export_model(
    network: torch.nn.Module,
    output: str | os.PathLike[str],
    settings: ExportSettings | None = None,
    *,
    progress: Progress = lambda message: None,
) -> Bundle:
    """Write a bundle.

    Args:
        network: A trained network of the zoo, of any dtype and in any mode; it is not changed.
        output: Folder to write; an earlier bundle there is replaced, anything else is left alone.
        settings: See :class:`ExportSettings`.
        progress: Called with a line at the start of each step.

    Returns:
        The bundle.

    Raises:
        UsageError: No network of the zoo, or an option that has no operator.
        ExportError: Weights that are not finite, or a graph that the target could not run.
        OutputError: The folder cannot be written; nothing is left behind.
    """
    settings = settings or ExportSettings()
    target = load_target(settings.target)
    if not isinstance(network, EarlyExitNetwork):
        require_exportable(network)
    _require_finite(network)
    # A copy in single precision: whatever dtype and mode the caller's network is in, it stays so.
    network = copy.deepcopy(network).float().eval()
    write: Callable[[_Export], _Content]
    if isinstance(network, EarlyExitNetwork):
        _require_stageable(settings)
        name, write = network.name, partial(_write_stages, network)
    else:
        assert isinstance(network, LaudResNet)
        _require_no_exits(network, settings)
        network.run_dense(settings.dense)
        name, write = network.name, partial(_write_graph, network)
    info = model_info(name)
    input_size = settings.input_size or info.input_size

    # The output path is claimed first, so that an impossible one costs no export time.
    with files.atomic_directory(output, replace_if=MANIFEST) as folder:
        progress("reading reference images")
        preprocessing = PreprocessingInfo(
            resize=round(info.preprocessing.resize * min(input_size) / min(info.input_size)),
            mean=info.preprocessing.mean,
            std=info.preprocessing.std,
            interpolation=info.preprocessing.interpolation,
        )
        images, source = _reference_images(settings, preprocessing, input_size)
        content = write(_Export(folder, settings, target, input_size, images, progress))
        if target.runtime == "tensorrt":
            write_device_folder(folder)
        manifest = Manifest(
            network=content.network,
            target=target.name,
            opset=target.opset,
            ir_version=target.ir_version,
            batch=settings.batch,
            input_size=input_size,
            precision=settings.precision,
            inputs=content.inputs,
            outputs=content.outputs,
            masks=content.masks,
            operators=content.operators,
            preprocessing=preprocessing,
            reference=ReferenceInfo(source, len(images), content.rates, content.flops_ratio),
            static_macs=content.static_macs,
            network_spec=content.network_spec,
            files={
                path.relative_to(folder).as_posix(): files.sha256(path)
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            },
            tools={
                "dyndeploy": dyndeploy.__version__,
                "torch": torch.__version__,
                "onnx": onnx.__version__,
                "python": platform.python_version(),
            },
            notes=content.notes,
            exits=content.exits,
        )
        write_manifest(folder, manifest)
    return Bundle.open(output)


@dataclass(frozen=True)
class _Export:
    """What both kinds of networks are written from."""

    folder: Path
    settings: ExportSettings
    target: Target
    input_size: tuple[int, int]
    images: npt.NDArray[np.float32]
    progress: Progress


@dataclass(frozen=True)
class _Content:
    """What a kind of network says about itself in the manifest."""

    network: NetworkInfo
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    static_macs: int
    network_spec: dict[str, Any]
    notes: tuple[str, ...]
    masks: tuple[MaskInfo, ...] = ()
    operators: tuple[OperatorInfo, ...] = ()
    rates: dict[str, float] = field(default_factory=dict)
    flops_ratio: float = 1.0
    exits: ExitsInfo | None = None


def _write_graph(network: LaudResNet, export: _Export) -> _Content:
    """Write ``model.onnx``, the static twin and the reference tensors of a network with masks."""
    settings, target, folder, size = export.settings, export.target, export.folder, export.input_size
    network_info = _network_info(network, settings)
    export.progress("capturing the dynamic graph")
    model, lowered = build_graph(network, target, settings.batch, size, static=False)
    notes = (*_apply_plan((model,), settings.precision), *_dense_notes(settings.dense))
    _save(model, folder / MODEL)
    if settings.static:
        export.progress("capturing the static twin")
        _save(build_graph(network, target, settings.batch, size, static=True)[0], folder / STATIC)
    export.progress("computing reference tensors")
    reference = compute_reference(network, export.images)
    np.savez(folder / REFERENCE, **reference.tensors)  # type: ignore[arg-type]
    shapes = {value.name: value for value in model.graph.output}
    return _Content(
        network=network_info,
        inputs=tuple(tensor_info(value) for value in model.graph.input),
        outputs=(tensor_info(shapes["logits"]),),
        static_macs=static_macs(network, size),
        network_spec=describe(network, size),
        notes=notes,
        masks=tuple(
            MaskInfo(mask.name, mask.block, mask.kind, tensor_info(shapes[mask.name]).shape)
            for mask in lowered.mask_outputs
        ),
        operators=tuple(
            OperatorInfo(node.name, node.op_type, OPERATORS[node.op_type].version, node.name.split("/")[0])
            for node in model.graph.node
            if node.domain == DOMAIN
        ),
        rates=reference.rates,
        flops_ratio=reference.flops_ratio,
    )


def _write_stages(network: EarlyExitNetwork, export: _Export) -> _Content:
    """Write the stages, what else was asked for, and the reference tensors of a network that exits early."""
    settings, target, folder, size = export.settings, export.target, export.folder, export.input_size
    network_info = _early_exit_info(network, settings)
    export.progress("capturing the stages")
    # A CPU takes any number of survivors; an engine has the shapes that it was built with.
    batch = None if target.runtime == "onnxruntime" else settings.batch
    stages = build_stages(network, target, settings.exits, batch, size)
    notes = _apply_plan([stage.model for stage in stages], settings.precision)
    for stage in stages:
        _save(stage.model, folder / stage.file)
    models = [stage.model for stage in stages]
    if settings.static:
        _save(whole_model(models), folder / STATIC)
    if settings.graph == "if":
        _save(branched_model(models, [stage.exit for stage in stages]), folder / BRANCHED)
    export.progress("computing reference tensors")
    np.savez(folder / REFERENCE, **reference_logits(network, export.images))  # type: ignore[arg-type]
    macs = exit_macs(network, size, tuple(stage.exit for stage in stages))
    infos = tuple(stage.info(count, settings.batch) for stage, count in zip(stages, macs, strict=True))
    return _Content(
        network=network_info,
        inputs=infos[0].inputs,
        outputs=infos[0].outputs[:1],
        static_macs=exit_macs(network, size, (network.exits,))[0],
        network_spec={},
        notes=notes,
        exits=ExitsInfo(
            stages=infos,
            thresholds={},
            disabled=tuple(sorted(set(range(1, network.exits + 1)) - {stage.exit for stage in stages})),
            dynamic_batch=batch is None,
        ),
    )


def _require_stageable(settings: ExportSettings) -> None:
    if settings.dense:
        raise UsageError(
            f"No block can be run densely in a network that exits early: leave out {', '.join(settings.dense)}."
        )
    if settings.precision == "bf16":
        raise UsageError(
            "bf16 is the precision of dynamic bottlenecks, and a network that exits early has none. Use fp32."
        )


def _require_no_exits(network: LaudResNet, settings: ExportSettings) -> None:
    if settings.exits is not None or settings.graph != "stages":
        raise UsageError(f"{network.name} has no early exits: leave --exits and --graph out.")


def _apply_plan(models: Iterable[onnx.ModelProto], precision: str) -> tuple[str, ...]:
    """Notes on the precision plan; raises ``UsageError`` now rather than on the board if the weights do not fit it."""
    if precision != "fp16":
        return ()
    plan = PrecisionPlan(precision, typed=True)
    for model in models:
        tensorrt_model(model, plan)
    return (
        "model.onnx is FP32; engines are built in FP16: activations and weights half, maskers, masks, biases and the "
        "head float",
    )


def _dense_notes(dense: tuple[str, ...]) -> tuple[str, ...]:
    if not dense:
        return ()
    return (
        f"{', '.join(dense)}: run densely, as if every bit of their masks were set; reference tensors and "
        "verification are those of this network, whose outputs differ from the checkpoint's wherever a mask would have "
        "skipped something",
    )


def _require_finite(network: torch.nn.Module) -> None:
    for name, tensor in network.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise ExportError(
                f"{name} holds NaN or infinite values: the network is not usable. Export a checkpoint from before "
                "training diverged."
            )


def _reference_images(
    settings: ExportSettings, preprocessing: PreprocessingInfo, size: tuple[int, int]
) -> tuple[npt.NDArray[np.float32], str]:
    batches = -(-REFERENCE_IMAGES // settings.batch)
    wanted = batches * settings.batch
    if settings.data is not None:
        images = images_from_folder(settings.data, preprocessing, size, limit=wanted)
        source = f"{len(images)} images of the folder {Path(settings.data).name}"
    else:
        images = np.stack([load_image(path, preprocessing, size) for path in sample_photographs()])
        source = "scikit-learn's sample photographs china.jpg and flower.jpg"
    distinct = len(images)
    if distinct < wanted:
        # Mirrored and shifted copies are real image content too, and give every sample masks of its own.
        variants = [np.roll(images[i % distinct], 13 * (i // distinct), axis=2) for i in range(wanted)]
        images = np.stack([v[:, :, ::-1] if (i // distinct) % 2 else v for i, v in enumerate(variants)])
        source += f", {wanted - distinct} of {wanted} mirrored and shifted copies"
    return np.ascontiguousarray(images, dtype=np.float32), source


def _save(model: onnx.ModelProto, path: Path) -> None:
    try:
        path.write_bytes(model.SerializeToString())
    except ValueError as error:
        raise ExportError(f"The graph is larger than the 2 GB that one ONNX file can hold: {error}") from error


def _network_info(network: LaudResNet, settings: ExportSettings) -> NetworkInfo:
    config = network.config
    modes = config.stage_values("mode")
    return NetworkInfo(
        name=network.name,
        mode=modes[0] if len(set(modes)) == 1 else "-".join(modes),
        granularity=config.stage_values("granularity"),
        channel_granularity=config.stage_values("channel_granularity"),
        num_classes=config.num_classes,
        options=config.as_dict(),
        **_checkpoint_facts(settings),
    )


def _early_exit_info(network: EarlyExitNetwork, settings: ExportSettings) -> NetworkInfo:
    return NetworkInfo(
        name=network.name,
        mode=EARLY_EXIT,
        granularity=(),
        channel_granularity=(),
        num_classes=network.config.num_classes,
        options=network.config.as_dict(),
        **_checkpoint_facts(settings),
    )


def _checkpoint_facts(settings: ExportSettings) -> dict[str, str | None]:
    if settings.checkpoint is None:
        return {"checkpoint": None, "checkpoint_sha256": None}
    checkpoint = Path(settings.checkpoint)
    return {"checkpoint": checkpoint.name, "checkpoint_sha256": _checkpoint_sha256(checkpoint)}


def _checkpoint_sha256(path: Path) -> str:
    try:
        return files.sha256(path)
    except OSError as error:
        raise InputError(f"Cannot read the checkpoint {path}: {error.strerror or error}.") from error
