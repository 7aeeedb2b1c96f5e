"""Latency prediction: kernels priced by device models, and the LAUDNet predictor as the reference."""

from dyndeploy.prediction.architectures import static_graph, static_names
from dyndeploy.prediction.device_model import AnalyticalModel, DeviceModel
from dyndeploy.prediction.estimate import Configuration, Estimator, known_devices, load_device_model, predict
from dyndeploy.prediction.kernels import Graph, GraphWalker, Kernel, walk
from dyndeploy.prediction.laudnet.blocks import MODES, Rates, RateSamples
from dyndeploy.prediction.laudnet.fixes import Fix
from dyndeploy.prediction.laudnet.network_spec import (
    BlockSpec,
    MaskerSpec,
    NetworkSpec,
    StemSpec,
    network_names,
    network_spec,
)
from dyndeploy.prediction.laudnet.operators import Operator, operator_kinds
from dyndeploy.prediction.laudnet.predictor import Predictor, predict_bundle, predict_network
from dyndeploy.prediction.results import BlockPrediction, Coverage, OperatorPrediction, Prediction

__all__ = [
    "MODES",
    "AnalyticalModel",
    "BlockPrediction",
    "BlockSpec",
    "Configuration",
    "Coverage",
    "DeviceModel",
    "Estimator",
    "Fix",
    "Graph",
    "GraphWalker",
    "Kernel",
    "MaskerSpec",
    "NetworkSpec",
    "Operator",
    "OperatorPrediction",
    "Prediction",
    "Predictor",
    "RateSamples",
    "Rates",
    "StemSpec",
    "known_devices",
    "load_device_model",
    "network_names",
    "network_spec",
    "operator_kinds",
    "predict",
    "predict_bundle",
    "predict_network",
    "static_graph",
    "static_names",
    "walk",
]
