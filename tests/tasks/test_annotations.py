from __future__ import annotations

import numpy as np
import pytest

from dyndeploy.tasks.annotations import boxes_around, run_lengths


def test_boxes_are_the_smallest_around_the_pixels() -> None:
    masks = np.zeros((3, 5, 7), bool)
    masks[0, 1:3, 2:6] = True
    masks[1, 4, 6] = True
    masks[2] = True
    assert boxes_around(masks).tolist() == [[2, 1, 6, 3], [6, 4, 7, 5], [0, 0, 7, 5]]
    assert boxes_around(masks[:0]).shape == (0, 4) and boxes_around(masks).dtype == np.float32


def test_runs_go_down_the_columns_and_begin_with_zeros() -> None:
    mask = np.array([[0, 1, 1], [0, 1, 0]], bool)
    assert run_lengths(mask) == {"size": [2, 3], "counts": [2, 3, 1]}
    assert run_lengths(~mask)["counts"] == [0, 2, 3, 1]
    assert run_lengths(np.ones((2, 2), bool))["counts"] == [0, 4]
    assert run_lengths(np.zeros((2, 2), bool))["counts"] == [4]


@pytest.mark.vision("pycocotools")
def test_runs_are_those_of_pycocotools() -> None:
    from pycocotools import mask as coco

    for seed in range(20):
        mask = np.random.default_rng(seed).uniform(size=(1 + seed, 13)) > 0.5
        encoded = coco.frPyObjects(run_lengths(mask), *mask.shape)
        assert np.array_equal(coco.decode(encoded), mask)
