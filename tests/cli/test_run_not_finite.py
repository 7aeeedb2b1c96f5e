"""``dyndeploy run`` on a bundle that computes what is not finite: one clear line and exit code 1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dyndeploy.cli import run
from dyndeploy.errors import NotFiniteError
from dyndeploy.inference import classify
from tests.bundles import many_bundle, tiny_bundle
from tests.spoiled import BAD, spoiled
from tests.staged_bundles import EXITS, staged_bundle


@pytest.fixture
def picture(tmp_path: Path) -> str:
    pixels = np.random.default_rng(0).integers(0, 255, (48, 40, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_network(
    tmp_path: Path, picture: str, value: float, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = spoiled(tiny_bundle(tmp_path / "b"), "model.onnx", "head.b", value)
    assert run(["run", str(bundle.path), picture, *options]) == 1
    printed = capsys.readouterr()
    assert "'logits' holds 1" in printed.out + printed.err
    assert '"confidence"' not in printed.out
    with pytest.raises(NotFiniteError, match="'logits' holds 1"):
        classify(bundle, [picture])


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_an_exit(tmp_path: Path, picture: str, value: float, stage: int, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = spoiled(staged_bundle(tmp_path / "b"), f"stage{stage}.onnx", "head/b", value)
    limits = ",".join(["2"] * stage + ["0"] * (2 - stage))
    assert run(["run", str(bundle.path), picture, "--json", "--thresholds", limits]) == 1
    printed = capsys.readouterr()
    assert f"exit {EXITS[stage]}: " in printed.out + printed.err


def test_an_output_that_is_no_logits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = spoiled(many_bundle(tmp_path / "b"), "model.onnx", "stem.b", float("inf"))
    arguments = []
    for number, (name, array) in enumerate(bundle.reference_inputs().items()):
        np.save(tmp_path / f"{number}.npy", array[:1])
        arguments += ["--input", f"{name}={tmp_path / str(number)}.npy"]
    assert run(["run", str(bundle.path), *arguments, "-o", str(tmp_path / "out.npz")]) == 1
    assert "holds" in capsys.readouterr().err
    assert not (tmp_path / "out.npz").exists()
