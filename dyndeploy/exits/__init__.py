"""Calibration: when to leave early. Exit thresholds for a budget or an accuracy, and what they are worth."""

from dyndeploy.data import DIGITS
from dyndeploy.exits.bundle import HeldOutImages, calibrate_bundle, score_images, store_thresholds
from dyndeploy.exits.calibrate import METHODS, SEARCH, SWEEP, Calibration, DominatedExit, HeldOut, calibrate
from dyndeploy.exits.costs import CostsOf, counted_costs, measured_costs, profiled_costs
from dyndeploy.exits.frontier import Constraint, Frontier, find_frontier
from dyndeploy.exits.result import KIND, CalibrationResult, load_calibration
from dyndeploy.exits.scores import (
    MACS,
    MS,
    NEVER,
    ExitCosts,
    ExitScores,
    OperatingPoint,
    operate,
    taken_exits,
)
from dyndeploy.exits.sweep import exit_shares, official_sweep, thresholds_for_shares

__all__ = [
    "DIGITS",
    "KIND",
    "MACS",
    "METHODS",
    "MS",
    "NEVER",
    "SEARCH",
    "SWEEP",
    "Calibration",
    "CalibrationResult",
    "Constraint",
    "CostsOf",
    "DominatedExit",
    "ExitCosts",
    "ExitScores",
    "Frontier",
    "HeldOut",
    "HeldOutImages",
    "OperatingPoint",
    "calibrate",
    "calibrate_bundle",
    "counted_costs",
    "exit_shares",
    "find_frontier",
    "load_calibration",
    "measured_costs",
    "official_sweep",
    "operate",
    "profiled_costs",
    "score_images",
    "store_thresholds",
    "taken_exits",
    "thresholds_for_shares",
]
