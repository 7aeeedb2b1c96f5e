from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from dyndeploy import Bundle, ExportSettings, export_model, files, verify_bundle
from dyndeploy.bundle import sealed
from dyndeploy.errors import BundleError, UsageError
from dyndeploy.runtimes import find_cpu_library
from tests.export.conftest import MODES, lively_network


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("verified")
    return {
        mode: export_model(lively_network(mode), folder / mode, ExportSettings(target="nano", batch=2)).path
        for mode in MODES
    }


@pytest.fixture
def spatial(bundles: dict[str, Path], tmp_path: Path) -> Bundle:
    return Bundle.open(shutil.copytree(bundles["spatial"], tmp_path / "b"))


def resign(bundle: Bundle, **changes: object) -> Bundle:
    """Write the manifest again with the checksums of the files as they are now."""
    value = bundle.manifest.to_json() | changes
    value["files"] = {name: files.sha256(bundle.path / name) for name in bundle.manifest.files}
    files.write_json(bundle.path / "bundle.json", sealed(value))
    return Bundle.open(bundle.path)


def failed(bundle: Bundle) -> dict[str, str]:
    report = verify_bundle(bundle, native="off")
    assert report.passed == (not any(not check.passed for check in report.checks))
    return {check.name: check.detail for check in report.checks if not check.passed}


@pytest.mark.parametrize("mode", MODES)
def test_a_fresh_bundle_passes(mode: str, bundles: dict[str, Path]) -> None:
    report = verify_bundle(bundles[mode], native="off")
    assert report.passed, report.checks
    assert report.flipped_bits == 0
    manifest = Bundle.open(bundles[mode]).manifest
    assert report.mask_bits == 2 * manifest.reference.images // 2 * sum(
        int(np.prod(mask.shape[1:])) for mask in manifest.masks
    )
    assert report.outputs[0].relative_error < 1e-5
    assert report.native == "function bodies"


