"""Networks on a GPU without TensorRT: the graph that it would get, our operators by their kernels, the rest by cuDNN.

The graph is :func:`dyndeploy.graphs.tensorrt.tensorrt_model`'s, with the types of a strongly typed FP16 engine and the
weights in the kernels' layout. Standard operators are PyTorch's, channels last. Every launch goes to the current stream
and none waits, so a run can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from kernels import Kernels
from onnx import helper, numpy_helper
from torch import Tensor
from torch.nn import functional

from dyndeploy.errors import UsageError
from dyndeploy.graphs.inspect import is_dynamic, operator_attributes
from dyndeploy.ops import OPERATORS

_TYPES = {onnx.TensorProto.FLOAT: torch.float32, onnx.TensorProto.FLOAT16: torch.float16}
_LAST = torch.channels_last


class Network:
    """A graph that can be run at any batch size.

    Args:
        model: A copy for TensorRT, without branches; it was exported for a batch of ``exported``.
        kernels: The CUDA kernels; None where the graph has no operator of ours.
        device: PyTorch's name of where tensors live.
        fused: Whether a convolution takes the bias, the sum and the ReLU behind it along, as cuDNN can; else each of
            them is a launch.
        exported: The batch that the graph's constants of shape stand for.

    Raises:
        UsageError: The graph holds an operator that this runner does not know.
    """

    def __init__(
        self, model: onnx.ModelProto, kernels: Kernels | None, *, device: str, fused: bool = False, exported: int = 1
    ) -> None:
        self._kernels, self._exported = kernels, exported
        self._values = {
            item.name: torch.from_numpy(np.array(numpy_helper.to_array(item))) for item in model.graph.initializer
        }
        self._shapes = {name: value.tolist() for name, value in self._values.items() if value.dtype == torch.int64}
        self._values = {name: value.to(device) for name, value in self._values.items() if name not in self._shapes}
        self.outputs = [value.name for value in model.graph.output]
        self._steps = self._fuse(list(model.graph.node)) if fused else list(map(_Step, model.graph.node))
        for step in self._steps:
            node = step.node
            known = kernels is not None and "cuda" in OPERATORS[node.op_type].kernels if is_dynamic(node) else True
            if not known or (not is_dynamic(node) and node.op_type not in _OPERATORS):
                raise UsageError(f"{node.op_type} ({node.name or node.output[0]}) cannot be run here.")
            if node.op_type == "Conv":
                weight = self._values[node.input[1]]
                self._values[node.input[1]] = weight.contiguous(memory_format=_LAST)
        self._last = {name: index for index, step in enumerate(self._steps) for name in step.reads}

    def _fuse(self, nodes: Sequence[onnx.NodeProto]) -> list[_Step]:
        readers = Counter(name for node in nodes for name in node.input)
        readers.update(self.outputs)
        reader = {name: node for node in nodes for name in node.input}
        made_at = {name: index for index, node in enumerate(nodes) for name in node.output}
        steps: dict[int, _Step] = {}
        gone: set[int] = set()
        for index, node in enumerate(nodes):
            if index in gone:
                continue
            steps[index] = _Step(node)
            if node.op_type != "Conv" or readers[node.output[0]] != 1:
                continue
            behind, addend = reader[node.output[0]], None
            if behind.op_type == "Add" and readers[behind.output[0]] == 1:
                addend = next(name for name in behind.input if name != node.output[0])
                chain, behind = [behind], reader[behind.output[0]]
            else:
                chain = []
            taken = {made_at[item.output[0]] for item in (*chain, behind)}
            if behind.op_type != "Relu" or taken & gone:
                continue
            gone |= taken
            # In the place of the ReLU: a shortcut's convolution, which is added, may stand behind this one.
            del steps[index]
            steps[max(taken)] = _Step(node, addend=addend, relu=behind.output[0])
        return [steps[index] for index in sorted(steps)]

    @torch.no_grad()
    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Launch one run.

        Args:
            feeds: All inputs, on the device; images (N, C, H, W) in channels-last memory.

        Returns:
            The outputs by name.
        """
        values = dict(feeds)
        batch = next(iter(feeds.values())).shape[0]
        for index, step in enumerate(self._steps):
            node = step.node
            inputs = [None if not name else self._find(name, values) for name in step.reads]
            if is_dynamic(node):
                assert self._kernels is not None
                spec = OPERATORS[node.op_type]
                result = self._kernels.run(spec, [v for v in inputs if v is not None], operator_attributes(node))
            elif node.op_type == "Reshape":
                result = inputs[0].reshape(self._resized(self._shapes[node.input[1]], batch))  # type: ignore[union-attr]
            elif node.op_type == "ReduceMean":
                result = _mean(node, inputs[0], self._shapes)
            elif step.relu:
                addend = inputs.pop() if step.addend is not None else None
                result = convolution_relu(
                    inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None, _geometry(node), addend, fused=True
                )
            else:
                result = _OPERATORS[node.op_type](node, inputs)
            values[step.output] = result
            for name in step.reads:
                if self._last.get(name) == index and name in values and name not in feeds and name not in self.outputs:
                    del values[name]
        return {name: values[name] for name in self.outputs}

    def _find(self, name: str, values: Mapping[str, Tensor]) -> Tensor | None:
        return values[name] if name in values else self._values.get(name)

    def _resized(self, shape: Sequence[int], batch: int) -> list[int]:
        return [batch, *shape[1:]] if shape[0] == self._exported else list(shape)


