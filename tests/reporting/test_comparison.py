from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from dyndeploy.errors import InputError, UsageError
from dyndeploy.prediction import NetworkSpec, Rates, predict_network
from dyndeploy.profiling import Profile
from dyndeploy.reporting import compare_profile, predict_profile
from dyndeploy.reporting.comparison import spearman


def test_predictions_are_made_at_the_measured_rates(profile: Profile) -> None:
    sweep = predict_profile(profile, "v100")
    assert (sweep.device, sweep.static.batch, len(sweep.rates)) == ("v100", 1, 3)
    spec = NetworkSpec.from_json(profile.bundle["network_spec"])
    options = {"mode": "spatial", "granularity": (2, 2), "channel_granularity": (2, 2), "device": "v100", "batch": 1}
    rates = [Rates(spatial=profile.data.mask_rates[f"mask/{block.name}/spatial"]) for block in spec.blocks]
    assert sweep.data.latency_ms == predict_network(spec, rate=rates, **options).latency_ms
    # 16 patches at rate 0.1: two of them run, which is a rate of 0.125.
    assert profile.rates[0].mask_rates["mask/layer1.0/spatial"] == 0.125
    assert sweep.rates[0].latency_ms == predict_network(spec, rate=0.125, **options).latency_ms
    assert sweep.rates[2].latency_ms == predict_network(spec, rate=1.0, **options).latency_ms


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
