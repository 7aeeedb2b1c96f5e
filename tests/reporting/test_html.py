"""The report, read as text; tests/reporting/test_browser.py opens it in a real browser."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from dyndeploy.errors import InputError, OutputError, UsageError
from dyndeploy.measure import Profile
from dyndeploy.prediction import known_devices
from dyndeploy.reporting import (
    DRAWN,
    GalleryItem,
    ReportExtras,
    mask_overlay,
    predict_profile,
    render_report,
    token_grid,
    write_report,
)


def gallery() -> list[GalleryItem]:
    generator = np.random.default_rng(0)
    items = []
    for index in range(3):
        image = generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        mask = (generator.random((8, 8)) < 0.5).astype(np.float32)
        items.append(GalleryItem(image, mask_overlay(image, mask), f"digit {index}, layer1.0"))
    return items


@pytest.fixture(scope="module")
def page(profile: Profile) -> str:
    extras = ReportExtras(
        accuracy=0.9731,
        accuracy_source="360 held-out digits",
        gallery=gallery(),
        notes=["A note with <b>markup</b> that is text."],
    )
    return render_report(profile, [predict_profile(profile, name) for name in known_devices()], extras)


class _Checker(HTMLParser):
    VOID = frozenset({"meta", "link", "img", "br", "circle", "path", "rect", "line"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"surplus </{tag}>"
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_accessible(page: str) -> None:
    checker = _Checker()
    checker.feed(page)
    assert checker.open == []
    tags = checker.attributes
    assert ("html", {"lang": "en"}) in tags
    assert any(tag == "meta" and attributes.get("name") == "viewport" for tag, attributes in tags)
    assert all(attributes.get("alt") for tag, attributes in tags if tag == "img")
    assert not [tag for tag, _ in tags if tag in ("iframe", "object", "embed")]
    assert [attributes for tag, attributes in tags if tag == "script"] == [{}]
    identifiers = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    charts = [attributes for tag, attributes in tags if tag == "svg"]
    assert len(charts) == 4
    for chart in charts:
        assert chart["role"] == "img"
        assert set((chart["aria-labelledby"] or "").split()) <= set(identifiers)


def test_the_page_needs_nothing_else(page: str) -> None:
    assert re.findall(r"https?://", page) == []
    for reference in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert reference.startswith("data:")
    assert "url(" not in page
    assert "@import" not in page


def test_the_numbers_are_those_of_the_profile(page: str, profile: Profile) -> None:
    for result in (*profile.rates, profile.data):
        assert f"{result.realisation:.1%}" in page
        assert f"{result.ideal_speedup:.2f}x" in page
        assert f"{result.samples.median:.3f}" in page
    assert f"{profile.static.median:.3f}" in page
    assert "97.3%" in page
    assert "360 held-out digits" in page
    assert profile.machine["cpu"] in page
    assert page.count("data:image/png;base64,") == 6


def test_every_figure_says_what_it_is(page: str) -> None:
    for caption in re.findall(r"<figcaption>(.*?)</figcaption>", page, re.DOTALL):
        assert re.search(r"measured|Measured|Predicted|digit", caption), caption
    for title in re.findall(r"<title id=[^>]*>(.*?)</title>", page):
        assert re.search(r"measured", title), title
    assert "forced" in page
    assert "predicted, for information" in page
    assert "not comparable" in page


def test_other_devices_are_no_errors(page: str) -> None:
    assert "MAPE" not in page and '<th scope="col">error</th>' not in page
    assert "calibrate-device --threads 1" in page
    for name in known_devices():
        assert f"<summary>{name}: rates and blocks, predicted</summary>" in page


def test_machine_threads_and_code_stand_at_the_top(page: str, profile: Profile) -> None:
    top = page[page.index('<dl class="top">') : page.index("</dl>")]
    for text in (profile.machine["cpu"], "<dd>1</dd>", "<dd>function bodies</dd>"):
        assert text in top
    assert page.index("What the masks choose") < page.index("Latency against rate")


def test_only_the_page_s_own_script_may_run(page: str) -> None:
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    checksum = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{checksum}'\">" in page


def saved_tables(page: str) -> dict[str, list[dict[str, str]]]:
    """Rows of every table that a page lets its reader save, by file."""
    found = re.findall(r'download="([^"]+)" href="data:text/csv;charset=utf-8,([^"]*)"', page)
    return {name: list(csv.DictReader(io.StringIO(unquote(text)))) for name, text in found}


def test_saved_tables_have_the_numbers_of_the_json(page: str, profile: Profile) -> None:
    value, tables = profile.to_json(), saved_tables(page)
    static, *rates = tables["rates.csv"]
    assert float(static["median_ms"]) == value["static"]["median_ms"]
    for row, entry in zip(rates, (*value["rates"], value["data"]), strict=True):
        for key in ("rate", "median_ms", "ms_per_image", "p99_ms", "ideal_speedup", "realised_speedup", "realisation"):
            assert float(row[key]) == entry[key]
        assert row["masks"] == entry["masks"]
        assert [float(row["realised_p25"]), float(row["realised_p75"])] == entry["realised_spread"]
    for row, entry in zip(tables["blocks.csv"], (*value["data"]["blocks"], *value["data"]["rest"]), strict=True):
        assert row["name"] == entry["name"] and float(row["dynamic_ms"]) == entry["dynamic_ms"]
    sweep = predict_profile(profile, "nano")
    nano = [row for row in tables["predicted-devices.csv"] if row["device"] == "nano"]
    assert [float(row["predicted_ms"]) for row in nano] == [p.latency_ms for p in (*sweep.rates, sweep.data)]


def test_rates_that_were_missed_are_shown(page: str, profile: Profile) -> None:
    assert [result.achieved_rate for result in profile.rates] == [0.125, 0.5, 1.0]
    assert '<th scope="row">0.1, achieved 0.125</th>' in page
    assert '<th scope="row">0.5</th>' in page
    assert "0.1 became 0.125 (mean over all masks)" in page


def test_texts_are_escaped(page: str, profile: Profile) -> None:
    assert "A note with &lt;b&gt;markup&lt;/b&gt;" in page
    hostile = replace(profile, bundle={**profile.bundle, "name": "<script>alert(1)</script>"})
    assert "<script>alert" not in render_report(hostile)


def test_without_predictions_and_extras(profile: Profile) -> None:
    page = render_report(profile)
    assert "Measured against predicted" not in page and "for information" not in page
    assert "Held-out accuracy" not in page
    assert "What the masks choose" not in page
    assert page.count("<svg") == 3
    single = render_report(profile, predict_profile(profile, "nano"))
    assert single.count("<svg") == 4


def test_the_same_device_shows_milliseconds(profile: Profile) -> None:
    sweep = predict_profile(profile, "nano")
    page = render_report(replace(profile, device="nano"), sweep)
    assert "not comparable" not in page and "calibrate-device" not in page
    assert "predicted ms/image" in page and "mean error of latencies" in page
    assert page.count("<svg") == 6


def test_many_blocks_and_no_machine_facts(profile: Profile) -> None:
    bare = replace(profile, machine={}, bundle={}, settings={}, native={})
    assert "Summary" in render_report(bare)


def test_an_unwritable_path_leaves_nothing(profile: Profile, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError):
        write_report(tmp_path / "file" / "report.html", profile)
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_bad_extras_are_refused() -> None:
    with pytest.raises(UsageError, match="accuracy"):
        ReportExtras(accuracy=97.3)
    with pytest.raises(InputError, match="Gallery image"):
        GalleryItem(np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.uint8), "")
    with pytest.raises(InputError, match="Gallery overlay"):
        GalleryItem(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.float32), "")  # type: ignore[arg-type]


def test_overlay_keeps_what_is_computed_and_dims_the_rest() -> None:
    image = np.full((16, 16, 3), 200, np.uint8)
    mask = np.array([[1.0, 0.0], [0.0, 0.0]], np.float32)
    overlay = mask_overlay(image, mask)
    assert overlay.shape == image.shape
    assert (overlay[2:6, 2:6] == 200).all()
    assert (overlay[9:, 9:] < 130).all()
    assert (overlay[7, :8] == (230, 159, 0)).all()


@pytest.mark.parametrize("leading", [0, 1, 5])
def test_tokens_are_drawn_where_their_patches_are(leading: int) -> None:
    tokens = np.concatenate([np.ones(leading), [0, 1, 0, 0, 0, 0, 0, 0, 1]]).astype(np.float32)
    assert token_grid(tokens).tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 1]]
    image = np.full((30, 30, 3), 200, np.uint8)
    overlay = mask_overlay(image, DRAWN["token"](tokens))
    kept = (overlay == 200).all(2)
    assert kept[5, 15] and kept[25, 25] and kept.sum() == 2 * 8 * 8
    assert overlay[0, 10].tolist() == [230, 159, 0]
    assert not kept[:10, :10].any() and not kept[10:20].any()


def test_masks_of_patches_are_drawn_by_their_first_group() -> None:
    mask = np.array([[[1, 0], [0, 1]], [[0, 0], [0, 0]]], np.float32)
    assert DRAWN["spatial"](mask).tolist() == [[1, 0], [0, 1]]
    assert "head" not in DRAWN and "layer" not in DRAWN


@pytest.mark.parametrize("mask", [np.zeros((2, 4), np.float32), np.zeros(0, np.float32)], ids=str)
def test_what_is_no_mask_of_tokens_is_refused(mask: np.ndarray) -> None:
    with pytest.raises(InputError, match="tokens"):
        token_grid(mask)
