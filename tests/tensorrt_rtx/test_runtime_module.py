"""The C++ runtime's TensorRT module meets NVIDIA's library, as far as a machine without a GPU goes."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dyndeploy.bundle import Bundle
from dyndeploy.runtimes.native import NativeLibrary
from dyndeploy.runtimes.tensorrt_ahead import BuilderPackage, build_ahead
from dyndeploy.runtimes.tensorrt_engine import EngineSettings
from dyndeploy.runtimes.tensorrt_rtx import build_bundle_ahead
from tests.bundles import tiny_bundle
from tests.plugins.conftest import RuntimeBuild, newest_headers, onnxruntime_library, runtime_build
from tests.plugins.test_runtime import static_bundle
from tests.plugins.test_runtime_tensorrt import for_engines

__all__ = ["onnxruntime_library", "runtime_build"]
pytestmark = pytest.mark.skipif(newest_headers() is None, reason="no headers of a whole TensorRT")


@pytest.fixture
def module(runtime_build: RuntimeBuild) -> Path:
    path = runtime_build.library.parent / "libdyndeploy_runtime_tensorrt.so"
    if not path.is_file():
        pytest.skip("the module was built without TensorRT's headers")
    return path


@pytest.fixture
def environment(rtx: BuilderPackage, tmp_path: Path) -> Iterator[dict[str, str]]:
    with rtx.process_environment() as found:
        library = str(rtx.library_folders[0] / "libtensorrt_rtx.so.1")
        yield {**found, "DYNDEPLOY_TENSORRT": library, "DYNDEPLOY_CACHE": str(tmp_path / "cache")}


def program(build: RuntimeBuild, environment: dict[str, str], *arguments: object) -> tuple[int, str]:
    done = subprocess.run(
        [str(build.program), *map(str, arguments)], env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_module_builds_pythons_engine(
    runtime_build: RuntimeBuild,
    module: Path,
    environment: dict[str, str],
    rtx: BuilderPackage,
    tmp_path: Path,
    precision: str,
) -> None:
    """A graph without plugins, for the GPUs that TensorRT-RTX builds for by itself: byte for byte the same engine."""
    bundle = for_engines(static_bundle(tmp_path / "bundle"), "rtx4090", precision)
    engine = tmp_path / "engine"
    done = subprocess.run(
        [runtime_build.engine_builder, "build", module, environment["DYNDEPLOY_TENSORRT"], bundle.path, "model.onnx",
         "", engine],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    version, gpu, no_gpu, loading = done.stdout.splitlines()
    assert version == rtx.text
    assert (gpu == "") == (no_gpu != "")
    theirs = build_ahead(bundle.load_model(), precision, capabilities=(), package=rtx)
    assert engine.read_bytes() == theirs.engine
    assert loading.startswith("0 loaded" if gpu else f"5 TensorRT {version} is here, a GPU is not: no CUDA driver")


def test_an_engine_of_dyndeploy_engine_is_found_and_checked(
    runtime_build: RuntimeBuild, module: Path, environment: dict[str, str], rtx: BuilderPackage, tmp_path: Path
) -> None:
    bundle = for_engines(static_bundle(tmp_path / "bundle"), "rtx4090", "fp16")
    nothing_there = program(runtime_build, environment, bundle.path, "--info")
    [made] = build_bundle_ahead(bundle, EngineSettings(), package=rtx)
    found = program(runtime_build, environment, bundle.path, "--info")
    if found[0] == 0:
        pytest.skip("this machine has a GPU: nothing is refused")
    # Without a GPU nothing is built, and what is there is read, and goes as far as the GPU.
    for code, said in (nothing_there, found):
        assert code == 1
        assert said.count("\n") == 1 and f"TensorRT {rtx.text} is here, a GPU is not" in said
    made.path.write_bytes(made.path.read_bytes()[:-1])
    code, said = program(runtime_build, environment, bundle.path, "--info")
    assert code == 1
    assert f"The engine is not taken: {made.path} does not match its checksum" in said
    whole = json.loads(made.path.with_suffix(".json").read_text())
    made.path.with_suffix(".json").write_text(json.dumps({**whole, "built_from": {}}))
    assert "is of another engine" in program(runtime_build, environment, bundle.path, "--info")[1]


def test_the_plugins_are_loaded_into_the_real_registry(
    runtime_build: RuntimeBuild, module: Path, environment: dict[str, str], library: NativeLibrary, tmp_path: Path
) -> None:
    bundle: Bundle = for_engines(tiny_bundle(tmp_path / "bundle", mode="both"), "rtx4090", "fp16")
    path = library.path
    done = subprocess.run(
        [runtime_build.engine_builder, "build", module, environment["DYNDEPLOY_TENSORRT"], bundle.path, "model.onnx",
         path, tmp_path / "engine"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "engine").stat().st_size > 100_000
    code, said = program(runtime_build, environment, bundle.path, "--info", "--plugins", path)
    assert (code, "a GPU is not" in said) == (1, True) or code == 0


@pytest.mark.parametrize(("target", "said"), [("nano", "need precision flags, which end with 10"), ("cpu", "engines")])
def test_bundles_for_other_devices_are_refused(
    runtime_build: RuntimeBuild, module: Path, environment: dict[str, str], tmp_path: Path, target: str, said: str
) -> None:
    bundle = static_bundle(tmp_path / "bundle")
    if target != "cpu":
        bundle = for_engines(bundle, target, "fp16")
    code, text = program(runtime_build, environment, bundle.path, "--info", "--runtime", "tensorrt")
    assert code in (1, 2) and said in text and text.count("\n") == 1


def test_what_is_no_tensorrt_is_refused(
    runtime_build: RuntimeBuild, module: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    bundle = for_engines(static_bundle(tmp_path / "bundle"), "rtx4090", "fp16")
    for library, said in (
        (tmp_path / "nowhere.so", "Cannot open TensorRT"),
        (runtime_build.library, "is not TensorRT: it has no createInferRuntime_INTERNAL"),
    ):
        code, text = program(runtime_build, environment, bundle.path, "--info", "--tensorrt", library)
        assert (code, said in text, text.count("\n")) == (1, True, 1), text
    code, text = program(runtime_build, {**os.environ, "LD_LIBRARY_PATH": ""}, bundle.path, "--info")
    assert (code, "Cannot open TensorRT" in text or "is here" in text) == (1, True)
