"""The benchmark of common batches: thresholds that give the mix, and what the mix can save at most."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dyndeploy.confidences import confidences
from dyndeploy.runtimes.staged import first_reached

FOLDER = Path(__file__).parents[2] / "benchmarks" / "serving"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("serving_run", FOLDER / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("mix", [(60, 20, 10, 10), (25, 25, 25, 25), (1, 98, 0, 1)])
def test_images_leave_in_the_shares_of_the_mix(script: Any, mix: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    logits = tuple(generator.standard_normal((200, 10)).astype(np.float32) for _ in mix)
    thresholds = script.mixed_thresholds(logits, mix)
    exits = first_reached([confidences(values) for values in logits], [*thresholds, -np.inf])
    assert np.bincount(exits, minlength=4).tolist() == [2 * share for share in mix]


def test_the_ceiling_is_what_the_mix_does_not_multiply(script: Any) -> None:
    assert script.ceiling([100, 200], (50, 50)) == pytest.approx(200 / 150)
    # As benchmarks/results/early-exit.md says of the same network.
    macs = [619347072, 1007320704, 1121887872, 1190166144]
    assert script.ceiling(macs, (60, 20, 10, 10)) == pytest.approx(1.48, abs=0.005)
