"""The nodes of a module without capturing it: one run on tensors that have no values.

Capturing a network of fifty layers as an ONNX graph takes seconds; a run on the ``meta`` device takes milliseconds and
tells the same operators and shapes. Only what decides on prices is written down. A module that uses an operator which
this file does not know is captured instead (:func:`dyndeploy.prediction.zoo.zoo_nodes`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from dyndeploy.blocks import DynamicBlock
from dyndeploy.blocks.exits import Segment
from dyndeploy.bundle import CONFIDENCE
from dyndeploy.export.swap import Captured, dry_run, swap
from dyndeploy.ops.base import DOMAIN, RECORDER, OperatorSpec, Shape
from dyndeploy.prediction.nodes import SPELT_OUT, Node, NodeGraph

_POINTWISE = {
    "relu": "Relu", "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "sigmoid": "Sigmoid", "tanh": "Tanh",
    "hardswish": "HardSwish", "hardsigmoid": "HardSigmoid", "hardtanh": "Clip", "clamp": "Clip", "gelu": "Gelu",
    "leaky_relu": "LeakyRelu", "elu": "Elu", "ge": "GreaterOrEqual", "exp": "Exp", "sqrt": "Sqrt", "neg": "Neg",
}  # fmt: skip
_OTHERS = {
    "mean": "ReduceMean", "_adaptive_avg_pool2d": "GlobalAveragePool", "mm": "MatMul", "bmm": "MatMul",
    "_softmax": "Softmax", "native_layer_norm": "LayerNormalization", "cat": "Concat", "avg_pool2d": "AveragePool",
}  # fmt: skip
_BACK_TO_MAPS = frozenset({"Sub", "Div"})
_CONFIDENCE = {"max_softmax": ("Softmax", "ReduceMax")}
"""Measures of an exit's confidence as operators on its logits."""
_MEANS = frozenset({"mean", "_adaptive_avg_pool2d"})
_NORMS = frozenset({"native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"})
_VIEWS = frozenset({
    "view", "_unsafe_view", "reshape", "expand", "unsqueeze", "squeeze", "clone", "detach", "alias", "_to_copy",
    "flatten", "lift_fresh", "as_strided",
})  # fmt: skip
_MADE = frozenset({"new_full", "full", "zeros", "ones", "new_zeros", "new_ones", "arange", "empty"})
"""What needs no tensor: constants."""


_COMPARING = frozenset({"ge", "gt", "le", "lt", "eq"})
_ELEMENTWISE = _COMPARING | {
    "add", "sub", "mul", "div", "sqrt", "rsqrt", "neg", "relu", "sigmoid", "_to_copy", "normal", "uniform", "fill",
    "zero", "copy",
}  # fmt: skip


