"""What runs a bundle here, why, and what is said where something cannot."""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from dyndeploy.cli import run
from dyndeploy.errors import DyndeployError, UsageError
from dyndeploy.runtimes import cuda, tensorrt_ahead
from dyndeploy.runtimes.base import AUTO, RUNTIMES
from dyndeploy.runtimes.choice import RuntimeChoice, choose_engine_runtime, choose_runtime, engine_runtimes
from dyndeploy.runtimes.cuda import FoundGpu, find_gpu, find_gpus
from dyndeploy.targets import load_target
from tests.bundles import tiny_bundle
from tests.cli.test_run import picture
from tests.runtimes.fake_tensorrt import install_fakes, install_rtx
from tests.staged_bundles import staged_bundle

RTX4090, H200 = FoundGpu("NVIDIA GeForce RTX 4090", "8.9"), FoundGpu("NVIDIA H200", "9.0")


class Driver:
    """libcuda as far as it is asked what GPUs there are."""

    def __init__(self, gpus: tuple[FoundGpu, ...], **fails: int) -> None:
        self._gpus, self._fails = gpus, fails

    def cuInit(self, flags: int) -> int:
        assert flags == 0
        return self._fails.get("cuInit", 0)

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = len(self._gpus)
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = 100 + index
        return 0

    def cuDeviceGetName(self, text: Any, size: int, device: int) -> int:
        text.value = self._gpus[device - 100].name.encode()[: size - 1]
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: int) -> int:
        value._obj.value = int(self._gpus[device - 100].compute_capability.split(".")[attribute - 75])
        return 0


def no_gpu() -> tuple[FoundGpu, ...]:
    raise DyndeployError("no NVIDIA GPU was found (none)")


def here(monkeypatch: pytest.MonkeyPatch, *gpus: FoundGpu) -> None:
    """Let the machine have these GPUs."""
    monkeypatch.setattr(cuda, "find_gpus", lambda: gpus if gpus else no_gpu())


def without_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt", "pycuda", "pycuda.driver"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(tensorrt_ahead, "_version", lambda distribution: None)


def test_gpus_are_asked_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_gpus(Driver((RTX4090, H200))) == (RTX4090, H200)
    with pytest.raises(DyndeployError, match="cuInit of the driver failed with CUDA error 100"):
        find_gpus(Driver((RTX4090,), cuInit=100))
    with pytest.raises(DyndeployError, match="offers none to this process"):
        find_gpus(Driver(()))

    def absent(*arguments: object, **named: object) -> None:
        raise OSError

    monkeypatch.setattr(ctypes, "CDLL", absent)
    with pytest.raises(DyndeployError, match=r"libcuda\.so\.1 is not installed"):
        find_gpus()
    here(monkeypatch, RTX4090)
    assert find_gpu() == RTX4090
    with pytest.raises(DyndeployError, match=r"no NVIDIA GPU 1 was found \(this process sees 1\)"):
        find_gpu(1)


def test_a_bundle_for_a_cpu_runs_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, RTX4090)
    choice = choose_runtime(tiny_bundle(tmp_path / "b"))
    assert choice == RuntimeChoice("onnxruntime", "the bundle was exported for cpu")
    assert choice.line == "Runtime: ONNX Runtime on the CPU: the bundle was exported for cpu."


def test_without_a_gpu_it_says_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch)
    choice = choose_runtime(tiny_bundle(tmp_path / "b", target="rtx4090"))
    assert choice.runtime == "onnxruntime" and choice.gpu is None
    assert choice.line == (
        "Runtime: ONNX Runtime on the CPU: the bundle was exported for rtx4090; not tensorrt_rtx or tensorrt or "
        "onnxruntime_cuda, because no NVIDIA GPU was found (none)."
    )


def test_every_runtime_that_is_passed_over_has_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, RTX4090)
    without_packages(monkeypatch)
    bundle = tiny_bundle(tmp_path / "b", target="rtx4090")
    choice = choose_runtime(bundle)
    assert choice.runtime == "onnxruntime" and set(choice.passed_over) == set(RUNTIMES) - {"onnxruntime"}
    assert "TensorRT's Python package cannot be imported" in choice.passed_over["tensorrt"]
    assert "has no CUDAExecutionProvider" in choice.passed_over["onnxruntime_cuda"]
    assert "TensorRT-RTX, which" in choice.passed_over["tensorrt_rtx"]
    assert "is not installed. Get it with pip install 'dyndeploy[rtx]'" in choice.passed_over["tensorrt_rtx"]
    for runtime, why in choice.passed_over.items():
        assert why in choice.line and "\n" not in choice.line
        # Asked for, it is an error with the same reason.
        with pytest.raises(UsageError) as caught:
            choose_runtime(bundle, runtime)
        assert str(caught.value) == f"The runtime {runtime} cannot be had here: {why}."
    with pytest.raises(UsageError, match=r"No runtime of engines can be had here: .* not tensorrt_rtx, because"):
        choose_engine_runtime(bundle)
    assert choose_runtime(bundle, "onnxruntime").why == "it was asked for"
    assert choose_runtime(bundle, choice) is choice
    with pytest.raises(UsageError, match="Did you mean 'tensorrt_rtx'"):
        choose_runtime(bundle, "tensorrt-rtx")
    with pytest.raises(UsageError, match="runtime of engines"):
        choose_engine_runtime(bundle, "onnxruntime")


