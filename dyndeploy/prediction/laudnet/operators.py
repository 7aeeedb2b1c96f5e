"""Operators as data: what the predictor is asked to price, and which kinds it knows."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dyndeploy.errors import UsageError
from dyndeploy.prediction.laudnet.cost import Cost, CostModel

Attributes = Mapping[str, Any]


@dataclass(frozen=True)
class Operator:
    """One operator of a network, per image.

    Attributes:
        kind: A key of :data:`KINDS`; any other kind is reported as unknown and has no latency.
        name: Label in the results.
        attributes: Arguments of the kind (see :func:`operator_kinds`).
        macs: Executed multiply-accumulates per image; ``None`` lets the kind compute them. Give it for an
            unknown kind, so that coverage by FLOPs can be stated.
        active: Fraction of images that execute the operator (layer skipping).
    """

    kind: str
    name: str
    attributes: Attributes = field(default_factory=dict)
    macs: float | None = None
    active: float = 1.0


@dataclass(frozen=True)
class Kind:
    """How one kind of operator is priced and counted."""

    price: Callable[..., Cost]
    macs: Callable[[Attributes], float]

    @property
    def arguments(self) -> dict[str, bool]:
        """Attribute names, each with whether it must be given."""
        parameters = list(inspect.signature(self.price).parameters.values())[2:]
        return {p.name: p.default is inspect.Parameter.empty for p in parameters}


def _conv_macs(a: Attributes) -> float:
    dense = a["c_in"] // a.get("groups", 1) * a["c_out"] * a.get("kernel", 1) ** 2 * a["height"] * a["width"]
    channels = a.get("in_channel_density", 1.0) * a.get("out_channel_density", 1.0)
    return float(dense * channels * a.get("density", 1.0))


def _masker_conv1_macs(a: Attributes) -> float:
    return float(a["c_in"] * a["height"] * a["width"] * (2 + a["c_out"] * a["density"]))


def _map_elements(a: Attributes) -> float:
    return float(a["channels"] * a["height"] * a["width"] * a.get("density", 1.0))


def _squeeze_macs(a: Attributes) -> float:
    return float(2 * a["channels"] * a["squeezed"] + 2 * a["channels"] * a["height"] * a["width"])


def _row_elements(a: Attributes) -> float:
    return float(a["rows"] * a["tokens"] * a["channels"])


#: Every kind that the predictor can price. Elementwise and pooling operators count one "MAC" per element.
KINDS: dict[str, Kind] = {
    "conv": Kind(CostModel.conv, _conv_macs),
    "patch_conv": Kind(CostModel.patch_conv, _conv_macs),
    "masker_conv1": Kind(CostModel.masker_conv1, _masker_conv1_macs),
    "add": Kind(CostModel.add, _map_elements),
    "patch_add": Kind(CostModel.patch_add, _map_elements),
    "multiply": Kind(CostModel.multiply, _map_elements),
    "pool": Kind(CostModel.avg_pool, _map_elements),
    "reduce": Kind(CostModel.reduce, _map_elements),
    "linear": Kind(CostModel.linear, lambda a: float(a["c_in"] * a["c_out"])),
    "squeeze_excite": Kind(CostModel.squeeze_excite, _squeeze_macs),
    "patch_squeeze_excite": Kind(CostModel.patch_squeeze_excite, _squeeze_macs),
    "mask_index": Kind(CostModel.mask_index, lambda a: float(a["positions"])),
    "channel_constants": Kind(CostModel.channel_constants, _map_elements),
    "matmul": Kind(CostModel.matmul, lambda a: float(a["rows"] * a["c_in"] * a["c_out"])),
    "elementwise": Kind(CostModel.elementwise, _row_elements),
    "unfold": Kind(CostModel.unfold, lambda a: float(a["c_out"] * a["height"] * a["width"])),
    "softmax": Kind(CostModel.softmax, lambda a: 4 * _row_elements(a)),
    "layernorm": Kind(CostModel.layernorm, lambda a: 4 * _row_elements(a)),
}


def operator_kinds() -> dict[str, dict[str, bool]]:
    """Return the known kinds; for each, its attributes and whether each is required."""
    return {name: kind.arguments for name, kind in KINDS.items()}


def check_attributes(operator: Operator) -> None:
    """Refuse a known kind of operator with missing, surplus or non-positive attributes.

    Raises:
        UsageError: Naming the operator and the attribute.
    """
    arguments = KINDS[operator.kind].arguments
    where = f"Operator '{operator.name}' ({operator.kind})"
    missing = [name for name, required in arguments.items() if required and name not in operator.attributes]
    surplus = [name for name in operator.attributes if name not in arguments]
    if missing or surplus:
        faults = [f"lacks {', '.join(missing)}"] if missing else []
        faults += [f"has unknown attributes {', '.join(surplus)}"] if surplus else []
        raise UsageError(f"{where} {' and '.join(faults)}. It takes: {', '.join(arguments)}.")
    for name, value in operator.attributes.items():
        for number in value if isinstance(value, tuple) else (value,):
            is_density = name.endswith("density")
            if not math.isfinite(number) or number < 0 or (number == 0 and not is_density and name != "gathered"):
                raise UsageError(f"{where}: {name} must be positive and finite, not {value}.")
            if is_density and number > 1:
                raise UsageError(f"{where}: {name} must lie in [0, 1], not {value}.")
