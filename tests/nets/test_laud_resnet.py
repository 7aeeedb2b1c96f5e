from __future__ import annotations

import copy
import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dyndeploy.errors import UsageError
from dyndeploy.nets import LaudResNet, LaudResNetConfig, full_flops, model_names, static_macs

from .helpers import MODES, build, narrow_resnet50, randomize, reference_forward

KEYS = Path(__file__).parent / "data" / "uni_resnet50_keys.txt"

# Section of the key file -> options that lead to it.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "spatial": {"mode": "spatial"},
    "layer": {"mode": "layer"},
    "channel": {"mode": "channel"},
    "channel_granularity_1": {"mode": "channel", "channel_granularity": 1},
    "channel_1_layer": {"mode": "channel", "channel_masker_layers": 1},
    "channel_conv_linear": {"mode": "channel", "channel_masker": "conv_linear"},
    "both": {"mode": "both"},
    "static": {"mode": "static"},
}

# Number of keys and start of the SHA-256 of the sorted lines for the reference code's uni_resnet101.
RESNET101 = {
    "spatial": (692, "ea49bfdbfc388080029d910b818543a5"),
    "channel_granularity_1": (758, "6a4927dae497799c9a9837a79eb9f01c"),
    "channel": (758, "10f42d570622a9fd3e69c623ff2d5066"),
    "channel_1_layer": (692, "bd99345589144d2388142bbfe0d74a53"),
    "channel_conv_linear": (890, "013165f2233b54ba768f6d4c0d22a980"),
    "layer": (692, "ea49bfdbfc388080029d910b818543a5"),
    "both": (824, "0324a511ad964c379f91114ebf2f216b"),
}

# (model, mode) -> MACs per 224x224 image with all masks on and all off, from the reference code, which adds in
# float32: the true sums differ by up to half a unit of 512.
FLOPS = {
    ("laud_resnet50", "channel"): (4096882688, 487421952),
    ("laud_resnet50", "spatial"): (4093902848, 484442112),
    ("laud_resnet50", "layer"): (4091045120, 481584384),
    ("laud_resnet101", "channel"): (7812864000, 491182080),
    ("laud_resnet101", "spatial"): (7809536000, 487854080),
    ("laud_resnet101", "layer"): (7803335680, 481654016),
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def key_lines(model: LaudResNet) -> list[str]:
    return [
        f"{key} {'x'.join(map(str, value.shape)) or '-'} {str(value.dtype).removeprefix('torch.')}"
        for key, value in model.state_dict().items()
    ]


def key_sections() -> dict[str, list[str]]:
    sections: dict[str, list[str]] = {}
    for line in KEYS.read_text().splitlines():
        if line.startswith("["):
            section = sections[line[1:-1]] = []
        elif not line.startswith("#"):
            section.append(line)
    return sections


def meta(name: str, **options: Any) -> LaudResNet:
    with torch.device("meta"):
        return build(name, **options)


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_resnet50_keys_equal_the_reference(configuration: str) -> None:
    sections = key_sections()
    maskers = {"layer": ["spatial"], "both": ["spatial", "channel"], "static": []}
    expected = list(sections["backbone"])
    for section in maskers.get(configuration, [configuration]):
        expected += sections[section]
    assert len(sections["backbone"]) == 320
    assert sorted(key_lines(meta("laud_resnet50", **CONFIGURATIONS[configuration]))) == sorted(expected)


@pytest.mark.parametrize("configuration", RESNET101)
def test_resnet101_keys_equal_the_reference(configuration: str) -> None:
    lines = sorted(key_lines(meta("laud_resnet101", **CONFIGURATIONS[configuration])))
    count, digest = RESNET101[configuration]
    assert len(lines) == count
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32] == digest


