"""Networks that exit early: the logits of every exit, and the exits that images take."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt

from dyndeploy.bundle import INPUT, LOGITS, Bundle
from dyndeploy.bundle.reference_names import FORCED, MARGIN, exit_logits
from dyndeploy.confidences import confidences
from dyndeploy.graphs.forced import forced_feeds, overlay_forced_masks
from dyndeploy.precisions import tolerance_of
from dyndeploy.runtimes import OnnxRuntimeSession, open_staged
from dyndeploy.runtimes.staged import first_reached
from dyndeploy.verification.graphs import check_graph, check_operators, check_stage
from dyndeploy.verification.integers import check_integers, mask_flips_line
from dyndeploy.verification.masks import MaskBits, compare_masks
from dyndeploy.verification.report import Check, VerificationReport
from dyndeploy.verification.tensors import Tensors, batches, check_reference, deviation, deviations, require_shapes

CONFIDENCE_TOLERANCE = 1e-4
"""A decision may differ from PyTorch's where a confidence is this close to its threshold."""


def verify_stages(bundle: Bundle, checks: list[Check], threads: int) -> VerificationReport:
    """Verify a bundle of stages whose files are whole."""
    stages, models = bundle.exits.stages, bundle.load_stages()
    for stage, model in zip(stages, models, strict=True):
        checks += [check_graph(bundle, f"{stage.file}: graph", model), check_stage(bundle, stage, model)]
    masks = bundle.manifest.masks
    if masks:
        checks.append(check_operators(bundle, models))
    for title, path, load in (
        ("whole network: graph", bundle.static, bundle.load_static),
        ("branches: graph", bundle.branched, bundle.load_branched),
    ):
        if path is not None:
            checks.append(check_graph(bundle, title, load()))
    if not all(check.passed for check in checks):
        return VerificationReport(str(bundle.path), tuple(checks))
    checks.append(check_reference(bundle.reference()))
    if not checks[-1].passed:
        return VerificationReport(str(bundle.path), tuple(checks))
    images, logits = _reference_exits(bundle)
    precision = bundle.manifest.graph_precision
    tolerance = tolerance_of(precision).output
    bits = MaskBits(0, 0, 0)
    if bundle.manifest.quantization is not None:
        checks += check_integers(bundle, models, bundle.reference(), threads=threads, native="auto")
    if masks:
        bits = _check_masks(bundle, checks, threads)
        if bundle.manifest.quantization is not None:
            checks.append(mask_flips_line(bits, bundle.manifest.reference.images))
    with open_staged(bundle, threads=threads) as session:
        own = session.run_all(images, finite=False)
        outputs = tuple(
            deviation(exit_logits(stage.exit), got, expected)
            for stage, got, expected in zip(stages, own, logits, strict=True)
        )
        native = session.info.native.description
    broken = [error for error in outputs if not math.isfinite(error.relative_error)]
    if broken:
        # No confidence follows from them.
        checks += [error.check(f"{error.output} as deployed", tolerance) for error in broken]
        return VerificationReport(str(bundle.path), tuple(checks), outputs, bits.bits, bits.flipped, bits.tied, native)
    if bundle.manifest.quantization is not None:
        # Confidences are off by what INT8 costs: the stages are held to their own, and the difference is shown.
        checks += _exits_that_differ(bundle, own, logits)
        logits = list(own)
    # A tie may fall the other way and change later masks: only without ties must the free run agree as well.
    if not bits.tied:
        checks += [error.check(f"exit {s.exit}: logits", tolerance) for s, error in zip(stages, outputs, strict=True)]
    for title, sets in (
        ("exits under the stored thresholds", [info.values for info in bundle.exits.thresholds.values()]),
        ("exits under probe thresholds", probe_thresholds(logits, bundle.exits.confidence)),
    ):
        if sets and not bits.tied:
            checks.append(_check_decisions(bundle, title, sets, images, logits, threads))
    if bundle.static is not None and not masks:
        got = _run_whole(bundle, images, threads)
        checks.append(deviation(LOGITS, got, logits[-1]).check("whole network: logits", tolerance))
    if bundle.branched is not None:
        checks.append(_check_branches(bundle, images, logits, threads))
    return VerificationReport(
        str(bundle.path), tuple(checks), outputs, bits.bits, bits.flipped, bits.tied, native=native
    )


