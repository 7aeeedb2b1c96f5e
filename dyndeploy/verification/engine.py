"""Does a TensorRT engine on this machine compute what PyTorch computed?"""

from __future__ import annotations

import math
import os
from dataclasses import replace

from dyndeploy.bundle import LOGITS, Bundle
from dyndeploy.bundle.reference_names import FORCED
from dyndeploy.graphs.forced import PREFIX, replace_masks
from dyndeploy.precisions import tolerance_of
from dyndeploy.runtimes import TensorRTSession
from dyndeploy.runtimes.tensorrt_engine import EngineSettings
from dyndeploy.verification.graphs import check_files
from dyndeploy.verification.masks import compare_masks
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
    checks = [check_files(bundle)]
    if not checks[0].passed:
        return VerificationReport(str(bundle.path), tuple(checks))
    settings = replace((settings or EngineSettings()).of(bundle), static=False)
    model, masks = bundle.load_model(), bundle.manifest.masks
    reference = reference_tensors(bundle)
    checks.append(check_reference(reference))
    if not checks[-1].passed:
        return VerificationReport(str(bundle.path), tuple(checks))
    names = [info.name for info in bundle.manifest.outputs]

    def replaced(session: TensorRTSession, prefix: str) -> Tensors:
        return run_reference(
            session,
            bundle,
            reference,
            lambda chunk: {f"{PREFIX}{mask.name}": chunk[f"{prefix}{mask.name}"] for mask in masks},
        )

    session, _ = TensorRTSession.from_graph(replace_masks(model, masks), settings, device=device)
    with session:
        equal = replaced(session, "")
        random = replaced(session, FORCED) if masks else {}
        description = session.info.native.description
    session, built = TensorRTSession.from_bundle(bundle, settings, device=device)
    with session:
        free = run_reference(session, bundle, reference)
    tolerance = tolerance_of(str(settings.precision))
    bits = compare_masks(masks, equal, reference, tolerance)
    outputs = deviations(names, equal, reference)
    checks.append(bits.check(tolerance))
    checks += [error.check(f"{error.output} under equal masks", tolerance.output) for error in outputs]
    checks += [
        error.check(f"{error.output} under random masks", tolerance.output)
        for error in deviations(names if masks else [], random, reference, FORCED)
    ]
    changed = sum(int((free[mask.name] != reference[mask.name]).sum()) for mask in masks)
    for name in names:
        own = deviation(name, free[name], reference[name])
        remark = f"{changed} mask bits differ" + (same_class(free, reference) if name == LOGITS else "")
        checks.append(
            Check(
                f"{name} as deployed",
                own.relative_error <= tolerance.output or (changed > 0 and math.isfinite(own.relative_error)),
                f"{built.metadata['plan']}: relative error {own.relative_error:.3g}, {remark}",
            )
        )
    return VerificationReport(str(bundle.path), tuple(checks), outputs, bits.bits, bits.flipped, bits.tied, description)
