"""The probe's graphs do their work in one branch, and what was measured is what is recorded."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dyndeploy.errors import DyndeployError, UsageError
from dyndeploy.graphs.inspect import all_nodes
from dyndeploy.measure.laziness import GATE, branch_model, branch_times, probe_laziness
from dyndeploy.runtimes import OnnxRuntimeSession
from dyndeploy.runtimes.tensorrt import TensorRTSession
from dyndeploy.targets import load_target, target_names
from tests.runtimes.fake_tensorrt import LIBRARY, install_fakes


@pytest.mark.parametrize("name", target_names())
@pytest.mark.parametrize("operators", [False, True])
def test_the_branch_decides_what_comes_out(name: str, operators: bool) -> None:
    with OnnxRuntimeSession(branch_model(load_target(name), operators=operators), native="off") as session:
        x = np.random.default_rng(0).random(session.inputs[0].shape, np.float32)
        skipped = session.run({"x": x, GATE: np.zeros(1, np.float32)})["y"]
        taken = session.run({"x": x, GATE: np.ones(1, np.float32)})["y"]
    np.testing.assert_array_equal(skipped, x)
    assert np.abs(taken - x).max() > 0.1
    assert np.isfinite(taken).all()


def test_medians_of_both_branches() -> None:
    """A session whose taken branch costs 5 ms, and once 500; first rounds do not count."""
    now = [0.0]
    durations = {1.0: iter([9.0, 9.0, 5e-3, 0.5, 5e-3]), 0.0: iter([9.0, 9.0, 1e-3, 1e-3, 1e-3])}

    class Stub:
        inputs = (types.SimpleNamespace(name="x", shape=(1, 2)),)

        def bind(self, feeds: dict[str, np.ndarray]) -> Callable[[], None]:
            gate = float(feeds[GATE][0])

            def call() -> None:
                now[0] += next(durations[gate])

            return call

    stub: Any = Stub()
    times = branch_times(stub, rounds=3, clock=lambda: now[0])
    assert times.taken == pytest.approx(5.0)
    assert times.not_taken == pytest.approx(1.0)


def test_probe_of_this_machine() -> None:
    record = probe_laziness("cpu", native="off", rounds=3)
    assert (record.target, record.runtime) == ("cpu", "onnxruntime")
    assert record.standard.taken > 0 and record.operators is not None and record.operators.taken > 0
    assert record.note == "operators: function bodies"


def test_probe_of_a_board(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = install_fakes(monkeypatch, "8.2.1.8", tmp_path, library=False)
    library = tmp_path / LIBRARY
    record = probe_laziness("nano", plugins=str(library), rounds=1)
    assert (record.runtime, record.version) == ("tensorrt", "8.2.1.8")
    assert record.operators is not None
    assert str(library) in record.note
    assert len(world.builds) == 2
    # Without plugins the convolutions are still measured.
    world.registered.clear()
    record = probe_laziness("nano", rounds=1)
    assert record.operators is None
    assert "no plugin library was found" in record.note

    # So they are where plugins in a branch are refused.
    def refuse(*arguments: Any, **options: Any) -> Any:
        if any(node.domain for node in all_nodes(arguments[0].graph)):
            raise DyndeployError("no plugin in a branch")
        return built(*arguments, **options)

    built = TensorRTSession.from_graph
    monkeypatch.setattr(TensorRTSession, "from_graph", refuse)
    record = probe_laziness("nano", plugins=str(library), rounds=1)
    assert record.operators is None and record.standard.taken > 0
    assert record.note == "operators not measured: no plugin in a branch"
    with pytest.raises(UsageError, match=r"orin_nx has TensorRT 10\.3, this machine 8\.2\.1\.8.*on the board"):
        probe_laziness("orin_nx")


def test_impossible_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="rounds=0"):
        probe_laziness("cpu", rounds=0)
    with pytest.raises(UsageError, match="Did you mean 'nano'"):
        probe_laziness("nanoo")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(DyndeployError, match="cannot be imported"):
        probe_laziness("nano")
