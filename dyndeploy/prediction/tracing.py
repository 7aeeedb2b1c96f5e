"""The nodes of a module without capturing it: one run on tensors that have no values.

Capturing a network of fifty layers as an ONNX graph takes seconds; a run on the ``meta`` device takes milliseconds and
tells the same operators and shapes. Only what decides on prices is written down. A module that uses an operator which
this file does not know is captured instead (:func:`dyndeploy.prediction.zoo.zoo_nodes`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from dyndeploy.ops.base import DOMAIN, RECORDER, OperatorSpec, Shape
from dyndeploy.prediction.nodes import Node, NodeGraph, is_block

_POINTWISE = {
    "relu": "Relu", "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "sigmoid": "Sigmoid", "tanh": "Tanh",
    "hardswish": "HardSwish", "hardsigmoid": "HardSigmoid", "hardtanh": "Clip", "clamp": "Clip", "gelu": "Gelu",
    "leaky_relu": "LeakyRelu", "elu": "Elu", "ge": "GreaterOrEqual", "exp": "Exp", "sqrt": "Sqrt", "neg": "Neg",
}  # fmt: skip
_OTHERS = {
    "mean": "ReduceMean", "_adaptive_avg_pool2d": "GlobalAveragePool", "mm": "MatMul", "bmm": "MatMul",
    "_softmax": "Softmax", "native_layer_norm": "LayerNormalization", "cat": "Concat",
}  # fmt: skip
_NORMS = frozenset({"native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"})
_VIEWS = frozenset({
    "view", "_unsafe_view", "reshape", "expand", "unsqueeze", "squeeze", "clone", "detach", "alias", "_to_copy",
    "flatten", "lift_fresh",
})  # fmt: skip
_MADE = frozenset({"new_full", "full", "zeros", "ones", "new_zeros", "new_ones", "arange", "empty"})
"""What needs no tensor: constants."""


class UntraceableError(Exception):
    """An operator that has no counterpart here."""


class _Trace(TorchDispatchMode):
    """Writes a node for everything that is computed."""

    def __init__(self, scopes: Mapping[str, str]) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.shapes: dict[str, Shape] = {}
        self.made: set[str] = set()
        self._scopes = scopes
        self._path: list[str] = [""]
        self._names: dict[int, str] = {}
        self._alive: list[Tensor] = []  # An object's id is free again once it is gone.
        self._permuted: dict[str, tuple[str, list[int]]] = {}

    def name_of(self, tensor: Tensor) -> str:
        """The tensor's name; one that nothing made is a constant."""
        if id(tensor) not in self._names:
            self.name(tensor, f"constant{len(self._names)}")
        return self._names[id(tensor)]

    def name(self, tensor: Tensor, name: str) -> None:
        self._names[id(tensor)] = name
        self._alive.append(tensor)
        self.shapes[name] = tuple(tensor.shape)

    def enter(self, path: str) -> Callable[..., None]:
        return lambda *_: self._path.append(path)

    def leave(self, *_: object) -> None:
        self._path.pop()

    def operator(
        self, spec: OperatorSpec, inputs: Sequence[Tensor], attributes: Mapping[str, Any], shapes: Sequence[Shape]
    ) -> tuple[Tensor, ...]:
        """A dynamic operator; see :data:`~dyndeploy.ops.base.RECORDER`."""
        outputs = tuple(torch.empty(shape, device="meta") for shape in shapes)
        self._write(spec.name, list(map(self.name_of, inputs)), outputs, dict(attributes), DOMAIN)
        return outputs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._record(func.name().split("::")[1].split(".")[0].removesuffix("_"), args, result)
        return result

    def _record(self, name: str, args: Sequence[Any], result: Any) -> None:
        outputs = tuple(item for item in tree_flatten(result)[0] if isinstance(item, Tensor))
        inputs = [self.name_of(item) for item in tree_flatten(args)[0] if isinstance(item, Tensor)]
        attributes: dict[str, Any] = {}
        if name == "convolution":
            _, weight, _, strides, _, dilations, transposed, _, group = args
            attributes = {
                "kernel_shape": list(weight.shape[2:]), "strides": list(strides), "dilations": list(dilations),
                "group": group,
            }  # fmt: skip
            self._write("ConvTranspose" if transposed else "Conv", inputs, outputs, attributes)
        elif name == "max_pool2d_with_indices":
            self._write("MaxPool", inputs, outputs[:1], {"kernel_shape": list(args[1])})
        elif name == "addmm":
            self._write("Gemm", [*inputs[1:], inputs[0]], outputs)
        elif name in ("permute", "transpose", "t"):
            self._transpose(inputs[0], outputs, _permutation(name, args))
        elif name in _NORMS:
            self._write("BatchNormalization", inputs, outputs[:1])
        elif name in _VIEWS:
            self._write("Identity", inputs[:1], outputs)
        elif name in _MADE:
            self._write("Constant", [], outputs)
        elif name in _POINTWISE or name in _OTHERS:
            self._write(_POINTWISE.get(name) or _OTHERS[name], inputs, outputs[:1])
        else:
            raise UntraceableError(name)

    def _transpose(self, source: str, outputs: Sequence[Tensor], order: list[int]) -> None:
        before, first = self._permuted.get(source, (source, list(range(len(order)))))
        if [first[axis] for axis in order] == list(range(len(order))):
            self._write("Identity", [before], outputs)  # Two changes of layout that cancel.
            return
        self._write("Transpose", [source], outputs)
        self._permuted[self.name_of(outputs[0])] = (source, order)

    def _write(
        self,
        op_type: str,
        inputs: list[str],
        outputs: Sequence[Tensor],
        attributes: Mapping[str, Any] | None = None,
        domain: str = "",
    ) -> None:
        names = []
        for output in outputs:
            names.append(f"t{len(self.nodes)}.{len(names)}")
            self.name(output, names[-1])
        self.made.update(names)
        path = self._path[-1]
        block = _block(path, self._scopes)
        name = f"{block or path or 'other'}/{op_type}_{len(self.nodes)}"
        self.nodes.append(Node(op_type, domain, name, block, tuple(inputs), tuple(names), attributes or {}))


