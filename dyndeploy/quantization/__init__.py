"""Quantisation: scales of activations from what a network really computes, and which blocks compute in 8 bits."""

from dyndeploy.quantization.calibrate import MAX_SATURATION, MIN_IMAGES, TableOptions, calibrate, calibrate_images
from dyndeploy.quantization.graph import quantize_model, runtime_integers, standard_layers
from dyndeploy.quantization.images import CalibrationImages
from dyndeploy.quantization.observers import Observer
from dyndeploy.quantization.points import Points, find_points
from dyndeploy.quantization.scales import PERCENTILE, Found, find_scale
from dyndeploy.quantization.sensitivity import Budget, Comparison, Cost, measure_sensitivity
from dyndeploy.quantization.table import (
    FP32,
    INT8,
    METHODS,
    SCHEMA,
    BlockSensitivity,
    CalibrationTable,
    Histogram,
    Sensitivity,
    TensorScale,
    weights_sha256,
)
from dyndeploy.quantization.twin import quantize_twin

__all__ = [
    "FP32",
    "INT8",
    "MAX_SATURATION",
    "METHODS",
    "MIN_IMAGES",
    "PERCENTILE",
    "SCHEMA",
    "BlockSensitivity",
    "Budget",
    "CalibrationImages",
    "CalibrationTable",
    "Comparison",
    "Cost",
    "Found",
    "Histogram",
    "Observer",
    "Points",
    "Sensitivity",
    "TableOptions",
    "TensorScale",
    "calibrate",
    "calibrate_images",
    "find_points",
    "find_scale",
    "measure_sensitivity",
    "quantize_model",
    "quantize_twin",
    "runtime_integers",
    "standard_layers",
    "weights_sha256",
]
