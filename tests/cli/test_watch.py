"""The command on files and a server by hand."""

from __future__ import annotations

import json
import socket
import threading
import urllib.request
from pathlib import Path

import pytest

from dyndeploy.cli import run
from dyndeploy.watching.prometheus import read_metrics
from dyndeploy.watching.reading import read_line
from tests.watching.helpers import line


@pytest.fixture
def stats(tmp_path: Path) -> Path:
    path = tmp_path / "stats.jsonl"
    path.write_text("".join(line(images) + "\n" for images in range(0, 1100, 100)))
    return path


def test_once_as_text(stats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["watch", str(stats), "--once", "--baseline", str(stats)]) == 0
    out = capsys.readouterr().out
    assert "1000" in out and "100.0" in out and "7.00 / 8.50 / 9.00 ms" in out
    assert "of the latest 1000 images" in out and "mask/b" in out
    assert "no drift in 1000 images (4 comparisons with" in " ".join(out.split())


def test_json_lines_can_be_watched_again(stats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["watch", str(stats), "--json", "--count", "11"]) == 0
    text = capsys.readouterr().out
    values = [json.loads(each) for each in text.splitlines()]
    assert [value["interval"]["images"] for value in values] == [0, *[100] * 10]
    assert read_line(text.splitlines()[-1]).counters.images == 1000
    again = tmp_path / "again.jsonl"
    again.write_text(text)
    assert run(["watch", str(again), "--once", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["statistics"]["images"] == 1000


def test_drift_is_told_in_lines(stats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shifted = tmp_path / "shifted.jsonl"
    exits = ({"1": images // 5, "2": images - images // 5} for images in range(0, 1100, 100))
    shifted.write_text(
        "".join(line(images, exits=each) + "\n" for images, each in zip(range(0, 1100, 100), exits, strict=True))
    )
    assert run(["watch", str(shifted), "--baseline", str(stats), "--count", "11"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12 and lines[-2].startswith("net: 1000 images, 100.0/s, 7.00 / 8.50 / 9.00 ms")
    assert lines[-1].startswith("DRIFT of exit ") and "20.0%" in lines[-1] and "in 1000 images" in lines[-1]


def test_prometheus_once_and_served(stats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["watch", str(stats), "--prometheus", "-"]) == 0
    (reading,) = read_metrics(capsys.readouterr().out, 0.0)
    assert reading.counters.exits == {"1": 600, "2": 400}
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    # The twelfth line is written by who has read the page.
    pages: list[str] = []

    def scrape() -> None:
        while not pages:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                    page = answer.read().decode()
            except OSError:
                continue
            if "dyndeploy_up 1.0" in page:
                pages.append(page)
        with stats.open("a") as stream:
            stream.write(line(1100) + "\n")

    thread = threading.Thread(target=scrape)
    thread.start()
    assert run(["watch", str(stats), "--prometheus", str(port), "--count", "12", "-q"]) == 0
    thread.join()
    assert read_metrics(pages[0], 0.0)[0].counters.images >= 100


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["missing.jsonl", "--once"], 1, "There is nothing to read at missing.jsonl: missing.jsonl cannot be read"),
        (["stats.jsonl", "--once", "--model", "other"], 1, "There is nothing to read of the model other"),
        (["stats.jsonl", "--bundle", "b", "--baseline", "c"], 2, "give one"),
        (["stats.jsonl", "--bundle", "missing"], 1, "does not exist: it is no bundle"),
        (["stats.jsonl", "--prometheus", "80000"], 2, "a port from 1 to 65535"),
        (["stats.jsonl", "--prometheus", "-", "--json"], 2, "both write to stdout"),
        (["ftp://x"], 2, "no address of metrics"),
    ],
)
def test_bad_input(
    stats: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(stats.parent)
    assert run(["watch", *arguments]) == code
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_several_models_need_a_choice(tmp_path: Path, capsys: pytest.CaptureFixture[str], stats: Path) -> None:
    path = tmp_path / "two.jsonl"
    path.write_text(line(100) + "\n" + line(100, network="other") + "\n")
    assert run(["watch", str(path), "--once", "--baseline", str(stats)]) == 2
    assert "several models (net, other): say with --model" in capsys.readouterr().err
    assert run(["watch", str(path), "--once", "--json", "--model", "other"]) == 0
    assert json.loads(capsys.readouterr().out)["network"] == "other"
