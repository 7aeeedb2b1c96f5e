"""The reports of networks that exit early."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dyndeploy.cli import run
from dyndeploy.exits import SWEEP, CalibrationResult, Constraint, calibrate
from dyndeploy.measure.exits import ExitProfile, profile_exits
from dyndeploy.measure.load_exits import load_exit_profile
from dyndeploy.reporting import exit_rows, render_exit_profile_report, render_exits_report, summarise_exits
from dyndeploy.runtimes.native import BODIES_NOTE
from tests.digits_bundles import digits_bundle
from tests.exits.helpers import COSTS, scores_of
from tests.reporting.test_html import _Checker, saved_tables


def result_of(constraint: Constraint | None, method: str = "search") -> CalibrationResult:
    calibration = calibrate(scores_of(400, skill=(1.0, 1.9, 1.2, 2.3)), COSTS, constraint, method=method)
    return CalibrationResult(
        calibration,
        "resnet50_0375_perceiver_t128",
        "fp32",
        COSTS.values,
        "invented <logits>",
        {"runtime": "onnxruntime", "version": "1"},
        {"cpu": "a processor", "date": "today"},
    )


@pytest.fixture(scope="module")
def result() -> CalibrationResult:
    return result_of(Constraint(cost=800e6))


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> ExitProfile:
    bundle = digits_bundle(tmp_path_factory.mktemp("exits") / "bundle")
    return profile_exits(bundle, repeats=3, mixes=[(25, 25, 25, 25), (60, 20, 10, 10)])


def check(page: str, charts: int) -> None:
    checker = _Checker()
    checker.feed(page)
    assert checker.open == []
    identifiers = [attributes["id"] for _, attributes in checker.attributes if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    assert sum(tag == "svg" for tag, _ in checker.attributes) == charts
    assert re.findall(r"https?://", page) == []
    assert page.count("<script>") == 1
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(drawing)


def test_calibration_page(result: CalibrationResult) -> None:
    page = render_exits_report(result)
    check(page, charts=3)
    chosen, held_out = result.calibration.chosen, result.calibration.held_out
    assert chosen is not None
    assert held_out is not None
    assert f"{chosen.accuracy:.2%}" in page
    assert f"{held_out.accuracy:.2%}" in page
    assert f"{chosen.thresholds[0]:.6f}" in page
    assert "invented &lt;logits&gt;" in page
    assert "Exit 3 costs more than exit 2" in page
    assert "Official sweep (33 points)" in page
    for point in result.calibration.alone:
        assert f"{point.accuracy:.2%}" in page
    tables = saved_tables(page)
    assert [float(row["threshold"] or "nan") for row in tables["exits.csv"]][:3] == list(chosen.thresholds[:3])
    assert [float(row["cost"]) for row in tables["frontier.csv"]] == [p.cost for p in result.calibration.frontier]
    assert [float(row["accuracy"]) for row in tables["sweep.csv"]] == [p.accuracy for p in result.calibration.sweep]
    for row in exit_rows(result.calibration):
        assert all(cell in page for cell in row)


def test_the_curve_places_the_chosen_point(result: CalibrationResult) -> None:
    page = render_exits_report(result)
    curve = ElementTree.fromstring(
        next(text for text in re.findall(r"<svg.*?</svg>", page, re.DOTALL) if "curve" in text)
    )
    chosen = result.calibration.chosen
    assert chosen is not None

    def spot(style: str) -> list[tuple[float, float]]:
        paths = [path.get("d", "") for path in curve.iter("path") if path.get("class") == f"fill {style}"]
        return [tuple(map(float, re.findall(r"[\d.]+", path)[:2])) for path in paths]  # type: ignore[misc]

    alone = spot("static")
    # One diamond per exit, and one more in the legend.
    assert len(alone) == 5
    (x, _), *_ = spot("data")
    costs = [point.cost for point in result.calibration.alone]
    wanted = alone[0][0] + (chosen.cost - costs[0]) / (costs[3] - costs[0]) * (alone[3][0] - alone[0][0])
    assert x == pytest.approx(wanted, abs=0.2)


def test_the_bare_sweep_has_a_page(tmp_path: Path) -> None:
    page = render_exits_report(result_of(None, SWEEP))
    check(page, charts=2)
    assert "nothing was chosen" in page


def test_profile_page(profile: ExitProfile, tmp_path: Path) -> None:
    page = render_exit_profile_report(profile)
    check(page, charts=2)
    for mix in profile.mixes:
        assert f"{mix.realisation:.1%}" in page
        assert f"{mix.realised_speedup:.2f}x" in page
    for entry in profile.exits:
        assert f"{entry.samples.median:.3f}" in page
        assert f"{entry.relative:.1%}" in page
    assert f"{profile.overhead:+.1%}" in page
    rows = saved_tables(page)["exits.csv"]
    for row, entry in zip(rows, profile.exits, strict=False):
        assert float(row["relative"]) == entry.relative and float(row["ms"]) == profile.paired_ms(entry)
        assert (float(row["relative_p25"]), float(row["relative_p75"])) == entry.relative_spread
    for row, mix in zip(saved_tables(page)["mixes.csv"], profile.mixes, strict=True):
        assert float(row["mean_ms"]) == mix.mean_ms and float(row["realisation"]) == mix.realisation
    check(render_exit_profile_report(replace(profile, mixes=(), machine={}, settings={})), charts=1)


def test_only_what_the_spread_supports_is_claimed(profile: ExitProfile) -> None:
    """The headline, the table and the mixes are made of the same numbers, whatever the noise."""

    def noisy(low: float, relative: float, high: float) -> ExitProfile:
        first = replace(profile.exits[0], relative=relative, relative_spread=(low, high))
        staging = replace(profile.staging, relative=relative, relative_spread=(low, high))
        return replace(profile, exits=(first, *profile.exits[1:]), staging=staging)

    faster = noisy(0.58, 0.6, 0.63)
    ms = f"{0.6 * profile.whole.median:.3f} ms"
    assert f"exit 1 takes {ms}, 40.0% less" in summarise_exits(faster)
    assert "Staging itself costs -40.0% (middle half of the rounds -42.0% to -37.0%)" in summarise_exits(faster)
    row = saved_tables(render_exit_profile_report(faster))["exits.csv"][0]
    assert f"{float(row['ms']):.3f} ms" == ms
    unclear = summarise_exits(noisy(0.9, 0.97, 1.02))
    assert "no different from that beyond noise" in unclear and "less" not in unclear.split(";")[0]
    assert "What staging itself costs is lost in the noise" in unclear
    unknown = replace(profile.exits[0], relative_spread=None)
    old = replace(profile, exits=(unknown, *profile.exits[1:]))
    assert f"exit 1 takes {profile.paired_ms(unknown):.3f} ms;" in summarise_exits(old)


def test_profiles_are_read_back(profile: ExitProfile, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    noted = replace(profile, note="Every stage has threads of its own.")
    path.write_text(json.dumps(noted.to_json(), allow_nan=False))
    assert load_exit_profile(path) == noted


def test_the_code_that_ran_is_named(profile: ExitProfile, tmp_path: Path) -> None:
    assert profile.operator_code is None and profile.bodies_note == ""  # Nothing dynamic is in it.
    skipping = replace(profile, bundle={**profile.bundle, "operators": ["SpatialBottleneck"]})
    assert skipping.operator_code == "function bodies" and BODIES_NOTE in skipping.warnings()
    page = render_exit_profile_report(skipping)
    assert "<dd>function bodies</dd>" in page and "ran in: function bodies" in page
    library = {"path": "/a/lib.so", "sha256": "0" * 64, "instruction_set": "avx2"}
    native = replace(skipping, native=library)
    assert native.operator_code == "lib.so (avx2)" and BODIES_NOTE not in native.warnings()
    (path := tmp_path / "p.json").write_text(json.dumps(native.to_json()))
    assert load_exit_profile(path) == native
    value = native.to_json()
    del value["native"]
    path.write_text(json.dumps(value))
    assert load_exit_profile(path).operator_code is None  # Release 0.1.0 did not note it.


def test_compare_takes_both(
    profile: ExitProfile, result: CalibrationResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "report.html"
    for name, value in (("calibration", result), ("measured_exits", profile)):
        source = tmp_path / f"{name}.json"
        source.write_text(json.dumps(value.to_json()))
        assert run(["compare", str(source), "-o", str(page), "--json"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert json.loads(out)["kind"] == name
        assert page.read_text().startswith("<!DOCTYPE html>")
        assert run(["compare", str(source), "-o", str(page)]) == 0
        assert "Report: " in capsys.readouterr().out
        asked = run(["compare", str(source), "-o", str(page), "--predict-device", "nano"])
        assert asked == (2 if name == "calibration" else 0)
        assert "nothing predicts" in capsys.readouterr().err or name == "measured_exits"
        source.write_text(json.dumps({"kind": name, "schema_version": 1}))
        assert run(["compare", str(source), "-o", str(page)]) == 1
        assert "malformed" in capsys.readouterr().err


def test_profile_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = digits_bundle(tmp_path / "bundle")
    page = tmp_path / "report.html"
    assert run(["profile", str(bundle.path), "--repeats", "2", "--exit-mix", "60/20/10/10", "--report", str(page)]) == 0
    assert f"Report: {page}" in capsys.readouterr().out
    check(page.read_text(), charts=2)
