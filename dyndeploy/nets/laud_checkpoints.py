"""Files of LAUD networks' weights: maskers may come and go, and every option that a shape tells is named."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dyndeploy.nets.checkpoint_rules import OPTIONAL_SUFFIX, CheckpointRules, joined, listing
from dyndeploy.nets.resnet import EXPANSION

if TYPE_CHECKING:
    from dyndeploy.nets.laud import LaudBlock, LaudNetwork
    from dyndeploy.nets.laud_regnet import LaudRegNet
    from dyndeploy.nets.laud_resnet import LaudResNet

_MASKER = re.compile(r"(?:^|\.)masker_(spatial|channel)\.")
_BLOCKS = {
    "ResNet": re.compile(r"layer(\d+)\.(\d+)\."),
    "RegNet": re.compile(r"trunk_output\.block(\d+)\.block\d+-(\d+)\."),
}
"""How torchvision names the blocks of a family: stage and position in it."""


class LaudRules(CheckpointRules):
    """The rules of one network.

    Args:
        network: It.
    """

    backbone: re.Pattern[str]
    """Names of the weights that are no maskers'."""

    def __init__(self, network: LaudNetwork) -> None:
        self.network = network

    def may_lack(self, key: str) -> bool:
        """Maskers, which static networks have not."""
        return _MASKER.search(key) is not None

    def may_ignore(self, key: str) -> bool:
        """Maskers and what is not the backbone."""
        return not self.backbone.match(key) or _MASKER.search(key) is not None

    def another_architecture(self, weights: Mapping[str, Tensor]) -> str | None:
        """Compare the families, and the blocks per stage."""
        (their_family, theirs), (our_family, ours) = _blocks(weights), _blocks(self.network.state_dict())
        if not theirs or (their_family, theirs) == (our_family, ours):
            return None
        if their_family != our_family:
            return (
                f"belongs to another architecture: it is a {their_family}, and this network is a {our_family}. Create "
                "the network that it was saved from."
            )
        return (
            f"belongs to another architecture: it has {'-'.join(map(str, theirs))} blocks per stage, this network "
            f"{'-'.join(map(str, ours))}. Create the network that it was saved from."
        )

    def conflict(self, weights: Mapping[str, Tensor], options: Mapping[str, Any]) -> str | None:
        """Compare the maskers and, as "spatial" and "layer" have the same ones, the mode that the file tells."""
        own = self.network.state_dict()
        theirs, ours = masker_kinds(weights), masker_kinds(own)
        if not theirs or not ours:
            return None
        for block in sorted(theirs.keys() | ours.keys()):
            their_kinds, our_kinds = theirs.get(block, set()), ours.get(block, set())
            if their_kinds != our_kinds:
                return (
                    f"has the maskers of mode {_mode_name(their_kinds)} in {block}; this network was created with mode "
                    f"{_mode_name(our_kinds)}. Create it with the file's mode."
                )
        mode = self.network.config.as_dict()["mode"]
        if options and options.get("mode") != mode:
            return (
                f"was trained with mode {joined(options.get('mode'))}; this network was created with mode "
                f"{joined(mode)}. Create it with the file's mode."
            )
        return _masker_conflict(own, weights)

    def hint(self, weights: Mapping[str, Tensor], key: str) -> str | None:
        """Name the argument of ``create_model`` that would make a weight fit."""
        backbone = self._backbone_option(weights)
        if backbone:
            return backbone
        outputs = weights[key].shape[0] if weights[key].ndim else 0
        if key.startswith("fc."):
            return f"The checkpoint has {outputs} classes: num_classes={outputs}?"
        if "masker_spatial." in key:
            return f"The checkpoint has {outputs // 2} spatial masks per block: spatial_groups={outputs // 2}?"
        if "masker_channel." in key:
            owner = key[: key.index(".masker_channel.")]
            return _channel_masker_option(owner, self._owners()[owner], weights)
        return None

    def classifiers(self, network: nn.Module, classes: int) -> tuple[str, ...]:
        """The last layer."""
        return ("fc",)

    def untold(self, weights: Mapping[str, Tensor]) -> tuple[str, ...]:
        """The mode, of which "spatial" and "layer" have the same maskers, and of patches their side."""
        kinds = masker_kinds(weights)
        owners = {name: block for name, block in self._owners().items() if name in kinds}
        modes = any("channel" not in kinds[name] for name in owners)
        patches = any(block.granularity is not None for block in owners.values())
        return (*(("mode",) if modes else ()), *(("granularity",) if patches else ()))

    def _owners(self) -> dict[str, LaudBlock]:
        """Blocks by the dotted name of the module that has their maskers."""
        blocks = {
            id(gate): block
            for _, block in self.network.named_blocks()
            for gate in (block.masker_spatial, block.masker_channel)
            if gate is not None
        }
        return {
            path.rpartition(".")[0]: blocks[id(module)]
            for path, module in self.network.named_modules()
            if id(module) in blocks
        }

    def _backbone_option(self, weights: Mapping[str, Tensor]) -> str | None:
        """What makes the weights that are no maskers' fit: a sentence; None where they do."""
        raise NotImplementedError


