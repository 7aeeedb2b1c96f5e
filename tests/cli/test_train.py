from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from dyndeploy.cli import run
from dyndeploy.training import dump_recipe
from tests.training.helpers import OWN, own, tiny, tiny_perceiver


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    path = tmp_path / "tiny.yaml"
    path.write_text(dump_recipe(tiny(epochs=1)), encoding="utf-8")
    return path


def test_json_is_all_that_stdout_holds(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "run"
    assert run(["train", str(recipe), "-o", str(output), "--epochs", "2", "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    # On a busy machine lines within an epoch come as well, with a comma instead of the colon.
    ends = [line.split(":")[0].strip() for line in captured.err.splitlines() if ":" in line]
    assert ends == ["epoch 1/2", "epoch 2/2"]
    assert result["recipe"]["epochs"] == len(result["history"]) == 2
    assert result == json.loads((output / "result.json").read_text())


def test_the_table_names_every_block(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["train", str(recipe)]) == 0
    printed = capsys.readouterr().out
    for block in ("layer1.0", "layer2.0", "layer3.0", "layer4.0"):
        assert block in printed
    assert "Held-out accuracy" in printed
    assert "Next: dyndeploy export runs/tiny --static -o BUNDLE" in printed
    assert (tmp_path / "runs" / "tiny" / "checkpoint.pt").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["digits-laud-resnet14-smal-spatial"], 2, "Did you mean 'digits-laud-resnet14-small-spatial'"),
        (
            ["nowhere.yaml"],
            1,
            "There is no recipe nowhere.yaml. Check the path, or name one that comes with dyndeploy: ada-deit-small",
        ),
        (["digits-laud-resnet14-small-spatial", "--epochs", "0"], 2, "epochs: 0 is not valid"),
        (["laud-resnet50-layer"], 2, "--data DIR"),
        (["laud-resnet50-layer", "--data", "nowhere"], 1, "There is no folder nowhere. "),
        (["digits-laud-resnet14-small-spatial", "--init", "nowhere.pt"], 1, "nowhere.pt"),
    ],
)
def test_mistakes_end_with_a_message_and_a_code(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["train", *arguments]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert not list(tmp_path.iterdir())


@pytest.fixture
def perceiver(tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    path = tmp_path / "perceiver.yaml"
    recipe = tiny_perceiver(epochs=1, exits={"thresholds": [0.5, 0.5, 0.5]}, ema={"decay": 0.5})
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    return path


def test_the_table_names_every_exit(perceiver: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", str(perceiver), "-o", str(tmp_path / "run"), "--accelerator", "cpu"]) == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    for entry in result["evaluation"]["exits"] + result["ema_evaluation"]["exits"]:
        assert f"{entry['accuracy']:.2%}" in printed
        assert f"{entry['macs'] / 1e6:.2f} M" in printed
    assert "moving average" in " ".join(printed.split())
    assert "with early exit at confidences 0.5, 0.5, 0.5" in printed


def test_only_the_first_of_several_processes_speaks(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(["train", str(recipe), "-o", str(tmp_path / "run"), "--json"]) == 0
    assert capsys.readouterr().out == ""


def test_a_network_of_ones_own_by_a_recipe_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    (tmp_path / "net.py").write_text(OWN.read_text(encoding="utf-8"), encoding="utf-8")
    content = own("three_exits", sparsity={"target": 0.8}).as_dict()
    content["model"]["import"] = "net.py"
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    arguments = ["train", str(tmp_path / "own.yaml"), "-o", str(tmp_path / "run"), "--accelerator", "cpu"]
    assert run(arguments) == 0
    printed = capsys.readouterr().out
    assert "stages.1.block" in printed
    assert "exit" in printed
    assert "(target 0.8)" in printed
    content |= {"name": "loss", "loss": "net.py:on_a_circle", "sparsity": None, "exits": None}
    content["model"] |= {"name": "Embedding"}
    (tmp_path / "loss.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert run(["train", str(tmp_path / "loss.yaml"), "-o", str(tmp_path / "other"), "--accelerator", "cpu"]) == 0
    assert "Held-out loss 0." in capsys.readouterr().out
    content["model"]["import"] = "nets.py"
    (tmp_path / "loss.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert run(["train", str(tmp_path / "loss.yaml"), "-o", str(tmp_path / "third")]) == 1
    assert "There is no file" in capsys.readouterr().err
    assert not (tmp_path / "third").exists()
