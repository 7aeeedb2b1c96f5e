from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dyndeploy.errors import UsageError
from dyndeploy.nets.backbone import Backbone, make_divisible
from dyndeploy.nets.mobilenet_v3 import mobilenet_v3_large
from dyndeploy.nets.regnet import GENERATORS, StageWidth, regnet, stage_widths, trunk
from dyndeploy.nets.resnet import Architecture, BasicBlock, Bottleneck, StochasticDepth, resnet


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def randomize(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return model.eval()


def features(backbone: Backbone, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = backbone.stem.eval()(x)
        for stage in backbone.stages:
            x = stage.eval()(x)
    return x


def test_regnet_widths_follow_the_published_rule() -> None:
    expected = {
        "regnet_y_400mf": ((48, 104, 208, 440), (1, 3, 6, 6), 8),
        "regnet_y_800mf": ((64, 144, 320, 784), (1, 3, 8, 2), 16),
        "regnet_y_1_6gf": ((48, 120, 336, 888), (2, 6, 17, 2), 24),
        "regnet_y_3_2gf": ((72, 216, 576, 1512), (2, 5, 13, 1), 24),
    }
    for name, (widths, depths, group) in expected.items():
        assert stage_widths(GENERATORS[name]) == tuple(map(StageWidth, depths, widths, (group,) * 4))
    with pytest.raises(UsageError, match="Did you mean 'regnet_y_400mf'"):
        regnet("regnety_400mf")


def test_channels_are_rounded_but_not_cut_by_more_than_a_tenth() -> None:
    assert [make_divisible(value, 8) for value in (1, 12, 18, 54, 138, 150)] == [8, 16, 24, 56, 136, 152]
    assert make_divisible(80, 24) == 72


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean() -> None:
    layer = StochasticDepth(0.25)
    x = torch.ones(4000, 2, 3, 3)
    y = layer(x)
    per_sample = y.flatten(1)
    assert torch.equal(per_sample.amin(1), per_sample.amax(1))
    assert sorted(set(per_sample[:, 0].tolist())) == pytest.approx([0, 4 / 3])
    assert y.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(layer.eval()(x), x)


LARGE = ("regnet_y_8gf", "regnet_y_16gf")
"""Made by the same code as the others: their names and shapes are held, which costs no memory."""


@pytest.mark.vision("torchvision")
@pytest.mark.parametrize("name", LARGE)
def test_large_regnets_have_torchvisions_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    models = importlib.import_module("torchvision.models")
    # On the meta device torchvision cannot work out its widths.
    monkeypatch.setattr(nn.init, "normal_", lambda tensor, *args, **kwargs: tensor)
    monkeypatch.setattr(nn.init, "kaiming_uniform_", lambda tensor, *args, **kwargs: tensor)
    theirs = getattr(models, name)()
    with torch.device("meta"):
        ours = regnet(name)
    for part, source in ((ours.stem, theirs.stem), (trunk(ours), theirs.trunk_output)):
        shapes = [{key: value.shape for key, value in each.state_dict().items()} for each in (part, source)]
        assert shapes[0] == shapes[1]


@pytest.mark.vision("torchvision")
@pytest.mark.parametrize("name", sorted(set(GENERATORS) - set(LARGE)))
def test_regnet_equals_torchvision(name: str) -> None:
    models = importlib.import_module("torchvision.models")
    theirs = randomize(getattr(models, name)())
    ours = regnet(name)
    ours.stem.load_state_dict(theirs.stem.state_dict())
    trunk(ours).load_state_dict(theirs.trunk_output.state_dict())
    x = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        torch.testing.assert_close(features(ours, x), theirs.trunk_output(theirs.stem(x)))


@pytest.mark.vision("torchvision")
@pytest.mark.parametrize("width_mult", [0.5, 0.75, 1.0, 1.25, 1.5, 2.0])
def test_mobilenet_equals_torchvision(width_mult: float) -> None:
    models = importlib.import_module("torchvision.models")
    theirs = randomize(models.mobilenet_v3_large(width_mult=width_mult))
    ours = mobilenet_v3_large(width_mult)
    assert ours.head_channels == theirs.classifier[0].out_features
    starts = (0, 3, 5, 8, 14, 17)
    for part, start, end in zip((ours.stem, *ours.stages), starts, starts[1:], strict=False):
        part.load_state_dict(nn.Sequential(*theirs.features[start:end]).state_dict())
    x = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        torch.testing.assert_close(features(ours, x), theirs.features(x))


def load_resnet(ours: Backbone, theirs: Any) -> None:
    pairs = zip(ours.stem, (theirs.conv1, theirs.bn1), strict=False)
    for part, source in (
        *pairs,
        *zip(ours.stages, (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4), strict=True),
    ):
        part.load_state_dict(source.state_dict())


def resnet_features(theirs: Any, x: Tensor) -> Tensor:
    x = theirs.maxpool(torch.relu(theirs.bn1(theirs.conv1(x))))
    for stage in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
        x = stage(x)
    return x


RESNETS = [
    ("resnet18", BasicBlock, (2, 2, 2, 2)),
    ("resnet34", BasicBlock, (3, 4, 6, 3)),
    ("resnet50", Bottleneck, (3, 4, 6, 3)),
]


@pytest.mark.parametrize(("name", "block", "depths"), RESNETS)
@pytest.mark.vision("torchvision", "timm")
@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_resnet_equals_other_libraries(name: str, block: Any, depths: tuple[int, int, int, int], library: str) -> None:
    models = importlib.import_module("torchvision.models" if library == "torchvision" else "timm.models.resnet")
    theirs = randomize(getattr(models, name)())
    ours = resnet(Architecture(blocks=depths), block)
    load_resnet(ours, theirs)
    x = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        torch.testing.assert_close(features(ours, x), resnet_features(theirs, x))
