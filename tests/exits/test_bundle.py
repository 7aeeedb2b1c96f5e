"""Calibrating a real bundle: stages on ONNX Runtime, scikit-learn's digits, and the command line."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dyndeploy.bundle import Bundle, write_manifest
from dyndeploy.cli import run
from dyndeploy.errors import InputError, UsageError
from dyndeploy.exits import (
    CalibrationResult,
    Constraint,
    HeldOutImages,
    calibrate_bundle,
    counted_costs,
    measured_costs,
    profiled_costs,
    score_images,
    store_thresholds,
)
from dyndeploy.measure.exits import profile_exits
from dyndeploy.runtimes import open_staged
from dyndeploy.runtimes.native import BODIES_NOTE
from tests.digits_bundles import MACS, PREPROCESSING, SIZE, digits_bundle


@pytest.fixture(scope="module")
def profile_file(original: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profile") / "profile.json"
    path.write_text(json.dumps(profile_exits(original, repeats=3, mixes=[(25, 25, 25, 25)]).to_json()))
    return path


def folder_of_digits(root: Path, classes: int = 10, images: int = 4) -> Path:
    generator = np.random.default_rng(0)
    for name in range(classes):
        (root / str(name)).mkdir(parents=True)
        for index in range(images):
            pixels = generator.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / str(name) / f"{index}.png")
    return root


def test_stored_thresholds_are_what_the_runner_does(bundle: Bundle) -> None:
    result = calibrate_bundle(bundle, "digits", Constraint(cost=600.0))
    chosen = result.calibration.chosen
    assert chosen is not None
    assert chosen.cost <= 600
    assert result.macs == MACS
    assert result.calibration.images == 360
    assert bundle.exits.thresholds == {}
    stored = store_thresholds(bundle, result)
    assert not stored.damaged_files()
    info = stored.exits.thresholds["fp32"]
    assert info.values == chosen.thresholds
    assert (info.images, info.accuracy, info.exit_shares) == (360, chosen.accuracy, chosen.shares)
    assert info.budget == "at most 600 MACs per image"
    images = HeldOutImages.open(stored, "digits")
    inputs, labels = (np.concatenate(parts) for parts in zip(*images.batches(), strict=True))
    # What exits for real must be what was counted, in whatever batches.
    with open_staged(stored) as session:
        for size in (1, 7, 360):
            results = [session.run(inputs[start : start + size]) for start in range(0, 360, size)]
            exits = np.concatenate([entry.exits for entry in results])
            right = np.concatenate([entry.logits.argmax(axis=1) for entry in results]) == labels
            assert [int((exits == number).sum()) for number in (1, 2, 3, 4)] == list(chosen.counts)
            assert [int(right[exits == number].sum()) for number in (1, 2, 3, 4)] == list(chosen.correct)


def test_the_worse_exit_is_found_on_real_images(original: Bundle) -> None:
    result = calibrate_bundle(original, "digits", Constraint(cost=600.0))
    (entry,) = result.calibration.dominated
    assert (entry.exit, entry.by) == (3, 2)
    assert entry.accuracy < 0.7 < entry.by_accuracy


def test_thresholds_of_a_smaller_bundle(tmp_path: Path) -> None:
    bundle = digits_bundle(tmp_path / "three", exits=(1, 2, 4))
    result = calibrate_bundle(bundle, "digits", limit=100)
    assert result.calibration.exits == (1, 2, 4)
    assert result.calibration.images == 100
    assert len(result.calibration.sweep) == 33
    stored = store_thresholds(bundle, result)
    assert len(stored.exits.thresholds["fp32"].values) == 3


def test_thresholds_of_another_network_are_refused(original: Bundle, tmp_path: Path) -> None:
    other = digits_bundle(tmp_path / "three", exits=(1, 2, 4))
    result = calibrate_bundle(other, "digits", limit=50)
    with pytest.raises(UsageError, match="Calibrate this bundle"):
        store_thresholds(original, result)


def test_another_precision_is_refused(original: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="in fp32, not in fp16"):
        calibrate_bundle(original, "digits", precision="fp16")
    half = digits_bundle(tmp_path / "half", precision="fp16")
    result = calibrate_bundle(half, "digits", limit=50)
    # The engine will compute in fp16; what ran here is fp32, and only for that the thresholds are kept.
    assert result.precision == "fp32"
    stored = store_thresholds(half, result)
    assert list(stored.exits.thresholds) == ["fp32"]
    with open_staged(stored) as session:
        assert session.thresholds == stored.exits.thresholds["fp32"].values
    engines = half.with_thresholds("fp16", result.threshold_info())
    only_engines = replace(engines.manifest.exits, thresholds={"fp16": result.threshold_info()})
    write_manifest(half.path, replace(engines.manifest, exits=only_engines))
    # Thresholds of the engine are not taken for what runs here.
    with open_staged(half.path) as session:
        assert session.thresholds is None
        with pytest.raises(UsageError, match="no exit thresholds for this precision"):
            session.run(half.reference()["input"])


def test_costs_are_counted_measured_or_profiled(original: Bundle, profile_file: Path) -> None:
    with open_staged(original) as session:
        assert counted_costs(session, "fp32").values == MACS
        measured = measured_costs(session, "fp32")
        profiled = profiled_costs(profile_file)(session, "fp32")
    for costs in (measured, profiled):
        assert costs.unit == "ms"
        assert len(costs.values) == 4
        assert min(costs.values) > 0
    assert str(profile_file) in profiled.source
    assert "operators" not in measured.source + profiled.source and measured.note == profiled.note == ""
    profile = json.loads(profile_file.read_text())
    wanted = [entry["relative"] * profile["whole"]["median_ms"] for entry in profile["exits"]]
    assert profiled.values == pytest.approx(wanted)


def test_costs_name_the_code_that_ran(original: Bundle, profile_file: Path, tmp_path: Path) -> None:
    profile = json.loads(profile_file.read_text())
    (path := tmp_path / "p.json").write_text(
        json.dumps(profile | {"bundle": profile["bundle"] | {"operators": ["SpatialBottleneck"]}})
    )
    with open_staged(original) as session:
        costs = profiled_costs(path)(session, "fp32")
    assert costs.source.endswith("1 thread(s), operators: function bodies") and costs.note == BODIES_NOTE
    result = calibrate_bundle(original, "digits", costs=profiled_costs(path), limit=100)
    assert result.calibration.warnings()[0] == BODIES_NOTE
    assert CalibrationResult.from_json(result.to_json()).calibration.costs == costs


def test_a_profile_of_something_else_is_refused(original: Bundle, profile_file: Path, tmp_path: Path) -> None:
    profile = json.loads(profile_file.read_text())

    def costs_of(change: dict[str, object]) -> None:
        path = tmp_path / "changed.json"
        path.write_text(json.dumps(profile | change))
        with open_staged(original) as session:
            profiled_costs(path)(session, "fp32")

    with pytest.raises(UsageError, match=r"precision fp16, the bundle .* precision fp32"):
        costs_of({"bundle": profile["bundle"] | {"precision": "fp16"}})
    with pytest.raises(UsageError, match="network other"):
        costs_of({"bundle": profile["bundle"] | {"name": "other"}})
    with pytest.raises(UsageError, match="exits"):
        costs_of({"exits": profile["exits"][:3], "mixes": []})
    with pytest.raises(UsageError, match="MACs"):
        costs_of({"exits": [*profile["exits"][:3], profile["exits"][3] | {"macs": 5}]})
    for damage in ({"kind": "measured"}, {"schema_version": 7}, {"exits": []}, {"whole": {}}, {"machine": 3}):
        with pytest.raises(InputError, match=r"again|Write one"):
            costs_of(damage)


def test_folders_of_images(original: Bundle, tmp_path: Path) -> None:
    root = folder_of_digits(tmp_path / "val")
    images = HeldOutImages.open(original, root)
    assert len(images) == 40
    assert [len(labels) for _, labels in images.batches()] == [32, 8]
    assert HeldOutImages.open(original, root, limit=10).indices.tolist() == list(range(0, 40, 4))
    with open_staged(original) as session:
        seen: list[float] = []
        scores = score_images(session, images, lambda message, fraction: seen.append(fraction))
    assert scores.images == 40
    assert seen == [0.8, 1.0]
    (root / "9").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"9 classes .* the network 10"):
        HeldOutImages.open(original, root)
    with pytest.raises(UsageError, match="too few"):
        HeldOutImages.open(original, "digits", limit=1)
    with pytest.raises(InputError, match="There is no folder"):
        HeldOutImages.open(original, tmp_path / "nothing")
    assert PREPROCESSING.resize == SIZE


def test_processes_share_the_images(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dyndeploy.chunks.CHUNK", 96)
    alone = calibrate_bundle(bundle, "digits", Constraint(cost=600.0))
    state = tmp_path / "state"
    shared = calibrate_bundle(bundle, "digits", Constraint(cost=600.0), workers=2, state=state)
    assert shared.calibration == alone.calibration and shared.source == alone.source
    assert len(list(state.glob("chunk-*.json"))) == 4
    # Scores do not depend on what thresholds the bundle holds.
    stored = store_thresholds(bundle, shared)
    again = calibrate_bundle(stored, "digits", Constraint(cost=600.0), state=state)
    assert again.calibration == alone.calibration


# ---------------------------------------------------------------- command line


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = run(["calibrate", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_calibrate_stores_and_prints(bundle: Bundle, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    code, out, err = call(capsys, bundle.path, "--data", "digits", "--budget-flops", "0.6k", "--report", report)
    assert (code, err) == (0, "")
    assert "at most 600 MACs per image" in out
    assert "Stored in" in out
    assert "Only 360 images" in out
    assert "Exit 3 costs more than exit 2" in out
    assert report.read_text().startswith("<!DOCTYPE html>")
    assert Bundle.open(bundle.path).exits.thresholds["fp32"].values[-1] == -math.inf


def test_calibrate_as_json(bundle: Bundle, capsys: pytest.CaptureFixture[str], profile_file: Path) -> None:
    options = ("--data", "digits", "--limit", 120, "--min-accuracy", 0.9, "--costs", profile_file, "--dry-run")
    code, out, err = call(capsys, bundle.path, *options, "--json")
    assert (code, err) == (0, "")
    value = json.loads(out)
    assert value["kind"] == "calibration"
    assert value["costs"]["unit"] == "ms"
    assert value["chosen"]["accuracy"] >= 0.9
    assert value["chosen"]["thresholds"][-1] is None
    assert value["stored"] is False
    assert Bundle.open(bundle.path).exits.thresholds == {}


def test_the_bare_sweep_stores_nothing(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, bundle.path, "--data", "digits", "--limit", 60, "--sweep")
    assert code == 0
    assert "official sweep" in out
    assert "nothing was stored" in out
    assert Bundle.open(bundle.path).exits.thresholds == {}
    code, out, _ = call(
        capsys, bundle.path, "--data", "digits", "--limit", 60, "--sweep", "--budget-flops", 900, "--json"
    )
    assert code == 0
    value = json.loads(out)
    assert value["method"] == "sweep"
    assert value["chosen"]["cost"] <= 900
    assert value["stored"] is True


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--data", "digits", "--budget-flops", "600", "--min-accuracy", "0.5"), 2, "exclude each other"),
        (("--data", "digits", "--budget-flops", "many"), 2, "takes a number of MACs"),
        (("--data", "digits", "--budget-flops", "1", "--limit", "20"), 2, "cheapest exit alone costs 40 MACs"),
        (("--data", "digits", "--min-accuracy", "76"), 2, r"lies in [0, 1]"),
        (("--data", "digits", "--min-accuracy", "1", "--limit", "200"), 2, "out of reach"),
        (("--data", "digits", "--budget-flops", "600", "--costs", "p.json"), 2, "leave one of them out"),
        (("--data", "digits", "--budget-ms", "1", "--costs", "p.json"), 1, "Cannot read p.json"),
        (("--data", "nowhere"), 1, "There is no folder nowhere"),
        (("--data", "digits", "--precision", "fp16"), 2, "in fp32, not in fp16"),
        (("--data", "digits", "--runtime", "onxruntime"), 2, "Did you mean 'onnxruntime'"),
        ((), 2, "--data"),
    ],
)
def test_failures(
    original: Bundle, options: tuple[str, ...], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, out, err = call(capsys, original.path, *options)
    assert found == code
    assert out == ""
    assert message in err
    assert original.exits.thresholds == {}


def test_no_bundle_and_no_exits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, tmp_path / "none", "--data", "digits")
    assert code == 1
    assert "is no bundle" in err
    from tests.bundles import tiny_bundle

    plain = tiny_bundle(tmp_path / "plain")
    code, _, err = call(capsys, plain.path, "--data", "digits")
    assert code == 2
    assert "has no exits" in err
