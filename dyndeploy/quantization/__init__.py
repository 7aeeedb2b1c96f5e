"""Quantisation: scales of activations from what a network really computes, and which blocks compute in 8 bits."""

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
    "weights_sha256",
]
