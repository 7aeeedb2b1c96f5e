"""Weights that training starts from: of another number of classes, without a classifier, of a static backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dyndeploy.errors import CheckpointError
from dyndeploy.nets import create_model, load_checkpoint, save_checkpoint
from tests.nets.helpers import build, narrow_resnet50

SHORT = {"depth_factor": (1, 0, 0, 0), "sa_widening_factor": 1}


def saved(path: Path, weights: dict[str, Any]) -> Path:
    torch.save(weights, path)
    return path


def state(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


@pytest.mark.parametrize("removed", [False, True])
def test_a_classifier_of_other_classes_stays_fresh(tmp_path: Path, removed: bool) -> None:
    source, target = narrow_resnet50(mode="static", num_classes=20), narrow_resnet50(mode="layer", num_classes=5)
    fresh = {key: value for key, value in state(target).items() if key.startswith("fc.")}
    weights = {key: value for key, value in source.state_dict().items() if not (removed and key.startswith("fc."))}
    path = saved(tmp_path / "resnet50.pth", weights)
    with pytest.raises(CheckpointError, match=r"fc\.weight|num_classes=20"):
        load_checkpoint(target, path)
    report = load_checkpoint(target, path, classes=5)
    assert report.classes == (None if removed else 20, 5)
    assert set(report.fresh) == {"fc.weight", "fc.bias"}
    words = "It has no classifier; a fresh" if removed else "classifier of 20 classes left out; a fresh"
    assert f"{words} one for 5." in report.summary()
    assert torch.equal(target.layer4[2].conv3.weight, source.layer4[2].conv3.weight)
    assert all(torch.equal(target.state_dict()[key], value) for key, value in fresh.items())


def test_a_classifier_that_fits_is_kept(tmp_path: Path) -> None:
    source, target = narrow_resnet50(mode="static"), narrow_resnet50(mode="spatial")
    report = load_checkpoint(target, saved(tmp_path / "a.pth", source.state_dict()), classes=7)
    assert report.classes is None and report.fresh == ()
    assert torch.equal(target.fc.weight, source.fc.weight)


def test_safetensors_start_it_too(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    source, target = narrow_resnet50(mode="static", num_classes=20), narrow_resnet50(num_classes=5)
    safetensors.save_file(source.state_dict(), tmp_path / "a.safetensors")
    assert load_checkpoint(target, tmp_path / "a.safetensors", classes=5).classes == (20, 5)


def test_an_incomplete_classifier_is_damage(tmp_path: Path) -> None:
    weights = state(narrow_resnet50(mode="static"))
    del weights["fc.bias"]
    with pytest.raises(CheckpointError, match=r"lacks fc\.bias"):
        load_checkpoint(narrow_resnet50(), saved(tmp_path / "a.pth", weights), classes=7)


def test_all_exits_get_fresh_classifiers(tmp_path: Path) -> None:
    name = "resnet10_small_perceiver_t32"
    source, target = create_model(name, num_classes=9, **SHORT), create_model(name, num_classes=4, **SHORT)
    save_checkpoint(source, tmp_path / "a.pt")
    report = load_checkpoint(target, tmp_path / "a.pt", classes=4)
    assert report.classes == (9, 4)
    heads = {"early_classifier3", "classifier_att", "classifier_cnn", "classifier_merge", "isc3", "isc4"}
    assert {key.split(".")[0] for key in report.fresh} == heads
    assert torch.equal(target.classifier_merge[0].weight, source.classifier_merge[0].weight)
    assert torch.equal(target.latent, source.latent)


# Names as torchvision publishes them, first, last and the oddest; how many entries its files have.
TORCHVISION = {
    "resnet18_perceiver_t128": (["conv1.weight", "layer2.0.downsample.1.bias", "layer4.1.bn2.weight", "fc.bias"], 122),
    "reg400m_perceiver_t32": (
        ["stem.0.weight", "trunk_output.block2.block2-0.proj.1.bias", "trunk_output.block4.block4-5.f.se.fc2.bias",
         "fc.weight"], None),
    "mobilenetV3_0x5_perceiver_t128": (
        ["features.0.0.weight", "features.4.block.2.fc1.weight", "features.16.1.running_var", "classifier.0.weight",
         "classifier.3.bias"], 312),
}  # fmt: skip


@pytest.mark.parametrize("name", TORCHVISION)
def test_a_static_backbone_starts_a_dyn_perceiver(tmp_path: Path, name: str) -> None:
    names, count = TORCHVISION[name]
    source = create_model(name, num_classes=6, **SHORT)
    rules = source.checkpoint_rules()  # type: ignore[operator]
    own = source.state_dict()
    weights = {there: own[here] for there, here in rules.start_names().items()}
    assert set(names) <= set(weights)
    assert count in (None, len(weights))
    target = create_model(name, num_classes=3, **SHORT)
    before = state(target)
    path = saved(tmp_path / "static.pth", weights)
    with pytest.raises(CheckpointError):
        load_checkpoint(target, path)
    report = load_checkpoint(target, path, classes=3)
    assert report.classes == (6, 3)
    convolutions = {here for here in own if here.startswith("cnn_")}
    after = target.state_dict()
    assert all(torch.equal(after[key], own[key]) for key in convolutions)
    assert torch.equal(after["latent"], before["latent"])
    assert "latent" in report.missing and not convolutions & set(report.missing)
    weights.pop(names[0])
    with pytest.raises(CheckpointError, match="lacks cnn_stem"):
        load_checkpoint(target, saved(path, weights), classes=3)


class Own(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3)
        self.hidden = nn.Linear(8, 6)
        self.head = nn.Linear(6, classes)


@pytest.mark.parametrize("removed", [False, True])
def test_a_users_network_that_says_nothing(tmp_path: Path, removed: bool) -> None:
    source, target = Own(12), Own(4)
    weights = {key: value for key, value in source.state_dict().items() if not (removed and key.startswith("head"))}
    report = load_checkpoint(target, saved(tmp_path / "a.pt", weights), classes=4)
    assert report.classes == (None if removed else 12, 4) and set(report.fresh) == {"head.weight", "head.bias"}
    assert torch.equal(target.hidden.weight, source.hidden.weight)
    del weights["hidden.weight"]
    with pytest.raises(CheckpointError, match=r"lacks hidden\.weight"):
        load_checkpoint(target, saved(tmp_path / "b.pt", weights), classes=4)


@pytest.mark.parametrize(
    ("mode", "untold"),
    [
        ("spatial", ("mode", "granularity")),
        ("layer", ("mode",)),
        ("both", ("granularity",)),
        ("channel", ()),
        (["layer", "spatial", "channel", "static"], ("mode", "granularity")),
    ],
)
def test_what_official_files_do_not_tell(tmp_path: Path, mode: Any, untold: tuple[str, ...]) -> None:
    network = narrow_resnet50(mode=mode)
    path = saved(tmp_path / "checkpoint.pth.tar", {"state_dict": network.state_dict(), "hyper_set": "100eps"})
    assert load_checkpoint(network, path).untold == untold
    save_checkpoint(network, tmp_path / "own.pt")
    assert load_checkpoint(network, tmp_path / "own.pt").untold == ()
    static = build("laud_resnet50", width_mult=0.125, num_classes=7, mode="static")
    assert load_checkpoint(network, saved(path, static.state_dict())).untold == ()


def test_heads_of_a_foreign_dyn_perceiver_are_said_to_be_assumed(tmp_path: Path) -> None:
    network = create_model("resnet10_small_perceiver_t32", **SHORT)
    assert load_checkpoint(network, saved(tmp_path / "a.pt", network.state_dict())).assumed == ("num_sa_heads",)
    save_checkpoint(network, tmp_path / "own.pt")
    assert load_checkpoint(network, tmp_path / "own.pt").assumed == ()
