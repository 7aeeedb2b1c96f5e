from __future__ import annotations

import numpy as np
import pytest

from dyndeploy.measure.steady import quick


def test_what_interrupts_a_run_does_not_count() -> None:
    steady = [1.0, 1.0, 1.02, 1.01, 1.0]
    assert quick([*steady, 30.0, 2.0, 5.0, 9.0, 3.0]) == pytest.approx(np.mean(steady))
    assert quick([7.0]) == 7.0
