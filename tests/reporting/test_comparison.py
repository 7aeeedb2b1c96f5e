from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dyndeploy import ExportSettings, create_model, export_model
from dyndeploy.cli import run
from dyndeploy.errors import InputError, UsageError
from dyndeploy.files import write_json
from dyndeploy.measure import Profile, RateResult
from dyndeploy.measure.exits import profile_exits
from dyndeploy.measure.load_exits import load_exit_profile
from dyndeploy.prediction import Rates, bundle_record, predict
from dyndeploy.prediction.calibrated import calibration_file
from dyndeploy.reporting import (
    compare_exit_profile,
    compare_profile,
    predict_exit_profile,
    predict_profile,
    render_report,
)
from dyndeploy.reporting.comparison import spearman
from tests.bundles import tiny_bundle, tiny_models
from tests.device_calibration.helpers import little_calibration
from tests.staged_bundles import staged_bundle


def test_predictions_are_made_at_the_measured_rates(profile: Profile) -> None:
    sweep = predict_profile(profile, "v100")
    assert (sweep.device, sweep.static.batch, len(sweep.rates)) == ("v100", 1, 3)
    model, static, masks = tiny_models("spatial")
    rates = {mask.block: Rates(spatial=profile.data.mask_rates[mask.name]) for mask in masks}
    assert sweep.data.latency_ms == predict(model, "v100", rate=rates).latency_ms
    # 16 patches at rate 0.1: two of them run, which is a rate of 0.125.
    assert profile.rates[0].mask_rates["mask/layer1.0/spatial"] == 0.125
    assert sweep.rates[0].latency_ms == predict(model, "v100", rate=0.125).latency_ms
    assert sweep.rates[2].latency_ms == predict(model, "v100", rate=1.0).latency_ms
    assert sweep.static.latency_ms == predict(static, "v100", runtime="tensorrt").latency_ms


