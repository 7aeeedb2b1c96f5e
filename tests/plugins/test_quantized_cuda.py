"""The CUDA kernels in integers against the operators' reference, to the bit, with no GPU."""

from __future__ import annotations

import ctypes
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dyndeploy.ops import OPERATORS, Role
from dyndeploy.ops._bottleneck import pack_quantized_w2
from dyndeploy.ops.gates import CHANNEL
from tests.ops.cases import QUANTIZED, Case, any_case, build, in_integers
from tests.plugins.test_kernels_cuda import GUARD, Device, Gpu, Host, asked, candidates_of, gpu, integers, kernels

__all__ = ["gpu", "kernels"]

BOTTLENECKS = [name for name in OPERATORS if name.startswith(QUANTIZED) and "Bottleneck" in name and "SE" not in name]
# Lanes, tensor cores with strips through registers and past them; few processors take large tiles.
DEVICES = [
    Device(61, 1),
    Device(70, 500),
    Device(72, 12),
    Device(75, 12),
    Device(80, 1),
    Device(87, 12),
    Device(90, 1),
    Device(120, 500),
]
UNSUPPORTED = 801
CHOICE = ("vector", "tensor_cores", "rows", "rows", "rows", "columns", "columns", "columns")
QUICK = settings(
    deadline=None,
    max_examples=15,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def sizes_of(case: Case, values: dict[str, torch.Tensor]) -> Any:
    batch, height, width, inputs = values["x"].shape
    masks = {case.spec.gates[port.name]: values[port.name] for port in case.spec.inputs if port.role is Role.MASK}
    channel = masks.pop(CHANNEL, None)
    spatial = next(iter(masks.values()), None)
    layer = [values["w1"].shape[0], values["w3"].shape[0], case.attributes["group"]]
    layer += [case.attributes["strides"][0], case.attributes["dilations"][0], int("wd" in values)]
    mask = [0, 0] if spatial is None else list(spatial.shape[2:])
    return integers([batch, height, width, inputs, *layer, *mask, 0 if channel is None else channel.shape[1], 0, 0, 0])


def run(backend: Host | Gpu, case: Case, offset: int = 0, rates: tuple[int, int] | None = None) -> np.ndarray:
    """The kernels' y; tensors begin ``offset`` bytes behind an aligned address. Rates are those of stand-in masks."""
    values = {port.name: value for port, value in zip(case.spec.inputs, case.inputs, strict=True)}
    sizes, library = sizes_of(case, values), backend.library
    assert library.dyn_check_quantized_bottleneck(sizes) is None
    values["w2"] = torch.from_numpy(pack_quantized_w2(values["w2"].numpy()))
    memory = {name: backend.put(np.ascontiguousarray(value.numpy()), offset) for name, value in values.items()}
    shape = case.reference().shape
    y = backend.put(np.full(math.prod(shape) + GUARD, 0xAA, np.uint8), offset)
    backend.start()
    size = library.dyn_quantized_bottleneck_workspace(sizes)
    workspace = backend.put(np.full(size + GUARD, 0xFF, np.uint8))
    masks = {case.spec.gates[port.name]: memory[port.name] for port in case.spec.inputs if port.role is Role.MASK}
    channel = masks.pop(CHANNEL, None)
    constants = [memory.get(f"{kind}{layer}") for kind in "wbm" for layer in "123d"]
    tensors = [memory["x"], next(iter(masks.values()), None), channel, *constants, y]
    addresses = [None if value is None else backend.address(value) for value in tensors]
    pointers = (ctypes.c_void_p * len(addresses))(*addresses)
    place = ctypes.c_void_p(backend.address(workspace))
    backend.start()
    given = None if rates is None else integers(list(rates))
    error = library.dyn_quantized_bottleneck(sizes, pointers, place, backend.stream, given)
    assert error == 0
    found = backend.get(y)
    assert (found[-GUARD:] == 0xAA).all()
    assert (backend.get(workspace)[size:] == 0xFF).all()
    return found[:-GUARD].reshape(shape)


def assert_agrees(backend: Host | Gpu, case: Case, offset: int = 0) -> None:
    np.testing.assert_array_equal(run(backend, case, offset), case.reference().numpy())


@pytest.fixture(params=DEVICES, ids=lambda device: f"sm_{device.capability}-{device.processors}")
def device(request: pytest.FixtureRequest) -> Device:
    found: Device = request.param
    return found


@pytest.mark.parametrize("name", BOTTLENECKS)
@QUICK
@given(data=st.data())
def test_small_blocks_of_any_shape(name: str, kernels: ctypes.CDLL, data: st.DataObject) -> None:
    """Sizes that no run of bytes fits: single elements on lanes."""
    device = replace(data.draw(st.sampled_from(DEVICES)), reverse=data.draw(st.booleans()))
    assert_agrees(Host(kernels, device), data.draw(any_case(name)))


def whole(name: str, seed: int, limit: int = 127, **changes: Any) -> Case:
    """A block whose channels come in runs of 16."""
    sizes: dict[str, Any] = {"batch": 2, "size": (9, 7), "channels": 48, "hidden": 96, "out_channels": 160}
    sizes |= {"mask_size": (5, 4), "channel_groups": 12, "stride": 2, **changes}
    return in_integers(build(name.removeprefix(QUANTIZED), seed=seed, **sizes), seed, limit=limit)


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_whole_runs_on_every_kind_of_tile(name: str, device: Device, kernels: ctypes.CDLL) -> None:
    case = whole(name, device.capability, limit=64 if device.processors == 1 else 127)
    choice = choice_of(kernels, case, device)
    assert choice[0] == 16 and choice[1] == (device.capability >= 72)
    assert_agrees(Host(kernels, device), case)
    assert_agrees(Host(kernels, replace(device, reverse=True)), case)


@pytest.mark.parametrize("tiles", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["QuantizedSpatialBottleneckProjection", "QuantizedSpatialChannelBottleneck"])
def test_every_size_of_tile(name: str, tiles: int, device: Device, kernels: ctypes.CDLL) -> None:
    for changes in ({}, {"size": (12, 11), "group": 2, "dilation": 2, "batch": 1}):
        assert_agrees(Host(kernels, replace(device, tiles=tiles)), whole(name, 10 * tiles, **changes))


@pytest.mark.parametrize("name", ["QuantizedSpatialBottleneckProjection", "QuantizedSpatialChannelBottleneck"])
def test_every_candidate(name: str, device: Device, kernels: ctypes.CDLL) -> None:
    case = whole(name, 7)
    values = {port.name: value for port, value in zip(case.spec.inputs, case.inputs, strict=True)}
    sizes = sizes_of(case, values)
    device = replace(device, processors=1)  # with more, a small map leaves no choice
    candidates = candidates_of(kernels.dyn_quantized_candidates, sizes, device.capability, device.processors)
    for candidate in candidates:
        with asked(kernels, candidate):
            assert_agrees(Host(kernels, device), case)
    assert len(candidates) > 1
    assert kernels.dyn_quantized_candidates(sizes, 53, 1, integers([0] * 32)) == 0, "no products of bytes"


@pytest.mark.parametrize("rate", [0.0, 1.0])
@pytest.mark.parametrize("name", BOTTLENECKS)
def test_nothing_and_everything_is_active(name: str, rate: float, kernels: ctypes.CDLL) -> None:
    for device in (Device(75, 12), Device(87, 12)):
        assert_agrees(Host(kernels, device), whole(name, 5, rate=rate))


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_misaligned_tensors_take_single_elements(name: str, kernels: ctypes.CDLL) -> None:
    assert_agrees(Host(kernels, Device(87, 12)), whole(name, 9, batch=1), offset=4)


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_masks_that_stand_in_are_active_at_their_rates(name: str, kernels: ctypes.CDLL) -> None:
    """TensorRT times plugins on masks that hold nothing; with all bits standing in, the output is that of all set."""
    every, none = whole(name, 4, rate=1.0), whole(name, 4, rate=0.0)
    for device in (Device(75, 12), Device(87, 12)):
        found = run(Host(kernels, device), none, rates=(1000, 1000))
        np.testing.assert_array_equal(found, every.reference().numpy())
        np.testing.assert_array_equal(run(Host(kernels, device), none, rates=(0, 0)), none.reference().numpy())


def test_saturation_and_ties(kernels: ctypes.CDLL, device: Device) -> None:
    """Residuals beyond 16 bits, sums that floats round, and halves that go to the even neighbour."""
    case = whole("QuantizedSpatialBottleneckProjection", 3, stride=1, rate=0.8)
    values = {port.name: value.clone() for port, value in zip(case.spec.inputs, case.inputs, strict=True)}
    values["m3"][::2] = 4000.0
    values["md"][1::2] = 4000.0
    values["b1"][:] = 2**25 + 1
    values["m1"][:] = 2.0**-18
    values["m2"][:] = 0.5
    values["b2"][:] = torch.arange(len(values["b2"])) - values["w2"].long().sum((1, 2, 3)).int() * 128
    odd = replace(case, inputs=tuple(values.values()))
    assert_agrees(Host(kernels, device), odd)


def choice_of(library: ctypes.CDLL, case: Case, device: Device) -> list[int]:
    values = {port.name: value for port, value in zip(case.spec.inputs, case.inputs, strict=True)}
    Host(library, device).start()
    out = integers([0] * len(CHOICE))
    library.dyn_quantized_bottleneck_choice(sizes_of(case, values), device.capability, device.processors, out)
    return list(out)


@pytest.mark.parametrize("capability", [53, 62])
def test_boards_without_products_of_bytes_refuse(capability: int, kernels: ctypes.CDLL) -> None:
    case = whole("QuantizedLayerBottleneck", 1)
    values = {port.name: value for port, value in zip(case.spec.inputs, case.inputs, strict=True)}
    Host(kernels, Device(capability, 1)).start()
    pointers = (ctypes.c_void_p * 16)()
    assert kernels.dyn_quantized_bottleneck(sizes_of(case, values), pointers, None, None, None) == UNSUPPORTED
    assert choice_of(kernels, case, Device(capability, 1)) == [0] * len(CHOICE)


@pytest.mark.parametrize(("place", "value", "reason"), [(13, 4, "squeeze"), (15, 1, "Winograd"), (7, 3, "stride")])
def test_what_kernels_refuse(place: int, value: int, reason: str, kernels: ctypes.CDLL) -> None:
    case = whole("QuantizedSpatialBottleneckProjection", 1)
    sizes = sizes_of(case, {port.name: v for port, v in zip(case.spec.inputs, case.inputs, strict=True)})
    sizes[place] = value
    assert reason in kernels.dyn_check_quantized_bottleneck(sizes).decode()


@pytest.mark.gpu
@pytest.mark.parametrize("tiles", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("name", BOTTLENECKS)
def test_on_a_gpu(name: str, tiles: int, gpu: Gpu) -> None:
    backend = Gpu(gpu.library, tiles)
    # A build without tensor cores plays a board that has no products of bytes, but lanes have them.
    backend.capability = 61 if gpu.capability else 0
    for seed in range(3):
        assert_agrees(backend, whole(name, seed))
        assert_agrees(backend, build(name, seed=seed, batch=3, size=(7, 5)))
