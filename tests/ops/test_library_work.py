from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dyndeploy.ops._library_work import WORK, bottleneck_work


def block(hidden: float, **changes: float) -> dict[str, float]:
    f = {
        "batch": 1, "h": 14, "w": 14, "oh": 14, "ow": 14, "cin": 1024, "cmid": 256, "cout": 1024, "groups": 1,
        "projection": 0, "rate": 1, "rate_conv1": 1,
    }  # fmt: skip
    f = {key: float(value) for key, value in (f | changes).items()}
    rows = {
        "rows1": f["batch"] * f["h"] * f["w"] * f["rate_conv1"],
        "rows2": f["batch"] * f["oh"] * f["ow"] * f["rate"],
    }
    return {**f, **rows, "hidden": float(hidden)}


def macs(f: dict[str, float]) -> float:
    hidden = f["hidden"]
    pixels = f["oh"] * f["ow"]
    rows1, rows2 = f["h"] * f["w"] * f["rate_conv1"], pixels * f["rate"]
    own = rows1 * f["cin"] * hidden + rows2 * hidden * (9 * hidden / f["groups"] + f["cout"])
    return own + f["projection"] * pixels * f["cin"] * f["cout"]


def test_a_block_of_stage_3_is_cut_as_the_library_cuts_it() -> None:
    work = bottleneck_work(block(256))
    # 1x1 weights of 1 MB and 3x3 weights of 2.3 MB exceed what is read in place; 196 rows are 14 tiles in 2 passes.
    assert work["direct_macs"] == 0 and work["packed_macs"] == macs(block(256))
    assert work["weight_passes"] == 2 * (1024 * 256 + 9 * 256 * 256 + 256 * 1024)
    assert work["rows_packed"] == 196 * (1024 + 9 * 256 + 256)
    assert work["sums_reloaded"] == 196 * (256 * 1 + 256 * 3)  # in chunks of 576 rows of weights
    assert work["copied"] == work["merged"] == work["lone_weights"] == 0


def test_small_weights_are_read_in_place_six_rows_at_a_time() -> None:
    work = bottleneck_work(block(64, h=56, w=56, oh=56, ow=56, cin=64, cmid=64, cout=256))
    assert work["packed_macs"] == work["weight_passes"] == 0
    assert work["direct_loads"] == -(-3136 // 6) * (64 * 64 + 576 * 64 + 64 * 256)


def test_active_channels_are_copied_once() -> None:
    half = bottleneck_work(block(128))
    assert half["copied"] == 1024 * 128 + 9 * 128 * 128 + 128 * 1024
    assert half["merged"] == (1024 + 9 * 128) * 256 / 16  # conv3 selects whole rows
    few = bottleneck_work(block(256, rate=10 / 196, rate_conv1=30 / 196))
    assert few["lone_weights"] == 9 * 256 * 256 + 256 * 1024


def test_what_is_skipped_is_not_counted() -> None:
    assert set(bottleneck_work(block(256, rate=0, rate_conv1=0)).values()) == {0.0}
    assert set(bottleneck_work(block(0)).values()) == {0.0}
    shortcut = bottleneck_work(block(64, projection=1, rate=0, rate_conv1=0, cin=64, cout=256))
    assert shortcut["direct_macs"] == 196 * 64 * 256


@given(
    st.integers(1, 60), st.integers(1, 40).map(lambda n: 16 * n), st.integers(1, 40).map(lambda n: 16 * n),
    st.integers(1, 40), st.sampled_from([0, 1]), st.floats(0.05, 1),
)  # fmt: skip
def test_multiply_accumulates_are_the_blocks_where_channels_fill_vectors(
    size: int, cin: int, cout: int, vectors: int, projection: int, rate: float
) -> None:
    hidden = 16 * vectors
    rows = max(1, round(rate * size * size)) / size**2
    sizes = {"h": size, "w": size, "oh": size, "ow": size, "cin": cin, "cmid": hidden, "cout": cout}
    f = block(hidden, **sizes, projection=projection, rate=rows, rate_conv1=rows)
    work = bottleneck_work(f)
    assert set(work) == set(WORK) and min(work.values()) >= 0
    assert work["direct_macs"] + work["packed_macs"] == pytest.approx(macs(f))
