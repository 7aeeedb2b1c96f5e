"""Recipes small enough to be trained many times in a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dyndeploy.training import Recipe

OWN = Path(__file__).with_name("own_networks.py")


def own(name: str, options: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    """A network of tests/training/own_networks.py on 8x8 digits."""
    content: dict[str, Any] = {
        "name": "own",
        "description": "For tests.",
        "model": {"name": name, "options": options or {}, "input_size": [8, 8], "import": str(OWN)},
        "data": {"dataset": "digits"},
        "epochs": 1,
        "batch_size": 240,
        "optimizer": {"lr": 0.05},
        "seed": 5,
    }
    return Recipe.from_dict(content | changes)


def tiny(**changes: Any) -> Recipe:
    """A LAUD-ResNet of width 0.1 on 8x8 digits: about a second per epoch on one core."""
    content: dict[str, Any] = {
        "name": "tiny",
        "description": "For tests.",
        "model": {
            "name": "laud_resnet14_small",
            "options": {"mode": "spatial", "granularity": [2, 2, 1, 1], "width_mult": 0.1},
            "input_size": [8, 8],
        },
        "data": {"dataset": "digits"},
        "epochs": 3,
        "batch_size": 240,
        "optimizer": {"lr": 0.05},
        "seed": 5,
    }
    return Recipe.from_dict(content | changes)


def tiny_perceiver(**changes: Any) -> Recipe:
    """A Dyn-Perceiver with one stage of self-attention on 8x8 digits: a second per epoch on one core."""
    content: dict[str, Any] = {
        "name": "tiny-perceiver",
        "description": "For tests.",
        "model": {
            "name": "resnet10_small_perceiver_t32",
            "options": {"depth_factor": [1, 0, 0, 0], "sa_widening_factor": 1},
            "input_size": [8, 8],
        },
        "data": {"dataset": "digits"},
        "epochs": 2,
        "batch_size": 240,
        "optimizer": {"name": "adamw", "lr": 0.004, "weight_decay": 0.05, "decay": "matrices"},
        "distillation": {"weight": 0.5, "temperature": 1.0},
        "seed": 5,
    }
    return Recipe.from_dict(content | changes)


def mixed_channels(**changes: Any) -> Recipe:
    """Every kind of mask, pairs of mixed images, a moving average and clipping: all that a split could change."""
    model = {
        "name": "laud_resnet14_small",
        "options": {"mode": "both", "granularity": [2, 2, 1, 1], "channel_granularity": 1, "width_mult": 0.1},
        "input_size": [8, 8],
    }
    return tiny(
        model=model,
        epochs=2,
        mixing={},
        label_smoothing=0.1,
        ema={"decay": 0.9},
        optimizer={"lr": 0.05, "clip_norm": 1.0},
        **changes,
    )
