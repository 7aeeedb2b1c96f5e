"""Agreement of ``compat="laudnet"`` with values that the reference code computed."""

from __future__ import annotations

import statistics

import pytest

from dyndeploy.prediction.laudnet import Predictor
from tests.prediction.laudnet.helpers import rows, stage_block, with_stages

_BLOCKS = rows("reference_blocks.csv")
_NETWORKS = rows("reference_networks.csv")


def _label(row: dict[str, str]) -> str:
    keys = ("device", "batch", "mem_concurrent", "family", "stage", "block", "mode", "granularity", "rate")
    return "-".join(row[key] for key in keys)


def _seconds(row: dict[str, str], seed: int | None) -> float:
    batch = int(row["batch"])
    predictor = Predictor(
        row["device"], batch=batch, compat="laudnet", mem_concurrent=int(row["mem_concurrent"]), seed=seed
    )
    block = predictor.predict_block(
        stage_block(row["family"], int(row["stage"]), row["block"]),
        mode=row["mode"],
        granularity=int(row["granularity"]),
        channel_granularity=int(row["channel_granularity"]),
        rate=float(row["rate"]),
    )
    return block.latency_ms * batch / 1e3


@pytest.mark.parametrize("row", [r for r in _BLOCKS if r["mode"] != "channel"], ids=_label)
def test_block_equals_reference(row):
    assert _seconds(row, None) == pytest.approx(float(row["latency_s"]), rel=1e-12)


@pytest.mark.parametrize("row", [r for r in _BLOCKS if r["mode"] == "channel"], ids=_label)
def test_channel_block_replays_reference_and_expectation_is_near(row):
    reference = float(row["latency_s"])
    replay = statistics.fmean(_seconds(row, seed) for seed in range(int(row["seeds"])))
    assert replay == pytest.approx(reference, rel=1e-12)
    # The reference's own seeds lie up to 0.7 % apart.
    assert _seconds(row, None) == pytest.approx(reference, rel=5e-3)


@pytest.mark.parametrize("row", _NETWORKS, ids=lambda r: f"{r['model']}-{r['device']}-{r['mem_concurrent']}")
def test_network_equals_example_script(row):
    predictor = Predictor(row["device"], compat="laudnet", mem_concurrent=int(row["mem_concurrent"]))
    static = predictor.predict_network(row["model"], mode="static")
    assert static.latency_batch_ms == pytest.approx(1e3 * float(row["static_s"]), rel=1e-12)
    assert static.latency_ms == pytest.approx(static.latency_batch_ms / predictor.batch, rel=1e-15)
    sixteen = with_stages(row["model"], (3, 4, 6, 3))
    for mode, column in (("spatial", "spatial_s"), ("layer", "layer_s")):
        dynamic = predictor.predict_network(sixteen, mode=mode, granularity=1, rate=0.5)
        assert dynamic.latency_batch_ms == pytest.approx(1e3 * float(row[column]), rel=1e-12)
        assert len(dynamic.blocks) == 16


@pytest.mark.parametrize("row", _NETWORKS[:2], ids=lambda r: r["device"])
def test_channel_network_replays_seed_0(row):
    predictor = Predictor(row["device"], compat="laudnet", mem_concurrent=int(row["mem_concurrent"]), seed=0)
    sixteen = with_stages(row["model"], (3, 4, 6, 3))
    # The script computes the layer mode first, and its masker (density 0) draws random numbers too.
    predictor.predict_network(sixteen, mode="layer", rate=0.5)
    channel = predictor.predict_network(sixteen, mode="channel", channel_granularity=1, rate=0.5)
    assert channel.seed == 0
    assert channel.latency_batch_ms == pytest.approx(1e3 * float(row["channel_seed0_s"]), rel=1e-12)


#: Whole ResNets with their right block counts at rate 0.5, as fractions of static (two digits are published).
_FRACTIONS = [
    ("resnet50", "v100", 128, (0.59, 1.32, 0.86, 0.78, 0.77, 0.58)),
    ("resnet101", "v100", 128, (0.56, 1.23, 0.83, 0.71, 0.70, 0.53)),
    ("resnet101", "rtx3090", 128, (0.58, 1.73, 1.05, 0.87, 0.82, 0.64)),
    ("resnet101", "nano", 1, (0.55, 0.64, 0.64, 0.73, 0.77, 0.44)),
    ("regnety_400mf", "v100", 128, (0.58, 1.08, 0.89, 0.84, 0.84, 0.76)),
    ("regnety_800mf", "tx2", 1, (0.57, 0.80, 0.79, 0.83, 0.86, 0.73)),
    ("resnet50", "v100", 1, (0.63, 1.15, 0.93, 0.92, 0.93, 0.93)),
]


@pytest.mark.parametrize(("model", "device", "batch", "expected"), _FRACTIONS)
def test_whole_model_fractions(model, device, batch, expected):
    predictor = Predictor(device, batch=batch, compat="laudnet")
    static = predictor.predict_network(model, mode="static").latency_ms

    def fraction(mode, granularity=1):
        prediction = predictor.predict_network(
            model, mode=mode, granularity=granularity, channel_granularity=2, rate=0.5
        )
        return prediction.latency_ms / static

    found = [fraction("layer")]
    found += [fraction("spatial", g) for g in (1, (4, 4, 2, 1), (8, 4, 7, 1), 7)]
    found.append(fraction("channel"))
    assert found == pytest.approx(expected, abs=0.0051)
