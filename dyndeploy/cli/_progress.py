"""Progress of long commands: on stderr, and only on a terminal."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from dyndeploy.cli._arguments import printable

if TYPE_CHECKING:
    from dyndeploy.training import EpochRecord


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
    if sys.stderr.isatty():
        typer.echo(f"  {printable(message)} ...", err=True)


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[str, float], None]]:
    """Yield a function that shows what is being done and the fraction done, in [0, 1], as one bar."""
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
        # A bar that redraws itself would take processor time from what is measured.
        auto_refresh=False,
    )
    task = bar.add_task("", total=1.0)

    def show(message: str, fraction: float) -> None:
        interrupt.check()
        bar.update(task, description=printable(message), completed=fraction, refresh=True)

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
        found = record.held_out
        quality = f"accuracy {found['accuracy']:.1%}" if "accuracy" in found else f"loss {found['loss']:.3f}"
        results = f"held-out {quality}, FLOPs {found['flops_ratio']:.2f}"
        self._bar.update(self._task, completed=float(record.epoch), results=results)


@contextlib.contextmanager
def training_progress(epochs: int) -> Iterator[TrainingBar | None]:
    """Yield a bar to hand to :func:`dyndeploy.training.train`, or None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[results]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield TrainingBar(bar, epochs)
