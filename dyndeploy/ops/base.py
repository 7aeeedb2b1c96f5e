"""What a dynamic operator is: one object that holds every face of it.

The faces are the PyTorch reference, shape inference, the ONNX function body (standard operators only), the plugin
fields, the cost as a function of the masks, and the targets that can run it natively. Exporters, runtimes, profilers
and predictors ask this object; nobody else knows the semantics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dyndeploy.errors import UsageError

if TYPE_CHECKING:
    import onnx
    import torch

    from dyndeploy.ops._body import Body, Value

DOMAIN = "dyndeploy"
"""ONNX domain of all dynamic operators."""

Shape = tuple[int, ...]
Attributes = Mapping[str, Any]
Masks = Mapping[str, npt.NDArray[np.float32]]


class Role(Enum):
    """What an input is to the operator."""

    ACTIVATION = "activation"
    MASK = "mask"
    WEIGHT = "weight"


@dataclass(frozen=True)
class Port:
    """An input or output: its name, role and symbolic shape, e.g. ``("N", "H", "W", "C")``."""

    name: str
    role: Role
    shape: tuple[str, ...]


@dataclass(frozen=True)
class Attribute:
    """An ONNX attribute, which is also a field of the plugins: integers, or a list of ``length`` integers."""

    name: str
    length: int | None = None


@dataclass(frozen=True)
class Cost:
    """What one run of the operator needs.

    Attributes:
        macs: Multiply-accumulates of convolutions and linear layers per sample, shape (N,).
        dense_macs: The same with every mask bit set, shape (N,).
        bytes: Least traffic of the whole batch in bytes at 4 bytes an element: active activations once in and
            once out, touched weights once.
    """

    macs: npt.NDArray[np.float64]
    dense_macs: npt.NDArray[np.float64]
    bytes: float


@dataclass(frozen=True)
class OperatorSpec:
    """One operator of domain ``dyndeploy`` (a variant with further inputs is an operator of its own).

    Attributes:
        name: ONNX ``op_type``; unique also among TensorRT's built-in names, because its parser ignores domains.
        version: Version of the semantics; raised whenever a result may change.
        summary: One sentence.
        inputs: In ONNX order.
        output: The single output.
        attributes: ONNX attributes and plugin fields.
        reference: ``(*inputs, **attributes) -> output`` on torch tensors: the semantics.
        infer_shape: ``(input shapes, attributes) -> output shape``; raises ``UsageError`` on a mismatch.
        body: Writes the function body with standard operators of opset 13 whose meaning has not changed since.
        cost: ``(input shapes, attributes, masks by input name) -> Cost``.
        native_targets: Kernel families that exist for it: ``"cpu"`` (ONNX Runtime library), ``"cuda"``.
    """

    name: str
    version: int
    summary: str
    inputs: tuple[Port, ...]
    output: Port
    attributes: tuple[Attribute, ...]
    reference: Callable[..., torch.Tensor]
    infer_shape: Callable[[Sequence[Shape], Attributes], Shape]
    body: Callable[[Body, Mapping[str, Value]], Value]
    cost: Callable[[Sequence[Shape], Attributes, Masks], Cost]
    native_targets: frozenset[str] = frozenset()

    def input_index(self, name: str) -> int:
        """Position of an input by name; ``ValueError`` if there is none."""
        return [port.name for port in self.inputs].index(name)

    def mask_inputs(self) -> tuple[str, ...]:
        """Names of the inputs that are masks, in order."""
        return tuple(port.name for port in self.inputs if port.role is Role.MASK)

    def check_attributes(self, attributes: Attributes) -> None:
        """Raise ``UsageError`` unless exactly the declared attributes are given, with the declared lengths."""
        declared = {attribute.name: attribute for attribute in self.attributes}
        if set(attributes) != set(declared):
            raise UsageError(f"{self.name} needs the attributes {sorted(declared)}, but got {sorted(attributes)}.")
        for name, value in attributes.items():
            length = declared[name].length
            if length is not None and len(value) != length:
                raise UsageError(f"{self.name}: attribute {name} needs {length} values, not {list(value)}.")

    def function(self, opset: int) -> onnx.FunctionProto:
        """Return the model-local function for a model of the given opset (13 or later)."""
        from onnx import helper

        from dyndeploy.ops._body import Body

        if opset < 13:
            raise UsageError(f"The body of {self.name} needs opset 13 or later, not {opset}.")
        body = Body()
        result = self.body(body, {port.name: body.input(port.name) for port in self.inputs})
        function = helper.make_function(
            DOMAIN,
            self.name,
            [port.name for port in self.inputs],
            [self.output.name],
            body.function_nodes(result, self.output.name),
            [helper.make_opsetid("", opset)],
            [attribute.name for attribute in self.attributes],
        )
        function.doc_string = self.summary
        return function

    def emit(self, inputs: Sequence[torch.Tensor], attributes: Attributes) -> torch.Tensor:
        """Compute the operator; while an ONNX graph is being captured, write its node instead.

        Raises:
            UsageError: Shapes or attributes do not fit.
        """
        import torch

        self.check_attributes(attributes)
        shape = self.infer_shape([tuple(tensor.shape) for tensor in inputs], attributes)
        if torch.onnx.is_in_onnx_export():
            result: torch.Tensor = torch.onnx.ops.symbolic(
                f"{DOMAIN}::{self.name}",
                tuple(inputs),
                attrs={**attributes, "plugin_version": str(self.version), "plugin_namespace": ""},
                dtype=torch.float32 if self.output.role is Role.MASK else inputs[0].dtype,
                shape=shape,
                version=self.version,
            )
            return result
        return self.reference(*inputs, **attributes)