class ResNetRules(LaudRules):
    """The rules of a LAUD-ResNet.

    Args:
        network: It.
    """

    backbone = re.compile(r"(?:conv1|bn1|layer\d+|fc)\.")
    network: LaudResNet

    def _backbone_option(self, weights: Mapping[str, Tensor]) -> str | None:
        conv2, conv3 = weights.get("layer1.0.conv2.weight"), weights.get("layer1.0.conv3.weight")
        if conv2 is None or conv3 is None or conv2.ndim != 4 or conv3.ndim != 4 or not conv2.shape[1]:
            return None
        planes, out_channels = self.network.architecture.planes[0], conv3.shape[0]
        groups = conv2.shape[0] // conv2.shape[1]
        own = dict(self.network.named_blocks())["layer1.0"]
        if out_channels != own.out_channels:
            width_mult = out_channels / (planes * EXPANSION)
            return f"The checkpoint's first stage has {out_channels} channels: width_mult={width_mult:g}?"
        if groups != own.groups and conv2.shape[0] == out_channels // EXPANSION * groups:
            return f"The checkpoint's 3x3 convolutions have {groups} groups: groups={groups}?"
        return None


class RegNetRules(LaudRules):
    """The rules of a LAUD-RegNetY.

    Args:
        network: It.
    """

    backbone = re.compile(r"(?:stem|trunk_output|fc)\.")
    network: LaudRegNet

    def other_names(self) -> Mapping[str, str]:
        """LASNet's maskers, which stand beside the residual branch and not in it."""
        return {
            name.replace(".f.masker_", ".masker_"): name for name in self.network.state_dict() if ".f.masker_" in name
        }

    def _backbone_option(self, weights: Mapping[str, Tensor]) -> str | None:
        for name, block in self.network.named_blocks():
            conv2 = weights.get(f"{name}.f.b.0.weight")
            if conv2 is None or conv2.ndim != 4:
                continue
            channels, group_width = conv2.shape[0], block.width // block.groups
            if channels != block.width:
                return f"The checkpoint's {name} has {channels} channels, and here {block.width}: it is another RegNet."
            if conv2.shape[1] != group_width:
                return (
                    f"The checkpoint's 3x3 convolutions have {conv2.shape[1]} channels per group, and here "
                    f"{group_width}: it is another RegNet."
                )
        return None


def masker_kinds(keys: Iterable[str]) -> dict[str, set[str]]:
    """Return for each block with maskers which it has: {"layer1.0": {"spatial", "channel"}}."""
    kinds: dict[str, set[str]] = {}
    for key in keys:
        match = _MASKER.search(key)
        if match:
            kinds.setdefault(key[: match.start()], set()).add(match.group(1))
    return kinds


def _mode_name(kinds: set[str]) -> str:
    if kinds == {"spatial", "channel"}:
        return "both"
    return {"spatial": "spatial or layer", "channel": "channel"}[next(iter(kinds))] if kinds else "static"


def _blocks(keys: Iterable[str]) -> tuple[str, tuple[int, ...]]:
    """The family that the names are of, and its blocks per stage; nothing where there are no blocks."""
    keys = list(keys)
    found: dict[str, dict[int, int]] = {family: {} for family in _BLOCKS}
    for family, pattern in _BLOCKS.items():
        counts = found[family]
        for match in filter(None, map(pattern.match, keys)):
            stage, index = int(match.group(1)), int(match.group(2))
            counts[stage] = max(counts.get(stage, 0), index + 1)
    family = max(found, key=lambda name: sum(found[name].values()))
    return family, tuple(found[family][stage] for stage in sorted(found[family]))


def _masker_conflict(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str | None:
    for block in masker_kinds(own):
        prefix = f"{block}.masker_"
        ours = {key for key in own if key.startswith(prefix) and not key.endswith(OPTIONAL_SUFFIX)}
        theirs = {key for key in weights if key.startswith(prefix) and not key.endswith(OPTIONAL_SUFFIX)}
        if theirs and theirs != ours:
            theirs_options, ours_options = _masker_options(theirs), _masker_options(ours)
            if theirs_options != ours_options:
                return (
                    f"has channel maskers of {theirs_options} in {block}; this network was created with "
                    f"{ours_options}. Create it with the file's options."
                )
            return (
                f"is damaged: the maskers of {block} are incomplete: {listing(sorted(ours ^ theirs))} on one side only."
            )
    return None


def _masker_options(keys: Iterable[str]) -> str:
    """Return the options that lead to a channel masker with these keys."""
    suffixes = {key.split("masker_channel.", 1)[1] for key in keys if "masker_channel." in key}
    if "linear.weight" in suffixes:
        return 'channel_masker="conv_linear"'
    layers = 1 if "conv.weight" in suffixes else 2
    return f'channel_masker="mlp", channel_masker_layers={layers}'


def _channel_masker_option(owner: str, block: LaudBlock, weights: Mapping[str, Tensor]) -> str | None:
    assert block.masker_channel is not None
    # The last layer of every channel masker has two outputs per group.
    names = [f"{owner}.masker_channel.{layer}.bias" for layer in ("linear", "conv.2", "conv")]
    outputs = next((weights[name].shape[0] for name in names if name in weights), 0)
    groups = outputs // 2
    if groups and groups != block.masker_channel.groups:
        granularity = block.width // groups
        return f"The checkpoint has {groups} channel groups: channel_granularity={granularity}?"
    return "The checkpoint's channel masker has another hidden width: another reduction?"
