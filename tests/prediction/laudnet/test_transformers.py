"""Agreement with the published ViT simulator, and what it refuses."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from dyndeploy.cli.predict import predict
from dyndeploy.errors import UsageError
from dyndeploy.prediction import Rates
from dyndeploy.prediction.laudnet import Operator, Predictor, predict_network, transformer_names, transformer_spec
from tests.prediction.laudnet.helpers import rows

_ROWS = rows("reference_transformers.csv")
_DENSITIES = {
    "token": "token_density",
    "head": "head_density",
    "attention": "layer_density_attn",
    "mlp": "layer_density_mlp",
}


def _label(row: dict[str, str]) -> str:
    return "-".join((row["model"], row["device"], row["mode"], *(row[name][:6] for name in _DENSITIES.values())))


def _predict(row: dict[str, str]):
    rates = Rates(**{name: float(row[column]) for name, column in _DENSITIES.items()})
    predictor = Predictor(row["device"], batch=int(row["batch"]), compat="laudnet")
    return predictor.predict_transformer(f"ada_{row['model']}", mode=row["mode"], rate=rates)


def test_the_samples_cover_every_device_and_mode():
    assert len(_ROWS) == 96
    assert {row["device"] for row in _ROWS} == {"v100", "3090", "3060", "tx2", "nano"}
    assert {row["mode"] for row in _ROWS} == {"static", "token", "head", "layer", "all"}


@pytest.mark.parametrize("row", _ROWS, ids=_label)
def test_equals_the_simulator(row):
    prediction = _predict(row)
    assert prediction.latency_ms == pytest.approx(float(row["per_image_ms"]), rel=1e-12)
    batch = int(row["batch"])
    assert prediction.latency_batch_ms == pytest.approx(1e3 * float(row["total_s"]), rel=1e-12)
    seconds = [block.latency_ms * batch / 1e3 for block in prediction.blocks]
    assert seconds[0] == pytest.approx(float(row["t2t_module_s"]), rel=1e-12)
    assert seconds[1:-1] == pytest.approx([float(row["block_s"])] * (len(seconds) - 2), rel=1e-12)
    assert seconds[-1] == pytest.approx(float(row["tail_s"]), rel=1e-12)
    assert len(seconds) == transformer_spec(row["model"]).depth + 2


#: Static latencies that the paper publishes, ms per image.
@pytest.mark.parametrize(("device", "published"), [("v100", 2.202), ("3060", 3.413), ("tx2", 44.36)])
def test_equals_the_published_static_latencies(device, published):
    prediction = predict_network("ada_t2t_vit_19", device=device, compat="laudnet")
    assert float(f"{prediction.latency_ms:.4g}") == published


def _command(*arguments: str):
    app = typer.Typer()
    app.command()(predict)
    return CliRunner().invoke(app, ["ada_t2t_vit_19", "--compat", "laudnet", *arguments])


def test_command_takes_rates_by_name_and_one_for_what_is_left_out():
    row = next(r for r in _ROWS if r["device"] == "tx2" and r["mode"] == "layer" and r["layer_density_mlp"] == "0.4")
    result = _command("--device", "tx2", "--mode", "layer", "--rate", "attention=0.8,mlp=0.4", "--json")
    value = json.loads(result.stdout)
    assert value["latency_ms"] == pytest.approx(float(row["per_image_ms"]), rel=1e-12)
    assert value["blocks"][1]["rates"] == {"attention": 0.8, "mlp": 0.4}
    assert (value["network"], value["mode"], value["compat"]) == ("ada_t2t_vit_19", ["layer"], "laudnet")
    only = json.loads(_command("--device", "tx2", "--mode", "all", "--rate", "token=0.5", "--json").stdout)
    assert only["blocks"][1]["rates"] == {"token": 0.5, "head": 1.0, "attention": 1.0, "mlp": 1.0}


def test_a_static_network_takes_rates_of_one():
    arguments = ("--device", "tx2", "--mode", "static", "--rate", "token=1,head=1,attention=1,mlp=1", "--json")
    assert json.loads(_command(*arguments).stdout)["latency_ms"] == pytest.approx(44.35887601472365, rel=1e-12)


def test_rates_left_out_are_one_and_one_number_is_for_all():
    for mode in ("token", "head", "layer", "all"):
        whole = predict_network("t2t_vit_14", mode=mode, device="nano", compat="laudnet")
        stated = predict_network("t2t_vit_14", mode=mode, rate=1.0, device="nano", compat="laudnet")
        assert whole.latency_ms == stated.latency_ms
    half = predict_network("t2t_vit_14", mode="all", rate=0.5, device="nano", compat="laudnet")
    named = Rates(token=0.5, head=0.5, attention=0.5, mlp=0.5)
    assert (
        half.latency_ms
        == predict_network("t2t_vit_14", mode="all", rate=named, device="nano", compat="laudnet").latency_ms
    )


def test_one_rate_per_block():
    predictor = Predictor("v100", compat="laudnet")
    on, off = Rates(attention=1, mlp=1), Rates(attention=0, mlp=0)
    mixed = predictor.predict_transformer("t2t_vit_14", mode="layer", rate=[on, *[off] * 13])
    blocks = [block.latency_ms for block in mixed.blocks[1:-1]]
    assert len(set(blocks[1:])) == 1
    # What is left of a skipped block is its policy.
    policy = blocks[1]
    assert policy == sum(o.latency_ms for o in mixed.blocks[2].operators if o.name == "layer_policy")
    assert blocks[0] > 100 * policy


def test_operators_outside_the_description_are_priced_or_named():
    prediction = predict_network(
        "ada_t2t_vit_14",
        device="v100",
        compat="laudnet",
        extra_operators=[Operator("matmul", "more", {"rows": 1, "c_in": 384, "c_out": 10}), Operator("warp", "warp")],
    )
    assert prediction.blocks[-1].name == "extra"
    assert prediction.coverage.unknown == ("extra.warp (warp)",)


def test_macs_are_those_of_the_network():
    prediction = predict_network("ada_t2t_vit_19", device="v100", compat="laudnet")
    macs = sum(
        operator.macs for block in prediction.blocks for operator in block.operators if operator.kind == "matmul"
    )
    # Spec 4.3: 8,479,682,176, of which 32 per token of the performers' denominators' sums are no products here.
    assert macs == pytest.approx(8_479_682_176, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"compat": None}, "as published only"),
        ({"mode": "spatial"}, "mode of a transformer"),
        ({"mode": "token", "rate": Rates(head=0.5)}, "skips no 'head'"),
        ({"mode": "token", "rate": Rates(channel=0.5)}, "rate of a transformer"),
        ({"mode": "token", "rate": 1.5}, "activation rate"),
        ({"mode": "token", "rate": 0.0}, "without any token"),
        ({"mode": "head", "rate": 0.1}, "without any head"),
        ({"mode": "token", "rate": [0.5, 0.5]}, "19 blocks"),
        ({"granularity": 2}, "no granularities"),
        ({"mode": ("token", "head")}, "one mode"),
        ({"input_size": (256, 256)}, "224x224"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_input(change, message):
    with pytest.raises(UsageError, match=message):
        predict_network("ada_t2t_vit_19", **{"device": "v100", "compat": "laudnet", **change})


@pytest.mark.parametrize(
    "rate", ["token=", "=0.5", "token=0.5,token=0.5", "token=x", "0.5,token=0.5", "token=2", "tokn=0.5"]
)
def test_bad_rates_of_the_command(rate):
    result = _command("--device", "v100", "--mode", "token", "--rate", rate)
    assert isinstance(result.exception, UsageError)


def test_a_residual_network_has_no_tokens():
    with pytest.raises(UsageError, match="token"):
        predict_network("resnet50", mode="layer", rate=Rates(token=0.5), device="v100")


def test_names():
    assert transformer_names() == ["ada_t2t_vit_14", "ada_t2t_vit_19"]
    with pytest.raises(UsageError, match="ada_t2t_vit_19"):
        transformer_spec("ada_t2t_vit_18")
