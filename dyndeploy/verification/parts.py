"""What a target runs in the place of a detector's graph: legal engines, and a chain with the same detections."""

from __future__ import annotations

from dyndeploy.bundle import Bundle, DetectionInfo
from dyndeploy.graphs.rounding import rounded_model
from dyndeploy.inference.compared import detection_limits, differences
from dyndeploy.runtimes import open_parts
from dyndeploy.verification.detections import check_detections
from dyndeploy.verification.graphs import check_part
from dyndeploy.verification.report import Check
from dyndeploy.verification.tensors import Tensors, run_reference


def check_parts(
    bundle: Bundle,
    info: DetectionInfo,
    reference: Tensors,
    everything: Tensors,
    tied: bool,
    *,
    threads: int,
    native: str,
) -> list[Check]:
    """Check the parts of a bundle and of its static twin, engines in ONNX Runtime, and what FP16 would do to them.

    Args:
        bundle: A bundle with parts.
        info: Of the detector.
        reference: PyTorch's tensors.
        everything: Outputs of the graph with every mask bit set, which the twin is compared with.
        tied: Whether a mask bit fell the other way in a tie, and may have changed later masks.
        threads: Threads of the sessions.
        native: As for :class:`~dyndeploy.runtimes.OnnxRuntimeSession`.
    """
    engines = [*bundle.load_engine_parts(), *bundle.load_engine_parts(static=True)]
    checks = [check_part(bundle, part, model) for part, model in engines]
    limits = detection_limits(bundle.manifest.cpu_precision)
    with open_parts(bundle, threads=threads, native=native) as session:
        found = differences(info, run_reference(session, bundle, reference), reference, reference, limits)
    title = f"detections of the {len(bundle.parts)} parts, engines in ONNX Runtime"
    checks.append(check_detections(title, found, limits, held=not tied))
    if bundle.manifest.precision == "fp16":
        checks.append(_rounded(bundle, info, reference, threads=threads, native=native))
    if bundle.static_parts:
        with open_parts(bundle, threads=threads, native=native, static=True) as session:
            static = run_reference(session, bundle, reference)
        found = differences(info, static, everything, reference, limits)
        title = f"static twin: detections of its {len(bundle.static_parts)} parts, engines in ONNX Runtime"
        checks.append(check_detections(title, found, limits))
    return checks


def _rounded(bundle: Bundle, info: DetectionInfo, reference: Tensors, *, threads: int, native: str) -> Check:
    """The chain with every value rounded that its engines store as half, held to what an FP16 engine may be off by.

    Masks are those that rounded maps lead to: where one of their bits flips, detections may differ, and are shown.
    """
    limits = detection_limits("fp16")
    with open_parts(
        bundle,
        threads=threads,
        native=native,
        change=lambda model: rounded_model(model, (), half_maskers=False),
    ) as session:
        rounded = run_reference(session, bundle, reference)
    masks = [mask.name for mask in bundle.manifest.masks]
    bits = sum(reference[name].size for name in masks)
    flipped = sum(int((rounded[name] != reference[name]).sum()) for name in masks)
    found = differences(info, rounded, reference, reference, limits)
    check = check_detections("detections of the parts in FP16, rounding simulated", found, limits, held=not flipped)
    return Check(check.name, check.passed, f"{check.detail}; {flipped} of {bits} mask bits flip")
