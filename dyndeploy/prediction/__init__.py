"""Latency prediction: the LAUDNet predictor, as it was published and with its faults repaired."""

from dyndeploy.network_spec import (
    BlockSpec,
    MaskerSpec,
    NetworkSpec,
    StemSpec,
    network_names,
    network_spec,
)
from dyndeploy.prediction.blocks import MODES, Rates
from dyndeploy.prediction.fixes import Fix
from dyndeploy.prediction.operators import Operator, operator_kinds
from dyndeploy.prediction.predictor import Predictor, predict_bundle, predict_network
from dyndeploy.prediction.results import BlockPrediction, Coverage, OperatorPrediction, Prediction

__all__ = [
    "MODES",
    "BlockPrediction",
    "BlockSpec",
    "Coverage",
    "Fix",
    "MaskerSpec",
    "NetworkSpec",
    "Operator",
    "OperatorPrediction",
    "Prediction",
    "Predictor",
    "Rates",
    "StemSpec",
    "network_names",
    "network_spec",
    "operator_kinds",
    "predict_bundle",
    "predict_network",
]
