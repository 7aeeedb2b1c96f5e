"""Masks and early exits in one network: exported in stages, verified, profiled, priced."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from dyndeploy import files
from dyndeploy.blocks import EarlyExits, Tape, early_exits, skip
from dyndeploy.bundle import write_manifest
from dyndeploy.export import ExportSettings, export_model
from dyndeploy.graphs.inspect import all_nodes
from dyndeploy.measure.exits import profile_exits
from dyndeploy.nets.laud_resnet import LaudBottleneck, LaudResNetConfig
from dyndeploy.ops import DOMAIN
from dyndeploy.prediction import predict
from dyndeploy.runtimes import open_staged
from dyndeploy.verification import verify_bundle
from tests.blocks.networks import Residual, liven


class Laud(nn.Module):
    """A LAUD bottleneck of 16 channels that gives its output only."""

    def __init__(self, mode: str, stride: int = 1) -> None:
        super().__init__()
        stage = LaudResNetConfig(mode=mode, granularity=2).stages()[0]
        self.block = LaudBottleneck("block", 16, 4, stage, stride)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(x)[0]
        return y


def _head() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))


def composed() -> EarlyExits:
    """Three exits; skipped bodies in every stage, one with a LAUD block in it; LAUD blocks in the second."""
    stages = [
        nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), skip(Residual(16))),
        nn.Sequential(Laud("spatial", 2), Laud("both"), skip(nn.Sequential(Residual(16), Laud("channel")))),
        nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1), skip(Residual(16))),
    ]
    network = early_exits(stages, [_head() for _ in stages], "margin")
    network.input_size = (48, 32)
    liven(network)
    return network


MASKS = {
    "mask/stages.0.1/layer": 0,
    "mask/stages.1.0.block/spatial": 1,
    "mask/stages.1.1.block/spatial": 1,
    "mask/stages.1.1.block/channel": 1,
    "mask/stages.1.2/layer": 1,
    "mask/stages.1.2.module.1.block/channel": 1,
    "mask/stages.2.1/layer": 2,
}


@pytest.mark.parametrize(("target", "batch", "graph"), [("cpu", 1, "if"), ("nano", 2, "stages")])
def test_masks_within_stages(target: str, batch: int, graph: str, tmp_path: Path) -> None:
    settings = ExportSettings(target=target, batch=batch, graph=graph, static=True)
    bundle = export_model(composed(), tmp_path / "bundle", settings)
    assert {mask.name: mask.stage for mask in bundle.manifest.masks} == MASKS
    assert [mask.name for mask in bundle.stage_masks(bundle.exits.stages[2])] == ["mask/stages.2.1/layer"]
    report = verify_bundle(bundle)
    assert report.passed, [(check.name, check.detail) for check in report.checks if not check.passed]
    # Two masks of 6x4 patches, two of two groups of channels, three whole blocks; of four images.
    assert report.mask_bits == 4 * (24 + 24 + 2 + 2 + 3)
    assert report.tied_bits == 0
    titles = [check.name for check in report.checks]
    assert {"masks", "logits/exit2 under random masks", "static twin: logits"} <= set(titles)
    assert not any(node.domain == DOMAIN for node in all_nodes(bundle.load_static().graph))
    operators = {
        node.name for model in bundle.load_stages() for node in all_nodes(model.graph) if node.domain == DOMAIN
    }
    assert operators == {info.node for info in bundle.manifest.operators} and len(operators) == 7


def test_a_mask_that_differs_is_found(tmp_path: Path) -> None:
    bundle = export_model(composed(), tmp_path / "bundle")
    other = composed()
    with torch.no_grad():
        other.stages[1][0].block.masker_spatial.conv.bias += torch.tensor([5.0, -5.0])
    onnx.save(export_model(other, tmp_path / "other").load_stages()[1], bundle.stages[1])
    digests = {**bundle.manifest.files, "stage1.onnx": files.sha256(bundle.stages[1])}
    write_manifest(bundle.path, replace(bundle.manifest, files=digests))
    report = verify_bundle(bundle.path)
    assert report.flipped_bits > 24
    assert next(check.name for check in report.checks if not check.passed) == "masks"


def test_images_that_leave_early_skip_what_follows(tmp_path: Path) -> None:
    network = composed()
    bundle = export_model(network, tmp_path / "bundle")
    images = bundle.reference_inputs()["images"]
    with Tape(network), torch.no_grad():
        logits = [value.numpy() for value in network(torch.from_numpy(images))]
    with open_staged(bundle, thresholds=(2.0, -1.0)) as session:
        result = session.run(images)
    assert result.exits.tolist() == [2] * len(images)
    np.testing.assert_allclose(result.logits, logits[1], rtol=1e-4, atol=1e-5)


def test_profile_and_prediction(tmp_path: Path) -> None:
    bundle = export_model(composed(), tmp_path / "bundle", ExportSettings(static=True))
    profile = profile_exits(bundle, mixes=((0.5, 0.25, 0.25),), repeats=2, warmup=1, min_seconds=0.0)
    assert [exit.exit for exit in profile.exits] == [1, 2, 3]
    assert profile.exits[0].macs < profile.exits[1].macs < profile.exits[2].macs
    assert profile.exits[2].macs == bundle.manifest.static_macs + 2 * 16 * 5, "the heads of two exits"
    first, last, half = (
        predict(bundle, "nano", exit_mix=mix).latency_ms for mix in ((1, 0, 0), (0, 0, 1), (0.5, 0, 0.5))
    )
    assert first < last
    assert half == pytest.approx((first + last) / 2)


def test_predictions_say_what_saves_nothing(tmp_path: Path) -> None:
    dense = export_model(composed(), tmp_path / "dense", ExportSettings(target="nano"))
    (first, *others) = predict(dense, "nano").notes
    assert first.startswith("stages.0.1: computed for every image") and "saves nothing here: TensorRT" in first
    assert [note.partition(":")[0] for note in others if note.startswith("stages.")] == ["stages.1.2", "stages.2.1"]
    lazy = export_model(composed(), tmp_path / "lazy")
    assert not any("saves nothing" in note for note in lazy.manifest.notes)
    note, foreign, modelled = predict(lazy, "nano").notes
    assert modelled == "Modelled by the traffic of their work, measured on no device: 3 of topk."
    assert "exported for cpu" in foreign and "always computed, so that nothing is saved there" in note


@pytest.mark.parametrize(("target", "batch"), [("cpu", 1), ("cpu", 3), ("nano", 1)])
def test_bodies_that_overwrite_what_they_take(target: str, batch: int, tmp_path: Path) -> None:
    body = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(inplace=True))
    network = liven(nn.Sequential(nn.Conv2d(3, 6, 1), skip(body), skip(copy.deepcopy(body)))).eval()
    settings = ExportSettings(target=target, batch=batch)
    bundle = export_model(network, tmp_path / "bundle", settings, example_inputs=torch.zeros(1, 3, 32, 32))
    assert verify_bundle(bundle).passed
    x = torch.randn(2, 6, 8, 8)
    with Tape(network[1], force=lambda name, mask: torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1)), torch.no_grad():
        torch.testing.assert_close(network[1](x)[0], x[0])


def test_a_skipped_network_with_a_skipped_block_inside(tmp_path: Path) -> None:
    network = liven(skip(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), skip(nn.Conv2d(3, 3, 1))))).eval()
    for target, batch in (("cpu", 2), ("nano", 1)):
        settings = ExportSettings(target=target, batch=batch)
        bundle = export_model(network, tmp_path / target, settings, example_inputs=torch.zeros(1, 3, 32, 32))
        assert [mask.name for mask in bundle.manifest.masks] == ["mask/network/layer", "mask/module.1/layer"]
        assert verify_bundle(bundle).passed


def test_inputs_of_three_rows_are_no_images(tmp_path: Path) -> None:
    network = skip(nn.Linear(9, 9)).eval()
    bundle = export_model(network, tmp_path / "bundle", example_inputs=torch.zeros(1, 3, 9))
    assert bundle.manifest.input_size is None
    assert verify_bundle(bundle).passed
