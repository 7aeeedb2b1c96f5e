"""Engines next to their static twin; times come from the fake device, MACs from the graph."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dyndeploy.cli import run
from dyndeploy.errors import BundleError, UsageError
from dyndeploy.graphs.forced import forced_masks
from dyndeploy.graphs.macs import MacCounter
from dyndeploy.measure.engines import profile_engine
from dyndeploy.runtimes.tensorrt import TensorRTSession
from tests.bundles import STATIC_MACS, tiny_bundle
from tests.runtimes.fake_tensorrt import install_fakes


def test_rates_next_to_the_twin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = install_fakes(monkeypatch, "8.5.3.1", tmp_path)
    bundle = tiny_bundle(tmp_path / "b", mode="spatial", batch=2)
    visits: list[int] = []

    def device_times(self: TensorRTSession, runs: int, warm_up: int = 10) -> list[float]:
        visits.append(len(self.inputs))
        return [2.0 if len(self.inputs) == 1 else 0.5] * runs

    monkeypatch.setattr(TensorRTSession, "device_times", device_times)
    profile = profile_engine(bundle, rates=(0.5, 1.0), rounds=2, runs=3)
    # The twin has one input, the dynamic engine one more per mask; they take turns.
    assert visits == [1, 3] * 4
    half, full = profile.rates
    assert (len(half.dynamic_ms), len(half.static_ms)) == (6, 6)
    assert half.realised_speedup == pytest.approx(4.0)
    counter = MacCounter(bundle.load_model())
    needed = [counter.count(forced_masks(bundle.manifest.masks, 0.5, seed)).per_sample.sum() for seed in (0, 1)]
    assert half.ideal_speedup == pytest.approx(2 * STATIC_MACS / (sum(needed) / 2))
    assert half.realisation == pytest.approx(4.0 / half.ideal_speedup)
    assert full.ideal_speedup < half.ideal_speedup
    assert profile.plan == "fp32, builder flags"
    assert json.loads(json.dumps(profile.to_json()))["rates"][0]["realised_speedup"] == pytest.approx(4.0)
    assert world.contexts == 0 and not world.memory


def test_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install_fakes(monkeypatch, "10.3.0", tmp_path)
    bundle = tiny_bundle(tmp_path / "b", mode="both")
    arguments = ["engine", str(bundle.path), "--profile", "--rates", "0.5"]
    assert run([*arguments, "--json"]) == 0
    profile = json.loads(capsys.readouterr().out)
    assert profile["tensorrt"] == "10.3.0"
    assert set(profile["rates"][0]["dynamic_ms"]) == {1.5}, "the fake device's only time"
    assert run([*arguments, "--precision", "fp16", "--strongly-typed"]) == 0
    out = capsys.readouterr().out
    assert "no CUDA graph" in out and "fp16, types in the graph" in out and "1.00x" in out


def test_what_cannot_be_profiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_fakes(monkeypatch, "8.5.3.1", tmp_path)
    with pytest.raises(BundleError, match="no static twin"):
        profile_engine(tiny_bundle(tmp_path / "plain", static=False))
    bundle = tiny_bundle(tmp_path / "b")
    with pytest.raises(UsageError, match="at least one of each"):
        profile_engine(bundle, rounds=0)
    with pytest.raises(UsageError, match=r"must lie in \[0, 1\]"):
        profile_engine(bundle, rates=(1.5,))
