"""Lines in place of bars where stderr is no terminal."""

from __future__ import annotations

import pytest

from dyndeploy.cli import _progress
from dyndeploy.training.logs import EpochRecord


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def record(epoch: int) -> EpochRecord:
    return EpochRecord(epoch, {"loss": 1.5}, {"accuracy": 0.5, "flops_ratio": 0.61}, {}, 1.0)


def test_every_epoch_is_a_line_with_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    lines = _progress.TrainingLines(4, clock)
    for epoch in (3, 4):  # Resumed after two epochs.
        for iteration in range(1, 11):
            clock.now += 30
            lines.iteration(epoch, iteration, 10, 2.0)
        lines.epoch(record(epoch), 4)
    told = capsys.readouterr().err.splitlines()
    assert "  epoch 3/4: loss 1.500, held-out accuracy 50.0%, FLOPs 0.61 (75%, 5 min left)" in told
    assert told[-1] == "  epoch 4/4: loss 1.500, held-out accuracy 50.0%, FLOPs 0.61 (100%)"
    assert sum("epoch 3/4, loss 2.000" in line for line in told) == 9


def test_lines_are_few(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    lines = _progress.TrainingLines(1, clock)
    for iteration in range(1, 86_400):
        clock.now += 1
        lines.iteration(1, iteration, 86_400, 2.0)
    told = capsys.readouterr().err.splitlines()
    assert 300 < len(told) < 450  # A day: every ten seconds at first, every half hour at the end.
    assert told[0] == "  epoch 1/1, loss 2.000 (0%, 24.0 h left)"


def test_a_bar_becomes_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(_progress.time, "monotonic", clock)
    with _progress.progress_bar() as show:
        for step in range(1, 51):
            clock.now += 1
            show(f"step {step}", step / 50)
    told = capsys.readouterr().err.splitlines()
    assert told == [f"  step {n} ({2 * n}%{f', {50 - n} s left' if n < 50 else ''})" for n in (10, 20, 30, 40, 50)]


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    _progress.progress_line("capturing the graph")
    assert capsys.readouterr().err == "  capturing the graph ...\n"
    monkeypatch.setattr(_progress.verbosity, "quiet", True)
    _progress.progress_line("capturing the graph")
    with _progress.training_progress(3) as progress:
        assert progress is None
    with _progress.progress_bar() as show:
        show("measuring", 0.5)
    assert capsys.readouterr().err == ""
