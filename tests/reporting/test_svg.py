from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dyndeploy.reporting.svg import WIDTH, Bars, Line, bar_chart, line_chart, ticks

LABELS = {"identifier": "c", "title": "T & <t>", "description": "D", "x_label": "x"}


@given(st.floats(1e-6, 1e6))
def test_ticks_are_round_and_reach_the_top(high: float) -> None:
    marks = ticks(high)
    assert marks[0] == 0
    assert 2 <= len(marks) <= 7
    assert marks[-1] >= high * (1 - 1e-6)
    assert marks[-2] < high


@pytest.mark.parametrize("high", [0.0, -1.0, float("nan"), float("inf")])
def test_ticks_of_nothing(high: float) -> None:
    assert ticks(high) == [0.0, 1.0]


def test_line_chart_places_points_by_value() -> None:
    lines = [
        Line("a", "measured", [(0.0, 0.0), (1.0, 10.0)], [(1.0, 8.0, 12.0)]),
        Line("b", "data", [(0.5, 5.0)], connect=False),
    ]
    root = ElementTree.fromstring(line_chart(lines, y_label="y", **LABELS))
    assert root.find("title").text == "T & <t>"  # type: ignore[union-attr]
    assert root.get("role") == "img"
    circles = sorted((float(c.get("cx", 0)), float(c.get("cy", 0))) for c in root.iter("circle"))
    (x0, y0), (x1, y1) = circles
    assert x1 - x0 == pytest.approx(WIDTH - 60)
    # Ticks end at 12.5: 10 stands at 80 % of the height of 230.
    assert y0 - y1 == pytest.approx(230 * 10 / 12.5, abs=0.2)
    diamond = next(path.get("d", "") for path in root.iter("path") if path.get("class") == "fill data")
    x, y = map(float, re.findall(r"[\d.]+", diamond)[:2])
    assert x == pytest.approx((x0 + x1) / 2)
    assert y + 5 == pytest.approx((y0 + y1) / 2, abs=0.2)


def test_axes_can_start_elsewhere() -> None:
    lines = [Line("a", "measured", [(600.0, 94.0), (800.0, 98.0)])]
    chart = line_chart(lines, y_label="y", x_low=600.0, x_high=800.0, y_low=94.0, **LABELS)
    root = ElementTree.fromstring(chart)
    (x0, y0), (x1, y1) = sorted((float(c.get("cx", 0)), float(c.get("cy", 0))) for c in root.iter("circle"))
    assert x1 - x0 == pytest.approx(WIDTH - 60)
    assert y0 - y1 == pytest.approx(230, abs=0.2)
    labels = {text.text for text in root.iter("text")}
    assert {"600", "650", "700", "750", "800", "94", "98"} <= labels


def test_the_last_tick_stays_inside() -> None:
    chart = line_chart([Line("a", "measured", [(600.0, 1.0), (123456.0, 2.0)])], y_label="y", x_high=123456.0, **LABELS)
    (last,) = (text for text in ElementTree.fromstring(chart).iter("text") if text.text == "125000")
    assert (last.get("text-anchor"), float(last.get("x", 0))) == ("end", WIDTH - 1)


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_ticks_enclose_both_ends(low: float, span: float) -> None:
    marks = ticks(low + span, low)
    assert 2 <= len(marks) <= 8
    assert marks[0] <= low + 1e-6 * span + 1e-9
    assert marks[-1] >= low + span - 1e-6 * span - 1e-9


def test_bars_are_as_long_as_their_values() -> None:
    chart = bar_chart(
        ["one", "two", "<three>"],
        [Bars("s", "static", [1.0, 2.0, None]), Bars("p", "predicted p0", [1.5, 0.5, None], mark=True)],
        reference=1.0,
        **LABELS,
    )
    root = ElementTree.fromstring(chart)
    widths = [float(rect.get("width", 0)) for rect in root.iter("rect") if rect.get("class") == "fill static"]
    assert len(widths) == 2
    assert widths[1] / widths[0] == pytest.approx(2, rel=0.01)
    assert "<three>" in [text.text for text in root.iter("text")]


def test_everything_lies_inside_the_drawing() -> None:
    names = [f"layer3.{index}" for index in range(23)]
    chart = bar_chart(
        names,
        [Bars("static twin, measured", "static", [3.0] * 23), Bars("dynamic, measured", "measured", [1.0] * 23)],
        **LABELS,
    )
    root = ElementTree.fromstring(chart)
    height = float(root.get("viewBox", "").split()[3])
    for element in root.iter():
        assert float(element.get("y", 0)) <= height
        assert float(element.get("x", 0)) + float(element.get("width", 0)) <= WIDTH
