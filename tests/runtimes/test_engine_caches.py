"""Engines and what is kept beside them: found again, made again where they do not fit, and always said in one line."""

from __future__ import annotations

import ctypes
import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dyndeploy.bundle import Bundle
from dyndeploy.errors import BundleError, OutputError
from dyndeploy.runtimes import OnnxRuntimeSession, TensorRTSession, tensorrt_engine
from dyndeploy.runtimes.cuda import FoundGpu
from dyndeploy.runtimes.tensorrt import KERNELS
from dyndeploy.runtimes.tensorrt_device import TACTICS
from dyndeploy.runtimes.tensorrt_engine import ENGINES, TIMING_CACHE, EngineFile, EngineSettings, cache_folder
from dyndeploy.runtimes.tensorrt_plan import BuildOptions
from tests.bundles import tiny_bundle
from tests.runtimes.fake_tensorrt import LIBRARY, World, install_fakes, install_rtx

RTX = EngineSettings(runtime="tensorrt_rtx")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle(tmp_path / "b", mode="both", target="rtx4090")


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, "dyndeploy.tensorrt")
    return caplog


def opened(bundle: Bundle, settings: EngineSettings | None = None) -> EngineFile:
    """Build or find the engine, run it, and compare what it gives with ONNX Runtime."""
    feeds = {"input": bundle.reference()["input"][:1]}
    session, built = TensorRTSession.from_bundle(bundle, settings)
    with session:
        found = session.run(feeds)
    with OnnxRuntimeSession(bundle.model, native="off") as reference:
        for name, value in reference.run(feeds).items():
            np.testing.assert_allclose(found[name], value, atol=2e-4)
    return built


def one_line(said: pytest.LogCaptureFixture) -> str:
    """The one line that was said."""
    [record] = said.records
    said.clear()
    assert "\n" not in record.getMessage()
    return record.getMessage()


