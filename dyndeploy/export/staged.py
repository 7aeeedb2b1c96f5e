"""Networks that exit early: one graph per exit.

A stage takes the tensors that earlier stages carry to it and gives the logits of its exit, the tensors that it carries
on, and the confidence: the largest softmax probability, which decides whether the next stage runs at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import helper
from torch import Tensor

from dyndeploy.bundle import CONFIDENCE, StageInfo, TensorInfo
from dyndeploy.bundle.reference_names import exit_logits
from dyndeploy.export.capture import capture
from dyndeploy.graphs.passes import Context, run_pipeline
from dyndeploy.nets import DynPerceiver, Segment
from dyndeploy.targets import Target

EarlyExitNetwork = DynPerceiver
"""What has ``segments``."""

_EXAMPLES = 2
"""Samples in the examples of a dynamic batch: a batch of one would be captured as such."""


@dataclass(frozen=True)
class Stage:
    """A captured stage.

    Attributes:
        file: Name of its graph in the bundle.
        exit: Number of its exit.
        model: The graph, legal for its target.
    """

    file: str
    exit: int
    model: onnx.ModelProto

    def info(self, macs: int, batch: int) -> StageInfo:
        """Describe it in a manifest; an open batch size is written as ``batch``."""
        inputs, outputs = (
            tuple(tensor_info(value, batch) for value in values)
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
    network: EarlyExitNetwork,
    target: Target,
    exits: Sequence[int] | None,
    batch: int | None,
    input_size: tuple[int, int],
) -> list[Stage]:
    """Capture and legalise every stage.

    Args:
        network: In evaluation, in single precision.
        target: What it is for.
        exits: Exits to keep; None for all.
        batch: Static batch size, or None for any.
        input_size: (H, W).

    Raises:
        UsageError: Exits that the network does not have, or without the last.
        ExportError: A stage could not be captured, or the target could not run it.
    """
    segments = network.segments(tuple(range(1, network.exits + 1)) if exits is None else exits)
    values = {segments[0].inputs[0]: torch.zeros(_EXAMPLES if batch is None else batch, 3, *input_size)}
    stages = []
    for index, segment in enumerate(segments):
        inputs = [values[name] for name in segment.inputs]
        stages.append(Stage(f"stage{index}.onnx", segment.exit, _graph(segment, inputs, target, batch is None)))
        with torch.no_grad():
            values |= dict(zip(segment.outputs, segment(*inputs), strict=True))
    return stages


def _graph(segment: Segment, inputs: Sequence[Tensor], target: Target, dynamic_batch: bool) -> onnx.ModelProto:
    model = capture(segment, inputs, dynamic_batch=dynamic_batch)
    context = Context(
        # Classifiers stay in float under every precision plan, as heads do.
        scopes={name: f"head/{name}" if "classifier" in name else name for name, _ in segment.named_children()},
        outputs=segment.outputs,
        opset=target.opset,
        ir_version=target.ir_version,
        allowed_operators=target.allowed_operators,
        target=target.name,
        inputs=segment.inputs,
        runtime=target.runtime,
        confidence=CONFIDENCE,
    )
    run_pipeline(model, context)
    return model


@torch.no_grad()
def reference_logits(network: EarlyExitNetwork, images: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
    """Tensors of ``reference.npz``: the images and PyTorch's logits of every exit, one image at a time."""
    outputs = [network(image[None]).logits for image in torch.from_numpy(images)]
    columns = [torch.cat(column).numpy() for column in zip(*outputs, strict=True)]
    return {"input": images, **{exit_logits(number): column for number, column in enumerate(columns, start=1)}}
