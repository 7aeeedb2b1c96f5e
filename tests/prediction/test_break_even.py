from __future__ import annotations

from typing import Any

import pytest

from dyndeploy.errors import UsageError
from dyndeploy.prediction import predict
from dyndeploy.prediction.break_even import SHOWN, break_even
from dyndeploy.targets import target_names

STAGES = ["layer1", "layer2", "layer3", "layer4", "all"]


@pytest.mark.parametrize("device", ["nano", "tx2"])
def test_rates_are_those_at_which_the_curves_cross(device: str) -> None:
    found = break_even(device, "fp16")
    assert [stage.stage for stage in found] == STAGES
    for stage in found:
        latencies = [stage.dynamic_ms[rate] for rate in SHOWN]
        assert latencies == sorted(latencies, reverse=True)
        if stage.rate is None:
            assert min(latencies) > stage.static_ms
        elif stage.rate < 1:
            assert stage.dynamic_ms[1.0] > stage.static_ms
    options: dict[str, Any] = {"device": device, "precision": "fp16", "batch": 1}
    static = predict("resnet50", **options)
    blocks = [block for block in static.blocks if block.name.startswith("layer")]
    assert found[-1].static_ms == pytest.approx(sum(block.latency_ms for block in blocks))
    assert found[-1].static_ms == pytest.approx(sum(stage.static_ms for stage in found[:-1]))
    first = found[0]
    assert first.rate is not None
    for rate, pays in ((first.rate, True), (first.rate + 1 / 40, False)):
        if rate <= 1:
            dynamic = predict(
                "laud_resnet50",
                mode="spatial",
                granularity=(4, 4, 2, 1),
                rate=rate,
                **options,
            )
            spent = sum(block.latency_ms for block in dynamic.blocks if block.name.startswith("layer1."))
            assert (spent <= first.static_ms) == pays


def test_every_target_with_a_gpu_has_them() -> None:
    names = [name for name in target_names() if name != "cpu"]
    assert len(names) > 10
    for name in names:
        assert [stage.stage for stage in break_even(name)] == STAGES


def test_unknown_devices_are_refused() -> None:
    with pytest.raises(UsageError, match="nosuch"):
        break_even("nosuch")