@pytest.mark.parametrize(("name", "mode"), FLOPS)
def test_flops_with_all_masks_on_and_off(name: str, mode: str) -> None:
    model = meta(name, mode=mode).to_empty(device="cpu").double().eval()
    for tensor in model.state_dict().values():
        tensor.zero_()
    for value, expected in zip((1.0, -1.0), FLOPS[name, mode], strict=True):
        for _, block in model.named_blocks():
            for masker in (block.masker_spatial, block.masker_channel):
                if masker is not None:
                    bias = list(masker.parameters())[-1]
                    bias.data[: len(bias) // 2] = value
        with torch.no_grad():
            out = model(torch.zeros(1, 3, 224, 224, dtype=torch.float64))
        assert abs(out.flops.item() - expected) <= 256
        assert out.flops.item() == int(out.flops.item())
        if value > 0:
            assert out.flops_ratio.tolist() == [1.0] * len(out.masks)


def test_full_flops_is_the_reference_denominator() -> None:
    assert full_flops(meta("laud_resnet50", mode="static"), 224) == 4098894312
    assert full_flops(meta("laud_resnet101", mode="both"), (224, 224)) == 7816233448


@pytest.mark.parametrize("name", model_names("laud_resnet"))
@pytest.mark.parametrize("size", [(32, 32), (47, 38), (1, 65)])
def test_counts_agree_with_counting_hooks(name: str, size: tuple[int, int]) -> None:
    model = meta(name, mode="static").eval()
    elements = 0

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal elements
        elements += inputs[0][0].numel() if isinstance(module, nn.AdaptiveAvgPool2d) else output[0].numel()

    for module in model.modules():
        if isinstance(module, (nn.ReLU, nn.AdaptiveAvgPool2d)):
            module.register_forward_hook(count)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, *size, device="meta"))
    assert static_macs(model, size) == counter.get_total_flops() // 2
    assert full_flops(model, size) == static_macs(model, size) + elements + model.fc.out_features


def test_counts_refuse_an_empty_image() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        static_macs(meta("laud_resnet14_small"), (0, 4))


def test_small_network_is_as_small_as_promised() -> None:
    model = meta("laud_resnet14_small", mode="static")
    assert static_macs(model, 32) == pytest.approx(42e6, rel=0.01)
    sizes = []
    for name, block in model.named_blocks():
        block.register_forward_hook(lambda m, i, o: sizes.append(tuple(o[0].shape[2:])))
        assert (block.downsample is None) == (name == "layer1.0")
    model.eval()(torch.zeros(1, 3, 32, 32, device="meta"))
    assert sizes == [(32, 32), (16, 16), (8, 8), (4, 4)]


REFERENCE_CASES: list[tuple[dict[str, Any], int]] = [
    ({"mode": "spatial"}, 64),
    ({"mode": "spatial", "granularity": (1, 1, 1, 1)}, 64),
    ({"mode": "spatial", "granularity": (3, 5, 4, 7)}, 64),
    ({"mode": "spatial", "granularity": (8, 4, 2, 1), "spatial_groups": (2, 4, 1, 2)}, 64),
    ({"mode": "layer"}, 64),
    ({"mode": "layer", "spatial_groups": 2}, 32),
    ({"mode": "channel"}, 64),
    ({"mode": "channel", "channel_granularity": (1, 2, 4, 8)}, 32),
    ({"mode": "channel", "channel_granularity": (8, 16, 32, 64)}, 32),
    ({"mode": "channel", "channel_masker_layers": 1}, 32),
    ({"mode": "channel", "channel_masker": "conv_linear", "reduction": 4}, 64),
    ({"mode": "channel", "groups": 2}, 32),
    ({"mode": "both"}, 64),
    ({"mode": "both", "channel_masker": "conv_linear", "reduction": (2, 4, 4, 8)}, 32),
    ({"mode": ("spatial", "channel", "layer", "both"), "granularity": (2, 1, 1, 2)}, 64),
    ({"mode": ("static", "spatial", "channel", "static")}, 64),
    ({"mode": "static"}, 64),
]


