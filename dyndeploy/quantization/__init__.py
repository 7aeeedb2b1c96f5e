"""Quantisation: scales of activations from what a network really computes, and which blocks compute in 8 bits."""

from dyndeploy.quantization.graph import quantize_model, runtime_integers, standard_layers
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
    "METHODS",
    "SCHEMA",
    "BlockSensitivity",
    "CalibrationTable",
    "Histogram",
    "Sensitivity",
    "TensorScale",
    "quantize_model",
    "quantize_twin",
    "runtime_integers",
    "standard_layers",
    "weights_sha256",
]
