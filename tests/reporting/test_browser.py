"""Every page in a real browser: nothing is cut off, nothing is asked of a network, and what is saved is right."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dyndeploy.exits import Constraint
from dyndeploy.measure import Profile
from dyndeploy.measure.exits import profile_exits
from dyndeploy.prediction import known_devices
from dyndeploy.reporting import (
    ReportExtras,
    compare_exit_profile,
    compare_measurements,
    predict_exit_profile,
    predict_profile,
    render_exit_profile_report,
    render_exits_report,
    render_pair_report,
    render_report,
)
from tests.digits_bundles import digits_bundle
from tests.reporting.test_exits import result_of
from tests.reporting.test_html import gallery, saved_tables

DESKTOP, PHONE = (1280, 900), (390, 844)
PAGES = ("profile", "measured device", "exits", "calibration", "pair", "pair of exits")


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


@pytest.fixture(scope="module")
def pages(profile: Profile, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pages")
    exits = profile_exits(digits_bundle(folder / "bundle"), repeats=3, mixes=[(60, 20, 10, 10)])
    others = [compare_exit_profile(exits, predict_exit_profile(exits, name)) for name in known_devices()]
    extras = ReportExtras(accuracy=0.97, gallery=gallery(), notes=["A note with <b>markup</b> that is text."])
    elsewhere = replace(
        profile,
        device="nano",
        threads=4,
        native={"path": "/a/long/path/libdyndeploy_ort_cpu.so", "sha256": "0" * 64, "instruction_set": "avx512"},
    )
    return {
        "profile": render_report(profile, [predict_profile(profile, name) for name in known_devices()], extras),
        "measured device": render_report(elsewhere, predict_profile(elsewhere, "nano")),
        "exits": render_exit_profile_report(exits, others),
        "calibration": render_exits_report(result_of(Constraint(cost=800e6))),
        "pair": render_pair_report(compare_measurements("measured", profile, elsewhere, ("mine.json", "yours.json"))),
        "pair of exits": render_pair_report(compare_measurements("measured_exits", exits, exits)),
    }


Opened = Callable[[str, tuple[int, int]], Any]


@pytest.fixture
def open_page(browser: Any, pages: dict[str, str], tmp_path: Path) -> Opened:
    def opened(name: str, size: tuple[int, int]) -> Any:
        path = tmp_path / "report.html"
        path.write_text(pages[name], encoding="utf-8")
        browser.get_log("browser")
        browser.get_log("performance")
        width, height = size
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE},
        )
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        browser.get(path.as_uri())
        return browser

    return opened


@pytest.fixture
def opened(open_page: Opened) -> Any:
    return open_page("profile", PHONE)


@pytest.mark.parametrize("name", PAGES)
def test_no_console_message_and_no_request(name: str, open_page: Opened) -> None:
    opened = open_page(name, DESKTOP)
    assert opened.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    requests = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    # The browser's own start page asks for things of its own.
    urls = [item["request"]["url"] for item in requests if item["documentURL"].startswith("file:")]
    assert {url.split(":")[0] for url in urls} <= {"file", "data"}
    assert sum(url.startswith("file:") for url in urls) == 1


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_wider_than_the_window(name: str, size: tuple[int, int], open_page: Opened) -> None:
    opened = open_page(name, size)
    opened.execute_script("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    assert opened.execute_script("return window.innerWidth") == size[0]
    assert opened.execute_script("return document.documentElement.scrollWidth") <= size[0]
    assert (
        opened.execute_script(
            "return [...document.querySelectorAll('body *')].filter(part => {"
            "const box = part.getBoundingClientRect();"
            "return box.width && (box.left < -1 || box.right > innerWidth + 1);"
            "}).map(part => part.outerHTML.slice(0, 120))"
        )
        == []
    )
    # Boxes that could be scrolled hold everything without it.
    assert (
        opened.execute_script(
            "return [...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth + 1)"
            ".map(box => box.getAttribute('aria-label'))"
        )
        == []
    )
    assert (
        opened.execute_script(
            "return [...document.querySelectorAll('svg.chart')].filter(chart => {"
            "const b = chart.getBoundingClientRect();"
            "return ![...chart.querySelectorAll('text')].every(t => {"
            "const r = t.getBoundingClientRect(); return r.left >= b.left - 1 && r.right <= b.right + 1;});"
            "}).map(chart => chart.getAttribute('aria-labelledby'))"
        )
        == []
    )


def test_a_page_is_short_enough_to_read(open_page: Opened) -> None:
    opened = open_page("profile", DESKTOP)
    assert opened.execute_script("return document.documentElement.scrollHeight") < 6000


@pytest.mark.parametrize("name", ["measured device", "exits", "calibration", "pair"])
def test_charts_are_saved_as_pictures(name: str, open_page: Opened) -> None:
    opened = open_page(name, DESKTOP)
    opened.execute_script("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    charts = opened.find_elements("css selector", "svg.chart")
    buttons = opened.find_elements("css selector", "button.save")
    assert len(charts) == len(buttons) > 0
    saved = opened.execute_async_script(
        "const done = arguments[arguments.length - 1], found = [];"
        "const count = document.querySelectorAll('button.save').length;"
        "HTMLAnchorElement.prototype.click = function () {"
        "  found.push([this.download, this.href]); if (found.length === count) done(found); };"
        "document.querySelectorAll('button.save').forEach(button => button.click());"
    )
    assert len({file for file, _ in saved}) == len(charts)
    for file, uri in saved:
        assert file.endswith(".png")
        picture = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))
        assert picture.width == 3 * 440
        # Paper, letters, and colours of the style sheet, which the picture must carry itself.
        colours = [colour for _, colour in picture.convert("RGB").getcolors(1 << 24) or ()]
        assert len(colours) > 10 and max(max(colour) - min(colour) for colour in colours) > 60
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("name", ["profile", "calibration", "pair"])
def test_a_click_saves_a_table(name: str, open_page: Opened, pages: dict[str, str], tmp_path: Path) -> None:
    opened = open_page(name, DESKTOP)
    folder = tmp_path / "downloads"
    folder.mkdir()
    opened.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
    link = opened.find_element("css selector", "section a.save[download]")
    opened.execute_script("arguments[0].click()", link)
    file = folder / link.get_attribute("download")
    for _ in range(100):
        if file.is_file() and file.stat().st_size:
            break
        opened.execute_async_script("setTimeout(arguments[0], 50)")
    lines = file.read_text(encoding="utf-8").splitlines()
    table = saved_tables(pages[name])[file.name]
    assert lines[0].split(",") == list(table[0]) and len(lines) == 1 + len(table)


def test_on_paper_nothing_stays_folded(open_page: Opened) -> None:
    opened = open_page("profile", DESKTOP)
    assert opened.find_elements("css selector", "details:not([open])")
    opened.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert not opened.find_elements("css selector", "details:not([open])")
    opened.execute_script("dispatchEvent(new Event('afterprint'))")
    assert opened.find_elements("css selector", "details:not([open])")
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert opened.execute_script(
        "return [...document.querySelectorAll('.save')].every(part => getComputedStyle(part).display === 'none')"
    )
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


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
