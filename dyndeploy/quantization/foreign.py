"""Files in which other tools keep quantised networks or their scales: recognised, so that the reason can be said."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

from dyndeploy import files
from dyndeploy.errors import InputError

_HEAD = 64 << 10
"""Bytes of a file that are looked at."""
_LARGEST_HEADER = 100 << 20
_ELSEWHERE = (
    "Its scales belong to single layers of that tool's network; the operators here compute whole blocks, with scales "
    "inside and of values that are computed only, which such a file does not hold. Start from the weights in FP32."
)
_MARKS = {
    "ModelOpt": ("modelopt", "_quantizer._amax", "_quantizer._pre_quant_scale"),
    "torchao": ("torchao", "AffineQuantizedTensor"),
    "PyTorch's own quantisation": ("activation_post_process", "torch.ao.quantization", "_packed_params"),
    "compressed-tensors": ("compressed-tensors", "compressed_tensors"),
    "bitsandbytes": ("bitsandbytes", ".quant_state."),
}
"""What a tool leaves in its files."""


def foreign_reason(path: str | os.PathLike[str]) -> str:
    """Say what another tool wrote a file for; empty where it may be a table of ours, or cannot be read at all.

    Nothing in the file is executed: pickles are searched as text.
    """
    source = Path(path)
    try:
        with source.open("rb") as stream:
            head = stream.read(_HEAD)
    except (OSError, ValueError):
        return ""
    if head.startswith(b"TRT-"):
        return (
            "it is a calibration cache of TensorRT, which names the tensors of one engine and has no values of what "
            "the fused operators compute inside."
        )
    if head.startswith(b"PK\x03\x04"):
        return _of(_pickled(source), "a PyTorch checkpoint")
    if head.startswith(b"\x80"):
        return _of(head.decode("latin-1"), "a pickled checkpoint")
    if _is_safetensors(head):
        return _of(_header(source), "a safetensors checkpoint")
    if not head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"[")) and b"\0" in head[:256]:
        return "it is a binary file." if b"QuantizeLinear" not in head else f"it is a quantised graph. {_ELSEWHERE}"
    return _of_json(source)


def _of(text: str, what: str) -> str:
    for tool, marks in _MARKS.items():
        if any(mark in text for mark in marks):
            return f"it is {what} that {tool} quantised. {_ELSEWHERE}"
    return f"it is {what}; the table is a JSON file of its own."


def _pickled(source: Path) -> str:
    """Names in the pickle of a PyTorch checkpoint."""
    try:
        with zipfile.ZipFile(source) as archive:
            named = [name for name in archive.namelist() if name.endswith("data.pkl")]
            if not named or archive.getinfo(named[0]).file_size > _LARGEST_HEADER:
                return ""
            return archive.read(named[0]).decode("latin-1")
    except (OSError, zipfile.BadZipFile, RuntimeError, ValueError, EOFError, NotImplementedError):
        return ""


def _is_safetensors(head: bytes) -> bool:
    return len(head) > 9 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= _LARGEST_HEADER


def _header(source: Path) -> str:
    with source.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        return stream.read(size).decode("utf-8", "replace")


def _of_json(source: Path) -> str:
    try:
        value = files.read_json(source)
    except InputError:
        return ""
    if not isinstance(value, dict) or "schema" in value:
        return ""
    told = json.dumps(_settings(value))
    for tool, marks in _MARKS.items():
        if any(mark in told for mark in marks):
            return f"it describes a network that {tool} quantised. {_ELSEWHERE}"
    if "activation_encodings" in value or "param_encodings" in value:
        return f"it holds encodings of AIMET. {_ELSEWHERE}"
    if '"CLASS"' in told and "TensorData" in told:
        return f"it holds ranges that ONNX Runtime's calibrators found. {_ELSEWHERE}"
    return ""


def _settings(value: dict[str, Any]) -> dict[str, Any]:
    """What a configuration says of quantisation."""
    names = ("producer", "quantization", "quantization_config", "quant_method", "modelopt_state", "CLASS", "data")
    return {name: value[name] for name in names if name in value}
