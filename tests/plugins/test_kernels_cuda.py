"""The CUDA kernels against PyTorch, with no GPU: the same bodies, compiled for the host."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dyndeploy.ops import channel_bottleneck, layer_bottleneck, spatial_bottleneck, spatial_channel_bottleneck
from dyndeploy.ops.base import OperatorSpec
from tests.plugins.reference import Layer, bottleneck, channel_logits, random_weights, spatial_logits

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "plugins" / "kernels" / "cuda"
INTERFACE = Path(__file__).with_name("kernels_cuda_c.cpp")
COMPILER = shutil.which(os.environ.get("CXX", "c++"))
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler: the host build of the CUDA kernels")

Arrays = dict[str, np.ndarray]
FLOAT, HALF = 0, 1
QUICK = settings(
    deadline=None,
    max_examples=30,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@dataclass(frozen=True)
class Device:
    """What the host plays. ``processors`` decides the sizes of tiles: few take large ones, many take small ones."""

    capability: int = 62
    processors: int = 2
    reverse: bool = False


# Every kind of arithmetic with tiles of every size.
DEVICES = [Device(53, 1), Device(62, 12), Device(62, 500), Device(87, 1), Device(90, 12), Device(90, 500)]


def build(folder: Path) -> Path:
    """The kernels and their C interface as a library for this machine."""
    library = folder / "libdyndeploy_cuda_host.so"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            assert COMPILER is not None
            sources = [*sorted(KERNELS.glob("*.cu")), *sorted((KERNELS / "host").glob("*.cpp")), INTERFACE]
            partial = library.with_suffix(".partial")
            command = [COMPILER, "-std=c++14", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-fvisibility=hidden"]
            command += [f"-I{KERNELS}", "-DDYNDEPLOY_CUDA_HOST", "-x", "c++", *map(str, sources), "-o", str(partial)]
            subprocess.run(command, check=True, timeout=300)
            partial.replace(library)
    return library


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The library; one build for all workers of a test run."""
    given_library = os.environ.get("DYNDEPLOY_CUDA_HOST_LIBRARY")
    if given_library is None:
        files = sorted([*KERNELS.rglob("*.h"), *KERNELS.rglob("*.cu"), *KERNELS.rglob("*.cpp"), INTERFACE])
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
        base = tmp_path_factory.getbasetemp()
        folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / f"cuda-host-{digest}"
        folder.mkdir(exist_ok=True)
        given_library = str(build(folder))
    library = ctypes.CDLL(given_library)
    library.dyn_check_bottleneck.restype = ctypes.c_char_p
    library.dyn_bottleneck_workspace.restype = ctypes.c_size_t
    library.dyn_channel_masker_workspace.restype = ctypes.c_size_t
    return library


