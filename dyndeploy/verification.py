"""Does a bundle compute what PyTorch computed? Files, graph, masks, then outputs under equal masks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from dyndeploy.bundle import LOGITS, Bundle, Manifest, MaskInfo, StageInfo, TensorInfo
from dyndeploy.bundle.reference_names import FORCED, MARGIN, exit_logits
from dyndeploy.confidences import confidences
from dyndeploy.errors import BundleError, DyndeployError, unknown_name
from dyndeploy.graphs.forced import PREFIX, forced_feeds, overlay_forced_masks, replace_masks
from dyndeploy.graphs.inspect import foreign_operators
from dyndeploy.measure.rounding import measure_mask_flips
from dyndeploy.ops import DOMAIN, OPERATORS
from dyndeploy.runtimes import OnnxRuntimeSession, Session, TensorRTSession, open_staged
from dyndeploy.runtimes.staged import first_reached
from dyndeploy.runtimes.tensorrt_engine import EngineSettings
from dyndeploy.targets import load_target

OUTPUT_TOLERANCES = {"fp32": 1e-3, "bf16": 2e-2}
"""Largest allowed error of an output, relative to the largest magnitude of the reference, by precision.

BF16 keeps 8 significant bits: both factors of a product may be off by 2^-9 of their value, the product by 2^-8 = 0.4 %.
Sums are in FP32 and the errors of their terms are independent, so a convolution is off by less; the residual sum over
tens of blocks makes up for that. ResNets of 14 to 101 layers come to 0.2 to 0.6 %; a damaged weight or a wrong mask is
far more.
"""
MARGIN_TOLERANCES = {"fp32": 1e-4, "bf16": 2e-2}
"""A mask bit may differ where |compute - skip| is below this fraction of the mask's largest margin, by precision.

Maskers compute in FP32, but from activations that carry the error of the blocks before.
"""

Tensors = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Check:
    """One check and its result in words."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class OutputDeviation:
    """Error of one output against PyTorch: largest absolute, and that over the reference's largest magnitude."""

    output: str
    max_error: float
    relative_error: float


@dataclass(frozen=True)
class VerificationReport:
    """Result of :func:`verify_bundle`.

    Attributes:
        bundle: Path.
        checks: In the order they were made.
        outputs: Errors under equal masks.
        mask_bits: Compared bits.
        flipped_bits: Bits that differ although the decision was not close to a tie.
        tied_bits: Bits that differ where the two logits are equal up to rounding.
        native: Which code ran the dynamic operators.
    """

    bundle: str
    checks: tuple[Check, ...]
    outputs: tuple[OutputDeviation, ...] = ()
    mask_bits: int = 0
    flipped_bits: int = 0
    tied_bits: int = 0
    native: str = ""

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"passed": self.passed, **asdict(self)}


