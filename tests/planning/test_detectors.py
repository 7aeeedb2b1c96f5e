"""Plans of detectors: the modes of the backbone's stages, with what else the detector computes counted in."""

from __future__ import annotations

import pytest

from dyndeploy.planning import PlanSettings, device_prices, plan_network
from dyndeploy.prediction import predict

pytestmark = pytest.mark.vision("torchvision")


def test_a_plan_of_a_detector_costs_what_is_predicted_for_it() -> None:
    name, prices = "laud_retinanet_small", device_prices("tx2")
    chosen, front = plan_network(
        name,
        prices.by_threads,
        PlanSettings(modes=("layer", "static")),
        device="tx2",
        runtime=prices.runtime,
        precision=prices.precision,
        basis=prices.basis,
    )
    static = predict(name.removeprefix("laud_"), "tx2", batch=1)
    backbone = next(part for part in static.parts if part.name == "backbone")
    assert chosen.static_ms == pytest.approx(static.latency_ms, rel=0.02)
    assert backbone.latency_ms < static.latency_ms, "necks and heads cost something"
    assert chosen.latency_ms <= chosen.static_ms
    assert min(plan.latency_ms for plan in front) > static.latency_ms - backbone.latency_ms, "what is static stays"
