"""ONNX files of any origin, read."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from dyndeploy.errors import InputError
from dyndeploy.files import reason_of, shown
from dyndeploy.graphs.inspect import all_graphs

if TYPE_CHECKING:
    import onnx

_ALIKE = ("main_graph", "torch_jit", "torch-jit-export", "tf2onnx")
"""Names that exporters give every graph."""

_SHAPE_CONSTANT = 1024
"""Elements up to which a constant may hold sizes, which are needed where weights are not."""


def read_graph(path: str | os.PathLike[str], *, weights: bool) -> onnx.ModelProto:
    """Read an ONNX file; the graph is named after the file where exporters name every graph alike.

    Args:
        path: The file.
        weights: Whether to read what lies in files beside it; else only what is small enough to hold sizes is.

    Raises:
        InputError: The file, or one with its weights, cannot be read, or holds no graph.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    path = Path(path)
    try:
        model = onnx.load(path, load_external_data=weights)
        if not weights:
            _read_small(model, path.parent)
    except (OSError, ValueError, DecodeError, onnx.checker.ValidationError) as error:
        raise InputError(f"Cannot read {path} as an ONNX graph: {reason_of(error)}.") from error
    if not model.HasField("graph") or not model.graph.node:
        raise InputError(f"Cannot read {path} as an ONNX graph: it holds none.")
    name = model.graph.name
    model.graph.name = shown(path.stem if not name or name in _ALIKE or " " in name else name)
    return model


def _read_small(model: onnx.ModelProto, folder: Path) -> None:
    """Read the constants that may hold sizes from the files beside the graph."""
    from onnx import TensorProto
    from onnx.external_data_helper import load_external_data_for_tensor

    for graph in all_graphs(model.graph):
        for item in graph.initializer:
            if item.data_location == TensorProto.EXTERNAL and math.prod(item.dims) <= _SHAPE_CONSTANT:
                if not (folder / _place(item)).exists():
                    continue  # The weights may be missing.
                load_external_data_for_tensor(item, str(folder))
                item.data_location = TensorProto.DEFAULT
                del item.external_data[:]


def _place(item: onnx.TensorProto) -> str:
    return next((entry.value for entry in item.external_data if entry.key == "location"), "")
