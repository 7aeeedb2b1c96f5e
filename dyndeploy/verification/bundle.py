"""Does a bundle compute what PyTorch computed? Files, graph, masks, then outputs under equal masks."""

from __future__ import annotations

import math
import os

import numpy as np

from dyndeploy.bundle import LOGITS, Bundle, DetectionInfo
from dyndeploy.bundle.reference_names import EXACT, FORCED
from dyndeploy.finite import listed
from dyndeploy.graphs.forced import forced_feeds, overlay_forced_masks
from dyndeploy.inference.compared import Differences, detection_limits, differences
from dyndeploy.precisions import DetectionTolerance, tolerance_of
from dyndeploy.runtimes import OnnxRuntimeSession
from dyndeploy.verification.detections import check_detections, detection_deviations
from dyndeploy.verification.exits import verify_stages
from dyndeploy.verification.graphs import check_files, check_graph, check_manifest, check_operators
from dyndeploy.verification.integers import check_integers, mask_flips_line
from dyndeploy.verification.mask_flips import measure_mask_flips
from dyndeploy.verification.masks import compare_masks
from dyndeploy.verification.parts import check_parts
from dyndeploy.verification.report import Check, VerificationReport
from dyndeploy.verification.tensors import (
    Tensors,
    check_reference,
    deviation,
    deviations,
    reference_tensors,
    run_reference,
    same_class,
)


