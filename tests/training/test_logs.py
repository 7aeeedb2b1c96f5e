from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from dyndeploy.errors import UsageError
from dyndeploy.training import TENSORBOARD, EpochRecord, train
from dyndeploy.training.logs import TensorBoardLog, csv_log
from tests.training.helpers import tiny

with_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="needs tensorboard (extra 'tensorboard')"
)


def record(epoch: int) -> EpochRecord:
    return EpochRecord(epoch, {"loss": 1.5 / epoch, "lr": 0.1}, {"layer1.0.rate": 0.25 * epoch}, {}, 2.0)


def test_one_row_per_epoch() -> None:
    assert csv_log([record(1), record(2)]).splitlines() == [
        "epoch,training.loss,training.lr,held_out.layer1.0.rate,seconds",
        "1,1.5,0.1,0.25,2.0",
        "2,0.75,0.1,0.5,2.0",
    ]


def test_without_tensorboard_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = importlib.import_module

    def missing(name: str, package: str | None = None) -> Any:
        if name == "torch.utils.tensorboard":
            raise ImportError("No module named 'tensorboard'")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UsageError, match=r"need the tensorboard package .*pip install 'dyndeploy\[tensorboard\]'"):
        TensorBoardLog(tmp_path, 0)
    with pytest.raises(UsageError, match="tensorboard"):
        train(tiny(epochs=1), tmp_path / "run", tensorboard=True)
    # Said before any work is done.
    assert not (tmp_path / "run").exists()


@with_tensorboard
def test_events_hold_the_log(tmp_path: Path) -> None:
    accumulator = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    train(tiny(epochs=1), tmp_path, tensorboard=True)
    result = train(tiny(epochs=1), tmp_path / "other", tensorboard=True)
    events = accumulator.EventAccumulator(str(tmp_path / "other" / TENSORBOARD))
    events.Reload()
    (loss,) = events.Scalars("training/loss")
    assert (loss.step, loss.value) == (1, pytest.approx(result.history[0].training["loss"], rel=1e-6))
    (rate,) = events.Scalars("held_out/layer3.0.rate")
    assert rate.value == pytest.approx(result.evaluation.blocks[2].rate, rel=1e-6)
