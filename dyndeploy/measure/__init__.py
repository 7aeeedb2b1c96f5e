"""Profiling: samples, statistics, rate sweeps against the static twin, and times of the blocks."""

from dyndeploy.measure.inputs import DEFAULT_RATES
from dyndeploy.measure.network import NetworkProfile, load_network_profile, profile_network
from dyndeploy.measure.profile import BlockTimes, Profile, RateResult, load_profile
from dyndeploy.measure.runners.engine import profile_engine
from dyndeploy.measure.runners.local import profile_bundle
from dyndeploy.measure.samples import Samples

__all__ = [
    "DEFAULT_RATES",
    "BlockTimes",
    "NetworkProfile",
    "Profile",
    "RateResult",
    "Samples",
    "load_network_profile",
    "load_profile",
    "profile_bundle",
    "profile_engine",
    "profile_network",
]
