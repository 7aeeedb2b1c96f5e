"""ONNX Runtime's GPU providers: what a session asks for, and what it refuses, on a machine without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from dyndeploy.errors import DyndeployError, UsageError
from dyndeploy.files import sha256
from dyndeploy.runtimes import OnnxRuntimeSession
from dyndeploy.runtimes.onnxruntime import TENSORRT_DOMAIN
from tests.bundles import SIZE, tiny_models

REAL = onnxruntime.InferenceSession
ALL = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


class Recorded:
    """A session that says it runs on the GPU, and runs the original graph on the CPU."""

    asked: dict[str, Any]
    starts = True

    def __init__(self, source: Any, options: Any, providers: list[Any]) -> None:
        type(self).asked = {"source": source, "providers": providers}
        runnable = source if providers[0] == "CUDAExecutionProvider" else tiny_models("both")[0].SerializeToString()
        self._real = REAL(runnable, options, providers=["CPUExecutionProvider"])
        self._names = [p if isinstance(p, str) else p[0] for p in providers]

    def get_providers(self) -> list[str]:
        return self._names if self.starts else ["CPUExecutionProvider"]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> type[Recorded]:
    class Mine(Recorded):
        pass

    monkeypatch.setattr(onnxruntime, "InferenceSession", Mine)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ALL)
    return Mine


def feeds() -> dict[str, np.ndarray]:
    return {"input": np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)}


def test_unavailable_providers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_models()[0]
    with pytest.raises(UsageError, match="Did you mean 'cuda'"):
        OnnxRuntimeSession(model, provider="cuda11")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(UsageError, match=r"has no CUDAExecutionProvider\. .*pip install onnxruntime-gpu"):
        OnnxRuntimeSession(model, provider="cuda")


def test_cuda_runs_the_function_bodies(gpu: type[Recorded]) -> None:
    model = tiny_models("both")[0]
    with OnnxRuntimeSession(model, provider="cuda") as session:
        assert gpu.asked["providers"] == ["CUDAExecutionProvider", "CPUExecutionProvider"]
        assert session.info.provider == "CUDAExecutionProvider"
        assert session.info.native.description == "function bodies"
        assert session.run(feeds())["logits"].shape == (1, 10)


def test_a_silent_fall_to_the_cpu_is_an_error(gpu: type[Recorded]) -> None:
    gpu.starts = False
    with pytest.raises(DyndeployError, match="would run on the CPU"):
        OnnxRuntimeSession(tiny_models("both")[0], provider="cuda")


@pytest.mark.parametrize("as_file", [False, True])
def test_tensorrt_gets_plugins(
    as_file: bool, gpu: type[Recorded], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library = tmp_path / "plugins.so"
    library.write_bytes(b"plugins")
    monkeypatch.setenv("DYNDEPLOY_TENSORRT_LIBRARY", str(library))
    model: Any = tiny_models("both")[0]
    if as_file:
        onnx.save(model, tmp_path / "model.onnx")
        model = tmp_path / "model.onnx"
    with OnnxRuntimeSession(model, provider="tensorrt") as session:
        assert session.info.native.sha256 == sha256(library)
    (name, options), last = gpu.asked["providers"]
    assert (name, last) == ("TensorrtExecutionProvider", "CPUExecutionProvider")
    assert options == {"trt_extra_plugin_lib_paths": str(library)}
    copy = onnx.ModelProto.FromString(gpu.asked["source"])
    assert not copy.functions
    assert {node.domain for node in copy.graph.node} == {"", TENSORRT_DOMAIN}
    assert {entry.domain for entry in copy.opset_import} == {"", TENSORRT_DOMAIN}
    monkeypatch.delenv("DYNDEPLOY_TENSORRT_LIBRARY")
    with pytest.raises(UsageError, match="no plugin library was found"):
        OnnxRuntimeSession(model, provider="tensorrt")
    # The static twin needs none.
    OnnxRuntimeSession(tiny_models("both")[1], provider="tensorrt").close()
    assert gpu.asked["providers"][0] == "TensorrtExecutionProvider"
