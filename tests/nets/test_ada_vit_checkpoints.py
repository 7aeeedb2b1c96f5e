"""Files of vision transformers' weights: AdaViT's, timm's, and those that fit nothing."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dyndeploy.errors import CheckpointError
from dyndeploy.export.sources import require_told, weight_notes
from dyndeploy.nets import AdaVit, LoadReport, create_model, load_checkpoint, save_checkpoint

Weights = dict[str, Tensor]
ALL = {"token_with_mlp": True, "head": True, "layer": True}


def build(seed: int = 0, name: str = "ada_vit_small", **options: Any) -> AdaVit:
    torch.manual_seed(seed)
    network = create_model(name, **options)
    assert isinstance(network, AdaVit)
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if key.endswith("bias"):
                parameter.uniform_(-1, 1)
    return network.eval()


def plain(network: AdaVit) -> Weights:
    """The weights as timm has them: no policies, and queries, keys and values in one layer."""
    state = {key: value for key, value in network.state_dict().items() if "_select." not in key}
    found: Weights = {}
    for key, value in state.items():
        if ".query." in key:
            parts = [value, state[key.replace(".query.", ".key.")], state[key.replace(".query.", ".value.")]]
            found[key.replace(".query.", ".qkv.")] = torch.cat(parts)
        elif ".key." not in key and ".value." not in key:
            found[key] = value
    return found


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def load(network: AdaVit, path: Path, **options: Any) -> LoadReport:
    return load_checkpoint(network, path, **options)


def images(count: int = 2, size: int = 32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_savers_files_mean_the_average(tmp_path: Path) -> None:
    average, last = build(1, **ALL), build(2, **ALL)
    content = {
        "epoch": 299,
        "arch": "ada_step_deit_small_patch16_224",
        "state_dict": {f"module.{key}": value for key, value in last.state_dict().items()},
        "state_dict_ema": {f"module.{key}": value for key, value in average.state_dict().items()},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 5e-4, "params": [0]}]},
        "version": 2,
        "args": argparse.Namespace(ada_head=True, lr=5e-4, model="ada_step_deit_small_patch16_224"),
        "amp_scaler": {"scale": 65536.0},
        "metric": 77.3,
    }
    path = saved(tmp_path / "model_best.pth.tar", content)
    network = build(3, **ALL)
    report = load(network, path)
    assert torch.equal(network(images()).logits, average(images()).logits)
    assert (report.weights, report.averaged, report.epoch) == ("state_dict_ema", True, 299)
    assert report.others == ("state_dict",)
    assert report.missing == report.unexpected == report.started == ()
    # Who wants the others says so; without an average there is nothing to prefer.
    load(network, path, weights="state_dict")
    assert torch.equal(network(images()).logits, last(images()).logits)
    del content["state_dict_ema"]
    report = load(network, saved(tmp_path / "last.pth.tar", content))
    assert report.weights == "state_dict" and not report.averaged


@torch.no_grad()
def test_releases_keep_weights_in_model(tmp_path: Path) -> None:
    source, network = build(1, **ALL), build(2, **ALL)
    report = load(network, saved(tmp_path / "deit.pth", {"model": source.state_dict()}))
    assert report.weights == "model"
    assert torch.equal(network(images()).logits, source(images()).logits)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, ALL, {**ALL, "norm_policy": True}, {"head_v2": True}], ids=str)
def test_plain_networks_compute_what_they_did(tmp_path: Path, options: dict[str, Any]) -> None:
    source, network = build(1), build(2, **options)
    path = saved(tmp_path / "timm.pth", plain(source))
    report = load(network, path)
    result, expected = network(images()), source(images())
    assert torch.allclose(result.logits, expected.logits, rtol=1e-5, atol=1e-6)
    for masks in (result.token, result.head, result.layer):
        assert masks is None or bool((masks == 1).all())
    assert any("attn.qkv" in note and "mean and std 0.5" in note for note in report.notes)
    told = " ".join(weight_notes(report, network))
    assert ("not trained" in told) == bool(options)
    assert ("not trained" in report.summary()) == bool(options)
    norms = {key for key in report.missing if ".norm_policy." in key}
    assert set(report.untrained) == norms
    assert set(report.started) == set(report.missing) - norms


@torch.no_grad()
def test_heads_of_the_split_stay_together(tmp_path: Path) -> None:
    network = build(2)
    together = plain(network)
    d = network.sizes.width
    together["blocks.3.attn.qkv.weight"] = torch.arange(3 * d, dtype=torch.float32)[:, None].expand(-1, d).clone()
    load(network, saved(tmp_path / "timm.pth", together))
    attention = network.blocks[3].attn
    firsts = [int(layer.weight[0, 0]) for layer in (attention.query, attention.key, attention.value)]
    assert firsts == [0, d, 2 * d]


def test_policies_are_left_out_of_the_static_twin(tmp_path: Path) -> None:
    source, network = build(1, **ALL), build(2)
    report = load(network, saved(tmp_path / "ada.pth", source.state_dict()))
    assert report.unexpected and all("_select." in key for key in report.unexpected)
    assert torch.equal(network.head.weight, source.head.weight)


def test_what_no_weight_tells_must_be_said(tmp_path: Path) -> None:
    network = build(1, **ALL)
    report = load(network, saved(tmp_path / "ada.pth", network.state_dict()))
    assert report.untold == ("token_with_mlp",)
    assert report.assumed == ("head_v2", "head_attn")
    require_told(report, ALL)
    with pytest.raises(Exception, match="token_with_mlp"):
        require_told(report, {"token": True})
    own = tmp_path / "own.pt"
    save_checkpoint(network, own)
    report = load(network, own)
    assert report.untold == report.assumed == ()


@pytest.mark.parametrize("option", ["token_with_mlp", "head_v2", "head_attn"])
def test_our_own_files_tell(tmp_path: Path, option: str) -> None:
    path = tmp_path / "own.pt"
    save_checkpoint(build(1, token=True, head=True, **{option: True}), path)
    with pytest.raises(CheckpointError, match=rf"trained with {option}=True"):
        load(build(2, token=True, head=True), path)


@torch.no_grad()
def test_positions_are_resized_only_when_asked(tmp_path: Path) -> None:
    path = saved(tmp_path / "large.pth", build(1, img_size=64).state_dict())
    with pytest.raises(CheckpointError, match=r"64x64 pixels: img_size=64\? Or resize_positions=True"):
        load(build(2), path)
    network = build(2, resize_positions=True)
    report = load(network, path)
    table = torch.load(path)["pos_embed"]
    grid = table[:, 1:].reshape(1, 8, 8, 96).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, (4, 4), mode="bicubic").flatten(2).transpose(1, 2)
    assert torch.equal(network.pos_embed[:, :1], table[:, :1])
    assert torch.allclose(network.pos_embed[:, 1:], expected)
    assert "8 x 8 patches was resized to 4 x 4" in " ".join(report.notes)
    same = build(3, resize_positions=True)
    assert load(same, saved(tmp_path / "same.pth", build(1).state_dict())).notes == ()


def _without(weights: Weights, part: str) -> Weights:
    return {key: value for key, value in weights.items() if part not in key}


_FAULTS = {
    "depth": (lambda: _without(build(1).state_dict(), "blocks.5."), {}, "it has 5 blocks, and ada_vit_small has 6"),
    "width": (
        lambda: {**build(1).state_dict(), "cls_token": torch.zeros(1, 1, 64)},
        {},
        "tokens have 64 features, those of ada_vit_small 96",
    ),
    "classes": (lambda: build(1, num_classes=7).state_dict(), {}, r"7 classes: num_classes=7\?"),
    "some policies": (
        lambda: build(1, token=True).state_dict(),
        ALL,
        "has token policies in blocks 0 to 5, without norm_policy; ada_vit_small was created with token policies in "
        "blocks 0 to 5, head policies in blocks 1 to 5, sublayer policies in blocks 1 to 5, without norm_policy. "
        "Create it with token=True, head=False, layer=False, norm_policy=False, token_start_layer=0",
    ),
    "more policies": (lambda: build(1, **ALL).state_dict(), {"token": True}, "Create it with token=True, head=True"),
    "policies missing in a block": (
        lambda: _without(build(1, **ALL).state_dict(), "blocks.3.head_select"),
        ALL,
        "head policies in blocks 1, 2, 4, 5",
    ),
    "later policies": (
        lambda: build(1, **{**ALL, "keep_layers": 4, "token_start_layer": 3}).state_dict(),
        ALL,
        "token_start_layer=3, keep_layers=4",
    ),
    "norm_policy": (lambda: build(1, **ALL, norm_policy=True).state_dict(), ALL, "norm_policy=True"),
    "no norm_policy": (lambda: build(1, **ALL).state_dict(), {**ALL, "norm_policy": True}, "norm_policy=False"),
    "distilled": (lambda: {**plain(build(1)), "dist_token": torch.zeros(1, 1, 64)}, {}, "distilled DeiT"),
    "register tokens": (lambda: {**plain(build(1)), "reg_token": torch.zeros(1, 4, 64)}, {}, "register tokens"),
    "layer scale": (lambda: {**plain(build(1)), "blocks.0.ls1.gamma": torch.zeros(64)}, {}, "layer scale"),
    "qk-norm": (
        lambda: {**plain(build(1)), "blocks.0.attn.q_norm.weight": torch.zeros(16)},
        {},
        "normalises queries and keys",
    ),
    "fc_norm": (lambda: {**plain(build(1)), "fc_norm.weight": torch.zeros(64)}, {}, "averages all tokens"),
    "no positions": (lambda: _without(build(1).state_dict(), "pos_embed"), {}, "lacks pos_embed"),
    "no grid": (
        lambda: {**build(1).state_dict(), "pos_embed": torch.zeros(1, 19, 96)},
        {"resize_positions": True},
        "no square grid",
    ),
    "not finite": (
        lambda: {**build(1).state_dict(), "cls_token": torch.full((1, 1, 96), torch.nan)},
        {},
        "cls_token",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", _FAULTS)
def test_files_that_do_not_fit(tmp_path: Path, fault: str) -> None:
    make, options, message = _FAULTS[fault]
    network = build(2, **options)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load(network, saved(tmp_path / "file.pth", make()))
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_t2t_and_deit_are_told_apart(tmp_path: Path) -> None:
    t2t = create_model("ada_t2t_vit_14", img_size=32)
    deit = create_model("ada_deit_small", img_size=32)
    with pytest.raises(CheckpointError, match="it is a T2T-ViT"):
        load_checkpoint(deit, saved(tmp_path / "t2t.pth", t2t.state_dict()))
    with pytest.raises(CheckpointError, match="it is a DeiT or ViT"):
        load_checkpoint(t2t, saved(tmp_path / "deit.pth", deit.state_dict()))


@torch.no_grad()
def test_t2t_files_with_one_layer_for_queries_keys_and_values(tmp_path: Path) -> None:
    source = build(1, "ada_t2t_vit_14", img_size=32, num_classes=4)
    network = build(2, "ada_t2t_vit_14", img_size=32, num_classes=4)
    weights = plain(source)
    assert "blocks.0.attn.qkv.weight" in weights and "blocks.0.attn.qkv.bias" not in weights
    load(network, saved(tmp_path / "t2t.pth", {"state_dict_ema": weights}))
    assert torch.equal(network(images()).logits, source(images()).logits)


def test_training_starts_from_a_static_file_of_other_classes(tmp_path: Path) -> None:
    network = build(2, **ALL)
    report = load(network, saved(tmp_path / "timm.pth", plain(build(1, num_classes=1000))), classes=10)
    assert report.classes == (1000, 10)
    assert set(report.fresh) == {"head.weight", "head.bias"}
    assert network.blocks[2].head_select.mlp_head.bias.tolist() == [5.0] * 4