def _permutation(name: str, args: Sequence[Any]) -> list[int]:
    rank = args[0].dim()
    if name == "permute":
        return [axis % rank for axis in args[1]]
    order = list(range(rank))
    first, second = (axis % rank for axis in args[1:3]) if name == "transpose" else (0, rank - 1)
    order[first], order[second] = order[second], order[first]
    return order


def _block(path: str, scopes: Mapping[str, str]) -> str | None:
    """The block that a module belongs to: the first numbered part of its path."""
    parts = path.split(".")
    if parts[0] in scopes:
        return scopes[parts[0]]
    prefixes = (".".join(parts[: index + 1]) for index in range(len(parts)))
    return next((prefix for prefix in prefixes if is_block(prefix)), None)


def trace(
    module: torch.nn.Module,
    inputs: Sequence[Tensor],
    *,
    name: str,
    scopes: Mapping[str, str],
) -> NodeGraph:
    """The nodes of a lowered module.

    Args:
        module: On the ``meta`` device, as it would be captured; hooks are left on it.
        inputs: Likewise; the first one is the image.
        name: Of the network.
        scopes: Names of blocks by the names of modules that stand for them.

    Raises:
        UntraceableError: The module computes something that this file does not know.
    """
    record = _Trace(scopes)
    for path, inner in module.named_modules():
        inner.register_forward_pre_hook(record.enter(path))
        inner.register_forward_hook(record.leave)
    for index, tensor in enumerate(inputs):
        record.name(tensor, f"input{index}")
    record.made.update(f"input{index}" for index in range(len(inputs)))
    token = RECORDER.set(record.operator)
    try:
        with torch.no_grad(), record:
            results = module(*inputs)
    finally:
        RECORDER.reset(token)
    outputs = tuple(record.name_of(item) for item in tree_flatten(results)[0] if isinstance(item, Tensor))
    needed, nodes = set(outputs), []
    for node in reversed(record.nodes):
        if needed & set(node.outputs):
            needed.update(node.inputs)
            nodes.append(node)
    image = tuple(inputs[0].shape)
    return NodeGraph(
        name=name,
        nodes=tuple(reversed(nodes)),
        shapes=record.shapes,
        constants=frozenset({*(set(record.shapes) - record.made), ""}),
        outputs=outputs,
        batch=image[0],
        input_size=(image[2], image[3]) if len(image) == 4 else None,
    )
