"""Does a bundle compute what PyTorch computed? Files, graph, masks, then outputs under equal masks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from dyndeploy.bundle import Bundle, MaskInfo
from dyndeploy.errors import BundleError, DyndeployError
from dyndeploy.export.passes import foreign_operators
from dyndeploy.ops import DOMAIN, OPERATORS
from dyndeploy.profiling.forced import forced_feeds, overlay_forced_masks
from dyndeploy.runtimes import OnnxRuntimeSession
from dyndeploy.targets import load_target

OUTPUT_TOLERANCE = 1e-3
"""Largest allowed error of an output, relative to the largest magnitude of the reference."""
MARGIN_TOLERANCE = 1e-4
"""A mask bit may differ where |compute - skip| is below this fraction of the mask's largest margin."""

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
    masks. A last run without forcing shows what the deployed graph gives.

    Args:
        bundle: The bundle or its folder.
        threads: Threads of the sessions.
        native: As for :class:`dyndeploy.runtimes.OnnxRuntimeSession`.

    Returns:
        The report; it holds failed checks instead of raising, except where nothing can be checked at all.

    Raises:
        BundleError: The folder is no bundle.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    checks = [_check_files(bundle)]
    if not checks[0].passed:
        return VerificationReport(str(bundle.path), tuple(checks))
    model = onnx.load(bundle.model)
    checks += [_check_graph(bundle, model), _check_operators(bundle, model)]
    if not all(check.passed for check in checks):
        return VerificationReport(str(bundle.path), tuple(checks))
    reference = bundle.reference()
    missing = [name for name in ("input", "logits", *(m.name for m in bundle.manifest.masks)) if name not in reference]
    if missing:
        raise BundleError(f"reference.npz of {bundle.path} lacks {', '.join(missing)}. Export the bundle again.")
    overlay = overlay_forced_masks(model, bundle.manifest.masks)
    with OnnxRuntimeSession(overlay, threads=threads, native=native) as session:
        forced = _run(session, bundle, reference, forced=True)
        description = session.info.native.description
    with OnnxRuntimeSession(bundle.model, threads=threads, native=native) as session:
        free = _run(session, bundle, reference, forced=False)

    bits, flipped, tied = _compare_masks(bundle.manifest.masks, forced, reference)
    checks.append(
        Check(
            "masks",
            flipped == 0,
            f"{bits} bits: {flipped} differ, {tied} more are ties of the two logits up to rounding",
        )
    )
    outputs = tuple(_error(info.name, forced, reference) for info in bundle.manifest.outputs)
    for error in outputs:
        checks.append(
            Check(
                f"{error.output} under equal masks",
                error.relative_error <= OUTPUT_TOLERANCE,
                f"max error {error.max_error:.3g}, relative {error.relative_error:.3g} (limit {OUTPUT_TOLERANCE:g})",
            )
        )
    own = _error("logits", free, reference)
    agree = float((free["logits"].argmax(1) == reference["logits"].argmax(1)).mean())
    # A tie may fall the other way and change later masks: only without ties must the free run agree as well.
    checks.append(
        Check(
            "logits as deployed",
            own.relative_error <= OUTPUT_TOLERANCE or tied > 0,
            f"relative error {own.relative_error:.3g}, same class on {agree:.0%} of the reference images",
        )
    )
    return VerificationReport(str(bundle.path), tuple(checks), outputs, bits, flipped, tied, description)


def _check_files(bundle: Bundle) -> Check:
    damaged = bundle.damaged_files()
    detail = ", ".join(f"{name}: {what}" for name, what in damaged.items())
    return Check("files", not damaged, detail or f"{len(bundle.manifest.files)} files match their checksums")


def _check_graph(bundle: Bundle, model: onnx.ModelProto) -> Check:
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
    foreign = foreign_operators(model, target.allowed_operators)
    if foreign:
        problems.append(f"{', '.join(foreign)} not known to run on {target.name}")
    return Check("graph", not problems, "; ".join(problems) or f"opset {opset}, IR {model.ir_version}, {target.name}")


def _check_operators(bundle: Bundle, model: onnx.ModelProto) -> Check:
    nodes = {node.name: node for node in model.graph.node if node.domain == DOMAIN}
    bodies = {(function.domain, function.name) for function in model.functions}
    problems = []
    if set(nodes) != {info.node for info in bundle.manifest.operators}:
        problems.append("the manifest lists other dynamic operators than the graph has")
    for node in nodes.values():
        spec = OPERATORS[node.op_type]
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        if attributes.get("plugin_version") != str(spec.version).encode() or "plugin_namespace" not in attributes:
            problems.append(f"{node.name} lacks plugin_version {spec.version} or plugin_namespace")
        if (DOMAIN, node.op_type) not in bodies:
            problems.append(f"{node.name} has no function body")
    return Check("operators", not problems, "; ".join(problems) or f"{len(nodes)} dynamic operators with bodies")


def _run(session: OnnxRuntimeSession, bundle: Bundle, reference: Tensors, *, forced: bool) -> Tensors:
    results: dict[str, list[npt.NDArray[np.float32]]] = {}
    for chunk in _batches(reference, bundle.manifest.batch):
        feeds: dict[str, npt.NDArray[Any]] = {"input": chunk["input"]}
        if forced:
            masks = bundle.manifest.masks
            feeds |= forced_feeds({mask.name: chunk[mask.name] for mask in masks}, masks)
        for name, value in session.run(feeds).items():
            results.setdefault(name, []).append(value)
    return {name: np.concatenate(values) for name, values in results.items()}


def _batches(reference: Tensors, batch: int) -> Iterator[Tensors]:
    images = len(reference["input"])
    if images == 0 or images % batch:
        raise DyndeployError(f"{images} reference images do not fill batches of {batch}.")
    for start in range(0, images, batch):
        yield {name: value[start : start + batch] for name, value in reference.items()}


def _compare_masks(masks: tuple[MaskInfo, ...], got: Tensors, reference: Tensors) -> tuple[int, int, int]:
    bits = flipped = tied = 0
    for mask in masks:
        differs = got[mask.name] != reference[mask.name]
        bits += differs.size
        if not differs.any():
            continue
        margin = np.abs(reference[f"margin/{mask.name}"])
        close = margin <= MARGIN_TOLERANCE * max(float(margin.max()), 1e-6)
        flipped += int((differs & ~close).sum())
        tied += int((differs & close).sum())
    return bits, flipped, tied


def _error(name: str, got: Tensors, reference: Tensors) -> OutputDeviation:
    if not np.isfinite(got[name]).all():
        return OutputDeviation(name, float("inf"), float("inf"))
    error = float(np.abs(got[name] - reference[name]).max())
    return OutputDeviation(name, error, error / max(float(np.abs(reference[name]).max()), 1e-12))
