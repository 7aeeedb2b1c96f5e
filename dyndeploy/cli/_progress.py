"""Progress of long commands on stderr: bars on a terminal, now and then a line to a pipe, a log or a batch job."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from dyndeploy.cli._arguments import printable
from dyndeploy.cli._verbosity import verbosity

if TYPE_CHECKING:
    from dyndeploy.training import EpochRecord


_SECONDS = 10.0
"""At least so long lies between two lines on the way of one step."""
_SHARE = 0.02
"""And this share of the time that has passed: a run of days does not fill its log."""


class Interrupt:
    """Python's own answer to Ctrl-C, kept in mind: a library that calls back may swallow the exception."""

    def __init__(self) -> None:
        self._asked = False

    def install(self) -> None:
        """Answer Ctrl-C, and a polite kill or a closed terminal in the same way: half-written output is removed."""
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows knows no SIGHUP.
            # Whoever started this process may have asked it to go on, as nohup does.
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._raise)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raise an interrupt that was swallowed."""
        if self._asked:
            raise KeyboardInterrupt


interrupt = Interrupt()
"""A signal belongs to the process, and so does this."""


def progress_line(message: str) -> None:
    """Show a step."""
    interrupt.check()
    if not verbosity.quiet:
        typer.echo(f"  {printable(message)} ...", err=True)


class _Pace:
    """Decides when the next line is due, and says how much time is left."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = self._last = clock()

    def due(self) -> bool:
        """Whether the last line is long enough ago."""
        now = self._clock()
        return now - self._last >= max(_SECONDS, _SHARE * (now - self._start))

    def line(self, message: str, done: float | None, since: float = 0.0) -> None:
        """Print a line.

        Args:
            message: What is being done.
            done: Fraction done, in [0, 1]; None where nobody knows.
            since: Fraction that was done already when this began.
        """
        self._last = self._clock()
        left = ""
        if done is None:
            typer.echo(f"  {printable(message)}", err=True)
            return
        if done > since and done < 1:
            left = f", {_duration((self._last - self._start) * (1 - done) / (done - since))} left"
        typer.echo(f"  {printable(message)} ({done:.0%}{left})", err=True)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[str, float | None], None]]:
    """Yield a function that shows what is being done and the fraction done, in [0, 1]; None where nobody knows it.

    On a terminal that is one bar; elsewhere a line, at most every ten seconds.
    """
    if verbosity.quiet or not sys.stderr.isatty():
        pace = _Pace(time.monotonic)

        def tell(message: str, fraction: float | None) -> None:
            interrupt.check()
            if not verbosity.quiet and pace.due():
                pace.line(message, fraction)

        yield tell
        return
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        console=Console(stderr=True),
        transient=True,
        # A bar that redraws itself would take processor time from what is measured.
        auto_refresh=False,
    )
    task = bar.add_task("", total=None)

    def show(message: str, fraction: float | None) -> None:
        interrupt.check()
        bar.update(
            task,
            description=printable(message),
            total=None if fraction is None else 1.0,
            completed=fraction or 0.0,
            refresh=True,
        )

    with bar:
        yield show


class TrainingBar:
    """Shows training as one bar over all epochs, with the last results beside it.

    Args:
        bar: Where it is drawn.
        epochs: Epochs of the whole run.
    """

    def __init__(self, bar: Progress, epochs: int) -> None:
        self._bar = bar
        self._epochs = epochs
        self._task: TaskID = bar.add_task("training", total=float(epochs), results="")

    def iteration(self, epoch: int, iteration: int, iterations: int, loss: float) -> None:
        """Advance the bar."""
        self._bar.update(
            self._task,
            completed=epoch - 1 + iteration / iterations,
            description=f"epoch {epoch}/{self._epochs}  loss {loss:.3f}",
        )

    def epoch(self, record: EpochRecord, epochs: int) -> None:
        """Show the results of an epoch."""
        self._bar.update(self._task, completed=float(record.epoch), results=_results(record))


class TrainingLines:
    """Tells training as a line per epoch, and in long epochs now and then one on the way.

    Args:
        epochs: Epochs of the whole run.
        clock: Seconds that only grow.
    """

    def __init__(self, epochs: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._epochs = epochs
        self._pace = _Pace(clock)
        self._since: float | None = None

    def iteration(self, epoch: int, iteration: int, iterations: int, loss: float) -> None:
        """Tell where an epoch is if it has taken long."""
        done = (epoch - 1 + iteration / iterations) / self._epochs
        if self._since is None:
            # A resumed run begins in the middle.
            self._since = (epoch - 1) / self._epochs
        if self._pace.due() and iteration < iterations:
            self._pace.line(f"epoch {epoch}/{self._epochs}, loss {loss:.3f}", done, self._since)

    def epoch(self, record: EpochRecord, epochs: int) -> None:
        """Tell the results of an epoch."""
        loss = record.training["loss"]
        message = f"epoch {record.epoch}/{epochs}: loss {loss:.3f}, {_results(record)}"
        self._pace.line(message, record.epoch / epochs, self._since or 0.0)


def _results(record: EpochRecord) -> str:
    found = record.held_out
    if "boxes.ap50" in found:
        masks = f", of masks {found['masks.ap50']:.3f}" if "masks.ap50" in found else ""
        quality = f"mAP50 {found['boxes.ap50']:.3f}{masks}"
    else:
        quality = f"accuracy {found['accuracy']:.1%}" if "accuracy" in found else f"loss {found['loss']:.3f}"
    return f"held-out {quality}, FLOPs {found['flops_ratio']:.2f}"


@contextlib.contextmanager
def training_progress(epochs: int) -> Iterator[TrainingBar | TrainingLines | None]:
    """Yield what to hand to :func:`dyndeploy.training.train`: a bar, lines where stderr is no terminal, or None."""
    if verbosity.quiet:
        yield None
        return
    if not sys.stderr.isatty():
        yield TrainingLines(epochs)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[results]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield TrainingBar(bar, epochs)
