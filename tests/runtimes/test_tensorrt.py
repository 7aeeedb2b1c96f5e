"""Builder and runner against fakes of five TensorRT versions; graphs are computed for real, in NumPy."""

from __future__ import annotations

import ctypes
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dyndeploy.bundle import Bundle
from dyndeploy.errors import BundleError, DyndeployError, InputError, UsageError
from dyndeploy.files import sha256
from dyndeploy.ops import OPERATORS
from dyndeploy.runtimes import OnnxRuntimeSession
from dyndeploy.runtimes.cuda import CudaGraph, Gpu
from dyndeploy.runtimes.tensorrt import TensorRTSession
from dyndeploy.runtimes.tensorrt_api import TensorRT
from dyndeploy.runtimes.tensorrt_device import parse_version
from dyndeploy.runtimes.tensorrt_engine import (
    ENGINES,
    EngineSettings,
    build_engine,
    build_stage_engines,
    load_metadata,
    plugin_library,
    trtexec_commands,
    write_trtexec_files,
)
from dyndeploy.runtimes.tensorrt_plan import BuildOptions
from tests.bundles import MODES, tiny_bundle
from tests.runtimes.fake_tensorrt import VERSIONS, FakeCuda, World, install_fakes, make_tensorrt, numbers
from tests.staged_bundles import EXITS, staged_bundle

