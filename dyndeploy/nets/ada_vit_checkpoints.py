"""Files of vision transformers' weights: AdaViT's own, and those of plain ViTs, whose networks have no policies."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyndeploy.nets.checkpoint_rules import CheckpointRules, joined, listing

if TYPE_CHECKING:
    from dyndeploy.nets.ada_vit import AdaVit

_POLICY = re.compile(r"^blocks\.(\d+)\.(?:attn\.)?(token_select|head_select|layer_select|norm_policy)\.")
_BLOCK = re.compile(r"^blocks\.(\d+)\.")
_TOGETHER = re.compile(r"^(blocks\.\d+\.attn)\.qkv\.(weight|bias)$")
_ALWAYS = 5.0
"""Bias of policies that no file says anything of: sigmoid(5) is above every usual threshold."""

_OTHERS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"^(dist_token|head_dist)"), "is a distilled DeiT, with a second class token"),
    (re.compile(r"^reg_token"), "has register tokens"),
    (re.compile(r"\.(ls[12]\.gamma|gamma_[12])$"), "has layer scale"),
    (re.compile(r"\.attn\.[qk]_norm\."), "normalises queries and keys"),
    (re.compile(r"^fc_norm\."), "averages all tokens instead of reading the class token"),
    (re.compile(r"^(norm_pre|patch_embed\.norm)\."), "normalises tokens before the first block"),
)
"""Weights of vision transformers that these networks cannot stand for, and what such a file is."""


class AdaVitRules(CheckpointRules):
    """The rules of one network.

    Args:
        network: It.
    """

    preferred = "state_dict_ema"

    def __init__(self, network: AdaVit) -> None:
        self.network = network
        self._notes: list[str] = []

    def adapted(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Split queries, keys and values that are one layer, and resize the positions where that is asked for."""
        self._notes = []
        found: dict[str, Tensor] = {}
        for key, value in weights.items():
            together = _TOGETHER.match(key)
            if together and value.ndim and value.shape[0] % 3 == 0:
                parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
                found |= {f"{together[1]}.{name}.{together[2]}": part for name, part in parts}
            else:
                found[key] = value
        if len(found) > len(weights):
            self._notes.append(
                "queries, keys and values of one layer each (attn.qkv) were split. Of timm's models, vit_* are for "
                "images of mean and std 0.5, deit_* for ImageNet's: see that the preprocessing is the file's"
            )
        own = self.network.pos_embed
        theirs = found.get("pos_embed")
        if self.network.config.resize_positions and theirs is not None and _grids(theirs, own) is not None:
            side, wanted = _grids(theirs, own) or (0, 0)
            if side != wanted:
                found["pos_embed"] = _resized(theirs, side, wanted)
                self._notes.append(
                    f"its table of positions for {side} x {side} patches was resized to {wanted} x {wanted} (bicubic)"
                )
        return found

    def notes(self) -> tuple[str, ...]:
        """See :class:`CheckpointRules`."""
        return tuple(self._notes)

    def start_values(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Policies that compute everything, where a file has none: its network is then computed as it was trained."""
        if _policies(weights):
            return {}
        own = {key: value for key, value in self.network.state_dict().items() if _POLICY.match(key)}
        if own:
            self._notes.append(
                "it has no policies: those of this network are not trained, and start by computing everything"
            )
        return {
            key: torch.full_like(value, _ALWAYS if key.endswith("bias") else 0.0)
            for key, value in own.items()
            if ".norm_policy." not in key
        }

    def may_lack(self, key: str) -> bool:
        """Policies, which static networks have not."""
        return _POLICY.match(key) is not None

    def may_ignore(self, key: str) -> bool:
        """Policies, in a static network."""
        return _POLICY.match(key) is not None

    def another_architecture(self, weights: Mapping[str, Tensor]) -> str | None:
        """Name what these networks have not, another kind of first layers, another depth."""
        for pattern, what in _OTHERS:
            if any(pattern.search(key) for key in weights):
                return (
                    f"{what}: the networks of this family have not, and would compute something else with the rest. "
                    "Export such a network from its own code (see examples/)."
                )
        for prefix, what in (("tokens_to_token.", "a T2T-ViT"), ("patch_embed.", "a DeiT or ViT")):
            theirs = any(key.startswith(prefix) for key in weights)
            if theirs and not any(key.startswith(prefix) for key in self.network.state_dict()):
                return f"belongs to another architecture: it is {what}, and {self.network.name} is none."
        depth = 1 + max((int(found[1]) for key in weights if (found := _BLOCK.match(key))), default=-1)
        if depth and depth != self.network.sizes.depth:
            return (
                f"belongs to another architecture: it has {depth} blocks, and {self.network.name} has "
                f"{self.network.sizes.depth}. Create the network that it was saved from."
            )
        return None

    def conflict(self, weights: Mapping[str, Tensor], options: Mapping[str, Any]) -> str | None:
        """Compare the policies of every block, and what no weight tells of them where the file says it."""
        theirs, ours = _policies(weights), _policies(self.network.state_dict())
        if not theirs or not ours:
            return None
        if theirs != ours:
            return (
                f"has {_described(theirs)}; {self.network.name} was created with {_described(ours)}. Create it with "
                f"{_options(theirs)}."
            )
        kinds = set().union(*theirs.values())
        settings = {"token_with_mlp": "token_select", "head_v2": "head_select", "head_attn": "head_select"}
        for name, kind in settings.items():
            own = getattr(self.network.config, name)
            if kind in kinds and name in options and options[name] != own:
                return (
                    f"was trained with {name}={joined(options[name])}; {self.network.name} was created with "
                    f"{name}={joined(own)}. Create it with the file's."
                )
        return None

    def hint(self, weights: Mapping[str, Tensor], key: str) -> str | None:
        """Name the width, the image size or the number of classes that would make a weight fit."""
        sizes, theirs = self.network.sizes, weights[key]
        own = self.network.state_dict()
        if key == "pos_embed" and theirs.ndim == 3 and theirs.shape[2] == sizes.width:
            grids = _grids(theirs, own[key])
            if grids is None:
                return f"It has {theirs.shape[1]} positions, which are no square grid and a class token."
            side = grids[0] * sizes.patch
            return (
                f"The checkpoint is for images of {side}x{side} pixels: img_size={side}? Or resize_positions=True, "
                "which interpolates its table of positions."
            )
        if key.startswith("head.") and theirs.ndim:
            return f"The checkpoint has {theirs.shape[0]} classes: num_classes={theirs.shape[0]}?"
        width = weights.get("cls_token", own["cls_token"]).shape[-1]
        if width != sizes.width:
            return (
                f"The checkpoint's tokens have {width} features, those of {self.network.name} {sizes.width}. Create "
                "the network that it was saved from."
            )
        return None

    def classifiers(self, network: nn.Module, classes: int) -> tuple[str, ...]:
        """The last layer."""
        return ("head",)

    def untold(self, weights: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Whether tokens that are dropped leave out the MLP as well."""
        return ("token_with_mlp",) if _has(weights, "token_select") else ()

    def assumed(self, weights: Mapping[str, Tensor]) -> tuple[str, ...]:
        """What a dropped head leaves out: published files have the default."""
        return ("head_v2", "head_attn") if _has(weights, "head_select") else ()


def _policies(weights: Mapping[str, Tensor]) -> dict[int, set[str]]:
    """Kinds of policies by the number of the block."""
    found: dict[int, set[str]] = {}
    for key in weights:
        match = _POLICY.match(key)
        if match:
            found.setdefault(int(match[1]), set()).add(match[2])
    return found


def _has(weights: Mapping[str, Tensor], kind: str) -> bool:
    return any(kind in kinds for kinds in _policies(weights).values())


def _first(policies: Mapping[int, set[str]], *kinds: str) -> int:
    return min((block for block, there in policies.items() if there & set(kinds)), default=0)


def _described(policies: Mapping[int, set[str]]) -> str:
    words = {"token_select": "token", "head_select": "head", "layer_select": "sublayer"}
    parts = []
    for kind, word in words.items():
        blocks = sorted(block for block, there in policies.items() if kind in there)
        if blocks:
            span = f"{blocks[0]} to {blocks[-1]}" if blocks == list(range(blocks[0], blocks[-1] + 1)) else None
            parts.append(f"{word} policies in blocks {span or listing(blocks, 40)}")
    norm = any("norm_policy" in there for there in policies.values())
    return f"{', '.join(parts)}, {'with' if norm else 'without'} norm_policy"


def _options(policies: Mapping[int, set[str]]) -> str:
    kinds = set().union(*policies.values())
    named = {"token": "token_select", "head": "head_select", "layer": "layer_select", "norm_policy": "norm_policy"}
    options = [f"{option}={kind in kinds}" for option, kind in named.items()]
    if "token_select" in kinds:
        options.append(f"token_start_layer={_first(policies, 'token_select')}")
    if kinds & {"head_select", "layer_select"}:
        options.append(f"keep_layers={_first(policies, 'head_select', 'layer_select')}")
    return ", ".join(options)


def _grids(theirs: Tensor, own: Tensor) -> tuple[int, int] | None:
    """Sides of the squares of patches that two tables (1, 1 + side^2, D) are for; None where one is for no square."""
    sides = [math.isqrt(max(0, table.shape[1] - 1)) if table.ndim == 3 else 0 for table in (theirs, own)]
    if any(side**2 + 1 != table.shape[1] for side, table in zip(sides, (theirs, own), strict=True)):
        return None
    return sides[0], sides[1]


def _resized(table: Tensor, side: int, wanted: int) -> Tensor:
    grid = table[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (wanted, wanted), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2).to(table.dtype)], 1)
