"""The dynamic operators in PyTorch, written from their definitions alone: dense arithmetic and masks, in double."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Layer:
    """Sizes of one bottleneck."""

    inputs: int
    middle: int
    outputs: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    projection: bool = False
    squeeze: int = 0  # units of a squeeze-and-excitation; 0: none


def random_weights(layer: Layer, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Float32 weights in PyTorch's order, scaled so that activations keep their size."""

    def tensor(*shape: int, fan: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(fan)).astype(np.float32)

    width = layer.middle // layer.groups
    weights = {
        "w1": tensor(layer.middle, layer.inputs, fan=layer.inputs),
        "b1": tensor(layer.middle, fan=4),
        "w2": tensor(layer.middle, width, 3, 3, fan=9 * width),
        "b2": tensor(layer.middle, fan=4),
        "w3": tensor(layer.outputs, layer.middle, fan=layer.middle),
        "b3": tensor(layer.outputs, fan=4),
    }
    if layer.projection:
        weights["wd"] = tensor(layer.outputs, layer.inputs, fan=layer.inputs)
        weights["bd"] = tensor(layer.outputs, fan=4)
    if layer.squeeze:
        weights["ws"] = tensor(layer.squeeze, layer.middle, fan=layer.middle)
        weights["bs"] = tensor(layer.squeeze, fan=4)
        weights["we"] = tensor(layer.middle, layer.squeeze, fan=layer.squeeze)
        weights["be"] = tensor(layer.middle, fan=1)
    return weights


