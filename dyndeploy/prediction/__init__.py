"""Latency prediction: the kernels of graphs, priced by device models.

The reproduction of the LAUDNet predictor stands apart, in :mod:`dyndeploy.prediction.laudnet`.
"""

from dyndeploy.prediction.architectures import static_graph, static_names
from dyndeploy.prediction.device_model import AnalyticalModel, DeviceModel
from dyndeploy.prediction.estimate import (
    Configuration,
    Estimator,
    bundle_nodes,
    bundle_record,
    known_devices,
    load_device_model,
    predict,
    recorded_nodes,
)
from dyndeploy.prediction.kernels import Graph, GraphWalker, Kernel, walk
from dyndeploy.prediction.nodes import Node, NodeGraph, read_nodes
from dyndeploy.prediction.rates import Rates, RateSamples
from dyndeploy.prediction.results import BlockPrediction, Coverage, ExitPrediction, OperatorPrediction, Prediction
from dyndeploy.prediction.staged import StagedNodes, exit_shares

__all__ = [
    "AnalyticalModel",
    "BlockPrediction",
    "Configuration",
    "Coverage",
    "DeviceModel",
    "Estimator",
    "ExitPrediction",
    "Graph",
    "GraphWalker",
    "Kernel",
    "Node",
    "NodeGraph",
    "OperatorPrediction",
    "Prediction",
    "RateSamples",
    "Rates",
    "StagedNodes",
    "bundle_nodes",
    "bundle_record",
    "exit_shares",
    "known_devices",
    "load_device_model",
    "predict",
    "read_nodes",
    "recorded_nodes",
    "static_graph",
    "static_names",
    "walk",
]
