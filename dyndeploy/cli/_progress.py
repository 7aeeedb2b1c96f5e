"""A progress bar for training, on stderr and only on a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from dyndeploy.training import EpochRecord


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
        self._bar.update(
            self._task,
            completed=float(record.epoch),
            results=f"held-out accuracy {record.accuracy:.1%}, FLOPs {record.flops_ratio:.2f}",
        )


@contextlib.contextmanager
def training_progress(epochs: int) -> Iterator[TrainingBar | None]:
    """Yield a bar to hand to :func:`dyndeploy.training.train`, or None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[results]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield TrainingBar(bar, epochs)
