from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dyndeploy.errors import BundleError, InputError, UsageError
from dyndeploy.measure import profile_bundle
from dyndeploy.measure.inputs import Schedule, forced_configurations, input_batches, own_configuration
from tests.bundles import many_bundle, resealed, tiny_bundle


def test_batches_of_every_input_go_together(tmp_path: Path) -> None:
    bundle = many_bundle(tmp_path / "b", batch=2)
    batches, source = input_batches(bundle, None, 32)
    reference = bundle.reference()
    assert [sorted(batch) for batch in batches] == [["gain/stem", "input"]] * 2
    for index, batch in enumerate(batches):
        for name, value in batch.items():
            np.testing.assert_array_equal(value, reference[name][2 * index : 2 * index + 2])
            assert value.flags.c_contiguous
    assert source == {"source": "random numbers", "count": 4, "repeated_to_fill_batches": 0}


def test_the_last_batch_is_filled_up(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b", batch=2)
    np.savez(bundle.path / "reference.npz", input=bundle.reference()["input"][:3])
    (first, second), source = input_batches(resealed(bundle), None, 32)
    np.testing.assert_array_equal(second["input"][1], first["input"][0])
    assert source["repeated_to_fill_batches"] == 1


def test_images_cannot_feed_other_networks(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"takes input, gain/stem, not one image"):
        input_batches(many_bundle(tmp_path / "b"), tmp_path, 32)


def test_inputs_that_do_not_fit_are_named(tmp_path: Path) -> None:
    bundle = many_bundle(tmp_path / "b")
    tensors = bundle.reference()
    np.savez(bundle.path / "reference.npz", **{**tensors, "gain/stem": tensors["gain/stem"][:1]})
    with pytest.raises(InputError, match=r"'(gain/stem|input)' must be"):
        input_batches(resealed(bundle), None, 32)
    del tensors["gain/stem"]
    np.savez(bundle.path / "reference.npz", **tensors)
    with pytest.raises(BundleError, match="lacks gain/stem"):
        input_batches(resealed(bundle), None, 32)


def test_forced_masks_are_drawn_anew_for_every_rate_and_input(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b")
    batches, _ = input_batches(bundle, None, 32)
    configurations = forced_configurations(bundle.manifest.masks, batches, Schedule((0.5, 0.25, 0.5)))
    assert [entry.rate for entry in configurations] == [0.5, 0.25]
    for entry in configurations:
        assert len(entry.masks) == 4
        assert [feeds is batches[index % len(batches)] for index, feeds in enumerate(entry.feeds)] == [True] * 4
        assert all(mask.mean() == entry.rate for masks in entry.masks for mask in masks.values())
    drawn = {entry.masks[draw]["mask/layer1.0/spatial"].tobytes() for entry in configurations for draw in range(4)}
    assert len(drawn) == 8
    own = own_configuration(batches, configurations[0].masks[: len(batches)])
    assert (own.kind, own.rate, own.label) == ("data", 0.5, "the data's own masks")


def test_a_network_of_many_inputs_and_outputs_is_profiled(tmp_path: Path) -> None:
    bundle = many_bundle(tmp_path / "b", mode="both", batch=2)
    profile = profile_bundle(bundle, rates=(0.5,), repeats=2, warmup=1, native="off")
    assert profile.batch == 2 and len(profile.rates[0].ratios) == 2
    assert [block.name for block in profile.data.blocks] == ["layer1.0", "layer2.0"]
    with pytest.raises(UsageError, match="not one image"):
        profile_bundle(bundle, data=tmp_path, repeats=2)