def _check_masks(bundle: Bundle, checks: list[Check], threads: int) -> MaskBits:
    """Masks bit by bit and logits under forced masks, as of a network that is one graph."""
    reference, tolerance = _with_masks(bundle), tolerance_of(bundle.manifest.graph_precision)
    masks = bundle.manifest.masks
    names = [exit_logits(stage.exit) for stage in bundle.exits.stages]
    equal = _run_forced(bundle, lambda name: reference[name], threads)
    bits = compare_masks(masks, equal, reference, tolerance)
    checks.append(bits.check(tolerance))
    random = _run_forced(bundle, lambda name: reference[f"{FORCED}{name}"], threads)
    for title, errors in (
        ("equal", deviations(names, equal, reference)),
        ("random", deviations(names, random, reference, FORCED)),
    ):
        limit = math.inf if title == "random" and bundle.manifest.quantization is not None else tolerance.output
        checks += [error.check(f"{error.output} under {title} masks", limit) for error in errors]
    if bundle.static is not None:
        everything = _run_forced(bundle, lambda name: np.ones_like(reference[name]), threads)
        got = _run_whole(bundle, next(iter(bundle.reference_inputs().values())), threads)
        limit = math.inf if bundle.manifest.quantization is not None else tolerance.output
        checks.append(deviation(LOGITS, got, everything[names[-1]]).check("static twin: logits", limit))
    return bits


def _exits_that_differ(
    bundle: Bundle, own: Sequence[npt.NDArray[np.float32]], logits: Sequence[npt.NDArray[np.float32]]
) -> list[Check]:
    """How many images leave elsewhere than PyTorch's confidences in FP32 ask for; no failure."""
    lines = []
    for info in bundle.exits.thresholds.values():
        measured, expected = (_expected_exits(bundle, values, info.values)[0] for values in (own, logits))
        differ = int((measured != expected).sum())
        lines.append(
            Check(
                "exits in INT8", True, f"{differ} of {len(measured)} images leave elsewhere than in FP32, {info.source}"
            )
        )
    return lines


def _with_masks(bundle: Bundle) -> Tensors:
    """Reference tensors of masks, margins, random masks, and the logits under them, of the right shapes."""
    reference, manifest = bundle.reference(), bundle.manifest
    samples = manifest.reference.images
    shapes = {
        f"{prefix}{mask.name}": (samples, *mask.shape[1:]) for mask in manifest.masks for prefix in ("", MARGIN, FORCED)
    }
    classes = (samples, manifest.network.num_classes or 0)
    shapes |= {f"{FORCED}{exit_logits(stage.exit)}": classes for stage in bundle.exits.stages}
    require_shapes(bundle, reference, shapes)
    return reference


def _run_forced(bundle: Bundle, given: Callable[[str], npt.NDArray[np.float32]], threads: int) -> Tensors:
    """Logits of every exit, and the masks that the gates decide themselves, while given masks are forced."""
    results: dict[str, list[npt.NDArray[np.float32]]] = {}
    with ExitStack() as stack:
        stages = []
        for stage, model in zip(bundle.exits.stages, bundle.load_stages(), strict=True):
            masks = bundle.stage_masks(stage)
            graph = overlay_forced_masks(model, masks) if masks else model
            stages.append((stage, masks, stack.enter_context(OnnxRuntimeSession(graph, threads=threads))))
        forced = {mask.name: given(mask.name) for mask in bundle.manifest.masks}
        for chunk in batches({**bundle.reference_inputs(), **forced}, bundle.manifest.batch):
            tensors = dict(chunk)
            for stage, masks, session in stages:
                feeds: dict[str, npt.NDArray[Any]] = {info.name: tensors[info.name] for info in stage.inputs}
                if masks:
                    feeds |= forced_feeds({mask.name: chunk[mask.name] for mask in masks}, masks)
                got = session.run(feeds, finite=False)
                tensors |= {name: value for name, value in got.items() if name != LOGITS}
                for name, value in ((exit_logits(stage.exit), got[LOGITS]), *((m.name, got[m.name]) for m in masks)):
                    results.setdefault(name, []).append(value)
    return {name: np.concatenate(values) for name, values in results.items()}