def verify_bundle(
    bundle: Bundle | str | os.PathLike[str], *, threads: int = 1, native: str = "auto"
) -> VerificationReport:
    """Verify a bundle on this machine's CPU.

    The masks of the reference are forced on every operator, while the maskers still decide for themselves: so each
    masker sees the input that PyTorch's saw, its bits are compared one by one, and outputs are compared under equal
    masks. Random masks of rate 0.5 are compared with PyTorch's results under them, all-one masks with the static twin.
    A last run without forcing shows what the deployed graph gives.

    A network that exits early has no masks: the logits of every exit are compared with PyTorch's, and the exits that
    images take, alone and in a batch, with those that PyTorch's confidences ask for under the bundle's thresholds and
    under probe thresholds between the confidences.

    The reference is PyTorch's in FP32 whatever the bundle's precision: what is lost to BF16 counts as error, up to
    :data:`OUTPUT_TOLERANCES`.

    Args:
        bundle: The bundle or its folder.
        threads: Threads of the sessions.
        native: As for :class:`dyndeploy.runtimes.OnnxRuntimeSession`.

    Returns:
        The report; it holds failed checks instead of raising, except where nothing can be checked at all.

    Raises:
        BundleError: The folder is no bundle.
        UsageError: A precision that this machine or ``native`` cannot run.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    checks = [_check_files(bundle)]
    if not checks[0].passed:
        return VerificationReport(str(bundle.path), tuple(checks))
    if bundle.manifest.exits is not None:
        return _verify_stages(bundle, checks, threads)
    model = bundle.load_model()
    checks += [_check_graph(bundle, "graph", model), _check_manifest(bundle, model), _check_operators(bundle, model)]
    twin = None if bundle.static is None else bundle.load_static()
    if twin is not None:
        checks.append(_check_graph(bundle, "static twin: graph", twin))
    if not all(check.passed for check in checks):
        return VerificationReport(str(bundle.path), tuple(checks))
    reference = _reference(bundle)
    masks, precision = bundle.manifest.masks, bundle.manifest.cpu_precision
    if precision not in OUTPUT_TOLERANCES:
        raise unknown_name("precision", precision, OUTPUT_TOLERANCES)
    tolerance = OUTPUT_TOLERANCES[precision]
    with OnnxRuntimeSession(
        overlay_forced_masks(model, masks), threads=threads, native=native, precision=precision
    ) as session:
        equal = _run(session, bundle, reference, lambda chunk: {mask.name: chunk[mask.name] for mask in masks})
        random = _run(session, bundle, reference, lambda chunk: {m.name: chunk[f"{FORCED}{m.name}"] for m in masks})
        everything = _run(
            session, bundle, reference, lambda chunk: {m.name: np.ones_like(chunk[m.name]) for m in masks}
        )
        description = session.info.native.description
    with OnnxRuntimeSession(bundle.model, threads=threads, native=native, precision=precision) as session:
        free = _run(session, bundle, reference, None)

    bits, flipped, tied = _compare_masks(masks, equal, reference, MARGIN_TOLERANCES[precision])
    checks.append(
        Check(
            "masks",
            flipped == 0,
            f"{bits} bits: {flipped} differ, {tied} more are ties of the two logits up to rounding",
        )
    )
    names = [info.name for info in bundle.manifest.outputs]
    forced_reference = {name: reference[f"{FORCED}{name}"] for name in names}
    outputs = tuple(_error(name, equal, reference) for name in names)
    for title, errors in (
        ("under equal masks", outputs),
        # The network's own masks may skip nothing on these images: random ones do.
        ("under random masks", tuple(_error(name, random, forced_reference) for name in names)),
    ):
        checks += [_check_error(f"{error.output} {title}", error, tolerance) for error in errors]
    if twin is not None:
        with OnnxRuntimeSession(twin, threads=threads, native=native) as session:
            static = _run(session, bundle, reference, None)
        # The twin is in FP32; compared with BF16 operators it shows their error.
        checks += [_check_error(f"static twin: {name}", _error(name, static, everything), tolerance) for name in names]
    own = _error("logits", free, reference)
    agree = float((free["logits"].argmax(1) == reference["logits"].argmax(1)).mean())
    # A tie may fall the other way and change later masks: only without ties must the free run agree as well.
    checks.append(
        Check(
            "logits as deployed",
            own.relative_error <= tolerance or tied > 0,
            f"relative error {own.relative_error:.3g}, same class on {agree:.0%} of the reference images",
        )
    )
    if bundle.manifest.precision == "fp16":
        # Not a pass or fail: a bit may flip where the decision is close, and how often is what the user must know.
        report = measure_mask_flips(bundle, reference["input"], threads=threads, native=native)
        checks.append(Check("masks in FP16", True, report.line))
    return VerificationReport(str(bundle.path), tuple(checks), outputs, bits, flipped, tied, description)


CONFIDENCE_TOLERANCE = 1e-4
"""A decision may differ from PyTorch's where a confidence is this close to its threshold."""


