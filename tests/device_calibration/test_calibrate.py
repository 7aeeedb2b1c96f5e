from __future__ import annotations

import importlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dyndeploy.cli import run
from dyndeploy.device_calibration import calibrate
from dyndeploy.device_calibration.fit import fit_all
from dyndeploy.device_calibration.graphs import MicroGraph, micro_graph
from dyndeploy.device_calibration.measure import Measurement
from dyndeploy.errors import InputError, UsageError
from dyndeploy.prediction.calibrated import CalibratedModel, Installation, load_calibration
from dyndeploy.prediction.kernels import walk
from dyndeploy.runtimes.native import ISA_VARIABLE, find_cpu_library

from .helpers import synthetic, true_ms


class Interrupt(Exception):
    pass


@pytest.fixture(autouse=True)
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Growing hundreds of trees for every class takes longer than all other tests."""
    module = importlib.import_module("dyndeploy.device_calibration.calibrate")

    def quickly(samples: object, **options: object) -> object:
        return fit_all(samples, **{**options, "trees": 3, "seconds": math.inf})

    monkeypatch.setattr(module, "fit_all", quickly)
    monkeypatch.setattr(module, "LEAST_MINUTES", 0.05)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Times by formula in the place of measured ones, a third of a second each."""
    module = importlib.import_module("dyndeploy.device_calibration.calibrate")
    seen: list[int] = []

    def formula(graphs: Sequence[MicroGraph], **options: object):
        # Every third batch is "measured" while the machine is half as fast.
        slow = 1.5 if len(batches) % 3 == 0 else 1.0
        batches.append([graph.seed for graph in graphs])
        seen.extend(batches[-1])
        return [synthetic(graph, slow=slow) for graph in graphs]

    batches: list[list[int]] = []
    clock = iter(np.arange(0, 1e6, 0.5).tolist())
    monkeypatch.setattr(module, "measure", formula)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    return seen


def test_a_calibration_predicts_what_it_saw_at_the_common_speed(fast: list[int], tmp_path: Path) -> None:
    path = tmp_path / "deep" / "cpu.json"
    result = calibrate(path, minutes=0.1)
    assert path.exists() and not list(path.parent.glob("*.part"))
    assert load_calibration(path).to_json() == json.loads(path.read_text()) == result.to_json()
    graph = walk(micro_graph("plain", 12345, values=False).model)
    ms, low, high = CalibratedModel(load_calibration(path)).price(graph.kernels)
    assert ms.sum() == pytest.approx(sum(true_ms(kernel) for kernel in graph.kernels), rel=0.25)
    assert (low <= ms).all() and (ms <= high).all()
    assert result.measured["pace_ms"] == pytest.approx(0.25)


def test_it_goes_on_after_an_interrupt(fast: list[int], tmp_path: Path) -> None:
    def stop(message: str, fraction: float) -> None:
        if message.startswith("measuring graphs from 9 "):
            raise Interrupt

    path = tmp_path / "cpu.json"
    with pytest.raises(Interrupt):
        calibrate(path, minutes=0.1, progress=stop)
    assert not path.exists()
    part = path.with_name("cpu.json.part")
    kept = part.read_text().splitlines()
    assert len(kept) == 9  # the settings and eight graphs
    part.write_text("\n".join(kept) + '\n{"family": "pla')  # cut off in the middle of a line
    before = list(fast)
    result = calibrate(path, minutes=0.1)
    repeated = [seed for seed in fast[len(before) :] if seed in before]
    assert set(repeated) == {0}, "only the first graph, for the drift, is measured again"
    assert result.measured["graphs"] >= 8 + len(fast) - len(before) and len(result.measured["drift"]) >= 2


