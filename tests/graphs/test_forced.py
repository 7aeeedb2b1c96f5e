from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dyndeploy.bundle import MaskInfo
from dyndeploy.errors import BundleError, UsageError
from dyndeploy.graphs.forced import FLAG, PREFIX, forced_feeds, forced_masks, overlay_forced_masks, replace_masks
from dyndeploy.runtimes import OnnxRuntimeSession
from tests.bundles import MODES, SIZE, tiny_models


def layers(count: int, batch: int) -> list[MaskInfo]:
    return [MaskInfo(f"mask/b{i}/layer", f"b{i}", "layer", (batch, 1, 1, 1)) for i in range(count)]


@given(
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 40),
    st.floats(0, 1),
    st.integers(0, 2**31),
)
def test_exactly_the_rate(batch: int, height: int, width: int, groups: int, rate: float, seed: int) -> None:
    infos = [
        MaskInfo("s", "b0", "spatial", (batch, 1, height, width)),
        MaskInfo("c", "b0", "channel", (batch, groups)),
    ]
    masks = forced_masks(infos, rate, seed)
    assert {name: mask.shape for name, mask in masks.items()} == {info.name: info.shape for info in infos}
    for sample in range(batch):
        assert masks["s"][sample].sum() == round(rate * height * width)
        assert masks["c"][sample].sum() == round(rate * groups)
    assert all(set(np.unique(mask)) <= {0.0, 1.0} and mask.dtype == np.float32 for mask in masks.values())


@given(st.integers(1, 40), st.integers(1, 3), st.floats(0, 1), st.integers(0, 2**31))
def test_layers_run_exactly_and_evenly(count: int, batch: int, rate: float, seed: int) -> None:
    masks = forced_masks(layers(count, batch), rate, seed)
    runs = np.stack([mask[:, 0, 0, 0] for mask in masks.values()], axis=1)
    assert runs.sum(axis=1).tolist() == [round(rate * count)] * batch
    for row in runs:
        gaps = np.diff(np.flatnonzero(row))
        if len(gaps):
            assert gaps.max() - gaps.min() <= 1


def test_samples_differ_and_seeds_repeat() -> None:
    infos = [MaskInfo("s", "b0", "spatial", (4, 1, 8, 8)), *layers(16, 4)]
    first, again, other = forced_masks(infos, 0.5, 1), forced_masks(infos, 0.5, 1), forced_masks(infos, 0.5, 2)
    assert list(first) == [info.name for info in infos]
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    assert len({first["s"][i].tobytes() for i in range(4)}) == 4
    assert (first["s"] != other["s"]).any()


@pytest.mark.parametrize("rate", [-0.01, 1.01, float("nan")])
def test_a_rate_outside_is_refused(rate: float) -> None:
    with pytest.raises(UsageError, match=r"\[0, 1\]"):
        forced_masks(layers(2, 1), rate, 0)


@pytest.mark.parametrize("mode", MODES)
def test_operators_see_the_forced_mask_and_outputs_keep_the_maskers_own(mode: str) -> None:
    model, static, masks = tiny_models(mode, batch=2)
    overlay = overlay_forced_masks(model, masks)
    onnx.checker.check_model(overlay)
    assert [value.name for value in overlay.graph.output] == [value.name for value in model.graph.output]
    x = np.random.default_rng(3).standard_normal((2, 3, SIZE, SIZE)).astype(np.float32)
    with (
        OnnxRuntimeSession(model, native="off") as plain,
        OnnxRuntimeSession(static, native="off") as twin,
        OnnxRuntimeSession(overlay, native="off") as forced,
    ):
        own, dense = plain.run({"input": x}), twin.run({"input": x})["logits"]
        untouched = forced.run({"input": x, **forced_feeds(None, masks)})
        everything = forced.run({"input": x, **forced_feeds(forced_masks(masks, 1.0, 0), masks)})
        nothing = forced.run({"input": x, **forced_feeds(forced_masks(masks, 0.0, 0), masks)})
    np.testing.assert_array_equal(untouched["logits"], own["logits"])
    # Every bit set: the dynamic network is the static twin.
    np.testing.assert_allclose(everything["logits"], dense, rtol=1e-4, atol=1e-5)
    assert np.abs(nothing["logits"] - dense).max() > 1e-3
    # The first block's masker has the same input whatever is forced.
    np.testing.assert_array_equal(everything[masks[0].name], own[masks[0].name])
    np.testing.assert_array_equal(nothing[masks[0].name], own[masks[0].name])


def test_the_original_graph_is_not_changed() -> None:
    model, _, masks = tiny_models()
    before = model.SerializeToString(deterministic=True)
    overlay = overlay_forced_masks(model, masks)
    assert model.SerializeToString(deterministic=True) == before
    names = [value.name for value in overlay.graph.input]
    assert names == ["input", FLAG, *(PREFIX + mask.name for mask in masks)]


def test_masks_that_the_graph_does_not_have_are_refused() -> None:
    model, _, masks = tiny_models()
    stranger = MaskInfo("mask/layer9.0/spatial", "layer9.0", "spatial", (1, 1, 4, 4))
    with pytest.raises(BundleError, match=r"layer9\.0"):
        overlay_forced_masks(model, [*masks, stranger])


@pytest.mark.parametrize("mode", MODES)
def test_masks_from_inputs_give_what_the_switch_gives(mode: str) -> None:
    model, _, masks = tiny_models(mode)
    image = np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)
    drawn = forced_masks(masks, 0.5, seed=3)
    before = model.SerializeToString()
    with (
        OnnxRuntimeSession(replace_masks(model, masks), native="off") as replaced,
        OnnxRuntimeSession(overlay_forced_masks(model, masks), native="off") as overlay,
    ):
        got = replaced.run({"input": image, **{PREFIX + name: value for name, value in drawn.items()}})
        expected = overlay.run({"input": image, **forced_feeds(drawn, masks)})
    assert set(got) == set(expected) == {"logits", *drawn}
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value)
    assert model.SerializeToString() == before
    with pytest.raises(BundleError, match="does not use the masks mask/nowhere"):
        replace_masks(model, [*masks, MaskInfo("mask/nowhere", "b", "layer", (1, 1, 1, 1))])
