"""Watching what runs: rates, exits, latency, power and temperature over time, and drift against the calibration."""

from dyndeploy.watching.drift import Calibration, Comparison, Drift
from dyndeploy.watching.reading import Counters, Histogram, Reading, read_line
from dyndeploy.watching.sources import Source, open_source
from dyndeploy.watching.watch import Follower, Status, follow

__all__ = [
    "Calibration",
    "Comparison",
    "Counters",
    "Drift",
    "Follower",
    "Histogram",
    "Reading",
    "Source",
    "Status",
    "follow",
    "open_source",
    "read_line",
]
