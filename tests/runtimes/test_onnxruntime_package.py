"""ONNX Runtime's packages own one folder: what is said where several are installed, or half of one."""

from __future__ import annotations

import importlib.metadata
import logging
import sys
import types
from collections.abc import Callable

import onnxruntime
import pytest

from dyndeploy.errors import DyndeployError, UsageError
from dyndeploy.runtimes import OnnxRuntimeSession, onnxruntime_package
from dyndeploy.runtimes.machine import machine_facts
from tests.bundles import tiny_models

Install = Callable[..., None]
REAL = importlib.metadata.version


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    def pretend(**versions: str) -> None:
        named = {name.replace("_", "-"): version for name, version in versions.items()}

        def version(name: str) -> str:
            if name not in onnxruntime_package.DISTRIBUTIONS:
                return REAL(name)
            if name not in named:
                raise importlib.metadata.PackageNotFoundError(name)
            return named[name]

        monkeypatch.setattr(importlib.metadata, "version", version)

    onnxruntime_package._say.cache_clear()
    return pretend


def test_two_at_once_are_said_once_with_the_commands(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    install(onnxruntime="1.31.1", onnxruntime_gpu="1.31.1")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            OnnxRuntimeSession(tiny_models()[0]).close()
    (record,) = caplog.records
    assert "onnxruntime and onnxruntime-gpu are installed together" in record.getMessage()
    command = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
    assert command in record.getMessage()
    assert command in machine_facts()["warnings"][0]


def test_one_is_nothing_to_speak_of(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    install(onnxruntime_gpu="1.30.0")
    OnnxRuntimeSession(tiny_models()[0]).close()
    assert not caplog.records
    facts = machine_facts()
    assert facts["versions"]["onnxruntime"] == "1.30.0"
    assert "warnings" not in facts


def test_a_missing_provider_tells_what_to_install(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    for installed, advice in (
        ({"onnxruntime": "1.31.1"}, r"pip uninstall -y onnxruntime && pip install onnxruntime-gpu$"),
        ({"onnxruntime": "1.31.1", "onnxruntime_gpu": "1.31.1"}, r"installed together"),
        ({"onnxruntime_gpu": "1.31.1"}, r"onnxruntime-gpu is installed, but"),
    ):
        install(**installed)
        with pytest.raises(UsageError, match=advice):
            OnnxRuntimeSession(tiny_models()[0], provider="cuda")


@pytest.mark.parametrize("left", [None, types.ModuleType("onnxruntime")], ids=["missing", "half removed"])
def test_what_is_not_whole_is_no_traceback(
    install: Install, monkeypatch: pytest.MonkeyPatch, left: types.ModuleType | None
) -> None:
    install(onnxruntime_gpu="1.31.1")
    monkeypatch.setitem(sys.modules, "onnxruntime", left)
    with pytest.raises(DyndeployError, match=r"cannot be used: .*pip uninstall -y onnxruntime-gpu && pip install"):
        OnnxRuntimeSession(tiny_models()[0])
