"""Every kind of graph that a bundle can hold, as it is given to TensorRT."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

import dyndeploy
from dyndeploy import Bundle, ExportSettings
from dyndeploy.blocks.transformer import TransformerBlock
from dyndeploy.graphs.forced import replace_masks
from dyndeploy.graphs.stages import branched_model, whole_model
from dyndeploy.measure.laziness import branch_model
from dyndeploy.quantization import quantize_model
from dyndeploy.targets import load_target
from tests.bundles import MODES, tiny_bundle
from tests.quantized import exported, table_of

Graphs = dict[str, tuple[onnx.ModelProto, tuple[str, ...]]]
"""Graphs by name, with the precisions that they are built in."""

BOTH, FLOAT, INT8 = ("fp32", "fp16"), ("fp32",), ("int8",)
SMALL = "laud_resnet14_small"
TARGET = "agx_orin"


def export(network: nn.Module, folder: Path, **settings: Any) -> Bundle:
    """A bundle whose graph has no reference to random state."""
    return dyndeploy.export_model(network.eval(), folder, ExportSettings(**{"target": TARGET, **settings}))


def laud(folder: Path, name: str, static: bool = False, **options: Any) -> Graphs:
    """A network of dynamic operators and, where asked for, its static twin."""
    torch.manual_seed(0)
    bundle = export(dyndeploy.create_model(name, **options), folder, static=static)
    graphs: Graphs = {"model": (bundle.load_model(), BOTH)}
    if static:
        graphs["static"] = (bundle.load_static(), BOTH)
        graphs["masks from outside"] = (replace_masks(bundle.load_model(), bundle.manifest.masks), BOTH)
    return graphs


def stages(bundle: Bundle) -> Graphs:
    """The stages of a network that exits early, and all of them in one graph."""
    models = bundle.load_stages()
    graphs: Graphs = {f"stage {index}": (model, BOTH) for index, model in enumerate(models)}
    return {**graphs, "every exit": (whole_model(models, every_exit=True), FLOAT)}


def perceiver(folder: Path) -> Graphs:
    """Dynamic Perceiver; nested ``If`` too."""
    torch.manual_seed(0)
    bundle = export(dyndeploy.create_model("resnet10_small_perceiver_t32", depth_factor=(0, 1, 0, 0)), folder)
    exits = [stage.exit for stage in bundle.exits.stages]
    return {**stages(bundle), "nested If": (branched_model(bundle.load_stages(), exits), FLOAT)}


class Tokens(nn.Module):
    """Patches of an image as tokens behind a class token."""

    def __init__(self, width: int, patches: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 8, stride=8)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, patches + 1, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        return torch.cat([self.first.expand(len(x), -1, -1), x], 1) + self.position


class FirstToken(nn.Module):
    """What a classifier reads."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0]


def transformer(folder: Path, *gates: str, static: bool = False, **options: Any) -> Graphs:
    """A user's vision transformer, a block for each entry of ``gates``, such as ``"token head"``."""
    torch.manual_seed(0)
    blocks = [TransformerBlock(64, 2, 128, **dict.fromkeys(names.split(), True), **options) for names in gates]
    head = nn.LayerNorm(64), FirstToken(), nn.Linear(64, 10)
    bundle = export(nn.Sequential(Tokens(64, 16), *blocks, *head), folder, input_size=(32, 32), static=static)
    graphs: Graphs = {"model": (bundle.load_model(), BOTH)}
    if static:
        graphs["static"] = (bundle.load_static(), BOTH)
        graphs["masks from outside"] = (replace_masks(bundle.load_model(), bundle.manifest.masks), BOTH)
    return graphs


class Residual(nn.Module):
    """A block of a user's network."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.norm(self.conv(x)))


def skipping(folder: Path) -> Graphs:
    """A user's network of blocks that skip: by ``If``, and computed and selected as boards do it."""
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU())
    blocks = [dyndeploy.skip(Residual(16)) for _ in range(2)]
    network = nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    size = (32, 32)
    return {
        "If": (export(network, folder / "if", input_size=size, target="cpu").load_model(), FLOAT),
        "selected": (export(network, folder / "selected", input_size=size, static=True).load_model(), BOTH),
    }


def exits(folder: Path) -> Graphs:
    """A user's network with early exits, a block that skips in its first stage."""
    torch.manual_seed(0)

    def stage(inputs: int, outputs: int) -> nn.Module:
        conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())

    def head(channels: int) -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))

    first = nn.Sequential(stage(3, 8), dyndeploy.skip(nn.Conv2d(8, 8, 3, padding=1)))
    network = dyndeploy.early_exits([first, stage(8, 16)], [head(8), head(16)], confidence="margin")
    return stages(export(network, folder, input_size=(32, 32)))


def probe(folder: Path) -> Graphs:
    """What the probe of ``If`` times on TensorRT, as far as the builder takes it."""
    return {"convolutions": (branch_model(load_target(TARGET), operators=False), FLOAT)}


def integers(folder: Path) -> Graphs:
    """Networks in INT8 whose operators hand each other bytes, and a static twin, whose integers are the builder's."""
    graphs: Graphs = {}
    for mode in MODES:
        bundle = tiny_bundle(folder / mode, mode=mode)
        graphs[f"model {mode}"] = (quantize_model(bundle.load_model(), table_of(bundle)), INT8)
    _, bundle, _ = exported(folder / "small", mode="channel", static=True, target=TARGET)
    return {**graphs, "model hidden": (bundle.load_model(), INT8), "static": (bundle.load_static(), INT8)}


KINDS: Mapping[str, Callable[[Path], Graphs]] = {
    "spatial": lambda folder: laud(folder, SMALL, mode="spatial"),
    "channel": lambda folder: laud(folder, SMALL, mode="channel"),
    "channel, one layer": lambda folder: laud(folder, SMALL, mode="channel", channel_masker_layers=1),
    "channel, conv_linear": lambda folder: laud(folder, SMALL, mode="channel", channel_masker="conv_linear"),
    "layer": lambda folder: laud(folder, SMALL, mode="layer"),
    "both": lambda folder: laud(folder, SMALL, static=True, mode="both"),
    "regnety": lambda folder: laud(folder, "laud_regnety_small", mode=("spatial", "both", "layer", "channel")),
    "resnet50": lambda folder: laud(folder, "laud_resnet50", static=True, mode="both"),
    "token": lambda folder: transformer(folder, "token", "token", token_mlp=True),
    "head": lambda folder: transformer(folder, "head", "head"),
    "sublayer": lambda folder: transformer(folder, "layer", "layer"),
    "transformer": lambda folder: transformer(
        folder, "token head", "token layer", "head layer", "token head layer", static=True, head_mode="units"
    ),
    "perceiver": perceiver,
    "skipping": skipping,
    "exits": exits,
    "probe": probe,
    "int8": integers,
}
FUSED = {"int8", "spatial", "channel", "channel, one layer", "layer", "both", "regnety", "resnet50"} | {
    "token",
    "head",
    "sublayer",
    "transformer",
}
"""Kinds whose blocks are plugins, with nothing else between them."""
