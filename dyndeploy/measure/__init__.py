"""Profiling: samples, statistics, rate sweeps against the static twin, and times of the blocks."""

from dyndeploy.measure.profile import BlockTimes, Profile, RateResult, load_profile
from dyndeploy.measure.profiler import DEFAULT_RATES, profile_bundle
from dyndeploy.measure.rounding import MaskFlips, RoundingReport, measure_mask_flips
from dyndeploy.measure.samples import Samples

__all__ = [
    "DEFAULT_RATES",
    "BlockTimes",
    "MaskFlips",
    "Profile",
    "RateResult",
    "RoundingReport",
    "Samples",
    "load_profile",
    "measure_mask_flips",
    "profile_bundle",
]
