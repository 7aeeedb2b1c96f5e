"""Export: network -> lowered module -> captured graph -> passes -> bundle."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import os
import platform
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch

import dyndeploy
from dyndeploy import files
from dyndeploy.bundle import (
    MANIFEST,
    MODEL,
    REFERENCE,
    STATIC,
    Bundle,
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
from dyndeploy.errors import ExportError, InputError, UsageError
from dyndeploy.export.describe import describe
from dyndeploy.export.lowering import LoweredNetwork, lower, require_exportable
from dyndeploy.export.passes import Context, run_pipeline
from dyndeploy.export.reference import compute_reference
from dyndeploy.nets import LaudResNet, model_info, static_macs
from dyndeploy.ops import DOMAIN, OPERATORS
from dyndeploy.runtimes.tensorrt_graph import PrecisionPlan, tensorrt_model
from dyndeploy.targets import Target, load_target

CAPTURE_OPSET = 18
MIN_INPUT_SIZE = 32
REFERENCE_IMAGES = 4
"""Images in ``reference.npz`` at batch size 1; a larger batch takes whole batches of at least as many."""

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
        static: Also write the static twin.
        data: Folder of images for the reference tensors, or None for scikit-learn's two sample photographs.
        checkpoint: Path the weights came from, for the record.
    """

    target: str = "cpu"
    batch: int = 1
    input_size: tuple[int, int] | None = None
    precision: str = "fp32"
    static: bool = False
    data: str | os.PathLike[str] | None = None
    checkpoint: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        """Refuse what no network can be exported with; raises ``UsageError``."""
        load_target(self.target).require_precision(self.precision)
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


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the PyTorch exporter's progress and its remarks on optional packages off the user's terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def capture(module: LoweredNetwork, batch: int, input_size: tuple[int, int]) -> onnx.ModelProto:
    """Capture a lowered network as an ONNX graph of opset 18, dynamic operators as nodes.

    Raises:
        ExportError: The PyTorch exporter failed.
    """
    example = torch.zeros(batch, 3, *input_size)
    try:
        with _quiet_exporter():
            program = torch.onnx.export(module, (example,), dynamo=True, opset_version=CAPTURE_OPSET, verbose=False)
    except Exception as error:
        raise ExportError(f"PyTorch could not capture the network: {error}") from error
    if program is None:
        raise ExportError("PyTorch returned no graph.")
    model: onnx.ModelProto = program.model_proto
    return model


def build_graph(
    network: LaudResNet, target: Target, batch: int, input_size: tuple[int, int], *, static: bool
) -> tuple[onnx.ModelProto, LoweredNetwork]:
    """Lower, capture and legalise a network for a target."""
    lowered = lower(network, input_size, static=static)
    model = capture(lowered, batch, input_size)
    context = Context(
        scopes=lowered.scopes(),
        outputs=["logits", *(output.name for output in lowered.mask_outputs)],
        opset=target.opset,
        ir_version=target.ir_version,
        allowed_operators=target.allowed_operators,
        target=target.name,
    )
    run_pipeline(model, context)
    return model, lowered


def export_model(
    network: LaudResNet,
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
    require_exportable(network)
    _require_finite(network)
    # A copy in single precision: whatever dtype and mode the caller's network is in, it stays so.
    network = copy.deepcopy(network).float().eval()
    info = model_info(network.name)
    input_size = settings.input_size or info.input_size
    network_info = _network_info(network, settings)

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
        progress("capturing the dynamic graph")
        model, lowered = build_graph(network, target, settings.batch, input_size, static=False)
        notes = _apply_plan(model, settings.precision)
        _save(model, folder / MODEL)
        if settings.static:
            progress("capturing the static twin")
            _save(build_graph(network, target, settings.batch, input_size, static=True)[0], folder / STATIC)
        progress("computing reference tensors")
        reference = compute_reference(network, images)
        np.savez(folder / REFERENCE, **reference.tensors)  # type: ignore[arg-type]
        if target.runtime == "tensorrt":
            write_device_folder(folder)
        shapes = {value.name: value for value in model.graph.output}
        manifest = Manifest(
            network=network_info,
            target=target.name,
            opset=target.opset,
            ir_version=target.ir_version,
            batch=settings.batch,
            input_size=input_size,
            precision=settings.precision,
            inputs=tuple(_tensor_info(value) for value in model.graph.input),
            outputs=(_tensor_info(shapes["logits"]),),
            masks=tuple(
                MaskInfo(mask.name, mask.block, mask.kind, _tensor_info(shapes[mask.name]).shape)
                for mask in lowered.mask_outputs
            ),
            operators=tuple(
                OperatorInfo(node.name, node.op_type, OPERATORS[node.op_type].version, node.name.split("/")[0])
                for node in model.graph.node
                if node.domain == DOMAIN
            ),
            preprocessing=preprocessing,
            reference=ReferenceInfo(source, len(images), reference.rates, reference.flops_ratio),
            static_macs=static_macs(network, input_size),
            network_spec=describe(network, input_size).to_json(),
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
            notes=notes,
        )
        write_manifest(folder, manifest)
    return Bundle.open(output)


def _apply_plan(model: onnx.ModelProto, precision: str) -> tuple[str, ...]:
    """Notes on the precision plan; raises ``UsageError`` now rather than on the board if the weights do not fit it."""
    if precision != "fp16":
        return ()
    plan = PrecisionPlan(precision, typed=True)
    tensorrt_model(model, plan)
    return (
        "model.onnx is FP32; engines are built in FP16: activations and weights half, maskers, masks, biases and the "
        "head float",
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


def _tensor_info(value: onnx.ValueInfoProto) -> TensorInfo:
    shape = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    return TensorInfo(value.name, shape, str(dtype))


def _network_info(network: LaudResNet, settings: ExportSettings) -> NetworkInfo:
    config = network.config
    modes = config.stage_values("mode")
    checkpoint = None if settings.checkpoint is None else Path(settings.checkpoint)
    return NetworkInfo(
        name=network.name,
        mode=modes[0] if len(set(modes)) == 1 else "-".join(modes),
        granularity=config.stage_values("granularity"),
        channel_granularity=config.stage_values("channel_granularity"),
        num_classes=config.num_classes,
        options=config.as_dict(),
        checkpoint=None if checkpoint is None else checkpoint.name,
        checkpoint_sha256=None if checkpoint is None else _checkpoint_sha256(checkpoint),
    )


def _checkpoint_sha256(path: Path) -> str:
    try:
        return files.sha256(path)
    except OSError as error:
        raise InputError(f"Cannot read the checkpoint {path}: {error.strerror or error}.") from error