def bottleneck(
    layer: Layer,
    weights: dict[str, np.ndarray],
    x: np.ndarray,
    spatial_mask: np.ndarray | None = None,
    channel_mask: np.ndarray | None = None,
    *,
    bf16: bool = False,
    pool_active: bool = True,
) -> np.ndarray:
    """Any of the bottlenecks. Shapes: x (N,H,W,C), spatial mask (N,1,mh,mw), channel mask (N,G).

    With a squeeze-and-excitation, skipped channels are zero behind their ReLU, and its mean is over active pixels or,
    without pool_active, over all.

    bf16: weights, and what each convolution reads, are rounded to BF16; where a sample skips some of its channels, the
    difference from a skipped channel's constant is what is rounded.
    """
    w = {name: torch.from_numpy(value).double() for name, value in weights.items()}
    nchw = torch.from_numpy(x).double().permute(0, 3, 1, 2)

    def rounded(v: Tensor) -> Tensor:
        return v.bfloat16().double() if bf16 else v

    w = {name: rounded(value) if name[0] == "w" else value for name, value in w.items()}

    def pointwise(v: Tensor, weight: Tensor) -> Tensor:
        return functional.conv2d(v, weight[:, :, None, None])

    def per_channel(v: Tensor) -> Tensor:
        return v[:, None, None]

    def per_pixel(v: Tensor) -> Tensor:
        return v[:, :, None, None]

    keep = torch.ones(x.shape[0], layer.middle, 1, 1, dtype=torch.float64)
    if channel_mask is not None:
        mask = torch.from_numpy(channel_mask).double()
        keep = mask.repeat_interleave(layer.middle // mask.shape[1], dim=1)[:, :, None, None]
    some = (keep.sum(dim=1, keepdim=True) > 0) & (keep.sum(dim=1, keepdim=True) < layer.middle)

    def stored(h: Tensor, bias: Tensor) -> Tensor:
        constant = torch.where(some, torch.relu(per_channel(bias)), 0.0)
        return rounded(h - constant) + constant

    def masked(z: Tensor, bias: Tensor) -> Tensor:
        if layer.squeeze:
            return rounded(keep * torch.relu(z + per_channel(bias)))
        return stored(torch.relu(keep * z + per_channel(bias)), bias)

    active = torch.ones(1, dtype=torch.bool)
    if spatial_mask is not None:
        _, _, mh, mw = spatial_mask.shape
        ho, wo = ((n - 1) // layer.stride + 1 for n in x.shape[1:3])
        rows = torch.arange(ho) * mh // ho
        columns = torch.arange(wo) * mw // wo
        active = torch.from_numpy(spatial_mask)[:, :, rows][:, :, :, columns] > 0.5
    h1 = masked(pointwise(rounded(nchw), w["w1"]), w["b1"])
    z2 = functional.conv2d(
        h1, w["w2"], stride=layer.stride, padding=layer.dilation, dilation=layer.dilation, groups=layer.groups
    )
    h2 = masked(z2, w["b2"])
    if layer.squeeze:
        pooled = (active if pool_active else torch.ones_like(active)).expand_as(h2[:, :1]).double()
        mean = (h2 * pooled).sum((2, 3)) / pooled.sum((2, 3)).clamp(min=1)
        squeezed = torch.relu(mean @ w["ws"].T + w["bs"])
        h2 = h2 * per_pixel(torch.sigmoid(squeezed @ w["we"].T + w["be"]))
    f = pointwise(h2, w["w3"]) + per_channel(w["b3"])
    shortcut = nchw
    if layer.projection:
        shortcut = pointwise(rounded(nchw)[:, :, :: layer.stride, :: layer.stride], w["wd"]) + per_channel(w["bd"])
    y = torch.relu(shortcut + f)
    if spatial_mask is not None:
        y = torch.where(active, y, torch.relu(shortcut))
    return y.permute(0, 2, 3, 1).contiguous().numpy()


def spatial_logits(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Logits (N,g,mh,mw) of the spatial masker."""
    pooled = functional.adaptive_avg_pool2d(torch.from_numpy(x).double().permute(0, 3, 1, 2), size)
    logits = torch.einsum("nchw,gc->nghw", pooled, torch.from_numpy(weight).double())
    return (logits + torch.from_numpy(bias).double()[:, None, None]).numpy()


def channel_logits(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    hidden_weight: np.ndarray | None = None,
    hidden_bias: np.ndarray | None = None,
) -> np.ndarray:
    """Logits (N,G) of the channel masker, with or without a hidden layer."""
    features = torch.from_numpy(x).double().mean(dim=(1, 2))
    if hidden_weight is not None and hidden_bias is not None:
        features = torch.relu(
            features @ torch.from_numpy(hidden_weight).double().T + torch.from_numpy(hidden_bias).double()
        )
    return (features @ torch.from_numpy(weight).double().T + torch.from_numpy(bias).double()).numpy()


@dataclass(frozen=True)
class Transformer:
    """Sizes and attributes of one transformer block."""

    width: int
    heads: int
    head_width: int
    hidden: int
    token_mlp: int = 0
    head_mode: int = 0
    epsilon: float = 1e-6
    scale: float = 0.125


MASKS = ("token", "head", "attention", "mlp")
"""Masks of a transformer block, in the order of its inputs."""


def transformer_weights(block: Transformer, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Float32 weights in the order of the operator's inputs."""

    def tensor(*shape: int, fan: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(fan)).astype(np.float32)

    width, heads, inner, hidden = block.width, block.heads, block.head_width, block.hidden
    return {
        "norm1_weight": 1 + tensor(width, fan=9),
        "norm1_bias": tensor(width, fan=9),
        "w_qkv": tensor(3, heads, inner, width, fan=width),
        "b_qkv": tensor(3, heads, inner, fan=4),
        "w_proj": tensor(width, heads, inner, fan=heads * inner),
        "b_proj": tensor(width, fan=4),
        "norm2_weight": 1 + tensor(width, fan=9),
        "norm2_bias": tensor(width, fan=9),
        "w_fc1": tensor(hidden, width, fan=width),
        "b_fc1": tensor(hidden, fan=4),
        "w_fc2": tensor(width, hidden, fan=hidden),
        "b_fc2": tensor(width, fan=4),
    }


def transformer(
    block: Transformer, weights: dict[str, np.ndarray], x: np.ndarray, masks: dict[str, np.ndarray]
) -> np.ndarray:
    """The block as the networks are published: dense, with weights, scores and results multiplied by the masks.

    Args:
        block: Its sizes.
        weights: See :func:`transformer_weights`.
        x: (N, T, D).
        masks: Some of ``token`` (N, T), ``head`` (N, A), ``attention`` and ``mlp`` (N, 1, 1, 1).

    Returns:
        (N, T, D), float64.
    """
    w = {name: torch.from_numpy(value).double() for name, value in weights.items()}
    result = []
    for n in range(len(x)):
        row = torch.from_numpy(x[n]).double()
        token = (
            torch.from_numpy(masks["token"][n] > 0.5) if "token" in masks else torch.ones(len(row), dtype=torch.bool)
        )
        head = (
            torch.from_numpy(masks["head"][n] > 0.5).double() if "head" in masks else torch.ones(block.heads).double()
        )
        full = torch.ones(block.heads).double()
        kept = full if block.head_mode == 2 else head  # of the linear layers
        size = (block.width,)
        if "attention" not in masks or masks["attention"].reshape(-1)[n] > 0.5:
            u = functional.layer_norm(row, size, w["norm1_weight"], w["norm1_bias"], block.epsilon)
            q, k, v = torch.einsum("td,saed->sate", u, w["w_qkv"])
            q, k, v = (
                (part + bias[:, None]) * kept[:, None, None] for part, bias in zip((q, k, v), w["b_qkv"], strict=True)
            )
            scores = torch.einsum("ate,aue->atu", q, k) * block.scale
            scores = scores.masked_fill(~(token[:, None] & token[None]), -torch.inf)
            scores = torch.where(torch.eye(len(row), dtype=torch.bool) & ~token[:, None], 0.0, scores)
            weight = torch.softmax(scores, -1)
            if block.head_mode == 2:
                weight = torch.where(head[:, None, None] > 0, weight, torch.eye(len(row), dtype=torch.float64))
            out = torch.einsum("atu,aue->tae", weight, v)
            out = torch.einsum("tae,dae->td", out, w["w_proj"] * kept[None, :, None]) + w["b_proj"]
            row = row + out * token[:, None]
        if "mlp" not in masks or masks["mlp"].reshape(-1)[n] > 0.5:
            u = functional.layer_norm(row, size, w["norm2_weight"], w["norm2_bias"], block.epsilon)
            inputs, units = torch.ones(block.width).double(), torch.ones(block.hidden).double()
            if "head" in masks and block.head_mode == 0:
                inputs = head.repeat_interleave(block.head_width)
            if "head" in masks and block.head_mode == 1:
                units = head.repeat_interleave(block.hidden // block.heads)
            hidden = functional.gelu(functional.linear(u * inputs, w["w_fc1"], w["b_fc1"]) * units)
            out = functional.linear(hidden, w["w_fc2"], w["b_fc2"])
            row = row + (out * token[:, None] if block.token_mlp else out)
        result.append(row)
    return torch.stack(result).numpy()


def row_logits(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, *, normalise: bool, epsilon: float) -> np.ndarray:
    """Logits of rows (..., D) with weight (outputs, D): (..., outputs), in double."""
    rows = torch.from_numpy(x).double()
    if normalise:
        rows = functional.layer_norm(rows, (x.shape[-1],), eps=epsilon)
    return functional.linear(rows, torch.from_numpy(weight).double(), torch.from_numpy(bias).double()).numpy()
