"""Parts of a detector's graph, by the names of its nodes.

A network that tells its parts (:attr:`~dyndeploy.nets.NetworkFacts.parts`) has its nodes named after them where they
stand in no block (:func:`~dyndeploy.graphs.passes.names.name_nodes`): what stands in blocks, and the stem, is the
backbone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dyndeploy.graphs.inspect import group_of
from dyndeploy.tasks.parts import BACKBONE, HEADS, NECK, PARTS, POST_PROCESSING

__all__ = ["BACKBONE", "HEADS", "NECK", "PARTS", "POST_PROCESSING", "has_parts", "part_of", "part_of_group", "sums"]


def part_of_group(group: str) -> str:
    """Return the part that a group of nodes (:func:`~dyndeploy.graphs.inspect.group_of`) belongs to.

    ``"other"``, where a runtime made up the nodes, belongs to none and stays so.
    """
    if group == "head":  # Written behind everything else: copies of outputs.
        return POST_PROCESSING
    return group if group in (NECK, HEADS, POST_PROCESSING, "other") else BACKBONE


def part_of(node_name: str) -> str:
    """Return the part of a node of a graph that has parts: one of :data:`PARTS`, or ``"other"``."""
    return part_of_group(group_of(node_name))


def has_parts(groups: Iterable[str]) -> bool:
    """Whether groups of nodes are those of a network that tells its parts.

    No module can have the name of post-processing. Where all of that is left to the host, neck and heads decide
    together: a block could have the name of one of them.
    """
    found = set(groups)
    return POST_PROCESSING in found or {NECK, HEADS} <= found


def sums(values: Mapping[str, float]) -> dict[str, float]:
    """Add up values by group to values by part, in the order of :data:`PARTS`, ``"other"`` last.

    Args:
        values: By group of nodes of a graph that has parts.
    """
    found = dict.fromkeys(PARTS, 0.0)
    for group, value in values.items():
        part = part_of_group(group)
        found[part] = found.get(part, 0.0) + float(value)
    return found
