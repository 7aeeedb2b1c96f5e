"""Our kernels' modelled figures as the predictor reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dyndeploy.errors import InputError
from dyndeploy.files import read_json, write_json
from dyndeploy.prediction import AnalyticalModel, Rates
from dyndeploy.prediction.kernels import floats_beside_integers
from dyndeploy.prediction.own_kernels import TABLE, OwnKernels, own_kernels
from dyndeploy.targets.devices import device_names, load_device
from tests.prediction.calls import bottleneck


def _row(rows: int, columns: int, **figures: Any) -> dict[str, Any]:
    blocks = {
        str(count): {
            "strip_cycles": [100.0 * count, 400.0 * count],
            "fixed_cycles": [50.0, 50.0],
            "cold_cycles": [80.0, 80.0],
            "share": [0.5, 0.125],
        }
        for count in (1, 2)
    }
    return {
        "capability": 53, "precision": "fp16", "layer": "conv1", "rows": rows, "columns": columns, "depth": 16,
        "blocks": blocks,
    } | figures  # fmt: skip


def _cycles(kernels: OwnKernels, rows: float, columns: float, depth: float, taps: float = 1.0, sms: int = 1) -> float:
    given = [np.array([value], np.float64) for value in (rows, columns, depth, 1.0, taps)]
    return float(kernels.price("conv1", *given, sms).cycles.all[0])


def test_waves_of_blocks_strips_and_what_begins_and_ends() -> None:
    kernels = OwnKernels([_row(64, 64)], end=0.0)
    # Ten strips of one block; blocks beside each other begin together, and cost 30 cycles more the first time.
    assert _cycles(kernels, 64, 64, 160) == pytest.approx(10 * 100 + 80)
    assert _cycles(kernels, 64, 128, 160) == pytest.approx(10 * 200 + 80)
    # Five blocks: two full waves of two and one of one.
    assert _cycles(kernels, 300, 64, 160) == pytest.approx(2 * (10 * 200 + 50) + 10 * 100 + 50 + 30)
    assert _cycles(kernels, 300, 64, 160, sms=5) == pytest.approx(10 * 100 + 80)
    # Each of nine taps fills its last strip.
    assert _cycles(kernels, 64, 64, 9 * 20, taps=9) == pytest.approx(18 * 100 + 80)
    assert _cycles(kernels, 0, 64, 160) == 0


def test_warpgroups_do_not_read_the_weights_of_active_channels() -> None:
    fast = _row(64, 64, unit="warpgroups")
    for figures in fast["blocks"].values():
        figures["strip_cycles"] = [v / 4 for v in figures["strip_cycles"]]
    kernels = OwnKernels([_row(64, 64, unit="tensor cores"), fast], end=0.0)
    given = [np.array([value] * 2, np.float64) for value in (64, 64, 160, 1, 1)]
    cycles = kernels.price("conv1", *given, 1, gathers=np.array([False, True])).cycles.all
    assert cycles.tolist() == [10 * 25 + 80, 10 * 100 + 80]


def test_where_the_cycles_go() -> None:
    """Half of the peak at any number of blocks: a strip of one block is 50 cycles at the peak rate."""
    kernels = OwnKernels([_row(64, 64)], end=0.0)
    given = [np.array([value], np.float64) for value in (300.0, 64.0, 152.0, 1.0, 1.0)]
    found = kernels.price("conv1", *given, 1).cycles
    peak = 5 * 10 * 50
    assert found.products[0] == pytest.approx(300 / 64 * 9.5 * 50)
    assert found.products[0] + found.padding[0] == pytest.approx(peak)
    assert found.loop[0] == pytest.approx(5 / 2 * 10 * 200 - peak)
    assert found.tails[0] == pytest.approx(0.0), "one block alone is as fast for its work as two"
    assert found.ends[0] == pytest.approx(2 * 50 + 50 + 30)
    assert found.all[0] == pytest.approx(2 * (10 * 200 + 50) + 10 * 100 + 50 + 30)
    # What adds to the sums of another launch's tiles begins and ends with them.
    joined = kernels.price("conv1", *given, 1, continues=np.ones(1)).cycles
    assert joined.ends[0] == 0 and joined.all[0] == pytest.approx(found.all[0] - found.ends[0])


def test_the_tile_of_least_time_and_the_end_of_the_model() -> None:
    small = _row(16, 64)
    for figures in small["blocks"].values():
        figures["strip_cycles"] = [v / 3 for v in figures["strip_cycles"]]
    both = OwnKernels([_row(64, 64), small], end=0.0)
    assert _cycles(both, 13, 64, 160) == pytest.approx(10 * 100 / 3 + 80)
    assert _cycles(both, 64, 64, 160) == pytest.approx(min(10 * 100 + 80, 2 * (10 * 200 / 3 + 50) + 30))
    middle, slow = (OwnKernels([_row(64, 64)], end=end) for end in (0.5, 1.0))
    assert _cycles(middle, 64, 64, 160) == pytest.approx(10 * 200 + 80)
    assert _cycles(slow, 64, 64, 160) == pytest.approx(10 * 400 + 80)


def test_one_tile_for_any_number_of_rows_or_one_for_each() -> None:
    """Which rows are active is not known at a launch: halves on lanes launch kernels of several tiles up to 512."""
    wide, small = _row(64, 64), _row(16, 64)
    for row, factor in ((wide, 1.0), (small, 0.5)):
        for figures in row["blocks"].values():
            figures["strip_cycles"] = [v * factor for v in figures["strip_cycles"]]

    def priced(precision: str, rows: float, *tried: float) -> tuple[float, float]:
        kernels = OwnKernels([row | {"precision": precision} for row in (wide, small)], end=0.0)
        given = [np.array([value], np.float64) for value in (rows, 64.0, 160.0, 1.0, 1.0)]
        found = kernels.price("conv1", *given, 1, np.array([tried]))
        return float(found.cycles.all[0]), float(found.kernels[0])

    one, two = 10 * 100 + 80, 10 * 100 / 2 + 80
    assert priced("fp32", 16, 64, 64, 16) == (one, 1)
    assert priced("fp16", 16, 64, 64, 16) == (two, 2)
    assert priced("fp16", 64, 64, 64, 16) == (one, 2)
    assert priced("fp16", 16, 64, 64, 64) == (one, 1), "the tile of the rows that it is chosen for"
    assert priced("fp16", 16, 0, 0, 0) == (two, 1)
    # More rows than the kernels tell apart.
    assert priced("fp16", 16, 1024, 1024, 16)[1] == 1


def test_a_table_that_lacks_something(tmp_path: Path) -> None:
    assert own_kernels("5.3", "fp16", table=tmp_path / "none.json") is None
    row = _row(64, 64)
    del row["depth"]
    write_json(tmp_path / "table.json", {"basis": "modelled", "kernels": [row]})
    with pytest.raises(InputError, match="no number 'depth'"):
        own_kernels("5.3", "fp16", table=tmp_path / "table.json")
    assert own_kernels("9.9", "fp16") is None and own_kernels(None, "fp16") is None
    assert own_kernels("5.3", "int8") is None


def test_an_architecture_of_its_own_before_one_like_it(tmp_path: Path) -> None:
    """What the table lacks of an architecture it takes from one that differs little, layer by layer."""
    rows = [
        _row(64, 64, capability=86),
        _row(64, 64, capability=86, layer="linear"),
        _row(32, 64, capability=120),
        _row(64, 64, capability=87),
    ]
    write_json(tmp_path / "table.json", {"basis": "modelled", "kernels": rows})

    def found(capability: str) -> OwnKernels | None:
        return own_kernels(capability, "fp16", end=0.0, table=tmp_path / "table.json")

    newest, ada, other = found("12.0"), found("8.9"), found("8.7")
    assert newest is not None and ada is not None and other is not None
    assert newest.serves("linear") and ada.serves("linear") and not other.serves("linear")
    assert _cycles(ada, 64, 64, 160) == pytest.approx(10 * 100 + 80)
    assert _cycles(newest, 64, 64, 160) == pytest.approx(10 * 200 + 80), "two of its own tiles"
    assert found("10.0") is None


def test_every_gpu_is_priced_by_its_kernels_or_says_why_not() -> None:
    unpriced = {
        name
        for name in device_names()
        if not load_device(name).is_local and own_kernels(load_device(name).hardware.compute_capability, "fp16") is None
    }
    assert unpriced == {"thor"}, "no source says how fast it multiplies for kernels of older GPUs"


def test_the_table_says_that_it_is_modelled() -> None:
    assert read_json(TABLE)["basis"].startswith("modelled, not measured")


@pytest.mark.parametrize("name", [name for name in device_names() if not load_device(name).is_local])
def test_blocks_take_their_figures_from_the_table(name: str) -> None:
    device = load_device(name)
    if own_kernels(device.hardware.compute_capability, "fp16") is None:
        pytest.skip("no figures of this architecture")
    block = bottleneck("spatial", batch=1, mask_size=(14, 14), rates=Rates(0.5), precision="fp16")
    times = [float(AnalyticalModel(device, "fp16", end=end).price([block])[0][0]) for end in (0.0, 0.5, 1.0)]
    assert times == sorted(times)
    assert times[2] < 2 * times[0]


@pytest.mark.parametrize("kind", ["spatial", "layer", "channel", "spatial_channel"])
@pytest.mark.parametrize("projection", [False, True])
def test_blocks_in_integers_are_priced_by_their_own_launches(kind: str, projection: bool) -> None:
    """A projection is a launch of its own kind, and channel skipping copies weights."""
    halves, bytes_ = (
        bottleneck(kind, projection=projection, rates=Rates(spatial=0.5, channel=0.5), precision=precision)
        for precision in ("fp16", "int8")
    )
    assert halves.launches is not None and bytes_.launches is not None
    names = [launch.layer for launch in bytes_.launches if launch.layer]
    assert names == ["conv1", "conv2", *(["projection"] if projection else []), "conv3"]
    assert len(bytes_.launches) == len(halves.launches) + ("channel" in kind)
    assert not any(launch.patches for launch in bytes_.launches)
    model = AnalyticalModel(load_device("agx_orin"), "int8")
    ms = [float(model.price([kernel])[0][0]) for kernel in (bytes_,)]
    known = own_kernels("8.7", "int8")
    assert known is not None and all(known.serves(name) for name in names) and ms[0] > 0


def test_what_an_engine_in_integers_keeps_in_floats_is_half() -> None:
    assert floats_beside_integers("tensorrt") == "fp16" and floats_beside_integers("onnxruntime") == "fp32"
    half = bottleneck(precision="fp16")
    orin = load_device("agx_orin")
    # The same kernel costs the same beside integers as in a network of halves.
    prices = [AnalyticalModel(orin, precision).price([half])[0][0] for precision in ("int8", "fp16")]
    assert prices[0] == pytest.approx(prices[1])
