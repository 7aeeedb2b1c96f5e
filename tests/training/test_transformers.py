"""Policies of a vision transformer are trained from somebody's own static one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dyndeploy.nets import create_model, load_checkpoint
from dyndeploy.training import Recipe, train
from dyndeploy.training.optimization import parameter_groups


def recipe(options: dict[str, Any], **changes: Any) -> Recipe:
    content: dict[str, Any] = {
        "name": "vit",
        "description": "For tests.",
        "model": {"name": "ada_vit_small", "options": {**options, "img_size": 16}, "input_size": [16, 16]},
        "data": {"dataset": "digits"},
        "epochs": 1,
        "batch_size": 240,
        "optimizer": {"name": "adamw", "lr": 0.001, "weight_decay": 0.05, "decay": "matrices"},
        "seed": 5,
    }
    return Recipe.from_dict(content | changes)


ALL = {"token_with_mlp": True, "head": True, "layer": True, "consistent": True}


def test_policies_start_from_a_static_network_and_learn_from_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    static = train(recipe({}), tmp_path / "static")
    start = recipe(
        ALL,
        distillation={"weight": 0.5, "temperature": 1.0},
        mixing={"mixup": 0.8, "cutmix": 1.0},
        ema={"decay": 0.9},
        temperature={"schedule": "linear", "start": 5.0, "end": 5.0},
        optimizer={
            "name": "adamw",
            "lr": 0.0001,
            "layers": {"*_select.*": {"lr_mult": 20.0}, "cls_token": {"weight_decay_mult": 0.0}},
        },
    ).with_changes(initial_weights=str(static.checkpoint))
    result = train(start, tmp_path / "dynamic")
    assert "start by computing everything" in caplog.text
    record = result.history[0]
    assert record.training["distillation"] > 0
    assert 0.5 < record.held_out["flops_ratio"] <= 1.0 and record.ema
    network = create_model("ada_vit_small", **ALL, img_size=16)
    load_checkpoint(network, result.checkpoint)
    moved = network.blocks[2].head_select.mlp_head
    assert float(moved.weight.detach().abs().max()) > 0 and moved.bias.tolist() != [5.0] * 4


def test_policies_have_learning_rates_of_their_own() -> None:
    network = create_model("ada_vit_small", **ALL)
    settings = recipe(
        ALL,
        optimizer={
            "name": "adamw",
            "lr": 0.001,
            "weight_decay": 0.05,
            "decay": "matrices",
            "layers": {
                "*.token_select.*": {"lr_mult": 2.0},
                "*.head_select.*": {"lr_mult": 3.0},
                "*.layer_select.*": {"lr_mult": 4.0},
                "cls_token": {"weight_decay_mult": 0.0},
            },
        },
    ).optimizer
    found = {name: group for group in parameter_groups(network, settings) for name in group["names"]}
    assert [found[f"blocks.2.{part}.mlp_head.weight"]["lr_mult"] for part in
            ("attn.token_select", "head_select", "layer_select")] == [2.0, 3.0, 4.0]  # fmt: skip
    assert found["cls_token"]["decay_mult"] == 0 and found["blocks.2.norm1.weight"]["decay_mult"] == 0
    assert found["blocks.2.attn.query.weight"]["decay_mult"] == 1
    assert "pos_embed" not in found


def test_the_published_rule_keeps_few_tokens_and_the_consistent_one_those_of_evaluation() -> None:
    torch.manual_seed(0)
    shares = {}
    for consistent in (False, True):
        network = create_model("ada_vit_small", token=True, consistent=consistent).train()
        with torch.no_grad():
            for block in network.blocks:
                block.attn.token_select.mlp_head.weight.zero_()
            masks = network(torch.randn(200, 3, 32, 32)).token[:, :, 1:]
        shares[consistent] = masks.mean().item()
    # sigmoid(-5 ln 1.5) and sigmoid(-ln 1.5): by the published rule, and with noise around evaluation's threshold.
    assert shares[False] == pytest.approx(0.1164, abs=0.01)
    assert shares[True] == pytest.approx(0.4, abs=0.01)
