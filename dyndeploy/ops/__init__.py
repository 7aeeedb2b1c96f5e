"""Dynamic operators: one file per operator, each holding all its faces (see :class:`OperatorSpec`)."""

from __future__ import annotations

from dyndeploy.errors import unknown_name
from dyndeploy.ops import (
    channel_bottleneck,
    channel_masker,
    layer_bottleneck,
    spatial_bottleneck,
    spatial_channel_bottleneck,
    spatial_masker,
)
from dyndeploy.ops.base import DOMAIN, Cost, OperatorSpec, Port, Role

OPERATORS: dict[str, OperatorSpec] = {
    spec.name: spec
    for module in (
        spatial_masker,
        channel_masker,
        spatial_bottleneck,
        layer_bottleneck,
        channel_bottleneck,
        spatial_channel_bottleneck,
    )
    for spec in module.SPECS
}
"""Every operator of domain ``dyndeploy`` by ONNX ``op_type``."""


def operator(name: str) -> OperatorSpec:
    """Look an operator up by its ONNX ``op_type``; raises ``UsageError`` with the nearest name."""
    try:
        return OPERATORS[name]
    except KeyError:
        raise unknown_name("dynamic operator", name, OPERATORS) from None


__all__ = ["DOMAIN", "OPERATORS", "Cost", "OperatorSpec", "Port", "Role", "operator"]
