from __future__ import annotations

import json
from pathlib import Path

import pytest

from dyndeploy.cli import run
from dyndeploy.profiling import Profile
from dyndeploy.targets import device_names


@pytest.fixture
def saved(profile: Profile, tmp_path: Path) -> Path:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile.to_json()))
    return path


def test_all_devices_by_default(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.html"
    assert run(["compare", str(saved), "-o", str(report)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert report.read_text().startswith("<!DOCTYPE html>")
    for name in device_names():
        assert name in out
        assert f"{name}, predicted" in report.read_text()
    assert "not comparable" in out


def test_one_device_as_json(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.html"
    assert run(["compare", str(saved), "-o", str(report), "--predict-device", "3090", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    value = json.loads(out)
    assert value["profiled_device"] == "cpu"
    (comparison,) = value["comparisons"]
    assert comparison["predicted_device"] == "rtx3090"
    assert comparison["latency_mape"] is None
    assert [entry["masks"] for entry in comparison["rates"]] == ["forced"] * 3 + ["data"]
    assert {"measured_speedup", "predicted_speedup"} <= set(comparison["rates"][0]["blocks"][0])
    assert report.is_file()


def test_failures(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.html"
    assert run(["compare", str(saved), "-o", str(report), "--predict-device", "v1000"]) == 2
    assert "Did you mean 'v100'" in capsys.readouterr().err
    assert run(["compare", str(tmp_path / "none.json"), "-o", str(report)]) == 1
    assert "Cannot read" in capsys.readouterr().err
    (tmp_path / "foreign.json").write_text('{"a": 1}')
    assert run(["compare", str(tmp_path / "foreign.json"), "-o", str(report)]) == 1
    assert "no profile" in capsys.readouterr().err
    assert not report.exists()
    assert run(["compare", str(saved), "-o", str(saved / "report.html")]) == 1
    assert "Cannot create the folder" in capsys.readouterr().err
