"""The CUDA kernels that sample maps against the operators in PyTorch, with no GPU: their bodies on the host."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dyndeploy.ops import OPERATORS
from tests.ops.cases import Case, build
from tests.plugins.cuda_host import host_library, load
from tests.plugins.test_kernels_cuda import FLOAT, GUARD, HALF, QUICK, Device, Gpu, Host, integers

SAMPLING = [name for name, spec in OPERATORS.items() if spec.kind == "deformable_attention"]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return load(host_library(tmp_path_factory))


def run(backend: Any, kind: int, case: Case) -> np.ndarray:
    """One call; what lies behind the result must stay."""
    dtype = np.float16 if kind == HALF else np.float32
    shape = case.spec.infer_shape(case.shapes, case.attributes)
    memory = []
    for port, tensor in zip(case.spec.inputs, case.inputs, strict=True):
        element = {"DATA": dtype, "FLOAT": np.float32, "INDEX": np.int32}[port.element.name]
        memory.append(backend.put(tensor.numpy().astype(element)))
    y = backend.put(np.full(int(np.prod(shape)) + GUARD, np.nan, dtype))
    pointers = [ctypes.c_void_p(backend.address(part)) for part in (*memory, y)]
    backend.start()
    if case.spec.name in SAMPLING:
        batch, cells, heads, channels = case.shapes[0]
        _, queries, _, levels, points, _ = case.shapes[1]
        sizes = [batch, cells, heads, channels, queries, levels, points, *case.attributes["sizes"]]
        error = backend.library.dyn_deformable_attention(integers(sizes), kind, *pointers, backend.stream)
    else:
        maps = zip(case.shapes[:4], case.attributes["strides"], strict=True)
        sizes = [case.shapes[0][1], shape[0], shape[2]]
        sizes += [value for cells, stride in maps for value in (*cells[2:], stride)]
        tensors = (ctypes.c_void_p * 5)(*[backend.address(part) for part in (*memory[:4], y)])
        error = backend.library.dyn_regions(integers(sizes), kind, tensors, *pointers[4:6], backend.stream)
    assert error == 0
    found = backend.get(y).view(dtype)
    assert np.isnan(found[-GUARD:]).all()
    return found[:-GUARD].reshape(shape)


def check(backend: Any, kind: int, case: Case) -> np.ndarray:
    found = run(backend, kind, case)
    inputs = case.inputs
    if kind == HALF:
        inputs = tuple(
            tensor.half().float() if port.element.name == "DATA" else tensor
            for port, tensor in zip(case.spec.inputs, inputs, strict=True)
        )
    expected = Case(case.spec, inputs, case.attributes).reference().numpy()
    # A sum is rounded to half once, at the end.
    limit = 1e-3 if kind == HALF else 2e-5
    np.testing.assert_allclose(found, expected, rtol=limit, atol=limit)
    return found


@pytest.mark.parametrize("kind", [FLOAT, HALF], ids=["float", "half"])
@pytest.mark.parametrize("name", [*SAMPLING, "PyramidRoiAlign"])
@QUICK
@given(data=st.data())
def test_kernels_compute_the_operator(kernels: ctypes.CDLL, name: str, kind: int, data: st.DataObject) -> None:
    # Eight channels at a time, four, or single ones.
    channels = data.draw(st.sampled_from([8, 32, 4, 12, 1, 7]))
    case = build(
        name,
        seed=data.draw(st.integers(0, 2**31)),
        batch=data.draw(st.integers(1, 3)),
        size=(data.draw(st.integers(1, 13)), data.draw(st.integers(1, 13))),
        channels=channels,
        hidden=data.draw(st.integers(1, 40)),
        out_channels=data.draw(st.integers(1, 9)),
        stride=data.draw(st.sampled_from([1, 2, 4])),
        channel_groups=data.draw(st.integers(1, 8)),
    )
    forward, backward = (check(Host(kernels, Device(reverse=reverse)), kind, case) for reverse in (False, True))
    np.testing.assert_array_equal(forward, backward)


@pytest.mark.parametrize("channels", [600, 1100])
def test_heads_wider_than_a_block(kernels: ctypes.CDLL, channels: int) -> None:
    check(Host(kernels, Device()), FLOAT, build(SAMPLING[0], channels=channels, channel_groups=2, hidden=3))


def test_many_samples_of_a_query(kernels: ctypes.CDLL) -> None:
    """More than a block holds at a time."""
    check(Host(kernels, Device()), FLOAT, build(SAMPLING[-1], channels=1, hidden=5, stride=300))


@pytest.mark.parametrize(("stride", "size"), [(1, 3), (1, 40), (8, 7)])
def test_regions_of_many_cells_and_many_bins(kernels: ctypes.CDLL, stride: int, size: int) -> None:
    """Bins whose weights fit in no table, and those that do."""
    case = build("PyramidRoiAlign", size=(40, 56), stride=stride, hidden=20)
    check(Host(kernels, Device()), FLOAT, Case(case.spec, case.inputs, {**case.attributes, "size": size}))


def test_too_large_shapes_are_refused(kernels: ctypes.CDLL) -> None:
    none = ctypes.c_void_p()
    sizes = [1, 4, 8, 32, 2**30, 1, 4, 2, 2]
    assert kernels.dyn_deformable_attention(integers(sizes), FLOAT, none, none, none, none, none) == -1
    tensors = (ctypes.c_void_p * 5)()
    for first in ([2**20, 1, 1000], [8, 1, 0]):
        assert kernels.dyn_regions(integers([*first, *[8, 8, 4] * 4]), FLOAT, tensors, none, none, none) == -1


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [FLOAT, HALF], ids=["float", "half"])
@pytest.mark.parametrize("name", [*SAMPLING, "PyramidRoiAlign"])
def test_kernels_on_the_gpu(name: str, kind: int) -> None:
    named = os.environ.get("DYNDEPLOY_CUDA_TEST_LIBRARY")
    if named is None or not torch.cuda.is_available():
        pytest.skip("needs a GPU and DYNDEPLOY_CUDA_TEST_LIBRARY, the path of libdyndeploy_cuda_c.so")
    for seed, channels in ((0, 32), (1, 12), (2, 7)):
        case = build(name, seed=seed, batch=2, size=(40, 56), channels=channels, hidden=300, channel_groups=8)
        check(Gpu(load(named)), kind, case)