def aligned(array: np.ndarray, offset: int = 0) -> np.ndarray:
    """A contiguous copy that starts ``offset`` bytes behind a multiple of 64."""
    memory = np.zeros(array.nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    copy: np.ndarray = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def pointer(array: np.ndarray | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if array is None else array.ctypes.data)


def integers(values: list[int]) -> Any:
    return (ctypes.c_int * len(values))(*values)


def sizes_of(layer: Layer, x: np.ndarray, spatial: np.ndarray | None, channel: np.ndarray | None) -> list[int]:
    batch, height, width, inputs = x.shape
    mask = (0, 0) if spatial is None else spatial.shape[2:]
    return [
        *(batch, height, width, inputs, layer.middle, layer.outputs, layer.groups, layer.stride, layer.dilation),
        *(int(layer.projection), *mask, 0 if channel is None else channel.shape[1]),
    ]


def packed(layer: Layer, weights: Arrays, dtype: type) -> Arrays:
    """Weights in the layout of kernels.h, and the constants of channel skipping."""
    groups, width = layer.groups, layer.middle // layer.groups
    w2 = weights["w2"].reshape(groups, width, width, 9).transpose(0, 3, 2, 1).reshape(groups, 9 * width, width)
    out = {"w1": weights["w1"].T, "w2": w2, "w3": weights["w3"].T}
    if layer.projection:
        out["wd"] = weights["wd"].T
    out = {name: value.astype(dtype) for name, value in out.items()}
    out.update({name: value for name, value in weights.items() if name.startswith("b")})
    constant = np.maximum(weights["b1"].astype(np.float64), 0).reshape(groups, 1, width, 1, 1)
    taps = (weights["w2"].astype(np.float64).reshape(groups, width, width, 3, 3) * constant).sum(2)
    taps = taps.reshape(layer.middle, 3, 3)
    border = np.zeros((16, layer.middle))
    for bits in range(16):
        rows = slice(bits & 1, 3 - (bits >> 1 & 1))
        columns = slice(bits >> 2 & 1, 3 - (bits >> 3 & 1))
        border[bits] = weights["b2"] + taps[:, rows, columns].sum((1, 2))
    out["border_bias"] = border.astype(np.float32)
    hidden = np.maximum(weights["b2"].astype(np.float64), 0)
    out["skipped_output"] = (weights["b3"] + weights["w3"].astype(np.float64) @ hidden).astype(np.float32)
    return out


def run_bottleneck(
    kernels: ctypes.CDLL,
    device: Device,
    kind: int,
    layer: Layer,
    x: np.ndarray,
    weights: Arrays,
    spatial: np.ndarray | None = None,
    channel: np.ndarray | None = None,
    offset: int = 0,
) -> np.ndarray:
    """y; workspace and y are filled with NaN before the call, and what stands behind them must stay."""
    dtype = np.float16 if kind == HALF else np.float32
    sizes = integers(sizes_of(layer, x, spatial, channel))
    message = kernels.dyn_check_bottleneck(sizes, kind)
    assert message is None, message
    arrays = packed(layer, weights, dtype)
    arrays["x"] = x.astype(dtype)
    arrays = {name: aligned(value, offset if value.dtype == dtype else 0) for name, value in arrays.items()}
    _, height, width, _ = x.shape
    shape = (len(x), (height - 1) // layer.stride + 1, (width - 1) // layer.stride + 1, layer.outputs)
    guard = 64
    y = aligned(np.full(int(np.prod(shape)) + guard, np.nan, dtype), offset)
    bytes_needed = kernels.dyn_bottleneck_workspace(sizes, kind)
    workspace = aligned(np.full(bytes_needed + guard, 0xFF, np.uint8))
    masks = [None if mask is None else aligned(mask) for mask in (spatial, channel)]
    names = ("w1", "w2", "w3", "wd", "b1", "b2", "b3", "bd", "border_bias", "skipped_output")
    tensors = [arrays["x"], *masks, *(arrays.get(name) for name in names), y]
    if channel is None:
        tensors[11] = tensors[12] = None
    pointers = (ctypes.c_void_p * len(tensors))(*(pointer(t).value for t in tensors))
    kernels.dyn_host_device(device.capability, device.processors, int(device.reverse))
    assert kernels.dyn_bottleneck(sizes, kind, pointers, pointer(workspace), None) == 0
    assert (workspace[bytes_needed:] == 0xFF).all()
    assert np.isnan(y[-guard:]).all()
    return y[:-guard].reshape(shape)


def rounded(weights: Arrays, kind: int) -> Arrays:
    """Weights as the kernels see them."""
    if kind == FLOAT:
        return weights
    return {
        name: value if name.startswith("b") else value.astype(np.float16).astype(np.float32)
        for name, value in weights.items()
    }


def tolerance(kind: int, device: Device) -> float:
    """Of the largest output. Half: hidden maps are rounded twice; lanes also round sums of 16 products."""
    return 2e-5 if kind == FLOAT else 3e-3 if device.capability >= 70 else 6e-3


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    # Multiples of 8 take the vector paths of both types, multiples of 4 that of floats only.
    unit = draw(st.sampled_from([8, 8, 8, 4, 1]))
    projection = draw(st.booleans())
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    inputs = unit * draw(st.integers(1, 72 // unit))
    return Layer(
        inputs=inputs,
        middle=groups * unit * draw(st.integers(1, max(1, 80 // unit // groups))),
        outputs=unit * draw(st.integers(1, 72 // unit)) if projection else inputs,
        stride=draw(st.integers(1, 2)) if projection else 1,
        dilation=draw(st.integers(1, 3)),
        groups=groups,
        projection=projection,
    )


@dataclass(frozen=True)
class Case:
    layer: Layer
    x: np.ndarray
    weights: Arrays
    spatial: np.ndarray | None
    channel: np.ndarray | None


@st.composite
def cases(draw: st.DrawFn) -> Case:
    layer = draw(layers())
    mode = draw(st.sampled_from(["spatial", "layer", "channel", "both", "dense"]))
    batch, height, width = draw(st.integers(1, 3)), draw(st.integers(1, 11)), draw(st.integers(1, 11))
    rate = draw(st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = np.abs(rng.standard_normal((batch, height, width, layer.inputs))).astype(np.float16).astype(np.float32)
    spatial = channel = None
    if mode in ("spatial", "layer", "both"):
        size = (1, 1)
        if mode != "layer":
            out = (height - 1) // layer.stride + 1, (width - 1) // layer.stride + 1
            size = (draw(st.integers(1, out[0])), draw(st.integers(1, out[1])))
        spatial = (rng.random((batch, 1, *size)) < rate).astype(np.float32)
    if mode in ("channel", "both"):
        divisors = [d for d in range(1, layer.middle + 1) if layer.middle % d == 0]
        channel = (rng.random((batch, draw(st.sampled_from(divisors)))) < rate).astype(np.float32)
    return Case(layer, x, random_weights(layer, rng), spatial, channel)


def check(kernels: ctypes.CDLL, device: Device, kind: int, case: Case, offset: int = 0) -> np.ndarray:
    y = run_bottleneck(
        kernels, device, kind, case.layer, case.x, case.weights, case.spatial, case.channel, offset
    )
    expected = bottleneck(case.layer, rounded(case.weights, kind), case.x, case.spatial, case.channel)
    scale = max(1.0, float(np.abs(expected).max()))
    worst = float(np.abs(y.astype(np.float64) - expected).max())
    assert worst <= tolerance(kind, device) * scale, worst / scale
    return y


@pytest.mark.parametrize("kind", [FLOAT, HALF], ids=["float", "half"])
@pytest.mark.parametrize("device", DEVICES, ids=lambda d: f"sm{d.capability}x{d.processors}")
@QUICK
@given(case=cases())
def test_bottlenecks(kernels: ctypes.CDLL, device: Device, kind: int, case: Case) -> None:
    check(kernels, device, kind, case)
