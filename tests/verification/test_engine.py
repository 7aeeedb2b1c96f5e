"""verify_engine with engines that compute in NumPy: what is right passes, what is wrong fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from dyndeploy import Bundle, ExportSettings, export_model
from dyndeploy.runtimes.tensorrt_engine import EngineSettings
from dyndeploy.verification import VerificationReport, verify_engine
from tests.export.conftest import lively_network
from tests.runtimes import tensorrt_reference
from tests.runtimes.fake_tensorrt import install_fakes


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    settings = ExportSettings(target="nano", precision="fp16")
    return export_model(lively_network("both"), tmp_path_factory.mktemp("engine") / "b", settings)


def failed(report: VerificationReport) -> set[str]:
    return {check.name for check in report.checks if not check.passed}


@pytest.mark.parametrize(
    ("version", "precision", "plan"),
    [
        ("8.2.1.8", "fp32", "fp32, builder flags"),
        ("8.6.1.6", None, "fp16, builder flags"),
        ("11.4.0.106", None, "fp16, types in the graph"),
    ],
)
def test_right_engines_pass(
    version: str, precision: str | None, plan: str, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world = install_fakes(monkeypatch, version, tmp_path)
    if plan == "fp16, builder flags":
        # The fake takes types from the graph alone: half weights of an FP32 graph would meet float activations.
        monkeypatch.setattr(tensorrt_reference, "MIXED", True)
    report = verify_engine(bundle, EngineSettings(precision=precision))
    assert failed(report) == set()
    assert report.mask_bits > 100
    assert plan in report.checks[-1].detail
    assert len(world.builds) == 2


@pytest.mark.parametrize("piece", ["border_bias", "skipped_output", "w2", "b1"])
def test_wrong_weights_fail(piece: str, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_fakes(monkeypatch, "8.2.1.8", tmp_path)
    right = tensorrt_reference.run_operator

    def wrong(name: str, inputs: tuple, attributes: dict) -> object:  # type: ignore[type-arg]
        index = {"b1": 4, "w2": 5, "border_bias": -2, "skipped_output": -1}[piece]
        if "Bottleneck" in name:
            changed = list(inputs)
            changed[index] = changed[index] * 1.3
            inputs = tuple(changed)
        return right(name, inputs, attributes)

    monkeypatch.setattr(tensorrt_reference, "run_operator", wrong)
    report = verify_engine(bundle, EngineSettings(precision="fp32"))
    assert "logits under random masks" in failed(report)


def test_damaged_bundles_build_nothing(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = install_fakes(monkeypatch, "8.2.1.8", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Bundle, "damaged_files", lambda self: {"model.onnx": "missing"})
        assert failed(verify_engine(bundle)) == {"files"}
    assert world.builds == []
