"""FP16 bundles of boards, and the TensorRT copies of what the exporter writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dyndeploy import Bundle, ExportSettings, export_model, verify_bundle
from dyndeploy.errors import UsageError
from dyndeploy.graphs.tensorrt import PrecisionPlan, float_nodes, tensorrt_model
from dyndeploy.runtimes import OnnxRuntimeSession
from tests.export.conftest import MODES, lively_network
from tests.runtimes.tensorrt_reference import check_types, evaluate


def compare(bundle: Bundle) -> None:
    """The FP32 copy equals ONNX Runtime; the typed FP16 copy comes close under the same masks."""
    model = bundle.load_model()
    feeds = {"input": bundle.reference()["input"][: bundle.manifest.batch]}
    with OnnxRuntimeSession(model, native="off") as session:
        expected = session.run(feeds)
    actual = evaluate(tensorrt_model(model, PrecisionPlan("fp32", typed=True)), feeds)
    typed = tensorrt_model(model, PrecisionPlan("fp16", typed=True))
    check_types(typed)
    half = evaluate(typed, feeds)
    for name, value in expected.items():
        scale = max(1.0, float(np.abs(value).max()))
        assert float(np.abs(actual[name] - value).max()) <= 2e-4 * scale, name
        assert half[name].dtype == np.float32
    if all(np.array_equal(half[mask.name], expected[mask.name]) for mask in bundle.manifest.masks):
        np.testing.assert_allclose(half["logits"], expected["logits"], atol=2e-2 * np.abs(expected["logits"]).max())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("target", ["nano", "orin_nx"])
def test_copies_of_exported_networks(mode: str, target: str, make_bundle: Callable[..., Bundle]) -> None:
    compare(make_bundle(mode, target=target))


def test_convolutional_maskers_static_stages_and_batches(tmp_path: Path) -> None:
    modes = ("static", "spatial", "both", "static")
    network = lively_network(modes, channel_masker="conv_linear")
    bundle = export_model(network, tmp_path / "b", ExportSettings(target="agx_xavier", batch=2))
    kept = float_nodes(bundle.load_model())
    assert any(name.startswith("layer3.0/masker_channel") for name in kept)
    assert {name.split("/")[0] for name in kept} == {"layer3.0", "head"}
    compare(bundle)


def test_an_fp16_bundle_stays_portable(tmp_path: Path) -> None:
    network = lively_network("both")
    bundle = export_model(network, tmp_path / "half", ExportSettings(target="nano", precision="fp16"))
    plain = export_model(network, tmp_path / "single", ExportSettings(target="nano"))
    assert bundle.manifest.precision == "fp16"
    assert bundle.manifest.files["model.onnx"] == plain.manifest.files["model.onnx"]
    assert "maskers, masks, biases and the head float" in bundle.manifest.notes[0]
    assert plain.manifest.notes == ()
    report = verify_bundle(bundle, native="off")
    assert report.passed
    [check] = [check for check in report.checks if check.name == "masks in FP16"]
    assert f"of {report.mask_bits} mask bits flip with the maskers in float" in check.detail
    assert "masks in FP16" not in {check.name for check in verify_bundle(plain, native="off").checks}


def test_weights_beyond_half_are_refused_at_export(tmp_path: Path) -> None:
    network = lively_network("layer")
    with torch.no_grad():
        network.layer3[0].conv2.weight[0, 0, 0, 0] = 1e6
    with pytest.raises(UsageError, match=r"layer3\.0/LayerBottleneckProjection/w2 holds .* beyond the range of FP16"):
        export_model(network, tmp_path / "b", ExportSettings(target="nano", precision="fp16"))
    assert list(tmp_path.iterdir()) == []
    export_model(network, tmp_path / "b", ExportSettings(target="nano"))
