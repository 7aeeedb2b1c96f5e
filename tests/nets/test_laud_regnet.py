from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dyndeploy.errors import CheckpointError, UsageError
from dyndeploy.nets import (
    LaudRegNet,
    LaudRegNetConfig,
    create_model,
    full_flops,
    load_checkpoint,
    model_info,
    model_names,
    save_checkpoint,
    static_macs,
)
from dyndeploy.nets.regnet import StageWidth

from .helpers import randomize

OFFICIAL: dict[str, dict[str, Any]] = {
    "channel_1111": {"mode": "channel", "channel_granularity": 1},
    "channel_2222": {"mode": "channel"},
    "channel_2222_1layer": {"mode": "channel", "channel_masker_layers": 1},
    "channel_2222_convlinear": {"mode": "channel", "channel_masker": "conv_linear"},
    "spatial_4421": {"mode": "spatial"},
    "both_4421_2222": {"mode": "both"},
}
"""Configurations of the reference code -> options that lead to them."""

# Number of keys and start of the SHA-256 of the sorted lines "key shape type" of the reference code's networks.
KEYS = {
    ("400mf", "both_4421_2222"): (480, "53a104c88f71c0913c8ee624c0d8c632"),
    ("400mf", "channel_1111"): (448, "0f4a555661b4042300812f4ebfa82ffe"),
    ("400mf", "channel_2222"): (448, "75b34e99b0c86e558cc62dcdcd0837a0"),
    ("400mf", "channel_2222_1layer"): (416, "1c485a5c855b7299f8dbc0dc61d0040d"),
    ("400mf", "channel_2222_convlinear"): (512, "010fb8e412e72fd3b216d33a0bbc18fb"),
    ("400mf", "spatial_4421"): (416, "f2f4b0f24a2942d3b252314469512fc2"),
    ("800mf", "both_4421_2222"): (424, "b11af44fb95cd1b0386bdb2bbb8dc46d"),
    ("800mf", "channel_1111"): (396, "f223ca889438e7d32adfe3a92b34d4ed"),
    ("800mf", "channel_2222"): (396, "a76683ef27b443e763ed4c25874f34fa"),
    ("800mf", "channel_2222_1layer"): (368, "010014ebcc011ebf39919efccf20ba58"),
    ("800mf", "channel_2222_convlinear"): (452, "948f6a71868a08e639d07c370f088b10"),
    ("800mf", "spatial_4421"): (368, "4663611c05130893ce6bf683349eccd6"),
}

# Per 224x224 image: what the reference code divides by, and (mode -> MACs with all masks on and all off) as it counts
# them. It adds in float32, where neighbours lie 32 or 64 apart.
FLOPS: dict[str, tuple[int, dict[str, tuple[int, int]]]] = {
    "400mf": (
        406235864,
        {
            "channel": (403121696, 30674608),
            "spatial": (402614752, 30167704),
            "layer": (401858656, 29411608),
        },
    ),
    "800mf": (
        840023440,
        {
            "channel": (835495296, 49074336),
            "spatial": (834634752, 48213776),
            "layer": (833872512, 47451536),
        },
    ),
    "1_6gf": (1621890926, {}),
    "3_2gf": (3190088402, {}),
    "8gf": (8496244512, {}),
    "16gf": (15938889372, {}),
}
WIDTHS = {
    "400mf": ((1, 3, 6, 6), (48, 104, 208, 440), 8),
    "800mf": ((1, 3, 8, 2), (64, 144, 320, 784), 16),
    "1_6gf": ((2, 6, 17, 2), (48, 120, 336, 888), 24),
    "3_2gf": ((2, 5, 13, 1), (72, 216, 576, 1512), 24),
    "8gf": ((2, 4, 10, 1), (224, 448, 896, 2016), 56),
    "16gf": ((2, 4, 11, 1), (224, 448, 1232, 3024), 112),
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def build(name: str, **options: Any) -> LaudRegNet:
    model = create_model(name, **options)
    assert isinstance(model, LaudRegNet)
    return model


def meta(name: str, **options: Any) -> LaudRegNet:
    with torch.device("meta"):
        return build(name, **options)


@pytest.mark.parametrize(("size", "configuration"), KEYS)
def test_keys_equal_the_reference(size: str, configuration: str) -> None:
    lines = sorted(
        f"{key} {'x'.join(map(str, value.shape)) or '-'} {str(value.dtype).removeprefix('torch.')}"
        for key, value in meta(f"laud_regnety_{size}", **OFFICIAL[configuration]).state_dict().items()
    )
    count, digest = KEYS[size, configuration]
    assert len(lines) == count
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32] == digest


