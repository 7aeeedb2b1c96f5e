from __future__ import annotations

import json

import onnx
import pytest
import typer
from typer.testing import CliRunner

from dyndeploy.bundle import MANIFEST
from dyndeploy.cli.predict import predict
from dyndeploy.errors import BundleError, UsageError
from dyndeploy.nets import model_names
from dyndeploy.prediction.laudnet import NetworkSpec, network_spec, predict_bundle, predict_network
from dyndeploy.targets import device_names
from tests.bundles import tiny_bundle
from tests.graphs.lookalikes import exported


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
    assert _json("resnet50", "--device", "tx2", "--predictor", "reference")["mode"] == ["static"] * 4
    assert _json("resnet50", "--device", "tx2")["predictor"] == "kernels"


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


def _changed(bundle, **changes):
    manifest = json.loads((bundle.path / MANIFEST).read_text())
    (bundle.path / MANIFEST).write_text(json.dumps({**manifest, **changes}))
    return str(bundle.path)


def test_bundle_is_read_and_the_command_line_wins(tmp_path):
    bundle = tiny_bundle(tmp_path / "b", mode="both", batch=2)
    of_reference = ("--device", "tx2", "--predictor", "reference")
    value = _json(str(bundle.path), *of_reference)
    assert (value["network"], value["input_size"], value["batch"]) == ("tiny", [16, 16], 2)
    assert (value["mode"], value["granularity"], value["channel_granularity"]) == (["both"] * 2, [2, 2], [2, 2])
    assert value == json.loads(json.dumps(predict_bundle(bundle, device="tx2").to_json()))
    options = ("--mode", "layer-static", "--batch", "3", "--granularity", "4", "--channel-granularity", "1-2")
    value = _json(str(bundle.path), *of_reference, *options, "--input-size", "16x16")
    assert (value["batch"], value["mode"]) == (3, ["layer", "static"])
    assert (value["granularity"], value["channel_granularity"]) == ([4, 4], [1, 2])


def test_predict_bundle_uses_what_the_exporter_described(tmp_path):
    bundle = tiny_bundle(tmp_path, mode="spatial")
    expected = predict_network(
        NetworkSpec.from_json(bundle.manifest.network_spec),
        mode="spatial",
        granularity=2,
        channel_granularity=2,
        rate=0.25,
        device="nano",
        batch=1,
    )
    assert predict_bundle(bundle, rate=0.25, device="nano") == expected


def test_bad_bundles(tmp_path):
    bundle = tiny_bundle(tmp_path / "a")
    of_reference = ("--device", "tx2", "--predictor", "reference")
    result = _invoke(str(bundle.path), *of_reference, "--input-size", "224x224")
    assert isinstance(result.exception, UsageError)
    assert "exported for 16x16" in str(result.exception)
    for damage in ({}, {"blocks": 3}, {**bundle.manifest.network_spec, "classes": -1}):
        result = _invoke(_changed(bundle, network_spec=damage), *of_reference)
        assert isinstance(result.exception, BundleError)
        assert "does not describe its network" in str(result.exception)
    (bundle.path / MANIFEST).write_text("{")
    result = _invoke(str(bundle.path), "--device", "tx2")
    assert isinstance(result.exception, BundleError)
    assert "not valid JSON" in str(result.exception)
    (tmp_path / "c").mkdir()
    result = _invoke(str(tmp_path / "c"), "--device", "tx2")
    assert isinstance(result.exception, BundleError)
    assert "has no bundle.json" in str(result.exception)


