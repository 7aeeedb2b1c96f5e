"""The grids of the cost model against the same formulas written as plain loops."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyndeploy.prediction.densities import ExpectedBusiestTile
from dyndeploy.prediction.laudnet.cost import Cost, CostModel
from dyndeploy.prediction.laudnet.tiles import tile_candidates
from dyndeploy.targets.devices import device_names, load_device

REFERENCE_DEVICES = [name for name in device_names() if load_device(name).laudnet is not None]


def _model(name: str, sector: int) -> tuple[CostModel, dict[str, float]]:
    p = load_device(name).laudnet
    dram = p.mem_bandwidth_bytes_per_s / 4
    numbers = {"pes": p.n_pes, "lanes": p.pe_fp32s, "hz": p.frequency_hz, "dram": dram, "l2": dram * p.l2_speed_frac}
    return CostModel(p, frozenset(), ExpectedBusiestTile(), sector), {**numbers, "full": 4 * p.pe_fp32s, "c": sector}


def _fill(x: float, capacity: float) -> float:
    return x / (math.ceil(x / capacity) * capacity)


def _sector(n: int, gap: int, c: int) -> float:
    gap = max(gap, 0)
    if n > c:
        return _fill(n, c)
    return n / c if n + gap > c else n / (n + gap)


_CASE = {
    "device": st.sampled_from(REFERENCE_DEVICES),
    "sector": st.sampled_from([1, 8]),
    "batch": st.sampled_from([1, 3, 128]),
}


@given(
    **_CASE,
    c_in=st.integers(1, 40),
    c_out=st.integers(1, 40),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    kernel=st.sampled_from([1, 3, 7]),
    stride=st.sampled_from([1, 2]),
    groups=st.sampled_from([1, 2]),
)
@settings(max_examples=40, deadline=None)
def test_convolution(device, sector, batch, c_in, c_out, height, width, kernel, stride, groups):
    c_in, c_out = c_in * groups, c_out * groups
    model, d = _model(device, sector)
    per_group = c_in // groups
    best = math.inf
    dram = c_out * per_group * kernel**2
    dram += c_in * height * stride * width * stride * batch + c_out * height * width * batch
    for c, th, tw in itertools.product(*map(tile_candidates, (c_out, height, width))):
        tiles = math.ceil(c_out / c) * math.ceil(height / th) * math.ceil(width / tw)
        input_tile = (th + kernel - 1) * stride * (tw + kernel - 1) * stride
        input_tile *= math.ceil(c / (c_out // groups)) * per_group
        traffic = (c * per_group * kernel**2 + input_tile * batch + c * th * tw * batch) * tiles
        memory = dram / d["dram"] + traffic / d["l2"] / _sector(tw, width - tw, sector)
        work = c * th * tw * per_group * kernel**2 * batch / d["hz"] / d["lanes"]
        best = min(best, memory + work / _fill(c * th * tw, d["full"]) * math.ceil(tiles / d["pes"]))
    cost = model.conv(
        batch, c_in=c_in, c_out=c_out, height=height, width=width, kernel=kernel, stride=stride, groups=groups
    )
    assert cost.total == pytest.approx(best + 8e-6, rel=1e-12)


@given(
    **_CASE,
    c_in=st.integers(1, 40),
    c_out=st.integers(1, 40),
    size=st.integers(1, 20),
    side=st.integers(1, 8),
    kernel=st.sampled_from([1, 3]),
    stride=st.sampled_from([1, 2]),
    density=st.sampled_from([0.0, 0.1, 0.5, 0.7, 1.0]),
    gathered=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_patch_convolution(device, sector, batch, c_in, c_out, size, side, kernel, stride, density, gathered):
    model, d = _model(device, sector)
    grid = math.ceil(size / side)

    def price(n, p, c, th, tw):
        tiles = math.ceil(c_out / c) * math.ceil(side / th) * math.ceil(side / tw)
        inputs = math.ceil(c / c_out) * c_in * (th + kernel - 1) * stride * (tw + kernel - 1) * stride
        traffic = (c * c_in * kernel**2 + inputs * n * batch + c * th * tw * n * batch) * tiles
        packed = n * c_in * ((side + kernel - 1) * stride) ** 2
        dense = packed if gathered else c_in * size * stride * size * stride
        dram = c_out * c_in * kernel**2 + dense * batch + n * c_out * side**2 * batch
        work = c * th * tw * c_in * kernel**2 * p / d["hz"] / d["lanes"] / _fill(c * th * tw * batch * p, d["full"])
        compute = math.ceil(tiles / d["pes"]) * work * math.ceil(n / p) * batch
        return dram / d["dram"] + traffic / d["l2"] + compute

    candidates = itertools.product(*map(tile_candidates, (256, c_out, side, side)))
    mean = (1 + grid * grid) / 2
    tile = min(candidates, key=lambda t: price(mean, *t))  # The first of equals, as the reference.
    expected = price(math.ceil(density * grid * grid), *tile) + 8e-6
    cost = model.patch_conv(
        batch,
        c_in=c_in,
        c_out=c_out,
        height=size,
        width=size,
        side=side,
        density=density,
        kernel=kernel,
        stride=stride,
        gathered=gathered,
    )
    assert cost.total == pytest.approx(expected, rel=1e-12)


def test_costs_add_up():
    cost = Cost(1.0, 2.0, 3.0) + Cost(0.5, 0.5, 0.5)
    assert cost == Cost(1.5, 2.5, 3.5)
    assert cost.total == 7.5
    assert cost.scaled(2.0) == Cost(3.0, 5.0, 7.0)