@pytest.mark.parametrize(("options", "size"), REFERENCE_CASES, ids=lambda v: str(v)[:70])
def test_forward_equals_an_independent_one(options: dict[str, Any], size: int) -> None:
    x = torch.randn(3, 3, size, size, dtype=torch.float64)
    model = randomize(narrow_resnet50(**options).double(), x)
    with torch.no_grad():
        out = model(x)
        expected = reference_forward(
            model.state_dict(),
            x,
            blocks=model.architecture.blocks,
            modes=model.config.stage_values("mode"),
            granularity=model.config.stage_values("granularity"),
        )
    torch.testing.assert_close(out.logits, expected["logits"], rtol=1e-9, atol=1e-9)
    decisions = []
    for masks in out.masks:
        for ours, theirs in zip(masks[1:], expected["masks"][masks.name], strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                assert torch.equal(ours, theirs)
                decisions.append(ours.flatten())
    if options["mode"] != "static":
        assert 0.2 < torch.cat(decisions).mean() < 0.8
    for part in ("conv3", "conv2", "conv1", "channel"):
        ours = getattr(out.densities, part)
        assert [len(stage) for stage in ours] == [3, 4, 6, 3]
        torch.testing.assert_close(torch.cat(ours), torch.stack(expected["densities"][part]), rtol=1e-12, atol=0)
    torch.testing.assert_close(out.flops_ratio, expected["ratios"], rtol=1e-12, atol=0)
    assert out.flops.item() == pytest.approx(expected["flops"], rel=1e-12)


def test_small_network_equals_an_independent_forward() -> None:
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    model = randomize(build("laud_resnet14_small", mode="both").double(), x)
    with torch.no_grad():
        out = model(x)
        expected = reference_forward(
            model.state_dict(),
            x,
            blocks=(1, 1, 1, 1),
            modes=("both",) * 4,
            granularity=(4, 4, 2, 1),
            stem_stride=1,
            stem_pool=False,
        )
    torch.testing.assert_close(out.logits, expected["logits"], rtol=1e-9, atol=1e-9)
    assert out.flops.item() == pytest.approx(expected["flops"], rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    mode=st.sampled_from(MODES),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    granularity=st.tuples(*[st.integers(1, 9)] * 4),
    dilate=st.tuples(*[st.booleans()] * 3),
    batch=st.integers(1, 3),
)
def test_any_size_in_any_mode(
    mode: str,
    height: int,
    width: int,
    granularity: tuple[int, ...],
    dilate: tuple[bool, ...],
    batch: int,
) -> None:
    torch.manual_seed(height * 100 + width)
    x = torch.randn(batch, 3, height, width)
    model = randomize(
        narrow_resnet50(mode=mode, granularity=granularity, channel_granularity=4, replace_stride_with_dilation=dilate),
        x,
    )
    seen: dict[str, tuple[int, ...]] = {}
    for name, block in model.named_blocks():
        block.register_forward_hook(lambda m, i, o, name=name: seen.update({name: (*i[0].shape[2:], *o[0].shape[2:])}))
    with torch.no_grad():
        out = model(x)
    assert out.logits.shape == (batch, 7)
    assert torch.isfinite(out.logits).all()
    assert out.flops_ratio.shape == (16,)
    assert (out.flops_ratio > 0).all()
    assert (out.flops_ratio < 1 + 1e-6).all()
    flat = {part: torch.cat(getattr(out.densities, part)) for part in ("conv1", "conv2", "conv3", "channel")}
    for index, (masks, (name, block)) in enumerate(zip(out.masks, model.named_blocks(), strict=True)):
        rows, columns, out_rows, out_columns = seen[name]
        assert (out_rows, out_columns) == block.output_size(rows, columns)
        assert masks.name == name
        if mode in ("channel", "static"):
            assert masks.spatial is None
        else:
            side = granularity[int(name[5]) - 1]
            size = (1, 1) if mode == "layer" else (max(1, out_rows // side), max(1, out_columns // side))
            assert masks.spatial is not None
            assert masks.spatial.shape == (batch, 1, *size)
            needed, read = _needed_pixels(
                masks.spatial.numpy() > 0.5, rows, columns, out_rows, out_columns, block.stride, block.dilation
            )
            assert flat["conv2"][index].item() == pytest.approx(needed, abs=1e-6)
            assert flat["conv1"][index].item() == pytest.approx(read, abs=1e-6)
        if mode in ("channel", "both"):
            assert masks.channel is not None
            assert masks.channel.shape == (batch, block.width // 4)
            assert flat["channel"][index].item() == pytest.approx(masks.channel.mean().item())
        else:
            assert masks.channel is None


def test_dilation_replaces_stride_as_in_torchvision() -> None:
    model = narrow_resnet50(replace_stride_with_dilation=(False, True, True))
    found = {name: (block.stride, block.dilation) for name, block in model.named_blocks()}
    assert [found[f"layer{i}.0"] for i in (1, 2, 3, 4)] == [(1, 1), (2, 1), (1, 1), (1, 2)]
    assert [found[f"layer{i}.1"] for i in (1, 2, 3, 4)] == [(1, 1), (1, 1), (1, 2), (1, 4)]


def _needed_pixels(
    mask: np.ndarray, rows: int, columns: int, out_rows: int, out_columns: int, stride: int, dilation: int
) -> tuple[float, float]:
    """Return the fractions of output pixels computed and of input pixels that their 3x3 windows read."""
    batch, _, patch_rows, patch_columns = mask.shape
    read = np.zeros((batch, rows, columns), bool)
    needed = 0
    for n in range(batch):
        for i in range(out_rows):
            for j in range(out_columns):
                if not mask[n, 0, i * patch_rows // out_rows, j * patch_columns // out_columns]:
                    continue
                needed += 1
                for a in (-dilation, 0, dilation):
                    for b in (-dilation, 0, dilation):
                        p, q = i * stride + a, j * stride + b
                        if 0 <= p < rows and 0 <= q < columns:
                            read[n, p, q] = True
    return needed / (batch * out_rows * out_columns), float(read.mean())


@pytest.mark.parametrize("mode", MODES)
def test_samples_do_not_influence_each_other(mode: str) -> None:
    x = torch.randn(4, 3, 40, 56, dtype=torch.float64)
    model = randomize(narrow_resnet50(mode=mode).double(), x)
    with torch.no_grad():
        together = model(x)
        alone = [model(x[n : n + 1]) for n in range(4)]
    torch.testing.assert_close(together.logits, torch.cat([a.logits for a in alone]), rtol=1e-10, atol=1e-10)
    for block, masks in enumerate(together.masks):
        for kind in (1, 2):
            if masks[kind] is not None:
                assert torch.equal(masks[kind], torch.cat([a.masks[block][kind] for a in alone]))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("masker", ["mlp", "conv_linear"])
def test_half_and_double_follow_the_feature_type(mode: str, masker: str) -> None:
    x = torch.randn(2, 3, 48, 32)
    model = randomize(narrow_resnet50(mode=mode, channel_masker=masker, reduction=4), x)
    with torch.no_grad():
        single = model(x)
        double = copy.deepcopy(model).double()(x.double())
        half = copy.deepcopy(model).half()(x.half())
    assert (double.logits.dtype, double.flops.dtype) == (torch.float64, torch.float64)
    assert (half.logits.dtype, half.flops.dtype) == (torch.float16, torch.float32)
    torch.testing.assert_close(double.logits.float(), single.logits, rtol=1e-4, atol=1e-4)
    assert torch.isfinite(half.logits).all()
    dense = static_macs(model, (48, 32))
    for out, dtype in ((single, torch.float32), (double, torch.float64), (half, torch.float16)):
        assert 0 < out.flops.item() < 1.2 * dense
        for masks in out.masks:
            for mask in masks[1:]:
                assert mask is None or mask.dtype == dtype
    model.half().train()
    sampled = model(x.half(), 0.5)
    (sampled.logits.float().sum() + sampled.flops / dense).backward()
    assert sampled.logits.dtype == torch.float16


def test_autocast_trains() -> None:
    model = narrow_resnet50(mode="both")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(torch.randn(2, 3, 64, 64), 1.0)
        loss = out.logits.float().square().mean() + out.flops / static_macs(model, 64)
    loss.backward()
    assert torch.isfinite(loss)
    assert out.flops.dtype == torch.float32


@pytest.mark.parametrize("mode", MODES)
def test_eval_is_deterministic_and_ignores_the_temperature(mode: str) -> None:
    x = torch.randn(2, 3, 32, 32)
    model = randomize(narrow_resnet50(mode=mode), x)
    with torch.no_grad():
        first, second = model(x), model(x, 0.01)
    assert torch.equal(first.logits, second.logits)
    assert first.flops == second.flops


@pytest.mark.parametrize("mode", ["spatial", "channel", "layer", "both"])
@pytest.mark.parametrize("masker", ["mlp", "conv_linear"])
def test_gradients_reach_every_masker(mode: str, masker: str) -> None:
    x = torch.randn(4, 3, 64, 64)
    model = randomize(narrow_resnet50(mode=mode, channel_masker=masker, reduction=4), x).train()
    out = model(x, 2.0)
    for masks in out.masks:
        for mask in masks[1:]:
            assert mask is None or set(mask.unique().tolist()) <= {0.0, 1.0}
    loss = torch.nn.functional.cross_entropy(out.logits, torch.arange(4)) + out.flops / static_macs(model, 64)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        if ".masker_" in name:
            assert parameter.grad.abs().sum() > 0, name


def test_training_samples_the_masks() -> None:
    x = torch.randn(2, 3, 64, 64)
    model = randomize(narrow_resnet50(mode="spatial"), x).train()
    first, second = model(x).masks, model(x).masks
    assert any(not torch.equal(a.spatial, b.spatial) for a, b in zip(first, second, strict=True))


def _gradients(flops_gradient: str, mode: str = "layer") -> tuple[torch.Tensor, list[torch.Tensor]]:
    torch.manual_seed(3)
    model = narrow_resnet50(mode=mode, width_mult=0.25, flops_gradient=flops_gradient).double()
    torch.manual_seed(4)
    out = model(torch.randn(2, 3, 64, 64, dtype=torch.float64), 1.0)
    block = model.layer1[1]
    ratio = out.flops_ratio[1] * (block.dense_macs(16, 16) + block.masker_macs(16, 16))
    masker = block.masker_spatial
    return out.flops.detach(), list(torch.autograd.grad(ratio, [masker.conv.weight, masker.conv.bias]))


def test_flops_gradient_reaches_all_convolutions() -> None:
    full_value, full = _gradients("full")
    reference_value, reference = _gradients("reference")
    assert full_value == reference_value
    # A layer mask moves the three densities by the same amount, so the reference sees conv3's share of the MACs.
    share = 16 / (16 * 4 + 9 * 16 + 16 * 4) * 4
    assert share == pytest.approx(0.2353, abs=1e-4)
    for ours, theirs in zip(full, reference, strict=True):
        assert ours.abs().sum() > 0
        torch.testing.assert_close(theirs, ours * share, rtol=1e-9, atol=1e-12)


def test_flops_gradient_of_patches_is_larger_in_full() -> None:
    full_value, full = _gradients("full", "spatial")
    reference_value, reference = _gradients("reference", "spatial")
    assert full_value == reference_value
    assert full[1].abs().sum() > 2 * reference[1].abs().sum() > 0


@pytest.mark.parametrize("fix", [True, False])
def test_masker_biases_start_as_intended(fix: bool) -> None:
    model = narrow_resnet50(mode="both", spatial_groups=2, mask_bias_fix=fix)
    for _, block in model.named_blocks():
        spatial, channel = block.masker_spatial.conv.bias, block.masker_channel.conv[2].bias
        groups = len(channel) // 2
        assert spatial[:2].tolist() == [5, 5]
        assert spatial[3] == 0
        assert (spatial[2] == 0) == fix
        assert (channel[:groups] == 2).all()
        assert (channel[groups + 1 :] == -2).all()
        assert (channel[groups] == -2) == fix


def test_weights_start_as_torchvision_starts_them() -> None:
    model = build("laud_resnet50", mode="spatial")
    weight = model.layer3[1].conv2.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (256 * 9)), rel=0.01)
    bound = 1 / math.sqrt(1024)
    masker = model.layer3[1].masker_spatial.conv.weight
    assert bound * 0.9 < masker.abs().max() <= bound
    assert not narrow_resnet50(zero_init_residual=True).layer2[0].bn3.weight.any()


def test_masks_can_be_computed_alone_and_forced() -> None:
    x = torch.randn(2, 3, 64, 64)
    model = randomize(narrow_resnet50(mode="both"), x)
    with torch.no_grad():
        out = model(x)
        y = model.forward_stem(x)
        for masks, (_, block) in zip(out.masks, model.named_blocks(), strict=True):
            size = block.mask_size(y.shape[2], y.shape[3])
            spatial, channel = (block.gates()[name](y, size) for name in ("spatial", "channel"))
            assert torch.equal(spatial, masks.spatial)
            assert torch.equal(channel, masks.channel)
            dense = block.compute(y, None, None)
            torch.testing.assert_close(block.compute(y, torch.ones_like(spatial), torch.ones_like(channel)), dense)
            shortcut = y if block.downsample is None else block.downsample(y)
            assert torch.equal(block.compute(y, torch.zeros_like(spatial), channel), shortcut.relu())
            y = block.compute(y, spatial, channel)
        assert torch.equal(model.forward_head(y), out.logits)
        static = narrow_resnet50(mode="static").eval()
        assert static.layer1[0].gates() == {}


def test_skipped_channels_are_constant_not_zero() -> None:
    x = torch.randn(2, 8, 6, 6)
    model = randomize(narrow_resnet50(mode="channel"), torch.randn(2, 3, 24, 24))
    block = model.layer1[1]
    x = torch.randn(2, block.in_channels, 6, 6).relu()
    with torch.no_grad():
        y = block.compute(x, None, torch.zeros(2, block.masker_channel.groups))
        constant = block.bn2(torch.zeros(1, block.width, 1, 1)).relu()
        expected = (x + block.bn3(block.conv3(constant))).relu()
    assert not torch.allclose(expected, (x + block.bn3(torch.zeros(1, block.out_channels, 1, 1))).relu())
    torch.testing.assert_close(y, expected)


def test_construction_and_forward_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    narrow_resnet50(mode="both").eval()(torch.zeros(1, 3, 32, 32))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "spatail"}, "Did you mean 'spatial'"),
        ({"mode": ("spatial", "layer")}, "has 2 entries: give one value, or four"),
        ({"mode": 3}, "give one of spatial, channel"),
        ({"granularity": 0}, "granularity=0 is not valid"),
        ({"granularity": (4, 4, 2, 1.5)}, r"granularity=1\.5"),
        ({"granularity": True}, "granularity=True"),
        ({"channel_masker": "MLPs"}, "Did you mean 'mlp'"),
        ({"channel_masker_layers": 3}, "give 1 or 2"),
        ({"mode": "channel", "channel_granularity": 5}, "does not split the 64 channels of layer1.0"),
        ({"mode": "channel", "channel_granularity": 128}, "give one of 1, 2, 4, 8, 16, 32, 64"),
        ({"mode": "both", "spatial_groups": 3}, "spatial_groups=3 does not divide the 256 output"),
        ({"mode": "channel", "channel_masker": "conv_linear", "reduction": 65}, "give at most 64"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"width_mult": 0}, "width_mult=0"),
        ({"width_mult": float("nan")}, "width_mult=nan"),
        ({"width_mult": 0.01}, "without channels"),
        ({"width_mult": "1"}, "give a positive number"),
        ({"groups": -1}, "groups=-1"),
        ({"replace_stride_with_dilation": (True, False)}, "three booleans"),
        ({"zero_init_residual": 1}, "give True or False"),
        ({"flops_gradient": "none"}, "Known: full, reference"),
    ],
    ids=str,
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        meta("laud_resnet50", **options)


def test_a_granularity_above_half_the_width_makes_one_group() -> None:
    model = meta("laud_resnet50", mode="channel", channel_granularity=(48, 2, 2, 2))
    assert model.layer1[0].masker_channel.groups == 1


def test_options_survive_a_round_trip() -> None:
    config = LaudResNetConfig(mode=["layer", "both", "both", "static"], granularity=2)
    assert config.mode == ("layer", "both", "both", "static")
    assert config.granularity == (2, 2, 2, 2)
    assert LaudResNetConfig(**config.as_dict()) == config
