"""The agent's TensorRT side and a board's whole flow, with stand-ins for tensorrt and pycuda (see fakes/)."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dyndeploy import files
from dyndeploy.bundle import MANIFEST, Bundle, write_manifest
from dyndeploy.errors import DeviceError, UsageError, VerificationError
from dyndeploy.inference import Classification, classify
from dyndeploy.measure import Profile
from dyndeploy.remote import (
    DeviceClient,
    DeviceEntry,
    DeviceReport,
    LocalTransport,
    profile_on_device,
    run_on_device,
)
from dyndeploy.reporting import compare_profile, predict_profile
from dyndeploy.runtimes import tensorrt_plan
from dyndeploy.runtimes.tensorrt_plan import BuildPlan, plan_build
from tests.remote.conftest import verifiable_bundle

FAKES = Path(__file__).parent / "fakes"
OPTIONS: dict[str, Any] = {"rates": (0.25, 1.0), "repeats": 4, "warmup": 1}

pytestmark = pytest.mark.skipif(
    shutil.which("cmake") is None or shutil.which("cc") is None, reason="needs cmake and a C compiler"
)

PROJECT = """cmake_minimum_required(VERSION 3.10)
project(plugins C)
if(NOT CMAKE_BUILD_TYPE STREQUAL "Release" OR NOT DYNDEPLOY_CUDA_ARCHITECTURES STREQUAL "@SM@")
  message(FATAL_ERROR "not built for this device")
