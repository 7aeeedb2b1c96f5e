"""The C++ runtime's TensorRT: engines keyed as in Python, built where missing, run to the bit; and bad input.

``stand_in_module.cpp`` stands for what needs a GPU: ONNX Runtime computes, in memory that the host does not see.
The real module is compiled against every set of headers at hand, and meets the real library in ``tests/tensorrt_rtx``.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from dyndeploy.bundle import Bundle, write_manifest
from dyndeploy.files import sha256
from dyndeploy.graphs.passes import with_all_bodies
from dyndeploy.precisions import PRECISIONS
from dyndeploy.runtimes import OnnxRuntimeSession, open_staged
from dyndeploy.runtimes.cuda import GpuInfo
from dyndeploy.runtimes.tensorrt_bundle import ENGINE_PLANS, write_engine_plans
from dyndeploy.runtimes.tensorrt_engine import ENGINE_SCHEMA, cached_metadata, engine_place, graph_inputs, load_metadata
from dyndeploy.runtimes.tensorrt_plan import plan_build
from dyndeploy.runtimes.tensorrt_rtx import AHEAD_SCHEMA
from dyndeploy.targets import load_target
from tests.bundles import tiny_bundle, with_reference
from tests.plugins.conftest import SOURCES, RuntimeBuild, has_parser
from tests.plugins.device_runtime import binding
from tests.plugins.test_runtime import with_exit_logits
from tests.staged_bundles import images, staged_bundle
from tests.tensorrt.test_contract import HEADERS, NO_HEADERS

USAGE, DAMAGED, BACKEND, RUN = 1, 2, 5, 6
GPU = GpuInfo("stand-in", "5.3", "10.2.0", "10.2")


def for_engines(bundle: Bundle, target: str = "nano", precision: str = "fp32") -> Bundle:
    """The bundle as an export for a board writes it: with plans and copies."""
    files = ["model.onnx"] if bundle.manifest.exits is None else [stage.file for stage in bundle.manifest.exits.stages]
    models = [bundle.load_model()] if bundle.manifest.exits is None else list(bundle.load_stages())
    write_engine_plans(bundle.path, dict(zip(files, models, strict=True)), load_target(target), precision)
    return sealed_again(bundle, target=target, precision=precision)


def sealed_again(bundle: Bundle, **changes: Any) -> Bundle:
    found = [path for path in bundle.path.rglob("*") if path.is_file() and path.name != "bundle.json"]
    sums = {path.relative_to(bundle.path).as_posix(): sha256(path) for path in found}
    write_manifest(bundle.path, replace(bundle.manifest, files=sums, **changes))
    return Bundle.open(bundle.path)


def runnable(bundle: Bundle) -> Bundle:
    """The same with the graphs themselves for copies, which what stands for TensorRT can run."""
    path = bundle.path / ENGINE_PLANS
    plans = json.loads(path.read_text())
    for name, graph in plans["graphs"].items():
        graph["copy"] = name
        model = onnx.load(bundle.path / name)
        whole = with_all_bodies(model)
        if whole is not model:
            onnx.save(whole, bundle.path / name)
    path.write_text(json.dumps(plans))
    return sealed_again(bundle)


@pytest.fixture
def stand_in(
    runtime_build: RuntimeBuild, onnxruntime_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Opens a bundle on what stands for TensorRT and a GPU."""
    plugins = tmp_path / "libdyndeploy_tensorrt.so"
    plugins.write_bytes(b"plugins")
    for name, value in (
        ("DYNDEPLOY_TENSORRT_MODULE", runtime_build.stand_in),
        ("DYNDEPLOY_ONNXRUNTIME", onnxruntime_library),
        ("DYNDEPLOY_TENSORRT_LIBRARY", plugins),
        ("DYNDEPLOY_CACHE", tmp_path / "cache"),
    ):
        monkeypatch.setenv(name, str(value))
    return functools.partial(binding().open_bundle, library=runtime_build.library)


def engines(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "engines").glob("*.engine"))


# ---------------------------------------------------------------- keys


