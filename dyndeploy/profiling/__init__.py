"""Profiling: samples, statistics, rate sweeps against the static twin, and times of the blocks."""

from dyndeploy.profiling.profile import BlockTimes, Profile, RateResult, load_profile
from dyndeploy.profiling.profiler import DEFAULT_RATES, profile_bundle
from dyndeploy.profiling.samples import Samples

__all__ = [
    "DEFAULT_RATES",
    "BlockTimes",
    "Profile",
    "RateResult",
    "Samples",
    "load_profile",
    "profile_bundle",
]
