"""The CUDA kernels against PyTorch, with no GPU: the same bodies, compiled for the host."""

from __future__ import annotations

import ctypes
import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dyndeploy.ops import OPERATORS, OperatorSpec, Role, registry
from dyndeploy.ops._winograd import transforms
from dyndeploy.ops.gates import CHANNEL
from dyndeploy.ops.masks import dilate_mask, upsample_mask
from tests.ops.cases import QUANTIZED
from tests.plugins.cuda_host import host_library, load
from tests.plugins.reference import Layer, bottleneck, channel_logits, random_weights, spatial_logits

Arrays = dict[str, np.ndarray]
FLOAT, HALF, BYTE = 0, 1, 2
NUMBERS = {FLOAT: np.float32, HALF: np.float16, BYTE: np.uint8}
QUICK = settings(
    deadline=None,
    max_examples=30,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@dataclass(frozen=True)
class Device:
    """What the host or a GPU plays. ``processors`` decides the sizes of tiles: few take large ones, many small ones.

    ``tiles`` forces a size: 1 small, 2 medium, 3 large, 4 tiny. On a GPU 0 stands for its own capability and
    processors. ``planned`` is the largest batch of the engine that it plays, 0 for none: on sm_90 a large one takes
    products by warpgroups.
    """

    capability: int = 62
    processors: int = 2
    reverse: bool = False
    tiles: int = 0
    planned: int = 0

    def __str__(self) -> str:
        return f"sm{self.capability}x{self.processors}" + (f"planned{self.planned}" if self.planned else "")


# Every kind of arithmetic with tiles of every size.
DEVICES = [
    Device(53, 1),
    Device(62, 12),
    Device(62, 500),
    Device(75, 12),
    Device(87, 1),
    Device(90, 12),
    Device(90, 500),
    Device(90, 1, planned=4096),
]


def aligned(array: np.ndarray, offset: int = 0) -> np.ndarray:
    """A contiguous copy that starts ``offset`` bytes behind a multiple of 64."""
    memory = np.zeros(array.nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    copy: np.ndarray = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class Host:
    """The kernels on this machine's memory."""

    def __init__(self, library: ctypes.CDLL, device: Device) -> None:
        self.library = library
        self.stream = None
        self._device = device

    def put(self, array: np.ndarray, offset: int = 0) -> np.ndarray:
        return aligned(array, offset)

    def address(self, memory: Any) -> int:
        return int(memory.ctypes.data)

    def get(self, memory: Any) -> np.ndarray:
        return np.asarray(memory)

    def start(self) -> None:
        device = self._device
        self.library.dyn_host_device(device.capability, device.processors, device.tiles, int(device.reverse))
        self.library.dyn_plan_batch(device.planned)


class Gpu:
    """The kernels on a GPU's memory, on PyTorch's current stream."""

    def __init__(self, library: ctypes.CDLL, tiles: int = 0, planned: int = 0) -> None:
        self.library = library
        self._planned = planned
        self.stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        self._tiles = tiles
        # A build that has FP16 on lanes only plays a board that has no tensor cores.
        self.capability = int(library.dyn_capability()) if hasattr(library, "dyn_capability") else 0

    def put(self, array: np.ndarray, offset: int = 0) -> torch.Tensor:
        raw = np.concatenate([np.zeros(offset, np.uint8), np.frombuffer(array.tobytes(), np.uint8)])
        memory = torch.from_numpy(raw).cuda()[offset:]
        numbers: torch.dtype = getattr(torch, array.dtype.name)
        return memory.view(numbers) if offset == 0 or numbers == torch.uint8 else memory

    def address(self, memory: Any) -> int:
        return int(memory.data_ptr())

    def get(self, memory: Any) -> np.ndarray:
        return np.asarray(memory.cpu().numpy())

    def start(self) -> None:
        self.library.dyn_plan_batch(self._planned)
        if hasattr(self.library, "dyn_play_device"):
            self.library.dyn_play_device(self.capability, 0, self._tiles)
        elif self._tiles:
            pytest.skip("this build of the library takes the tiles that fit best")


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The host's library."""
    return load(host_library(tmp_path_factory))


@pytest.fixture(scope="session")
def gpu() -> Gpu:
    """The library of the GPU: the CMake target dyndeploy_cuda_c."""
    named = os.environ.get("DYNDEPLOY_CUDA_TEST_LIBRARY")
    if named is None or not torch.cuda.is_available():
        pytest.skip("needs a GPU and DYNDEPLOY_CUDA_TEST_LIBRARY, the path of libdyndeploy_cuda_c.so")
    return Gpu(load(named))


def integers(values: list[int]) -> Any:
    return (ctypes.c_int * len(values))(*values)


def sizes_of(
    layer: Layer,
    x: np.ndarray,
    spatial: np.ndarray | None,
    channel: np.ndarray | None,
    pool_active: bool = True,
    winograd: bool = False,
) -> list[int]:
    batch, height, width, inputs = x.shape
    mask = (0, 0) if spatial is None else spatial.shape[2:]
    return [
        *(batch, height, width, inputs, layer.middle, layer.outputs, layer.groups, layer.stride, layer.dilation),
        *(int(layer.projection), *mask, 0 if channel is None else channel.shape[1], layer.squeeze, int(pool_active)),
        int(winograd),
    ]


TRANSFORM = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])


def packed(layer: Layer, weights: Arrays, dtype: type, winograd: bool = False) -> Arrays:
    """Weights in the layout of kernels.h, and the constants of channel skipping."""
    groups, width = layer.groups, layer.middle // layer.groups
    w2 = weights["w2"].reshape(groups, width, width, 9).transpose(0, 3, 2, 1).reshape(groups, 9 * width, width)
    if winograd:
        places = np.einsum("ia,jb,oxab->ijxo", TRANSFORM, TRANSFORM, weights["w2"])
        w2 = np.concatenate([w2, places.reshape(1, 16 * width, width)], 1)
    out = {"w1": weights["w1"].T, "w2": w2, "w3": weights["w3"].T}
    out.update({name: weights[name].T for name in ("wd", "ws", "we") if name in weights})
    out = {name: value.astype(dtype) for name, value in out.items()}
    out.update({name: value for name, value in weights.items() if name.startswith("b")})
    if layer.squeeze:
        return out
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


@dataclass(frozen=True)
class Case:
    layer: Layer
    x: np.ndarray
    weights: Arrays
    spatial: np.ndarray | None = None
    channel: np.ndarray | None = None
    pool_active: bool = True
    winograd: bool = False


GUARD = 64  # elements behind y and bytes behind the workspace, which must stay