def _run_whole(bundle: Bundle, images: npt.NDArray[np.float32], threads: int) -> npt.NDArray[np.float32]:
    """Logits of the static twin."""
    assert bundle.static is not None
    with OnnxRuntimeSession(bundle.static, threads=threads, native="off") as whole:
        name = whole.inputs[0].name
        chunks = batches({name: images}, _per_run(bundle))
        runs = [whole.run({name: chunk[name]}, [LOGITS], finite=False)[LOGITS] for chunk in chunks]
    return np.concatenate(runs)


def _per_run(bundle: Bundle) -> int:
    return 1 if bundle.exits.dynamic_batch else bundle.manifest.batch


def _reference_exits(bundle: Bundle) -> tuple[npt.NDArray[np.float32], list[npt.NDArray[np.float32]]]:
    """Images, and PyTorch's logits of every exit that the bundle keeps."""
    reference, manifest = bundle.reference(), bundle.manifest
    shape = (manifest.reference.images, manifest.network.num_classes or 0)
    names = [exit_logits(stage.exit) for stage in bundle.exits.stages]
    (images,) = bundle.reference_inputs().values()
    wanted = {INPUT: (shape[0], *manifest.inputs[0].shape[1:]), **dict.fromkeys(names, shape)}
    require_shapes(bundle, reference, wanted)
    return images, [reference[name] for name in names]


def probe_thresholds(
    logits: Sequence[npt.NDArray[np.float32]], measure: str = "max_softmax"
) -> list[tuple[float, ...]]:
    """Thresholds that lie as far as possible from any confidence, so that rounding decides nothing.

    Args:
        logits: Logits of every stage, (N, classes).
        measure: How sure an exit is; see :mod:`dyndeploy.confidences`.

    Returns:
        N + 1 sets; over them every number of images, from all to none, leaves at each stage.
    """
    gaps = []
    for values in logits:
        edges = np.concatenate([[0.0], np.sort(confidences(values, measure)), [1.0]])
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
                worst = max(worst, deviation(LOGITS, got[same], rows[same]).relative_error)
    passed = wrong == 0 and worst <= tolerance_of(bundle.manifest.graph_precision).output
    detail = f"{made} decisions: {wrong} differ, {tied} more within rounding of a threshold; logits within {worst:.3g}"
    return Check(title, passed, detail)


def _expected_exits(
    bundle: Bundle, logits: Sequence[npt.NDArray[np.float32]], thresholds: Sequence[float]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Stages where PyTorch's confidences leave, and where one on the way is too close to its threshold to tell."""
    confident = np.stack([confidences(values, bundle.exits.confidence) for values in logits])
    distance = np.abs(confident - np.asarray(thresholds, np.float32)[:, None])
    close: npt.NDArray[np.bool_] = (distance <= CONFIDENCE_TOLERANCE).any(0)
    return first_reached(confident, thresholds), close


def _check_branches(
    bundle: Bundle, images: npt.NDArray[np.float32], logits: Sequence[npt.NDArray[np.float32]], threads: int
) -> Check:
    made = wrong = 0
    worst = 0.0
    numbers = np.array([stage.exit for stage in bundle.exits.stages])
    with OnnxRuntimeSession(bundle.load_branched(), threads=threads, native="off") as session:
        for thresholds in probe_thresholds(logits, bundle.exits.confidence):
            expected, close = _expected_exits(bundle, logits, thresholds)
            for index, image in enumerate(images):
                feeds = {session.inputs[0].name: image[None]}
                feeds |= {info.name: np.array(thresholds[:-1], np.float32) for info in session.inputs[1:]}
                result = session.run(feeds, finite=False)
                made += 1
                if result["exit"][0] == numbers[expected[index]]:
                    row = logits[expected[index]][index : index + 1]
                    worst = max(worst, deviation(LOGITS, result[LOGITS], row).relative_error)
                else:
                    wrong += int(not close[index])
    passed = wrong == 0 and worst <= tolerance_of(bundle.manifest.graph_precision).output
    return Check("branches: exits", passed, f"{made} decisions: {wrong} differ; logits within {worst:.3g}")
