"""In which layout ONNX Runtime keeps maps on a CPU, and where it converts them.

Its convolutions and pools compute on channels in blocks (NCHWc); everything else takes plain maps. What lies between
costs a pass over the map. The rules are those that its graphs show (version 1.31): a convolution is blocked if its
weights are constant, it has two spatial axes, and its channels come in fours (or are fewer than a block); additions,
products, a few activations, concatenation and enlarging stay blocked where all of their inputs are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from dyndeploy.ops.base import Shape
from dyndeploy.prediction.nodes import Node

BLOCK = 16
"""Channels of a block with AVX-512; 8 with AVX2, where a few convolutions more are blocked."""

_ALIGNED = 4
_POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})
_BINARY = frozenset({"Add", "Mul", "Sum"})
_UNARY = frozenset({"Relu", "Sigmoid", "Tanh", "QuickGelu", "BatchNormalization", "Resize", "Upsample"})
"""Stay blocked where their inputs are, and never cause a conversion into blocks."""


class Reorder(NamedTuple):
    """A map that is converted.

    Attributes:
        inward: From plain to blocked.
        tensor: Which.
        shape: (batch, channels, height, width).
    """

    inward: bool
    tensor: str
    shape: Shape


class Layouts:
    """Follows the layout of every tensor through a graph, node by node.

    Args:
        shapes: Of the tensors.
        constants: Tensors that are known before a run.
    """

    def __init__(self, shapes: Mapping[str, Shape], constants: Collection[str]) -> None:
        self._shapes, self._constants = shapes, constants
        self._blocked: set[str] = set()
        self._plain: set[str] = set()  # Those of the blocked ones that were converted too.
        self._inward: set[str] = set()

    def is_blocked(self, tensor: str) -> bool:
        """Whether a tensor was made in blocks."""
        return tensor in self._blocked

    def convolves_blocked(self, node: Node) -> bool:
        """Whether a convolution computes in blocks."""
        if node.op_type != "Conv" or node.domain or node.inputs[1] not in self._constants:
            return False
        weight, groups = self._shapes.get(node.inputs[1], ()), int(node.attributes.get("group", 1))
        if len(weight) != 4:
            return False
        outputs, inputs = weight[:2]
        if groups > 1 and not (inputs == 1 and outputs == groups):
            return inputs % BLOCK == 0 and outputs // groups % BLOCK == 0
        channels = outputs if groups > 1 else inputs
        return channels % _ALIGNED == 0 or (groups == 1 and channels < BLOCK)

    def begin(self, node: Node, inputs: Sequence[str]) -> list[Reorder]:
        """What is converted before a node that starts a kernel of its own; notes the layout of its output.

        Args:
            node: The node.
            inputs: Its inputs that are computed at run time, without views.
        """
        blocks = self._computes_blocked(node)
        if blocks:
            self._blocked.update(node.outputs[:1])
            # A map of few channels is read as it is.
            few = node.op_type == "Conv" and self._shapes[node.inputs[1]][1] < BLOCK and self._groups(node) == 1
            return self._out_of_blocks(inputs[:1]) if few else self._into_blocks(inputs[:1])
        if inputs and node.domain in ("", "com.microsoft") and self._passes(node, inputs):
            self._blocked.update(node.outputs[:1])
            return []
        return self._out_of_blocks(inputs)

    def join(self, tail: str, output: str) -> None:
        """Note that a node was fused into the kernel that made ``tail``."""
        if tail in self._blocked:
            self._blocked.add(output)

    def end(self, outputs: Sequence[str]) -> list[Reorder]:
        """What is converted for the outputs of the graph."""
        return self._out_of_blocks(outputs)

    @staticmethod
    def _groups(node: Node) -> int:
        return int(node.attributes.get("group", 1))

    def _computes_blocked(self, node: Node) -> bool:
        if node.op_type in _POOLS and not node.domain:
            shape = self._shapes.get(node.inputs[0], ())
            return len(shape) == 4 and shape[1] % BLOCK == 0
        return self.convolves_blocked(node)

    def _passes(self, node: Node, inputs: Sequence[str]) -> bool:
        if not all(name in self._blocked for name in inputs):
            return False
        if node.op_type == "Concat":
            return node.attributes.get("axis") == 1 and all(self._shapes[name][1] % BLOCK == 0 for name in inputs)
        if node.op_type in _BINARY:
            return len(inputs) > 1 and len({self._shapes.get(name) for name in inputs}) == 1
        return node.op_type in _UNARY

    def _out_of_blocks(self, tensors: Sequence[str]) -> list[Reorder]:
        wanted = [name for name in dict.fromkeys(tensors) if name in self._blocked and name not in self._plain]
        self._plain.update(wanted)
        return [Reorder(False, name, self._shapes[name]) for name in wanted]

    def _into_blocks(self, tensors: Sequence[str]) -> list[Reorder]:
        wanted = [name for name in dict.fromkeys(tensors) if name not in self._blocked | self._inward]
        self._inward.update(wanted)
        return [Reorder(True, name, self._shapes[name]) for name in wanted]