def test_flipped_byte(spatial: Bundle) -> None:
    content = bytearray(spatial.model.read_bytes())
    content[len(content) // 3] ^= 4
    spatial.model.write_bytes(content)
    assert list(failed(spatial)) == ["files"]


def test_a_changed_weight_is_found_even_when_signed(spatial: Bundle) -> None:
    model = onnx.load(spatial.model)
    weight = next(item for item in model.graph.initializer if item.name.endswith("layer3.0/w2"))
    array = onnx.numpy_helper.to_array(weight) * 1.02
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    onnx.save(model, spatial.model)
    assert "logits under equal masks" in failed(resign(spatial))


def test_a_changed_masker_is_found_bit_by_bit(spatial: Bundle) -> None:
    model = onnx.load(spatial.model)
    weight = next(item for item in model.graph.initializer if item.name.endswith("layer1.0/masker_spatial.weight"))
    array = -onnx.numpy_helper.to_array(weight)
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    onnx.save(model, spatial.model)
    problems = failed(resign(spatial))
    assert "masks" in problems
    # Under forced masks the outputs still agree: the report tells a wrong masker from wrong arithmetic.
    assert "logits under equal masks" not in problems


def test_wrong_opset_and_foreign_operator(spatial: Bundle) -> None:
    model = onnx.load(spatial.model)
    for entry in model.opset_import:
        if entry.domain == "":
            entry.version = 17
    model.graph.node.insert(0, onnx.helper.make_node("NonZero", ["input"], ["unused"], name="stem/NonZero"))
    onnx.save(model, spatial.model)
    detail = failed(resign(spatial))["graph"]
    assert "opset 17, manifest 13, target 13" in detail
    assert "NonZero not known to run on nano" in detail


def test_missing_body_and_plugin_version(spatial: Bundle) -> None:
    model = onnx.load(spatial.model)
    kept = [function for function in model.functions if function.name != "SpatialMasker"]
    del model.functions[:]
    model.functions.extend(kept)
    node = next(node for node in model.graph.node if node.op_type == "SpatialBottleneck")
    attributes = [attribute for attribute in node.attribute if attribute.name != "plugin_version"]
    del node.attribute[:]
    node.attribute.extend(attributes)
    onnx.save(model, spatial.model)
    detail = failed(resign(spatial))["operators"]
    assert "SpatialMasker has no function body" in detail
    assert "layer1.0/SpatialBottleneck lacks plugin_version 1" in detail


def test_reference_without_a_tensor(spatial: Bundle) -> None:
    tensors = spatial.reference()
    del tensors["logits"]
    np.savez(spatial.path / "reference.npz", **tensors)
    with pytest.raises(BundleError, match="lacks logits"):
        verify_bundle(resign(spatial), native="off")


def test_ties_are_not_flips(spatial: Bundle) -> None:
    tensors = spatial.reference()
    name = spatial.manifest.masks[-1].name  # nothing behind it sees the change
    index = np.unravel_index(np.abs(tensors[f"margin/{name}"]).argmin(), tensors[name].shape)
    tensors[name][index] = 1 - tensors[name][index]
    np.savez(spatial.path / "reference.npz", **tensors)
    assert "masks" in failed(resign(spatial)), "a clear decision that differs is a flip"
    tensors[f"margin/{name}"][index] = 1e-9
    np.savez(spatial.path / "reference.npz", **tensors)
    report = verify_bundle(resign(spatial), native="off")
    assert (report.flipped_bits, report.tied_bits) == (0, 1)


def test_random_masks_catch_a_body_that_does_not_skip(tmp_path: Path) -> None:
    network = lively_network("spatial")
    for name, parameter in network.named_parameters():
        if name.endswith("masker_spatial.conv.bias"):
            parameter.data = torch.tensor([1e6, 0.0])
    bundle = export_model(network, tmp_path / "b")
    assert set(bundle.manifest.reference.rates.values()) == {1.0}, "an untrained network may skip nothing"
    assert verify_bundle(bundle, native="off").passed
    model = bundle.load_model()
    for function in model.functions:
        if function.name.startswith("SpatialBottleneck"):
            # A body that computes everything whatever the mask says.
            for node in function.node:
                node.input[:] = ["all_on" if name == "mask" else name for name in node.input]
            function.node.insert(0, onnx.helper.make_node("Exp", ["nothing"], ["all_on"]))
            function.node.insert(0, onnx.helper.make_node("Sub", ["mask", "mask"], ["nothing"]))
    onnx.save(model, bundle.model)
    assert list(failed(resign(bundle))) == ["logits under random masks"]


def test_static_twin_is_verified(tmp_path: Path) -> None:
    bundle = export_model(lively_network("channel"), tmp_path / "b", ExportSettings(static=True, target="tx2"))
    report = verify_bundle(bundle, native="off")
    assert report.passed
    assert {"static twin: graph", "static twin: logits"} <= {check.name for check in report.checks}
    model = bundle.load_static()
    weight = next(item for item in model.graph.initializer if item.name.endswith("layer2.0/conv2.weight"))
    array = onnx.numpy_helper.to_array(weight) * 1.1
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    onnx.save(model, bundle.path / "static.onnx")
    assert list(failed(resign(bundle))) == ["static twin: logits"]


def test_manifest_that_does_not_list_the_graph(spatial: Bundle) -> None:
    masks = spatial.manifest.to_json()["masks"]
    assert "differ" in failed(resign(spatial, masks=masks[1:]))["manifest"]
    assert "manifest" in failed(resign(spatial, masks=masks, input_size=[32, 48]))


def test_unknown_dynamic_operator(spatial: Bundle) -> None:
    model = spatial.load_model()
    node = next(node for node in model.graph.node if node.op_type == "SpatialMasker")
    node.op_type = "QuantumMasker"
    onnx.save(model, spatial.model)
    assert "QuantumMasker" in str(failed(resign(spatial)))


def test_verification_needs_no_pytorch(bundles: dict[str, Path]) -> None:
    script = (
        "import sys\nsys.modules['torch'] = None\n"
        f"from dyndeploy.cli import run\nsys.exit(run(['verify', {str(bundles['both'])!r}, '--native', 'off']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- BF16


@pytest.fixture
def reduced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    if find_cpu_library() is None:
        pytest.skip("the native operator library is not built")
    # The plain C++ kernels, so that this runs on every machine.
    monkeypatch.setenv("DYNDEPLOY_CPU_ISA", "generic")
    settings = ExportSettings(precision="bf16", batch=2, static=True)
    return export_model(lively_network("spatial"), tmp_path / "reduced", settings)


def test_bf16_is_held_to_its_own_tolerance(reduced: Bundle) -> None:
    report = verify_bundle(reduced)
    assert report.passed, report.checks
    # Between what FP32 would give and the limit: BF16 did run, against PyTorch in FP32.
    assert 1e-5 < report.outputs[0].relative_error < 2e-2
    assert "limit 0.02" in next(check.detail for check in report.checks if check.name == "logits under equal masks")
    assert verify_bundle(resign(reduced, precision="fp32")).outputs[0].relative_error < 1e-5


def test_a_damaged_weight_is_found_in_bf16(reduced: Bundle) -> None:
    model = onnx.load(reduced.model)
    weight = next(item for item in model.graph.initializer if item.name.endswith("layer3.0/w2"))
    array = -onnx.numpy_helper.to_array(weight)
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    onnx.save(model, reduced.model)
    checks = {check.name: check.passed for check in verify_bundle(resign(reduced)).checks}
    assert not checks["logits under equal masks"]
    assert checks["files"] and checks["graph"]


def test_bf16_is_not_verified_by_fp32_bodies(reduced: Bundle) -> None:
    with pytest.raises(UsageError, match="bf16 needs the operator library"):
        verify_bundle(reduced, native="off")
    with pytest.raises(UsageError, match="Unknown precision"):
        verify_bundle(resign(reduced, precision="int3"))
