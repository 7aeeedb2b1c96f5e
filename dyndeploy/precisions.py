"""Precisions: how wide a number is, how far results may be off, and what a CPU and an engine make of the name.

The one table; whoever needs one of these facts asks :data:`PRECISIONS`. A board is told its tolerances in its job.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from dyndeploy.errors import UsageError, unknown_name


@dataclass(frozen=True)
class Tolerance:
    """How far a result may be from PyTorch's in FP32.

    Attributes:
        output: Largest allowed error of an output, relative to the largest magnitude of the reference.
        margin: A mask bit may differ where |compute - skip| is at most this fraction of the mask's largest margin:
            there the decision is a tie up to rounding.
        ties: Largest share of all mask bits that may be such ties. One tie is always allowed.
    """

    output: float
    margin: float
    ties: float

    def ties_allowed(self, bits: int) -> float:
        """How many of ``bits`` compared mask bits may differ as ties."""
        return max(1.0, self.ties * bits)


@dataclass(frozen=True)
class DetectionTolerance:
    """How far detections may be from PyTorch's in FP32, once each has its partner.

    Attributes:
        box: Largest difference of a coordinate, in pixels of the network's input.
        score: Largest difference of a score.
        mask_iou: Least intersection over union of the masks of partners.
        unpaired: Largest share of detections without a partner. Suppression and ranking decide on whole boxes: where
            two scores, or an overlap and its threshold, are equal up to rounding, another box may stay.
    """

    box: float
    score: float
    mask_iou: float
    unpaired: float

    @property
    def cut(self) -> float:
        """How near the least score that is told a score may be to fall on its other side."""
        return self.score / 10


@dataclass(frozen=True)
class Precision:
    """One precision.

    Attributes:
        name: As given to ``--precision``.
        element_bytes: Bytes of an element of an activation or a weight.
        tolerance: How far results may be off; None where nothing in this release computes in it.
        cpu: Name of the precision that dynamic bottlenecks compute in on a CPU when this one is asked for; None where
            a CPU cannot run it.
        in_graph: Whether a bundle's graph itself is written in it, so that function bodies compute in it as well;
            else the graph is in FP32, and the precision is the choice of what runs it.
        engine: What a TensorRT engine computes in which type, one clause; empty where there is no plan.
        no_engine: Why there is no plan for an engine, as one or two sentences; empty where there is one.
        detections: How far detections may be off; None where that was never measured, and detectors are refused.
    """

    name: str
    element_bytes: int
    tolerance: Tolerance | None
    cpu: str | None
    in_graph: bool = False
    engine: str = ""
    no_engine: str = ""
    detections: DetectionTolerance | None = None


_ALL = (
    # Detectors: with ResNet-26 to ResNet-101 and made-up weights, rounding moves boxes by 0.003 px, scores by 3e-5, and
    # pixels on the rims of masks, whose IoU stays above 0.995, and of masks of a few tens of pixels above 0.97; of 100
    # detections at most 2 have no partner, where scores are saturated. A wrong weight or a shifted cell moves boxes by
    # pixels.
    Precision(
        "fp32",
        4,
        Tolerance(1e-3, 1e-4, 1e-4),
        cpu="fp32",
        engine="every tensor is float",
        detections=DetectionTolerance(box=0.02, score=1e-3, mask_iou=0.95, unpaired=0.03),
    ),
    # Half keeps 11 significant bits: a rounding is 2^-11 = 0.05 % of a value. Simulated with float sums, the logits of
    # LAUD-ResNets of 50 to 101 layers move by 0.05 to 0.07 %, and 0.012 % of the mask bits flip at most
    # (docs/tensorrt.md). What the simulation leaves out (values between the convolutions of a fused kernel, sums in
    # half) may cost a multiple of that, and 2 % is some thirty times as much: more would hide a damaged weight. A
    # margin moves as the activations do: 1 % of the largest one is already over ten times what rounding explains.
    Precision(
        "fp16",
        2,
        Tolerance(2e-2, 1e-2, 2e-3),
        cpu="fp32",  # the plan of an engine; it changes nothing on a CPU
        engine="activations and the weights of convolutions and bottlenecks are half; biases, maskers, masks and the "
        "head stay float",
        # Of detectors (benchmarks/results/detection-fp16.md): rounding simulated in their engines moves boxes by at
        # most 0.17 px and scores by 0.008, seldom by 0.02; where 9 bits are kept instead of 11, as a pessimist takes
        # sums in half for, boxes by 0.35 px. A box around a mask moves by a whole pixel where one at its rim does,
        # masks of a few pixels change by much of their area, and proposals of nearly the same score take each other's
        # place: those have no partner, 6 % of all, of one image 10 %.
        detections=DetectionTolerance(box=0.5, score=2e-2, mask_iou=0.9, unpaired=0.1),
    ),
    # BF16 keeps 8 significant bits: both factors of a product may be off by 2^-9 of their value, the product by 2^-8 =
    # 0.4 %. Sums are in FP32 and the errors of their terms are independent, so a convolution is off by less; the
    # residual sum over tens of blocks makes up for that. ResNets of 14 to 101 layers come to 0.2 to 0.6 %; a damaged
    # weight or a wrong mask is far more. Maskers compute in FP32, but from activations that carry that error.
    Precision(
        "bf16",
        2,
        Tolerance(2e-2, 2e-2, 2e-2),
        cpu="bf16",
        no_engine="There is no plan for precision 'bf16' in TensorRT. Use fp16 or fp32.",
    ),
    # INT8 keeps 255 steps of a tensor's largest value, and 64 of a weight's: each is off by half a step. Such errors
    # are independent and average out in a sum, and the residual stream adds one rounding per block. Measured under
    # FP32's masks on images of the kind that was calibrated on, logits of LAUD-ResNet-14 trained on digits come to 3 %
    # in spatial and 11 % in channel mode, with random weights to 2 %; a weight of the wrong sign makes tens of percent.
    # No mask bit with a margin above 5 % of the largest one flipped. Of all bits 0.2 % do in spatial mode and 3.1 % in
    # channel mode, nearly all of those in one masker whose decisions are close.
    Precision(
        "int8",
        1,
        Tolerance(1.5e-1, 5e-2, 6e-2),
        cpu="int8",
        in_graph=True,
        engine="operators of ours compute in integers on bytes, all else as in fp16; of a graph without such operators "
        "the convolutions are TensorRT's own INT8",
    ),
)

PRECISIONS: Mapping[str, Precision] = MappingProxyType({precision.name: precision for precision in _ALL})
"""Every precision by name."""

CPU_PRECISIONS = tuple(precision.name for precision in _ALL if precision.cpu == precision.name)
"""Names of the precisions that a CPU really computes in."""


def precision_of(name: str) -> Precision:
    """Look a precision up by name; raises ``UsageError`` that suggests the nearest name."""
    if name not in PRECISIONS:
        raise unknown_name("precision", name, PRECISIONS)
    return PRECISIONS[name]


def tolerance_of(name: str) -> Tolerance:
    """How far results in a precision may be off; raises ``UsageError`` where nothing computes in it."""
    tolerance = precision_of(name).tolerance
    if tolerance is None:
        raise UsageError(f"Nothing in this release computes in {name}: there is nothing to verify. Use fp32 or fp16.")
    return tolerance


def cpu_precision(name: str) -> str:
    """What dynamic bottlenecks compute in on a CPU when ``name`` is asked for; raises ``UsageError`` if they cannot."""
    found = precision_of(name).cpu
    if found is None:
        raise UsageError(f"A CPU cannot run {name}. Export the bundle again with --precision fp32.")
    return found
