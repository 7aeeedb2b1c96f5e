from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from dyndeploy.errors import UsageError
from dyndeploy.prediction import predict
from dyndeploy.prediction.break_even import (
    SHOWN,
    BreakEven,
    break_even,
    published_break_even,
    published_figures,
    where_it_cannot_pay,
)
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


def test_batches_are_per_image_and_large_ones_cost_less() -> None:
    one, many = break_even("rtx3090", "fp16"), break_even("rtx3090", "fp16", 32)
    assert [stage.stage for stage in many] == STAGES
    for alone, together in zip(one, many, strict=True):
        assert together.static_ms < alone.static_ms
        assert together.dynamic_ms[0.5] < alone.dynamic_ms[0.5]
    static = predict("resnet50", "rtx3090", precision="fp16", batch=32)
    blocks = [block.latency_ms for block in static.blocks if block.name.startswith("layer")]
    assert many[-1].static_ms == pytest.approx(sum(blocks))
    with pytest.raises(UsageError, match="at least 1"):
        break_even("rtx3090", "fp16", 0)


def test_where_it_cannot_pay() -> None:
    stages = [BreakEven(name, 1.0, {}, rate) for name, rate in (("layer1", 0.5), ("layer2", None), ("all", None))]
    assert where_it_cannot_pay(stages) == ("layer2", "all")
    assert where_it_cannot_pay(stages[:1]) == ()


def test_published_figures_stand_beside_predicted_ones() -> None:
    found = published_break_even("v100", "fp16")
    assert [each.batch for each in found] == [1, 8, 16, 32, 64]
    assert found[1].static_ms == pytest.approx(3.2938 / 8)
    for each in found:
        assert each.source and each.runtime
        # The published ones are not those that the predictor was fitted to.
        assert each.predicted_static_ms == pytest.approx(each.static_ms, rel=0.5)
        whole = predict(
            "laud_resnet50",
            "v100",
            precision="fp16",
            batch=each.batch,
            mode="spatial",
            granularity=(4, 4, 2, 1),
            rate=0.5,
        )
        assert each.dynamic_ms[0.5] == pytest.approx(whole.latency_ms)
        assert (each.rate is None) == (min(each.dynamic_ms.values()) > each.static_ms)
    assert published_break_even("h200", "fp16") == () == published_break_even("v100", "fp32")


def test_published_figures_are_those_that_the_predictor_is_held_against() -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "predictor" / "published_latency.csv"
    with path.open() as lines:
        rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    both = 0
    for row in rows:
        if (row["network"], row["runtime"], row["batch"]) == ("resnet50", "tensorrt", "1"):
            for figure in published_figures(row["device"], row["precision"]):
                both += 1
                assert figure["ms"] == float(row["ms_per_image"])
    assert both == 3


def test_unknown_devices_are_refused() -> None:
    with pytest.raises(UsageError, match="nosuch"):
        break_even("nosuch")
