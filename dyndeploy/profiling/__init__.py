"""Profiling: samples, statistics, rate sweeps against the static twin, and times of the blocks."""

from dyndeploy.profiling.profile import BlockTimes, Profile, RateResult, load_profile
from dyndeploy.profiling.profiler import DEFAULT_RATES, profile_bundle
from dyndeploy.profiling.rounding import MaskFlips, RoundingReport, measure_mask_flips
from dyndeploy.profiling.samples import Samples

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
