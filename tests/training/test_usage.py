"""Usage losses of whole networks, from their decisions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dyndeploy.blocks import Tape
from dyndeploy.errors import UsageError
from dyndeploy.nets import create_model
from dyndeploy.training import Recipe, load_recipe, train
from dyndeploy.training.recipe import UsageRecipe, UsageTermsRecipe
from dyndeploy.training.usage import usage_losses

ALL = {"token_with_mlp": True, "head": True, "layer": True}


def vit(**changes: Any) -> Recipe:
    content: dict[str, Any] = {
        "name": "vit",
        "description": "For tests.",
        "model": {"name": "ada_vit_small", "options": {**ALL, "img_size": 8 * 2}, "input_size": [16, 16]},
        "data": {"dataset": "digits"},
        "epochs": 1,
        "batch_size": 240,
        "optimizer": {"name": "adamw", "lr": 0.001},
        "seed": 5,
    }
    return Recipe.from_dict(content | changes)


def test_losses_are_those_of_the_networks_decisions() -> None:
    torch.manual_seed(0)
    network = create_model("ada_vit_small", **ALL).train()
    with Tape(network) as tape:
        result = network(torch.randn(6, 3, 32, 32))
    recipe = UsageRecipe(
        UsageTermsRecipe(target=0.4), UsageTermsRecipe(target=0.3, weight=1.0), UsageTermsRecipe(target=0.2)
    )
    found = usage_losses(recipe, tape, "it")
    assert list(found) == ["token", "head", "layer"]
    assert found["token"].loss.item() == pytest.approx((result.token.mean().item() - 0.4) ** 2, abs=1e-6)
    assert found["layer"].loss.item() == pytest.approx(abs(result.layer.mean().item() - 0.2), abs=1e-6)
    active = (result.layer.sum(2, keepdim=True) > 0).expand_as(result.head).float()
    share = (result.head * active).sum() / active.sum()
    assert found["head"].loss.item() == pytest.approx(abs(share.item() - 0.3), abs=1e-5)
    assert [loss.weight for loss in found.values()] == [2.0, 1.0, 2.0]
    sum(loss.loss for loss in found.values()).backward()
    for name, parameter in network.named_parameters():
        if "_select." in name:
            assert parameter.grad is not None and float(parameter.grad.abs().sum()) > 0, name


def test_training_is_told_what_the_decisions_cost(tmp_path: Any) -> None:
    usage = {"token": {"target": 0.7}, "head": {"target": 0.6, "entropy": 0.1}, "layer": {"target": 0.9}}
    result = train(vit(usage=usage, sparsity={"target": 1.0, "weight": 0.0}), tmp_path)
    record = result.history[-1].training
    for kind in usage:
        assert 0 <= record[f"share.{kind}"] <= 1
        assert f"usage.{kind}" in record


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"usage": {}}, "no kind of decision"),
        ({"usage": {"token": {"target": 1.5}}}, "usage.token.target"),
        ({"usage": {"head": {"weight": -1.0}}}, "usage.head.weight"),
        ({"usage": {"tokens": {}}}, "tokens"),
        ({"usage": {"token": {}}, "model": {"name": "ada_vit_small"}}, "has no gates"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_sections(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        vit(**changes)


def test_a_kind_that_the_network_lacks_is_named(tmp_path: Any) -> None:
    model = {"name": "ada_vit_small", "options": {"layer": True}}
    with pytest.raises(
        UsageError, match=r"usage.head: ada_vit_small has no gates of that kind \(it decides on layer\)"
    ):
        train(vit(usage={"head": {}}, model=model), tmp_path)


def test_published_recipes_hold_what_the_code_of_the_paper_does() -> None:
    for name in ("ada-deit-small", "ada-t2t-vit-19"):
        recipe = load_recipe(name)
        assert recipe.sparsity is not None and recipe.sparsity.weight == 0
        assert recipe.usage == UsageRecipe(*[UsageTermsRecipe(0.5, 2.0)] * 3)
        assert (recipe.optimizer.name, recipe.optimizer.lr, recipe.optimizer.weight_decay) == ("adamw", 5e-4, 0.05)
        assert recipe.temperature is not None and (recipe.temperature.start, recipe.temperature.end) == (5.0, 5.0)
        assert recipe.ema is not None and recipe.ema.decay == 0.99996
        assert recipe.mixing is not None and recipe.label_smoothing == 0.1
        assert not recipe.model.options["consistent"]
