"""One short way through everything that other packages do for us: what the lowest versions of them must be good for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dyndeploy
from dyndeploy.cli import run
from tests.training.helpers import tiny


@pytest.mark.parametrize(
    ("network", "options", "target"),
    [
        ("laud_resnet14_small", {"mode": "spatial", "granularity": (4, 4, 2, 1)}, "cpu"),
        ("laud_resnet14_small", {"mode": "channel"}, "nano"),
        ("laud_resnet14_small", {"mode": "layer"}, "cpu"),
        ("laud_resnet14_small", {"mode": "both"}, "agx_orin"),
        ("resnet10_small_perceiver_t32", {}, "cpu"),
    ],
    ids=["spatial", "channel", "layer", "both", "exits"],
)
def test_networks_are_exported_and_their_bodies_run(
    tmp_path: Path, network: str, options: dict[str, Any], target: str
) -> None:
    settings = dyndeploy.ExportSettings(target=target, static=True)
    bundle = dyndeploy.export_model(dyndeploy.create_model(network, **options), tmp_path / "bundle", settings)
    report = dyndeploy.verify_bundle(bundle, native="off")
    assert report.passed, [check for check in report.checks if not check.passed]


def test_the_command_line_runs_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 40, 3), np.uint8)).save(tmp_path / "a.png")
    bundle = str(tmp_path / "bundle")
    assert run(["export", "laud_resnet14_small", "--mode", "spatial", "-o", bundle]) == 0
    capsys.readouterr()
    assert run(["run", bundle, str(tmp_path / "a.png"), "--native", "off", "--json"]) == 0
    assert 0 < json.loads(capsys.readouterr().out)["confidence"] < 1
    assert run(["run", bundle, str(tmp_path / "a.png"), "--native", "off"]) == 0
    assert "confidence" in capsys.readouterr().out


def test_training_computes_an_epoch(tmp_path: Path) -> None:
    result = dyndeploy.train(tiny(epochs=1), tmp_path / "run", device="cpu")
    assert result.checkpoint.is_file() and result.history[0].training["loss"] > 0