@pytest.mark.parametrize("size", WIDTHS)
def test_widths_and_the_denominator_of_the_reference(size: str) -> None:
    model = meta(f"laud_regnety_{size}", mode="static")
    blocks, widths, group_width = WIDTHS[size]
    assert tuple(len(stage) for stage in model.stages()) == blocks
    assert tuple(stage[0].out_channels for stage in model.stages()) == widths
    assert {block.width // block.groups for _, block in model.named_blocks()} == {group_width}
    assert full_flops(model, 224) == FLOPS[size][0]


@pytest.mark.parametrize(("size", "mode"), [(size, mode) for size, (_, modes) in FLOPS.items() for mode in modes])
def test_flops_with_all_masks_on_and_off(size: str, mode: str) -> None:
    model = meta(f"laud_regnety_{size}", mode=mode).to_empty(device="cpu").double().eval()
    for tensor in model.state_dict().values():
        tensor.zero_()
    for value, expected in zip((1.0, -1.0), FLOPS[size][1][mode], strict=True):
        for _, block in model.named_blocks():
            for masker in block.gates().values():
                bias = list(masker.parameters())[-1]
                bias.data[: len(bias) // 2] = value
        with torch.no_grad():
            out = model(torch.zeros(1, 3, 224, 224, dtype=torch.float64))
        assert abs(out.flops.item() - expected) <= 64
        assert out.flops.item() == int(out.flops.item())
        if value > 0:
            assert out.flops_ratio.tolist() == [1.0] * len(out.masks)


@pytest.mark.parametrize("size", [(32, 32), (47, 70)])
def test_counts_agree_with_counting_hooks(size: tuple[int, int]) -> None:
    model = meta("laud_regnety_400mf", mode="static").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, *size, device="meta"))
    assert static_macs(model, size) == counter.get_total_flops() // 2


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


