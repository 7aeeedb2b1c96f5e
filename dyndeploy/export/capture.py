"""Capture: a PyTorch module as an ONNX graph, before any pass."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence

import onnx
import torch

from dyndeploy.errors import ExportError

CAPTURE_OPSET = 18


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the PyTorch exporter's progress and its remarks on optional packages off the user's terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def capture(
    module: torch.nn.Module, examples: Sequence[torch.Tensor], *, dynamic_batch: bool = False
) -> onnx.ModelProto:
    """Capture a network as an ONNX graph of opset 18, dynamic operators as nodes.

    Args:
        module: A lowered network, or a stage.
        examples: Its inputs; only their shapes matter.
        dynamic_batch: Leave the first size of every input open, one and the same for all; examples have two samples.

    Raises:
        ExportError: The PyTorch exporter failed.
    """
    shapes = None
    if dynamic_batch:
        batch = torch.export.Dim("batch")
        shapes = (tuple({0: batch} for _ in examples),)
    try:
        with _quiet_exporter():
            program = torch.onnx.export(
                module,
                tuple(examples),
                dynamo=True,
                opset_version=CAPTURE_OPSET,
                dynamic_shapes=shapes,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(f"PyTorch could not capture the network: {error}") from error
    if program is None:
        raise ExportError("PyTorch returned no graph.")
    model: onnx.ModelProto = program.model_proto
    return model
