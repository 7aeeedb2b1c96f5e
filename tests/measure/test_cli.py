from __future__ import annotations

import json
from pathlib import Path

import pytest

from dyndeploy.cli import run
from dyndeploy.measure import load_profile
from tests.bundles import tiny_bundle

QUICK = ("--rates", "0.5,1.0", "--repeats", "2", "--native", "off")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("cli")).path


def test_a_json_file_and_a_table(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "profile.json"
    assert run(["profile", str(bundle), *QUICK, "--threads", "2", "--json", str(path)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for word in ("static twin", "forced", "data", "realisation", "fallback bodies", "2 thread(s)"):
        assert word in out
    profile = load_profile(path)
    assert [result.rate for result in profile.rates] == [0.5, 1.0]
    assert [item.name for item in path.parent.iterdir()] == ["profile.json"]


def test_json_on_stdout_and_nothing_else(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["profile", str(bundle), *QUICK, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
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