endif()
add_library(dyndeploy_tensorrt SHARED ../../kernels/cuda/empty.c)
"""


def device_bundle(folder: Path, target: str, architecture: str) -> Bundle:
    """A bundle whose plugins are built for one architecture only."""
    bundle = verifiable_bundle(folder)
    plugins, project = folder / "device" / "plugins", PROJECT.replace("@SM@", architecture)
    for name, text in (("adapters/tensorrt/CMakeLists.txt", project), ("kernels/cuda/empty.c", "int dyndeploy;\n")):
        (plugins / name).parent.mkdir(parents=True)
        (plugins / name).write_text(text)
    checksums = {
        path.relative_to(folder).as_posix(): files.sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    write_manifest(folder, dataclasses.replace(bundle.manifest, target=target, files=checksums))
    return Bundle.open(folder)


@pytest.fixture(scope="module")
def nano_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return device_bundle(tmp_path_factory.mktemp("tensorrt") / "bundle", "nano", "53")


@pytest.fixture
def nano(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., DeviceClient]:
    """Makes this machine say that it is a Nano with some version of TensorRT."""
    path = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", str(FAKES) + (f"{os.pathsep}{path}" if path else ""))
    # Here the copy is the graph itself: what the stand-in runs. The real one is tested with its own module.
    monkeypatch.setattr(tensorrt_plan, "tensorrt_model", lambda model, *_, **__: model)
    probe = DeviceClient.probe

    def connect(version: str, **changes: Any) -> DeviceClient:
        monkeypatch.setenv("FAKE_TENSORRT", version)
        board = {"model": "NVIDIA Jetson Nano Developer Kit", "target": "nano", "l4t": "32.7.1", **changes}
        monkeypatch.setattr(DeviceClient, "probe", lambda self: probe(self) | board)
        return DeviceClient(LocalTransport(), work=str(tmp_path / "agent"), pause=0.05)

    return connect


def measure(client: DeviceClient, bundle: Bundle) -> DeviceReport:
    with client:
        return profile_on_device(bundle, client, DeviceEntry("nano", "local:", "nano"), **OPTIONS)


@pytest.mark.parametrize("version", ["8.2.1.8", "10.3.0"])
def test_every_generation_of_the_interface(
    version: str, nano: Callable[..., DeviceClient], nano_bundle: Bundle, tmp_path: Path
) -> None:
    report = measure(nano(version), nano_bundle)
    assert list(report.steps) == ["plugins", "engine static", "engine dynamic", "engine forced", "verify", "profile"]
    profile = report.profile
    assert Profile.from_json(profile.to_json()) == profile
    assert (profile.device, profile.runtime["name"], profile.runtime["version"]) == ("nano", "tensorrt", version)
    assert profile.native["path"] == "libdyndeploy_tensorrt.so"
    (library,) = (tmp_path / "agent" / "jobs").glob("*/out/libdyndeploy_tensorrt.so")
    assert profile.native["sha256"] == files.sha256(library)
    assert all(check["passed"] for check in report.checks)
    # Every stand-in layer takes 0.25 ms: the static block 1 has conv1, relu, conv2, relu, conv3, shortcut, add, relu.
    for result in profile.rates:
        assert {block.name: (block.static_ms, block.dynamic_ms) for block in result.blocks} == {
            "layer1.0": (2.0, 0.5),
            "layer2.0": (1.75, 0.5),
        }
    # Measured on the board that is predicted: milliseconds may be compared.
    assert compare_profile(profile, predict_profile(profile, "nano")).latency_mape is not None


@pytest.mark.parametrize("version", ["8.2.1.8", "8.6.1", "11.1.0"])
def test_the_engine_that_is_measured_is_the_one_that_is_described(
    version: str,
    nano: Callable[..., DeviceClient],
    nano_bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = tmp_path / "builder.jsonl"
    monkeypatch.setenv("FAKE_TENSORRT_LOG", str(log))
    if version.startswith("11"):
        monkeypatch.setenv("FAKE_TENSORRT_TYPE", "float16")  # The stand-in's graph has no types of its own.
    half = Bundle(nano_bundle.path, dataclasses.replace(nano_bundle.manifest, precision="fp16"))
    profile = measure(nano(version), half).profile
    plan = BuildPlan.from_json(profile.settings["build_plan"])
    described, _ = plan_build(half.load_model(), "fp16", version)
    names = tuple(name.split("~")[0] for name in plan.float_layers)
    nodes = tuple(dataclasses.replace(node, name=node.name.split("~")[0]) for node in plan.plugin_nodes)
    unlabelled = dataclasses.replace(plan, float_layers=names, plugin_nodes=nodes)
    assert unlabelled == described.with_library(profile.native["sha256"])
    assert {name.split("~")[0]: fact["type"] for name, fact in profile.settings["plugin_layers"].items()} == {
        node.name: "float16" for node in described.plugin_nodes
    }
    assert profile.settings["plugin_layers_note"] == ""
    static, dynamic, forced = map(json.loads, log.read_text().splitlines())
    for asked in (static, dynamic, forced):
        assert asked["workspace"] == 1024 << 20
        assert {name.split("~")[0] for name in asked["float_layers"]} == set(described.float_layers)
    if version.startswith("11"):
        assert dynamic["flags"] == [] and not described.float_layers and described.typed
    else:
        assert dynamic["flags"] == ["FP16", "OBEY_PRECISION_CONSTRAINTS"]
        assert set(described.float_layers) == {"head/mean", "head/fc"}
    assert profile.settings["graph_note"] == "", "runs are launched as a CUDA graph"


def test_an_engine_whose_plugins_run_in_float_is_refused(
    nano: Callable[..., DeviceClient], nano_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TENSORRT_TYPE", "float32")
    half = Bundle(nano_bundle.path, dataclasses.replace(nano_bundle.manifest, precision="fp16"))
    with pytest.raises(DeviceError, match=r"SpatialBottleneck\S* writes float32, and the plan says float16"):
        measure(nano("8.2.1.8"), half)
    engines = [path.parent.parent for path in (tmp_path / "agent" / "jobs").glob("*/out/engine")]
    assert len(engines) == 1, "the static twin's, which has no plugins"


def test_without_cuda_graphs_the_profile_says_so(
    nano: Callable[..., DeviceClient], nano_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TENSORRT_NO_GRAPH", "1")
    profile = measure(nano("8.2.1.8"), nano_bundle).profile
    assert "'begin capture' failed with CUDA error 900" in profile.settings["graph_note"]
    assert any("not launched as a CUDA graph" in note for note in profile.warnings())


def test_what_is_built_again(nano: Callable[..., DeviceClient], nano_bundle: Bundle, tmp_path: Path) -> None:
    measure(nano("8.2.1.8"), nano_bundle)
    again = measure(nano("8.2.1.8"), nano_bundle)
    assert again.uploaded_bytes == 0
    assert [step for step, how in again.steps.items() if how == "done"] == ["profile"]
    other = measure(nano("8.5.2.2"), nano_bundle)
    assert set(other.steps.values()) == {"done"}
    for engine in (tmp_path / "agent" / "jobs").glob("*/out/engine"):
        engine.write_bytes(b"damaged")
    report = measure(nano("8.2.1.8"), nano_bundle)
    # The engines are what they were, so what was verified of them still holds.
    assert {step: how for step, how in report.steps.items() if how == "done"} == {
        "engine static": "done",
        "engine dynamic": "done",
        "engine forced": "done",
        "profile": "done",
    }


def test_a_missing_plugin_is_named(
    nano: Callable[..., DeviceClient], nano_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TENSORRT_LACKS", "SpatialMasker")
    with pytest.raises(DeviceError, match="no TensorRT plugin is registered for SpatialMasker"):
        measure(nano("8.2.1.8"), nano_bundle)


def test_a_gpu_that_cannot_be_used_is_told(
    nano: Callable[..., DeviceClient], nano_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TENSORRT_NO_GPU", "1")
    with pytest.raises(DeviceError, match="cannot use the GPU: CUDA initialization failure"):
        measure(nano("8.2.1.8"), nano_bundle)


def test_wrong_results_are_not_profiled(
    nano: Callable[..., DeviceClient], nano_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TENSORRT_WRONG", "0.5")
    with pytest.raises(VerificationError, match=r"logits under equal masks \(relative error"):
        measure(nano("8.2.1.8"), nano_bundle)


NO_TOOLS = {"cmake": None, "cuda": {"version": "10.2", "nvcc": None}}
NO_TENSORRT = {"modules": {"numpy": {"version": "1.13.3"}, "tensorrt": {"error": "No module named 'tensorrt'"}}}
OLD = {"modules": {name: {"version": "7.1.3"} for name in ("numpy", "tensorrt", "pycuda")}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target": "tx2", "model": "quill"}, ["exported for nano", "is a tx2 (quill)", "--target tx2"]),
        ({"target": None, "model": None}, ["no known device", "--target cpu"]),
        (NO_TENSORRT, ["lacks tensorrt", "nvidia-jetpack", "pycuda"]),
        (OLD, ["TensorRT 7.1.3", "8.2 is the oldest"]),
        (NO_TOOLS, ["neither cmake nor nvcc"]),
        ({"disk_free_mb": 20}, ["20 MB of free disk", "device clean"]),
    ],
)
def test_impossible_requests_are_refused_before_anything_is_sent(
    changes: dict[str, Any], words: list[str], nano: Callable[..., DeviceClient], nano_bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        measure(nano("8.2.1.8", **changes), nano_bundle)
    for word in words:
        assert word in str(caught.value)
    assert list((tmp_path / "agent" / "store").iterdir()) == []


def test_a_device_of_another_target_is_refused_before_it_is_asked(nano_bundle: Bundle) -> None:
    client = DeviceClient(LocalTransport())
    with pytest.raises(UsageError, match="is a tx2"):
        profile_on_device(nano_bundle, client, DeviceEntry("board", "local:", "tx2"))
    int8 = dataclasses.replace(nano_bundle, manifest=dataclasses.replace(nano_bundle.manifest, precision="int8"))
    with pytest.raises(UsageError, match="no INT8 instructions"):
        profile_on_device(int8, client, DeviceEntry("board", "local:", "nano"))


@pytest.mark.parametrize("version", ["8.2.1.8", "10.3.0"])
def test_images_run_in_the_engines_that_are_profiled(
    version: str, nano: Callable[..., DeviceClient], nano_bundle: Bundle, tmp_path: Path
) -> None:
    measure(nano(version), nano_bundle)
    engines = {path.parent.parent.name for path in (tmp_path / "agent" / "jobs").glob("*/out/engine")}
    image = tmp_path / "image.png"
    Image.fromarray(np.arange(20 * 24 * 3, dtype=np.uint8).reshape(20, 24, 3)).save(image)
    with nano(version) as client:
        [found] = run_on_device(nano_bundle, client, DeviceEntry("nano", "local:", "nano"), [image])
    [here] = classify(nano_bundle, [image], native="off")
    assert isinstance(found, Classification)
    assert (found.label, found.rates, found.exit) == (here.label, here.rates, None)
    assert found.confidence == pytest.approx(here.confidence, abs=1e-6)
    assert found.operators == "libdyndeploy_tensorrt.so"
    assert {path.parent.parent.name for path in (tmp_path / "agent" / "jobs").glob("*/out/engine")} == engines
    assert not list((tmp_path / "agent" / "jobs").glob("*/out/results.npz"))
