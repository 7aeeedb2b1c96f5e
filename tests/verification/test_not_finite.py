"""Verification reports what is not finite as failed checks, in JSON too."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from dyndeploy.bundle import Bundle
from dyndeploy.cli import run
from dyndeploy.export import ExportSettings, export_model
from dyndeploy.nets import create_model
from dyndeploy.verification import verify_bundle
from dyndeploy.verification.report import OutputDeviation
from dyndeploy.verification.tensors import deviation
from tests.bundles import resealed
from tests.spoiled import BAD, spoiled, weight_of

NAN = float("nan")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("whole") / "b"
    return export_model(create_model("laud_resnet14_small", mode="spatial"), folder, ExportSettings(static=True))


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("staged") / "b"
    return export_model(create_model("resnet10_small_perceiver_t32"), folder, ExportSettings(static=True))


def copied(bundle: Bundle, folder: Path) -> Bundle:
    shutil.copytree(bundle.path, folder)
    return Bundle.open(folder)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("file", ["model.onnx", "static.onnx"])
def test_damaged_weights_are_named(
    whole: Bundle, tmp_path: Path, value: float, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = weight_of(whole, file, (10,))
    bundle = spoiled(copied(whole, tmp_path / "b"), file, name, value)
    assert run(["verify", str(bundle.path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    failed = [check for check in report["checks"] if not check["passed"]]
    assert f"weights that are not finite: '{name}' holds 1" in failed[0]["detail"]
    assert ("static twin" in failed[0]["name"]) == (file == "static.onnx")


@pytest.mark.parametrize("stage", [0, 3])
def test_damaged_stages_are_named(staged: Bundle, tmp_path: Path, stage: int) -> None:
    file = staged.stages[stage].name
    bundle = spoiled(copied(staged, tmp_path / "b"), file, weight_of(staged, file, (10,)), NAN)
    report = verify_bundle(bundle)
    assert [check.name for check in report.checks if not check.passed] == [f"{file}: graph"]


@pytest.mark.parametrize("which", ["whole", "staged"])
def test_finite_weights_that_overflow_fail_and_are_json(
    which: str, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    original: Bundle = request.getfixturevalue(which)
    file = (original.stages[-1] if which == "staged" else original.model).name
    largest = max(
        (tuple(t.dims) for t in onnx.load(original.path / file).graph.initializer if len(t.dims) > 1), key=math.prod
    )
    bundle = spoiled(copied(original, tmp_path / "b"), file, weight_of(original, file, largest), 3e38, everywhere=True)
    assert run(["verify", str(bundle.path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    failed = [check["detail"] for check in report["checks"] if not check["passed"]]
    assert any("holds NaN or infinite values" in detail for detail in failed)
    assert report["outputs"][-1]["relative_error"] is None


def test_a_reference_of_nan_is_no_reference(whole: Bundle, staged: Bundle, tmp_path: Path) -> None:
    for number, (original, name) in enumerate(((whole, "logits"), (whole, "forced/logits"), (staged, "logits/exit1"))):
        bundle = copied(original, tmp_path / str(number))
        with np.load(bundle.path / "reference.npz") as archive:
            tensors = {key: archive[key].copy() for key in archive.files}
        tensors[name][0, 0] = NAN
        np.savez(bundle.path / "reference.npz", **tensors)
        report = verify_bundle(resealed(bundle))
        assert not report.passed
        assert report.checks[-1].name == "reference tensors" and f"'{name}' holds 1 NaN" in report.checks[-1].detail


def test_nothing_is_near_nan() -> None:
    fine, bad = np.ones(3, np.float32), np.array([1, NAN, 1], np.float32)
    for got, reference in ((fine, bad), (bad, fine), (bad, bad)):
        found = deviation("logits", got, reference)
        assert found == OutputDeviation("logits", float("inf"), float("inf"))
        assert not found.check("logits", 1e30).passed
    assert found.to_json() == {"output": "logits", "max_error": None, "relative_error": None}
