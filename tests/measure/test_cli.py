from __future__ import annotations

import json
from pathlib import Path

import pytest

from dyndeploy.cli import run
from dyndeploy.errors import InputError
from dyndeploy.measure import load_profile
from dyndeploy.prediction import known_devices
from dyndeploy.prediction.calibrated import calibration_file
from tests.bundles import tiny_bundle

QUICK = ("--rates", "0.5,1.0", "--repeats", "2", "--native", "off")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("cli")).path


def test_a_json_file_and_a_table(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "profile.json"
    assert run(["profile", str(bundle), *QUICK, "--threads", "2", "--json", str(path)]) == 0
    out, err = capsys.readouterr()
    assert err == "Runtime: ONNX Runtime on the CPU: the bundle was exported for cpu.\n"
    for word in ("static twin", "forced", "data", "realisation", "function bodies", "2 thread(s)"):
        assert word in out
    profile = load_profile(path)
    assert [result.rate for result in profile.rates] == [0.5, 1.0]
    assert [item.name for item in path.parent.iterdir()] == ["profile.json"]


def test_json_on_stdout_and_nothing_else(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["profile", str(bundle), *QUICK, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert "dyndeploy:" not in err and "Note:" not in err  # on a busy machine there are lines of progress
    value = json.loads(out)
    for rate in value["rates"]:
        assert rate["realisation"] == pytest.approx(rate["realised_speedup"] / rate["ideal_speedup"])
        assert {"median_ms", "p90_ms", "cov", "samples_ms"} <= set(rate)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--device", "nano"), ["No address is known", "device add nano", "predict BUNDLE --device nano"]),
        (("--device", "tx2"), ["predict BUNDLE --device tx2"]),
        (("--device", "nanoo"), ["Unknown device", "Did you mean 'nano'"]),
        (("--rates", "0.5,2"), ["[0, 1]"]),
        (("--rates", "half"), ["--rates", "half"]),
        (("--rates", ""), ["--rates"]),
        (("--rates", "nan"), ["[0, 1]"]),
        (("--repeats", "1"), ["at least 2"]),
        (("--threads", "0"), ["threads"]),
        (("--threads", "100000"), ["threads=100000", "processors"]),
        (("--json", "--threads=1"), ["'--json -'"]),
        (("--json",), ["requires an argument", "'--json -'"]),
        (("--native", "nowhere.so"), ["nowhere.so"]),
    ],
)
def test_wrong_usage(
    bundle: Path, options: tuple[str, ...], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["profile", str(bundle), *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    for word in words:
        assert word in err


def test_no_bundle_and_no_twin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["profile", str(tmp_path / "none")]) == 1
    assert "does not exist" in capsys.readouterr().err
    folder = tiny_bundle(tmp_path / "lonely", static=False).path
    assert run(["profile", str(folder), "--json", str(tmp_path / "out.json")]) == 2
    assert "--static" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_an_impossible_output_is_refused_before_measuring(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import dyndeploy.measure

    def never(*_: object, **__: object) -> None:
        raise AssertionError("measured although the result cannot be written")

    monkeypatch.setattr(dyndeploy.measure, "profile_bundle", never)
    (tmp_path / "file").write_text("in the way")
    assert run(["profile", str(bundle), *QUICK, "--json", str(tmp_path / "file" / "profile.json")]) == 1
    assert "Cannot create the folder" in capsys.readouterr().err


def test_a_report_that_cannot_be_made_loses_no_measurement(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import dyndeploy.reporting

    def fail(*_: object) -> str:
        raise InputError("no report today")

    monkeypatch.setattr(dyndeploy.reporting, "render_report", fail)
    path = tmp_path / "profile.json"
    arguments = ["profile", str(bundle), *QUICK, "--report", str(tmp_path / "report.html"), "--json"]
    assert run([*arguments, str(path)]) == 1
    out, err = capsys.readouterr()
    assert "static twin" in out and "no report today" in err
    assert len(load_profile(path).rates) == 2
    assert run([*arguments, "-"]) == 1
    assert len(json.loads(capsys.readouterr().out)["rates"]) == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["profile.json"]


@pytest.mark.parametrize("content", ["{", "{}"])
def test_a_calibration_that_is_no_use_does_not_spoil_the_report(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    kept = calibration_file("cpu")
    kept.parent.mkdir(parents=True)
    kept.write_text(content)
    assert "cpu" not in known_devices()
    assert str(kept) in caplog.text and "left out" in caplog.text
    assert run(["profile", str(bundle), *QUICK, "--report", str(tmp_path / "report.html")]) == 0
    assert (tmp_path / "report.html").exists()


def test_a_calibration_that_cannot_be_looked_at_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = calibration_file("cpu").parent
    folder.parent.mkdir()
    folder.symlink_to(folder)  # As good as one without the right to look: root has that everywhere.
    assert "cpu" not in known_devices()
    assert f"calibrations in {folder} are left out: Too many levels of symbolic links" in caplog.text
    caplog.clear()
    folder.unlink()
    folder.mkdir()
    calibration_file("cpu").mkdir()
    assert "cpu" not in known_devices()
    assert f"{calibration_file('cpu')} is left out: Is a directory" in caplog.text