def test_a_calibration_of_another_instruction_set_is_said(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """That of what was profiled counts, wherever the report is written."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    made = little_calibration(native_sha256="a", instruction_set="avx512")
    write_json(calibration_file("cpu"), made.to_json())
    native = {**profile.native, "sha256": "a", "instruction_set": "avx512"}
    fitting = replace(profile, native=native, machine=made.machine)
    assert predict_profile(fitting, "cpu").warnings == ()
    other = replace(fitting, native={**native, "instruction_set": "avx2"})
    (warning,) = compare_profile(other, predict_profile(other, "cpu")).warnings
    assert warning.endswith("instruction set of the operator library: calibrated with avx512, not avx2.")
    assert warning in render_report(other, [predict_profile(other, "cpu")])
    write_json(tmp_path / "profile.json", other.to_json())
    compare = ["compare", str(tmp_path / "profile.json"), "-o", str(tmp_path / "page.html"), "--predict-device", "cpu"]
    assert run(compare) == 0
    assert f"Note: cpu: {warning}" in capsys.readouterr().err
    assert run([*compare, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["comparisons"][0]["warnings"] == [warning]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_profile_is_predicted_as_its_bundle_is(profile: Profile, tmp_path: Path, precision: str) -> None:
    # As a board measures it: in the precision of the engine, from the JSON that was saved.
    value = {**profile.to_json(), "device": "nano", "bundle": {**profile.bundle, "precision": precision}}
    measured = Profile.from_json(json.loads(json.dumps(value)))
    bundle = tiny_bundle(tmp_path)
    sweep = predict_profile(measured, "nano")
    for predicted, rate in ((sweep.rates[0], 0.125), (sweep.rates[1], 0.5), (sweep.rates[2], 1.0)):
        assert predicted == predict(bundle, "nano", precision=precision, rate=rate)
    assert sweep.static.precision == precision
    other = predict_profile(profile, "nano").rates[1].latency_ms
    assert (sweep.rates[1].latency_ms == other) == (precision == "fp32")


def test_blocks_that_were_exported_dense_are_priced_dense(profile: Profile, tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = ExportSettings(target="nano", precision="fp16", static=True, dense=("layer1.0", "layer3.0"))
    network = create_model("laud_resnet14_small", mode="spatial").eval()
    bundle = export_model(network, tmp_path / "bundle", settings)
    masks = [vars(mask) for mask in bundle.manifest.masks]

    def of_bundle(result: RateResult) -> RateResult:
        return replace(result, mask_rates={mask["name"]: result.rate for mask in masks})

    measured = replace(
        profile,
        device="nano",
        bundle={**profile.bundle, "precision": "fp16", "masks": masks},
        rates=tuple(map(of_bundle, profile.rates)),
        data=of_bundle(profile.data),
        graph=bundle_record(bundle),
    )
    sweep = predict_profile(Profile.from_json(json.loads(json.dumps(measured.to_json()))), "nano")
    for predicted, result in zip(sweep.rates, measured.rates, strict=True):
        assert predicted == predict(bundle, "nano", precision="fp16", rate=result.rate)
    modes = {block.name: block.mode for block in sweep.rates[0].blocks}
    assert (modes["layer1.0"], modes["layer2.0"], modes["layer3.0"]) == ("static", "spatial", "static")


def test_different_devices_are_compared_by_shape_only(profile: Profile) -> None:
    sweep = predict_profile(profile, "nano")
    comparison = compare_profile(profile, sweep)
    assert not comparison.same_device
    assert comparison.latency_mape is None
    assert "milliseconds are not compared" in comparison.basis
    errors = []
    for entry, result, predicted in zip(
        comparison.rates, (*profile.rates, profile.data), (*sweep.rates, sweep.data), strict=True
    ):
        assert entry.measured_speedup == result.realised_speedup
        assert entry.predicted_speedup == pytest.approx(sweep.static.latency_ms / predicted.latency_ms)
        errors.append(abs(entry.predicted_speedup - entry.measured_speedup) / entry.measured_speedup)
        assert [block.name for block in entry.blocks] == ["stem", "layer1.0", "layer2.0", "head"]
        assert sum(block.predicted_share for block in entry.blocks) == pytest.approx(1.0)
        other = next(part for part in result.rest if part.name == "other")
        total = sum(part.dynamic_ms for part in (*result.blocks, *result.rest))
        assert sum(block.measured_share for block in entry.blocks) == pytest.approx(1 - other.dynamic_ms / total)
    # Nothing was measured on a Nano: there is no error.
    assert (comparison.speedup_mape, comparison.block_speedup_mape) == (None, None)
    same = compare_profile(replace(profile, device="nano"), sweep)
    assert same.speedup_mape == pytest.approx(np.mean(errors))
    assert comparison.coverage.by_count == 1.0
    json.dumps(comparison.to_json(), allow_nan=False)


def test_the_same_device_is_compared_in_milliseconds(profile: Profile) -> None:
    sweep = predict_profile(profile, "nano")
    comparison = compare_profile(replace(profile, device="nano"), sweep)
    assert comparison.same_device
    pairs = [(comparison.static_measured_ms, comparison.static_predicted_ms)]
    pairs += [(entry.measured_ms, entry.predicted_ms) for entry in comparison.rates]
    assert comparison.latency_mape == pytest.approx(np.mean([abs(p - m) / m for m, p in pairs]))


def test_errors_of_parts_are_counted_by_kind(profile: Profile) -> None:
    sweep = predict_profile(profile, "nano")
    assert compare_profile(profile, sweep).parts == ()  # Milliseconds of different devices are not compared.
    measured = replace(profile, device="nano")
    comparison = compare_profile(measured, sweep)
    networks = ["static", "0.1 (forced)", "0.5 (forced)", "1 (forced)", f"{profile.data.rate:.3g} (data)"]
    assert list(dict.fromkeys(part.network for part in comparison.parts)) == networks
    by_place = {(part.part, part.network): part for part in comparison.parts}
    block = by_place["layer2.0", "0.5 (forced)"]
    assert block.kind == "spatial_bottleneck" and by_place["layer2.0", "static"].kind == "conv"
    assert block.measured_ms == profile.rates[1].blocks[1].dynamic_ms
    assert block.predicted_ms == next(b for b in sweep.rates[1].blocks if b.name == "layer2.0").latency_ms
    assert block.error == pytest.approx(block.predicted_ms / block.measured_ms - 1)
    kinds = {entry.kind: entry for entry in comparison.kinds}
    assert sum(entry.parts for entry in kinds.values()) == len(comparison.parts)
    own = [part.error for part in comparison.parts if part.kind == "spatial_bottleneck"]
    assert kinds["spatial_bottleneck"].mape == pytest.approx(np.mean(np.abs(own)))
    assert kinds["spatial_bottleneck"].bias == pytest.approx(np.mean(own))
    assert len(comparison.worst) == 10
    assert abs(comparison.worst[0].error) == max(abs(part.error) for part in comparison.parts)
    value = json.loads(json.dumps(comparison.to_json(), allow_nan=False))
    assert len(value["worst"]) == 10 and len(value["parts"]) == len(comparison.parts)


def test_a_perfect_prediction_has_no_error(profile: Profile) -> None:
    sweep = predict_profile(profile, "nano")

    def scaled(prediction, parts):
        times = {part.name: part.dynamic_ms for part in parts}
        blocks = tuple(replace(b, latency_ms=times[b.name], interval_ms=None) for b in prediction.blocks)
        return replace(prediction, blocks=blocks, latency_ms=sum(b.latency_ms for b in blocks))

    perfect = replace(
        sweep,
        rates=tuple(scaled(p, (*r.blocks, *r.rest)) for p, r in zip(sweep.rates, profile.rates, strict=True)),
        data=scaled(sweep.data, (*profile.data.blocks, *profile.data.rest)),
    )
    parts = [
        part for part in compare_profile(replace(profile, device="nano"), perfect).parts if part.network != "static"
    ]
    assert len(parts) == 16
    assert all(part.error == pytest.approx(0.0) and part.inside is None for part in parts)


def test_spearman_by_hand() -> None:
    assert spearman([(1, 10), (2, 30), (3, 20)]) == pytest.approx(0.5)
    assert spearman([(1, 3), (2, 2), (3, 1)]) == pytest.approx(-1.0)
    assert spearman([(1, 1), (2, 2)]) is None
    assert spearman([(1, 5), (2, 5), (3, 5)]) is None


def test_an_unknown_device(profile: Profile) -> None:
    with pytest.raises(UsageError, match="Did you mean 'v100'"):
        predict_profile(profile, "v1000")


def test_predictions_of_another_profile(profile: Profile) -> None:
    sweep = predict_profile(profile, "nano")
    with pytest.raises(InputError, match="do not belong"):
        compare_profile(replace(profile, rates=profile.rates[:1]), sweep)


def test_a_profile_that_does_not_hold_its_graph(profile: Profile) -> None:
    with pytest.raises(InputError, match="profile the bundle again"):
        predict_profile(replace(profile, graph=None), "nano")
    assert profile.graph is not None
    with pytest.raises(InputError, match="malformed"):
        predict_profile(replace(profile, graph={**profile.graph, "dynamic": {"nodes": 3}}), "nano")
    for damage in ({"masks": [{"name": "x"}]}, {"masks": 3}, {"masks": profile.bundle["masks"][:1]}):
        with pytest.raises(InputError, match="Profile the bundle again"):
            predict_profile(replace(profile, bundle={**profile.bundle, **damage}), "nano")


def test_early_exits_are_compared_per_exit_and_mix(tmp_path: Path) -> None:
    bundle = staged_bundle(tmp_path)
    measured = profile_exits(bundle, mixes=[(1.0,) * len(bundle.exits.stages)], repeats=2, warmup=1)
    path = tmp_path / "exits.json"
    path.write_text(json.dumps(measured.to_json()))
    loaded = load_exit_profile(path)
    sweep = predict_exit_profile(loaded, "nano")
    own = predict(bundle, "nano", batch=1)
    assert sweep.staged == replace(own, notes=())  # a profile does not know that the bundle is for another target
    assert [entry.exit for entry in own.exits] == [stage.exit for stage in bundle.exits.stages]
    times = [entry.latency_ms for entry in own.exits]
    assert times == sorted(times)
    assert [entry.share for entry in own.exits] == pytest.approx(bundle.exits.thresholds["fp32"].exit_shares)
    assert own.latency_ms == pytest.approx(np.dot([entry.share for entry in own.exits], times))
    first = predict(bundle, "nano", batch=1, exit_mix=[1, *[0] * (len(times) - 1)])
    assert first.latency_ms == pytest.approx(times[0])
    comparison = compare_exit_profile(loaded, sweep)
    assert comparison.latency_mape is None and len(comparison.exits) == len(times)
    mix, _ = comparison.mixes  # and the data's own
    assert mix.predicted_ms == pytest.approx(np.mean(times))
    assert mix.predicted_speedup == pytest.approx(sweep.whole.latency_ms / np.mean(times))
    report = tmp_path / "report.html"
    assert run(["compare", str(path), "-o", str(report), "--predict-device", "nano", "--json"]) == 0
    assert '<th scope="row">nano</th>' in report.read_text()
    assert (comparison.speedup_mape, comparison.same_device) == (None, False)
    assert run(["compare", str(path), "-o", str(report), "--predict-device", "nano", "--fail-above", "0"]) == 2
    with pytest.raises(InputError, match="profile the bundle again"):
        predict_exit_profile(replace(loaded, graph=None), "nano")
    with pytest.raises(UsageError, match=f"give {len(times)} shares"):
        predict(bundle, "nano", exit_mix=[1.0])