def _verify_stages(bundle: Bundle, checks: list[Check], threads: int) -> VerificationReport:
    """Verify a bundle of stages whose files are whole."""
    stages, models = bundle.exits.stages, bundle.load_stages()
    for stage, model in zip(stages, models, strict=True):
        checks += [_check_graph(bundle, f"{stage.file}: graph", model), _check_stage(bundle, stage, model)]
    for title, path, load in (
        ("whole network: graph", bundle.static, bundle.load_static),
        ("branches: graph", bundle.branched, bundle.load_branched),
    ):
        if path is not None:
            checks.append(_check_graph(bundle, title, load()))
    if not all(check.passed for check in checks):
        return VerificationReport(str(bundle.path), tuple(checks))
    images, logits = _reference_exits(bundle)
    tolerance = OUTPUT_TOLERANCES["fp32"]
    with open_staged(bundle, threads=threads) as session:
        outputs = tuple(
            _deviation(exit_logits(stage.exit), got, expected)
            for stage, got, expected in zip(stages, session.run_all(images), logits, strict=True)
        )
        native = session.info.native.description
    checks += [
        _check_error(f"exit {s.exit}: logits", error, tolerance) for s, error in zip(stages, outputs, strict=True)
    ]
    for title, sets in (
        ("exits under the stored thresholds", [info.values for info in bundle.exits.thresholds.values()]),
        ("exits under probe thresholds", probe_thresholds(logits)),
    ):
        if sets:
            checks.append(_check_decisions(bundle, title, sets, images, logits, threads))
    if bundle.static is not None:
        with OnnxRuntimeSession(bundle.static, threads=threads, native="off") as whole:
            name = whole.inputs[0].name
            got = np.concatenate(
                [
                    whole.run({name: chunk["input"]}, [LOGITS])[LOGITS]
                    for chunk in _batches({"input": images}, _per_run(bundle))
                ]
            )
        checks.append(_check_error("whole network: logits", _deviation(LOGITS, got, logits[-1]), tolerance))
    if bundle.branched is not None:
        checks.append(_check_branches(bundle, images, logits, threads))
    return VerificationReport(str(bundle.path), tuple(checks), outputs, native=native)


def _per_run(bundle: Bundle) -> int:
    return 1 if bundle.exits.dynamic_batch else bundle.manifest.batch


def _check_stage(bundle: Bundle, stage: StageInfo, model: onnx.ModelProto) -> Check:
    """The manifest lists the inputs and outputs of a stage's graph, in order, each with its shape."""
    batch = bundle.manifest.batch
    problems = []
    for kind, listed, values in (
        ("inputs", stage.inputs, model.graph.input),
        ("outputs", stage.outputs, model.graph.output),
    ):
        found = []
        for value in values:
            first, *rest = value.type.tensor_type.shape.dim
            if first.HasField("dim_value") == bundle.exits.dynamic_batch:
                problems.append(f"the batch size of {value.name} is {'fixed' if first.dim_value else 'open'}")
            found.append((value.name, (first.dim_value or batch, *(dim.dim_value for dim in rest))))
        expected = [(info.name, info.shape) for info in listed]
        if found != expected:
            problems.append(f"{kind} {sorted(set(found) ^ set(expected))} differ")
    detail = f"{len(stage.inputs)} inputs, {len(stage.outputs)} outputs, {len(model.graph.node)} nodes"
    return Check(f"{stage.file}: manifest", not problems, "; ".join(problems) or detail)


def _reference_exits(bundle: Bundle) -> tuple[npt.NDArray[np.float32], list[npt.NDArray[np.float32]]]:
    """Images, and PyTorch's logits of every exit that the bundle keeps."""
    reference, manifest = bundle.reference(), bundle.manifest
    shape = (manifest.reference.images, manifest.network.num_classes)
    names = [exit_logits(stage.exit) for stage in bundle.exits.stages]
    wanted = {"input": (shape[0], *manifest.inputs[0].shape[1:]), **dict.fromkeys(names, shape)}
    _require_shapes(bundle, reference, wanted)
    return reference["input"], [reference[name] for name in names]


def probe_thresholds(logits: Sequence[npt.NDArray[np.float32]]) -> list[tuple[float, ...]]:
    """Thresholds that lie as far as possible from any confidence, so that rounding decides nothing.

    Args:
        logits: Of every stage, (N, classes).

    Returns:
        N + 1 sets; over them every number of images, from all to none, leaves at each stage.
    """
    gaps = []
    for values in logits:
        edges = np.concatenate([[0.0], np.sort(confidences(values)), [1.0]])
        gaps.append((edges[:-1] + edges[1:]) / 2)
    count = len(gaps[0])
    return [
        (*(float(gap[(shift + stage) % count]) for stage, gap in enumerate(gaps[:-1])), -np.inf)
        for shift in range(count)
    ]


