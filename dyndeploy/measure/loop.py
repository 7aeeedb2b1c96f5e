"""The measuring loop: something next to its twin, in turn, so that a drift of the machine's speed cancels in the ratio.

Every profile is measured by this one loop: sessions and engines on this machine, and networks on boards. It is sent to
a board as it stands, so it runs on Python 3.6 with nothing but the standard library and imports nothing of dyndeploy.
"""

import math
import statistics
import time
from typing import Any, Callable, List, Optional, Sequence, Tuple

MIN_ROUNDS, MAX_ROUNDS = 12, 200
SHORT_MS = 20.0  # Below this a run is so short that the caches the other session emptied would show.
VISIT_MS = 5.0  # Short runs are repeated within a round until the visit lasts about this long.
MAX_VISIT_RUNS = 25
LEAST_MS, LEAST_CPU_MS = 1e-6, 5e-4  # A clock of coarse resolution may see no time pass.

Progress = Callable[[str, float], None]


class Visit:
    """Times of consecutive runs on one input.

    Attributes:
        input: Index of the input.
        ms: Milliseconds of every run.
        cpu_ms: CPU milliseconds of every run, or None where they are not one thread's.
        preempted: Runs during which the processor was taken away, or None where nobody tells.
    """

    def __init__(
        self, input: int, ms: List[float], cpu_ms: Optional[List[float]] = None, preempted: Optional[int] = None
    ) -> None:
        self.input, self.ms, self.cpu_ms, self.preempted = input, ms, cpu_ms, preempted

    def to_json(self) -> List[Any]:
        """The attributes in order, as plain JSON types."""
        return [self.input, self.ms, self.cpu_ms, self.preempted]


class Clock:
    """Times runs by the wall clock, by the CPU time of the calling thread, and counts involuntary context switches.

    Args:
        single_thread: Whether the calling thread does all the work; only then its CPU time means anything.
    """

    def __init__(self, single_thread: bool) -> None:
        self._cpu = _thread_clock() if single_thread else None
        self._switches = _involuntary_switches(single_thread)

    def visit(self, index: int, run: Callable[[], Any], runs: int) -> Visit:
        """Time ``runs`` consecutive runs of one input."""
        visit = Visit(index, [], None if self._cpu is None else [], None if self._switches is None else 0)
        for _ in range(runs):
            switches = self._switches() if self._switches else 0
            cpu = self._cpu() if self._cpu else 0.0
            start = time.perf_counter()
            run()
            end = time.perf_counter()
            if self._cpu is not None and visit.cpu_ms is not None:
                visit.cpu_ms.append(max((self._cpu() - cpu) * 1000, LEAST_CPU_MS))
            visit.ms.append(max((end - start) * 1000, LEAST_MS))
            if self._switches is not None and visit.preempted is not None:
                visit.preempted += self._switches() > switches
        return visit


class DeviceClock:
    """For runs that return their own milliseconds: those between two events on a device."""

    def visit(self, index: int, run: Callable[[], Any], runs: int) -> Visit:
        """Take the times of ``runs`` consecutive runs of one input."""
        return Visit(index, [max(float(run()), LEAST_MS) for _ in range(runs)])


def _thread_clock() -> Callable[[], float]:
    """CPU seconds of the calling thread."""
    newer = getattr(time, "thread_time", None)  # 3.7
    if newer is not None:
        return newer  # type: ignore[no-any-return]
    return lambda: time.clock_gettime(time.CLOCK_THREAD_CPUTIME_ID)