def builder(build: RuntimeBuild, *arguments: object) -> list[str]:
    done = subprocess.run(
        [str(build.engine_builder), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(("target", "precision"), [("nano", "fp32"), ("nano", "fp16"), ("rtx4090", "fp16")])
@pytest.mark.parametrize("library", [None, "ab" * 32])
def test_engines_are_keyed_as_in_python(
    runtime_build: RuntimeBuild,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    precision: str,
    library: str | None,
) -> None:
    monkeypatch.setenv("DYNDEPLOY_CACHE", str(tmp_path))
    bundle = for_engines(tiny_bundle(tmp_path / "bundle", mode="both"), target, precision)
    gpu = GpuInfo('NVIDIA "Tegra" X1 \u00e9', "5.3", "10.2.0", "10.2")
    version = "8.2.1.8" if target == "nano" else "11.1.0.106"
    plan, copy = plan_build(bundle.load_model(), precision, version)
    further = {"schema": ENGINE_SCHEMA, **gpu.to_json(), "inputs": graph_inputs(copy)}
    content = copy.SerializeToString(deterministic=True)
    wanted, path, beside = engine_place(tmp_path / "engines", plan.with_library(library), content, further)
    facts = (version, gpu.name, gpu.compute_capability, gpu.cuda, gpu.driver, library or "")
    engine, metadata, built_from = builder(runtime_build, "key", bundle.path, "model.onnx", *facts)
    assert (engine, metadata, json.loads(built_from)) == (str(path), str(beside), wanted)
    if target == "rtx4090":
        version = "RTX 1.7.1.116"
        plan, copy = plan_build(bundle.load_model(), precision, version, capabilities=("8.9",))
        content = copy.SerializeToString(deterministic=True)
        wanted, path, _ = engine_place(
            bundle.path / "engines", plan.with_library(library), content, {"schema": AHEAD_SCHEMA}
        )
        engine, _, built_from = builder(runtime_build, "ahead", bundle.path, "model.onnx", version, library or "")
        assert (engine, json.loads(built_from)) == (str(path), wanted)


def test_tolerances_are_those_of_python() -> None:
    wanted = {name: one.tolerance for name, one in PRECISIONS.items() if one.tolerance is not None}
    assert limits_in("tolerance_of") == {name: (one.output, one.margin, one.ties) for name, one in wanted.items()}
    of_boxes = {name: one.detections for name, one in PRECISIONS.items() if one.detections is not None}
    assert limits_in("detection_limits_of") == {
        name: (one.box, one.score, one.mask_iou, one.unpaired) for name, one in of_boxes.items()
    }
    assert all(one.cut == one.score / 10 for one in of_boxes.values())
    assert "margin = limits.score / 10;" in (SOURCES / "src" / "matching.cpp").read_text()


def limits_in(function: str) -> dict[str, tuple[float, ...]]:
    """What a function of the C++ runtime gives for each precision; FP32's stand last."""
    text = (SOURCES / "src" / "verify.cpp").read_text()
    body = re.search(rf" {function}\(const std::string& precision\) \{{\n(.*?)\n\}}", text, re.S)
    assert body is not None
    *others, rest = re.findall(r'(?:precision == "(\w+)"\) )?return \{([^}]*)\};', body[1])
    assert not rest[0]
    return {name or "fp32": tuple(map(float, numbers.split(","))) for name, numbers in (*others, rest)}


# ---------------------------------------------------------------- running


@pytest.mark.parametrize("mode", ["spatial", "layer", "channel"])
def test_an_engine_is_built_once_and_computes_what_the_graph_does(
    stand_in: Callable[..., Any], tmp_path: Path, mode: str
) -> None:
    bundle = runnable(for_engines(with_reference(tiny_bundle(tmp_path / "bundle", mode=mode))))
    feeds = {name: value[:1] for name, value in bundle.reference_inputs().items()}
    with OnnxRuntimeSession(bundle.model, native="off") as session:
        expected = session.run(feeds)
    said: list[str] = []
    with stand_in(bundle.path, progress=said.append) as session:
        assert (session.info["runtime"], session.info["version"]) == ("tensorrt", "8.2.1.8")
        assert session.info["operators"] == "libdyndeploy_tensorrt.so"
        for _ in range(3):
            got = session.run(feeds)
            for name, value in expected.items():
                np.testing.assert_array_equal(got[name], value)
        session.verify()
        [some] = session.run(feeds, ["logits"]).values()
        np.testing.assert_array_equal(some, expected["logits"])
    [engine] = engines(tmp_path)
    assert [line.partition(":")[0] for line in said] == [
        "building the engine of model.onnx for stand-in (fp32, builder flags", "TensorRT", f"built {engine}",
    ]  # fmt: skip
    # What Python reads of it.
    metadata = load_metadata(engine)
    assert cached_metadata(engine, engine.with_suffix(".json"), metadata["built_from"]) == metadata
    assert metadata["operators"] == [name for name, _ in metadata["built_from"]["plan"]["plugins"]]
    assert metadata["built_from"]["plan"]["library_sha256"] == hashlib.sha256(b"plugins").hexdigest()
    assert (engine.parent / "timing.cache").read_bytes() == b"t"
    assert json.loads((engine.parent / "timing.cache.json").read_text()) == {"tensorrt": "8.2.1.8", **GPU.to_json()}
    said.clear()
    stand_in(bundle.path, progress=said.append).close()
    assert said == []


@pytest.mark.parametrize("thresholds", [(-1.0, -1.0), (2.0, -1.0), (2.0, 2.0), (0.5, 0.4)])
def test_stages_hand_on_what_lies_on_the_device(
    stand_in: Callable[..., Any], tmp_path: Path, thresholds: tuple[float, float]
) -> None:
    bundle = runnable(for_engines(staged_bundle(tmp_path / "bundle", batch=4)))
    pictures = images(11)
    with open_staged(bundle, thresholds=thresholds) as session:
        expected = session.run(pictures)
    with stand_in(bundle.path, thresholds=thresholds) as session:
        parts = [pictures[i : i + 4] for i in range(0, 11, 4)]
        logits = np.concatenate([session.run({"images": part})["logits"] for part in parts])
        counted = session.statistics()["exits"]
    np.testing.assert_array_equal(logits, expected.logits)
    assert counted == {str(number): int((expected.exits == number).sum()) for number in (1, 2, 4)}
    assert len(engines(tmp_path)) == 3


def test_a_damaged_or_foreign_engine_is_built_again(
    stand_in: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = runnable(for_engines(tiny_bundle(tmp_path / "bundle")))
    stand_in(bundle.path).close()
    [engine] = engines(tmp_path)
    whole = engine.read_bytes()

    def spoil_engine() -> None:
        engine.write_bytes(whole[:-1])

    def spoil_metadata() -> None:
        engine.with_suffix(".json").write_text("{")

    def other_metadata() -> None:
        engine.with_suffix(".json").write_text('{"built_from": {}, "engine_sha256": ""}')

    for spoil, reason in (
        (spoil_engine, "does not match its checksum"),
        (spoil_metadata, "cannot be read"),
        (other_metadata, "is of another engine"),
    ):
        spoil()
        said: list[str] = []
        stand_in(bundle.path, progress=said.append).close()
        assert reason in said[0] and said[0].startswith("The engine is built again")
        assert engine.read_bytes() == whole and load_metadata(engine)
    monkeypatch.setenv("DYNDEPLOY_STAND_IN_VERSION", "8.5.2.2")
    stand_in(bundle.path).close()
    assert len(engines(tmp_path)) == 2


def test_what_cannot_run_is_told_in_one_line(
    stand_in: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = runnable(for_engines(tiny_bundle(tmp_path / "bundle")))

    def refused(path: Path = bundle.path, **options: Any) -> tuple[int, str]:
        with pytest.raises(binding().DyndeployError) as raised:
            stand_in(path, **options)
        assert "\n" not in str(raised.value)
        return raised.value.code, str(raised.value)

    for what, said in (
        ("gpu", "TensorRT 8.2.1.8 is here, a GPU is not: cuInit failed with CUDA error 100"),
        ("plugin", "No plugin creator for"),
        ("build", "could not build the engine"),
    ):
        monkeypatch.setenv("DYNDEPLOY_STAND_IN_FAILS", what)
        code, text = refused()
        assert (code, said in text) == (BACKEND, True), text
    assert engines(tmp_path) == []
    monkeypatch.delenv("DYNDEPLOY_STAND_IN_FAILS")
    monkeypatch.setenv("DYNDEPLOY_STAND_IN_VERSION", "11.1.0.106")
    code, text = refused()
    assert (code, "need precision flags, which end with 10" in text) == (BACKEND, True)
    monkeypatch.delenv("DYNDEPLOY_STAND_IN_VERSION")
    assert refused(plugins=tmp_path / "none.so") == (USAGE, f"There is no plugin library at {tmp_path / 'none.so'}.")
    code, text = refused(runtime="cuda")
    assert (code, "There is no runtime 'cuda'" in text) == (USAGE, True)
    code, text = refused(tiny_bundle(tmp_path / "other").path, runtime="tensorrt")
    assert (code, "does not say how engines are built" in text) == (USAGE, True)
    (tmp_path / "blocked").write_text("no folder")
    monkeypatch.setenv("DYNDEPLOY_CACHE", str(tmp_path / "blocked"))
    code, text = refused()
    assert (code, "The engine cannot be kept: cannot make the folder" in text) == (BACKEND, True)
    monkeypatch.setenv("DYNDEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DYNDEPLOY_TENSORRT_MODULE", str(tmp_path / "libdyndeploy_tensorrt.so"))
    code, text = refused()
    assert (code, "Cannot open the TensorRT module" in text) == (BACKEND, True)
    monkeypatch.setenv("DYNDEPLOY_TENSORRT_MODULE", str(tmp_path / "nowhere.so"))
    assert refused()[0] == USAGE
    monkeypatch.delenv("DYNDEPLOY_TENSORRT_MODULE")
    with stand_in(bundle.path, runtime="onnxruntime") as session:
        assert session.info["runtime"] == "onnxruntime"


def test_plans_are_checked_field_by_field(stand_in: Callable[..., Any], tmp_path: Path) -> None:
    bundle = runnable(for_engines(tiny_bundle(tmp_path / "bundle")))
    path = bundle.path / ENGINE_PLANS
    whole = json.loads(path.read_text())

    def refused(change: Callable[[dict[str, Any]], object]) -> str:
        value = json.loads(json.dumps(whole))
        change(value)
        path.write_text(json.dumps(value))
        sealed_again(bundle)
        with pytest.raises(binding().DyndeployError) as raised:
            stand_in(bundle.path)
        assert raised.value.code == DAMAGED
        return str(raised.value)

    graph = 'graphs["model.onnx"]'
    assert "device/engines.json is malformed: schema_version must be 1" in refused(
        lambda value: value.update(schema_version=2)
    )
    assert "graphs.model.onnx is missing" in refused(lambda value: value["graphs"].pop("model.onnx"))
    assert f"{graph}.copy must be a file of the bundle" in refused(
        lambda value: value["graphs"]["model.onnx"].update(copy="../x")
    )
    assert f"{graph}.plan.precision must be fp32, fp16 or int8" in refused(
        lambda value: value["graphs"]["model.onnx"]["plan"].update(precision="int4")
    )
    path.write_text("{")
    with pytest.raises(binding().DyndeployError, match=r"damaged: device/engines\.json"):
        stand_in(bundle.path)


def test_a_run_that_fails_and_one_that_computes_nan(
    stand_in: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = runnable(for_engines(tiny_bundle(tmp_path / "bundle")))
    feeds = {name: value[:1] for name, value in bundle.reference_inputs().items()}
    with stand_in(bundle.path) as session:
        monkeypatch.setenv("DYNDEPLOY_STAND_IN_FAILS", "run")
        with pytest.raises(binding().DyndeployError, match="could not run the engine") as raised:
            session.run(feeds)
        assert raised.value.code == RUN
        monkeypatch.delenv("DYNDEPLOY_STAND_IN_FAILS")
        assert np.isfinite(session.run(feeds)["logits"]).all()


@pytest.mark.parametrize("kind", ["one graph", "stages"])
def test_changed_engine_plans_crash_nothing(
    stand_in: Callable[..., Any], runtime_build: RuntimeBuild, tmp_path: Path, kind: str
) -> None:
    if kind == "stages":
        made = with_exit_logits(staged_bundle(tmp_path / "b", batch=1))
    else:
        made = with_reference(tiny_bundle(tmp_path / "b", mode="both"))
    bundle = runnable(for_engines(made))
    with stand_in(bundle.path) as session:
        assert session.info["runtime"] == "tensorrt"
    arguments = (bundle.path, tmp_path, tmp_path / "scratch", 60, 1, "engines")
    done = subprocess.run(
        [str(runtime_build.fuzzer), *map(str, arguments)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = re.fullmatch(r"60 mutations: (\d+) results, (\d+) errors\n", done.stdout)
    assert said is not None and min(map(int, said.groups())) > 0


# ---------------------------------------------------------------- the real module


WHOLE_HEADERS: list[Any] = sorted(version for version, include in HEADERS.items() if has_parser(include))


@pytest.mark.parametrize("version", WHOLE_HEADERS or [pytest.param("none", marks=pytest.mark.skip(reason=NO_HEADERS))])
def test_the_module_compiles_against_the_headers_of(version: str) -> None:
    compiler, cuda = (
        shutil.which("g++") or shutil.which("clang++"),
        Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")),
    )
    if compiler is None or not (cuda / "include" / "cuda.h").exists():
        pytest.skip("no C++ compiler or no CUDA headers")
    for source in ("build.cpp", "driver.cpp", "module.cpp"):
        done = subprocess.run(
            [compiler, "-std=c++14", "-pedantic-errors", "-Wall", "-Wextra", "-Werror", "-fsyntax-only",
             "-isystem", str(HEADERS[version]), "-isystem", str(cuda / "include"),
             "-I", str(SOURCES / "include"), "-I", str(SOURCES / "src"), str(SOURCES / "tensorrt" / source)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
