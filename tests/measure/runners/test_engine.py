"""Engines next to their static twin; times come from the fake device, MACs from the graph."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dyndeploy.cli import run
from dyndeploy.errors import UsageError
from dyndeploy.graphs.forced import forced_masks
from dyndeploy.graphs.macs import MacCounter
from dyndeploy.measure import load_profile, profile_engine
from dyndeploy.runtimes.cuda import Gpu
from dyndeploy.runtimes.tensorrt import TensorRTSession
from dyndeploy.runtimes.tensorrt_engine import EngineSettings
from dyndeploy.runtimes.tensorrt_plan import BuildPlan
from tests.bundles import MODES, STATIC_MACS, tiny_bundle
from tests.runtimes import tensorrt_reference
from tests.runtimes.fake_tensorrt import install_fakes


def test_rates_next_to_the_twin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = install_fakes(monkeypatch, "8.5.3.1", tmp_path)
    bundle = tiny_bundle(tmp_path / "b", mode="spatial", batch=2)
    executed: list[TensorRTSession] = []

    def timed(self: Gpu, enqueue: object, stream: object, runs: int) -> list[float]:
        session = enqueue.__self__  # type: ignore[attr-defined]
        executed.append(session)
        session._execute()
        # The twin has logits only, the others their masks as outputs too.
        return [20.0 if len(session.outputs) == 1 else 5.0 if len(session.inputs) == 3 else 40.0] * runs

    monkeypatch.setattr(Gpu, "timed", timed)
    profile = profile_engine(bundle, rates=(0.5, 1.0), repeats=4, warmup=1)
    half, full = profile.rates
    assert profile.settings["rounds"] == 4
    assert half.samples.ms == (5.0,) * 4 and profile.data.samples.ms == (40.0,) * 4
    # Twin and dynamic engine in turn; the visit between two configurations counts for both.
    assert profile.static.ms == (20.0,) * 16
    assert half.realised_speedup == pytest.approx(4.0) and profile.data.realised_speedup == pytest.approx(0.5)
    counter = MacCounter(bundle.load_model())
    drawn = [forced_masks(bundle.manifest.masks, 0.5, seed) for seed in range(4)]
    needed = [counter.count(masks).per_sample.mean() for masks in drawn]
    assert half.needed_macs == pytest.approx(sum(needed) / 4)
    assert half.ideal_speedup == pytest.approx(STATIC_MACS / half.needed_macs)
    assert full.ideal_speedup < half.ideal_speedup
    assert half.cpu_ratios is None
    # Every fake layer takes 0.25 ms: the static block 1 has eight of them, the dynamic one a masker and an operator.
    for result in (*profile.rates, profile.data):
        assert {block.name: (block.static_ms, block.dynamic_ms) for block in result.blocks} == {
            "layer1.0": (2.0, 0.5),
            "layer2.0": (1.75, 0.5),
        }
    assert len(world.builds) == 3
    assert world.contexts == 0 and not world.memory


@pytest.mark.parametrize("mode", MODES)
def test_what_it_says_of_itself(mode: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = install_fakes(monkeypatch, "8.2.1.8", tmp_path)
    # The fake takes types from the graph alone: half weights of an FP32 graph would meet float activations.
    monkeypatch.setattr(tensorrt_reference, "MIXED", True)
    bundle = tiny_bundle(tmp_path / "b", mode=mode)
    profile = profile_engine(bundle, EngineSettings(precision="fp16"), rates=(0.5,), repeats=2, warmup=1)
    assert (profile.device, profile.machine["gpu"]) == ("Fake Nano", "Fake Nano, compute 5.3")
    assert (profile.runtime["name"], profile.runtime["version"], profile.batch) == ("tensorrt", "8.2.1.8", 1)
    assert profile.bundle["precision"] == "fp16" and profile.reduced_precision is None
    plan = BuildPlan.from_json(profile.settings["build_plan"])
    assert (plan.precision, plan.typed, plan.library_sha256) == ("fp16", False, profile.native["sha256"])
    # Labels stay out of the way of what is pinned to float: the head is found by its name.
    assert {name.split("~")[0] for name in plan.float_layers} == {"head/mean", "head/fc"}
    assert len(world.builds) == 3 and all(len(build["float_layers"]) == 2 for build in world.builds)
    assert "no libcuda here" in profile.settings["graph_note"]
    assert any("not launched as a CUDA graph" in note for note in profile.warnings())


def test_a_gpu_that_has_a_device_model_is_called_by_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_fakes(monkeypatch, "10.3.0", tmp_path)
    start = Gpu.__init__

    def named(self: Gpu, index: int = 0) -> None:
        start(self, index)
        self.info = type(self.info)("NVIDIA H200", "9.0", "12.6", "12.6")

    monkeypatch.setattr(Gpu, "__init__", named)
    assert profile_engine(tiny_bundle(tmp_path / "b"), rates=(0.5,), repeats=2, warmup=1).device == "h200"


def test_compare_reads_what_the_command_writes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install_fakes(monkeypatch, "10.3.0", tmp_path)
    bundle = tiny_bundle(tmp_path / "b", mode="both")
    arguments = ["engine", str(bundle.path), "--profile", "--rates", "0.5", "--repeats", "2"]
    assert run([*arguments, "--json"]) == 0
    written = tmp_path / "profile.json"
    written.write_text(capsys.readouterr().out)
    profile = load_profile(written)
    assert profile.runtime["version"] == "10.3.0"
    assert set(profile.rates[0].samples.ms) == {1.5}, "the fake device's only time"
    page = tmp_path / "page.html"
    assert run(["compare", str(written), "-o", str(page), "--predict-device", "nano", "--json"]) == 0
    comparison = json.loads(capsys.readouterr().out)
    assert comparison["profiled_device"] == "Fake Nano" and comparison["comparisons"][0]["latency_mape"] is None
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert run([*arguments, "--precision", "fp16", "--strongly-typed"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "not launched as a CUDA graph" in out and "Engines: fp16, types in the graph" in out and "1.00x" in out


def test_what_cannot_be_profiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = install_fakes(monkeypatch, "8.5.3.1", tmp_path)
    with pytest.raises(UsageError, match="no static twin"):
        profile_engine(tiny_bundle(tmp_path / "plain", static=False))
    bundle = tiny_bundle(tmp_path / "b")
    with pytest.raises(UsageError, match="at least 2"):
        profile_engine(bundle, repeats=1)
    with pytest.raises(UsageError, match=r"not a number in \[0, 1\]"):
        profile_engine(bundle, rates=(1.5,))
    with pytest.raises(UsageError, match="was exported in fp32: an INT8 engine needs a bundle"):
        profile_engine(bundle, EngineSettings(precision="int8"))
    assert world.builds == []
