"""Where bytes begin and end on a GPU, with no GPU: the kernels' bodies against the references, to the bit."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dyndeploy.ops.byte_conversions import dequantize, quantize
from tests.plugins.test_kernels_cuda import FLOAT, GUARD, HALF, NUMBERS, QUICK, Device, Host, kernels

__all__ = ["kernels"]


def converted(library: ctypes.CDLL, kind: int, x: np.ndarray, scale: float, offset: int, reverse: bool) -> np.ndarray:
    """Floats as bytes, or bytes as floats; tensors begin ``offset`` bytes behind an aligned address."""
    backend = Host(library, Device(87, 12, reverse=reverse))
    begins = x.dtype != np.uint8
    given_x = backend.put(x, offset)
    y = backend.put(np.full(x.size + GUARD, 0xAA, np.uint8 if begins else NUMBERS[kind]), offset)
    backend.start()
    function = library.dyn_quantize if begins else library.dyn_dequantize
    error = function(
        ctypes.c_longlong(x.size),
        kind,
        ctypes.c_void_p(backend.address(given_x)),
        ctypes.c_float(scale),
        ctypes.c_void_p(backend.address(y)),
        None,
    )
    assert error == 0
    assert (y[-GUARD:] == 0xAA).all()
    return np.asarray(y[:-GUARD])


@pytest.mark.parametrize("kind", [FLOAT, HALF], ids=["float", "half"])
@QUICK
@given(
    count=st.integers(1, 3000),
    scale=st.floats(2.0**-10, 8.0, width=32),
    offset=st.sampled_from([0, 4]),
    reverse=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_floats_become_bytes(
    kernels: ctypes.CDLL, kind: int, count: int, scale: float, offset: int, reverse: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    # Halves between two bytes, and what is cut off on both sides.
    x = (rng.integers(-20, 600, count) / 2 * scale).astype(NUMBERS[kind])
    x[rng.random(count) < 0.1] = rng.choice([np.nan, np.inf, -np.inf, -0.0])
    expected = quantize(torch.from_numpy(x.reshape(1, 1, 1, -1)), scale=scale).numpy().ravel()
    np.testing.assert_array_equal(converted(kernels, kind, x, scale, offset, reverse), expected)


@pytest.mark.parametrize("kind", [FLOAT, HALF], ids=["float", "half"])
@QUICK
@given(count=st.integers(1, 3000), scale=st.floats(2.0**-10, 8.0, width=32), offset=st.sampled_from([0, 4]))
def test_bytes_become_floats(kernels: ctypes.CDLL, kind: int, count: int, scale: float, offset: int) -> None:
    x = (np.arange(count) % 256).astype(np.uint8)
    expected = dequantize(torch.from_numpy(x.reshape(1, 1, 1, -1)), scale=scale).numpy().ravel().astype(NUMBERS[kind])
    np.testing.assert_array_equal(converted(kernels, kind, x, scale, offset, False), expected)


@pytest.mark.parametrize("kind", [FLOAT, HALF], ids=["float", "half"])
def test_bytes_survive_the_way_through_floats(kernels: ctypes.CDLL, kind: int) -> None:
    """What TensorRT's own layers hand on in half is the same byte again: half keeps 11 digits."""
    x = np.arange(256).astype(np.uint8)
    for scale in (1.0, 0.0371, 3.3e-3, 7.9):
        floats = converted(kernels, kind, x, scale, 0, False)
        np.testing.assert_array_equal(converted(kernels, kind, floats, scale, 0, False), x)