class Prepared:
    """A call of ``dyn_bottleneck``; y and the workspace hold NaN before it."""

    def __init__(self, backend: Host | Gpu, kind: int, case: Case, offset: int = 0) -> None:
        dtype = np.float16 if kind == HALF else np.float32
        layer, x = case.layer, case.x
        self._backend, self._kind = backend, kind
        self._sizes = integers(sizes_of(layer, x, case.spatial, case.channel, case.pool_active, case.winograd))
        message = backend.library.dyn_check_bottleneck(self._sizes, kind)
        assert message is None, message
        arrays = packed(layer, case.weights, dtype, case.winograd)
        arrays["x"] = x.astype(dtype)
        memory = {
            n: backend.put(v, offset if n in ("x", "w1", "w2", "w3", "wd", "ws", "we") else 0)
            for n, v in arrays.items()
        }
        _, height, width, _ = x.shape
        self._shape = (len(x), (height - 1) // layer.stride + 1, (width - 1) // layer.stride + 1, layer.outputs)
        self._y = backend.put(np.full(int(np.prod(self._shape)) + GUARD, np.nan, dtype), offset)
        backend.start()
        self._bytes = backend.library.dyn_bottleneck_workspace(self._sizes, kind)
        self._workspace = backend.put(np.full(self._bytes + GUARD, 0xFF, np.uint8))
        self.masks = [None if mask is None else backend.put(mask) for mask in (case.spatial, case.channel)]
        names = ("w1", "w2", "w3", "wd", "b1", "b2", "b3", "bd", "border_bias", "skipped_output")
        self._tensors = [memory["x"], *self.masks, *(memory.get(name) for name in names), self._y]
        self._tensors += [memory.get(name) for name in ("ws", "we", "bs", "be")]
        if case.channel is None:
            self._tensors[11] = self._tensors[12] = None
        addresses = [None if t is None else backend.address(t) for t in self._tensors]
        self._pointers = (ctypes.c_void_p * len(addresses))(*addresses)

    def run(self) -> None:
        backend = self._backend
        backend.start()
        workspace = ctypes.c_void_p(backend.address(self._workspace))
        stream = backend.stream
        error = backend.library.dyn_bottleneck(self._sizes, self._kind, self._pointers, workspace, stream)
        assert error == 0

    def workspace(self) -> np.ndarray:
        return self._backend.get(self._workspace)[: self._bytes]

    def result(self) -> np.ndarray:
        y = self._backend.get(self._y)
        y = y.view(np.float16 if self._kind == HALF else np.float32)
        assert (self._backend.get(self._workspace)[self._bytes :] == 0xFF).all()
        assert np.isnan(y[-GUARD:]).all()
        return y[:-GUARD].reshape(self._shape)


def run_bottleneck(backend: Host | Gpu, kind: int, case: Case, offset: int = 0) -> np.ndarray:
    call = Prepared(backend, kind, case, offset)
    call.run()
    return call.result()


def rounded(weights: Arrays, kind: int) -> Arrays:
    """Weights as the kernels see them."""
    if kind == FLOAT:
        return weights
    return {
        name: value if name.startswith("b") else value.astype(np.float16).astype(np.float32)
        for name, value in weights.items()
    }


def reference(case: Case, kind: int = FLOAT) -> np.ndarray:
    weights = rounded(case.weights, kind)
    return bottleneck(case.layer, weights, case.x, case.spatial, case.channel, pool_active=case.pool_active)


def tolerance(kind: int, capability: int) -> float:
    """Of the largest output. Halves: hidden maps are rounded twice; lanes also round sums of 64 products.

    Where there are tensor cores, few channels still go to lanes.
    """
    return 2e-5 if kind == FLOAT else 4e-3 if capability >= 70 else 6e-3


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    # Multiples of 8 take the vector paths of both types, multiples of 4 that of floats only.
    unit = draw(st.sampled_from([8, 8, 8, 4, 1]))
    projection = draw(st.booleans())
    # Several groups of fewer than 32 channels have a kernel of their own.
    groups = draw(st.sampled_from([1, 1, 2, 3, 7]))
    inputs = unit * draw(st.integers(1, 72 // unit))
    return Layer(
        inputs=inputs,
        middle=groups * unit * draw(st.integers(1, max(1, 80 // unit // groups))),
        outputs=unit * draw(st.integers(1, 72 // unit)) if projection else inputs,
        stride=draw(st.integers(1, 2)) if projection else 1,
        dilation=draw(st.integers(1, 3)),
        groups=groups,
        projection=projection,
        squeeze=draw(st.sampled_from([0, 0, 1, 7, 33])),
    )


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
    return Case(layer, x, random_weights(layer, rng), spatial, channel, draw(st.booleans()))


def check(backend: Host | Gpu, kind: int, case: Case, allowed: float, offset: int = 0) -> np.ndarray:
    y = run_bottleneck(backend, kind, case, offset)
    expected = reference(case, kind)
    scale = max(1.0, float(np.abs(expected).max()))
    worst = float(np.abs(y.astype(np.float64) - expected).max())
    assert worst <= allowed * scale, worst / scale
    return y


def stand_in(kind: int, case: Case, rates: list[int], host: Host) -> tuple[Prepared, int]:
    """A call whose masks are those of timing, made in its workspace; 1 where they are."""
    call = Prepared(host, kind, case)
    host.start()
    workspace = ctypes.c_void_p(host.address(call._workspace))
    made = host.library.dyn_stand_in_masks(call._sizes, kind, integers(rates), call._pointers, workspace, None)
    return call, int(made)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", [FLOAT, HALF], ids=["float", "half"])
@pytest.mark.parametrize("batch", [1, 3])
def test_masks_for_timing_have_the_planned_rate(kernels: ctypes.CDLL, kind: int, batch: int, reverse: bool) -> None:
    """What lies in the masks is not read: here NaN, of which the kernels would compute nothing."""
    layer = Layer(inputs=16, middle=16, outputs=16, stride=1, dilation=1, groups=1, projection=False)
    rng = np.random.default_rng(batch)
    host = Host(kernels, Device(87, 4, reverse))
    x = np.abs(rng.standard_normal((batch, 12, 12, 16))).astype(np.float16).astype(np.float32)
    weights = random_weights(layer, rng)
    nothing = np.full((batch, 1, 12, 12), np.nan, np.float32), np.full((batch, 8), np.nan, np.float32)
    for rate in (1, 100, 250, 500, 999, 1000):
        call, made = stand_in(kind, Case(layer, x, weights, *nothing), [rate, rate], host)
        assert made == 1
        masks = [
            np.ctypeslib.as_array(ctypes.cast(call._pointers[place], ctypes.POINTER(ctypes.c_float)), mask.shape).copy()
            for place, mask in zip((1, 2), nothing, strict=True)
        ]
        for mask in masks:
            assert set(np.unique(mask)) <= {0.0, 1.0}
            assert mask.sum() == max(1, np.floor(mask.size * rate / 1000 + 0.5))
        if rate == 250:
            assert dilate_mask(torch.from_numpy(masks[0]), 12, 12, 1, 1).mean() > 0.8, "patches are spread"
            assert masks[0].reshape(batch, -1).mean(1) == pytest.approx(0.25, abs=0.03), "over all samples"
        call.run()
        expected = run_bottleneck(host, kind, Case(layer, x, weights, *masks))
        assert (call.result() == expected).all(), rate


def test_masks_for_timing_leave_alone_what_they_should(kernels: ctypes.CDLL) -> None:
    layer = Layer(inputs=8, middle=1, outputs=8, stride=1, dilation=1, groups=1, projection=False)
    rng = np.random.default_rng(0)
    host = Host(kernels, Device())
    weights = random_weights(layer, rng)
    x = np.ones((1, 1, 1, 8), np.float32)
    spatial, channel = np.ones((1, 1, 1, 1), np.float32), np.ones((1, 1), np.float32)
    assert stand_in(FLOAT, Case(layer, x, weights, spatial, channel), [0, 0], host)[1] == 0, "no rates"
    assert stand_in(FLOAT, Case(layer, x, weights), [500, 500], host)[1] == 0, "no masks"
    assert stand_in(HALF, Case(layer, x, weights, spatial, channel), [500, 500], host)[1] == 0, "no room"
    call, made = stand_in(FLOAT, Case(layer, x, weights, spatial, channel), [500, 0], host)
    assert made == 1 and call._pointers[2] == host.address(call.masks[1]), "one of two"


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_the_kernels_say_which_tiles_they_take(kernels: ctypes.CDLL, device: Device) -> None:
    sizes = [1, 14, 14, 1024, 256, 1024, 1, 1, 1, 0, 7, 7, 0, 0, 1, 0]
    found = integers([0] * 9)
    lanes, half_lanes = {(16, 64), (64, 64), (128, 64)}, {(16, 64), (32, 64), (56, 64), (64, 64)}
    tensors = {(16, 32), (32, 64), (64, 64), (128, 128) if device.capability >= 90 else (96, 128)}
    tensors = tensors if device.capability >= 80 else {(32, 32), (64, 64), (128, 128)}
    if device.planned:
        tensors = {(rows, columns) for rows in (64, 128) for columns in (64, 128, 256)}
    known = {FLOAT: lanes, HALF: tensors if device.capability >= 70 else half_lanes}
    Host(kernels, device).start()
    for kind in (FLOAT, HALF):
        kernels.dyn_bottleneck_choice(integers(sizes), kind, device.capability, device.processors, found)
        vector, tensor_cores, *tiles, winograd = list(found)
        assert vector == (8 if kind == HALF else 4)
        assert bool(tensor_cores) == (kind == HALF and device.capability >= 70)
        assert set(zip(tiles[:3], tiles[3:], strict=True)) <= known[kind]
        assert not winograd
        assert tensor_cores >> 1 == (7 if kind == HALF and device.planned else 0), "layers by warpgroups"
        current = integers([0] * 9)
        kernels.dyn_bottleneck_choice(integers(sizes), kind, 0, 0, current)
        assert list(current) == list(found), "the current device"
    # Few processors have more work each than small tiles are good for; many are kept busy by small ones only.
    assert device.processors not in (1, 500) or (tiles[0] > 32) == (device.processors == 1)
    kernels.dyn_bottleneck_choice(integers([*sizes[:3], 1023, *sizes[4:]]), HALF, device.capability, 1, found)
    assert found[0] == 1 and not found[1], "a channel count that fits no vectors"


def test_tiles_have_few_rows_where_masks_leave_few(kernels: ctypes.CDLL) -> None:
    """At 7x7 one tile of 56 rows holds all pixels: it would skip nothing. Without a mask it has nothing to skip."""
    found = integers([0] * 9)
    sizes = [1, 7, 7, 2048, 512, 2048, 1, 1, 1, 0, 7, 7, 0, 0, 1, 0]
    kernels.dyn_bottleneck_choice(integers(sizes), HALF, 53, 1, found)
    assert list(found)[3] == 32, "conv2 of active pixels alone"
    kernels.dyn_bottleneck_choice(integers([*sizes[:10], 0, 0, *sizes[12:]]), HALF, 53, 1, found)
    assert list(found)[3] == 56, "49 rows"


@pytest.mark.parametrize("kind", [FLOAT, HALF], ids=["float", "half"])
@pytest.mark.parametrize("device", DEVICES, ids=str)
@QUICK
@given(case=cases())
def test_bottlenecks(kernels: ctypes.CDLL, device: Device, kind: int, case: Case) -> None:
    check(Host(kernels, device), kind, case, tolerance(kind, device.capability))


def example(
    layer: Layer, batch: int = 2, size: tuple[int, int] = (9, 7), rate: float = 0.5, channel_groups: int = 0
) -> Case:
    rng = np.random.default_rng(7)
    x = np.abs(rng.standard_normal((batch, *size, layer.inputs))).astype(np.float16).astype(np.float32)
    out = [(n - 1) // layer.stride + 1 for n in size]
    spatial = (rng.random((batch, 1, *out)) < rate).astype(np.float32)
    channel = (rng.random((batch, channel_groups)) < rate).astype(np.float32) if channel_groups else None
    return Case(layer, x, random_weights(layer, rng), spatial, channel)


def patches(layer: Layer, side: int, **options: Any) -> Case:
    """One whose masks have patches of so many pixels, and whose weights are transformed besides."""
    case = example(layer, **options)
    assert case.spatial is not None
    return replace(case, spatial=np.ascontiguousarray(case.spatial[:, :, ::side, ::side]), winograd=True)


LARGE = [
    example(Layer(144, 136, 144), size=(14, 14)),
    example(Layer(136, 144, 264, stride=2, projection=True), size=(15, 13), rate=0.3),
    example(Layer(144, 144, 144, groups=3), batch=3, rate=0.8),
    example(Layer(136, 136, 136, dilation=2), size=(14, 14), channel_groups=68),
    example(Layer(136, 144, 152, stride=2, projection=True), batch=3, channel_groups=18),
    example(Layer(72, 96, 72, groups=4), channel_groups=48),
    # Narrow groups; masks whose groups cross those of the 3x3; a squeeze wider than a block, many channels.
    replace(example(Layer(48, 96, 48, groups=12, squeeze=12), size=(14, 13), channel_groups=32), pool_active=False),
    example(Layer(72, 96, 120, stride=2, groups=4, projection=True, squeeze=33), batch=3, size=(15, 13)),
    replace(example(Layer(64, 272, 64, groups=2, squeeze=70), batch=4, rate=0.02), pool_active=False),
    example(Layer(64, 168, 64, groups=3, squeeze=8), batch=3, rate=0.3, channel_groups=84),
    # Winograd: of patches of 2 and 4 pixels, of whole samples, of all; the last one's patches are none of 2 x 2.
    patches(Layer(72, 64, 72), 4, size=(12, 16)),
    patches(Layer(72, 144, 136, projection=True), 2, batch=3, size=(14, 18), rate=0.3),
    patches(Layer(24, 80, 24), 14, batch=3, size=(14, 14)),
    replace(patches(Layer(40, 72, 40), 2, size=(6, 10)), spatial=None),
    patches(Layer(24, 64, 24), 3, size=(12, 12)),
]


@pytest.mark.parametrize("kind", [FLOAT, HALF], ids=["float", "half"])
@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("case", range(len(LARGE)))
def test_several_tiles_and_strips(kernels: ctypes.CDLL, device: Device, kind: int, case: int) -> None:
    y = check(Host(kernels, device), kind, LARGE[case], tolerance(kind, device.capability))
    turned = run_bottleneck(Host(kernels, replace(device, reverse=True)), kind, LARGE[case])
    np.testing.assert_array_equal(turned, y, "the order of threads or blocks shows in the result")


@pytest.mark.parametrize("kind", [FLOAT, HALF], ids=["float", "half"])
@pytest.mark.parametrize("case", range(len(LARGE)))
def test_a_sample_has_the_same_bits_alone_and_in_any_tile(kernels: ctypes.CDLL, kind: int, case: int) -> None:
    together = LARGE[case]
    y = run_bottleneck(Host(kernels, Device(62, 1)), kind, together)
    for n in range(len(y)):
        alone = replace(
            together,
            x=together.x[n : n + 1],
            spatial=None if together.spatial is None else together.spatial[n : n + 1],
            channel=None if together.channel is None else together.channel[n : n + 1],
        )
        np.testing.assert_array_equal(run_bottleneck(Host(kernels, Device(62, 500)), kind, alone)[0], y[n])


@pytest.mark.parametrize("kind", [FLOAT, HALF], ids=["float", "half"])
@pytest.mark.parametrize("capability", [62, 75, 90])
@pytest.mark.parametrize("case", range(len(LARGE)))
def test_the_size_of_a_tile_changes_no_bit(kernels: ctypes.CDLL, capability: int, kind: int, case: int) -> None:
    first, *others = (
        run_bottleneck(Host(kernels, Device(capability, tiles=tiles)), kind, LARGE[case]) for tiles in (1, 2, 3, 4)
    )
    for other in others:
        np.testing.assert_array_equal(other, first)


PRODUCTS, MOST_CANDIDATES = 4, 8


@contextmanager
def asked(library: ctypes.CDLL, sizes: Sequence[int]) -> Iterator[None]:
    """The size of the tiles of each product, as :class:`Device` numbers them, in this thread's runs."""
    library.dyn_tiles(integers([*sizes]))
    try:
        yield
    finally:
        library.dyn_tiles(integers([0] * PRODUCTS))


def candidates_of(function: Any, *arguments: Any) -> list[tuple[int, ...]]:
    """Sizes of the four products of each candidate; the formula's choice comes first, and none comes twice."""
    out = integers([0] * (PRODUCTS * MOST_CANDIDATES))
    count = function(*arguments, out)
    found = [tuple(out[PRODUCTS * i : PRODUCTS * (i + 1)]) for i in range(count)]
    assert 1 <= count <= MOST_CANDIDATES and found[0] == (0,) * PRODUCTS and len(set(found)) == count
    # All combinations of two sizes each.
    for product in range(PRODUCTS):
        sizes = [entry[product] for entry in found]
        assert len(set(sizes)) == 1 or (sizes.count(0) == count // 2 and len(set(sizes)) == 2)
    return found


@pytest.mark.parametrize("kind", [FLOAT, HALF], ids=["float", "half"])
@pytest.mark.parametrize("device", DEVICES, ids=lambda d: f"sm{d.capability}x{d.processors}")
@pytest.mark.parametrize("case", range(len(LARGE)))
def test_every_candidate_gives_the_same_bits(kernels: ctypes.CDLL, device: Device, kind: int, case: int) -> None:
    call = Prepared(Host(kernels, device), kind, LARGE[case])
    sizes = call._sizes
    first = run_bottleneck(Host(kernels, device), kind, LARGE[case])
    arguments = (sizes, kind, device.capability, device.processors)
    candidates = candidates_of(kernels.dyn_bottleneck_candidates, *arguments)
    assert candidates == candidates_of(kernels.dyn_bottleneck_candidates, sizes, kind, 0, 0), "the current device"
    for candidate in candidates[1:]:
        with asked(kernels, candidate):
            np.testing.assert_array_equal(run_bottleneck(Host(kernels, device), kind, LARGE[case]), first)


def test_candidates_are_other_tiles_that_the_formula_finds_near(kernels: ctypes.CDLL) -> None:
    """Rows of the three tiles. One of 128 rows at 7 x 7 on 132 processors is not worth timing."""
    kernels.dyn_plan_batch(0)

    def rows(sizes: list[int], capability: int, processors: int) -> list[tuple[int, ...]]:
        found = []
        for each in candidates_of(kernels.dyn_bottleneck_candidates, integers(sizes), HALF, capability, processors):
            out = integers([0] * 9)
            with asked(kernels, each):
                kernels.dyn_bottleneck_choice(integers(sizes), HALF, capability, processors, out)
            found.append(tuple(out[2:5]))
        return found

    stage3 = [8, 14, 14, 1024, 256, 1024, 1, 1, 1, 0, 7, 7, 0, 0, 1, 0]
    found = rows(stage3, 87, 16)
    assert found[0] == (96, 64, 96)
    assert set(found) == set(itertools.product((96, 64), (64, 96), (96, 64))) and found[1] == (96, 96, 96), (
        "conv2 first"
    )
    stage4 = [1, 7, 7, 2048, 512, 2048, 1, 1, 1, 0, 7, 7, 0, 0, 1, 0]
    assert rows(stage4, 90, 132) == [(16, 16, 16)]
    # Where the device chooses among several kernels, one kernel for all is the other candidate.
    nano = candidates_of(kernels.dyn_bottleneck_candidates, integers(stage4), HALF, 53, 1)
    assert len(nano) == 8 and {entry[1] for entry in nano} == {0, 1}
    assert {entry[1] for entry in rows(stage4, 53, 1)} == {32}
    # Single elements move in tiles of one size.
    assert (
        len(candidates_of(kernels.dyn_bottleneck_candidates, integers([*stage4[:3], 2047, *stage4[4:]]), HALF, 90, 132))
        == 1
    )
    # Nobody is asked about a GPU that is not there.
    kernels.dyn_host_device(0, 0, 0, 0)
    assert kernels.dyn_bottleneck_candidates(integers(stage4), HALF, 0, 0, integers([0] * 32)) == 0
    kernels.dyn_host_device(62, 2, 0, 0)


def test_a_single_kernel_replaces_several_where_it_is_asked_for(kernels: ctypes.CDLL) -> None:
    """At 7x7 a board launches several kernels of this conv3 in half; a size that is given is one kernel."""
    layer = Layer(512, 32, 512)
    case = Case(
        layer,
        np.ones((1, 7, 7, 512), np.float32),
        random_weights(layer, np.random.default_rng(1)),
        np.ones((1, 1, 7, 7), np.float32),
    )
    device = Device(53, 1)

    def launches() -> int:
        call = Prepared(Host(kernels, device), HALF, case)
        call.run()
        return int(kernels.dyn_host_launches())

    several = launches()
    with asked(kernels, (0, 0, 2, 0)):
        assert launches() < several


@pytest.mark.parametrize("case", range(len(LARGE)))
def test_warpgroups_follow_from_the_plan_alone(kernels: ctypes.CDLL, case: int) -> None:
    """A batch of a large plan, its samples alone, and tiles of every size: the same bits, and others than without."""
    together = LARGE[case]
    y = run_bottleneck(Host(kernels, Device(90, 1, planned=4096)), HALF, together)
    for n in range(len(y)):
        alone = replace(
            together,
            x=together.x[n : n + 1],
            spatial=None if together.spatial is None else together.spatial[n : n + 1],
            channel=None if together.channel is None else together.channel[n : n + 1],
        )
        tiles = n % 4 + 1
        found = run_bottleneck(Host(kernels, Device(90, 1, tiles=tiles, planned=4096)), HALF, alone)
        np.testing.assert_array_equal(found[0], y[n])


def test_which_plans_take_warpgroups(kernels: ctypes.CDLL) -> None:
    """Of an H200's 132 multiprocessors: a batch of 1 none, one of 64 all layers of 14 x 14 pixels."""
    found = integers([0] * 9)

    def layers(capability: int, planned: int, batch: int, channel_groups: int = 0) -> int:
        Host(kernels, Device(capability, planned=planned)).start()
        sizes = [batch, 14, 14, 1024, 256, 1024, 1, 1, 1, 0, 7, 7, channel_groups, 0, 1, 0]
        kernels.dyn_bottleneck_choice(integers(sizes), HALF, capability, 132, found)
        return int(found[1]) >> 1

    assert layers(90, planned=1, batch=1) == 0
    assert layers(90, planned=0, batch=64) == 0, "nothing is known of other batches"
    assert layers(90, planned=64, batch=64) == layers(90, planned=64, batch=1) == 7
    assert layers(90, planned=64, batch=64, channel_groups=32) & 3 == 0, "columns that are gathered"
    assert layers(87, planned=64, batch=64) == layers(120, planned=64, batch=64) == 0


WINOGRAD = [case for case in LARGE if case.winograd]


@pytest.mark.parametrize("case", range(len(WINOGRAD)))
def test_winograd_where_patches_are_active_as_a_whole(kernels: ctypes.CDLL, case: int) -> None:
    """On boards alone, and it says so; its workspace is larger."""
    c = WINOGRAD[case]
    found = integers([0] * 9)
    workspace = []
    for capability, transformed in ((62, True), (62, False), (87, True)):
        sizes = integers(sizes_of(c.layer, c.x, c.spatial, None, winograd=transformed))
        kernels.dyn_bottleneck_choice(sizes, HALF, capability, 2, found)
        Host(kernels, Device(capability)).start()
        workspace.append(kernels.dyn_bottleneck_workspace(sizes, HALF))
        assert bool(found[8]) == (capability == 62 and transformed and case < len(WINOGRAD) - 1)
    pixels = int(np.prod(c.x.shape[:3]))
    more = 2 * 4 * pixels * c.layer.middle * 2 if case < len(WINOGRAD) - 1 else 0
    assert workspace[1] == workspace[2]
    assert 0 <= workspace[0] - workspace[1] - more <= 3 * pixels + 4 * 256


def test_the_error_of_winograd_in_half(kernels: ctypes.CDLL) -> None:
    """Against FP32, of the largest output and the root of the mean square: patches and products are rounded to half."""
    case = patches(Layer(64, 256, 64), 2, batch=1, size=(14, 14), rate=1.0)
    host = Host(kernels, Device(53, 1))
    expected = reference(case)
    errors = []
    for winograd in (False, True):
        y = run_bottleneck(host, HALF, replace(case, winograd=winograd)).astype(np.float64)
        error = y - expected
        errors.append((np.abs(error).max() / np.abs(expected).max(), float(np.sqrt((error**2).mean()))))
    (direct, direct_rms), (transformed, transformed_rms) = errors
    print(errors, np.sqrt((expected**2).mean()))
    assert transformed <= 2 * direct and transformed_rms <= 2 * direct_rms
    assert transformed < 2e-3


@pytest.mark.parametrize("kind", [FLOAT, HALF], ids=["float", "half"])
def test_unaligned_tensors_take_single_elements(kernels: ctypes.CDLL, kind: int) -> None:
    case = LARGE[1]
    check(Host(kernels, Device()), kind, case, tolerance(kind, 62), offset=4)


@pytest.mark.parametrize(
    ("batch", "spatial", "channel_groups", "launches"),
    [(1, True, 0, 4), (2, True, 0, 5), (1, True, 8, 4), (1, False, 8, 4), (2, False, 8, 4), (1, False, 0, 3)],
)
@pytest.mark.parametrize(("squeeze", "more"), [(0, 0), (4, 3)])
def test_launches(
    kernels: ctypes.CDLL, batch: int, spatial: bool, channel_groups: int, launches: int, squeeze: int, more: int
) -> None:
    case = example(Layer(16, 16, 16, squeeze=squeeze), batch, channel_groups=channel_groups)
    run_bottleneck(Host(kernels, Device()), FLOAT, case if spatial else replace(case, spatial=None))
    assert kernels.dyn_host_launches() == launches + more


ONE = [
    example(Layer(72, 64, 72), 1, (14, 14)),
    example(Layer(40, 72, 136, stride=2, projection=True), 1, (15, 13), 0.3),
    example(Layer(136, 136, 136, dilation=2), 1, (9, 16), 0.1),
    example(Layer(16, 24, 16, stride=2, dilation=3, projection=True), 1, (12, 18), 0.2),
    example(Layer(64, 64, 64, groups=4), 1, (13, 11)),
    example(Layer(32, 32, 32, squeeze=8), 1, (10, 10)),
    # As wide and high as a word has bits; all, none, and the mask of a whole sample.
    example(Layer(8, 8, 8), 1, (64, 64), 0.05),
    example(Layer(8, 16, 8), 1, (1, 64)),
    example(Layer(8, 16, 8, stride=2, projection=True), 1, (64, 5), 0.1),
    example(Layer(16, 16, 16), 1, rate=2.0),
    example(Layer(16, 16, 16), 1, rate=0.0),
    patches(Layer(24, 24, 24), 14, batch=1, size=(14, 14), rate=1.0),
    patches(Layer(24, 24, 24), 5, batch=1, size=(17, 23)),
]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("tiles", [1, 2, 3, 4])
@pytest.mark.parametrize("case", range(len(ONE)))
def test_lists_and_copies_of_one_sample_stand_in_conv1(
    kernels: ctypes.CDLL, capability: int, tiles: int, case: int
) -> None:
    """Three launches, the same bits as in a batch of two, whose lists are a launch of their own."""
    alone, device = ONE[case], Device(capability, tiles=tiles)
    y = check(Host(kernels, device), HALF, alone, tolerance(HALF, capability))
    assert kernels.dyn_host_launches() == (6 if alone.layer.squeeze else 3)
    assert alone.spatial is not None
    twice = replace(alone, x=alone.x.repeat(2, 0), spatial=alone.spatial.repeat(2, 0))
    np.testing.assert_array_equal(run_bottleneck(Host(kernels, device), HALF, twice), y.repeat(2, 0))
    assert kernels.dyn_host_launches() == (8 if alone.layer.squeeze else 5)
    turned = run_bottleneck(Host(kernels, replace(device, reverse=True)), HALF, alone)
    np.testing.assert_array_equal(turned, y)


@pytest.mark.parametrize(
    "case",
    [
        example(Layer(16, 16, 16), 1, (4, 65)),
        example(Layer(16, 16, 16), 1, (65, 3)),
        example(Layer(16, 16, 16), 1, channel_groups=8),
        replace(example(Layer(16, 16, 16, squeeze=4), 1), pool_active=False),
        example(Layer(12, 16, 12), 1),
    ],
    ids=["wide", "high", "channels", "dense mean", "no vectors"],
)
def test_lists_of_other_samples_are_a_launch_of_their_own(kernels: ctypes.CDLL, case: Case) -> None:
    check(Host(kernels, Device(90)), HALF, case, tolerance(HALF, 90))
    assert kernels.dyn_host_launches() == (7 if case.layer.squeeze else 4)


@pytest.mark.parametrize("kind", [FLOAT, HALF], ids=["float", "half"])
@pytest.mark.parametrize("batch", [1, 2])
def test_all_launches_but_the_first_may_begin_early(kernels: ctypes.CDLL, kind: int, batch: int) -> None:
    """From sm_90 on; the first one follows a kernel of somebody else."""
    case = example(Layer(16, 16, 16, squeeze=4), batch)
    run_bottleneck(Host(kernels, Device(90)), kind, case)
    assert kernels.dyn_host_early_launches() == kernels.dyn_host_launches() - 1
    run_bottleneck(Host(kernels, Device(87)), kind, case)
    assert kernels.dyn_host_early_launches() == 0


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_only_pixels_that_are_read_are_computed(kernels: ctypes.CDLL, stride: int, dilation: int) -> None:
    case = example(Layer(8, 8, 16, stride, dilation, projection=True), batch=3, rate=0.1)
    call = Prepared(Host(kernels, Device()), FLOAT, case)
    call.run()
    # The first convolution's map stands at the begin of the workspace, which was NaN.
    written = ~np.isnan(call.workspace().view(np.float32)[: case.x.size].reshape(case.x.shape))
    assert case.spatial is not None
    height, width = case.x.shape[1:3]
    active = upsample_mask(case.spatial, (height - 1) // stride + 1, (width - 1) // stride + 1)
    needed = dilate_mask(active, height, width, stride, dilation)[:, 0] > 0.5
    assert 0 < needed.sum() < needed.size
    np.testing.assert_array_equal(written, np.broadcast_to(needed[..., None], written.shape))


@pytest.mark.parametrize("channel_groups", [0, 4])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_dense_mean_computes_the_samples_that_have_an_active_pixel(
    kernels: ctypes.CDLL, groups: int, channel_groups: int
) -> None:
    case = example(Layer(8, 8, 8, groups=groups, squeeze=2), batch=4, size=(9, 11), channel_groups=channel_groups)
    assert case.spatial is not None
    case.spatial[:] = 0
    case.spatial[1, 0, 4, 4] = case.spatial[3, 0, 0, 0] = 1
    if case.channel is not None:
        case.channel[:] = 1
    computed = [False, True, False, True]
    for pool_active in (False, True):
        call = Prepared(Host(kernels, Device()), FLOAT, replace(case, pool_active=pool_active))
        call.run()
        memory = call.workspace().view(np.float32)
        written = ~np.isnan(memory[: case.x.size].reshape(case.x.shape)).all(-1)
        h2 = memory[-(-4 * case.x.size // 256) * 64 :][: case.x.size].reshape(case.x.shape)
        if pool_active:
            assert written.sum((1, 2)).tolist() == [0, 9, 0, 4]
        else:
            assert written.all((1, 2)).tolist() == written.any((1, 2)).tolist() == computed
            assert (~np.isnan(h2)).all((1, 2, 3)).tolist() == (~np.isnan(h2)).any((1, 2, 3)).tolist() == computed


def test_inactive_pixels_keep_every_bit(kernels: ctypes.CDLL) -> None:
    case = example(Layer(24, 16, 24), rate=0.4)
    x = np.random.default_rng(0).standard_normal(case.x.shape).astype(np.float32)
    x[0, 0, 0, 0] = np.nan
    y = run_bottleneck(Host(kernels, Device()), FLOAT, replace(case, x=x))
    assert case.spatial is not None
    skipped = case.spatial[:, 0] < 0.5
    assert skipped.any() and not skipped.all()
    np.testing.assert_array_equal(y[skipped].view(np.uint32), x[skipped].view(np.uint32))


@pytest.mark.parametrize("device", [Device(62, 2), Device(90, 500)], ids=["lanes", "tensor"])
@pytest.mark.parametrize("kind", [FLOAT, HALF], ids=["float", "half"])
def test_nan_is_not_hidden(kernels: ctypes.CDLL, device: Device, kind: int) -> None:
    case = example(Layer(16, 16, 16), batch=1, size=(5, 5), rate=1.1)
    case.x[0, 1, 1, 3] = np.nan
    y = run_bottleneck(Host(kernels, device), kind, case)
    assert np.isnan(y[0, :3, :3]).all()
    assert not np.isnan(y[0, 3:]).any() and not np.isnan(y[0, :, 3:]).any()


SPECS: list[tuple[OperatorSpec, bool, bool]] = [
    # (operator, it has a spatial mask, a channel mask)
    (spec, any(kind is not CHANNEL for kind in spec.gates.values()), CHANNEL in spec.gates.values())
    for spec in registry.SPECS
    if "Bottleneck" in spec.name and "cuda" in spec.kernels and not spec.name.startswith(QUANTIZED)
]


@pytest.mark.parametrize(("spec", "spatial", "channel"), SPECS, ids=lambda v: getattr(v, "name", None))
@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_operators_agree_with_their_references(
    kernels: ctypes.CDLL, spec: OperatorSpec, spatial: bool, channel: bool, rate: float
) -> None:
    projection = spec.name.endswith("Projection")
    excites = "ws" in {port.name for port in spec.inputs}
    squeeze = 5 if excites else 0
    layer = Layer(24, 32, 40 if projection else 24, 2 if projection else 1, 2, 2, projection, squeeze)
    rng = np.random.default_rng(11)
    x = np.abs(rng.standard_normal((2, 9, 6, 24))).astype(np.float32)
    size = (1, 1) if spec.name.startswith("Layer") else (3, 2)
    spatial_mask = (rng.random((2, 1, *size)) < rate).astype(np.float32) if spatial else None
    channel_mask = (rng.random((2, 16)) < rate).astype(np.float32) if channel else None
    case = Case(layer, x, random_weights(layer, rng), spatial_mask, channel_mask)
    names = [port.name for port in spec.inputs if port.role is Role.WEIGHT]
    masks = [mask for mask in (spatial_mask, channel_mask) if mask is not None]
    inputs = [torch.from_numpy(v) for v in (x, *masks, *(case.weights[name] for name in names))]
    pooling = {"pool_active": 0} if "pool_active" in {attribute.name for attribute in spec.attributes} else {}
    case = replace(case, pool_active=not pooling)
    attributes = {
        **pooling,
        "strides": [layer.stride] * 2,
        "dilations": [layer.dilation] * 2,
        "pads": [layer.dilation] * 4,
        "group": layer.groups,
    }
    expected = spec.reference(*inputs, **attributes).numpy()
    y = run_bottleneck(Host(kernels, Device()), FLOAT, case)
    np.testing.assert_allclose(y, expected, rtol=2e-5, atol=2e-5 * np.abs(expected).max())


def run_spatial_masker(
    backend: Host | Gpu, kind: int, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    backend.start()
    sizes = integers([*x.shape, len(weight), *size])
    memory = [backend.put(v) for v in (x.astype(NUMBERS[kind]), weight, bias)]
    shape = (len(x), len(weight), *size)
    mask = backend.put(np.full(shape, np.nan, np.float32))
    addresses = [ctypes.c_void_p(backend.address(m)) for m in (*memory, mask)]
    assert backend.library.dyn_spatial_masker(sizes, kind, *addresses, backend.stream) == 0
    return backend.get(mask).reshape(shape)


def run_channel_masker(
    backend: Host | Gpu, kind: int, x: np.ndarray, weights: Arrays, hidden: int, groups: int
) -> np.ndarray:
    backend.start()
    sizes = integers([*x.shape, hidden, groups])
    x = x.astype(NUMBERS[kind])
    workspace = backend.put(np.full(backend.library.dyn_channel_masker_workspace(sizes), 0xFF, np.uint8))
    mask = backend.put(np.full((len(x), groups), np.nan, np.float32))
    names = ("hidden_weight", "hidden_bias", "weight", "bias")
    memory = [backend.put(x), *(backend.put(weights[n]) if n in weights else None for n in names), mask, workspace]
    addresses = [ctypes.c_void_p(None if m is None else backend.address(m)) for m in memory]
    assert backend.library.dyn_channel_masker(sizes, kind, *addresses, backend.stream) == 0
    return backend.get(mask).reshape(len(x), groups)


def assert_bits(mask: np.ndarray, logits: np.ndarray) -> None:
    """Bits where the logit is not within rounding of 0."""
    assert mask.shape == logits.shape
    sure = np.abs(logits) > 1e-4
    np.testing.assert_array_equal(mask[sure], (logits >= 0)[sure].astype(np.float32))
    assert set(np.unique(mask)) <= {0.0, 1.0}


def masked_map(rng: np.random.Generator, kind: int, *shape: int) -> np.ndarray:
    """What a masker reads, as floats that are numbers of its type; bytes for weights of a scale of 1/64."""
    if kind == BYTE:
        return rng.integers(0, 256, shape).astype(np.float32)
    return rng.standard_normal(shape).astype(np.float16).astype(np.float32)


@pytest.mark.parametrize("kind", [FLOAT, HALF, BYTE], ids=["float", "half", "byte"])
@QUICK
@given(data=st.data(), reverse=st.booleans())
def test_spatial_masker(kernels: ctypes.CDLL, kind: int, data: st.DataObject, reverse: bool) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    batch, height, width = (data.draw(st.integers(1, n)) for n in (3, 12, 12))
    channels = data.draw(st.integers(1, 90) | st.integers(1, 40).map(lambda n: 8 * n))
    groups = data.draw(st.integers(1, 3))
    size = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    x = masked_map(rng, kind, batch, height, width, channels)
    weight = rng.standard_normal((groups, channels)).astype(np.float32) / (64 if kind == BYTE else 1)
    bias = rng.standard_normal(groups).astype(np.float32)
    mask = run_spatial_masker(Host(kernels, Device(reverse=reverse)), kind, x, weight, bias, size)
    assert_bits(mask, spatial_logits(x, weight, bias, size))


@pytest.mark.parametrize("kind", [FLOAT, HALF, BYTE], ids=["float", "half", "byte"])
@QUICK
@given(data=st.data(), reverse=st.booleans())
def test_channel_masker(kernels: ctypes.CDLL, kind: int, data: st.DataObject, reverse: bool) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    batch, height, width = (data.draw(st.integers(1, n)) for n in (3, 15, 15))
    # More channels than threads, and fewer, so that several threads share one.
    channels = data.draw(st.integers(1, 90) | st.integers(1, 40).map(lambda n: 8 * n) | st.just(2056))
    groups, hidden = data.draw(st.integers(1, 40)), data.draw(st.sampled_from([0, 1, 7, 40]))
    x = masked_map(rng, kind, batch, height, width, channels)
    weights = {}
    if hidden:
        weights["hidden_weight"] = rng.standard_normal((hidden, channels)).astype(np.float32)
        weights["hidden_bias"] = rng.standard_normal(hidden).astype(np.float32)
    weights["weight"] = rng.standard_normal((groups, hidden or channels)).astype(np.float32)
    weights["bias"] = rng.standard_normal(groups).astype(np.float32)
    if kind == BYTE:
        weights["hidden_weight" if hidden else "weight"] /= 64
    mask = run_channel_masker(Host(kernels, Device(reverse=reverse)), kind, x, weights, hidden, groups)
    assert_bits(mask, channel_logits(x, **weights))


def test_ties_keep(kernels: ctypes.CDLL) -> None:
    zero = {"weight": np.zeros((1, 4), np.float32), "bias": np.zeros(1, np.float32)}
    x = np.ones((1, 2, 2, 4), np.float32)
    backend = Host(kernels, Device())
    assert run_spatial_masker(backend, FLOAT, x, zero["weight"], zero["bias"], (2, 1)).ravel().tolist() == [1, 1]
    assert run_channel_masker(backend, FLOAT, x, zero, 0, 1).ravel().tolist() == [1]


# ---------------------------------------------------------------- on a GPU


TILES = {0: "best", 1: "small", 2: "medium", 3: "large", 4: "tiny"}
EVERY_TILE = pytest.mark.parametrize("tiles", TILES, ids=TILES.get)
EVERY_KIND = pytest.mark.parametrize("kind", [FLOAT, HALF], ids=["float", "half"])


@pytest.mark.gpu
@EVERY_KIND
@EVERY_TILE
@QUICK
@given(case=cases())
def test_bottlenecks_on_the_gpu(gpu: Gpu, kind: int, tiles: int, case: Case) -> None:
    backend = Gpu(gpu.library, tiles)
    y = check(backend, kind, case, tolerance(kind, 0))
    np.testing.assert_array_equal(run_bottleneck(backend, kind, case), y)


@pytest.mark.gpu
@EVERY_KIND
@EVERY_TILE
@pytest.mark.parametrize("planned", [0, 1 << 20])
@pytest.mark.parametrize("case", range(len(LARGE)))
def test_large_bottlenecks_on_the_gpu(gpu: Gpu, kind: int, tiles: int, planned: int, case: int) -> None:
    check(Gpu(gpu.library, tiles, planned), kind, LARGE[case], tolerance(kind, 0))


@pytest.mark.gpu
@EVERY_KIND
@pytest.mark.parametrize("case", range(len(LARGE)))
def test_the_size_of_a_tile_changes_no_bit_on_the_gpu(gpu: Gpu, kind: int, case: int) -> None:
    for planned in (0, 1 << 20):
        first, *others = (run_bottleneck(Gpu(gpu.library, tiles, planned), kind, LARGE[case]) for tiles in (1, 2, 3, 4))
        for other in others:
            np.testing.assert_array_equal(other, first)


@pytest.mark.gpu
@EVERY_KIND
def test_unaligned_tensors_on_the_gpu(gpu: Gpu, kind: int) -> None:
    check(gpu, kind, LARGE[1], tolerance(kind, 0), offset=4)


@pytest.mark.gpu
def test_a_captured_graph_follows_the_mask(gpu: Gpu) -> None:
    case = LARGE[0]
    assert case.spatial is not None
    stream = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        backend = Gpu(gpu.library)
        call = Prepared(backend, FLOAT, case)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            call.run()
    for rate in (0.0, 0.3, 1.1):
        spatial = (np.random.default_rng(1).random(case.spatial.shape) < rate).astype(np.float32)
        call.masks[0].copy_(torch.from_numpy(spatial).reshape(-1))
        torch.cuda.synchronize()
        graph.replay()
        torch.cuda.synchronize()
        expected = bottleneck(case.layer, case.weights, case.x, spatial)
        np.testing.assert_allclose(call.result(), expected, rtol=2e-5, atol=2e-5 * np.abs(expected).max())


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [FLOAT, HALF], ids=["float", "half"])
def test_maskers_on_the_gpu(gpu: Gpu, kind: int) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, 28, 28, 256)).astype(np.float16).astype(np.float32)
    weight, bias = rng.standard_normal((1, 256)).astype(np.float32), rng.standard_normal(1).astype(np.float32)
    assert_bits(run_spatial_masker(gpu, kind, x, weight, bias, (7, 7)), spatial_logits(x, weight, bias, (7, 7)))
    weights = {"weight": rng.standard_normal((32, 256)).astype(np.float32), "bias": np.zeros(32, np.float32)}
    assert_bits(run_channel_masker(gpu, kind, x, weights, 0, 32), channel_logits(x, **weights))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_operators_know_the_scratch_memory(kernels: ctypes.CDLL, data: st.DataObject) -> None:
    """What ``dyndeploy.ops`` says for builders that have no plugin library."""

    def draw(largest: int) -> int:
        return data.draw(st.integers(1, largest))

    op_type = data.draw(
        st.sampled_from([name for name, spec in OPERATORS.items() if "Bottleneck" in name and spec.quantization])
    )
    spec, kind = OPERATORS[op_type], data.draw(st.sampled_from([FLOAT, HALF]))
    groups, projection = draw(3), op_type.endswith("Projection")
    sizes = {"N": draw(5), "H": draw(40), "W": draw(40), "C": draw(40), "S": draw(50)}
    sizes["M"] = groups * data.draw(st.sampled_from([draw(50), 8 * draw(40)]))
    stride = draw(2) if projection else 1
    kinds = {kind.name for kind in spec.gates.values()}
    mask = (0, 0) if kinds == {CHANNEL.name} else (1, 1)
    layer = [sizes[name] for name in "NHWCM"] + [sizes["C"], groups, stride, 1, int(projection), *mask]
    layer += [groups if CHANNEL.name in kinds else 0, sizes["S"] if "SE" in op_type else 0, draw(2) - 1]
    layer += [int(transforms(sizes["M"], groups, stride, 1))]
    Host(kernels, Device(62)).start()
    workspace = spec.kernels["tensorrt"].workspace
    assert workspace is not None
    expected = kernels.dyn_bottleneck_workspace(integers(layer), kind)
    attributes = {"strides": [stride] * 2, "dilations": [1, 1], "group": groups}
    assert workspace(sizes, attributes, 2 if kind == HALF else 4) == expected

    own = spec.quantization
    if own is not None and "tensorrt" in OPERATORS[own.operator].kernels:
        in_integers = OPERATORS[own.operator].kernels["tensorrt"].workspace
        assert in_integers is not None
        layer[-1] = 0  # of bytes no weights are transformed
        expected = kernels.dyn_quantized_bottleneck_workspace(integers(layer))
        assert in_integers({**sizes, "Co": sizes["C"]}, attributes, 4) == expected

    hidden = draw(70)
    masker = OPERATORS["ChannelMaskerHidden"].kernels["tensorrt"].workspace
    assert masker is not None
    expected = kernels.dyn_channel_masker_workspace(integers([*(sizes[name] for name in "NHWC"), hidden, 4]))
    assert masker({**sizes, "h": hidden}, {}, 4) == expected
