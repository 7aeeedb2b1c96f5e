"""What blocks cost in INT8, and plans that keep a budget: on the tiny network, against FP32 under the same masks."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from dyndeploy.bundle import Bundle
from dyndeploy.errors import InputError, UsageError
from dyndeploy.graphs.forced import forced_feeds, overlay_forced_masks
from dyndeploy.quantization import (
    FP32,
    INT8,
    Budget,
    CalibrationTable,
    Comparison,
    calibrate,
    measure_sensitivity,
    quantize_model,
)
from dyndeploy.runtimes import OnnxRuntimeSession
from tests.quantization.networks import balanced_bundle, pictures, run, samples
from tests.staged_bundles import images as staged_images
from tests.staged_bundles import staged_bundle

BODIES = {"native": "off"}
"""Runs function bodies: graphs made by hand do not describe the shapes that a library needs behind them."""
BLOCKS = ("stem", "layer1.0", "layer2.0")
IMAGES = pictures(12, seed=5)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return balanced_bundle(tmp_path_factory.mktemp("sensitivity") / "b")


@pytest.fixture(scope="module")
def table(bundle: Bundle) -> CalibrationTable:
    return calibrate(bundle, samples(pictures()))


@pytest.fixture(scope="module")
def labels(bundle: Bundle) -> list[int]:
    """What FP32 says, but for one image."""
    found = [int(result["logits"][0].argmax()) for result in run(bundle.load_model(), IMAGES)]
    return [(found[0] + 1) % 10, *found[1:]]


def test_each_block_alone_is_compared_under_the_masks_of_fp32(bundle: Bundle, table: CalibrationTable) -> None:
    measured = measure_sensitivity(bundle, table, samples(IMAGES), **BODIES)
    found = measured.sensitivity
    assert found is not None and [row.block for row in found.blocks] == list(BLOCKS)
    assert measured.precision == dict.fromkeys(BLOCKS, INT8) and found.budget == "" and not found.labels
    masks, exact = bundle.manifest.masks, run(bundle.load_model(), IMAGES)
    for row in found.blocks:
        alone = dataclasses.replace(table, precision={b: INT8 if b == row.block else FP32 for b in BLOCKS})
        with OnnxRuntimeSession(
            overlay_forced_masks(quantize_model(bundle.load_model(), alone), masks), **BODIES
        ) as session:
            results = [
                session.run({"input": image[None], **forced_feeds(each, masks)})["logits"]
                for image, each in zip(IMAGES, exact, strict=True)
            ]
        difference = np.concatenate(results) - np.concatenate([each["logits"] for each in exact])
        norm = np.linalg.norm(np.concatenate([each["logits"] for each in exact]))
        assert row.output_error == pytest.approx(np.linalg.norm(difference) / norm, rel=1e-3)
        assert 0 < row.output_error < 0.1 and row.accuracy_drop is None and row.precision == INT8
    assert found.error == found.error_int8 > 0
    assert found.mask_bits == 12 * 32 and 0 <= found.mask_flips < 0.05 * found.mask_bits


def test_nothing_in_int8_costs_nothing(bundle: Bundle, table: CalibrationTable, labels: list[int]) -> None:
    comparison = Comparison(bundle, table, samples(IMAGES), labels, **BODIES)
    cost = comparison.cost([])
    assert (cost.error, cost.drop, cost.flips, cost.bits) == (0, 0, 0, 12 * 32)
    assert comparison.accuracy == cost.accuracy == pytest.approx(11 / 12)
    everything = comparison.cost(BLOCKS)
    assert everything.error > 0 and everything.accuracy is not None
    assert everything.drop == pytest.approx(11 / 12 - everything.accuracy)
    # With scales of which sixteen steps are left of 255.
    tensors = {point: dataclasses.replace(item, scale=16 * item.scale) for point, item in table.tensors.items()}
    coarse = comparison.of(dataclasses.replace(table, tensors=tensors)).cost(BLOCKS)
    assert coarse.error > 2 * everything.error


def test_a_plan_leaves_no_more_in_fp32_than_its_budget_asks(bundle: Bundle, table: CalibrationTable) -> None:
    free = measure_sensitivity(bundle, table, samples(IMAGES), **BODIES).sensitivity
    assert free is not None
    order = sorted(free.blocks, key=lambda row: row.output_error, reverse=True)
    comparison = Comparison(bundle, table, samples(IMAGES), None, **BODIES)
    errors = [comparison.cost([row.block for row in order[kept:]]).error for kept in range(4)]
    for kept in range(1, 4):
        limit = (errors[kept] + errors[kept - 1]) / 2 if errors[kept] < errors[kept - 1] else math.inf
        planned = measure_sensitivity(
            bundle, table, samples(IMAGES), budget=Budget(output_error=min(limit, 1.0)), **BODIES
        )
        assert planned.sensitivity is not None and planned.sensitivity.error <= limit
        left = {block for block, precision in planned.precision.items() if precision == FP32}
        if errors == sorted(errors, reverse=True):
            assert left == {row.block for row in order[:kept]}
            assert planned.sensitivity.error == pytest.approx(errors[kept])
        assert planned.sensitivity.error_int8 == pytest.approx(errors[0])
        assert {row.block for row in planned.sensitivity.blocks if row.precision == FP32} == left
    assert errors[3] == 0


def test_a_budget_that_holds_leaves_everything_in_int8(
    bundle: Bundle, table: CalibrationTable, labels: list[int]
) -> None:
    budget = Budget(accuracy_drop=1.0, output_error=0.5)
    planned = measure_sensitivity(bundle, table, samples(IMAGES), labels, budget=budget, **BODIES)
    assert planned.precision == dict.fromkeys(BLOCKS, INT8) and planned.sensitivity is not None
    assert planned.sensitivity.budget == "accuracy at most 100.00% below FP32's, output error at most 50.00%"
    assert planned.sensitivity.accuracy_fp32 == pytest.approx(11 / 12)
    assert CalibrationTable.from_json(planned.to_json()) == planned
    none = measure_sensitivity(bundle, table, samples(IMAGES), labels, budget=Budget(output_error=0.0), **BODIES)
    assert none.precision == dict.fromkeys(BLOCKS, FP32) and none.sensitivity is not None
    assert none.sensitivity.error == 0 and none.sensitivity.accuracy == pytest.approx(11 / 12)


def test_batches_are_compared_image_by_image(tmp_path: Path, table: CalibrationTable) -> None:
    four = balanced_bundle(tmp_path / "b", batch=4)
    single = measure_sensitivity(balanced_bundle(tmp_path / "c"), table, samples(IMAGES[:10]), **BODIES).sensitivity
    batches = measure_sensitivity(four, table, [{"input": IMAGES[:10]}], **BODIES).sensitivity
    assert single is not None and batches is not None and batches.images == 10
    assert batches.error == pytest.approx(single.error, rel=1e-3) and batches.mask_bits == single.mask_bits


def test_stages_are_compared_at_every_exit(tmp_path: Path) -> None:
    bundle = staged_bundle(tmp_path / "b")
    images = staged_images(24)
    table = calibrate(bundle, samples(images, "images"))
    found = measure_sensitivity(bundle, table, samples(images, "images"), [0] * 24, **BODIES).sensitivity
    assert found is not None and [row.block for row in found.blocks] == ["body"]
    assert 0 < found.error < 0.1 and found.mask_bits == 0 and found.accuracy_fp32 is not None


@pytest.mark.parametrize("budget", [{"accuracy_drop": -0.1}, {"accuracy_drop": 2}, {"output_error": float("nan")}])
def test_budgets_are_shares(budget: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=r"is a share in \[0, 1\]"):
        Budget(**budget)


def test_what_cannot_be_measured_is_refused(bundle: Bundle, table: CalibrationTable, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs labelled images"):
        measure_sensitivity(bundle, table, samples(IMAGES), budget=Budget(accuracy_drop=0.01), **BODIES)
    with pytest.raises(InputError, match="no images to measure on"):
        measure_sensitivity(bundle, table, [], **BODIES)
    with pytest.raises(UsageError, match="3 labels were given for 12 images"):
        measure_sensitivity(bundle, table, samples(IMAGES), [1, 2, 3], **BODIES)
    with pytest.raises(UsageError, match="mode spatial, not channel"):
        measure_sensitivity(balanced_bundle(tmp_path / "b", "channel"), table, samples(IMAGES), **BODIES)
