"""Recipes small enough to be trained many times in a test."""

from __future__ import annotations

from typing import Any

from dyndeploy.training import Recipe


def tiny(**changes: Any) -> Recipe:
    """A network of width 0.1 on 8x8 digits: about a second per epoch on one core."""
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