def verify_bundle(
    bundle: Bundle | str | os.PathLike[str], *, threads: int = 1, native: str = "auto"
) -> VerificationReport:
    """Verify a bundle on this machine's CPU.

    The masks of the reference are forced on every operator, while the maskers still decide for themselves: so each
    masker sees the input that PyTorch's saw, its bits are compared one by one, and outputs are compared under equal
    masks. Random masks of rate 0.5 are compared with PyTorch's results under them, all-one masks with the static twin.
    A last run without forcing shows what the deployed graph gives. Of a network that approximates another one, the
    difference from that is shown apart; it fails nothing.

    Of a detector the detections are compared, each with its partner, in pixels of the network's input: an order of
    equal scores is no error. What a target runs in parts is run so, and in FP16 once more with simulated rounding.

    Of a network that exits early the logits of every exit are compared with PyTorch's, its masks too if it has any, and
    the exits that images take, alone and in a batch, with those that PyTorch's confidences ask for under the bundle's
    thresholds and under probe thresholds between the confidences.

    The reference is PyTorch's in FP32 whatever the bundle's precision: what is lost to BF16 or INT8 counts as error,
    which :data:`dyndeploy.precisions.PRECISIONS` limits. A graph in INT8 is also held to its integer references: its
    dynamic operators to the bit, what the runtime computes in integers of its own to a step.

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
    checks = [check_files(bundle)]
    if not checks[0].passed:
        return VerificationReport(str(bundle.path), tuple(checks))
    if bundle.manifest.exits is not None:
        return verify_stages(bundle, checks, threads)
    model = bundle.load_model()
    checks += [check_graph(bundle, "graph", model), check_manifest(bundle, model), check_operators(bundle, [model])]
    twin = None if bundle.static is None else bundle.load_static()
    if twin is not None:
        checks.append(check_graph(bundle, "static twin: graph", twin))
    if not all(check.passed for check in checks):
        return VerificationReport(str(bundle.path), tuple(checks))
    reference = reference_tensors(bundle)
    checks.append(check_reference(reference))
    if not checks[-1].passed:
        return VerificationReport(str(bundle.path), tuple(checks))
    masks, precision = bundle.manifest.masks, bundle.manifest.cpu_precision
    tolerance = tolerance_of(precision)

    def forced(session: OnnxRuntimeSession, prefix: str) -> Tensors:
        return run_reference(
            session,
            bundle,
            reference,
            lambda chunk: forced_feeds({mask.name: chunk[f"{prefix}{mask.name}"] for mask in masks}, masks),
        )

    with OnnxRuntimeSession(
        overlay_forced_masks(model, masks), threads=threads, native=native, precision=precision
    ) as session:
        equal = forced(session, "")
        random = forced(session, FORCED) if masks else {}
        everything = run_reference(
            session,
            bundle,
            reference,
            lambda chunk: forced_feeds({mask.name: np.ones_like(chunk[mask.name]) for mask in masks}, masks),
        )
        description = session.info.native.description
    if bundle.manifest.quantization is not None:
        checks += check_integers(bundle, [model], reference, threads=threads, native=native)
    with OnnxRuntimeSession(bundle.model, threads=threads, native=native, precision=precision) as session:
        free = run_reference(session, bundle, reference)

    bits = compare_masks(masks, equal, reference, tolerance)
    checks.append(bits.check(tolerance))
    if bundle.manifest.quantization is not None and masks:
        checks.append(mask_flips_line(bits, bundle.manifest.reference.images))
    detection = bundle.manifest.detection
    if detection is not None:
        if bundle.parts:
            checks += check_parts(
                bundle, detection, reference, everything, bits.tied > 0, threads=threads, native=native
            )
        static = None
        if twin is not None:
            with OnnxRuntimeSession(twin, threads=threads, native=native) as session:
                static = run_reference(session, bundle, reference)
        found = differences(detection, equal, reference, reference, detection_limits(precision))
        checks += _detection_checks(
            detection,
            reference,
            bits.tied > 0,
            found,
            detection_limits(precision),
            random=random,
            everything=everything,
            static=static,
            free=free,
        )
        return VerificationReport(
            str(bundle.path),
            tuple(checks),
            detection_deviations(found),
            bits.bits,
            bits.flipped,
            bits.tied,
            description,
        )
    names = [info.name for info in bundle.manifest.outputs]
    outputs = deviations(names, equal, reference)
    checks += [error.check(f"{error.output} under equal masks", tolerance.output) for error in outputs]
    # The network's own masks may skip nothing on these samples: random ones do. In INT8 they may also cause values that
    # calibration never saw, and that are cut off: what is computed is held to the integer references instead.
    calibrated = bundle.manifest.quantization is not None
    checks += [
        error.check(f"{error.output} under random masks", math.inf if calibrated else tolerance.output)
        for error in deviations(names if masks else [], random, reference, FORCED)
    ]
    # What a network approximates is its own affair: the difference is shown, and no failure.
    checks += [
        Check(
            f"{error.output} against the exact network",
            math.isfinite(error.relative_error),
            f"relative difference {error.relative_error:.3g}, which the network's approximation makes",
        )
        for error in deviations([name for name in names if f"{EXACT}{name}" in reference], equal, reference, EXACT)
    ]
    if twin is not None:
        with OnnxRuntimeSession(twin, threads=threads, native=native) as session:
            static = run_reference(session, bundle, reference)
        # The twin is in FP32; compared with BF16 operators it shows their error. In INT8 every mask bit set is outside
        # of what was calibrated, as random masks are.
        checks += [
            error.check(f"static twin: {error.output}", math.inf if calibrated else tolerance.output)
            for error in deviations(names, static, everything)
        ]
    for name in names:
        own = deviation(name, free[name], reference[name])
        # A tie may fall the other way and change later masks: only without ties must the free run agree as well.
        passed = own.relative_error <= tolerance.output or (bits.tied > 0 and math.isfinite(own.relative_error))
        remark = same_class(free, reference) if name == LOGITS else ""
        checks.append(Check(f"{name} as deployed", passed, f"relative error {own.relative_error:.3g}{remark}"))
    if bundle.manifest.precision == "fp16" and not listed(free):
        # Flips are no failure: a bit may flip where the decision is close, and how often is what the user must know.
        report = measure_mask_flips(bundle, threads=threads, native=native)
        checks.append(Check("masks in FP16", math.isfinite(report.output_error), report.line))
    return VerificationReport(str(bundle.path), tuple(checks), outputs, bits.bits, bits.flipped, bits.tied, description)


def _detection_checks(
    info: DetectionInfo,
    reference: Tensors,
    tied: bool,
    equal: Differences,
    tolerance: DetectionTolerance,
    *,
    random: Tensors,
    everything: Tensors,
    static: Tensors | None,
    free: Tensors,
) -> list[Check]:
    """What a detector found, in the place of an error per number: the order of equal scores is no error.

    Args:
        info: Of the detector.
        reference: PyTorch's tensors.
        tied: Whether a mask bit fell the other way in a tie, and may have changed later masks.
        equal: Differences under the reference's masks.
        tolerance: How far they may be apart.
        random: Outputs under random masks.
        everything: Outputs with every mask bit set.
        static: Outputs of the static twin, if there is one.
        free: Outputs as deployed.
    """
    checks = [check_detections("detections under equal masks", equal, tolerance)]
    if random:
        found = differences(info, random, reference, reference, tolerance, FORCED)
        checks.append(check_detections("detections under random masks", found, tolerance))
    if static is not None:
        found = differences(info, static, everything, reference, tolerance)
        checks.append(check_detections("static twin: detections", found, tolerance))
    found = differences(info, free, reference, reference, tolerance)
    return [*checks, check_detections("detections as deployed", found, tolerance, held=not tied)]