def test_what_another_instruction_set_measured_is_not_taken_over(
    fast: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = find_cpu_library()
    if library is None:
        pytest.skip("native library not built")
    best = library.instruction_sets()[0]
    if best == "generic":
        pytest.skip("this machine has one instruction set only")

    def stop(message: str, fraction: float) -> None:
        if message.startswith("measuring graphs from 9 "):
            raise Interrupt

    monkeypatch.setenv(ISA_VARIABLE, "generic")
    with pytest.raises(Interrupt):
        calibrate(tmp_path / "cpu.json", minutes=0.1, progress=stop)
    before = list(fast)
    monkeypatch.setenv(ISA_VARIABLE, best)
    result = calibrate(tmp_path / "cpu.json", minutes=0.1)
    assert result.runtime["instruction_set"] == best
    assert result.measured["graphs"] == len(fast) - len(before), "nothing of the other set is in it"


def test_a_foreign_file_in_the_way_is_not_overwritten(fast: list[int], tmp_path: Path) -> None:
    (tmp_path / "cpu.json.part").write_text("my notes")
    with pytest.raises(InputError, match="restart"):
        calibrate(tmp_path / "cpu.json", minutes=0.1)
    assert (tmp_path / "cpu.json.part").read_text() == "my notes"


def test_this_machine_really_measured(tmp_path: Path) -> None:
    result = calibrate(tmp_path / "cpu.json", minutes=0.05)
    assert result.overhead_ms > 0 and result.classes["general"].samples > 20
    assert result.foreign(Installation.here()) == [] and result.warnings() == []
    native = {"sha256": result.runtime["native_sha256"], "instruction_set": result.runtime["instruction_set"]}
    library = find_cpu_library()
    assert native["instruction_set"] == (None if library is None else library.instruction_set())
    other = result.foreign(Installation({**result.machine, "cpu": "another"}, "1.0", {"sha256": "0" * 64}))
    assert len(other) == 3 and "another" in other[0]


@pytest.mark.parametrize("minutes", [0.5, 2.0, 9.0])
def test_measuring_and_fitting_keep_to_the_time(
    minutes: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that only measuring, at a third of a second a graph, and fitting move."""
    now = [0.0]
    module = importlib.import_module("dyndeploy.device_calibration.calibrate")
    one = synthetic(micro_graph("plain", 2, values=False))
    fits = fit_all([(number, sample) for number in range(2) for sample in one.samples], trees=0)
    kept = Measurement(one.samples[:2], one.pace_ms)
    told: list[float] = []

    def measured(graphs: Sequence[MicroGraph], *, seconds: float, progress: object, **options: object):
        chosen = graphs[: max(4, int(seconds / 0.3))]
        for _ in chosen:
            now[0] += 0.3
            progress()
        return [kept for _ in chosen]

    def fitted(samples: Sequence[object], *, seconds: float = 0.0, **options: object):
        now[0] += seconds  # As fit_all does: it takes the time that it is given.
        return fits

    monkeypatch.setattr(module, "measure", measured)
    monkeypatch.setattr(module, "fit_all", fitted)
    monkeypatch.setattr(module, "common_error", lambda samples, fits: 0.3)
    monkeypatch.setattr(module, "_next", lambda state, seed, count, **_: [("plain", 2)] * count)
    drawn = micro_graph("plain", 2, values=False)
    monkeypatch.setattr(module, "micro_graph", lambda family, seed, **_: drawn)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    calibrate(tmp_path / "cpu.json", minutes=minutes, progress=lambda message, done: told.append(done))
    assert now[0] == pytest.approx(60 * minutes, rel=0.2)
    assert told == sorted(told) and told[-1] == 1.0 and len(told) > 20


def test_too_short_a_calibration_is_refused_with_the_least(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(UsageError, match=r"give 0\.5 to 600"):
        calibrate(tmp_path / "cpu.json", minutes=0.4)


@pytest.mark.parametrize("options", [{"device": "nano"}, {"minutes": 0.0}, {"minutes": float("nan")}])
def test_impossible_requests_are_refused(options: dict, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        calibrate(tmp_path / "cpu.json", **options)
    assert not list(tmp_path.iterdir())


def test_command_line(fast: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cpu.json"
    assert run(["calibrate-device", "--minutes", "0.06", "-o", str(path), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["file"] == str(path) and value["classes"]["general"]["samples"] > 0
    assert run(["calibrate-device", "--device", "nano", "-o", str(path)]) == 2