class Sizes(TorchDispatchMode):
    """Answers elementwise operators on the ``meta`` device with tensors of the right size, and nothing else.

    PyTorch works out strides and promotions for each, in Python: most of the time that building a network there takes.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.name().split("::")[1].split(".")[0]
        tensors = [item for item in args if isinstance(item, Tensor)]
        if not tensors or any(not item.is_meta for item in tensors):
            return func(*args, **kwargs)
        if name in _NORMS:
            empty = torch.empty(0, device="meta")
            return torch.empty(tensors[0].shape, device="meta"), empty, empty
        if name.removesuffix("_") not in _ELEMENTWISE or (name == "_to_copy" and kwargs.get("device") is not None):
            return func(*args, **kwargs)
        if name.endswith("_"):
            return args[0]
        dtype = torch.bool if name in _COMPARING else kwargs.get("dtype") or tensors[0].dtype
        return torch.empty(np.broadcast_shapes(*(tuple(item.shape) for item in tensors)), dtype=dtype, device="meta")


class UntraceableError(Exception):
    """An operator that has no counterpart here."""


class _Trace(TorchDispatchMode):
    """Writes a node for everything that is computed."""

    def __init__(self, scopes: Mapping[str, str], lacks: Collection[str] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nodes: list[Node] = []
        self._lacks = frozenset(lacks)
        self.shapes: dict[str, Shape] = {}
        self.made: set[str] = set()
        self._scopes = scopes
        self._path: list[str] = [""]
        self._names: dict[int, str] = {}
        self._alive: list[Tensor] = []  # An object's id is free again once it is gone.
        self._convolved: set[str] = set()
        self._transposed: dict[tuple[str | int, ...], str] = {}
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
        if not outputs:
            return
        inputs = [self.name_of(item) for item in tree_flatten(args)[0] if isinstance(item, Tensor)]
        attributes: dict[str, Any] = {}
        if name == "convolution":
            _, weight, _, strides, _, dilations, transposed, _, group = args
            attributes = {
                "kernel_shape": list(weight.shape[2:]), "strides": list(strides), "dilations": list(dilations),
                "group": group,
            }  # fmt: skip
            self._write("ConvTranspose" if transposed else "Conv", inputs, outputs, attributes)
            self._convolved.add(self.name_of(outputs[0]))
        elif name == "max_pool2d_with_indices":
            self._write("MaxPool", inputs, outputs[:1], {"kernel_shape": list(args[1])})
        elif name == "addmm":
            self._write("Gemm", [*inputs[1:], inputs[0]], outputs)
        elif name in ("permute", "transpose", "t"):
            self._transpose(inputs[0], outputs, _permutation(name, args))
        elif name in _NORMS:
            # Export folds a batch norm into the convolution that it follows.
            folds = inputs[0] in self._convolved
            self._write("Identity" if folds else "BatchNormalization", inputs[: 1 if folds else None], outputs[:1])
        elif name in _MEANS and outputs[0].shape[2:] == (1, 1) and inputs[0] in self._permuted:
            self._mean(inputs[0], outputs)
        elif name in _VIEWS:
            self._write("Identity", inputs[:1], outputs)
            copy = self.name_of(outputs[0])
            if inputs[0] in self._permuted and self.shapes[copy] == self.shapes[inputs[0]]:
                self._permuted[copy] = self._permuted[inputs[0]]
        elif name in _MADE:
            self._write("Constant", [], outputs)
        elif name == "avg_pool2d":
            self._write(_OTHERS[name], inputs, outputs, {"kernel_shape": list(args[1])})
        elif name in _POINTWISE or name in _OTHERS:
            operator = _POINTWISE.get(name) or _OTHERS[name]
            if operator in self._lacks and operator in SPELT_OUT:
                self._write_out(operator, inputs, outputs[0])
            else:
                self._write(operator, inputs, outputs[:1])
        else:
            raise UntraceableError(name)

    def _write_out(self, operator: str, inputs: Sequence[str], output: Tensor) -> None:
        """The steps of an operator that the platform lacks."""
        source, maps = inputs[0], inputs[0]
        whole, row = tuple(output.shape), (*output.shape[:-1], 1)
        steps = SPELT_OUT[operator]
        shape = whole
        for index, step in enumerate(steps):
            read = [source]
            if step in _BACK_TO_MAPS and shape == row:
                read, shape = [maps, source], whole
            elif step == "ReduceMean":
                shape = row
            elif operator == "Gelu" and index == steps.index("Mul"):
                read = [inputs[0], source]
            made = output if index == len(steps) - 1 else torch.empty(shape, device="meta")
            self._write(step, read, [made])
            source = self.name_of(made)
            maps = source if step == "Sub" else maps

    def give(self, tensor: Tensor, name: str) -> None:
        """Let a result go by a name of its own."""
        path, block = self._path[-1], None
        made = self.name_of(tensor)
        self.nodes.append(Node("Identity", "", f"{path or 'other'}/{name}", block, (made,), (name,)))
        self.shapes[name] = tuple(tensor.shape)
        self.made.add(name)

    def confidence(self, logits: Tensor, name: str, measure: str) -> None:
        """How sure an exit is, under a name; raises :class:`UntraceableError` for an unknown measure."""
        if measure not in _CONFIDENCE:
            raise UntraceableError(measure)
        for step in _CONFIDENCE[measure]:
            made = torch.empty(logits.shape[:1] if step == "ReduceMax" else logits.shape, device="meta")
            self._write(step, [self.name_of(logits)], [made])
            logits = made
        self.give(logits, name)

    def _transpose(self, source: str, outputs: Sequence[Tensor], order: list[int]) -> None:
        before, first = self._permuted.get(source, (source, list(range(len(order)))))
        if [first[axis] for axis in order] == list(range(len(order))):
            self._write("Identity", [before], outputs)  # Two changes of layout that cancel.
            return
        made = self._transposed.setdefault((source, *order), f"t{len(self.nodes)}.0")
        if made in self.made:
            self._write("Identity", [made], outputs)
            return
        self._write("Transpose", [source], outputs)
        self._permuted[self.name_of(outputs[0])] = (source, order)

    def _mean(self, source: str, outputs: Sequence[Tensor]) -> None:
        """The mean over the pixels of a channels-last map: export writes a product with a constant row."""
        before, _ = self._permuted[source]
        images, rows, columns, channels = self.shapes[before]
        flat, row, mean = (torch.empty(shape, device="meta") for shape in (
            (images, rows * columns, channels), (1, rows * columns), (images, 1, channels),
        ))  # fmt: skip
        self._write("Reshape", [before], [flat])
        self._write("MatMul", [self.name_of(row), self.name_of(flat)], [mean])
        self._write("Reshape", [self.name_of(mean)], outputs)

    def _write(
        self,
        op_type: str,
        inputs: list[str],
        outputs: Sequence[Tensor],
        attributes: Mapping[str, Any] | None = None,
        domain: str = "",
    ) -> None:
        names: list[str] = []
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
    """The outermost block that a module belongs to."""
    parts = path.split(".")
    prefixes = (".".join(parts[: index + 1]) for index in range(len(parts)))
    return next((scopes[prefix] for prefix in prefixes if prefix in scopes), None)


@contextlib.contextmanager
def _as_captured() -> Iterator[None]:
    """Let networks leave out what is for training only: they ask PyTorch whether a graph is being captured."""
    asked = torch.onnx.is_in_onnx_export
    torch.onnx.is_in_onnx_export = lambda: True
    try:
        yield
    finally:
        torch.onnx.is_in_onnx_export = asked


def trace(network: torch.nn.Module, image: Tensor, *, name: str, lacks: Collection[str] = ()) -> NodeGraph:
    """The nodes of a network as export would write them.

    Args:
        network: On the ``meta`` device, in evaluation; it is changed.
        image: Likewise, the batch of images that it takes.
        name: Of the network.
        lacks: Operators that the platform does not have, which export writes as several.

    Raises:
        UntraceableError: The network computes something that this file does not know.
        UsageError: It cannot be exported.
    """
    return _traced(network, {"input": image}, name, lacks, None, "")


def trace_stages(
    segments: Sequence[Segment], image: Tensor, *, name: str, measure: str, lacks: Collection[str] = ()
) -> list[tuple[int, NodeGraph]]:
    """The stages of a network that exits early, as export would write them.

    Args:
        segments: On the ``meta`` device, in evaluation; they are changed.
        image: Likewise, the batch of images that the first one takes.
        name: Of the network.
        measure: What an image leaves by; see :mod:`dyndeploy.confidences`.
        lacks: As for :func:`trace`.

    Returns:
        Number of the exit and nodes, per stage; results go by the names that later stages read them by.

    Raises:
        UntraceableError: As :func:`trace`; or the measure is not known here.
        UsageError: As :func:`trace`.
    """
    values = {segments[0].inputs[0]: image}
    stages = []
    for segment in segments:
        inputs = {key: values[key] for key in segment.inputs}
        with _as_captured(), torch.no_grad():
            values |= dict(zip(segment.outputs, segment(*inputs.values()), strict=True))
        stages.append((segment.exit, _traced(segment, inputs, name, lacks, segment.outputs, measure)))
    return stages


def _traced(
    network: torch.nn.Module,
    inputs: Mapping[str, Tensor],
    name: str,
    lacks: Collection[str],
    names: Sequence[str] | None,
    measure: str,
) -> NodeGraph:
    scopes = {f"net.{path}": path for path, child in network.named_modules() if isinstance(child, DynamicBlock)}
    record = _Trace(scopes, lacks)
    examples = list(inputs.values())
    with _as_captured():
        with Sizes():
            run = dry_run(network, examples, names)
            swapped = swap(network, run)
        module = Captured(
            swapped.network, swapped.recorder, list(run.outputs), swapped.masks, in_order=names is not None
        )
        for path, inner in module.named_modules():
            inner.register_forward_pre_hook(record.enter(path))
            inner.register_forward_hook(record.leave)
        for key, value in inputs.items():
            record.name(value, key)
            record.made.add(key)
        token = RECORDER.set(record.operator)
        try:
            with torch.no_grad(), record:
                results = module(*examples)
        finally:
            RECORDER.reset(token)
    if names is None:
        outputs = tuple(record.name_of(item) for item in results)
    else:
        # Named after everything is computed: a result may be read under its first name as well.
        for key, value in zip(names, results, strict=False):
            record.give(value, key)
        record.confidence(results[0], CONFIDENCE, measure)
        outputs = (*names, CONFIDENCE, *(record.name_of(item) for item in results[len(names) :]))
    needed, nodes = set(outputs), []
    for node in reversed(record.nodes):
        if needed & set(node.outputs):
            needed.update(node.inputs)
            nodes.append(node)
    first = examples[0]
    return NodeGraph(
        name=name,
        nodes=tuple(reversed(nodes)),
        shapes=record.shapes,
        constants=frozenset({*(set(record.shapes) - record.made), ""}),
        outputs=outputs,
        batch=first.shape[0],
        input_size=(first.shape[2], first.shape[3]) if first.ndim == 4 else None,
    )