@pytest.mark.parametrize("path", ["nowhere/resnet50", "./resnet50", "resnet50.bundle"])
def test_a_path_that_does_not_exist_is_no_unknown_network(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = _invoke(path, "--device", "tx2")
    assert isinstance(result.exception, BundleError)
    assert "does not exist" in str(result.exception)


@pytest.mark.parametrize("name", model_names("laud_resnet"))
def test_every_registered_network_is_predicted(name):
    value = _json(
        name, "--mode", "spatial", "--granularity", "4-4-2-1", "--channel-granularity", "2-2-2-2", "--rate", "0.5",
        "--device", "v100", "--batch", "128", "--compat", "laudnet",
    )  # fmt: skip
    assert value["latency_ms"] > 0
    assert len(value["blocks"]) == sum(network_spec(name).stages)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet50", "--device", "jetson-tx2"), "Did you mean 'tx2'"),
        (("resnett50", "--device", "tx2"), "Did you mean 'resnet50'"),
        (("resnet50", "--device", "tx2", "--rate", "fast"), "--rate takes numbers"),
        (("resnet50", "--device", "tx2", "--input-size", "224x"), "--input-size takes HEIGHTxWIDTH"),
        (("resnet50", "--device", "tx2", "--granularity", "4,4"), "--granularity takes whole numbers"),
    ],
)
def test_bad_values(arguments, message):
    result = _invoke(*arguments)
    assert isinstance(result.exception, UsageError)
    assert result.exception.exit_code == 2
    assert message in str(result.exception)


@pytest.mark.parametrize("device", [name for name in device_names() if name != "cpu"])
def test_every_device_predicts_static_networks_by_name(device):
    for name, precision in (("resnet18", "fp32"), ("regnet_y_400mf", "fp16")):
        value = _json(name, "--device", device, "--precision", precision, "--batch", "2")
        low, high = value["interval_ms"]
        assert 0 < low < value["latency_ms"] < high
        assert value["latency_batch_ms"] == pytest.approx(2 * value["latency_ms"])
        assert value["coverage"]["by_time"] == 1.0 and value["coverage"]["unknown"] == []
        assert sum(block["latency_ms"] for block in value["blocks"]) == pytest.approx(value["latency_ms"])
        assert (value["device"], value["precision"], value["batch"]) == (device, precision, 2)


def test_an_onnx_file_and_its_table(tmp_path):
    bundle = tiny_bundle(tmp_path / "b", mode="spatial")
    value = _json(str(bundle.model), "--device", "agx_orin", "--precision", "int8", "--rate", "0.25")
    assert [block["mode"] for block in value["blocks"]] == ["static", "spatial", "spatial", "static"]
    assert value["blocks"][1]["rates"] == {"spatial": 0.25}
    text = _invoke(str(bundle.model), "--device", "agx_orin").stdout
    assert "90 % interval" in text and "100% of the time in known operators" in text and "nothing fitted" in text
    text = _invoke("resnet50", "--device", "tx2", "--predictor", "reference").stdout
    assert "compute" in text and "faults repaired" in text


def test_a_file_of_open_sizes(tmp_path):
    onnx.save(exported("text reader"), path := tmp_path / "reader.onnx")
    by_size = _json(str(path), "--device", "nano", "--input-size", "48x320")
    by_name = _json(str(path), "--device", "nano", "--dim", "height=48", "--dim", "width=320", "--batch", "1")
    assert by_size["latency_ms"] == by_name["latency_ms"] > 0
    assert by_size["network"] == "reader"
    result = _invoke(str(path), "--device", "nano", "--dim", "height=48")
    assert isinstance(result.exception, BundleError)
    assert "(1, 3, 48, width)" in str(result.exception) and "--dim width=N" in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rate", "0.5"), "is static: nothing in it skips"),
        (("--rate", "0.5", "--predictor", "reference"), "is static: nothing in it skips"),
        (("--dim", "height=3"), "Only an ONNX file has sizes"),
        (("--dim", "3"), "--dim takes NAME=N"),
        (("--dim", "a=1", "--dim", "a=2"), "each name once"),
    ],
)
def test_what_a_static_network_does_not_have_is_refused(arguments, message):
    result = _invoke("resnet50", "--device", "tx2", *arguments)
    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--predictor", "kernel"), "Did you mean 'kernels'"),
        (("--predictor", "kernels", "--compat", "laudnet"), "--compat: only the reference predictor has that"),
        (("--compat", "laudnet", "--precision", "fp16"), "knows FP32 and no runtime"),
        (("--runtime", "tensort"), "Did you mean 'tensorrt'"),
    ],
)
def test_options_that_do_not_fit_together(arguments, message):
    result = _invoke("resnet50", "--device", "tx2", *arguments)
    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)