def _check_decisions(
    bundle: Bundle,
    title: str,
    sets: Sequence[Sequence[float]],
    images: npt.NDArray[np.float32],
    logits: Sequence[npt.NDArray[np.float32]],
    threads: int,
) -> Check:
    """Exits and logits under thresholds, images alone and together, against PyTorch's."""
    made = wrong = tied = 0
    worst = 0.0
    for thresholds in sets:
        expected, close = _expected_exits(bundle, logits, thresholds)
        rows = np.stack(logits)[expected, np.arange(len(images))]
        numbers = np.array([stage.exit for stage in bundle.exits.stages])[expected]
        with open_staged(bundle, threads=threads, thresholds=thresholds) as session:
            alone = [session.run(image[None]) for image in images]
            together = session.run(images)
        for exits, got in (
            (together.exits, together.logits),
            (np.concatenate([r.exits for r in alone]), np.concatenate([r.logits for r in alone])),
        ):
            same = exits == numbers
            made, tied, wrong = made + len(same), tied + int((~same & close).sum()), wrong + int((~same & ~close).sum())
            if same.any():
                worst = max(worst, _deviation(LOGITS, got[same], rows[same]).relative_error)
    passed = wrong == 0 and worst <= OUTPUT_TOLERANCES["fp32"]
    detail = f"{made} decisions: {wrong} differ, {tied} more within rounding of a threshold; logits within {worst:.3g}"
    return Check(title, passed, detail)


def _expected_exits(
    bundle: Bundle, logits: Sequence[npt.NDArray[np.float32]], thresholds: Sequence[float]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Stages where PyTorch's confidences leave, and where one on the way is too close to its threshold to tell."""
    confident = np.stack([confidences(values) for values in logits])
    close = (np.abs(confident - np.asarray(thresholds, np.float32)[:, None]) <= CONFIDENCE_TOLERANCE).any(0)
    return first_reached(confident, thresholds), close


def _check_branches(
    bundle: Bundle, images: npt.NDArray[np.float32], logits: Sequence[npt.NDArray[np.float32]], threads: int
) -> Check:
    made = wrong = 0
    worst = 0.0
    numbers = np.array([stage.exit for stage in bundle.exits.stages])
    with OnnxRuntimeSession(bundle.load_branched(), threads=threads, native="off") as session:
        for thresholds in probe_thresholds(logits):
            expected, close = _expected_exits(bundle, logits, thresholds)
            for index, image in enumerate(images):
                feeds = {session.inputs[0].name: image[None]}
                feeds |= {info.name: np.array(thresholds[:-1], np.float32) for info in session.inputs[1:]}
                result = session.run(feeds)
                made += 1
                if result["exit"][0] == numbers[expected[index]]:
                    row = logits[expected[index]][index : index + 1]
                    worst = max(worst, _deviation(LOGITS, result[LOGITS], row).relative_error)
                else:
                    wrong += int(not close[index])
    passed = wrong == 0 and worst <= OUTPUT_TOLERANCES["fp32"]
    return Check("branches: exits", passed, f"{made} decisions: {wrong} differ; logits within {worst:.3g}")


def _check_files(bundle: Bundle) -> Check:
    damaged = bundle.damaged_files()
    detail = ", ".join(f"{name}: {what}" for name, what in damaged.items())
    return Check("files", not damaged, detail or f"{len(bundle.manifest.files)} files match their checksums")


def _check_graph(bundle: Bundle, name: str, model: onnx.ModelProto) -> Check:
    manifest, target = bundle.manifest, load_target(bundle.manifest.target)
    opset = {entry.domain: entry.version for entry in model.opset_import}.get("", 0)
    problems = []
    if not opset == manifest.opset == target.opset:
        problems.append(f"opset {opset}, manifest {manifest.opset}, target {target.opset}")
    if not model.ir_version == manifest.ir_version <= target.ir_version:
        problems.append(f"IR {model.ir_version}, manifest {manifest.ir_version}, target {target.ir_version}")
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        problems.append(str(error).splitlines()[0])
    foreign = foreign_operators(model, OPERATORS, target.allowed_operators)
    if foreign:
        problems.append(f"{', '.join(foreign)} not known to run on {target.name}")
    return Check(name, not problems, "; ".join(problems) or f"opset {opset}, IR {model.ir_version}, {target.name}")


def _check_manifest(bundle: Bundle, model: onnx.ModelProto) -> Check:
    """The manifest lists the graph's inputs, outputs and masks, each with its shape."""
    manifest = bundle.manifest
    listed = {
        "inputs": {info.name: info.shape for info in manifest.inputs},
        "outputs": {info.name: info.shape for info in _outputs(manifest)},
    }
    found = {"inputs": _shapes(model.graph.input), "outputs": _shapes(model.graph.output)}
    problems = [
        f"{kind} {sorted(set(listed[kind].items()) ^ set(found[kind].items()))} differ"
        for kind in listed
        if listed[kind] != found[kind]
    ]
    if manifest.inputs[0].shape != (manifest.batch, 3, *manifest.input_size):
        problems.append(f"input {manifest.inputs[0].shape}, batch {manifest.batch}, size {manifest.input_size}")
    return Check(
        "manifest", not problems, "; ".join(problems) or f"{len(found['outputs'])} outputs, {len(manifest.masks)} masks"
    )


def _outputs(manifest: Manifest) -> tuple[TensorInfo | MaskInfo, ...]:
    """All outputs of the graph."""
    return (*manifest.outputs, *manifest.masks)


def _shapes(values: Iterable[onnx.ValueInfoProto]) -> dict[str, tuple[int, ...]]:
    return {value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim) for value in values}


