"""Transformed weights of a 3x3, and which layers have them."""

from __future__ import annotations

import numpy as np
import pytest

from dyndeploy.ops import OPERATORS
from dyndeploy.ops._winograd import fits, transform_w2, transforms

INPUTS = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
OUTPUTS = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])


def test_products_of_transformed_patches_are_the_convolution() -> None:
    rng = np.random.default_rng(0)
    weight, patch = rng.standard_normal((5, 5, 3, 3)), rng.standard_normal((4, 4, 5))
    rows = transform_w2(weight)
    assert rows.shape == (80, 5)
    transformed = np.einsum("ia,jb,abx->ijx", INPUTS, INPUTS, patch)
    products = np.einsum("ijx,ijxo->ijo", transformed, rows.reshape(4, 4, 5, 5))
    found = np.einsum("yi,xj,ijo->yxo", OUTPUTS, OUTPUTS, products)
    expected = [[np.einsum("abi,oiab->o", patch[y : y + 3, x : x + 3], weight) for x in range(2)] for y in range(2)]
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("hidden", "group", "stride", "dilation", "expected"),
    [
        (64, 1, 1, 1, True), (256, 1, 1, 1, True), (56, 1, 1, 1, False), (512, 1, 1, 1, False), (68, 1, 1, 1, False),
        (64, 2, 1, 1, False), (64, 1, 2, 1, False), (64, 1, 1, 2, False),
    ],
)  # fmt: skip
def test_which_layers_have_them(hidden: int, group: int, stride: int, dilation: int, expected: bool) -> None:
    assert transforms(hidden, group, stride, dilation) is expected


def test_patches_must_be_active_as_a_whole() -> None:
    assert fits(14, 14, 7, 7) and fits(56, 28, 14, 1) and fits(14, 14, 1, 1)
    assert not fits(14, 14, 14, 14) and not fits(7, 7, 1, 1) and not fits(12, 12, 4, 4)


def test_they_stand_behind_the_weights() -> None:
    rng = np.random.default_rng(1)
    w2 = rng.standard_normal((64, 64, 3, 3)).astype(np.float32)
    weights = {
        "w1": np.zeros((64, 8)), "b1": np.zeros(64), "w2": w2, "b2": np.zeros(64), "w3": np.zeros((8, 64)),
        "b3": np.zeros(8),
    }  # fmt: skip
    attributes = {"group": 1, "strides": [1, 1], "dilations": [1, 1], "pads": [1] * 4}
    for name, rows in (("SpatialBottleneck", 25), ("ChannelBottleneck", 9), ("SpatialChannelBottleneck", 9)):
        kernel = OPERATORS[name].kernels["tensorrt"]
        assert kernel.pack is not None
        packed = kernel.pack(weights, attributes)["w2"]
        assert packed.shape == (1, rows * 64, 64)
        assert packed.dtype == np.float32
        np.testing.assert_array_equal(packed[0, 64 * 4 : 64 * 5], w2[:, :, 1, 1].T)
        if rows == 25:
            np.testing.assert_array_equal(packed[0, 9 * 64 :], transform_w2(w2))
