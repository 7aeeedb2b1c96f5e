from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from dyndeploy.errors import InputError, UsageError
from dyndeploy.measure import Profile
from dyndeploy.prediction import NetworkSpec, Rates, predict
from dyndeploy.reporting import compare_profile, predict_profile
from dyndeploy.reporting.comparison import spearman


def test_predictions_are_made_at_the_measured_rates(profile: Profile) -> None:
    sweep = predict_profile(profile, "v100")
    assert (sweep.device, sweep.static.batch, len(sweep.rates)) == ("v100", 1, 3)
    spec = NetworkSpec.from_json(profile.bundle["network_spec"])
    options = {"mode": "spatial", "granularity": (2, 2), "channel_granularity": (2, 2), "batch": 1}
    rates = [Rates(spatial=profile.data.mask_rates[f"mask/{block.name}/spatial"]) for block in spec.blocks]
    assert sweep.data.latency_ms == predict(spec, "v100", rate=rates, **options).latency_ms
    # 16 patches at rate 0.1: two of them run, which is a rate of 0.125.
    assert profile.rates[0].mask_rates["mask/layer1.0/spatial"] == 0.125
    assert sweep.rates[0].latency_ms == predict(spec, "v100", rate=0.125, **options).latency_ms
    assert sweep.rates[2].latency_ms == predict(spec, "v100", rate=1.0, **options).latency_ms


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
    assert comparison.speedup_mape == pytest.approx(np.mean(errors))
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
    assert comparison.headline_error == comparison.latency_mape
    assert compare_profile(profile, sweep).headline_error == comparison.speedup_mape
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


@pytest.mark.parametrize("damage", [{"network_spec": {}}, {"masks": [{"name": "x"}]}, {"mode": "sideways"}])
def test_a_profile_that_does_not_describe_its_network(profile: Profile, damage: dict[str, object]) -> None:
    broken = replace(profile, bundle={**profile.bundle, **damage})
    with pytest.raises((InputError, UsageError)):
        predict_profile(broken, "nano")
    incomplete = {key: value for key, value in profile.bundle.items() if key not in damage}
    with pytest.raises(InputError, match="does not describe"):
        predict_profile(replace(profile, bundle=incomplete), "nano")
