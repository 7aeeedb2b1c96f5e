"""The reference tensors of a bundle, what a session gives for them, and how far the two are apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dyndeploy.bundle import LOGITS, Bundle
from dyndeploy.bundle.reference_names import FORCED, MARGIN, unusable
from dyndeploy.errors import BundleError, DyndeployError
from dyndeploy.finite import not_finite
from dyndeploy.runtimes import Session
from dyndeploy.verification.report import Check, OutputDeviation

Tensors = dict[str, npt.NDArray[np.float32]]


def reference_tensors(bundle: Bundle) -> Tensors:
    """Inputs, outputs, masks, margins, and outputs under random masks: complete and of the right shapes.

    Raises:
        BundleError: A tensor is missing or has another shape.
    """
    reference, manifest = bundle.reference(), bundle.manifest
    expected = {info.name: info.shape[1:] for info in manifest.inputs}
    results = {info.name: info.shape[1:] for info in manifest.outputs}
    results |= {mask.name: mask.shape[1:] for mask in manifest.masks}
    expected |= results
    # Random masks change nothing where there are none.
    expected |= {f"{FORCED}{name}": shape for name, shape in results.items() if manifest.masks}
    expected |= {f"{MARGIN}{mask.name}": mask.shape[1:] for mask in manifest.masks}
    samples = manifest.reference.images
    require_shapes(bundle, reference, {name: (samples, *shape) for name, shape in expected.items()})
    return reference


def check_reference(reference: Tensors) -> Check:
    """PyTorch's results are finite: nothing can be compared with others."""
    found = unusable(reference)
    return Check("reference tensors", not found, found or f"{len(reference)} tensors, all finite")


def require_shapes(bundle: Bundle, reference: Tensors, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ``BundleError`` unless the reference has tensors of these shapes."""
    for name, shape in expected.items():
        if name not in reference:
            raise BundleError(f"reference.npz of {bundle.path} lacks {name}. Export the bundle again.")
        if reference[name].shape != shape:
            raise BundleError(
                f"{name} in reference.npz of {bundle.path} has shape {reference[name].shape}, not {shape}. "
                "Export the bundle again."
            )


def batches(tensors: Mapping[str, npt.NDArray[Any]], batch: int) -> Iterator[Tensors]:
    """Tensors of n samples, ``batch`` at a time; raises ``DyndeployError`` where they do not fill batches."""
    samples = len(next(iter(tensors.values())))
    if samples == 0 or samples % batch:
        raise DyndeployError(f"{samples} reference samples do not fill batches of {batch}.")
    for start in range(0, samples, batch):
        yield {name: value[start : start + batch] for name, value in tensors.items()}


def run_reference(
    session: Session,
    bundle: Bundle,
    reference: Tensors,
    further: Callable[[Tensors], Mapping[str, npt.NDArray[Any]]] = lambda chunk: {},
) -> Tensors:
    """Run all reference samples.

    Args:
        session: Takes the network's inputs, or those of them that a twin needs.
        bundle: Says which of the tensors are inputs, and the batch size.
        reference: Tensors by name.
        further: Gives the feeds besides the inputs for a batch.

    Returns:
        Every output, stacked.
    """
    results: dict[str, list[npt.NDArray[np.float32]]] = {}
    taken = {info.name for info in session.inputs} & {info.name for info in bundle.manifest.inputs}
    for chunk in batches(reference, bundle.manifest.batch):
        feeds = {**{name: chunk[name] for name in taken}, **further(chunk)}
        for name, value in session.run(feeds, finite=False).items():
            results.setdefault(name, []).append(value)
    return {name: np.concatenate(values) for name, values in results.items()}


def deviation(name: str, got: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]) -> OutputDeviation:
    """How far an output is from the reference; infinitely far where one of them is not finite."""
    if not_finite(got) or not_finite(reference):
        return OutputDeviation(name, float("inf"), float("inf"))
    error = float(np.abs(got.astype(np.float64) - reference).max(initial=0))
    return OutputDeviation(name, error, error / max(float(np.abs(reference).max(initial=0)), 1e-12))


def deviations(names: Sequence[str], got: Tensors, reference: Tensors, prefix: str = "") -> tuple[OutputDeviation, ...]:
    """The deviation of every output from the reference tensor of its name behind a prefix."""
    return tuple(deviation(name, got[name], reference[f"{prefix}{name}"]) for name in names)


def same_class(got: Tensors, reference: Tensors) -> str:
    """On how many samples a classifier gives the same class, as a clause; empty for other networks."""
    if LOGITS not in got or got[LOGITS].ndim != 2:
        return ""
    agree = float((got[LOGITS].argmax(1) == reference[LOGITS].argmax(1)).mean())
    return f", same class on {agree:.0%} of the reference images"
