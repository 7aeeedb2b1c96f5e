"""The page of the papers' points: rates that give the published GMACs, every row in its place."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "papers"
PAGE = Path(__file__).parents[2] / "docs" / "papers_points.md"
HEADER = "network,mode,granularity,top1_percent,gmacs,v100_ms_paper,tx2_ms_paper,nano_ms_paper,source"


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("points")


@pytest.fixture
def script() -> Any:
    spec = importlib.util.spec_from_file_location("papers_run", FOLDER / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_solved_rates_give_back_the_published_macs(points: Any) -> None:
    solved = [(p, points.solved_rate(p)) for p in points.read_points() if p.network == "laud_resnet50"]
    assert len(solved) == 13
    for point, rate in solved:
        assert points.counted_gmacs(point, rate) == pytest.approx(point.gmacs, rel=1e-3)
    layers = [rate for point, rate in solved if point.mode == "layer"]
    assert layers == sorted(layers) and 0.4 < layers[0] < layers[-1] < 0.8


def test_no_rate_where_none_gives_the_macs_or_none_are_published(points: Any) -> None:
    assert points.solved_rate(points.Point("laud_resnet50", "layer", "block", 80.0, 9.0, {}, "")) is None
    assert points.solved_rate(points.Point("laud_resnet50", "layer", "block", 80.0, None, {}, "")) is None
    assert points.solved_rate(points.Point("laud_resnet50", "unheard of", "", 80.0, 2.0, {}, "")) is None


def test_the_twin_is_predicted_in_the_same_runtime(points: Any) -> None:
    point = points.Point("laud_resnet50", "channel", "g2", 75.0, 1.55, {}, "")
    twin = points.predicted_twin_ms(point, "v100")
    assert twin == points._estimator("v100", 128).predict("resnet50").latency_ms
    assert points.predicted_ms(point, "v100", points.solved_rate(point)) < twin


def test_script_measures_what_is_here_and_marks_what_is_not(script: Any, points: Any, tmp_path: Path) -> None:
    small = points.Point("laud_resnet14_small", "layer", "block", 70.0, None, {}, "")
    gmacs = points.counted_gmacs(small, 0.5)
    rows = [
        HEADER,
        f"laud_resnet14_small,layer,block,70,{gmacs},,,2.5,A paper",
        "a_network_to_come,layer,block,71,2.0,0.5,,,A paper",
    ]
    (tmp_path / "rows.csv").write_text("\n".join(rows))
    paths = {name: tmp_path / name for name in ("rows.csv", "result.json", "page.md")}
    files = [f"--{key}={paths[name]}" for key, name in zip(("rows", "result", "page"), paths, strict=True)]
    script.main(["--measure", "--seconds", "0.1", "--native", "off", *files])
    result = json.loads(paths["result.json"].read_text())
    (row,) = result["networks"]["laud_resnet14_small layer block"]["rows"]
    assert result["kind"] == "measured"
    assert row["rate"] == pytest.approx(0.5, abs=1e-3)
    assert row["gmacs"] == pytest.approx(gmacs, rel=0.1)
    page = paths["page.md"].read_text()
    assert f"{row['speedup_cpu_time'] or row['speedup']:.2f}x (ideal {row['ideal_speedup']:.2f}x)" in page
    assert page.count("not here yet |") >= 2
    # The page alone, from the file.
    script.main(files)
    assert paths["page.md"].read_text() == page


def test_the_page_has_every_point(points: Any) -> None:
    text = PAGE.read_text(encoding="utf-8")
    for point in points.read_points():
        section = text if point.is_static else text.split(f"## {point.network}\n", 1)[1].split("\n## ", 1)[0]
        assert f"| {point.top1:.2f} |" in section, point
