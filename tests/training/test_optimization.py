from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from dyndeploy.errors import UsageError
from dyndeploy.nets import create_model
from dyndeploy.training.optimization import build_optimizer, clip_gradients, parameter_groups, set_rates
from dyndeploy.training.recipe import LayerRecipe, OptimizerRecipe
from dyndeploy.training.schedules import warmed_up_cosine


def on_meta(name: str, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, **options)


@pytest.mark.parametrize(
    ("name", "decayed", "others"),
    [
        # The counts of the reference code's optimizer: tensors, elements.
        ("reg800m_perceiver_t128", (270, 21_700_480), (375, 97_880)),
        ("resnet50_0375_perceiver_t128", (230, 20_200_632), (338, 82_704)),
        ("mobilenetV3_0x75_perceiver_t128", (277, 9_239_368), (384, 59_672)),
    ],
)
def test_dyn_perceivers_decay_as_in_the_reference_code(
    name: str, decayed: tuple[int, int], others: tuple[int, int]
) -> None:
    groups = parameter_groups(on_meta(name), OptimizerRecipe(1e-3, "adamw", decay="matrices"))
    counts = {g["decay_mult"]: (len(g["params"]), sum(p.numel() for p in g["params"])) for g in groups}
    assert counts == {1.0: decayed, 0.0: others}


def test_laudnet_decays_everything_at_one_rate() -> None:
    model = on_meta("laud_resnet50")
    (group,) = parameter_groups(model, OptimizerRecipe(0.1))
    assert group["names"] == [name for name, _ in model.named_parameters()]
    assert (group["lr_mult"], group["decay_mult"]) == (1.0, 1.0)


def test_settings_of_layers_reach_the_update() -> None:
    torch.manual_seed(0)
    model = create_model("laud_resnet14_small", width_mult=0.1)
    recipe = OptimizerRecipe(
        0.5,
        weight_decay=0.25,
        layers={"*.masker_spatial.*": LayerRecipe(lr_mult=0.1), "*.bias": LayerRecipe(weight_decay_mult=0.0)},
    )
    optimizer = build_optimizer(model, recipe)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    set_rates(optimizer, recipe, 0, per_epoch=1, epochs=1)
    optimizer.step()
    for name, value in model.named_parameters():
        # The first pattern counts: biases of maskers decay.
        masker = ".masker_spatial." in name
        lr, decay = 0.5 * (0.1 if masker else 1), 0.25 if masker or not name.endswith(".bias") else 0.0
        # Nesterov's first step: gradient + 0.9 * gradient.
        expected = before[name] - lr * 1.9 * (1 + decay * before[name])
        torch.testing.assert_close(value.detach(), expected)


@pytest.mark.parametrize("pattern", ["*.maskers.*", "layer1.*.masker_spatial.*"])
def test_patterns_that_fit_nothing_are_named(pattern: str) -> None:
    layers = {"*.masker_spatial.*": LayerRecipe(lr_mult=0.1), pattern: LayerRecipe()}
    with pytest.raises(UsageError, match=r"fits no parameter, or an earlier one.*The parameters are conv1\.weight"):
        parameter_groups(on_meta("laud_resnet14_small"), OptimizerRecipe(0.1, layers=layers))


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    (group,) = parameter_groups(model, OptimizerRecipe(0.1))
    assert group["names"] == ["weight"]


def test_warm_up_equals_the_reference_codes_schedule() -> None:
    # numpy.linspace(0, 1e-3, 20) before min + (peak - min) * (1 + cos(pi * j / 80)) / 2, j from 0.
    values = [warmed_up_cosine(i, 100, 20, 1e-3, 1e-6) for i in range(100)]
    expected = torch.linspace(0, 1e-3, 20, dtype=torch.float64).tolist()
    expected += [1e-6 + 0.5 * (1e-3 - 1e-6) * (1 + math.cos(math.pi * j / 80)) for j in range(80)]
    assert values == pytest.approx(expected, abs=1e-15)
    # Without a warm-up: LAUDNet's cosine.
    assert [warmed_up_cosine(i, 4, 0, 0.08, 0.0) for i in range(4)] == pytest.approx(
        [0.08 * 0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4)]
    )
    assert warmed_up_cosine(0, 10, 1, 1.0, 0.0) == 0.0


def test_rates_follow_the_run() -> None:
    recipe = OptimizerRecipe(
        0.1, "adamw", weight_decay=0.05, weight_decay_end=0.5, decay="matrices", lr_end=0.01, warmup_epochs=1
    )
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(model, recipe)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert set_rates(optimizer, recipe, 3, per_epoch=4, epochs=3) == pytest.approx(0.1)
    # Half of the cosine: iterations 4 to 11.
    assert set_rates(optimizer, recipe, 8, per_epoch=4, epochs=3) == pytest.approx((0.1 + 0.01) / 2)
    decays = {group["names"][0]: group["weight_decay"] for group in optimizer.param_groups}
    halfway = 0.5 + 0.5 * (0.05 - 0.5) * (1 + math.cos(math.pi * 8 / 12))
    assert decays == {"weight": pytest.approx(halfway), "bias": 0.0}


def test_clipping_takes_the_norm_of_all_gradients() -> None:
    parameters = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    for parameter, gradient in zip(parameters, (3.0, 4.0), strict=True):
        parameter.grad = torch.tensor([gradient])
    clip_gradients(parameters, None)
    assert [p.grad.item() for p in parameters if p.grad is not None] == [3.0, 4.0]
    clip_gradients(parameters, 2.5)
    assert [p.grad.item() for p in parameters if p.grad is not None] == pytest.approx([1.5, 2.0], rel=1e-5)
