"""Profiling: samples, statistics, rate sweeps against the static twin, and times of the blocks."""

from dyndeploy.measure.inputs import DEFAULT_RATES
from dyndeploy.measure.profile import BlockTimes, Profile, RateResult, load_profile
from dyndeploy.measure.runners.engine import profile_engine
from dyndeploy.measure.runners.local import profile_bundle
from dyndeploy.measure.samples import Samples

__all__ = [
    "DEFAULT_RATES",
    "BlockTimes",
    "Profile",
    "RateResult",
    "Samples",
    "load_profile",
    "profile_bundle",
    "profile_engine",
]
