"""Bits that the simulated rounding of FP16 flips are counted one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dyndeploy import files
from dyndeploy.bundle import MANIFEST, MODEL, Bundle, write_manifest
from dyndeploy.errors import UsageError
from dyndeploy.runtimes import OnnxRuntimeSession
from dyndeploy.verification import measure_mask_flips
from tests.bundles import MODES, SIZE, tiny_bundle


def half(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float16).astype(np.float32)


@pytest.mark.parametrize("mode", MODES)
def test_flips_of_bundles(mode: str, tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b", mode=mode, batch=2, images=2)
    report = measure_mask_flips(bundle, native="off")
    assert report.images == 4
    assert [mask.mask for mask in report.masks] == [mask.name for mask in bundle.manifest.masks]
    assert report.bits == 2 * sum(int(np.prod(mask.shape)) for mask in bundle.manifest.masks)
    assert 0 <= report.kept_float <= report.bits
    assert 0 < report.output_error < 0.02
    assert f"{report.kept_float} of {report.bits} mask bits flip" in report.line
    assert report.to_json()["masks"][0]["mask"] == report.masks[0].mask


def decided_by_rounding(bundle: Bundle) -> Bundle:
    """The bundle with a first spatial masker whose logit of one position is a tie in FP32, up to the last digits."""
    model = bundle.load_model()
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.append(helper.make_tensor_value_info("y0", TensorProto.FLOAT, (1, SIZE, SIZE, 8)))
    with OnnxRuntimeSession(probe, native="off") as session:
        x = session.run({"input": bundle.reference()["input"][:1]}, ["y0"])["y0"]
    constants = {item.name: item for item in model.graph.initializer}
    weight = numpy_helper.to_array(constants["layer1.0.spatial.w"])
    pooled = x.astype(np.float64).reshape(1, 4, 4, 4, 4, 8).mean((2, 4)).reshape(16, 8)
    logits = pooled @ weight[0].astype(np.float64)
    stored = half(x).astype(np.float64).reshape(1, 4, 4, 4, 4, 8).mean((2, 4)).reshape(16, 8) @ weight[0]
    position = int(np.argmax(np.abs(stored - logits)))
    # Halfway between the exact and the rounded logit: exactly this position's bit depends on the rounding.
    bias = np.array([-(logits[position] + stored[position]) / 2], np.float32)
    constants["layer1.0.spatial.b"].CopyFrom(numpy_helper.from_array(bias, "layer1.0.spatial.b"))
    onnx.save(model, bundle.path / MODEL)
    checksums = {**bundle.manifest.files, MODEL: files.sha256(bundle.path / MODEL)}
    object.__setattr__(bundle.manifest, "files", checksums)
    (bundle.path / MANIFEST).unlink()
    write_manifest(bundle.path, bundle.manifest)
    return Bundle.open(bundle.path)


def test_a_flip_is_found(tmp_path: Path) -> None:
    bundle = decided_by_rounding(tiny_bundle(tmp_path / "b", mode="spatial"))
    report = measure_mask_flips(bundle, {"input": bundle.reference()["input"][:1]}, native="off")
    assert report.masks[0].kept_float >= 1
    assert report.kept_float == sum(mask.kept_float for mask in report.masks)


def test_images_must_fill_batches(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b", batch=2)
    with pytest.raises(UsageError, match="3 samples do not fill batches of 2"):
        measure_mask_flips(bundle, {"input": np.zeros((3, 3, SIZE, SIZE), np.float32)})
    with pytest.raises(UsageError, match="0 samples"):
        measure_mask_flips(bundle, {"input": np.zeros((0, 3, SIZE, SIZE), np.float32)})
