"""The simulation of FP16 rounds what an engine stores, and counts the bits that this flips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dyndeploy import files
from dyndeploy.bundle import MANIFEST, MODEL, Bundle, write_manifest
from dyndeploy.errors import UsageError
from dyndeploy.measure.rounding import measure_mask_flips, rounded_model
from dyndeploy.ops import DOMAIN, OPERATORS
from dyndeploy.runtimes import OnnxRuntimeSession
from tests.bundles import MODES, SIZE, tiny_bundle
from tests.runtimes.tensorrt_reference import masker


def half(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float16).astype(np.float32)


def test_stored_values_pass_through_half() -> None:
    generator = np.random.default_rng(0)
    weight = (generator.standard_normal((4, 3, 1, 1)) + 1e-4).astype(np.float32)
    # Weights that cancel on activations that are nearly equal: rounding decides every bit.
    decision = np.array([[1.0, -1.0, 1.0, -1.0]], np.float32)
    bias = np.zeros(1, np.float32)
    nodes = [
        helper.make_node("Conv", ["input", "weight"], ["c"], name="stem/Conv"),
        helper.make_node("Transpose", ["c"], ["x"], name="stem/Transpose", perm=[0, 2, 3, 1]),
        helper.make_node(
            "SpatialMasker",
            ["x", "decision", "bias"],
            ["mask/a/spatial"],
            name="a/SpatialMasker",
            domain=DOMAIN,
            mask_height=8,
            mask_width=8,
        ),
        helper.make_node("ReduceMean", ["x"], ["logits"], name="head/mean", axes=[1, 2], keepdims=0),
    ]
    shape = (16, 3, 8, 8)
    outputs = {"logits": (16, 4), "mask/a/spatial": (16, 1, 8, 8), "x": (16, 8, 8, 4)}
    graph = helper.make_graph(
        nodes,
        "rounding",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in outputs.items()],
        [numpy_helper.from_array(v, n) for n, v in (("weight", weight), ("decision", decision), ("bias", bias))],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)],
        functions=[OPERATORS["SpatialMasker"].function(17)],
        ir_version=8,
    )
    weight[:] = weight[:1] + 1e-4 * generator.standard_normal(weight.shape)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "weight"))
    image = generator.standard_normal(shape).astype(np.float32)

    def run(graph: onnx.ModelProto) -> dict[str, np.ndarray]:
        with OnnxRuntimeSession(graph, native="off") as session:
            return session.run({"input": image})

    exact = run(model)
    for half_maskers in (False, True):
        rounded = run(rounded_model(model, (), half_maskers=half_maskers))
        np.testing.assert_array_equal(rounded["x"], half(rounded["x"]))
        expected = half(np.einsum("nchw,oc->nhwo", half(image), half(weight[:, :, 0, 0])))
        assert np.abs(rounded["x"] - expected).max() <= 2**-10 * np.abs(expected).max()
        assert np.abs(rounded["x"] - exact["x"]).max() > 0
        # The head reads half, but computes in float.
        np.testing.assert_allclose(rounded["logits"], rounded["x"].mean((1, 2)), rtol=1e-5, atol=1e-6)
        if not half_maskers:
            bits = masker("SpatialMasker", rounded["x"], [decision, bias], {"mask_height": 8, "mask_width": 8})
            assert (bits != rounded["mask/a/spatial"]).mean() < 0.01
            assert 0.1 < (rounded["mask/a/spatial"] != exact["mask/a/spatial"]).mean() < 0.9


@pytest.mark.parametrize("mode", MODES)
def test_flips_of_bundles(mode: str, tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b", mode=mode, batch=2, images=2)
    report = measure_mask_flips(bundle, native="off")
    assert report.images == 4
    assert [mask.mask for mask in report.masks] == [mask.name for mask in bundle.manifest.masks]
    assert report.bits == 2 * sum(int(np.prod(mask.shape)) for mask in bundle.manifest.masks)
    assert 0 <= report.kept_float <= report.bits
    assert 0 < report.logits_error < 0.02
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
    report = measure_mask_flips(bundle, bundle.reference()["input"][:1], native="off")
    assert report.masks[0].kept_float >= 1
    assert report.kept_float == sum(mask.kept_float for mask in report.masks)


def test_images_must_fill_batches(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b", batch=2)
    with pytest.raises(UsageError, match="3 images do not fill batches of 2"):
        measure_mask_flips(bundle, np.zeros((3, 3, SIZE, SIZE), np.float32))
    with pytest.raises(UsageError, match="0 images"):
        measure_mask_flips(bundle, np.zeros((0, 3, SIZE, SIZE), np.float32))