def plain_forward(
    weights: dict[str, Tensor],
    x: Tensor,
    mode: str,
    blocks: tuple[int, ...],
    side: tuple[int, ...],
    se: str,
    stem: int = 2,
) -> tuple[Tensor, list[Tensor]]:
    """A LAUD-RegNetY in evaluation from the description of the reference code: square maps that patches divide."""

    def norm(y: Tensor, name: str) -> Tensor:
        shift, scale = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        shape = (1, -1, 1, 1)
        y = (y - shift.view(shape)) / (scale.view(shape) + 1e-5).sqrt()
        return y * weights[f"{name}.weight"].view(shape) + weights[f"{name}.bias"].view(shape)

    masks = []
    x = F.relu(norm(F.conv2d(x, weights["stem.0.weight"], stride=stem, padding=1), "stem.1"))
    for stage, count in enumerate(blocks):
        for index in range(count):
            name = f"trunk_output.block{stage + 1}.block{stage + 1}-{index}"
            stride, f = (1 if index else 2), f"{name}.f"
            out = x.shape[2] // stride
            channels = spatial = torch.ones(1, 1, 1, 1, dtype=x.dtype)
            if mode in ("channel", "both"):
                hidden = F.relu(
                    F.linear(
                        pooled(x)[:, :, 0, 0], *(weights[f"{f}.masker_channel.conv.0.{k}"] for k in ("weight", "bias"))
                    )
                )
                logits = F.linear(hidden, *(weights[f"{f}.masker_channel.conv.2.{k}"] for k in ("weight", "bias")))
                compute, skip = logits.chunk(2, 1)
                masks.append((compute >= skip).to(x.dtype))
                width = weights[f"{f}.a.0.weight"].shape[0]
                channels = masks[-1].repeat_interleave(width // compute.shape[1], 1)[:, :, None, None]
            if mode in ("spatial", "both", "layer"):
                mask_size = 1 if mode == "layer" else out // side[stage]
                grid = F.adaptive_avg_pool2d(x, mask_size)
                logits = F.conv2d(grid, *(weights[f"{f}.masker_spatial.conv.{k}"] for k in ("weight", "bias")))
                masks.append((logits[:, :1] >= logits[:, 1:]).to(x.dtype))
                spatial = masks[-1].repeat_interleave(out // mask_size, 2).repeat_interleave(out // mask_size, 3)
            y = F.relu(norm(F.conv2d(x, weights[f"{f}.a.0.weight"]), f"{f}.a.1")) * channels
            kernel = weights[f"{f}.b.0.weight"]
            groups = kernel.shape[0] // kernel.shape[1]
            y = F.relu(norm(F.conv2d(y, kernel, stride=stride, padding=1, groups=groups), f"{f}.b.1")) * channels
            if se == "active" and mode in ("spatial", "both"):
                mean = (y * spatial).sum((2, 3), keepdim=True) / spatial.sum((2, 3), keepdim=True).clamp(min=1)
            else:
                mean = pooled(y)
            gate = F.relu(F.conv2d(mean, weights[f"{f}.se.fc1.weight"], weights[f"{f}.se.fc1.bias"]))
            gate = torch.sigmoid(F.conv2d(gate, weights[f"{f}.se.fc2.weight"], weights[f"{f}.se.fc2.bias"]))
            y = norm(F.conv2d(y * gate, weights[f"{f}.c.0.weight"]), f"{f}.c.1") * spatial
            if f"{name}.proj.0.weight" in weights:
                x = norm(F.conv2d(x, weights[f"{name}.proj.0.weight"], stride=stride), f"{name}.proj.1")
            x = F.relu(x + y)
    return F.linear(pooled(x)[:, :, 0, 0], weights["fc.weight"], weights["fc.bias"]), masks


@pytest.mark.parametrize("se", ["exact", "active"])
@pytest.mark.parametrize("mode", ["channel", "spatial", "both", "layer", "static"])
def test_forward_equals_an_independent_one(mode: str, se: str) -> None:
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    options = {"mode": mode, "se": se, "granularity": (4, 4, 2, 1)}
    model = randomize(build("laud_regnety_400mf", num_classes=11, **options).double(), x)
    with torch.no_grad():
        found = model(x)
        expected, masks = plain_forward(model.state_dict(), x, mode, (1, 3, 6, 6), (4, 4, 2, 1), se)
    torch.testing.assert_close(found.logits, expected, rtol=1e-9, atol=1e-9)
    given = [mask for block in found.masks for mask in (block.channel, block.spatial) if mask is not None]
    assert all(torch.equal(a, b) for a, b in zip(given, masks, strict=True))
    assert mode == "static" or 0 < float(torch.cat([mask.flatten() for mask in masks]).mean()) < 1


def test_active_pooling_is_another_function_and_only_of_patches() -> None:
    x = torch.randn(2, 3, 64, 64)
    for mode in ("spatial", "both", "layer", "channel"):
        model = randomize(build("laud_regnety_400mf", mode=mode, num_classes=5), x)
        other = build("laud_regnety_400mf", mode=mode, num_classes=5, se="active").eval()
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            exact, active = model(x).logits, other(x).logits
        assert torch.equal(exact, active) == (mode in ("layer", "channel"))


@pytest.mark.parametrize("se", ["exact", "active"])
def test_layer_equals_spatial_with_one_patch_to_the_bit(se: str) -> None:
    x = torch.randn(3, 3, 224, 224)
    layer = randomize(build("laud_regnety_400mf", mode="layer"), x)
    spatial = build("laud_regnety_400mf", mode="spatial", granularity=(56, 28, 14, 7), se=se).eval()
    # The map of stage 1 has 112 / 2 pixels, and so on: every mask is one patch.
    spatial.load_state_dict(layer.state_dict())
    with torch.no_grad():
        a, b = layer(x), spatial(x)
    assert all(torch.equal(p.spatial, q.spatial) for p, q in zip(a.masks, b.masks, strict=True))
    assert 0 < sum(float(m.spatial.mean()) for m in a.masks) < len(a.masks)
    assert torch.equal(a.logits, b.logits)
    assert torch.equal(a.flops, b.flops)


@pytest.mark.parametrize("mode", ["channel", "spatial", "both", "layer"])
def test_gradients_reach_every_masker(mode: str) -> None:
    model = build("laud_regnety_small", mode=mode, se="active").train()
    out = model(torch.randn(4, 3, 32, 32), temperature=1.0)
    (out.logits.square().mean() + out.flops / 1e6).backward()
    for name, parameter in model.named_parameters():
        if ".masker_" in name:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_weights_start_as_torchvision_starts_them() -> None:
    model = build("laud_regnety_400mf", mode="channel")
    block = model.stages()[3][1]
    # Fan-out of the whole layer, groups not counted.
    assert block.f.b[0].weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 440)), rel=0.05)
    assert block.f.se.fc1.weight.std().item() == pytest.approx(math.sqrt(2 / 110), rel=0.05)
    assert model.fc.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert block.masker_channel is not None
    last = block.masker_channel.conv[2]  # type: ignore[index]
    assert last.bias[:220].unique().tolist() == [2.0] and last.bias[220:].unique().tolist() == [-2.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_half_and_double_follow_the_feature_type(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 64, 48)
    model = randomize(build("laud_regnety_small", mode="both", se="active"), x)
    with torch.no_grad():
        expected = model(x).logits
        found = model.to(dtype)(x.to(dtype)).logits
    assert found.dtype == dtype
    if dtype == torch.float64:
        torch.testing.assert_close(found.float(), expected, rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channel_granularity": 16, "mode": "channel"}, "104 channels of trunk_output.block2.block2-0 .* 1, 2, 4, 8"),
        ({"channel_granularity": 64, "mode": "both"}, "does not split the 48 channels"),
        ({"se": "none"}, "Unknown se 'none'. Known: active, exact"),
        ({"se": 1}, "give one of exact, active"),
        ({"mode": "patch"}, "mode"),
        ({"granularity": (4, 4)}, "one value, or four"),
        ({"spatial_groups": 5}, "does not divide the 48 output channels"),
        ({"width_mult": 0.5}, "width_mult"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build("laud_regnety_400mf", **options)


@pytest.mark.parametrize(("name", "least"), [("laud_regnety_400mf", 32), ("laud_regnety_small", 16)])
def test_images_below_the_strides_are_refused(name: str, least: int) -> None:
    model = meta(name).eval()
    with pytest.raises(
        UsageError, match=f"got {least - 1} x {least} pixels: give images of at least {least} x {least}"
    ):
        model(torch.empty(1, 3, least - 1, least, device="meta"))
    with torch.no_grad():
        assert model(torch.empty(1, 3, least + 5, least, device="meta")).logits.shape[0] == 1


def test_options_survive_a_round_trip() -> None:
    model = meta("laud_regnety_small", mode=("layer", "channel", "spatial", "both"), se="active")
    again = meta("laud_regnety_small", **model.config.as_dict())
    assert again.config == model.config
    assert model.facts().mode == "layer-channel-spatial-both"
    assert set(model_info("laud_regnety_small").defaults) == set(model.config.as_dict())


# ---------------------------------------------------------------- checkpoints


def official(model: nn.Module, path: Path) -> Path:
    torch.save({"epoch": 3, "model": "lad_regnet", "hyper_set": "3", "state_dict": model.state_dict()}, path)
    return path


def test_official_and_lasnet_files_load(tmp_path: Path) -> None:
    theirs, ours = (build("laud_regnety_small", mode="spatial") for _ in range(2))
    report = load_checkpoint(ours, official(theirs, tmp_path / "checkpoint.pth.tar"))
    assert (report.source_format, report.missing, report.unexpected) == ("laudnet", (), ())
    assert report.untold == ("mode", "granularity")
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in ours.state_dict().items())

    older = {
        key.replace(".f.masker_spatial.conv.", ".masker.conv2."): value for key, value in theirs.state_dict().items()
    }
    torch.save({"state_dict": older, "epoch": 1}, tmp_path / "lasnet.pth.tar")
    ours = build("laud_regnety_small", mode="spatial")
    report = load_checkpoint(ours, tmp_path / "lasnet.pth.tar")
    assert (report.source_format, report.missing, report.unexpected) == ("lasnet", (), ())
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in ours.state_dict().items())


def test_torchvision_files_leave_the_maskers_fresh_and_say_so(tmp_path: Path) -> None:
    static, dynamic = build("laud_regnety_small", mode="static"), build("laud_regnety_small", mode="both")
    torch.save(static.state_dict(), tmp_path / "regnet.pth")
    report = load_checkpoint(dynamic, tmp_path / "regnet.pth")
    assert report.source_format == "torchvision"
    assert report.untrained and all(".f.masker_" in key for key in report.untrained)
    assert "Missing, left as they were" in report.summary()


def test_our_own_files_tell_everything(tmp_path: Path) -> None:
    model = build("laud_regnety_small", mode="layer", se="active")
    save_checkpoint(model, tmp_path / "own.pt")
    assert load_checkpoint(build("laud_regnety_small", mode="layer", se="active"), tmp_path / "own.pt").untold == ()
    with pytest.raises(CheckpointError, match="was trained with mode layer"):
        load_checkpoint(build("laud_regnety_small", mode="spatial"), tmp_path / "own.pt")


def test_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth.tar"
    small = build("laud_regnety_small", mode="channel")
    with pytest.raises(CheckpointError, match="it is a ResNet, and this network is a RegNet"):
        load_checkpoint(small, official(create_model("laud_resnet26_small", mode="channel"), path))
    with pytest.raises(CheckpointError, match="it is a RegNet, and this network is a ResNet"):
        load_checkpoint(create_model("laud_resnet26_small"), official(small, path))
    with pytest.raises(CheckpointError, match="1-3-6-6 blocks per stage, this network 2-2-2-2"):
        load_checkpoint(small, official(build("laud_regnety_400mf", mode="channel"), path))
    with pytest.raises(CheckpointError, match="channel_granularity=4"):
        load_checkpoint(small, official(build("laud_regnety_small", mode="channel", channel_granularity=4), path))
    with pytest.raises(CheckpointError, match="channel_masker_layers=1"):
        load_checkpoint(small, official(build("laud_regnety_small", mode="channel", channel_masker_layers=1), path))
    with pytest.raises(CheckpointError, match="maskers of mode spatial or layer in trunk_output"):
        load_checkpoint(small, official(build("laud_regnety_small", mode="spatial"), path))
    with pytest.raises(CheckpointError, match="num_classes=7"):
        load_checkpoint(small, official(build("laud_regnety_small", mode="channel", num_classes=7), path))
    widths = [StageWidth(2, channels, 8) for channels in (32, 64, 96, 128)]
    other = LaudRegNet("other", widths, LaudRegNetConfig(mode="channel", num_classes=10), 24, 1)
    with pytest.raises(CheckpointError, match=r"block4.block4-0 has 128 channels, and here 160: it is another RegNet"):
        load_checkpoint(small, official(other, path))
    wider = dict(small.state_dict())
    for key in list(wider):
        if key.endswith("f.b.0.weight"):
            wider[key] = torch.cat([wider[key]] * 2, 1)
    torch.save({"state_dict": wider}, path)
    with pytest.raises(CheckpointError, match="16 channels per group, and here 8"):
        load_checkpoint(small, path)


def test_every_network_is_registered() -> None:
    assert set(model_names("laud_regnet")) == {"laud_regnety_small", *(f"laud_regnety_{size}" for size in WIDTHS)}
