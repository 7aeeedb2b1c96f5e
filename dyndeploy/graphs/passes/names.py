"""Names: nodes and weights after blocks, inputs and outputs as the bundle lists them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import onnx
from onnx import helper

from dyndeploy.errors import ExportError
from dyndeploy.graphs.inspect import rename_tensors
from dyndeploy.graphs.parts import BACKBONE, POST_PROCESSING
from dyndeploy.ops import DOMAIN

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dyndeploy.graphs.passes.pipeline import Context

OWN_MODULE = "dyndeploy_"
"""What begins the name of a module that the exporter put into the network: no part of any name in the graph."""

_SCOPES = "pkg.torch.onnx.name_scopes"
_REPEATED = re.compile(r"@\d+")
"""What the capture puts behind the name of a module that is called more than once."""


def _scopes_of(node: onnx.NodeProto) -> list[str]:
    """Dotted names of the modules around a node, the outermost first, and the name of its call."""
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            return [_REPEATED.sub("", scope) for scope in re.findall(r"'([^']*)'", entry.value)]
    return []


def _deepest(scopes: Iterable[str], blocks: Mapping[str, str]) -> str | None:
    """The longest key of ``blocks`` that is one of the dotted scopes, or encloses one."""
    best: str | None = None
    for scope in scopes:
        parts = scope.split(".")
        for length in range(len(parts), 0, -1):
            key = ".".join(parts[:length])
            if key in blocks:
                best = key if best is None or len(key) > len(best) else best
                break
    return best


def name_nodes(model: onnx.ModelProto, context: Context) -> None:
    """``names::nodes``: call every node ``<block>/<operator>``, or ``stem/`` before and ``head/`` behind them.

    A node belongs to the deepest block around it. Profilers join times with blocks by these names. Of a network that
    tells its parts, what stands in no block is called after its part instead (:mod:`dyndeploy.graphs.parts`), the
    backbone's ``stem/``, or ``backbone/`` behind the last block.
    """
    used: dict[str, int] = {}
    scopes = [_scopes_of(node) for node in model.graph.node]
    blocks = [_deepest(found, context.scopes) for found in scopes]
    places = _parts_of(model, scopes, context.parts)
    last_block = max((index for index, block in enumerate(blocks) if block is not None), default=-1)
    for index, (node, block, found) in enumerate(zip(model.graph.node, blocks, scopes, strict=True)):
        group, hint = "stem" if index < last_block else "head", node.op_type
        if places and (places[index] != BACKBONE or index > last_block):
            group = places[index]
        if block is not None:
            group = context.scopes[block]
            inner = [scope for scope in found if scope.startswith(f"{block}.")]
            parts = inner[-1][len(block) + 1 :].split(".") if inner else []
            # Positions in containers and what the exporter put there tell a reader nothing.
            named = [part for part in parts if not part.isdigit() and not part.startswith(("_", OWN_MODULE))]
            hint = named[-1] if named and node.domain != DOMAIN else node.op_type
        name = f"{group}/{hint}"
        while name in used:
            used[name] += 1
            name = f"{group}/{hint}_{used[name]}"
        used.setdefault(f"{group}/{hint}", 0)
        used.setdefault(name, 0)
        node.name = name


def _parts_of(model: onnx.ModelProto, scopes: Iterable[list[str]], parts: Mapping[str, str]) -> list[str]:
    """The part of every node; empty for a network that tells none.

    A node that the capture made without a module belongs where what it reads is made.
    """
    if not parts:
        return []
    found: list[str] = []
    made: dict[str, str] = {}
    for node, around in zip(model.graph.node, scopes, strict=True):
        module = _deepest(around, parts)
        if module is not None:
            part = parts[module]
        else:
            inherited = [] if around else [made[name] for name in node.input if name in made]
            part = inherited[0] if inherited else POST_PROCESSING
        made.update(dict.fromkeys(node.output, part))
        found.append(part)
    return found


def name_tensors(model: onnx.ModelProto, context: Context) -> None:
    """``names::tensors``: inputs and outputs are as the bundle lists them, weights follow blocks."""
    graph = model.graph
    if len(graph.input) != len(context.inputs) or len(graph.output) != len(context.outputs):
        raise ExportError(
            f"The captured graph has {len(graph.input)} inputs and {len(graph.output)} outputs; expected "
            f"{len(context.inputs)} and {len(context.outputs)}. This is a fault of the exporter; please report it."
        )
    _copy_repeated_outputs(graph)
    renamed = {value.name: name for value, name in zip(graph.input, context.inputs, strict=True)}
    renamed |= {value.name: name for value, name in zip(graph.output, context.outputs, strict=True)}
    for initializer in graph.initializer:
        block = _deepest([initializer.name], context.scopes)
        if block is not None and block != initializer.name:
            parts = initializer.name[len(block) + 1 :].split(".")
            name = f"{context.scopes[block]}/{'.'.join(part for part in parts if not part.startswith(OWN_MODULE))}"
            renamed[initializer.name] = name if name not in renamed.values() else f"{name}/{initializer.name}"
    # A tensor that happens to have the name of an input or output gets another.
    wanted = set(renamed.values())
    made = {name for node in graph.node for name in node.output} | {item.name for item in graph.initializer}
    renamed |= {name: f"captured/{name}" for name in made & wanted - renamed.keys()}
    rename_tensors(graph, renamed)


def _copy_repeated_outputs(graph: onnx.GraphProto) -> None:
    """Give every output a tensor of its own: a network may return one twice, an input as it came, or a constant."""
    taken = {value.name for value in (*graph.input, *graph.initializer)}
    for index, value in enumerate(graph.output):
        if value.name in taken:
            copied = f"{value.name}/output{index}"
            graph.node.append(helper.make_node("Identity", [value.name], [copied], name=f"head/{copied}"))
            value.name = copied
        taken.add(value.name)
