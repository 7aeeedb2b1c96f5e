"""The loop's order, pairing and counting; times are made up by the clock."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dyndeploy.measure.loop import Clock, DeviceClock, Paired, Visit, time_rounds


class Script:
    """Runs that return scripted milliseconds and remember the order in which they ran."""

    def __init__(self) -> None:
        self.order: list[str] = []

    def run(self, name: str, ms: float) -> Callable[[], float]:
        def call() -> float:
            self.order.append(name)
            return ms

        return call

    def pair(self, label: str, times: list[float], twin: float) -> Paired:
        twins = [self.run(f"twin{index}", twin) for index in range(len(times))]
        return Paired(label, [self.run(f"{label}{index}", ms) for index, ms in enumerate(times)], twins)


def silent(message: str, fraction: float) -> None: ...


def test_twins_stand_before_and_after_every_visit() -> None:
    script = Script()
    # Longer than 20 ms: one run per visit, and none before it.
    pairs = [script.pair("a", [50.0, 100.0], 200.0), script.pair("b", [25.0], 200.0)]
    assert time_rounds(pairs, DeviceClock(), 2, 0.0, 1, silent) == 2
    assert script.order[:5] == ["twin0", "twin1", "a0", "a1", "twin0"], "the warm-up"
    assert script.order[6:] == ["twin0", "a0", "twin0", "b0", "twin0", "twin1", "a1", "twin1", "b0", "twin0"]
    first, second = pairs
    assert first.ratios == [(0, 4.0, None), (1, 2.0, None)]
    assert second.ratios == [(0, 8.0, None), (0, 8.0, None)]
    assert [visit.ms for visit in first.visits] == [[50.0], [100.0]]
    # The visit between two pairs is kept once.
    assert (len(first.twin_visits), len(second.twin_visits)) == (4, 2)


def test_short_runs_are_repeated_after_one_that_is_not_counted() -> None:
    script = Script()
    pair = script.pair("a", [1.0], 4.0)
    time_rounds([pair], DeviceClock(), 2, 0.0, 3, silent)
    assert [len(visit.ms) for visit in pair.visits] == [5, 5], "5 ms of them"
    assert [len(visit.ms) for visit in pair.twin_visits] == [1, 1, 1, 1]
    assert script.order.count("a0") == 3 + 2 * (1 + 5)


def test_where_many_take_turns_every_visit_begins_with_a_run_that_is_not_counted() -> None:
    script = Script()
    pairs = [script.pair("a", [50.0], 200.0), script.pair("b", [100.0], 200.0)]
    time_rounds(pairs, DeviceClock(), 1, 0.0, 1, silent, settled=True)
    assert script.order[4:] == ["twin0", "twin0", "a0", "a0", "twin0", "twin0", "b0", "b0", "twin0", "twin0"]
    assert [len(visit.ms) for pair in pairs for visit in pair.visits] == [1, 1]
    assert pairs[1].ratios == [(0, 2.0, None)]


@given(
    inputs=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    ms=st.floats(21, 1000),
    seconds=st.floats(0, 5),
)
def test_rounds_fill_the_time_and_use_every_input_alike(inputs: list[int], ms: float, seconds: float) -> None:
    script = Script()
    pairs = [script.pair(str(number), [ms] * count, ms) for number, count in enumerate(inputs)]
    rounds = time_rounds(pairs, DeviceClock(), None, seconds, 1, silent)
    assert rounds >= 12 and rounds % max(inputs) == 0
    assert rounds < 200 + max(inputs)
    if 12 * 2 * len(inputs) * ms < 1000 * seconds < 190 * 2 * len(inputs) * ms:
        assert 2 * len(inputs) * ms * rounds >= 1000 * seconds
    longest = max(pairs, key=lambda pair: len(pair.runs))
    counts = [sum(index == each for index, _, _ in longest.ratios) for each in range(len(longest.runs))]
    assert len(set(counts)) == 1 and sum(counts) == rounds


def test_the_clock_of_one_thread() -> None:
    visit = Clock(single_thread=True).visit(3, lambda: sum(range(20000)), 4)
    assert visit.input == 3 and len(visit.ms) == 4
    assert visit.cpu_ms is not None and len(visit.cpu_ms) == 4 and all(ms > 0 for ms in visit.ms + visit.cpu_ms)
    assert Clock(single_thread=False).visit(0, lambda: None, 1).cpu_ms is None


def test_cpu_ratios_come_from_cpu_times() -> None:
    class TwoClocks:
        def visit(self, index: int, run: Callable[[], float], runs: int) -> Visit:
            ms = run()
            return Visit(index, [ms] * runs, [ms / 4 if ms > 100 else ms / 2] * runs, 1)

    script = Script()
    pair = script.pair("a", [50.0], 200.0)
    time_rounds([pair], TwoClocks(), 2, 0.0, 1, silent)
    assert pair.ratios == [(0, 4.0, 2.0)] * 2
    assert pair.to_json()["visits"] == [[0, [50.0], [25.0], 1]] * 2
    assert pair.to_json()["ratios"] == [[0, 4.0, 2.0]] * 2


def test_progress_goes_from_nothing_to_nine_tenths() -> None:
    seen: list[tuple[str, float]] = []
    script = Script()
    time_rounds([script.pair("a", [30.0], 30.0)], DeviceClock(), 3, 0.0, 1, lambda *told: seen.append(told))
    assert seen[0] == ("warming up: a", 0.0)
    assert [message for message, _ in seen[1:]] == ["round 1 of 3", "round 2 of 3", "round 3 of 3"]
    assert [fraction for _, fraction in seen] == pytest.approx([0, 0, 0.3, 0.6])
