"""``dyndeploy profile`` on this machine's GPU: what runs, on which device, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from dyndeploy.cli import run
from dyndeploy.measure import load_profile
from dyndeploy.runtimes.cuda import FoundGpu
from tests.bundles import tiny_bundle
from tests.runtimes.fake_tensorrt import install_fakes, install_rtx
from tests.runtimes.test_choice import H200, RTX4090, here
from tests.runtimes.test_onnxruntime_gpu import REAL, Recorded
from tests.staged_bundles import MACS, staged_bundle


def profiled(path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[dict[str, Any], str]:
    result = path.parent / "profile.json"
    assert run(["profile", str(path), "--repeats", "2", "--json", str(result), *options]) == 0
    return json.loads(result.read_text()), capsys.readouterr().err


def refused(path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert run(["profile", str(path), "--repeats", "2", *options]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("rtx", [False, True])
def test_engines_of_the_gpu_that_is_here(
    rtx: bool, named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = install_rtx(monkeypatch, tmp_path) if rtx else install_fakes(monkeypatch, "11.4.0.106", tmp_path)
    world.gpu = RTX4090 if rtx else H200
    target, name = ("rtx4090", "tensorrt_rtx") if rtx else ("h200", "tensorrt")
    bundle = tiny_bundle(tmp_path / "b", target=target)
    found, err = profiled(bundle.path, capsys, "--rates", "0.5", *(["--device", target] if named else []))
    assert f"Runtime: {'TensorRT-RTX' if rtx else 'TensorRT'} on {world.gpu}: the bundle was exported for" in err
    assert found["runtime"]["name"] == name and found["runtime"]["why"] == f"the bundle was exported for {target}"
    assert found["device"] == target
    # What the fake's events say.
    assert set(found["static"]["samples_ms"]) == {1.5}
    assert load_profile(tmp_path / "profile.json").runtime == found["runtime"]
    assert len(world.builds) == 3 and len(list((bundle.path / "engines").glob("*.engine"))) == 3


@pytest.mark.parametrize("rtx", [False, True])
def test_exits_in_engines(
    rtx: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = install_rtx(monkeypatch, tmp_path) if rtx else install_fakes(monkeypatch, "11.4.0.106", tmp_path)
    world.gpu = RTX4090 if rtx else H200
    bundle = staged_bundle(tmp_path / "b", batch=1, target="rtx4090" if rtx else "h200")
    found, _ = profiled(bundle.path, capsys, "--exit-mix", "50/30/20")
    assert found["runtime"]["name"] == ("tensorrt_rtx" if rtx else "tensorrt")
    assert found["device"] == bundle.manifest.target and found["machine"]["gpu"] == str(world.gpu)
    assert [entry["macs"] for entry in found["exits"]] == list(MACS)
    assert found["whole"]["samples_cpu_ms"] is None, "the processor's time says nothing of a GPU"
    assert len(world.builds) == 5, "three stages, the network without exits, and one graph of all exits"
    assert not world.memory and world.contexts == 0


def test_onnx_runtime_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here(monkeypatch, RTX4090)
    monkeypatch.setattr(onnxruntime, "InferenceSession", type("Mine", (Recorded,), {}))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    assert REAL is not onnxruntime.InferenceSession
    bundle = tiny_bundle(tmp_path / "b", target="rtx4090")
    found, err = profiled(bundle.path, capsys, "--rates", "0.5", "--runtime", "onnxruntime_cuda")
    assert "Runtime: ONNX Runtime's CUDA provider on NVIDIA GeForce RTX 4090" in err
    assert found["runtime"]["provider"] == "CUDAExecutionProvider"
    assert (found["device"], found["runtime"]["why"]) == ("rtx4090", "it was asked for")
    assert found["static"]["samples_cpu_ms"] is None
    assert {block["static_ms"] for rate in found["rates"] for block in rate["blocks"]} <= {0.0}


def test_another_gpu_or_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_bundle(tmp_path / "b", target="rtx4090").path
    here(monkeypatch)
    message = refused(path, capsys, "--device", "rtx4090")
    assert "rtx4090 is a GPU, and here no NVIDIA GPU was found" in message
    assert "predict BUNDLE --device rtx4090" in message
    here(monkeypatch, FoundGpu("NVIDIA GeForce RTX 3090", "8.6"))
    assert (
        "The device rtx4090 was asked for (NVIDIA GeForce RTX 4090, compute capability 8.9), and this machine has "
        "NVIDIA GeForce RTX 3090 (compute capability 8.6)." in refused(path, capsys, "--device", "rtx4090")
    )
    assert "exported for rtx4090, not for rtx3090" in refused(path, capsys, "--device", "rtx3090")
    here(monkeypatch, RTX4090)
    assert "--device rtx4090 is a GPU" in refused(path, capsys, "--device", "rtx4090", "--runtime", "onnxruntime")
    assert "tensorrt does not use" in refused(path, capsys, "--device", "cpu", "--runtime", "tensorrt")

    message = refused(path, capsys, "--device", "rtx4090")
    assert "Nothing here runs the bundle on rtx4090" in message and "not tensorrt" in message
    assert "--runtime tensorrt is for this machine" in refused(
        path, capsys, "--device", "rtx4090", "--host", "me@there", "--runtime", "tensorrt"
    )


def test_the_processor_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_rtx(monkeypatch, tmp_path)
    bundle = tiny_bundle(tmp_path / "b", target="rtx4090")
    found, err = profiled(bundle.path, capsys, "--rates", "0.5", "--device", "cpu")
    assert found["device"] == "cpu" and found["runtime"]["provider"] == "CPUExecutionProvider"
    assert "Runtime: ONNX Runtime on the CPU: it was asked for." in err