def _involuntary_switches(single_thread: bool) -> Optional[Callable[[], int]]:
    """Counter of involuntary context switches, or None where the system has none (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    who = getattr(resource, "RUSAGE_THREAD", None) if single_thread else resource.RUSAGE_SELF
    return None if who is None else lambda: resource.getrusage(who).ru_nivcsw


class Paired:
    """Something to measure next to a twin, on the same inputs; :func:`time_rounds` fills in what it measured.

    Args:
        label: Name for the progress bar.
        runs: One per input: runs it once, and returns what the clock wants.
        twin_runs: The twin's, as many.

    Attributes:
        visits: Visits to it, one per round.
        twin_visits: Visits to the twin; where another pair was measured just before, its last one counts for both and
            is kept there.
        ratios: One per round: index of the input, the twin's time over the own one (the twin timed just before and
            just after), and the same from CPU times or None.
    """

    def __init__(self, label: str, runs: Sequence[Callable[[], Any]], twin_runs: Sequence[Callable[[], Any]]) -> None:
        self.label, self.runs, self.twin_runs = label, list(runs), list(twin_runs)
        self.visits = []  # type: List[Visit]
        self.twin_visits = []  # type: List[Visit]
        self.ratios = []  # type: List[Tuple[int, float, Optional[float]]]

    def to_json(self) -> Any:
        """What was measured, as plain JSON types."""
        return {
            "visits": [visit.to_json() for visit in self.visits],
            "twin_visits": [visit.to_json() for visit in self.twin_visits],
            "ratios": [list(ratio) for ratio in self.ratios],
        }


def _plan(ms: float, settled: bool) -> Tuple[bool, int]:
    """Whether an untimed run comes first within a visit, and how many timed ones follow."""
    return settled or ms < SHORT_MS, min(MAX_VISIT_RUNS, max(1, int(round(VISIT_MS / ms))))


def time_rounds(
    pairs: Sequence[Paired],
    clock: Any,
    repeats: Optional[int],
    min_seconds: float,
    warmup: int,
    progress: Progress,
    settled: bool = False,
) -> int:
    """Fill the visits and ratios of every pair.

    Args:
        pairs: What to time, in turn; the twin before and after each.
        clock: A :class:`Clock` or :class:`DeviceClock`.
        repeats: Rounds; None takes as many as fill ``min_seconds``, between 12 and 200, every input as often as any
            other.
        min_seconds: Seconds that the rounds fill where ``repeats`` is None.
        warmup: Untimed runs of every input before the rounds.
        progress: Called with what is being done and the fraction done.
        settled: Whether an untimed run comes first in every visit, not only in short ones: where many networks take
            turns, each would otherwise find its weights in memory, while the twin, which runs every other time, finds
            its own in the caches.

    Returns:
        The number of rounds.
    """
    plans = []
    seconds = 0.0
    for pair in pairs:
        progress("warming up: %s" % pair.label, 0.0)
        both = []
        for runs in (pair.twin_runs, pair.runs):
            ms = statistics.median([clock.visit(0, run, warmup).ms[-1] for run in runs])
            both.append(_plan(ms, settled))
            seconds += ms * (both[-1][1] + both[-1][0]) / 1000
        plans.append(both)
    if repeats is None:
        rounds = min(MAX_ROUNDS, max(MIN_ROUNDS, int(math.ceil(min_seconds / max(seconds, 1e-9)))))
        # Every input as often as any other, and at least twice: the spread between runs of one input is needed.
        inputs = max(len(pair.runs) for pair in pairs)
        rounds = max(2, int(math.ceil(rounds / inputs))) * inputs
    else:
        rounds = repeats
    for number in range(rounds):
        before = None  # type: Optional[Visit]
        for pair, (twin_plan, plan) in zip(pairs, plans):
            progress("round %d of %d" % (number + 1, rounds), 0.9 * number / rounds)
            index = number % len(pair.runs)
            if before is None:
                before = _visit(clock, index, pair.twin_runs[index], twin_plan)
                pair.twin_visits.append(before)
            visit = _visit(clock, index, pair.runs[index], plan)
            after = _visit(clock, index, pair.twin_runs[index], twin_plan)
            pair.visits.append(visit)
            pair.twin_visits.append(after)
            ratio = statistics.median(before.ms + after.ms) / statistics.median(visit.ms)
            cpu_ratio = None
            if visit.cpu_ms is not None:
                twins = (before.cpu_ms or []) + (after.cpu_ms or [])
                cpu_ratio = statistics.median(twins) / statistics.median(visit.cpu_ms)
            pair.ratios.append((index, ratio, cpu_ratio))
            before = after
    return rounds


def time_exits(
    labels: Sequence[str],
    leaving: Sequence[Sequence[Callable[[], Any]]],
    whole: Sequence[Callable[[], Any]],
    every: Sequence[Callable[[], Any]],
    branched: Optional[Sequence[Callable[[], Any]]],
    clock: Any,
    repeats: Optional[int],
    min_seconds: float,
    warmup: int,
    progress: Progress,
) -> Tuple[int, List[Paired], Paired, Optional[Paired]]:
    """Time every exit of a network next to the network without exits, and what staging itself costs.

    Args:
        labels: Names of the exits, for the progress bar.
        leaving: Per exit, runs of images that leave there.
        whole: Runs of the network without exits, on the same images.
        every: Runs of one graph that computes all exits and decides nothing.
        branched: Runs of the graph with branches, or None where there is none.
        clock: As for :func:`time_rounds`, like all that follow.
        repeats: Rounds.
        min_seconds: Seconds of all rounds.
        warmup: Untimed runs.
        progress: Called with what is being done.

    Returns:
        The number of rounds, a pair for every exit, the pair of all stages next to ``every``, and that of branches.
    """
    exits = [Paired(label, runs, whole) for label, runs in zip(labels, leaving)]
    branches = None if branched is None else Paired("branches", branched, whole)
    compared = exits + ([] if branches is None else [branches])
    rounds = time_rounds(compared, clock, repeats, min_seconds * 0.75, warmup, progress)
    # Apart, because its twin is another graph.
    staging = Paired("every stage", leaving[-1], every)
    time_rounds([staging], clock, repeats, min_seconds * 0.25, warmup, progress)
    return rounds, exits, staging, branches


def _visit(clock: Any, index: int, run: Callable[[], Any], plan: Tuple[bool, int]) -> Visit:
    if plan[0]:
        run()
    return clock.visit(index, run, plan[1])  # type: ignore[no-any-return]
