"""A client of Triton's HTTP protocol with nothing but the standard library and NumPy: tests need no tritonclient."""

from __future__ import annotations

import http.client
import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_TYPES = {"INT32": np.int32, "INT64": np.int64, "FP32": np.float32, "UINT8": np.uint8}


class ServerError(Exception):
    """What the server refused, with its HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class Client:
    """One connection that is kept open."""

    def __init__(self, address: str, seconds: float = 600.0) -> None:
        self._connection = http.client.HTTPConnection(address, timeout=seconds)

    def close(self) -> None:
        self._connection.close()

    def post(self, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> tuple[Any, bytes, int]:
        """Send a body; returns the answer's headers, its body and its status."""
        self._connection.request("POST", path, body, headers or {})
        answer = self._connection.getresponse()
        return answer.headers, answer.read(), answer.status

    def load(self, model: str) -> None:
        """Ask the server to load a model; raises :class:`ServerError` with what it says."""
        _, body, status = self.post(f"/v2/repository/models/{model}/load")
        if status != 200:
            raise ServerError(status, json.loads(body)["error"])

    def infer(
        self,
        model: str,
        inputs: dict[str, npt.NDArray[Any] | Sequence[bytes]],
        outputs: Sequence[dict[str, Any]] = (),
        **parameters: Any,
    ) -> dict[str, Any]:
        """Run a request: arrays, or files as bytes; returns arrays by name, and ``model_version``."""
        described, content = [], []
        for name, value in inputs.items():
            if isinstance(value, np.ndarray):
                kind = next(key for key, known in _TYPES.items() if known == value.dtype)
                shape, data = list(value.shape), value.tobytes()
            else:
                kind, shape = "BYTES", [len(value), 1]
                data = b"".join(struct.pack("<I", len(item)) + item for item in value)
            described.append(
                {"name": name, "shape": shape, "datatype": kind, "parameters": {"binary_data_size": len(data)}}
            )
            content.append(data)
        head: dict[str, Any] = {"inputs": described, "parameters": {"binary_data_output": True, **parameters}}
        if outputs:
            head["outputs"] = list(outputs)
        text = json.dumps(head).encode()
        headers, body, status = self.post(
            f"/v2/models/{model}/infer",
            text + b"".join(content),
            {"Inference-Header-Content-Length": str(len(text)), "Content-Type": "application/octet-stream"},
        )
        if status != 200:
            raise ServerError(status, json.loads(body)["error"])
        length = int(headers.get("Inference-Header-Content-Length", len(body)))
        answer, rest = json.loads(body[:length]), body[length:]
        found: dict[str, Any] = {"model_version": answer["model_version"]}
        for output in answer["outputs"]:
            size = output.get("parameters", {}).get("binary_data_size")
            if size is None:
                found[output["name"]] = np.array(output["data"]).reshape(output["shape"])
                continue
            data, rest = rest[:size], rest[size:]
            values: Any = (
                _texts(data) if output["datatype"] == "BYTES" else np.frombuffer(data, _TYPES[output["datatype"]])
            )
            found[output["name"]] = np.asarray(values).reshape(output["shape"])
        return found


def _texts(data: bytes) -> npt.NDArray[Any]:
    found = []
    while data:
        (length,) = struct.unpack_from("<I", data)
        found.append(data[4 : 4 + length].decode())
        data = data[4 + length :]
    return np.array(found, object)
