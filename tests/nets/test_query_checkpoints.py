"""Weights of mmdetection's DDQ-DETR and Mask2Former, by the names of the official classes."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dyndeploy.errors import CheckpointError
from dyndeploy.nets import Detector, create_model, load_checkpoint
from dyndeploy.nets.detector_checkpoints import DetectorRules

DATA = Path(__file__).parent / "data"
MODELS = [
    pytest.param("ddq_detr", marks=pytest.mark.vision("torchvision")),
    pytest.param("mask2former", marks=pytest.mark.vision("transformers")),
]


def official(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what is not the backbone's: name, shape and, where {} stands for them, number of layers."""
    found = {}
    for line in (DATA / f"{name}_keys.tsv").read_text().splitlines():
        key, shape, layers = line.split("\t")
        for layer in range(int(layers) or 1):
            found[key.replace("{}", str(layer))] = ast.literal_eval(shape)
    return found


def build(name: str) -> Detector:
    network = create_model(name, mode="layer")
    assert isinstance(network, Detector)
    return network


@pytest.mark.parametrize("name", MODELS)
def test_every_official_name_has_its_place(name: str) -> None:
    with torch.device("meta"):
        network = build(f"laud_{name}_resnet101")
        theirs = {key: torch.empty(shape) for key, shape in official(name).items()}
    rules = network.checkpoint_rules()
    names = rules.other_names()
    found = rules.adapted({names.get(key, key): value for key, value in theirs.items()})
    own = {key: value for key, value in network.state_dict().items() if not key.startswith("backbone.")}
    assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in own.items()}


def theirs_of(network: Detector, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under mmdetection's names."""
    names = {ours: other for other, ours in DetectorRules(network).other_names().items() if "fpn" not in other}
    found, parts = {}, {}
    for key, value in weights.items():
        part = next((letter for letter in "qkv" if f".self_attn.{letter}_proj." in key), None)
        if part is None:
            found[names.get(key, key)] = value
            continue
        layer, kind = key.split(".")[4], key.rsplit(".", 1)[1]
        joined = f"panoptic_head.transformer_decoder.layers.{layer}.self_attn.attn.in_proj_{kind}"
        parts.setdefault(joined, {})[part] = value
    return found | {key: torch.cat([values[letter] for letter in "qkv"]) for key, values in parts.items()}


@pytest.mark.parametrize("name", MODELS)
def test_a_file_of_mmdetection_loads(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    saved = build(f"laud_{name}_small").state_dict()
    torch.manual_seed(1)
    network = build(f"laud_{name}_small")
    file = tmp_path / "epoch_12.pth"
    theirs = theirs_of(network, saved)
    assert not any(key.startswith("head.") for key in theirs)
    torch.save({"meta": {"epoch": 12}, "state_dict": theirs, "optimizer": {}}, file)
    report = load_checkpoint(network, file)
    assert not report.missing and not report.unexpected
    for key, value in network.state_dict().items():
        assert torch.equal(value, saved[key]), key


def shape_of(change: Callable[[dict[str, Tensor]], None], name: str, file: Path) -> str:
    network = build(f"laud_{name}_small")
    weights = theirs_of(network, network.state_dict())
    change(weights)
    torch.save({"state_dict": weights}, file)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(network, file)
    return str(error.value)


@pytest.mark.vision("torchvision", "transformers")
def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    def classes(weights: dict[str, Tensor]) -> None:
        for key in [key for key in weights if "cls_branches" in key or "cls_embed" in key]:
            weights[key] = torch.cat([weights[key]] * 8)[: 80 if "branches" in key else 81]

    assert "num_classes=80?" in shape_of(classes, "ddq_detr", tmp_path / "a.pth")
    assert "num_classes=80?" in shape_of(classes, "mask2former", tmp_path / "b.pth")

    def queries(weights: dict[str, Tensor]) -> None:
        for key in ("panoptic_head.query_embed.weight", "panoptic_head.query_feat.weight"):
            weights[key] = torch.cat([weights[key]] * 2)

    assert "queries=100?" in shape_of(queries, "mask2former", tmp_path / "c.pth")

    def levels(weights: dict[str, Tensor]) -> None:
        for key in [key for key in weights if "sampling_offsets" in key or "attention_weights" in key]:
            weights[key] = torch.cat([weights[key], weights[key][: len(weights[key]) // 4]])
        for key in [key for key in weights if key.startswith("neck.extra_convs.0.")]:
            weights[key.replace(".0.", ".1.", 1)] = weights[key]
        weights["level_embed"] = torch.cat([weights["level_embed"], weights["level_embed"][:1]])

    assert "reads 5 levels" in shape_of(levels, "ddq_detr", tmp_path / "d.pth")

    def fewer(weights: dict[str, Tensor]) -> None:
        for key in ("pixel_decoder.level_encoding.weight", "level_embed.weight"):
            weights[f"panoptic_head.{key}"] = weights[f"panoptic_head.{key}"][:2]

    assert "reads 2 levels" in shape_of(fewer, "mask2former", tmp_path / "f.pth")

    def another(weights: dict[str, Tensor]) -> None:
        kept = {key: value for key, value in weights.items() if key.startswith("backbone.")}
        weights.clear()
        weights.update(kept | {"panoptic_head.mask_embed.0.weight": torch.zeros(128, 128)})

    assert "it is a Mask2Former, and this network is a DDQ-DETR" in shape_of(another, "ddq_detr", tmp_path / "e.pth")
