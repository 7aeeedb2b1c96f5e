"""A second opinion on what a Dynamic Perceiver computes: from the state dict, sample by sample, head by head."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MOBILE_STRIDES = (1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1)
MOBILE_HARDSWISH_FROM = 7


def hardswish(x: Tensor) -> Tensor:
    return x * (x + 3).clamp(0, 6) / 6


class Reference:
    """Computes the four exits of one network in eval mode.

    Args:
        weights: Its state dict, float64.
        kind: "regnet", "mobilenet_v3" or "resnet".
        heads: Heads of the self-attention of each stage.
        grid: Rows and columns of a pooled map.
        stem_stride: Of a ResNet.
        stem_pool: Of a ResNet.
    """

    def __init__(
        self,
        weights: dict[str, Tensor],
        kind: str,
        heads: tuple[int, ...] = (1, 2, 4, 8),
        grid: int = 7,
        stem_stride: int = 2,
        stem_pool: bool = True,
    ) -> None:
        self.w, self.kind, self.heads, self.grid = weights, kind, heads, grid
        self.stem_stride, self.stem_pool = stem_stride, stem_pool

    def __call__(self, images: Tensor) -> list[Tensor]:
        samples = [self.sample(images[n : n + 1]) for n in range(images.shape[0])]
        return [torch.cat([sample[k] for sample in samples]) for k in range(4)]

    def sample(self, image: Tensor) -> list[Tensor]:
        x = self.stem(image)
        z = self.x2z(1, self.w["latent"], x)
        z = self.self_attention(1, z)
        x = self.stage(1, x)
        for i in (2, 3, 4):
            z = self.mix(i - 2, z)
            if self.has(f"cross_att{i}_z2x"):
                x = self.z2x(f"cross_att{i}_z2x", x, z)
            if self.has(f"cross_att{i}_x2z"):
                z = self.x2z(i, z, x)
            z = self.self_attention(i, z)
            if i == 3:
                early = self.linear(z.mean(0), "early_classifier3")
            if i < 4:
                x = self.stage(i, x)
        mean = z.mean(0)
        features = [mean]
        if self.has("isc3"):
            features.append(F.relu(self.norm1d(self.linear(early, "isc3.0"), "isc3.1")))
        att = self.linear(torch.cat(features), "classifier_att")
        x = self.stage(4, x)
        cnn = self.head(x.mean((2, 3))[0], "classifier_cnn", 0)
        if self.has("last_cross_att_z2x"):
            x = self.z2x("last_cross_att_z2x", x, z)
        features = [x.mean((2, 3))[0], mean]
        if self.has("isc4"):
            features.append(F.relu(self.norm1d(self.linear(att, "isc4.0"), "isc4.1")))
        merged = self.norm1d(torch.cat(features), "classifier_merge.0")
        return [logits[None] for logits in (early, att, cnn, self.head(merged, "classifier_merge", 1))]

    def has(self, part: str) -> bool:
        return any(key.startswith(f"{part}.") for key in self.w)

    def linear(self, x: Tensor, key: str) -> Tensor:
        y = torch.einsum("...i,oi->...o", x, self.w[f"{key}.weight"])
        return y + self.w[f"{key}.bias"] if f"{key}.bias" in self.w else y

    def head(self, x: Tensor, key: str, first: int) -> Tensor:
        if self.kind == "mobilenet_v3":
            return self.linear(hardswish(self.linear(x, f"{key}.{first}")), f"{key}.{first + 3}")
        return self.linear(x, key if f"{key}.weight" in self.w else f"{key}.{first}")

    def scale_shift(self, key: str, eps: float) -> tuple[Tensor, Tensor]:
        scale = self.w[f"{key}.weight"] / torch.sqrt(self.w[f"{key}.running_var"] + eps)
        return scale, self.w[f"{key}.bias"] - self.w[f"{key}.running_mean"] * scale

    def norm1d(self, x: Tensor, key: str) -> Tensor:
        scale, shift = self.scale_shift(key, 1e-5)
        return x * scale + shift

    def convolved(self, x: Tensor, key: str, norm: str, stride: int = 1) -> Tensor:
        weight = self.w[f"{key}.weight"]
        groups = x.shape[1] // weight.shape[1]
        y = F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2, groups=groups)
        scale, shift = self.scale_shift(norm, 1e-3 if self.kind == "mobilenet_v3" else 1e-5)
        return y * scale[:, None, None] + shift[:, None, None]

    def pair(self, x: Tensor, key: str, stride: int = 1) -> Tensor:
        return self.convolved(x, f"{key}.0", f"{key}.1", stride)

    def gate(self, x: Tensor, key: str) -> Tensor:
        hidden = F.relu(self.linear_1x1(x.mean((2, 3)), f"{key}.fc1"))
        values = self.linear_1x1(hidden, f"{key}.fc2")
        gate = (values + 3).clamp(0, 6) / 6 if self.kind == "mobilenet_v3" else 1 / (1 + torch.exp(-values))
        return x * gate[:, :, None, None]

    def linear_1x1(self, x: Tensor, key: str) -> Tensor:
        return x @ self.w[f"{key}.weight"][:, :, 0, 0].T + self.w[f"{key}.bias"]

    def stem(self, image: Tensor) -> Tensor:
        if self.kind == "regnet":
            return F.relu(self.pair(image, "cnn_stem", 2))
        if self.kind == "resnet":
            x = F.relu(self.pair(image, "cnn_stem", self.stem_stride))
            return F.max_pool2d(x, 3, 2, 1) if self.stem_pool else x
        x = hardswish(self.pair(image, "cnn_stem.0", 2))
        for block in (1, 2):
            x = self.inverted(x, f"cnn_stem.{block}.block", block)
        return x

    def stage(self, number: int, x: Tensor) -> Tensor:
        if self.kind == "regnet":
            return self.regnet_stage(number, x)
        if self.kind == "resnet":
            return self.resnet_stage(number, x)
        first = (3, 5, 8, 14)[number - 1]
        index = 0
        while self.has(f"cnn_body_stage{number}.{index}.block"):
            x = self.inverted(x, f"cnn_body_stage{number}.{index}.block", first + index)
            index += 1
        return hardswish(self.pair(x, f"cnn_body_stage4.{index}")) if number == 4 else x

    def regnet_stage(self, number: int, x: Tensor) -> Tensor:
        index = 0
        while self.has(f"cnn_body.block{number}.block{number}-{index}"):
            key = f"cnn_body.block{number}.block{number}-{index}"
            stride = 2 if index == 0 else 1
            y = F.relu(self.pair(x, f"{key}.f.a"))
            y = F.relu(self.pair(y, f"{key}.f.b", stride))
            y = self.pair(self.gate(y, f"{key}.f.se"), f"{key}.f.c")
            shortcut = self.pair(x, f"{key}.proj", stride) if self.has(f"{key}.proj") else x
            x = F.relu(shortcut + y)
            index += 1
        return x

    def resnet_stage(self, number: int, x: Tensor) -> Tensor:
        index = 0
        while self.has(f"cnn_body_stage{number}.{index}"):
            key = f"cnn_body_stage{number}.{index}"
            stride = 2 if index == 0 and number > 1 else 1
            strides = (1, stride, 1) if self.has(f"{key}.conv3") else (stride, 1)
            y = x
            for layer, step in enumerate(strides, start=1):
                y = self.convolved(y, f"{key}.conv{layer}", f"{key}.bn{layer}", step)
                y = F.relu(y) if layer < len(strides) else y
            shortcut = self.pair(x, f"{key}.downsample", stride) if self.has(f"{key}.downsample") else x
            x = F.relu(shortcut + y)
            index += 1
        return x

    def inverted(self, x: Tensor, key: str, number: int) -> Tensor:
        activation = hardswish if number >= MOBILE_HARDSWISH_FROM else F.relu
        stride = MOBILE_STRIDES[number - 1]
        y, layer = x, 0
        if self.w[f"{key}.0.0.weight"].shape[1] != 1:
            y, layer = activation(self.pair(y, f"{key}.0")), 1
        y = activation(self.pair(y, f"{key}.{layer}", stride))
        if self.has(f"{key}.{layer + 1}.fc1"):
            layer += 1
            y = self.gate(y, f"{key}.{layer}")
        y = self.pair(y, f"{key}.{layer + 1}")
        return x + y if y.shape == x.shape and stride == 1 else y

    def pooled(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        cells = []
        for i in range(self.grid):
            top, bottom = i * height // self.grid, math.ceil((i + 1) * height / self.grid)
            for j in range(self.grid):
                left, right = j * width // self.grid, math.ceil((j + 1) * width / self.grid)
                cells.append(x[0, :, top:bottom, left:right].mean((1, 2)))
        return torch.stack(cells)

    def layer_norm(self, x: Tensor, key: str) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        variance = ((x - mean) ** 2).mean(-1, keepdim=True)
        return (x - mean) / torch.sqrt(variance + 1e-5) * self.w[f"{key}.weight"] + self.w[f"{key}.bias"]

    def attention(self, query: Tensor, source: Tensor, key: str, heads: int) -> Tensor:
        q, k, v = (self.linear(t, f"{key}.{p}_proj") for t, p in ((query, "q"), (source, "k"), (source, "v")))
        if f"{key}.relative_position_bias" in self.w:
            k = k + self.w[f"{key}.relative_position_bias"][0]
        width = q.shape[1] // heads
        results = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = torch.exp(q[:, part] @ k[:, part].T / math.sqrt(width))
            results.append(scores / scores.sum(1, keepdim=True) @ v[:, part])
        return self.linear(torch.cat(results, 1), f"{key}.o_proj")

    def mlp(self, x: Tensor, key: str) -> Tensor:
        hidden = self.linear(self.layer_norm(x, f"{key}.layernorm"), f"{key}.fc1")
        return self.linear(hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))), f"{key}.fc2")

    def cross(self, query: Tensor, source: Tensor, key: str) -> Tensor:
        inner = f"{key}.cross_attn"
        q, kv = self.layer_norm(query, f"{inner}.q_norm"), self.layer_norm(source, f"{inner}.kv_norm")
        y = query + self.attention(q, kv, f"{inner}.attention", 1)
        return y + self.mlp(y, f"{key}.mlp")

    def x2z(self, number: int, z: Tensor, x: Tensor) -> Tensor:
        if self.has(f"dwc{number}_x2z"):
            weight, bias = self.w[f"dwc{number}_x2z.weight"], self.w[f"dwc{number}_x2z.bias"]
            x = x + F.conv2d(x, weight, bias, padding=3, groups=x.shape[1])
        return self.cross(z, self.pooled(x), f"cross_att{number}_x2z")

    def z2x(self, key: str, x: Tensor, z: Tensor) -> Tensor:
        channels, height, width = x.shape[1:]
        pixels = torch.stack([x[0, :, i // width, i % width] for i in range(height * width)])
        written = self.cross(pixels, z, key)
        return written.T.reshape(1, channels, height, width)

    def self_attention(self, number: int, z: Tensor) -> Tensor:
        layer = 0
        while self.has(f"self_att{number}.{layer}"):
            key = f"self_att{number}.{layer}"
            normed = self.layer_norm(z, f"{key}.self_attn.norm")
            z = z + self.attention(normed, normed, f"{key}.self_attn.attention", self.heads[number - 1])
            z = z + self.mlp(z, f"{key}.mlp")
            layer += 1
        return z

    def mix(self, index: int, z: Tensor) -> Tensor:
        key = f"token_mixer.{index}"
        mixed = self.linear(self.layer_norm(z.T, f"{key}.0"), f"{key}.1").T
        key = f"token_expander.{index}"
        return self.linear(self.layer_norm(mixed, f"{key}.0"), f"{key}.1")
