"""The report, read as text and in a real browser."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dyndeploy.errors import InputError, OutputError, UsageError
from dyndeploy.measure import Profile
from dyndeploy.prediction import known_devices
from dyndeploy.reporting import GalleryItem, ReportExtras, mask_overlay, predict_profile, render_report, write_report

PHONE = (390, 844)


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
    assert not [tag for tag, _ in tags if tag in ("script", "iframe", "object", "embed")]
    identifiers = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    charts = [attributes for tag, attributes in tags if tag == "svg"]
    assert len(charts) == 4 + len(known_devices())
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
        assert re.search(r"measured|Measured|digit|data's own", caption), caption
    for title in re.findall(r"<title id=[^>]*>(.*?)</title>", page):
        assert re.search(r"measured", title), title
    assert "forced" in page
    assert "not comparable" in page
    assert "milliseconds are not compared" in page


def test_rates_that_were_missed_are_shown(page: str, profile: Profile) -> None:
    assert [result.achieved_rate for result in profile.rates] == [0.125, 0.5, 1.0]
    assert '<th scope="row">0.1, achieved 0.125</th>' in page
    assert '<th scope="row">0.5</th>' in page
    assert "0.1 became 0.125 (mean over all masks)" in page


def test_texts_are_escaped(page: str, profile: Profile) -> None:
    assert "A note with &lt;b&gt;markup&lt;/b&gt;" in page
    hostile = replace(profile, bundle={**profile.bundle, "name": "<script>alert(1)</script>"})
    assert "<script" not in render_report(hostile)


def test_without_predictions_and_extras(profile: Profile) -> None:
    page = render_report(profile)
    assert "Measured against predicted" not in page
    assert "Held-out accuracy" not in page
    assert "What the masks choose" not in page
    assert page.count("<svg") == 3
    single = render_report(profile, predict_profile(profile, "nano"))
    assert single.count("<svg") == 5


def test_the_same_device_shows_milliseconds(profile: Profile) -> None:
    sweep = predict_profile(profile, "nano")
    page = render_report(replace(profile, device="nano"), sweep)
    assert "not comparable" not in page
    assert "predicted ms/image" in page


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


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver_binary = shutil.which("chromedriver")
    if binary is None or driver_binary is None:
        pytest.skip("no chromium and chromedriver on this machine (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
        "window-size=1280,900",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_binary))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser: Any, page: str, tmp_path: Path) -> Any:
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    browser.get_log("browser")
    browser.get_log("performance")
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": PHONE[0], "height": PHONE[1], "deviceScaleFactor": 1, "mobile": True},
    )
    browser.get(path.as_uri())
    return browser


def test_no_console_message_and_no_request(opened: Any) -> None:
    assert opened.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    requests = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    # The browser's own start page asks for things of its own.
    urls = [item["request"]["url"] for item in requests if item["documentURL"].startswith("file:")]
    assert {url.split(":")[0] for url in urls} == {"file", "data"}
    assert sum(url.startswith("file:") for url in urls) == 1


def test_a_phone_shows_it_without_sideways_scrolling(opened: Any) -> None:
    for element in opened.find_elements("tag name", "details"):
        opened.execute_script("arguments[0].open = true", element)
    assert opened.execute_script("return window.innerWidth") == PHONE[0]
    assert opened.execute_script("return document.documentElement.scrollWidth") <= PHONE[0]
    # Wide tables scroll inside a box of their own.
    boxes = opened.find_elements("css selector", ".scroll")
    assert any(opened.execute_script("return arguments[0].scrollWidth > arguments[0].clientWidth", b) for b in boxes)
    for chart in opened.find_elements("css selector", "svg.chart"):
        assert chart.size["width"] <= PHONE[0]
        inside = opened.execute_script(
            "const b = arguments[0].getBoundingClientRect();"
            "return [...arguments[0].querySelectorAll('text')].every(t => {"
            "const r = t.getBoundingClientRect(); return r.left >= b.left - 1 && r.right <= b.right + 1;})",
            chart,
        )
        assert inside, chart.get_attribute("aria-labelledby")


def test_light_and_dark_are_drawn(opened: Any) -> None:
    means = {}
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        picture = Image.open(io.BytesIO(opened.get_screenshot_as_png())).convert("L")
        pixels = np.asarray(picture)
        assert picture.size == PHONE
        assert pixels.std() > 5
        means[scheme] = pixels.mean()
    assert means["light"] > 200
    assert means["dark"] < 80


def test_text_has_contrast_in_both_schemes(opened: Any) -> None:
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        colours = opened.execute_script(
            "const s = getComputedStyle(document.documentElement);"
            "return Object.fromEntries(['--paper','--ink','--soft','--measured','--static','--ideal','--data',"
            "'--p0','--p1','--p2','--p3','--p4'].map(n => [n, s.getPropertyValue(n).trim()]))"
        )
        paper = _luminance(colours.pop("--paper"))
        for name, colour in colours.items():
            light, dark = sorted((_luminance(colour), paper), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (scheme, name)


def _luminance(colour: str) -> float:
    """Relative luminance of WCAG 2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
