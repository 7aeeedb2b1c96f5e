"""Capture: a PyTorch module as an ONNX graph, before any pass."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from types import FrameType

import onnx
import torch
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from dyndeploy.errors import ExportError
from dyndeploy.graphs.passes.names import OWN_MODULE

CAPTURE_OPSET = 18


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the PyTorch exporter's progress and its remarks on optional packages off the user's terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch.fx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        said = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def capture(
    module: torch.nn.Module,
    examples: Sequence[torch.Tensor],
    *,
    dynamic_batch: bool = False,
    wrapped: str = "",
    inside: str = "",
) -> onnx.ModelProto:
    """Capture a network as an ONNX graph of opset 18, dynamic operators as nodes.

    Args:
        module: A lowered network, or a stage.
        examples: Its inputs; only their shapes matter.
        dynamic_batch: Leave the first size of every input open, one and the same for all; examples have two samples.
        wrapped: Dotted path, in the module, of what is the user's.
        inside: Its dotted path in the user's network.

    Raises:
        ExportError: The PyTorch exporter failed; the message says in which module, and what may be done.
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
        raise ExportError(_explain(error, module, wrapped, inside)) from error
    if program is None:
        raise ExportError("PyTorch returned no graph.")
    model: onnx.ModelProto = program.model_proto
    return model


def _explain(error: BaseException, module: torch.nn.Module, wrapped: str, inside: str) -> str:
    """Say where the exporter failed, at what, and what helps."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    where = _where(causes, module, wrapped, inside)
    dependent = next((cause for cause in causes if isinstance(cause, GuardOnDataDependentSymNode)), None)
    if dependent is not None:
        return (
            f"{where} branches in Python on the values of a tensor (an if, a loop, int(), float() or .item()): a graph "
            "has one path for all inputs. Let a gate decide (dyndeploy.skip makes any module a block that images "
            "skip), use torch.where, or leave the branch out in evaluation."
        )
    reason = next(
        line.strip().rstrip(".") for line in [*str(causes[-1]).splitlines(), repr(causes[-1])] if line.strip()
    )
    return (
        f"PyTorch could not capture {where}: {reason}. Write it with layers that torch.onnx.export(dynamo=True) knows; "
        "that call on this module alone shows PyTorch's full report."
    )


def _where(causes: Sequence[BaseException], module: torch.nn.Module, wrapped: str, inside: str) -> str:
    """The innermost module of the user's that was at work, with its line of code where that is known."""
    paths = {id(child): path for path, child in module.named_modules()}
    found = "the network"

    def named(path: str, kind: str) -> str:
        parts = [inside, *path[len(wrapped) :].split(".")]
        own = ".".join(part for part in parts if part and not part.startswith(OWN_MODULE))
        return f"{own} ({kind})" if own else f"the network ({kind})"

    for cause in causes:
        for frame, line in _frames(cause):
            node = frame.f_locals.get("node")
            if isinstance(node, torch.fx.Node):
                *_, (path, kind) = node.meta.get("nn_module_stack", {"": ("", "")}).values()
                if path.startswith(wrapped):
                    found = named(path, str(kind).rpartition(".")[2])
                continue
            owner = next((value for value in frame.f_locals.values() if id(value) in paths), None)
            path = paths.get(id(owner), "")
            if owner is not None and path.startswith(wrapped) and frame.f_code.co_name == "forward":
                found = f"{named(path, type(owner).__name__)}, {frame.f_code.co_filename}:{line},"
    return found.rstrip(",")


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    traceback = error.__traceback__
    while traceback is not None:
        yield traceback.tb_frame, traceback.tb_lineno
        traceback = traceback.tb_next