Install = Callable[[str], World]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Install:
    """Put the fakes of a version in place of tensorrt, pycuda and the loader of libraries."""
    return lambda version: install_fakes(monkeypatch, version, tmp_path)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Of its own for every test: engines lie in its folder."""
    return tiny_bundle(tmp_path / "b", mode="both", batch=2)


def images(bundle: Bundle) -> dict[str, np.ndarray]:
    return {"input": bundle.reference()["input"][: bundle.manifest.batch]}


NAMES = json.loads((Path(__file__).parent / "data" / "tensorrt_names.json").read_text(encoding="utf-8"))["names"]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_fakes_have_the_names_of_the_real_packages(version: str) -> None:
    trt = make_tensorrt(World(version))
    vocabulary: dict[str, set[str]] = {}
    for classes in NAMES.values():
        for kind, names in classes.items():
            vocabulary.setdefault(kind, set()).update(names)
    assert sum(map(len, vocabulary.values())) > 45
    for kind, names in vocabulary.items():
        fake = getattr(trt, kind, None)
        assert {name for name in names if hasattr(fake, name)} == set(NAMES[version][kind]), kind


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_builds_and_runs(version: str, install: Install, bundle: Bundle, tmp_path: Path) -> None:
    world = install(version)
    session, built = TensorRTSession.from_bundle(bundle)
    with session:
        actual = session.run(images(bundle))
        assert session.info.runtime == "tensorrt"
        assert session.info.version == version
        assert session.info.provider == "Fake Nano, compute 5.3"
        assert session.info.native.sha256 == sha256(tmp_path / "libdyndeploy_tensorrt.so")
        timed = session.timed_run(images(bundle))
        assert [timed() for _ in range(3)] == [1.5] * 3
        assert "no libcuda here" in session.graph_note
        assert list(session.run(images(bundle), ["logits"])) == ["logits"]
        with pytest.raises(InputError):
            session.run({"input": np.zeros((1, 3, 16, 16), np.float32)})
    with OnnxRuntimeSession(bundle.model, native="off") as reference:
        expected = reference.run(images(bundle))
    assert set(actual) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, atol=2e-4)
    number = numbers(version)
    assert set(world.executions) == {"v2" if number < (8, 5) else "v3"}
    assert [how for how, _ in world.loads] == ["dlopen"], "plugins that are registered are not loaded again"
    [build] = world.builds
    assert build["workspace"] == 1 << 30
    assert build["verbosity"] == "DETAILED"
    assert build["flags"] == set()
    assert build["network_flags"] == (1 if number < (10,) else 0)
    assert not built.cached
    assert world.contexts == 0 and not world.memory, "nothing is left on the device"


@pytest.mark.parametrize("version", VERSIONS)
def test_fp16_plans(version: str, install: Install, bundle: Bundle) -> None:
    world = install(version)
    session, built = TensorRTSession.from_bundle(bundle, EngineSettings(precision="fp16"))
    session.close()
    [build] = world.builds
    if numbers(version) >= (11,):
        assert build["flags"] == set() and not build["float_layers"]
        assert "types in the graph" in built.metadata["plan"]
    else:
        assert build["flags"] == {"FP16", "OBEY_PRECISION_CONSTRAINTS"}
        assert build["float_layers"] == {"head/mean", "head/fc"}
        assert "builder flags" in built.metadata["plan"]


def test_typed_engine_on_10_computes_in_half(install: Install, bundle: Bundle) -> None:
    world = install("10.3.0")
    session, _ = TensorRTSession.from_bundle(bundle, EngineSettings(precision="fp16", strongly_typed=True))
    with session:
        actual = session.run(images(bundle))
    assert world.builds[0]["network_flags"] == 2
    with OnnxRuntimeSession(bundle.model, native="off") as reference:
        expected = reference.run(images(bundle))
    same = all(np.array_equal(actual[mask.name], expected[mask.name]) for mask in bundle.manifest.masks)
    error = np.abs(actual["logits"] - expected["logits"]).max()
    assert error > 0 and (error < 2e-2 or not same)


def test_static_twin_needs_no_plugins(install: Install, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    world = install("8.5.3.1")
    monkeypatch.delenv("DYNDEPLOY_TENSORRT_LIBRARY")
    session, built = TensorRTSession.from_bundle(bundle, EngineSettings(static=True))
    with session:
        actual = session.run(images(bundle))
    assert built.library is None and not world.loads
    with OnnxRuntimeSession(bundle.static, native="off") as reference:  # type: ignore[arg-type]
        np.testing.assert_allclose(actual["logits"], reference.run(images(bundle))["logits"], atol=1e-4)


def test_engine_cache(install: Install, bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    world = install("8.5.3.1")
    with Gpu() as gpu, caplog.at_level(logging.INFO, "dyndeploy.tensorrt"):
        first = build_engine(bundle, gpu.info)
        assert sha256(tmp_path / "libdyndeploy_tensorrt.so") in caplog.text, "the log names the library"
        again = build_engine(bundle, gpu.info)
        assert (again.cached, again.path, len(world.builds)) == (True, first.path, 1)
        assert first.path.parent == bundle.path / ENGINES
        # Whatever shapes an engine leads to another one.
        others = [
            build_engine(bundle, gpu.info, settings).path
            for settings in (
                EngineSettings(precision="fp16"),
                EngineSettings(static=True),
                EngineSettings(options=BuildOptions(workspace_mib=512)),
                EngineSettings(options=BuildOptions(tf32=True)),
            )
        ]
        (tmp_path / "libdyndeploy_tensorrt.so").write_bytes(b"other plugins")
        others.append(build_engine(bundle, gpu.info).path)
        newer = type(gpu.info)(gpu.info.name, "6.2", gpu.info.cuda, gpu.info.driver)
        others.append(build_engine(bundle, newer).path)
        assert len({first.path, *others}) == 1 + len(others)
        # The second build starts from what the first one timed, a build for another device does not.
        assert [build["timing_cache"] for build in world.builds[:3]] == [b"", b"+", b"++"]
        assert world.builds[-1]["timing_cache"] == b""
        # A damaged engine is built again.
        (tmp_path / "libdyndeploy_tensorrt.so").write_bytes(b"plugins")
        first.path.write_bytes(b"half an engine")
        count = len(world.builds)
        assert not build_engine(bundle, gpu.info).cached and len(world.builds) == count + 1
        # So is one without its metadata, which are written last.
        first.path.with_suffix(".json").unlink()
        assert not build_engine(bundle, gpu.info).cached


@pytest.mark.parametrize("version", ["8.2.1.8", "10.3.0"])
def test_every_stage_gets_an_engine(version: str, install: Install, tmp_path: Path) -> None:
    world = install(version)
    stages = staged_bundle(tmp_path / "stages", batch=1)
    told: list[str] = []
    with Gpu() as gpu:
        built = build_stage_engines(stages, gpu.info, progress=told.append)
        assert [engine.cached for engine in built] == [False] * len(EXITS) and len(world.builds) == len(EXITS)
        assert len({engine.path for engine in built}) == len(EXITS), "one file per stage"
        assert all(engine.path.is_file() and engine.library is None for engine in built)
        inputs = [json.loads(engine.path.with_suffix(".json").read_text())["built_from"]["inputs"] for engine in built]
        assert [sorted(each) for each in inputs] == [
            sorted(value.name for value in stage.inputs) for stage in stages.exits.stages
        ]
        assert [line for line in told if "building" in line] == [
            f"exit {number}: building the engine (minutes on a board)" for number in EXITS
        ]
        again = build_stage_engines(stages, gpu.info)
        assert [(engine.cached, engine.path) for engine in again] == [(True, engine.path) for engine in built]
        if version.startswith("8"):
            halves = build_stage_engines(stages, gpu.info, EngineSettings(precision="fp16"))
            assert not {engine.path for engine in halves} & {engine.path for engine in built}
        with pytest.raises(UsageError, match="one batch size"):
            build_stage_engines(staged_bundle(tmp_path / "open"), gpu.info)


@pytest.mark.parametrize("version", VERSIONS)
def test_plugins_in_another_precision_fail_the_build(version: str, install: Install, bundle: Bundle) -> None:
    world = install(version)
    world.fails = {"half plugins"}
    message = r"not what its plan says: .*layer2\.0/SpatialChannelBottleneck reads 11 x float32, and the plan gives it"
    with Gpu() as gpu:
        with pytest.raises(DyndeployError, match=message):
            build_engine(bundle, gpu.info, EngineSettings(precision="fp16"))
        assert not list((bundle.path / ENGINES).glob("*.engine")), "an engine that is refused is not kept"
        assert not build_engine(bundle, gpu.info, EngineSettings(precision="fp32")).metadata["layers_note"]


def test_types_that_cannot_be_read_back_are_said(
    install: Install, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    world = install("8.2.1.8")
    world.fails = {"inspector"}
    with Gpu() as gpu, caplog.at_level(logging.WARNING):
        metadata = build_engine(bundle, gpu.info).metadata
    assert "types of the plugins were not read back: TensorRT's inspector says nothing" in metadata["layers_note"]
    assert metadata["layers"] is None and metadata["plugin_layers"] == {} and metadata["layers_note"] in caplog.text


def test_metadata_stand_beside_the_engine(install: Install, bundle: Bundle) -> None:
    install("8.2.1.8")
    with Gpu() as gpu:
        built = build_engine(bundle, gpu.info)
    metadata = load_metadata(built.path)
    assert metadata == json.loads(built.path.with_suffix(".json").read_text())
    plan = built.plan.to_json()
    del plan["cuda_graph"]
    assert metadata["built_from"] | {"onnx_sha256": ""} == {
        "schema": 3,
        "onnx_sha256": "",
        "plan": plan,
        "name": "Fake Nano",
        "compute_capability": "5.3",
        "cuda": "10.2.0",
        "driver": "10.2",
        "inputs": {"input": [2, 3, 16, 16]},
    }
    assert "SpatialChannelBottleneck" in metadata["operators"]
    assert {fact["type"] for fact in metadata["plugin_layers"].values()} == {"float32"} and not metadata["layers_note"]
    assert [layer["name"] for layer in metadata["layers"] if layer["plugin"]] == list(metadata["plugin_layers"])
    built.path.write_bytes(b"another engine")
    with pytest.raises(BundleError, match="is not the engine"):
        load_metadata(built.path)
    with pytest.raises(BundleError, match="Build it again"):
        TensorRTSession(built.path.with_name("none.engine"))


def test_missing_plugins_come_before_the_parser(
    install: Install, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = install("8.6.1.6")
    world.library_operators = ["SpatialMasker", "ChannelMasker"]
    with Gpu() as gpu:
        with pytest.raises(DyndeployError) as caught:
            build_engine(bundle, gpu.info)
        message = str(caught.value)
        assert "No plugin creator for SpatialChannelBottleneck, SpatialChannelBottleneckProjection:" in message
        assert "Masker" not in message and "In node" not in message
        assert str(tmp_path / "libdyndeploy_tensorrt.so") in message
        world.registered, world.library_operators = [], list(OPERATORS)
        world.fails = {"load"}
        with pytest.raises(DyndeployError, match=r"undefined symbol.* Build it on this machine"):
            build_engine(bundle, gpu.info)
        world.fails = {"build"}
        with pytest.raises(DyndeployError, match=r"could not build the engine.*1024 MiB"):
            build_engine(bundle, gpu.info)
        monkeypatch.delenv("DYNDEPLOY_TENSORRT_LIBRARY")
        with pytest.raises(UsageError, match="no plugin library was found"):
            build_engine(bundle, gpu.info)
        with pytest.raises(UsageError, match=r"none\.so"):
            plugin_library(tmp_path / "none.so")
    assert world.contexts == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_libraries_that_only_offer_their_creators(version: str, install: Install, bundle: Bundle) -> None:
    world = install(version)
    world.fails = {"static registration"}
    with Gpu() as gpu:
        if numbers(version) < (8, 6):
            with pytest.raises(DyndeployError, match="it registers no plugins"):
                build_engine(bundle, gpu.info)
        else:
            build_engine(bundle, gpu.info)
            assert [how for how, _ in world.loads] == ["dlopen", "load_library"]


def test_failures_of_a_run(install: Install, bundle: Bundle) -> None:
    world = install("8.5.3.1")
    session, built = TensorRTSession.from_bundle(bundle)
    with session:
        world.fails = {"execute"}
        with pytest.raises(DyndeployError, match="could not enqueue"):
            session.run(images(bundle))
        with pytest.raises(DyndeployError, match="could not enqueue"):
            session.timed_run(images(bundle))()
        with pytest.raises(DyndeployError, match="could not run"):
            session.layer_times(images(bundle), 1)
    world.fails = set()
    with TensorRTSession(built.path) as again:
        assert again.run(images(bundle))["logits"].shape == (2, 10)
    # The same file under another TensorRT.
    install("8.6.1.6")
    with pytest.raises(BundleError, match="refuses the engine"):
        TensorRTSession(built.path)
    world = install("8.6.1.6")
    world.fails = {"device"}
    with pytest.raises(DyndeployError, match="invalid device ordinal"):
        TensorRTSession(built.path)


def test_what_is_missing_is_named(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(DyndeployError, match=r"comes with JetPack.*dyndeploy\[tensorrt\]"):
        TensorRT.load()
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(DyndeployError, match="pycuda cannot be imported"):
        Gpu()
    install("8.0.1.6")
    with pytest.raises(DyndeployError, match=r"8\.0\.1\.6 is too old"):
        TensorRT.load()
    assert parse_version("10.0.0b6") == (10, 0, 0)
    assert parse_version("8.2.1.8") == (8, 2, 1, 8)


class Stream:
    handle = 77


@pytest.mark.parametrize("flags_call", [True, False])
def test_cuda_graph(flags_call: bool) -> None:
    driver, runs = FakeCuda(flags_call=flags_call), []
    graph = CudaGraph(lambda: runs.append(1), Stream(), driver)
    graph.launch()
    graph.launch()
    graph.close()
    graph.close()
    instantiate = "instantiate_flags" if flags_call else "instantiate"
    assert driver.calls == ["begin", "end", instantiate, "launch", "launch", "destroy_executable", "destroy_graph"]
    assert len(runs) == 1


@pytest.mark.parametrize("step", ["begin", "end", "instantiate_flags"])
def test_what_cannot_be_captured(step: str) -> None:
    with pytest.raises(DyndeployError, match="CUDA error 900"):
        CudaGraph(lambda: None, Stream(), FakeCuda(fails=step))


def test_a_failing_run_ends_the_capture() -> None:
    driver = FakeCuda()

    def fail() -> None:
        raise DyndeployError("no")

    with pytest.raises(DyndeployError, match="no"):
        CudaGraph(fail, Stream(), driver)
    assert driver.calls == ["begin", "end"]


def test_sessions_launch_a_graph_from_the_second_run_on(
    install: Install, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("8.5.3.1")
    driver = FakeCuda()
    load = ctypes.CDLL
    monkeypatch.setattr(ctypes, "CDLL", lambda path, *a, **k: driver if "libcuda" in path else load(path, *a, **k))
    session, _ = TensorRTSession.from_bundle(bundle)
    with session:
        first = session.run(images(bundle))
        second = session.run(images(bundle))
        assert session.graph_note == ""
    np.testing.assert_array_equal(first["logits"], second["logits"])
    assert driver.calls.count("launch") == 1
    assert driver.calls[-2:] == ["destroy_executable", "destroy_graph"]
    session, _ = TensorRTSession.from_bundle(bundle, EngineSettings(options=BuildOptions(cuda_graph=False)))
    with session:
        session.run(images(bundle))
        assert session.graph_note == "switched off"


@pytest.mark.parametrize("mode", MODES)
def test_trtexec_files(mode: str, tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b", mode=mode, batch=2)
    written = write_trtexec_files(bundle, tmp_path / "out", "8.2.1", EngineSettings(precision="fp16"))
    assert written.inputs["input"].stat().st_size == 4 * 2 * 3 * 16 * 16
    assert written.model.name == "model.fp16.trt.onnx"
    assert written.plan.float_layers == ("head/fc", "head/mean")
    typed = write_trtexec_files(bundle, tmp_path / "out", "11.1", EngineSettings(precision="fp16", static=True))
    assert typed.model.name == "static.fp16.typed.trt.onnx"
    assert typed.plan.float_layers == ()


def test_trtexec_commands(tmp_path: Path, bundle: Bundle) -> None:
    def commands(version: str, precision: str = "fp16", typed: bool | None = None) -> tuple[list[str], list[str]]:
        settings = EngineSettings(precision=precision, strongly_typed=typed)
        written = write_trtexec_files(bundle, tmp_path, version, settings)
        build, measure = trtexec_commands(written, "/opt/lib plugins.so")
        assert build.startswith("trtexec --onnx=") and measure.startswith("trtexec --loadEngine=")
        assert build.count("lib plugins.so'") == measure.count("lib plugins.so'") == 1, "quoted for a shell"
        return build.split(), measure.split()

    build, measure = commands("8.2.1")
    assert {"--workspace=1024", "--fp16", "--noTF32", "--buildOnly", "'--plugins=/opt/lib"} <= set(build)
    assert not any(word.startswith(("--layerPrecisions", "--memPool")) for word in build)
    assert {"--percentile=99", "--useCudaGraph", "--useSpinWait", "--noDataTransfers"} <= set(measure)
    assert f"--loadInputs=input:{tmp_path / 'input.bin'}" in measure
    build, measure = commands("8.5.3")
    assert {"--memPoolSize=workspace:1024", "--buildOnly", "'--plugins=/opt/lib"} <= set(build)
    assert "--layerPrecisions=head/fc:fp32,head/mean:fp32" in build
    build, _ = commands("8.6.1")
    assert {"--skipInference", "'--staticPlugins=/opt/lib", "--precisionConstraints=obey"} <= set(build)
    build, _ = commands("10.3", typed=True)
    assert "--stronglyTyped" in build and "--fp16" not in build
    build, measure = commands("11.1")
    assert not {"--fp16", "--stronglyTyped"} & set(build)
    assert not {"--useCudaGraph", "--useSpinWait", "--noDataTransfers", "--separateProfileRun"} & set(measure)
    build, _ = commands("8.5.3", precision="fp32")
    assert "--fp16" not in build and not any(word.startswith("--precisionConstraints") for word in build)


_UNKNOWN_FLAGS = {
    "8.2.1": "staticPlugins memPoolSize stronglyTyped layerPrecisions layerOutputTypes skipInference",
    "8.4.1": "staticPlugins stronglyTyped skipInference",
    "8.5.3": "staticPlugins stronglyTyped skipInference",
    "8.6.1": "stronglyTyped",
    "10.3": "workspace buildOnly",
    "10.16": "workspace buildOnly",
    "11.1": "workspace buildOnly fp16 precisionConstraints layerPrecisions layerOutputTypes",
}
"""Flags that trtexec of a version does not know, of all that any version is given (read in its sources)."""


@pytest.mark.parametrize("version", _UNKNOWN_FLAGS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_trtexec_knows_every_flag(version: str, precision: str, bundle: Bundle, tmp_path: Path) -> None:
    written = write_trtexec_files(bundle, tmp_path, version, EngineSettings(precision=precision))
    given = {
        word.split("=")[0]
        for command in trtexec_commands(written, "/lib.so")
        for word in command.split()
        if word.startswith("--")
    }
    assert not given & {f"--{name}" for name in _UNKNOWN_FLAGS[version].split()}
    assert {"--onnx", "--saveEngine", "--loadEngine", "--noTF32", "--timingCacheFile"} <= given


@pytest.mark.parametrize("version", ["7.2.3", "12.0", "new", "8", "8.1"])
def test_other_versions_are_refused(version: str, bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no TensorRT version that is supported"):
        write_trtexec_files(bundle, tmp_path / "none", version)
    assert not (tmp_path / "none").exists()
