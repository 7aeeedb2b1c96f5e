from __future__ import annotations

import json
from pathlib import Path

import pytest

from dyndeploy.cli import run
from dyndeploy.measure import Profile
from dyndeploy.prediction import known_devices
from dyndeploy.runtimes.native import BODIES_NOTE


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
    for name in known_devices():
        assert name in out
        assert f"<summary>{name}: rates and blocks, predicted</summary>" in report.read_text()
    assert "for information" in out and "error" not in out.replace("no error can be told", "")
    assert "operators: function bodies" in out and BODIES_NOTE in out
    assert "'dyndeploy calibrate-device --threads 1' calibrates it" in out
    assert run(["compare", str(saved)]) == 0
    assert "Report" not in capsys.readouterr().out


def test_one_device_as_json(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.html"
    assert run(["compare", str(saved), "-o", str(report), "--predict-device", "3090", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    value = json.loads(out)
    assert (value["profiled_device"], value["operators"]) == ("cpu", "function bodies")
    assert value["note"].startswith("This machine is not calibrated")
    (comparison,) = value["comparisons"]
    assert comparison["predicted_device"] == "rtx3090"
    assert comparison["latency_mape"] is None and comparison["speedup_mape"] is None
    assert [entry["masks"] for entry in comparison["rates"]] == ["forced"] * 3 + ["data"]
    assert {"measured_speedup", "predicted_speedup"} <= set(comparison["rates"][0]["blocks"][0])
    assert report.is_file()


def test_a_limit_for_the_error(profile: Profile, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, report = tmp_path / "nano.json", tmp_path / "report.html"
    path.write_text(json.dumps({**profile.to_json(), "device": "nano"}))
    call = ["compare", str(path), "-o", str(report)]
    assert run([*call, "--json", "--fail-above", "1e9"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["note"] == ""
    (error,) = [100 * c["latency_mape"] for c in value["comparisons"] if c["predicted_device"] == "nano"]
    assert run([*call, "--fail-above", str(0.9 * error)]) == 1
    assert f"off by {error:.1f}% on average" in capsys.readouterr().err
    assert run([*call, "--fail-above", str(1.1 * error)]) == 0
    assert run([*call, "--fail-above", "-1"]) == 2
    assert report.is_file()


def test_no_limit_for_what_was_not_measured(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", str(saved), "--fail-above", "10"]) == 2
    assert "calibrate-device" in capsys.readouterr().err
    assert run(["compare", str(saved), "--fail-above", "10", "--predict-device", "nano"]) == 2
    assert "calibrate-device" in capsys.readouterr().err


def test_the_same_device_gets_a_scatter(profile: Profile, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, report = tmp_path / "nano.json", tmp_path / "report.html"
    path.write_text(json.dumps({**profile.to_json(), "device": "nano"}))
    assert run(["compare", str(path), "-o", str(report), "--predict-device", "nano"]) == 0
    out = capsys.readouterr().out
    assert "nano: the worst parts" in out and "spatial_bottleneck" in out
    page = report.read_text()
    assert "Time of every part, measured and predicted for nano" in page and "10 % above" in page
    assert '<th scope="row">spatial_bottleneck</th>' in page


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
