from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import dyndeploy.nets as nets
from dyndeploy.errors import UsageError
from dyndeploy.nets import Preprocessing, create_model, model_info, model_names, registry

from .helpers import MODES

BLOCKS = {"laud_resnet50": 16, "laud_resnet101": 33, "laud_resnet14_small": 4, "laud_resnet26_small": 8}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_names_are_sorted_and_complete() -> None:
    assert model_names("laud_resnet") == tuple(sorted(BLOCKS))
    assert list(model_names()) == sorted(model_names())
    assert set(model_names()) == {
        name
        for family in ("laud_resnet", "laud_regnet", "dyn_perceiver", "ada_vit", "detector")
        for name in model_names(family)
    }


@pytest.mark.parametrize("name", model_names())
def test_information_is_complete(name: str) -> None:
    info = model_info(name)
    assert info.name == name
    assert info.description.endswith(".")
    assert info.preprocessing.resize >= min(info.input_size)
    assert info.entry_point.__name__ == name
    assert info.config_type(**info.defaults)
    with pytest.raises(TypeError):
        info.defaults["num_classes"] = 2  # type: ignore[index]


@pytest.mark.parametrize("name", model_names("laud_resnet"))
@pytest.mark.parametrize("mode", MODES)
def test_every_network_runs_in_every_mode(name: str, mode: str) -> None:
    info = model_info(name)
    with torch.device("meta"):
        model = create_model(name, mode=mode)
        assert model.training
        out = model.eval()(torch.zeros(2, 3, *info.input_size))
    assert out.logits.shape == (2, info.defaults["num_classes"])
    assert len(out.masks) == len(out.flops_ratio) == BLOCKS[name]
    assert [len(stage) for stage in out.densities.conv1] == list(model.architecture.blocks)
    assert [m.name for m in out.masks] == [n for n, _ in model.named_blocks()]
    assert isinstance(out.densities.channel, list)
    assert out.flops.shape == ()
    for masks, (_, block) in zip(out.masks, model.named_blocks(), strict=True):
        assert block.mode == mode
        assert (masks.spatial is not None) == (mode in ("spatial", "layer", "both"))
        assert (masks.channel is not None) == (mode in ("channel", "both"))
    with torch.device("meta"):
        again = create_model(name, **model.config.as_dict())
    assert again.config == model.config


def test_default_sizes_give_the_default_patch_grids() -> None:
    for name, sides in (("laud_resnet50", (14, 7, 7, 7)), ("laud_resnet14_small", (8, 4, 4, 4))):
        info = model_info(name)
        with torch.device("meta"):
            out = create_model(name, mode="spatial").eval()(torch.zeros(1, 3, *info.input_size))
        seen = {masks.name.split(".")[0]: tuple(masks.spatial.shape[2:]) for masks in out.masks}
        assert seen == {f"layer{i + 1}": (side, side) for i, side in enumerate(sides)}


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"Unknown model 'laud_resnet5'\. Did you mean 'laud_resnet50'"):
        create_model("laud_resnet5")
    with pytest.raises(UsageError, match=r"Did you mean 'granularity'.*Known: channel_granularity"):
        create_model("laud_resnet50", granularty=3)
    with pytest.raises(UsageError, match="Unknown model"):
        model_info("resnet")


def test_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_MODELS", {})

    @dataclass(frozen=True)
    class Config:
        size: int = 3
        depth: int = 1

    register = nets.register_model(
        family="tests",
        config_type=Config,
        input_size=(8, 8),
        preprocessing=Preprocessing((0, 0, 0), (1, 1, 1), 8),
        defaults={"depth": 2},
    )

    def tiny(config: Any) -> nn.Module:
        """A tiny network."""
        return nn.Linear(config.size, config.depth)

    assert register(tiny) is tiny
    assert model_names() == ("tiny",)
    assert dict(model_info("tiny").defaults) == {"size": 3, "depth": 2}
    assert model_info("tiny").description == "A tiny network."
    assert create_model("tiny", size=5).weight.shape == (2, 5)
    with pytest.raises(ValueError, match="already registered"):
        register(tiny)


def test_options_need_defaults() -> None:
    @dataclass
    class Config:
        size: int

    with pytest.raises(TypeError, match="size"):
        nets.register_model(
            family="tests",
            config_type=Config,
            input_size=(8, 8),
            preprocessing=Preprocessing((0, 0, 0), (1, 1, 1), 8),
        )
