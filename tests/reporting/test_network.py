"""A measured ONNX file next to the prediction for the machine that it was measured on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from dyndeploy.cli import run
from dyndeploy.files import write_json
from dyndeploy.measure import profile_network
from dyndeploy.prediction import predict
from dyndeploy.prediction.calibrated import calibration_file
from dyndeploy.reporting import compare_network_profile, render_network_report
from tests.device_calibration.helpers import little_calibration
from tests.graphs.lookalikes import exported


def test_this_machine_is_compared_once_it_is_calibrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    onnx.save(exported("text detector"), path := tmp_path / "detector.onnx")
    measured = profile_network(path, input_size=(48, 64), repeats=2)
    write_json(tmp_path / "p.json", measured.to_json())
    compare = ["compare", str(tmp_path / "p.json"), "-o", str(tmp_path / "page.html")]
    assert run([*compare, "--fail-above", "10"]) == 2
    assert "calibrate-device" in capsys.readouterr().err and not (tmp_path / "page.html").exists()
    write_json(calibration_file("cpu"), little_calibration().to_json())
    found = compare_network_profile(measured, "cpu")
    assert found.predicted_ms == predict(path, "cpu", input_size=(48, 64)).latency_ms
    assert found.error == found.predicted_ms / measured.samples.median - 1
    assert [part.name for part in found.parts] == ["network"] and found.parts[0].measured_ms == measured.parts[0].ms
    # A calibration is for one version of the runtime.
    other = replace(measured, runtime={**measured.runtime, "version": "0.1"})
    (warning,) = compare_network_profile(other, "cpu").warnings
    assert "0.1" in warning
    page = render_network_report(
        measured, [compare_network_profile(other, "cpu"), compare_network_profile(other, "nano")]
    )
    assert "cpu, predicted" in page and "not comparable" in page and "0.1" in page
    assert run([*compare, "--json"]) == 0
    entries = {e["predicted_device"]: e["error"] for e in json.loads(capsys.readouterr().out)["comparisons"]}
    assert entries.pop("cpu") == found.error and set(entries.values()) == {None}
