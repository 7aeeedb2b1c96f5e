"""Every name that 'models' lists works where it says, and is refused elsewhere with the reason."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from dyndeploy.cli import run
from dyndeploy.errors import UsageError
from dyndeploy.nets import model_info, model_names
from dyndeploy.planning.sources import staged_network
from dyndeploy.prediction import Estimator, StagedNodes, predict
from dyndeploy.prediction.laudnet import predict_network
from dyndeploy.prediction.zoo import predict_only_names, predicted_only, require_registered
from dyndeploy.training.recipe import load_recipe, recipe_names

ONLY = predict_only_names()


def test_the_list_holds_both_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "--json"]) == 0
    listed = {entry["name"]: entry["predict_only"] for entry in json.loads(capsys.readouterr().out)}
    assert listed == {**dict.fromkeys(model_names(), False), **dict.fromkeys(ONLY, True)}
    assert "resnet50" in ONLY and not set(ONLY) & set(model_names())


def test_words_choose_among_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "laud_resnet50", "--json"]) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == ["laud_resnet50"]
    assert run(["models", "Detector", "RetinaNet", "small"]) == 0
    text = capsys.readouterr().out
    assert "laud_retinanet_small" in text and "laud_faster_rcnn" not in text and "names. Words" not in text
    assert run(["models", "nonsense"]) == 2
    assert "No network has nonsense in its name" in capsys.readouterr().err


_PLANNED = [name for name in model_names() if model_info(name).family != "detector"]
"""Detectors are captured to be priced (tests/measure/test_detectors.py), and not planned."""


@pytest.mark.parametrize("name", _PLANNED)
def test_registered_names_are_predicted_and_planned(name: str) -> None:
    found = staged_network(name, "nano")
    result = Estimator("nano", batch=1).predict(name if found is None else found)
    assert result.latency_ms > 0 and result.input_size == model_info(name).input_size
    # What cannot be planned by modes is planned by exits, but for transformers, whose policies are options each.
    if found is None:
        assert "mode" in model_info(name).defaults or "head" in model_info(name).config_type.modes
        assert not result.exits
    else:
        assert isinstance(found, StagedNodes) and len(result.exits) == 4
        times = [entry.latency_ms for entry in result.exits]
        assert times == sorted(times)


def test_registered_names_reach_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []

    def build(name: str, *_: Any) -> None:
        built.append(name)
        raise UsageError("enough")

    monkeypatch.setattr("dyndeploy.nets.factories.build_network", build)
    for name in model_names():
        assert run(["export", name, "-o", str(tmp_path / "b")]) == 2
    assert built == list(model_names())


@pytest.mark.parametrize("name", ONLY)
def test_other_names_are_predicted_only(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reason = predicted_only(name)
    assert reason is not None and name in reason and "predict" in reason
    if "--predictor reference" in reason:
        assert predict_network(name, device="nano").latency_ms > 0
    else:
        assert predict(name, "agx_xavier").latency_ms > 0
    for command in (["plan", name, "--device", "nano"], ["export", name, "-o", str(tmp_path / "b")]):
        assert run(command) == 2
        assert reason in capsys.readouterr().err
    with pytest.raises(UsageError, match="only"):
        require_registered(name)


def test_recipes_say_so_too() -> None:
    recipe = load_recipe(recipe_names()[0])
    with pytest.raises(UsageError, match="known to 'predict' only"):
        dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, name="resnet50", options={}))
