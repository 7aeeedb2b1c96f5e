from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from dyndeploy.cli.predict import predict
from dyndeploy.errors import DyndeployError, UsageError
from dyndeploy.prediction import network_spec, predict_network


def _invoke(*arguments: str):
    app = typer.Typer()
    app.command()(predict)
    return CliRunner().invoke(app, list(arguments))


def _json(*arguments: str):
    result = _invoke(*arguments, "--json")
    assert result.exit_code == 0, result.exception
    return json.loads(result.stdout)


def test_contract_call():
    value = _json(
        "laud_resnet50", "--mode", "spatial", "--granularity", "1-1-1-1", "--rate", "0.5",
        "--device", "v100", "--batch", "128", "--compat", "laudnet", "--mem-concurrent", "8",
    )  # fmt: skip
    # The reference's 16 residual blocks, seconds per batch of 128.
    assert value["latency_ms"] == pytest.approx(1e3 * 0.1539019075504762 / 128, rel=1e-9)
    assert len(value["blocks"]) == 16
    assert value["coverage"]["by_count"] == 1.0
    assert value["kind"] == "predicted"


def test_static_and_defaults():
    value = _json("resnet50", "--mode", "static", "--device", "tx2", "--compat", "laudnet")
    assert value["latency_ms"] == pytest.approx(17.225749684687174, rel=1e-9)
    assert value["batch"] == 1
    assert _json("resnet50", "--device", "tx2")["mode"] == ["static"] * 4


def test_options_reach_the_predictor():
    value = _json(
        "laud_resnet50", "--mode", "layer-spatial-both-channel", "--granularity", "1-2-2-1", "--channel-granularity",
        "4", "--device", "3090", "--input-size", "192x160", "--rate", ",".join(["0.25"] * 16), "--mem-concurrent", "1",
    )  # fmt: skip
    expected = predict_network(
        "laud_resnet50",
        mode=("layer", "spatial", "both", "channel"),
        granularity=(1, 2, 2, 1),
        channel_granularity=4,
        rate=0.25,
        device="rtx3090",
        mem_concurrent=1,
        input_size=(192, 160),
    )
    assert value == json.loads(json.dumps(expected.to_json()))


def test_table():
    result = _invoke("laud_resnet50", "--mode", "layer", "--device", "nano")
    assert result.exit_code == 0
    assert "layer4.2" in result.stdout
    assert "predicted" in result.stdout
    assert "ms per image" in result.stdout


def _bundle(folder, **changes):
    manifest = {
        "network": {
            "name": "laud_resnet50",
            "mode": "spatial",
            "granularity": [4, 4, 2, 1],
            "channel_granularity": [2, 2, 2, 2],
        },
        "batch": 2,
        "network_spec": network_spec("laud_resnet50", (96, 96)).to_json(),
    }
    manifest.update(changes)
    folder.mkdir(exist_ok=True)
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return str(folder)


def test_bundle_is_read_and_the_command_line_wins(tmp_path):
    bundle = _bundle(tmp_path / "b")
    value = _json(bundle, "--device", "tx2")
    assert (value["input_size"], value["batch"], set(value["mode"])) == ([96, 96], 2, {"spatial"})
    assert value["granularity"] == [4, 4, 2, 1]
    value = _json(bundle, "--device", "tx2", "--mode", "layer", "--batch", "3", "--granularity", "2")
    assert (value["batch"], set(value["mode"]), value["granularity"]) == (3, {"layer"}, [2, 2, 2, 2])


def test_bad_bundles(tmp_path):
    result = _invoke(_bundle(tmp_path / "a", network_spec=None), "--device", "tx2")
    assert isinstance(result.exception, UsageError)
    assert "no 'network_spec'" in str(result.exception)
    (tmp_path / "a" / "bundle.json").write_text("{")
    result = _invoke(str(tmp_path / "a"), "--device", "tx2")
    assert isinstance(result.exception, DyndeployError)
    assert "not valid JSON" in str(result.exception)
    (tmp_path / "c").mkdir()
    result = _invoke(str(tmp_path / "c"), "--device", "tx2")
    assert "holds no bundle.json" in str(result.exception)
    result = _invoke(_bundle(tmp_path / "d"), "--device", "tx2", "--input-size", "224x224")
    assert "exported for 96x96" in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet50", "--device", "tx3"), "Did you mean 'tx2'"),
        (("resnett50", "--device", "tx2"), "Did you mean 'resnet50'"),
        (("resnet50", "--device", "tx2", "--rate", "fast"), "--rate is 'fast'"),
        (("resnet50", "--device", "tx2", "--input-size", "224"), "write it like 224x224"),
        (("resnet50", "--device", "tx2", "--granularity", "4,4"), "write it like 4-4-2-1"),
    ],
)
def test_bad_values(arguments, message):
    result = _invoke(*arguments)
    assert isinstance(result.exception, UsageError)
    assert result.exception.exit_code == 2
    assert message in str(result.exception)
