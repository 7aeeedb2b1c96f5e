"""Verification: does a bundle, or an engine of it, compute what PyTorch computed?"""

from dyndeploy.verification.bundle import verify_bundle
from dyndeploy.verification.engine import verify_engine
from dyndeploy.verification.exits import CONFIDENCE_TOLERANCE, probe_thresholds
from dyndeploy.verification.mask_flips import MaskFlips, RoundingReport, measure_mask_flips
from dyndeploy.verification.report import Check, OutputDeviation, VerificationReport

__all__ = [
    "CONFIDENCE_TOLERANCE",
    "Check",
    "MaskFlips",
    "OutputDeviation",
    "RoundingReport",
    "VerificationReport",
    "measure_mask_flips",
    "probe_thresholds",
    "verify_bundle",
    "verify_engine",
]
