"""``dyndeploy export`` of networks outside the package."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dyndeploy.bundle import Bundle
from dyndeploy.cli import run
from dyndeploy.nets import save_checkpoint
from dyndeploy.nets.factories import build_network
from tests.training.helpers import OWN

OWN_OPTIONS = ["--import", str(OWN), "-O", "blocks=2", "-O", "width=8"]


def test_a_network_of_ones_own_becomes_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    save_checkpoint(build_network("SmallCnn", {"blocks": 2, "width": 8}, str(OWN)), tmp_path / "w.pt")
    (tmp_path / "names.txt").write_text("\n".join(f"digit {i}" for i in range(10)) + "\n", encoding="utf-8")
    arguments = ["export", "SmallCnn", *OWN_OPTIONS, "-o", str(tmp_path / "b"), "--input-size", "32x40"]
    arguments += ["--class-names", str(tmp_path / "names.txt"), "--checkpoint", str(tmp_path / "w.pt")]
    assert run(arguments) == 0
    printed = capsys.readouterr()
    assert "SmallCnn, mode layer, target cpu" in printed.out
    assert "32x40" in printed.out
    manifest = Bundle.open(tmp_path / "b").manifest
    assert manifest.network.class_names[:2] == ("digit 0", "digit 1")
    assert manifest.network.num_classes == 10
    assert [mask.name for mask in manifest.masks] == ["mask/blocks.0/layer", "mask/blocks.1/layer"]
    assert run(["verify", str(tmp_path / "b")]) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["SmallCn", *OWN_OPTIONS], 2, "Did you mean 'SmallCnn'"),
        (["SmallCnn", *OWN_OPTIONS, "-O", "widht=3"], 2, "Did you mean 'width'"),
        (["SmallCnn", *OWN_OPTIONS, "-O", "classes=ten"], 2, "-O classes=ten is not valid: give a whole number"),
        (["SmallCnn", *OWN_OPTIONS, "-O", "classes"], 2, "give key=value"),
        (["SmallCnn", *OWN_OPTIONS, "--mode", "layer"], 2, "Unknown argument of SmallCnn 'mode'"),
        (["SmallCnn", "--import", "nowhere.py"], 1, "There is no file nowhere.py"),
        (["SmallCnn", "--import", "no.where"], 1, "There is no module no.where"),
        (["SmallCnn", "-O", "width=3"], 2, "Unknown model 'SmallCnn'"),
        (["Head", "--import", str(OWN)], 2, "needs width, classes"),
        (["OWN_OPTIONS", "--import", "tests/cli/test_export.py"], 2, "is list: give the name of a function or class"),
        (["laud_resnet14_small", "-O", "mode=layer", "--mode", "both"], 2, "mode is given twice"),
        (["laud_resnet14_small", "-O", "granularty=4"], 2, "Did you mean 'granularity'"),
        (["laud_resnet14_small", "--channel-masker-layers", "two"], 2, "give a whole number"),
        (["resnet10_small_perceiver_t32", "--mode", "layer"], 2, "Unknown argument of resnet10_small_perceiver_t32"),
        (["SmallCnn", *OWN_OPTIONS, "--class-names", "nowhere.txt"], 1, "Cannot read nowhere.txt"),
    ],
)
def test_mistakes_end_with_a_message_and_a_code(
    arguments: list[str], code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", *arguments, "-o", str(tmp_path / "b")]) == code
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "b").exists()