@pytest.mark.parametrize("rtx", [False, True])
def test_what_changed_around_an_engine_is_named(
    rtx: bool, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    def install(version: str) -> World:
        return install_rtx(monkeypatch, tmp_path) if rtx else install_fakes(monkeypatch, version, tmp_path)

    settings = RTX if rtx else EngineSettings()
    world = install("8.5.3.1")
    first = opened(bundle, settings)
    assert not first.cached and first.path.parent == bundle.path / ENGINES and not said.records
    assert opened(bundle, settings).cached and len(world.builds) == 1

    (tmp_path / LIBRARY).write_bytes(b"other plugins")
    assert not opened(bundle, settings).cached
    assert f"The engine {first.path} was built with another plugin library (sha256 " in one_line(said)
    (tmp_path / LIBRARY).write_bytes(b"plugins")
    assert opened(bundle, settings).cached and not said.records, "the first one is still there"

    # What the user asks for otherwise is no damage.
    opened(bundle, EngineSettings(options=BuildOptions(tf32=True), runtime=settings.runtime))
    assert not said.records

    first.path.write_bytes(first.path.read_bytes()[:-5])
    assert not opened(bundle, settings).cached
    assert one_line(said) == f"dyndeploy: The engine {first.path} is damaged, or not whole. It is built again."
    first.path.with_suffix(".json").write_text("{")
    assert not opened(bundle, settings).cached
    assert "damaged, or not whole" in one_line(said)

    world.gpu = FoundGpu("NVIDIA GeForce RTX 3090", "8.6")
    (first.path.parent / TIMING_CACHE).unlink(missing_ok=True)
    assert not opened(bundle, settings).cached
    line = one_line(said)
    assert ("compute capability 8.9, and this is 8.6" if rtx else "for Fake Nano 5.3, and this is NVIDIA") in line
    if not rtx:
        (first.path.parent / TIMING_CACHE).unlink()
        world = install("11.4.0.106")
        assert not opened(bundle, settings).cached
        assert "was built with TensorRT 8.5.3.1, and this is 11.4.0.106" in one_line(said)
    bundle.require_intact()


def test_tensorrt_and_tensorrt_rtx_do_not_call_each_other_old(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    install_fakes(monkeypatch, "11.4.0.106", tmp_path)
    opened(bundle)
    install_rtx(monkeypatch, tmp_path)
    opened(bundle, RTX)
    assert not said.records and len(list((bundle.path / ENGINES).glob("*.engine"))) == 2


@pytest.mark.parametrize("rtx", [False, True])
def test_an_engine_that_is_whole_and_refused_is_built_once_more(
    rtx: bool, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    world = install_rtx(monkeypatch, tmp_path) if rtx else install_fakes(monkeypatch, "11.4.0.106", tmp_path)
    settings = RTX if rtx else EngineSettings()
    first = opened(bundle, settings)
    world.fails = {"deserialise"}
    with pytest.raises(BundleError, match=r"\(version mismatch\)" if rtx else "refuses the engine;"):
        opened(bundle, settings)
    first_line, *others = [record.getMessage() for record in said.records]
    assert f"The engine {first.path} cannot be used: TensorRT " in first_line
    # What TensorRT refuses cannot be asked for its plugins' types either.
    assert all("were not read back" in line for line in others)
    said.clear()
    assert len(world.builds) == 2 and world.contexts == 0 and not world.memory
    world.fails = set()
    assert opened(bundle, settings).cached


def test_timing_caches(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    world = install_fakes(monkeypatch, "11.4.0.106", tmp_path)
    cache = bundle.path / ENGINES / TIMING_CACHE
    sizes = iter(range(100, 200))

    def timings() -> bytes:
        """What a new build starts from."""
        opened(bundle, EngineSettings(options=BuildOptions(workspace_mib=next(sizes))))
        data: bytes = world.builds[-1]["timing_cache"]
        return data

    assert [timings(), timings()] == [b"", b"+"] and not said.records
    cache.write_bytes(b"broken")
    assert timings() == b""
    assert one_line(said) == f"dyndeploy: The cache {cache} is damaged, or not whole. A new one is begun."
    assert timings() == b"+" and not said.records
    world.gpu = FoundGpu("NVIDIA H200", "9.0")
    assert timings() == b""
    assert "is of another TensorRT or device" in one_line(said)

    def full(path: Path, data: bytes) -> None:
        raise OutputError(f"{path}: no space left.")

    monkeypatch.setattr(tensorrt_engine, "_write_bytes", full)
    assert timings() == b"+", "the engine is there and ran"
    assert f"The cache {cache} could not be kept: {cache}: no space left." in one_line(said)


def test_what_plugins_have_timed_is_kept(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    """Before TensorRT 10 plugins time for themselves: their library is given what it told of the last build."""
    world = install_fakes(monkeypatch, "8.5.3.1", tmp_path)
    cache = bundle.path / ENGINES / TACTICS
    sizes = iter(range(100, 200))
    given: list[bytes] = []
    timed = [b""]

    def read(text: ctypes.c_char_p) -> int:
        given.append(text.value or b"")
        return 1

    def told(text: Any, size: ctypes.c_int32) -> int:
        if text is not None:
            text.value = timed[0]
        return len(timed[0])

    def built() -> EngineFile:
        return opened(bundle, EngineSettings(options=BuildOptions(workspace_mib=next(sizes))))

    built()
    assert not cache.exists(), "a library without these functions"
    world.exported = SimpleNamespace(DyndeployReadTimedTactics=read, DyndeployTimedTactics=told)
    built()
    assert not cache.exists() and not given, "nothing was timed, as with TensorRT 10"
    timed[0] = b"dyndeploy tactics 1\nfirst = 3\n"
    built()
    assert cache.read_bytes() == timed[0] and not given
    timed[0] += b"second = 2\n"
    built()
    assert given == [b"dyndeploy tactics 1\nfirst = 3\n"] and cache.read_bytes() == timed[0] and not said.records
    cache.write_bytes(b"broken")
    built()
    assert one_line(said) == f"dyndeploy: The cache {cache} is damaged, or not whole. A new one is begun."
    assert len(given) == 1 and cache.read_bytes() == timed[0]
    # Another library may have other tiles.
    (tmp_path / "libdyndeploy_tensorrt.so").write_bytes(b"other plugins")
    built()
    assert len(given) == 1 and "is of another TensorRT or device" in one_line(said)


def test_kernels_that_tensorrt_rtx_compiled(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    world = install_rtx(monkeypatch, tmp_path)
    kernels = opened(bundle, RTX).path.with_suffix(KERNELS)
    assert kernels.read_bytes() == b"compiled" and world.kernels == []
    assert json.loads(kernels.with_suffix(f"{KERNELS}.json").read_text())["name"] == "NVIDIA GeForce RTX 4090"
    opened(bundle, RTX)
    assert world.kernels == [b"compiled"] and not said.records
    kernels.write_bytes(b"half")
    opened(bundle, RTX)
    assert world.kernels == [b"compiled"] and "is damaged, or not whole. A new one is begun" in one_line(said)
    assert kernels.read_bytes() == b"compiled"
    world.fails = {"kernels"}
    opened(bundle, RTX)
    assert f"The cache {kernels} is refused by TensorRT-RTX. A new one is begun." in one_line(said)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    install_fakes(monkeypatch, "11.4.0.106", tmp_path)
    bundle.path.chmod(0o500)
    try:
        assert opened(bundle).path.parent == cache_folder()
    finally:
        bundle.path.chmod(0o700)
    assert f"engines are kept in {cache_folder()}" in one_line(said)


def test_where_engines_go_if_the_bundle_cannot_be_written(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    install_fakes(monkeypatch, "11.4.0.106", tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != bundle.path)
    assert opened(bundle).path.parent == cache_folder()
    assert f"{bundle.path} cannot be written: engines are kept in {cache_folder()}" in one_line(said)