def _check_operators(bundle: Bundle, model: onnx.ModelProto) -> Check:
    nodes = {node.name: node for node in model.graph.node if node.domain == DOMAIN}
    bodies = {(function.domain, function.name) for function in model.functions}
    problems = []
    if set(nodes) != {info.node for info in bundle.manifest.operators}:
        problems.append("the manifest lists other dynamic operators than the graph has")
    for node in nodes.values():
        spec = OPERATORS.get(node.op_type)
        if spec is None:
            problems.append(f"{node.name}: this release knows no operator {node.op_type}")
            continue
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        if attributes.get("plugin_version") != str(spec.version).encode() or "plugin_namespace" not in attributes:
            problems.append(f"{node.name} lacks plugin_version {spec.version} or plugin_namespace")
        if (DOMAIN, node.op_type) not in bodies:
            problems.append(f"{node.name} has no function body")
    return Check("operators", not problems, "; ".join(problems) or f"{len(nodes)} dynamic operators with bodies")


def _reference(bundle: Bundle) -> Tensors:
    """The reference tensors, complete and of the right shapes."""
    reference, manifest = bundle.reference(), bundle.manifest
    images = manifest.reference.images
    expected = {"input": manifest.inputs[0].shape[1:]}
    for info in _outputs(manifest):
        expected |= {info.name: info.shape[1:], f"{FORCED}{info.name}": info.shape[1:]}
    expected |= {f"{MARGIN}{mask.name}": mask.shape[1:] for mask in manifest.masks}
    _require_shapes(bundle, reference, {name: (images, *shape) for name, shape in expected.items()})
    return reference


def _require_shapes(bundle: Bundle, reference: Tensors, expected: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in expected.items():
        if name not in reference:
            raise BundleError(f"reference.npz of {bundle.path} lacks {name}. Export the bundle again.")
        if reference[name].shape != shape:
            raise BundleError(
                f"{name} in reference.npz of {bundle.path} has shape {reference[name].shape}, not {shape}. "
                "Export the bundle again."
            )


def _run(session: Session, bundle: Bundle, reference: Tensors, masks: Callable[[Tensors], Tensors] | None) -> Tensors:
    """Run all reference images; ``masks`` gives those to force for a batch."""
    results: dict[str, list[npt.NDArray[np.float32]]] = {}
    for chunk in _batches(reference, bundle.manifest.batch):
        feeds: dict[str, npt.NDArray[Any]] = {"input": chunk["input"]}
        if masks is not None:
            feeds |= forced_feeds(masks(chunk), bundle.manifest.masks)
        for name, value in session.run(feeds).items():
            results.setdefault(name, []).append(value)
    return {name: np.concatenate(values) for name, values in results.items()}


def _batches(reference: Tensors, batch: int) -> Iterator[Tensors]:
    images = len(reference["input"])
    if images == 0 or images % batch:
        raise DyndeployError(f"{images} reference images do not fill batches of {batch}.")
    for start in range(0, images, batch):
        yield {name: value[start : start + batch] for name, value in reference.items()}


def _compare_masks(
    masks: tuple[MaskInfo, ...], got: Tensors, reference: Tensors, tolerance: float
) -> tuple[int, int, int]:
    bits = flipped = tied = 0
    for mask in masks:
        differs = got[mask.name] != reference[mask.name]
        bits += differs.size
        if not differs.any():
            continue
        margin = np.abs(reference[f"{MARGIN}{mask.name}"])
        close = margin <= tolerance * max(float(margin.max()), 1e-6)
        flipped += int((differs & ~close).sum())
        tied += int((differs & close).sum())
    return bits, flipped, tied


def _check_error(name: str, error: OutputDeviation, tolerance: float) -> Check:
    return Check(
        name,
        error.relative_error <= tolerance,
        f"max error {error.max_error:.3g}, relative {error.relative_error:.3g} (limit {tolerance:g})",
    )


def _error(name: str, got: Tensors, reference: Tensors) -> OutputDeviation:
    return _deviation(name, got[name], reference[name])


def _deviation(name: str, got: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]) -> OutputDeviation:
    if not np.isfinite(got).all():
        return OutputDeviation(name, float("inf"), float("inf"))
    error = float(np.abs(got - reference).max())
    return OutputDeviation(name, error, error / max(float(np.abs(reference).max()), 1e-12))