def test_the_cuda_provider_comes_before_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, RTX4090)
    without_packages(monkeypatch)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    choice = choose_runtime(tiny_bundle(tmp_path / "b", target="rtx4090"))
    assert (choice.runtime, choice.gpu) == ("onnxruntime_cuda", RTX4090)
    assert choice.line.startswith(
        "Runtime: ONNX Runtime's CUDA provider on NVIDIA GeForce RTX 4090 (compute capability 8.9): the bundle was "
        "exported for rtx4090; not tensorrt_rtx, because "
    )
    cpu = tiny_bundle(tmp_path / "bf16", precision="bf16")
    with pytest.raises(UsageError, match="the bundle computes in bf16"):
        choose_runtime(cpu, "onnxruntime_cuda")


def test_engines_are_chosen_by_gpu_package_library_and_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = install_rtx(monkeypatch, tmp_path)
    bundle = tiny_bundle(tmp_path / "b", target="rtx4090")
    choice = choose_runtime(bundle)
    assert (choice.runtime, choice.gpu, choice.passed_over) == ("tensorrt_rtx", RTX4090, {})
    assert choose_engine_runtime(bundle).runtime == "tensorrt_rtx"
    # Another GPU than the bundle's still runs it, and is said to be another.
    other = choose_runtime(tiny_bundle(tmp_path / "other", target="rtx3090"))
    assert other.runtime == "tensorrt_rtx" and "exported for rtx3090, which this GPU is not" in other.line
    world.gpu = H200
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    choice = choose_runtime(bundle)
    assert "does not support compute capability 9.0" in choice.passed_over["tensorrt_rtx"]
    world.gpu = RTX4090
    monkeypatch.delenv("DYNDEPLOY_TENSORRT_LIBRARY")
    assert "no plugin library was found" in choose_runtime(bundle).passed_over["tensorrt_rtx"]
    # What has no dynamic operators needs no plugins.
    assert choose_runtime(staged_bundle(tmp_path / "s", batch=1, target="rtx4090")).runtime == "tensorrt_rtx"
    with pytest.raises(UsageError, match="one batch size"):
        choose_runtime(staged_bundle(tmp_path / "open"), "tensorrt_rtx")


def test_the_order_of_engines_is_that_of_the_target() -> None:
    assert engine_runtimes(load_target("rtx5090")) == ("tensorrt_rtx", "tensorrt")
    assert engine_runtimes(load_target("h200")) == engine_runtimes(load_target("nano")) == ("tensorrt",)
    assert engine_runtimes(load_target("cpu")) == ()


@pytest.mark.parametrize("rtx", [False, True])
@pytest.mark.parametrize("staged", [False, True])
def test_commands_say_what_runs_and_give_the_same_results(
    rtx: bool, staged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = install_rtx(monkeypatch, tmp_path) if rtx else install_fakes(monkeypatch, "11.4.0.106", tmp_path)
    world.gpu = RTX4090 if rtx else H200
    target, name = ("rtx4090", "tensorrt_rtx") if rtx else ("h200", "tensorrt")
    make: Any = staged_bundle if staged else tiny_bundle
    bundle = make(tmp_path / "b", batch=1, target=target)
    paths = [str(picture(tmp_path / f"{seed}.png", seed)) for seed in range(4)]

    def said(*options: str) -> tuple[list[dict[str, Any]], str]:
        assert run(["run", str(bundle.path), *paths, *options]) == 0
        out, err = capsys.readouterr()
        return [json.loads(line) for line in out.splitlines()] if "--json" in options else [], err

    _, err = said()
    assert err.splitlines()[0] == (
        f"Runtime: {RUNTIMES[name]} on {world.gpu}: the bundle was exported for {target}."
    ), "no fall to anything else"
    engine, _ = said("--json")
    assert {entry["runtime"]["name"] for entry in engine} == {name}
    assert engine[0]["runtime"]["why"] == f"the bundle was exported for {target}"
    reference, _ = said("--json", "--runtime", "onnxruntime", "--native", "off")
    assert {entry["runtime"]["name"] for entry in reference} == {"onnxruntime"}
    for one, other in zip(engine, reference, strict=True):
        assert [one[key] for key in ("label", "exit", "class_name")] == [
            other[key] for key in ("label", "exit", "class_name")
        ]
        assert one["confidence"] == pytest.approx(other["confidence"], abs=1e-4)
        assert one["rates"] == pytest.approx(other["rates"])
    assert world.executions and world.contexts == 0 and not world.memory
    assert len(list((bundle.path / "engines").glob("*.engine"))) == (3 if staged else 1)
    # The second and third run built nothing.
    assert len(world.builds) == (3 if staged else 1)
    bundle.require_intact()


def test_evaluate_and_calibrate_record_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = install_fakes(monkeypatch, "11.4.0.106", tmp_path)
    world.gpu = H200
    bundle = tiny_bundle(tmp_path / "b", target="h200")
    for label in range(10):
        picture(tmp_path / "data" / f"{label:02}" / "a.png", label)
    call = ["evaluate", str(bundle.path), "--data", str(tmp_path / "data")]
    assert run([*call, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runtime"] == "tensorrt 11.4.0.106" and found["precision"] == "fp32"
    assert found["runtime_why"] == "the bundle was exported for h200"
    here(monkeypatch)
    assert run(call) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "not tensorrt or onnxruntime_cuda, because no NVIDIA GPU was found" in out
    assert run([*call, "--runtime", "tensorrt"]) == 2
    assert "The runtime tensorrt cannot be had here: no NVIDIA GPU was found" in capsys.readouterr().err


def test_completion_offers_every_runtime() -> None:
    from dyndeploy.cli._options import complete_runtime

    assert complete_runtime("") == [AUTO, *RUNTIMES]
    assert complete_runtime("tensorrt") == ["tensorrt", "tensorrt_rtx"]
