"""What a run tells while it goes on: one record per epoch, as CSV and for TensorBoard."""

from __future__ import annotations

import csv
import importlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dyndeploy.errors import UsageError


@dataclass(frozen=True)
class EpochRecord:
    """One epoch.

    Attributes:
        epoch: Counted from 1.
        training: Of the training images, means over the epoch's iterations: "loss", its terms without their
            weights, "accuracy", and what was set in the last iteration, such as "lr" and "temperature".
        held_out: See :meth:`dyndeploy.training.Evaluation.measures`.
        ema: The same for the moving average; empty without one.
        seconds: Time of the epoch, evaluation included.
    """

    epoch: int
    training: dict[str, float]
    held_out: dict[str, float]
    ema: dict[str, float]
    seconds: float

    def columns(self) -> dict[str, float]:
        """Return all values by their names in logs."""
        columns: dict[str, float] = {"epoch": self.epoch}
        for part in ("training", "held_out", "ema"):
            columns |= {f"{part}.{name}": value for name, value in getattr(self, part).items()}
        return columns | {"seconds": self.seconds}


def csv_log(history: Sequence[EpochRecord]) -> str:
    """Return the records as CSV, one row per epoch."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(history[0].columns()), lineterminator="\n")
    writer.writeheader()
    writer.writerows(record.columns() for record in history)
    return stream.getvalue()


class TensorBoardLog:
    """Writes records for TensorBoard.

    Args:
        folder: Where the event files go.
        completed: Epochs that earlier event files hold; what they have beyond is struck out.

    Raises:
        UsageError: The tensorboard package is missing.
    """

    def __init__(self, folder: Path, completed: int) -> None:
        try:
            module = importlib.import_module("torch.utils.tensorboard")
        except ImportError as error:
            raise UsageError(
                f"TensorBoard logs need the tensorboard package ({error}): pip install 'dyndeploy[tensorboard]', or "
                "train without --tensorboard; log.csv holds the same numbers."
            ) from error
        self._writer: Any = module.SummaryWriter(str(folder), purge_step=completed + 1 if completed else None)

    def write(self, record: EpochRecord) -> None:
        """Add an epoch's record."""
        for name, value in record.columns().items():
            if name != "epoch":
                self._writer.add_scalar(name.replace(".", "/", 1), value, record.epoch)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
