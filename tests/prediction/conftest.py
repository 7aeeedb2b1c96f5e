from __future__ import annotations

import pytest

from dyndeploy.device_calibration.fit import fit_all
from dyndeploy.prediction.calibrated import Calibration
from tests.device_calibration.helpers import many


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    """Of made-up times."""
    fits = fit_all(many(), trees=3)
    machine = {"cpu": "a", "architecture": "b", "usable_cores": 2, "date": "2026-01-01"}
    return Calibration(
        "cpu",
        1,
        machine,
        {"version": "1", "native_sha256": None},
        {"samples": 9},
        0.01,
        0.3,
        {n: f.model for n, f in fits.items()},
    )
