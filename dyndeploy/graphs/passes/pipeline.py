"""Graph passes between capture and bundle: named, ordered, applied as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from dyndeploy.graphs.passes.batch_norm import fold_batch_norm
from dyndeploy.graphs.passes.boxes import write_boxes
from dyndeploy.graphs.passes.confidence import add_confidence
from dyndeploy.graphs.passes.constants import fold_constants
from dyndeploy.graphs.passes.finish import attach_functions, check, strip_metadata
from dyndeploy.graphs.passes.gelu import order_gelu
from dyndeploy.graphs.passes.legalise import legalise_opset
from dyndeploy.graphs.passes.mean import channels_last_means
from dyndeploy.graphs.passes.names import name_nodes, name_tensors
from dyndeploy.graphs.passes.pooled_depthwise import fold_pooled_depthwise
from dyndeploy.graphs.passes.strides import reshape_strides
from dyndeploy.graphs.passes.transposes import cancel_transposes
from dyndeploy.graphs.rules import check_rules


@dataclass(frozen=True)
class Context:
    """What the passes need to know besides the graph.

    Attributes:
        scopes: Dotted block name by captured module name, which may be dotted too: the deepest around a node counts.
        outputs: Final names of the graph outputs, in order.
        opset: Opset to write.
        ir_version: IR version to write.
        allowed_operators: Standard operators of the target, or None for all.
        target: Name of the target, for messages.
        inputs: Final names of the graph inputs, in order.
        runtime: Of the target.
        confidence: Name of one more output to compute from ``logits``: how sure the exit is; empty for none.
        measure: What it is; see :mod:`dyndeploy.confidences`.
        parts: Part of the network (:mod:`dyndeploy.graphs.parts`) by captured module name; empty where it tells none.
    """

    scopes: Mapping[str, str]
    outputs: Sequence[str]
    opset: int
    ir_version: int
    allowed_operators: frozenset[str] | None
    target: str
    inputs: Sequence[str] = ("input",)
    runtime: str = "onnxruntime"
    confidence: str = ""
    measure: str = "max_softmax"
    parts: Mapping[str, str] = field(default_factory=dict)


Pass = Callable[[onnx.ModelProto, Context], None]


PIPELINE: tuple[tuple[str, Pass], ...] = (
    ("names::nodes", name_nodes),
    ("names::tensors", name_tensors),
    ("exits::confidence", add_confidence),
    ("fold::constants", fold_constants),
    ("fold::batch_norm", fold_batch_norm),
    ("fold::pooled_depthwise", fold_pooled_depthwise),
    ("layout::strides", reshape_strides),
    ("layout::mean", channels_last_means),
    ("layout::transposes", cancel_transposes),
    ("order::gelu", order_gelu),
    ("boxes::write", write_boxes),
    ("opset::legalise", legalise_opset),
    ("functions::attach", attach_functions),
    ("metadata::strip", strip_metadata),
    ("check::target", check),
)
"""Passes in order, by id."""


_WRITTEN_FROM = next(index for index, (name, _) in enumerate(PIPELINE) if name == "boxes::write")

COMMON, OF_TARGET = PIPELINE[:_WRITTEN_FROM], PIPELINE[_WRITTEN_FROM:]
"""The passes before, and from that on, which writes what differs by target: a graph may be cut between them."""


def run_pipeline(
    model: onnx.ModelProto,
    context: Context,
    passes: Sequence[tuple[str, Pass]] = PIPELINE,
    before: Sequence[tuple[str, Pass]] = (),
) -> None:
    """Apply every pass in place, and check the graph's own rules after each.

    Args:
        model: A captured graph.
        context: What the passes need to know besides it.
        passes: Passes in order, by id.
        before: Passes that were applied already.

    Raises:
        ExportError: The graph cannot be written for the target, or a pass broke a rule of :mod:`dyndeploy.graphs.rules`
            (the message names both).
    """
    done: list[str] = [name for name, _ in before]
    check_rules(model, context, done)
    for name, apply in passes:
        apply(model, context)
        done.append(name)
        check_rules(model, context, done)
