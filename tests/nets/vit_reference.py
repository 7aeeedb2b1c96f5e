"""A second opinion on adaptive vision transformers: compact execution, one image at a time, from the paper's rules.

Nothing here multiplies by masks: dropped tokens, heads and sublayers are not computed.
"""

from __future__ import annotations

import csv
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

DATA = Path(__file__).parent / "data"
HEAD = 64
State = Mapping[str, Tensor]

OPTIONS: dict[str, dict[str, Any]] = {
    "static": {},
    "token": {"token": True},
    "token_mlp": {"token_with_mlp": True},
    "head": {"head": True},
    "layer": {"layer": True},
    "all": {"token_with_mlp": True, "head": True, "layer": True},
    "head_v2": {"head_v2": True},
    "head_attn_token": {"head_attn": True, "token": True},
    "all_keep4_start3_norm": {
        "token_with_mlp": True, "head": True, "layer": True, "keep_layers": 4, "token_start_layer": 3,
        "norm_policy": True,
    },
}  # fmt: skip
"""Options by the names of the reference's configurations."""


def official_keys(network: str, configuration: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the official code's weights; in the file, runs of blocks are one line."""
    found = {}
    with (DATA / "ada_vit_keys.tsv").open(newline="") as stream:
        for row in csv.DictReader(stream, delimiter="\t"):
            if (row["network"], row["configuration"]) != (network, configuration):
                continue
            shape = tuple(int(part) for part in row["shape"].strip("()").split(",") if part.strip())
            first, _, last = row["blocks"].partition("-")
            for block in range(int(first), int(last) + 1) if row["blocks"] else (0,):
                found[row["key"].replace("*", str(block))] = shape
    return found


def fill(key: str, shape: tuple[int, ...], t2t: bool) -> np.ndarray:
    """Weights by name, as the reference's runs have them, so that both are the same network."""
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    if key == "pos_embed":
        if t2t:
            feature = np.arange(shape[2])
            angle = np.arange(shape[1])[:, None] / 10000.0 ** (2 * (feature // 2) / shape[2])
            return np.where(feature % 2 == 0, np.sin(angle), np.cos(angle))[None].astype(np.float32)
        return (0.3 * rng.standard_normal(shape)).astype(np.float32)
    if key == "cls_token":
        return (0.5 * rng.standard_normal(shape)).astype(np.float32)
    if key.endswith(".w"):
        return (rng.standard_normal(shape) * np.sqrt(shape[0] / shape[1])).astype(np.float32)
    if key.endswith("bias"):
        return (0.1 * rng.standard_normal(shape)).astype(np.float32)
    if len(shape) == 1:
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    fan_in = int(np.prod(shape[1:]))
    if ".kqv." in key:
        weight = rng.standard_normal(shape) * np.sqrt(1.0 / fan_in)
        weight[: 2 * shape[0] // 3] *= 0.22
        return weight.astype(np.float32)
    gain = 1.0
    if "_select." in key:
        gain = 2.0 if "token" in key else 8.0
    elif ".query." in key or ".key." in key or ".fc1." in key:
        gain = 2.0
    return (rng.standard_normal(shape) * np.sqrt(gain / fan_in)).astype(np.float32)


def filled(shapes: Mapping[str, tuple[int, ...]], biases: Mapping[str, np.ndarray] | None = None) -> dict[str, Tensor]:
    """A whole state; biases replace what the rule gives."""
    t2t = any(key.startswith("tokens_to_token.") for key in shapes)
    known = biases or {}
    return {
        key: torch.from_numpy(known[key] if key in known else fill(key, shape, t2t)).reshape(shape)
        for key, shape in shapes.items()
    }


def images(count: int, size: int = 224) -> Tensor:
    return torch.from_numpy(np.random.default_rng(7).standard_normal((count, 3, size, size)).astype(np.float32))


class Result(NamedTuple):
    logits: Tensor
    token: Tensor | None
    head: Tensor | None
    layer: Tensor | None


def run(state: State, x: Tensor, options: Mapping[str, Any]) -> Result:
    """What a batch of images gives; the options say what no weight tells."""
    rows = [_image(state, image[None], options) for image in x]
    stacked = [torch.stack([row[index] for row in rows]) if rows[0][index].numel() else None for index in range(1, 4)]
    return Result(torch.stack([row[0] for row in rows]), *stacked)


def _linear(state: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def _norm(state: State, name: str, x: Tensor, epsilon: float) -> Tensor:
    weight = state[f"{name}.weight"]
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + epsilon).sqrt() * weight + state[f"{name}.bias"]


def _gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def _windows(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """(tokens, C kernel^2) of a map (C, H, W), channel-major."""
    x = F.pad(x, (padding,) * 4)
    found = x.unfold(1, kernel, stride).unfold(2, kernel, stride)
    return found.permute(1, 2, 0, 3, 4).reshape(found.shape[1] * found.shape[2], -1)


def _performer(state: State, name: str, x: Tensor) -> Tensor:
    key, query, value = _linear(state, f"{name}.kqv", _norm(state, f"{name}.norm1", x, 1e-5)).split(64, dim=1)
    w = state[f"{name}.w"]

    def features(z: Tensor) -> Tensor:
        return torch.exp(torch.einsum("te,me->tm", z, w) - 0.5 * (z * z).sum(1)[:, None]) / math.sqrt(len(w))

    key, query = features(key), features(query)
    outer = torch.einsum("te,tm->em", value, key)
    mixed = torch.einsum("em,tm->te", outer, query) / (torch.einsum("tm,sm->t", query, key)[:, None] + 1e-8)
    y = value + _linear(state, f"{name}.proj", mixed)
    hidden = _gelu(_linear(state, f"{name}.mlp.0", _norm(state, f"{name}.norm2", y, 1e-5)))
    return y + _linear(state, f"{name}.mlp.2", hidden)


def _embed(state: State, image: Tensor) -> Tensor:
    if "patch_embed.proj.weight" in state:
        weight = state["patch_embed.proj.weight"]
        patches = _windows(image, weight.shape[2], weight.shape[2], 0)
        return patches @ weight.flatten(1).T + state["patch_embed.proj.bias"]
    side = image.shape[1] // 4
    x = _performer(state, "tokens_to_token.attention1", _windows(image, 7, 4, 2))
    x = _performer(state, "tokens_to_token.attention2", _windows(x.T.reshape(64, side, side), 3, 2, 1))
    return _linear(state, "tokens_to_token.project", _windows(x.T.reshape(64, side // 2, side // 2), 3, 2, 1))


def _image(state: State, image: Tensor, options: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    epsilon = 1e-6 if "patch_embed.proj.weight" in state else 1e-5
    tokens = _embed(state, image[0])
    x = torch.cat([state["cls_token"][0], tokens]) + state["pos_embed"][0]
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    token_masks, head_masks, layer_masks = [], [], []
    for index in range(depth):
        name = f"blocks.{index}"
        own = {key[len(name) + 1 :]: value for key, value in state.items() if key.startswith(f"{name}.")}
        x, token, head, layer = _block(own, x, epsilon, options)
        token_masks += [] if token is None else [token]
        head_masks += [] if head is None else [head]
        layer_masks += [] if layer is None else [layer]
    logits = _linear(state, "head", _norm(state, "norm", x[:1], epsilon))[0]
    masks = [torch.stack(m) if m else torch.empty(0) for m in (token_masks, head_masks, layer_masks)]
    return (logits, *masks)  # type: ignore[return-value]


def _block(
    own: State, x: Tensor, epsilon: float, options: Mapping[str, Any]
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    heads = x.shape[1] // HEAD
    policy = x[:1]
    if "norm_policy.weight" in own:
        policy = _norm(own, "norm_policy", policy, epsilon)
    layer = head = token = None
    runs, chosen = torch.ones(2), torch.arange(heads)
    if "layer_select.mlp_head.weight" in own:
        layer = (_linear(own, "layer_select.mlp_head", policy)[0] > 0).to(x.dtype)
        runs = layer
    if "head_select.mlp_head.weight" in own:
        head = (_linear(own, "head_select.mlp_head", policy)[0] > 0).to(x.dtype)
        chosen = head.nonzero()[:, 0]
    rows = torch.arange(len(x))
    if "attn.token_select.mlp_head.weight" in own:
        logits = _linear(own, "attn.token_select.mlp_head", _norm(own, "norm1", x, epsilon)[1:])[:, 0]
        token = torch.cat([torch.ones(1), (torch.sigmoid(logits) > 0.6).to(torch.float32)]).to(x.dtype)
        rows = token.nonzero()[:, 0]
    passes, units = bool(options.get("head_attn")), bool(options.get("head_v2"))
    channels = (chosen[:, None] * HEAD + torch.arange(HEAD)).flatten()
    x = x.clone()
    if runs[0]:
        normal = _norm(own, "norm1", x[rows], epsilon)
        computed = torch.arange(heads) if passes else chosen
        out = torch.zeros(len(rows), heads, HEAD, dtype=x.dtype)
        for h in computed.tolist():
            span = slice(h * HEAD, (h + 1) * HEAD)
            q, k, v = (
                F.linear(
                    normal,
                    own[f"attn.{part}.weight"][span],
                    own[f"attn.{part}.bias"][span] if f"attn.{part}.bias" in own else None,
                )
                for part in ("query", "key", "value")
            )
            out[:, h] = v if passes and h not in chosen.tolist() else (q @ k.T / math.sqrt(HEAD)).softmax(1) @ v
        if passes:
            x[rows] += _linear(own, "attn.proj", out.flatten(1))
        else:
            mixed = out[:, chosen].flatten(1)
            x[rows] += mixed @ own["attn.proj.weight"][:, channels].T + own["attn.proj.bias"]
    if runs[1]:
        limited = rows if options.get("token_with_mlp") else torch.arange(len(x))
        normal = _norm(own, "norm2", x[limited], epsilon)
        if passes:
            hidden = _gelu(_linear(own, "mlp.fc1", normal))
            x[limited] += _linear(own, "mlp.fc2", hidden)
        elif units:
            share = own["mlp.fc1.weight"].shape[0] // heads
            kept = (chosen[:, None] * share + torch.arange(share)).flatten()
            hidden = _gelu(normal @ own["mlp.fc1.weight"][kept].T + own["mlp.fc1.bias"][kept])
            x[limited] += hidden @ own["mlp.fc2.weight"][:, kept].T + own["mlp.fc2.bias"]
        else:
            hidden = _gelu(normal[:, channels] @ own["mlp.fc1.weight"][:, channels].T + own["mlp.fc1.bias"])
            x[limited] += _linear(own, "mlp.fc2", hidden)
    return x, token, head, layer
