"""What ``dyndeploy calibrate-device`` says of its result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dyndeploy.cli.calibrate_device import _print
from tests.device_calibration.helpers import little_calibration


@pytest.mark.parametrize(("mape", "rough"), [(0.05, False), (0.523, True)])
def test_a_rough_calibration_says_so(mape: float, rough: bool, capsys: pytest.CaptureFixture[str]) -> None:
    whole = little_calibration()
    result = replace(
        whole,
        classes={name: replace(model, mape=mape) for name, model in whole.classes.items()},
        measured={"samples": 266, "graphs": 4, "seconds": 59.0, "drift": [], "noise": [0.0123, 0.02]},
    )
    _print(result, Path("cpu-1t.json"))
    captured = capsys.readouterr()
    assert "drift not measured, noise 1.2%, 2.0%" in " ".join(captured.out.split())
    assert ("rough: single operators are predicted with a mean error of 52%" in captured.err) is rough
