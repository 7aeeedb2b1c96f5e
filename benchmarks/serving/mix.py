"""What all figures of serving are of: the network, the mix of exits, the largest batch."""

from __future__ import annotations

from pathlib import Path

NETWORK = "resnet50_0375_perceiver_t128"
MIX = (60, 20, 10, 10)
"""Percent of the images that leave at each exit."""
BATCH = 8
RESULTS = Path(__file__).parents[1] / "results"
