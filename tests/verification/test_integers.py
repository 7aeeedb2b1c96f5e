"""Bundles in INT8: the integer part to the bit, the whole within its tolerance, and damage that is found."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from dyndeploy import Bundle, verify_bundle
from dyndeploy.bundle import MODEL
from dyndeploy.precisions import tolerance_of
from dyndeploy.verification import VerificationReport
from tests.bundles import resealed
from tests.quantized import exported


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    made: dict[str, Bundle] = {}
    root = tmp_path_factory.mktemp("integers")

    def make(mode: str) -> Bundle:
        if mode not in made:
            made[mode] = exported(root / mode, mode=mode, batch=2, static=mode == "spatial")[1]
        return made[mode]

    return make


def details(report: VerificationReport) -> dict[str, str]:
    return {check.name: check.detail for check in report.checks}


@pytest.mark.parametrize("mode", ["spatial", "both"])
def test_the_integer_part_is_held_to_the_bit(mode: str, bundles: Callable[[str], Bundle]) -> None:
    report = verify_bundle(bundles(mode), native="off")
    assert report.passed, report.checks
    found = details(report)
    operators = len(bundles(mode).manifest.operators)
    # Under the reference's masks and under random ones.
    assert f"of {operators} operators in {2 * operators} calls, every bit" in found["integers: dynamic operators"]
    assert "integers: standard layers" not in found
    assert f"of {report.mask_bits} mask bits differ" in found["masks in INT8"]
    assert ("static twin: logits" in found) == (mode == "spatial")
    (error,) = report.outputs
    assert 0 < error.relative_error < tolerance_of("int8").output


def edited(bundle: Bundle, folder: Path, edit: Callable[[dict[str, np.ndarray]], None]) -> Bundle:
    copy = Bundle.open(shutil.copytree(bundle.path, folder))
    model = copy.load_model()
    values = {item.name: numpy_helper.to_array(item).copy() for item in model.graph.initializer}
    edit(values)
    del model.graph.initializer[:]
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    onnx.save(model, copy.path / MODEL)
    return resealed(copy)


def test_a_damaged_weight_is_beyond_the_tolerance(bundles: Callable[[str], Bundle], tmp_path: Path) -> None:
    def flip(values: dict[str, np.ndarray]) -> None:
        values["layer4.0/SpatialBottleneckProjection/wd"] *= -1

    report = verify_bundle(edited(bundles("spatial"), tmp_path / "b", flip), native="off")
    failed = {check.name for check in report.checks if not check.passed}
    assert {"logits under equal masks", "logits as deployed"} & failed
    # The operator computes what its weights say: that is not where the damage is.
    assert "integers: dynamic operators" not in failed


def test_an_operator_that_differs_from_its_reference_is_named(
    bundles: Callable[[str], Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dyndeploy.verification import integers

    original, model = integers._run, bundles("spatial").load_model()
    node = next(node for node in model.graph.node if node.name.startswith("layer4.0/QuantizedSpatialBottleneck"))

    def wrong(*arguments: Any) -> dict[str, np.ndarray]:
        results = original(*arguments)
        if node.output[0] in results:
            results[node.output[0]] = results[node.output[0]] ^ 1
        return results

    monkeypatch.setattr(integers, "_run", wrong)
    report = verify_bundle(bundles("spatial"), native="off")
    (check,) = (check for check in report.checks if check.name == "integers: dynamic operators")
    assert not check.passed and f"{node.name} as deployed: " in check.detail
