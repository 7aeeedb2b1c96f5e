"""What is drawn of a session."""

from __future__ import annotations

import io
import math

from rich.console import Console

from dyndeploy.cli._watch_view import sparkline, status_line, status_view
from dyndeploy.watching import Calibration, Follower, read_line
from tests.watching.helpers import line


def test_bars_go_from_zero_to_the_largest() -> None:
    assert sparkline([0, 4, 8, None, math.inf]) == "▁▅█ █"
    assert sparkline([0.0, 0.0]) == "▁▁" and sparkline([None]) == " " and sparkline([]) == ""


def drawn(follower: Follower, calibration: Calibration | None, rows: int = 20) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(status_view(list(follower.latest), calibration, 1000, rows))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return " ".join(text.split())


def test_a_view_shows_shares_beside_those_of_the_calibration_and_the_verdict() -> None:
    calibration = Calibration("it", {"1": 0.9, "2": 0.1}, 1000, {"mask/a": 0.25, "mask/b": 0.75}, 2, {})
    follower = Follower(lambda reading: calibration, 1000, history=True)
    for images in range(100, 1000, 100):
        follower.add(read_line(line(images)))
    assert "drift: no verdict before 1000 images; 900 counted." in drawn(follower, calibration)
    rails, heat = {"VDD_IN": 4936.0, "VDD_SOC": 900.0}, {"CPU-therm": 51.6}
    follower.add(read_line(line(1000, rails_mw=rails, temperatures_c=heat, failed=2)))
    text = drawn(follower, calibration)
    assert "net (fp32) (b)" in text and "1000, 2 failed" in text and "100.0 ██" in text
    assert "4.94 W (VDD_IN)" in text and "52 °C (CPU-therm)" in text
    assert "│ 1 │ 0.600 │ 0.600 │ 0.900 │" in text and "│ mask/b │ 0.750 │ 0.750 │ 0.750 │" in text
    assert "DRIFT of exit 1: 60.0% [" in text and "90.0% expected, and 1 more" in text
    assert "not compared: rates: it has those of 2 images, too few" in text
    assert "and 1 more" in drawn(follower, None, rows=1)


def test_names_of_others_cannot_steer_a_terminal() -> None:
    follower = Follower(None, history=True)
    status = follower.add(read_line(line(100, network="[red]net\x1b[2J", bundle="\x1b]0;x\x07")))
    for text in (drawn(follower, None), status_line(status)):
        assert "\x1b" not in text and "[red]net\\x1b[2J" in text
