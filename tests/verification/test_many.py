"""Networks of several inputs and outputs: every one is compared by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import tests.bundles
from dyndeploy.bundle import Bundle
from dyndeploy.targets import load_target
from dyndeploy.verification import measure_mask_flips, verify_bundle, verify_engine
from tests.bundles import many_bundle, resealed
from tests.runtimes.fake_tensorrt import install_fakes


@pytest.fixture(autouse=True)
def opset_of_a_nano(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tests.bundles, "_OPSET", load_target("nano").opset)


def nano_bundle(folder: Path, mode: str = "spatial", batch: int = 1) -> Bundle:
    return resealed(many_bundle(folder, mode=mode, batch=batch), target="nano")


def failed(bundle: Bundle) -> set[str]:
    return {check.name for check in verify_bundle(bundle, native="off").checks if not check.passed}


def test_every_output_is_compared(tmp_path: Path) -> None:
    bundle = nano_bundle(tmp_path / "b", "both", 2)
    report = verify_bundle(bundle, native="off")
    assert report.passed, report.checks
    assert [error.output for error in report.outputs] == ["logits", "pooled"]
    details = {check.name: check.detail for check in report.checks}
    assert "same class on 100%" in details["logits as deployed"]
    # A remark on classes is for classifiers' logits only.
    assert "class" not in details["pooled as deployed"]
    assert {"static twin: logits", "static twin: pooled"} <= set(details)
    flips = measure_mask_flips(bundle, native="off")
    assert flips.images == 4 and 0 < flips.output_error < 0.02


def test_a_wrong_second_output_is_found(tmp_path: Path) -> None:
    bundle = nano_bundle(tmp_path / "b")
    tensors = bundle.reference()
    np.savez(bundle.path / "reference.npz", **{**tensors, "pooled": tensors["pooled"] * 1.01})
    assert failed(resealed(bundle)) == {"pooled under equal masks", "pooled as deployed"}


def test_a_second_input_of_another_batch_is_found(tmp_path: Path) -> None:
    bundle = nano_bundle(tmp_path / "b")
    model = bundle.load_model()
    model.graph.input[1].type.tensor_type.shape.dim[0].dim_value = 3
    onnx.save(model, bundle.model)
    assert "manifest" in failed(resealed(bundle))


def test_engines_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_fakes(monkeypatch, "8.6.1.6", tmp_path)
    report = verify_engine(nano_bundle(tmp_path / "b", "channel"))
    assert report.passed, report.checks
    assert {"pooled under random masks", "pooled as deployed"} <= {check.name for check in report.checks}
