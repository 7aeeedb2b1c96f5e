"""Measurements that run at the same time on this machine."""

from __future__ import annotations

import socket

import pytest

from dyndeploy.measure import turn
from dyndeploy.measure.turn import machine_turn
from dyndeploy.remote import agent
from dyndeploy.runtimes import machine


@pytest.fixture(autouse=True)
def _own_turn(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(turn, "TURN", f"test {tmp_path}")


def test_jobs_on_boards_and_measurements_here_know_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert turn.TURN == agent.TURN


def test_alone_there_is_nothing_to_say() -> None:
    for _ in range(2):
        with machine_turn() as notes:
            pass
        assert notes == []


def test_both_of_two_say_so() -> None:
    with machine_turn() as first:
        with machine_turn() as second:
            assert len(second) == 1 and "at the same time" in second[0]
        assert first == []
    assert first == second


def test_jobs_that_wait_disturb_nobody() -> None:
    with machine_turn() as notes, socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(b"\0" + turn.TURN.encode())
    assert notes == []


def test_a_clock_in_1970_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_OLDEST_YEAR", 9999)
    with machine_turn() as notes:
        pass
    assert len(notes) == 1 and "This machine's clock says" in notes[0]
