"""Runtimes: every way to run a network, behind one interface.

:class:`TorchSession` lives in ``dyndeploy.runtimes.torch`` and is imported from there, so that running a bundle does
not import PyTorch.
"""

from dyndeploy.runtimes.base import (
    ANY_SIZE,
    NativeUse,
    Session,
    SessionInfo,
    checked_tensor,
)
from dyndeploy.runtimes.native import FALLBACK_BODIES, NativeLibrary, find_cpu_library, find_tensorrt_library
from dyndeploy.runtimes.onnxruntime import NodeTime, OnnxRuntimeSession
from dyndeploy.runtimes.parts import PartsSession, open_parts
from dyndeploy.runtimes.staged import StagedResult, StagedSession, open_staged
from dyndeploy.runtimes.tensorrt import TensorRTSession

__all__ = [
    "ANY_SIZE",
    "FALLBACK_BODIES",
    "NativeLibrary",
    "NativeUse",
    "NodeTime",
    "OnnxRuntimeSession",
    "PartsSession",
    "Session",
    "SessionInfo",
    "StagedResult",
    "StagedSession",
    "TensorRTSession",
    "checked_tensor",
    "find_cpu_library",
    "find_tensorrt_library",
    "open_parts",
    "open_staged",
]
