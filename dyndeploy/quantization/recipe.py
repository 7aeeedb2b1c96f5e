"""Calibration recipes: which images, how many of them, and how scales are found, as YAML that lies in ``calib/``."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dyndeploy import files
from dyndeploy.errors import InputError
from dyndeploy.fields import Document, Field
from dyndeploy.quantization.scales import PERCENTILE
from dyndeploy.quantization.table import METHODS, WEIGHT_BITS

IMAGES = 128
"""Images that a network is calibrated on unless another number is given."""
SUFFIXES = (".yaml", ".yml")
_KEYS = (
    "network", "options", "data", "images", "seed", "method", "percentile", "weight_bits", "per_channel",
    "max_accuracy_drop", "max_output_error", "description",
)  # fmt: skip


@dataclass(frozen=True)
class CalibrationRecipe:
    """How a network is calibrated.

    Attributes:
        network: Registered name.
        options: Of the network, as for export; what a checkpoint remembers need not stand here.
        data: Which images, in words; ``"digits"`` are scikit-learn's and are read without a folder.
        images: How many are drawn.
        seed: Decides which.
        method: How scales are found.
        percentile: Of the method ``percentile``.
        weight_bits: 7 or 8.
        per_channel: Whether weights of standard layers have a scale per output channel.
        max_accuracy_drop: Of a mixed plan; None: every block is quantised.
        max_output_error: Of a mixed plan; None: every block is quantised.
        description: One sentence.
    """

    network: str
    options: dict[str, Any] = field(default_factory=dict)
    data: str = ""
    images: int = IMAGES
    seed: int = 0
    method: str = "mse"
    percentile: float = PERCENTILE
    weight_bits: int = 7
    per_channel: bool = True
    max_accuracy_drop: float | None = None
    max_output_error: float | None = None
    description: str = ""


def load_calibration_recipe(path: str | os.PathLike[str]) -> CalibrationRecipe:
    """Read a recipe.

    Raises:
        InputError: The file is missing, no YAML, or a key is unknown, missing or malformed; the message names it.
    """
    try:
        content = yaml.safe_load(files.read_text(path))
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    document = Document(f"The calibration recipe {Path(path).name}", "See calib/README.md.", InputError)
    root = document.root(content)
    root.require(isinstance(content, dict), "an object")
    unknown = sorted(str(key) for key in content if key not in _KEYS)
    if unknown:
        raise document.complaint(f"{', '.join(unknown)} is unknown; a recipe has {', '.join(_KEYS)}")
    bits = root.get("weight_bits")
    bits.require(bits.value in (None, *WEIGHT_BITS), "7 or 8")

    def share(name: str) -> float | None:
        return root.get(name).optional(lambda item: item.number(0, 1))

    return CalibrationRecipe(
        network=root["network"].text(),
        options=root.get("options").optional(Field.facts) or {},
        data=root.get("data").optional(Field.text) or "",
        images=root.get("images").optional(Field.count) or IMAGES,
        seed=root.get("seed").optional(lambda item: item.count(0)) or 0,
        method=root.get("method").optional(lambda item: item.one_of(*METHODS)) or "mse",
        percentile=root.get("percentile").optional(lambda item: item.number(50, 100)) or PERCENTILE,
        weight_bits=bits.value or 7,
        per_channel=root.get("per_channel").value is None or root["per_channel"].boolean(),
        max_accuracy_drop=share("max_accuracy_drop"),
        max_output_error=share("max_output_error"),
        description=root.get("description").optional(Field.text) or "",
    )