class _Step:
    """A node, and what a convolution takes along."""

    def __init__(self, node: onnx.NodeProto, addend: str | None = None, relu: str | None = None) -> None:
        self.node, self.addend, self.relu = node, addend, relu
        self.output = relu or node.output[0]
        self.reads = [*node.input, *([addend] if addend else [])]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


Geometry = tuple[list[int], list[int], list[int], int]
"""Stride, padding, dilation and groups of a convolution."""


def _geometry(node: onnx.NodeProto) -> Geometry:
    """Stride, padding, dilation and groups; raises ``UsageError`` where both sides are not padded alike."""
    given = _attributes(node)
    pads = list(given.get("pads", [0, 0, 0, 0]))
    if pads[:2] != pads[2:]:
        raise UsageError(f"{node.name or node.output[0]} pads its sides differently, which cannot be run here.")
    return list(given.get("strides", [1, 1])), pads[:2], list(given.get("dilations", [1, 1])), given.get("group", 1)


def _convolution(node: onnx.NodeProto, inputs: Sequence[Any]) -> Tensor:
    bias = inputs[2] if len(inputs) > 2 else None
    return functional.conv2d(inputs[0], inputs[1], bias, *_geometry(node))


def convolution_relu(x: Any, weight: Any, bias: Any, geometry: Geometry, addend: Any = None, *, fused: bool) -> Tensor:
    """``relu(convolution + addend)``: one launch of cuDNN where it is fused and on a GPU, else PyTorch's operators.

    Args:
        x: (N, C, H, W), channels last.
        weight: (Co, C / groups, kh, kw).
        bias: (Co,) or None.
        geometry: Stride, padding, dilation, groups.
        addend: As the result, or None.
        fused: Whether one launch is wanted.
    """
    if fused and x.is_cuda:
        if addend is None:
            return torch.cudnn_convolution_relu(x, weight, bias, *geometry)
        return torch.cudnn_convolution_add_relu(x, weight, addend, 1.0, bias, *geometry)
    y = functional.conv2d(x, weight, bias, *geometry)
    return torch.relu(y if addend is None else y + addend)


def _pool(node: onnx.NodeProto, inputs: Sequence[Any]) -> Tensor:
    stride, padding, dilation, _ = _geometry(node)
    return functional.max_pool2d(inputs[0], _attributes(node)["kernel_shape"], stride, padding, dilation)


def _mean(node: onnx.NodeProto, x: Any, shapes: Mapping[str, list[int]]) -> Tensor:
    given = _attributes(node)
    axes = shapes[node.input[1]] if len(node.input) > 1 else list(given["axes"])
    return torch.mean(x, dim=axes, keepdim=bool(given.get("keepdims", 1)))


def _gemm(node: onnx.NodeProto, inputs: Sequence[Any]) -> Tensor:
    given = _attributes(node)
    if given.get("transA", 0) or given.get("alpha", 1.0) != 1.0 or given.get("beta", 1.0) != 1.0:
        raise UsageError(f"{node.name or node.output[0]} is no plain linear layer, which cannot be run here.")
    weight = inputs[1] if given.get("transB", 0) else inputs[1].T
    return functional.linear(inputs[0], weight, inputs[2] if len(inputs) > 2 else None)


def _flatten(node: onnx.NodeProto, inputs: Sequence[Any]) -> Tensor:
    if _attributes(node).get("axis", 1) != 1:
        raise UsageError(f"{node.name or node.output[0]} flattens the batch, which cannot be run here.")
    return torch.flatten(inputs[0], 1)


def _transpose(node: onnx.NodeProto, inputs: Sequence[Any]) -> Tensor:
    # Maps lie channels last whatever their axes are called: no number moves.
    result: Tensor = inputs[0].permute(_attributes(node)["perm"])
    if result.ndim == 4 and not result.is_contiguous() and not result.is_contiguous(memory_format=_LAST):
        result = result.contiguous()
    return result


_OPERATORS: dict[str, Callable[[onnx.NodeProto, Sequence[Any]], Tensor]] = {
    "Add": lambda node, inputs: inputs[0] + inputs[1],
    "Cast": lambda node, inputs: inputs[0].to(_TYPES[_attributes(node)["to"]]),
    "Conv": _convolution,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda node, inputs: torch.mean(inputs[0], dim=(2, 3), keepdim=True),
    "Identity": lambda node, inputs: inputs[0],
    "MaxPool": _pool,
    "MatMul": lambda node, inputs: torch.matmul(inputs[0], inputs[1]),
    "Mul": lambda node, inputs: inputs[0] * inputs[1],
    "ReduceMean": lambda node, inputs: _mean(node, inputs[0], {}),
    "Relu": lambda node, inputs: torch.relu(inputs[0]),
    "Reshape": lambda node, inputs: inputs[0],
    "Transpose": _transpose,
}
