"""GELU as runtimes know it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

from dyndeploy.graphs.passes.shared import Links

if TYPE_CHECKING:
    from dyndeploy.graphs.passes.pipeline import Context


def order_gelu(model: onnx.ModelProto, context: Context) -> None:
    """``order::gelu``: write ``x * (0.5 * (1 + erf))`` as ``(x * (1 + erf)) * 0.5``, which runtimes know as a GELU."""
    links = Links(model)
    for outer in model.graph.node:
        if outer.op_type != "Mul":
            continue
        for position in (0, 1):
            half = links.producers.get(outer.input[position])
            if half is None or half.op_type != "Mul" or links.only_reader(half.output[0]) is None:
                continue
            constant = next((name for name in half.input if name in links.constants), None)
            gate = next((name for name in half.input if name not in links.constants), None)
            added = links.producers.get(gate or "")
            if constant is None or gate is None or added is None or added.op_type != "Add":
                continue
            erf = any(node is not None and node.op_type == "Erf" for node in map(links.producers.get, added.input))
            if erf and links.constants[constant].dims[:] in ([], [1]):
                half.input[:] = [outer.input[1 - position], gate]
                outer.input[:] = [half.output[0], constant]
                break
