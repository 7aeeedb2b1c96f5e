"""INT8 on a CPU whose calibration is in FP32: modelled from it, not measured.

A kernel takes what it takes in FP32, but its arithmetic is faster by the ratio of the instruction sets' peaks, and its
elements are a quarter as wide. Which part of its time is arithmetic the calibration's constants say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dyndeploy.prediction.calibrated import (
    GENERAL,
    Array,
    CalibratedModel,
    Calibration,
    class_of,
    general,
    term_names,
    terms,
)
from dyndeploy.prediction.kernels import ELEMENT_BYTES, REORDER, Kernel

_NARROWER = ELEMENT_BYTES["fp32"] / ELEMENT_BYTES["int8"]
_SPREAD = math.log(1.5)
"""Added to each side of a kernel's interval (logarithm): a judgement."""

_NOT_WORK = frozenset({"call", "operators", "mask_bits", "pixels"})
"""Terms that no width of an element changes."""


def integer_gain(machine: Mapping[str, Any], instruction_set: str | None) -> tuple[float, str]:
    """How many times as many products a processor computes in INT8 as in FP32, at most, and why.

    Counted in instructions of one width, which multipliers of both kinds start as often a cycle: a figure of the
    instruction set, not of a machine.

    Args:
        machine: Facts of :func:`~dyndeploy.runtimes.machine.machine_facts`.
        instruction_set: What the operator library computed with in FP32; one that is not the processor's best is held
            to in INT8, too.
    """
    flags = set(machine.get("isa") or ())
    held = instruction_set == "avx2" and "avx512f" in flags
    if "avx512_vnni" in flags and not held:
        return 4.0, "AVX-512 VNNI: 64 products an instruction, of floats 16"
    if "avx_vnni" in flags and not held:
        return 4.0, "AVX-VNNI: 32 products an instruction, of floats 8"
    if "asimddp" in flags:
        return 4.0, "NEON dot product: 16 products an instruction, of floats 4"
    if "avx2" in flags:
        return 2.0, "AVX2: 32 products in two multiplications (pmaddubsw, pmaddwd), of floats in four"
    return 1.0, "no instructions for products of bytes are known of this processor"


class IntegerModel(CalibratedModel):
    """Prices kernels in INT8 by a calibration in FP32; those that stay in FP32 as it was measured.

    Attributes:
        gain: See :func:`integer_gain`.
    """

    def __init__(self, calibration: Calibration) -> None:
        super().__init__(calibration)
        self.gain, why = integer_gain(calibration.machine, calibration.runtime.get("instruction_set"))
        self.basis += (
            f"; INT8 modelled from FP32, not measured: arithmetic {self.gain:g} times as fast ({why}), elements a "
            "quarter as wide"
        )

    def price(self, kernels: Sequence[Kernel], resident: Array | None = None) -> tuple[Array, Array, Array]:
        """See :class:`CalibratedModel`."""
        if resident is None:
            resident = np.full(len(kernels), sum(kernel.weight_bytes for kernel in kernels))
        floats = [_in_floats(kernel) for kernel in kernels]
        prices = super().price(floats, resident)
        integers = [index for index, kernel in enumerate(kernels) if kernel.precision == "int8"]
        share = np.ones(len(kernels))
        share[integers] = [self._share(floats[index], resident[index]) for index in integers]
        spread = np.zeros(len(kernels))
        spread[integers] = _SPREAD
        ms, low, high = (values * share for values in prices)
        return ms, low * np.exp(-spread), high * np.exp(spread)

    def _share(self, kernel: Kernel, resident: float) -> float:
        """What a kernel takes in INT8 as a share of what it takes in FP32."""
        if kernel.kind == REORDER:
            return 0.0  # Convolutions in integers take channels last: nothing is put into blocks.
        name = class_of(kernel)
        if not self._knows(name, kernel):
            name, kernel = GENERAL, general(kernel)
        model = self.calibration.classes[name]
        parts = terms([kernel], np.array([resident]))[0] * model.constants
        faster = parts / np.array([self._gain_of(term) for term in term_names(kernel)])
        return float(max(faster.sum(), model.floor_ms) / max(parts.sum(), model.floor_ms))

    def _gain_of(self, term: str) -> float:
        if term in _NOT_WORK:
            return 1.0
        return self.gain if term.endswith("macs") else _NARROWER


def _in_floats(kernel: Kernel) -> Kernel:
    """The kernel in FP32."""
    if kernel.precision != "int8":
        return kernel
    if kernel.call is not None and kernel.rates is not None:
        call = replace(kernel.call, element=ELEMENT_BYTES["fp32"])
        return replace(call.kernel(kernel.name, kernel.block, kernel.rates), share=kernel.share)
    moved = {name: getattr(kernel, name) * _NARROWER for name in ("read_bytes", "written_bytes", "weight_bytes")}
    return replace(kernel, precision="fp32", **moved)
