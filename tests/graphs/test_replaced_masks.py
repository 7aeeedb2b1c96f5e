"""Masks from outside, for TensorRT: the same as the overlay that is forced."""

from __future__ import annotations

import numpy as np
import pytest

from dyndeploy.errors import BundleError
from dyndeploy.graphs.forced import FLAG, PREFIX, overlay_forced_masks, replace_masks
from dyndeploy.graphs.tensorrt import PrecisionPlan, tensorrt_model
from dyndeploy.runtimes import OnnxRuntimeSession
from tests.bundles import MODES, SIZE, tiny_models
from tests.runtimes.tensorrt_reference import check_types, evaluate


@pytest.mark.parametrize("mode", MODES)
def test_replaced_masks_are_forced_masks(mode: str) -> None:
    model, _, masks = tiny_models(mode, batch=2)
    generator = np.random.default_rng(0)
    feeds = {"input": generator.standard_normal((2, 3, SIZE, SIZE)).astype(np.float32)}
    feeds |= {PREFIX + mask.name: generator.integers(0, 2, mask.shape).astype(np.float32) for mask in masks}
    replaced = replace_masks(model, masks)
    with OnnxRuntimeSession(replaced, native="off") as session:
        actual = session.run(feeds)
    with OnnxRuntimeSession(overlay_forced_masks(model, masks), native="off") as session:
        expected = session.run({**feeds, FLAG: np.array(True)})
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value)
    copy = evaluate(tensorrt_model(replaced, PrecisionPlan("fp32", typed=False)), feeds)
    np.testing.assert_allclose(copy["logits"], expected["logits"], atol=2e-4)
    typed = tensorrt_model(replaced, PrecisionPlan("fp16", typed=True))
    check_types(typed)
    np.testing.assert_allclose(evaluate(typed, feeds)["logits"], expected["logits"], atol=2e-2)


def test_masks_that_nobody_uses() -> None:
    model, _, _ = tiny_models("spatial")
    _, _, others = tiny_models("channel")
    with pytest.raises(BundleError, match="does not use the masks mask/layer1"):
        replace_masks(model, others)
