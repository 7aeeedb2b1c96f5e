"""Fine-tuning for INT8: where the scales come from, what a checkpoint keeps of them, and the table that deploys them."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dyndeploy.blocks import Gate
from dyndeploy.blocks.tape import Tape
from dyndeploy.bundle import Bundle
from dyndeploy.errors import UsageError
from dyndeploy.export import ExportSettings, export_model
from dyndeploy.graphs.inspect import all_graphs, group_of
from dyndeploy.quantization import INT8, CalibrationTable
from dyndeploy.training.batches import Dataset
from dyndeploy.training.fake_quantization import FakeQuantization, StandardLayer
from dyndeploy.training.processes import Processes
from dyndeploy.training.recipe import QuantizationRecipe, Recipe

CALIBRATION = "calibration.json"
"""File of a training run's folder: the scales that were trained, as a calibration table."""


@dataclass(frozen=True)
class QuantizedResult:
    """What a run for INT8 ends with: the weights that export takes, on the held-out images.

    Attributes:
        calibration: The table with the scales that were trained.
        accuracy_fp32: Top-1 of these weights in floating point; None where the first output is no logits.
        accuracy_int8: The same in integers, as training simulates them.
        mask_bits: Mask bits of all held-out images.
        mask_flips: How many of them differ between both.
    """

    calibration: Path
    accuracy_fp32: float | None
    accuracy_int8: float | None
    mask_bits: int
    mask_flips: int

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {**vars(self), "calibration": str(self.calibration)}


def freeze_gates(network: nn.Module) -> None:
    """Let every gate keep its weights and decide as in evaluation.

    What the network learns under is then what deploys: a sampled mask would show it values that no bundle computes.
    """
    for module in network.modules():
        if isinstance(module, Gate):
            module.eval().requires_grad_(False)
