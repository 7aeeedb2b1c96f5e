"""A detector's bundle is profiled and predicted on its own padded inputs, by part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dyndeploy import ExportSettings, create_model, export_model
from dyndeploy.bundle import Bundle
from dyndeploy.measure import profile_bundle
from dyndeploy.measure.inputs import input_batches
from dyndeploy.prediction import predict
from tests.detectors import detector_bundle, one_worker

pytestmark = [pytest.mark.vision("torchvision", "cv2"), one_worker]


@pytest.fixture
def bundle() -> Bundle:
    return detector_bundle("mask_rcnn")


def test_parts_of_a_profile_and_of_a_prediction(bundle: Bundle) -> None:
    profile = profile_bundle(bundle, rates=(0.0, 1.0), repeats=2, warmup=1)
    none, full = profile.rates
    static = {part.name: part.static_macs for part in none.parts}
    assert sum(static.values()) == pytest.approx(profile.static_macs)
    assert list(static) == ["backbone", "neck", "heads", "post-processing", "other"]
    assert min(static[name] for name in ("backbone", "neck", "heads")) > 0 == static["post-processing"]
    for result in (none, full):
        needed = {part.name: part.needed_macs for part in result.parts}
        assert (needed["neck"], needed["heads"]) == (static["neck"], static["heads"])
    assert none.ideal_speedup < profile.speedup_limit < none.part("backbone").ideal_speedup
    assert none.part("post-processing").dynamic_ms > 0
    prediction = predict(bundle, "nano", rate=0.0)
    assert prediction.network == bundle.manifest.network.name == "laud_mask_rcnn_small"
    assert [(part.name, part.macs) for part in prediction.parts[1:3]] == [
        ("neck", static["neck"]),
        ("heads", static["heads"]),
    ]
    assert prediction.coverage.unknown == ()
    assert not any(note.startswith("Not to be had yet") for note in prediction.notes)
    assert any(note.startswith("Modelled by the traffic of their work") for note in prediction.notes)


@pytest.mark.vision("transformers")
@pytest.mark.parametrize("kind", ["ddq_detr", "mask2former"])
def test_parts_of_detectors_with_queries(kind: str, tmp_path: Path) -> None:
    options = {"encoder_layers": 1, "decoder_layers": 1, "queries": 20}
    network = create_model(f"laud_{kind}_small", mode="layer", **options).eval()
    bundle = export_model(network, tmp_path / "bundle", ExportSettings(static=True, input_size=(64, 96)))
    profile = profile_bundle(bundle, rates=(0.0,), repeats=2, warmup=1)
    (result,) = profile.rates
    static = {part.name: part.static_macs for part in result.parts}
    assert sum(static.values()) == pytest.approx(profile.static_macs)
    needed = {part.name: part.needed_macs for part in result.parts}
    assert needed["backbone"] < static["backbone"]
    assert all(needed[name] == static[name] > 0 == static["post-processing"] for name in ("neck", "heads"))
    # Where the queries' masks become detections on the host, the graph has nothing of it.
    times = {part.name: part.dynamic_ms for part in result.parts}
    assert min(times["neck"], times["heads"]) > 0 and (times["post-processing"] > 0) == (kind == "ddq_detr")
    prediction = predict(bundle, "nano", rate=0.0)
    assert [(part.name, part.macs) for part in prediction.parts[1:3]] == [
        (name, static[name]) for name in ("neck", "heads")
    ]
    assert prediction.coverage.unknown == ()


def test_images_of_a_folder_are_padded_to_the_bundle(bundle: Bundle, tmp_path: Path) -> None:
    for name, size in (("a", (40, 90)), ("b", (200, 100))):
        Image.fromarray(np.full((*size, 3), 255, np.uint8)).save(tmp_path / f"{name}.png")
    batches, source = input_batches(bundle, tmp_path, 8)
    assert source["count"] == 2
    assert [batch["input"].shape for batch in batches] == [(1, 3, 128, 128)] * 2
    assert [batch["image_size"].tolist() for batch in batches] == [[[57.0, 128.0]], [[128.0, 64.0]]]
    assert (batches[1]["input"][0, :, :, 64:] == 0).all()
    assert (batches[1]["input"][0, :, :, :64] > 0).all()
