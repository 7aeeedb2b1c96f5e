from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dyndeploy.errors import CheckpointError, UsageError
from dyndeploy.nets import Preprocessing, TrainedNetwork, preprocessing_at, read_trained, save_checkpoint
from dyndeploy.nets.registry import IMAGENET, model_info
from dyndeploy.nets.trained import TRAINED, checkpoint_of_run
from tests.nets.helpers import build

MINE = TrainedNetwork(
    name="laud_resnet14_small",
    options={"mode": "layer"},
    input_size=(48, 40),
    preprocessing=Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 50, "bicubic"),
    class_names=("cat", "ant"),
)


def small(**options: object) -> torch.nn.Module:
    return build("laud_resnet14_small", width_mult=0.1, **options)


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    save_checkpoint(small(mode="layer"), tmp_path / "a.pt", **{TRAINED: MINE.as_dict()})
    found = read_trained(tmp_path / "a.pt")
    assert found.options["mode"] == "layer" and found.options["width_mult"] == 0.1
    assert (found.name, found.imported) == ("laud_resnet14_small", None)
    assert (found.input_size, found.preprocessing, found.class_names) == ((48, 40), MINE.preprocessing, ("cat", "ant"))


def test_files_without_it_tell_what_they_can(tmp_path: Path) -> None:
    save_checkpoint(small(mode="channel"), tmp_path / "plain.pt")
    plain = read_trained(tmp_path / "plain.pt")
    assert plain.name == "laud_resnet14_small" and plain.options["mode"] == ["channel"] * 4
    assert (plain.input_size, plain.preprocessing, plain.class_names) == (None, None, ())
    torch.save(small().state_dict(), tmp_path / "foreign.pt")
    assert read_trained(tmp_path / "foreign.pt") == TrainedNetwork()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_size": [48]}, "input_size must be a list of 2"),
        ({"preprocessing": {"mean": [0, 0, 0], "std": [1, 0, 1], "resize": 8, "interpolation": "nearest"}}, "above 0"),
        ({"preprocessing": {"mean": [0, 0, 0], "std": [1, 1, 1], "resize": 8, "interpolation": "cubic"}}, "one of"),
        ({"class_names": "cat"}, "class_names must be a list"),
    ],
)
def test_nonsense_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    save_checkpoint(small(), tmp_path / "a.pt", **{TRAINED: MINE.as_dict() | change})
    with pytest.raises(CheckpointError, match=message) as caught:
        read_trained(tmp_path / "a.pt")
    assert str(tmp_path / "a.pt") in str(caught.value)


def test_the_shorter_side_follows_the_input_size() -> None:
    assert preprocessing_at(model_info("laud_resnet50"), (112, 160)).resize == 128
    assert preprocessing_at(None, (30, 20)).resize == 20
    assert IMAGENET.scaled((224, 224), (224, 224)) == IMAGENET
    at_double = MINE.preprocessing_at((96, 80))
    assert at_double is not None and at_double.resize == 100
    assert MINE.preprocessing_at(None) == MINE.preprocessing


def test_the_best_epoch_of_a_run_is_meant(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no training run: it holds no checkpoint\.pt"):
        checkpoint_of_run(tmp_path)
    (tmp_path / "checkpoint.pt").touch()
    assert checkpoint_of_run(tmp_path).name == "checkpoint.pt"
    (tmp_path / "best.pt").touch()
    assert checkpoint_of_run(tmp_path).name == "best.pt"
    assert checkpoint_of_run(tmp_path, weights="ema").name == "checkpoint.pt"
