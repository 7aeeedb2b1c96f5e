"""The tutorial's commands run as they stand on the page, on a small network and a handful of images.

What is replaced is listed in :data:`REPLACED`, so that the page shows what a user would type. Blocks behind
``<!-- by hand -->`` need a board, the internet or ten minutes, and are left out.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from dyndeploy import create_model
from dyndeploy.cli import COMMANDS, run

PAGE = Path(__file__).parent.parent / "docs" / "tutorial.md"
EXITS = "## The same with early exits"
BLOCK = re.compile(r"(<!-- by hand -->\n)?^```(sh|yaml)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SAVED = re.compile(r"[Ss]ave (?:this one )?as `([\w.]+)`")

REPLACED = {
    "laud_resnet50": "laud_resnet14_small",
    "reg800m_perceiver_t128": "resnet10_small_perceiver_t32",
    "[224, 224]": "[32, 32]",
    "epochs: 30": "epochs: 1",
    "batch_size: 32": "batch_size: 16",
    "warmup_epochs: 1": "warmup_epochs: 0",
    "--min-accuracy 0.9": "--min-accuracy 0.1",  # One epoch teaches nothing.
    "--threads 1 --data": "--threads 1 --repeats 2 --rates 0.5 --data",
    "profile exits --data": "profile exits --repeats 2 --data",
}
"""What the page says -> what is small enough for a test."""

CLASSES = ("bolt", "hex", "phillips", "torx", "wood")


whole_way = pytest.mark.skipif("evaluate" not in COMMANDS, reason="the tutorial evaluates bundles")


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with small images of five classes, and ImageNet weights as torchvision lays them out."""
    digits = load_digits()
    for label, name in enumerate(CLASSES):
        for index, picture in enumerate(digits.images[digits.target == label][:28]):
            folder = tmp_path / "photos" / ("train" if index < 20 else "val") / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray((picture * 15).astype("uint8")).resize((40, 40)).convert("RGB").save(
                folder / f"{index}.png"
            )
    (tmp_path / "photos" / "new").mkdir()
    (tmp_path / "photos" / "val" / "bolt" / "20.png").rename(tmp_path / "photos" / "new" / "desk.png")
    torch.manual_seed(0)
    static = create_model("laud_resnet14_small", mode="static", num_classes=1000)
    torch.save(static.state_dict(), tmp_path / "resnet50-0676ba61.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def steps(text: str) -> Iterator[tuple[str, str]]:
    """Files to save, as (name, content), and commands, as ("", line), in the order of the page."""
    for block in BLOCK.finditer(text):
        by_hand, language, content = block.groups()
        if language == "yaml":
            yield SAVED.findall(text[: block.start()])[-1], content
        elif not by_hand:
            yield from (("", line) for line in content.splitlines())


def follow(text: str) -> list[str]:
    """Do what the page says; gives the commands."""
    for page, test in REPLACED.items():
        text = text.replace(page, test)
    done = []
    for name, content in steps(text):
        if name:
            Path(name).write_text(content, encoding="utf-8")
            continue
        program, *arguments = shlex.split(content, comments=True)
        assert program == "dyndeploy", content
        assert run(arguments) == 0, content
        done.append(arguments[0])
    return done


def test_everything_replaced_stands_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [words for words in REPLACED if words not in text] == []
    assert [f"## {number}. " in text for number in range(1, 11)] == [True] * 10


@whole_way
def test_own_images_become_a_network_for_a_board(workshop: Path) -> None:
    done = follow(PAGE.read_text(encoding="utf-8").split(EXITS)[0])
    assert list(dict.fromkeys(done)) == [
        "train", "export", "verify", "evaluate", "run", "profile", "compare", "predict", "plan", "engine",
    ]  # fmt: skip
    measured = json.loads((workshop / "cpu.json").read_text())
    assert measured["kind"] == "measured" and measured["bundle"]["name"] == "laud_resnet14_small"
    assert (workshop / "report.html").stat().st_size > 10_000
    assert len(json.loads((workshop / "bundle" / "bundle.json").read_text())["class_names"]) == len(CLASSES)
    assert json.loads((workshop / "plan.json").read_text())
    assert list((workshop / "trtexec").glob("*.onnx"))


@whole_way
def test_the_same_with_early_exits(workshop: Path) -> None:
    done = follow(PAGE.read_text(encoding="utf-8").split(EXITS)[1])
    assert list(dict.fromkeys(done)) == [
        "train", "export", "verify", "calibrate", "evaluate", "run", "profile", "predict", "engine",
    ]  # fmt: skip
    measured = json.loads((workshop / "exits.json").read_text())
    assert measured["kind"] == "measured_exits" and len(measured["exits"]) == 4
    assert list((workshop / "trtexec-exits").rglob("*.onnx"))
