"""Dynamic operators: one file per operator, each holding all its faces (see :class:`OperatorSpec`).

An operator may also live outside this package: :func:`register_operator` makes it known, and installed packages
announce theirs in the entry-point group ``dyndeploy.operators``.
"""

from __future__ import annotations

from dyndeploy.errors import unknown_name
from dyndeploy.ops.base import (
    DOMAIN,
    Attribute,
    Counts,
    Element,
    KernelSpec,
    OperatorSpec,
    Port,
    Quantization,
    Role,
    Work,
    no_counts,
    per_image,
)
from dyndeploy.ops.gates import GATE_KINDS, GateKind, gate_kind, register_gate_kind
from dyndeploy.ops.registry import ENTRY_POINTS, OPERATORS, register_operator


def operator(name: str) -> OperatorSpec:
    """Look an operator up by its ONNX ``op_type``; raises ``UsageError`` with the nearest name."""
    try:
        return OPERATORS[name]
    except KeyError:
        raise unknown_name("dynamic operator", name, OPERATORS) from None


__all__ = [
    "DOMAIN",
    "ENTRY_POINTS",
    "GATE_KINDS",
    "OPERATORS",
    "Attribute",
    "Counts",
    "Element",
    "GateKind",
    "KernelSpec",
    "OperatorSpec",
    "Port",
    "Quantization",
    "Role",
    "Work",
    "gate_kind",
    "no_counts",
    "operator",
    "per_image",
    "register_gate_kind",
    "register_operator",
]
