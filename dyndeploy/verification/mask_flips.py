"""How many mask bits FP16 would flip: rounding simulated on the CPU, bit by bit against FP32.

A mask decides what is computed, so a flipped bit is no small error: a whole patch, channel group or block is computed
or left out. FP16 plans therefore keep the maskers' weights and sums in float; what they see is still rounded, because
activations are stored as half. This module counts what remains, and what rounding the maskers as well would do.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dyndeploy.bundle import Bundle
from dyndeploy.errors import UsageError
from dyndeploy.finite import number
from dyndeploy.graphs.forced import forced_feeds
from dyndeploy.graphs.rounding import rounded_model
from dyndeploy.runtimes import OnnxRuntimeSession
from dyndeploy.verification.tensors import batches, deviations


@dataclass(frozen=True)
class MaskFlips:
    """Bits of one mask that differ from FP32's over all images.

    Attributes:
        mask: Name of the mask.
        bits: Compared bits.
        kept_float: Flips where the masker computes in float on rounded activations: the FP16 plan.
        in_half: Flips where the masker's weights and intermediate results are rounded to half as well.
    """

    mask: str
    bits: int
    kept_float: int
    in_half: int


@dataclass(frozen=True)
class RoundingReport:
    """Result of :func:`measure_mask_flips`.

    Attributes:
        images: How many samples were run.
        masks: Flips of every mask, in order of execution.
        output_error: Largest error of any output under FP32's masks, over that output's largest magnitude; infinite
            where a result is beyond the range of FP16.
    """

    images: int
    masks: tuple[MaskFlips, ...]
    output_error: float

    @property
    def bits(self) -> int:
        """Compared bits of all masks."""
        return sum(mask.bits for mask in self.masks)

    @property
    def kept_float(self) -> int:
        """Flips with maskers in float."""
        return sum(mask.kept_float for mask in self.masks)

    @property
    def in_half(self) -> int:
        """Flips with maskers in half."""
        return sum(mask.in_half for mask in self.masks)

    @property
    def line(self) -> str:
        """One sentence for reports."""
        if not math.isfinite(self.output_error):
            return f"FP16, simulated on {self.images} samples: results are NaN or infinite, beyond the range of FP16."
        if not self.bits:
            return "FP16: the network has no masks that could flip."
        return (
            f"FP16, simulated on {self.images} samples: {self.kept_float} of {self.bits} mask bits flip with the "
            f"maskers in float ({self.kept_float / self.bits:.3%}), {self.in_half} would with maskers in half "
            f"({self.in_half / self.bits:.3%}); outputs under FP32's masks move by {self.output_error:.2%}."
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            **asdict(self),
            "output_error": number(self.output_error),
            "bits": self.bits,
            "kept_float": self.kept_float,
            "in_half": self.in_half,
        }


def measure_mask_flips(
    bundle: Bundle,
    inputs: Mapping[str, npt.NDArray[Any]] | None = None,
    *,
    threads: int = 1,
    native: str | os.PathLike[str] = "auto",
) -> RoundingReport:
    """Count the mask bits that FP16 would flip.

    Activations are rounded to half wherever an engine stores them, weights likewise; sums are float, as in the
    kernels. FP32's masks are forced on the operators, so that a flip is counted where it arises and not again in every
    later block. What the kernels keep between their convolutions is not rounded here.

    Args:
        bundle: Any bundle.
        inputs: Inputs of the network by name, preprocessed, n samples each with n a multiple of the batch size; None
            takes the reference tensors.
        threads: Threads of the sessions.
        native: As for :class:`~dyndeploy.runtimes.OnnxRuntimeSession`.

    Raises:
        UsageError: The number of samples does not fit, or a weight is beyond the range of FP16.
    """
    manifest = bundle.manifest
    names, masks, batch = [info.name for info in manifest.inputs], manifest.masks, manifest.batch
    given = {name: value for name, value in (bundle.reference() if inputs is None else inputs).items() if name in names}
    count = min((len(value) for value in given.values()), default=0)
    if not count or count % batch:
        raise UsageError(f"{count} samples do not fill batches of {batch}. Give a multiple of it.")
    chunks = list(batches(given, batch))
    model, outputs = bundle.load_model(), [info.name for info in manifest.outputs]
    with OnnxRuntimeSession(model, threads=threads, native=native) as session:
        exact = [session.run(chunk) for chunk in chunks]
    flips = {}
    error = 0.0
    for half_maskers in (False, True):
        rounded = rounded_model(model, masks, half_maskers=half_maskers)
        flipped = dict.fromkeys((mask.name for mask in masks), 0)
        with OnnxRuntimeSession(rounded, threads=threads, native=native) as session:
            for chunk, expected in zip(chunks, exact, strict=True):
                result = session.run({**chunk, **(forced_feeds(expected, masks) if masks else {})}, finite=False)
                for mask in masks:
                    flipped[mask.name] += int((result[mask.name] != expected[mask.name]).sum())
                if not half_maskers:
                    error = max([error, *(e.relative_error for e in deviations(outputs, result, expected))])
        flips[half_maskers] = flipped
    bits = {mask.name: int(np.prod(mask.shape)) * len(chunks) for mask in masks}
    rows = tuple(MaskFlips(n, bits[n], flips[False][n], flips[True][n]) for n in bits)
    return RoundingReport(count, rows, error)
