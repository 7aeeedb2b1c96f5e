"""Networks whose masks really vary, and a second opinion on what a LAUD-ResNet computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyndeploy.nets import LaudResNet, create_model

MODES = ("spatial", "channel", "layer", "both", "static")


def build(name: str, **options: Any) -> LaudResNet:
    model = create_model(name, **options)
    assert isinstance(model, LaudResNet)
    return model


def narrow_resnet50(**options: Any) -> LaudResNet:
    """A ResNet-50 of an eighth of the width: all of its structure, little of its cost."""
    return build("laud_resnet50", **{"width_mult": 0.125, "num_classes": 7, **options})


@torch.no_grad()
def randomize(model: LaudResNet, x: Tensor, seed: int = 0) -> LaudResNet:
    """Give batch norms random statistics and maskers random weights, balanced on x; return it in eval mode.

    Balanced: the mean of compute - skip over samples and positions is moved to zero for every mask entry, so
    that about half of the decisions on x fall either way.
    """
    generator = torch.Generator().manual_seed(seed)

    def fill(tensor: Tensor, low: float, high: float) -> None:
        values = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
        tensor.copy_(values * (high - low) + low)

    def balance(layer: nn.Conv2d | nn.Linear, logits: Callable[[], Tensor]) -> None:
        fill(layer.weight, -1, 1)
        fill(layer.bias, -1, 1)
        # Unit spread: much larger logits would saturate the Gumbel-softmax and hide its gradient.
        pair = logits().transpose(0, 2).flatten(2)  # (groups, compute | skip, ...)
        layer.weight /= (pair[:, 0] - pair[:, 1]).std(correction=0).clamp(min=0.1)
        pair = logits().transpose(0, 2).flatten(2).mean(2)
        layer.bias[: len(pair)] -= pair[:, 0] - pair[:, 1]

    model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            fill(module.running_mean, -0.3, 0.3)
            fill(module.running_var, 0.5, 1.5)
            fill(module.weight, 0.5, 1.5)
            fill(module.bias, -0.5, 0.5)
    y = model.forward_stem(x)
    for _, block in model.named_blocks():
        spatial, channel = block.masker_spatial, block.masker_channel
        if spatial is not None:
            size = block.mask_size(y.shape[2], y.shape[3])
            balance(spatial.conv, lambda m=spatial, y=y, size=size: m.logits(y, size))
        if channel is not None:
            last = [m for m in channel.modules() if isinstance(m, nn.Linear)][-1]
            balance(last, lambda m=channel, y=y: m.logits(y))
        y, _ = block(y)
    return model


def reference_forward(
    weights: dict[str, Tensor],
    x: Tensor,
    *,
    blocks: tuple[int, ...],
    modes: tuple[str, ...],
    granularity: tuple[int, ...],
    stem_stride: int = 2,
    stem_pool: bool = True,
) -> dict[str, Any]:
    """Compute a LAUD-ResNet in eval mode from the description of the LAUDNet reference code, square maps only.

    Written without the network's own code: per sample, from the state dict, masks spread by ``interpolate`` and
    dilated by the reference's all-ones convolution.
    """

    def norm(z: Tensor, key: str) -> Tensor:
        scale = weights[f"{key}.weight"] / torch.sqrt(weights[f"{key}.running_var"] + 1e-5)
        shift = weights[f"{key}.bias"] - weights[f"{key}.running_mean"] * scale
        return z * scale[:, None, None] + shift[:, None, None]

    def spatial_mask(z: Tensor, key: str, side: int) -> tuple[Tensor, int]:
        weight, bias = weights[f"{key}.weight"], weights[f"{key}.bias"]
        rows = z.shape[2]
        if side < rows:
            pooled = torch.zeros(1, z.shape[1], side, side, dtype=z.dtype)
            for i in range(side):
                for j in range(side):
                    top, bottom = i * rows // side, -(-(i + 1) * rows // side)
                    left, right = j * rows // side, -(-(j + 1) * rows // side)
                    pooled[:, :, i, j] = z[:, :, top:bottom, left:right].mean((2, 3))
            z = pooled
        logits = torch.einsum("oc,ncij->noij", weight[:, :, 0, 0], z) + bias[:, None, None]
        g = weight.shape[0] // 2
        c = weight.shape[1]
        macs = c * side * side + (2 * g * c + c) * side * side
        return (logits[:, :g] >= logits[:, g:]).to(z.dtype), macs

    def channel_mask(z: Tensor, key: str) -> tuple[Tensor, int]:
        c, pixels = z.shape[1], z.shape[2] * z.shape[3]
        if f"{key}.linear.weight" in weights:
            w = weights[f"{key}.conv.0.weight"]
            hidden = F.relu(norm(F.conv2d(z, w), f"{key}.conv.1")).mean((2, 3))
            w2, b2 = weights[f"{key}.linear.weight"], weights[f"{key}.linear.bias"]
            macs = w.shape[0] * pixels + c * w.shape[0] + w2.numel()
        elif f"{key}.conv.weight" in weights:
            hidden = z.mean((2, 3))
            w2, b2 = weights[f"{key}.conv.weight"], weights[f"{key}.conv.bias"]
            macs = c * pixels + w2.numel()
        else:
            w = weights[f"{key}.conv.0.weight"]
            hidden = F.relu(z.mean((2, 3)) @ w.T + weights[f"{key}.conv.0.bias"])
            w2, b2 = weights[f"{key}.conv.2.weight"], weights[f"{key}.conv.2.bias"]
            macs = c * pixels + w.numel() + w2.numel()
        logits = hidden @ w2.T + b2
        half = logits.shape[1] // 2
        return (logits[:, :half] >= logits[:, half:]).to(z.dtype), macs

    def spread(mask: Tensor, channels: int) -> Tensor:
        groups = mask.shape[1]
        return torch.stack([mask[:, k // (channels // groups)] for k in range(channels)], 1)

    def expand(mask: Tensor, stride: int, padding: int) -> Tensor:
        g = mask.shape[1]
        if stride > 1:
            corner = torch.zeros(g, 1, stride, stride, dtype=mask.dtype)
            corner[:, :, 0, 0] = 1
            mask = F.conv_transpose2d(mask, corner, stride=stride, groups=g)
        ones = torch.ones(g, g, 2 * padding + 1, 2 * padding + 1, dtype=mask.dtype)
        return (F.conv2d(mask, ones, padding=padding) > 0.5).to(mask.dtype)

    samples = []
    for n in range(x.shape[0]):
        stem = weights["conv1.weight"]
        y = F.conv2d(x[n : n + 1], stem, stride=stem_stride, padding=stem.shape[2] // 2)
        macs = float(stem.numel() * y.shape[2] * y.shape[3])
        y = F.relu(norm(y, "bn1"))
        if stem_pool:
            y = F.max_pool2d(y, 3, 2, 1)
            macs += y[0].numel() * 9
        masks: dict[str, tuple[Tensor | None, Tensor | None]] = {}
        costs = []
        for stage, count in enumerate(blocks):
            for index in range(count):
                key = f"layer{stage + 1}.{index}"
                stride = 2 if stage > 0 and index == 0 else 1
                side = y.shape[2] // stride
                mode = modes[stage]
                w1, w2, w3 = (weights[f"{key}.conv{i}.weight"] for i in (1, 2, 3))
                spatial = channel = None
                masker_macs = 0
                m1 = m2 = m3 = torch.ones((), dtype=x.dtype)
                c = torch.ones((), dtype=x.dtype)
                if mode in ("channel", "both"):
                    channel, extra = channel_mask(y, f"{key}.masker_channel")
                    masker_macs += extra
                    c = channel
                if mode in ("spatial", "layer", "both"):
                    patches = 1 if mode == "layer" else max(1, side // granularity[stage])
                    spatial, extra = spatial_mask(y, f"{key}.masker_spatial.conv", patches)
                    masker_macs += extra
                    m3 = spatial
                    pixels = F.interpolate(spatial, (side, side), mode="nearest")
                    m2 = expand(pixels, 1, 0)
                    m1 = expand(m2, stride, 1)
                z = F.conv2d(y, w1)
                if channel is not None:
                    z = z * spread(channel, z.shape[1])[:, :, None, None]
                z = F.relu(norm(z, f"{key}.bn1"))
                groups = w2.shape[0] // w2.shape[1]
                z = F.conv2d(z, w2, stride=stride, padding=1, groups=groups)
                if channel is not None:
                    z = z * spread(channel, z.shape[1])[:, :, None, None]
                z = F.relu(norm(z, f"{key}.bn2"))
                z = norm(F.conv2d(z, w3), f"{key}.bn3")
                if spatial is not None:
                    z = z * spread(pixels, z.shape[1])
                shortcut, shortcut_macs = y, 0
                if f"{key}.downsample.0.weight" in weights:
                    wd = weights[f"{key}.downsample.0.weight"]
                    shortcut = norm(F.conv2d(y, wd, stride=stride), f"{key}.downsample.1")
                    shortcut_macs = wd.numel() * side * side
                full = (
                    w1.numel() * y.shape[2] * y.shape[3],
                    w2.numel() * side * side,
                    w3.numel() * side * side,
                    masker_macs + shortcut_macs,
                )
                masks[key] = (spatial, channel)
                costs.append((full, m3, m2, m1, c))
                y = F.relu(z + shortcut)
        macs += y.shape[1]
        logits = y.mean((2, 3)) @ weights["fc.weight"].T + weights["fc.bias"]
        macs += weights["fc.weight"].numel()
        samples.append((logits, masks, costs, macs))

    names = list(samples[0][1])
    densities = {
        part: [torch.stack([s[2][b][k].mean() for s in samples]).mean() for b in range(len(names))]
        for k, part in ((1, "conv3"), (2, "conv2"), (3, "conv1"), (4, "channel"))
    }
    flops = samples[0][3]
    ratios = []
    for b in range(len(names)):
        (f1, f2, f3, rest), c = samples[0][2][b][0], densities["channel"][b]
        sparse = (
            f1 * c * densities["conv1"][b] + f2 * c**2 * densities["conv2"][b] + f3 * c * densities["conv3"][b] + rest
        )
        flops += float(sparse)
        ratios.append(float(sparse) / (f1 + f2 + f3 + rest))
    return {
        "logits": torch.cat([s[0] for s in samples]),
        "masks": {
            name: tuple(
                None if samples[0][1][name][k] is None else torch.cat([s[1][name][k] for s in samples]) for k in (0, 1)
            )
            for name in names
        },
        "densities": densities,
        "flops": flops,
        "ratios": torch.tensor(ratios, dtype=x.dtype),
    }
