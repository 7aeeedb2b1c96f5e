"""Two measurements side by side."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dyndeploy.cli import run
from dyndeploy.errors import InputError, UsageError
from dyndeploy.measure import Profile
from dyndeploy.measure.exits import ExitProfile, profile_exits
from dyndeploy.measure.samples import Samples, apart
from dyndeploy.reporting import compare_files, compare_measurements, render_pair_report
from tests.digits_bundles import digits_bundle
from tests.reporting.test_exits import result_of
from tests.reporting.test_html import saved_tables

LIBRARY = {"path": "/x/libdyndeploy_ort_cpu.so", "sha256": "ab" * 32, "instruction_set": "avx512", "operators": []}


def scaled(profile: Profile, factor: float) -> Profile:
    """The same with calm times of the dynamic network, by a factor."""

    def samples(ms: float) -> Samples:
        times = tuple(ms * (1 + 0.001 * (index % 3)) for index in range(12))
        return Samples(times, tuple(index % 2 for index in range(12)))

    def result(entry: Any) -> Any:
        return replace(entry, samples=samples(factor), ratios=(2 / factor,) * 4, ratio_inputs=(0, 1, 0, 1))

    return replace(profile, static=samples(2.0), rates=tuple(map(result, profile.rates)), data=result(profile.data))


def test_differences_beyond_noise_are_marked(profile: Profile) -> None:
    pair = compare_measurements("measured", scaled(profile, 1.0), scaled(profile, 0.8))
    twin, *rest = pair.rows
    assert (twin.one.name, twin.time_ratio, twin.beyond_noise) == ("static twin", 1.0, False)
    names = ["rate 0.1 (forced)", "rate 0.5 (forced)", "rate 1 (forced)", "the data's own masks"]
    assert [row.one.name for row in rest] == names
    for row, result in zip(rest, (*profile.rates, profile.data), strict=True):
        assert row.time_ratio == pytest.approx(0.8)
        assert (row.beyond_noise, row.speedup_beyond_noise) == (True, True)
        assert (row.one.speedup, row.other.speedup) == pytest.approx((2.0, 2.5))
        assert row.other.realisation == pytest.approx(2.5 / result.ideal_speedup)
    assert "4 of 5 times differ" in pair.summary and "-20.0%" in pair.summary
    assert pair.differences == () and pair.notes == tuple(profile.warnings()[-len(pair.notes) :])


@pytest.mark.parametrize(("factor", "marked"), [(1.04, False), (1.06, True), (0.97, False), (0.94, True)])
def test_what_two_processes_differ_by_anyway_is_not_marked(profile: Profile, factor: float, marked: bool) -> None:
    pair = compare_measurements("measured", scaled(profile, 1.0), scaled(profile, factor))
    assert {row.beyond_noise for row in pair.rows[1:]} == {marked}


def test_spreads_that_touch_are_noise() -> None:
    assert apart((1.0, 2.0), (2.1, 3.0)) and apart((2.1, 3.0), (1.0, 2.0))
    assert not apart((1.0, 2.0), (2.0, 3.0)) and not apart((1.0, 4.0), (2.0, 3.0))
    assert not apart(None, (1.0, 2.0)) and not apart((1.0, 2.0), None)


def test_what_differs_is_named(profile: Profile) -> None:
    other = replace(profile, native=LIBRARY, threads=4, machine={**profile.machine, "cpu": "another"})
    pair = compare_measurements("measured", profile, other)
    differences = {fact.what: (fact.one, fact.other) for fact in pair.differences}
    assert differences["threads"] == ("1", "4")
    assert differences["operators"] == ("function bodies", "libdyndeploy_ort_cpu.so (avx512)")
    assert differences["operator library"] == ("none", "sha256 abababababab")
    assert differences["machine"] == (profile.machine["cpu"], "another")
    assert set(differences) == {"threads", "operators", "operator library", "machine"}
    assert not any("cannot tell" in note for note in pair.notes)
    bundle = {**profile.bundle, "precision": "bf16", "granularity": [4, 4]}
    both = compare_measurements("measured", profile, replace(other, bundle=bundle))
    assert {"precision", "granularity"} <= {fact.what for fact in both.differences}
    assert any("cannot tell" in note for note in both.notes)


def test_rates_that_only_one_has(profile: Profile) -> None:
    pair = compare_measurements("measured", profile, replace(profile, rates=profile.rates[1:]), ("a", "b"))
    assert pair.only_one == ("rate 0.1 (forced)",) and pair.only_other == ()
    assert len(pair.rows) == 4 and any("Only a has rate 0.1 (forced)" in note for note in pair.notes)


@pytest.fixture(scope="module")
def exits(tmp_path_factory: pytest.TempPathFactory) -> ExitProfile:
    return profile_exits(digits_bundle(tmp_path_factory.mktemp("exits") / "b"), repeats=3, mixes=[(60, 20, 10, 10)])


def test_exits_and_mixes(exits: ExitProfile) -> None:
    pair = compare_measurements("measured_exits", exits, exits)
    names = ["without exits", "exit 1", "exit 2", "exit 3", "exit 4", "mix 60/20/10/10"]
    assert [row.one.name for row in pair.rows] == names
    assert all(row.time_ratio == 1.0 and not row.beyond_noise for row in pair.rows)
    for row, entry in zip(pair.rows[1:5], exits.exits, strict=True):
        assert row.one.ms == exits.paired_ms(entry) and row.one.speedup == 1 / entry.relative
    assert pair.rows[5].one.realisation == pytest.approx(exits.mixes[0].realisation)
    assert "Nothing differs" in pair.summary and "No time differs" in pair.summary


def test_the_page_and_its_tables(profile: Profile) -> None:
    pair = compare_measurements("measured", scaled(profile, 1.0), scaled(profile, 0.8), ("<a>.json", "b.json"))
    page = render_pair_report(pair)
    assert "&lt;a&gt;.json" in page and "<a>" not in page
    assert page.count('<tr class="marked">') == 8  # times and speed-ups of four things
    value = json.loads(json.dumps(pair.to_json(), allow_nan=False))
    for row, entry in zip(saved_tables(page)["times.csv"], value["rows"], strict=True):
        assert float(row["one_ms"]) == entry["one"]["ms"] and float(row["other_p25_ms"]) == entry["other"]["spread"][0]
        assert float(row["time_ratio"]) == entry["time_ratio"]
    for row, entry in zip(saved_tables(page)["speedups.csv"], value["rows"][1:], strict=True):
        assert float(row["other_speedup"]) == entry["other"]["speedup"]
        assert float(row["one_realisation"]) == entry["one"]["realisation"]


def test_two_files(profile: Profile, exits: ExitProfile, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {}
    for name, value in {"one": profile, "other": replace(profile, threads=2), "exits": exits}.items():
        files[name] = str(tmp_path / f"{name}.json")
        Path(files[name]).write_text(json.dumps(value.to_json()))
    assert run(["compare", files["one"], files["other"]]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "what differs" in out and "threads" in out and "Report" not in out
    page = tmp_path / "pair.html"
    assert run(["compare", files["one"], files["other"], "-o", str(page), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["kind"], value["of"], value["one"], value["report"]) == ("pair", "measured", "one.json", str(page))
    assert "Threads (differs)" in page.read_text()
    assert run(["compare", files["exits"], files["exits"]]) == 0
    assert "exits.json (first)" in capsys.readouterr().out
    assert run(["compare", files["one"], files["exits"]]) == 2
    assert "share no figure" in capsys.readouterr().err
    assert run(["compare", files["one"], files["other"], "--predict-device", "nano"]) == 2
    assert "leave out the device" in capsys.readouterr().err
    (tmp_path / "cut.json").write_text(Path(files["one"]).read_text()[:-200])
    assert run(["compare", files["one"], str(tmp_path / "cut.json")]) == 1
    assert "cut.json" in capsys.readouterr().err


def test_files_that_hold_no_times(profile: Profile, tmp_path: Path) -> None:
    one, thresholds, foreign = (tmp_path / f"{name}.json" for name in ("one", "thresholds", "foreign"))
    one.write_text(json.dumps(profile.to_json()))
    thresholds.write_text(json.dumps(result_of(None, "sweep").to_json()))
    foreign.write_text('{"a": 1}')
    with pytest.raises(UsageError, match="holds no times"):
        compare_files(one, thresholds)
    with pytest.raises(InputError, match="no profile"):
        compare_files(foreign, one)