ENGINE_OUTPUT_TOLERANCES = {"fp32": 1e-3, "fp16": 2e-2}
"""Largest allowed error of an engine's output, relative to the largest magnitude of the reference, by precision."""
ENGINE_MARGIN_TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2}
"""As :data:`MARGIN_TOLERANCES`, for engines: in FP16 maskers see activations with the rounding of all blocks before."""


def verify_engine(
    bundle: Bundle | str | os.PathLike[str], settings: EngineSettings | None = None, *, device: int = 0
) -> VerificationReport:
    """Verify a bundle's TensorRT engine on this machine's GPU against PyTorch's reference tensors.

    Two engines are built (or found in the cache): one whose operators take their masks from outside, for masks and
    outputs under equal and under random masks as in :func:`verify_bundle`, and the one that is deployed.

    Args:
        bundle: The bundle or its folder.
        settings: How the engines are built; the static twin is no subject here.
        device: Index of the GPU.

    Raises:
        BundleError: The folder is no bundle.
        UsageError: No plan for the precision, or no plugin library.
        DyndeployError: TensorRT is missing or failed.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    checks = [_check_files(bundle)]
    if not checks[0].passed:
        return VerificationReport(str(bundle.path), tuple(checks))
    settings = replace(settings or EngineSettings(), static=False)
    settings = replace(settings, precision=settings.precision or bundle.manifest.precision)
    model, masks = bundle.load_model(), bundle.manifest.masks
    reference = _reference(bundle)
    names = [info.name for info in bundle.manifest.outputs]
    session, _ = TensorRTSession.from_graph(replace_masks(model, masks), settings, device=device)
    with session:
        equal = _run_replaced(session, bundle, reference, "")
        random = _run_replaced(session, bundle, reference, FORCED)
        description = session.info.native.description
    session, built = TensorRTSession.from_bundle(bundle, settings, device=device)
    with session:
        free = _run(session, bundle, reference, None)
    precision = str(settings.precision)
    tolerance = ENGINE_OUTPUT_TOLERANCES[precision]
    bits, flipped, tied = _compare_masks(masks, equal, reference, ENGINE_MARGIN_TOLERANCES[precision])
    checks.append(
        Check("masks", flipped == 0, f"{bits} bits: {flipped} differ, {tied} more are close decisions within rounding")
    )
    outputs = tuple(_error(name, equal, reference) for name in names)
    checks += [_check_error(f"{error.output} under equal masks", error, tolerance) for error in outputs]
    forced_reference = {name: reference[f"{FORCED}{name}"] for name in names}
    checks += [
        _check_error(f"{name} under random masks", _error(name, random, forced_reference), tolerance) for name in names
    ]
    own = _error("logits", free, reference)
    agree = float((free["logits"].argmax(1) == reference["logits"].argmax(1)).mean())
    changed = sum(int((free[mask.name] != reference[mask.name]).sum()) for mask in masks)
    checks.append(
        Check(
            "logits as deployed",
            own.relative_error <= tolerance or changed > 0,
            f"{built.metadata['plan']}: relative error {own.relative_error:.3g}, {changed} mask bits differ, same "
            f"class on {agree:.0%} of the reference images",
        )
    )
    return VerificationReport(str(bundle.path), tuple(checks), outputs, bits, flipped, tied, description)


def _run_replaced(session: Session, bundle: Bundle, reference: Tensors, prefix: str) -> Tensors:
    """Run all reference images with the reference's masks of a prefix in place of the network's own."""
    results: dict[str, list[npt.NDArray[np.float32]]] = {}
    for chunk in _batches(reference, bundle.manifest.batch):
        given = {f"{PREFIX}{mask.name}": chunk[f"{prefix}{mask.name}"] for mask in bundle.manifest.masks}
        for name, value in session.run({"input": chunk["input"], **given}).items():
            results.setdefault(name, []).append(value)
    return {name: np.concatenate(values) for name, values in results.items()}
