"""Networks that exit early: one graph per exit.

A stage takes the tensors that earlier stages carry to it and gives the logits of its exit, the tensors that it carries
on, the masks of the dynamic blocks in it, and the confidence, which decides whether the next stage runs at all.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx
import torch
from onnx import helper

from dyndeploy.blocks import StagedNetwork, confidence_of, dynamic_blocks
from dyndeploy.bundle import CONFIDENCE, MaskInfo, StageInfo, TensorInfo
from dyndeploy.export.graph import build
from dyndeploy.targets import Target

_EXAMPLES = 2
"""Samples in the examples of a dynamic batch: a batch of one would be captured as such."""


@dataclass(frozen=True)
class Stage:
    """A captured stage.

    Attributes:
        file: Name of its graph in the bundle.
        exit: Number of its exit.
        model: The graph, legal for its target.
        masks: Masks of the dynamic blocks in it.
        notes: What export had to change or leave out, in words.
    """

    file: str
    exit: int
    model: onnx.ModelProto
    masks: tuple[MaskInfo, ...] = ()
    notes: tuple[str, ...] = ()

    def info(self, macs: int, batch: int) -> StageInfo:
        """Describe it in a manifest; an open batch size is written as ``batch``."""
        masks = {mask.name for mask in self.masks}
        inputs, outputs = (
            tuple(tensor_info(value, batch) for value in values if value.name not in masks)
            for values in (self.model.graph.input, self.model.graph.output)
        )
        return StageInfo(self.file, self.exit, inputs, outputs, macs)


def tensor_info(value: onnx.ValueInfoProto, batch: int | None = None) -> TensorInfo:
    """Name, shape and type of a graph input or output; ``batch`` stands for sizes that the graph leaves open."""
    shape = tuple(
        dim.dim_value if batch is None or dim.HasField("dim_value") else batch
        for dim in value.type.tensor_type.shape.dim
    )
    return TensorInfo(value.name, shape, str(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)))


def build_stages(
    network: StagedNetwork,
    target: Target,
    exits: Sequence[int] | None,
    batch: int | None,
    input_size: tuple[int, int],
    dense: Collection[str] = (),
    *,
    static: bool = False,
) -> list[Stage]:
    """Capture and legalise every stage.

    Args:
        network: In evaluation, in single precision.
        target: What it is for.
        exits: Exits to keep; None for all.
        batch: Static batch size, or None for any.
        input_size: (H, W).
        dense: Dotted paths of blocks that compute everything.
        static: Leave the gates of dynamic blocks out.

    Raises:
        UsageError: Exits that the network does not have, or without the last.
        ExportError: A stage could not be captured, or the target could not run it.
    """
    segments = network.segments(tuple(range(1, network.exits + 1)) if exits is None else exits)
    values = {segments[0].inputs[0]: torch.zeros(_EXAMPLES if batch is None else batch, 3, *input_size)}
    stages = []
    for index, segment in enumerate(segments):
        inputs = {name: values[name] for name in segment.inputs}
        own = {path for path, _, _ in dynamic_blocks(segment)}
        built = build(
            segment,
            inputs,
            target,
            static=static,
            dense=own & set(dense),
            outputs=segment.outputs,
            dynamic_batch=batch is None,
            confidence=CONFIDENCE,
            measure=confidence_of(network),
        )
        stages.append(Stage(f"stage{index}.onnx", segment.exit, built.model, built.masks, built.notes))
        with torch.no_grad():
            values |= dict(zip(segment.outputs, segment(*inputs.values()), strict=True))
    return stages
