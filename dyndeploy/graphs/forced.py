"""Forced masks: a graph whose operators see given masks while its maskers still run and are still paid for.

A forced mask answers "how fast would the network be at this rate", which its own images may never cause. It says
nothing about accuracy, and is labelled "forced" wherever it appears.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from dyndeploy.bundle import MaskInfo
from dyndeploy.errors import BundleError, UsageError
from dyndeploy.graphs.branches import mask_positions, scopes

Masks = Mapping[str, npt.NDArray[np.float32]]

FLAG = "forced"
"""Graph input of the overlay (bool scalar): whether the operators see the forced masks."""

PREFIX = "forced/"
"""The overlay's input for a mask is this followed by the mask's name."""


def overlay_forced_masks(model: onnx.ModelProto, masks: Sequence[MaskInfo]) -> onnx.ModelProto:
    """Return a copy of a bundle's graph in which the masks can be forced from outside.

    Every mask that an operator or the decision of a skipped block consumes is replaced by ``Where(forced, forced mask,
    mask)``. The graph outputs keep the maskers' own masks; those inside a block that is then skipped are 0.

    Args:
        model: The graph of ``model.onnx``.
        masks: Its masks.

    Returns:
        A graph with the further inputs :data:`FLAG` and ``forced/<mask>`` for every mask.

    Raises:
        BundleError: A mask does not exist in the graph, or nothing consumes it.
    """
    overlay, consumed = _redirected(model, masks, switched=True)
    produced = {name for node in model.graph.node for name in node.output}
    wrong = [mask.name for mask in masks if mask.name not in produced & consumed]
    if wrong:
        raise BundleError(f"The graph does not compute and use the masks {', '.join(wrong)}. Export the bundle again.")
    overlay.graph.input.append(helper.make_tensor_value_info(FLAG, TensorProto.BOOL, []))
    _add_inputs(overlay, masks)
    return overlay


def replace_masks(model: onnx.ModelProto, masks: Sequence[MaskInfo]) -> onnx.ModelProto:
    """Return a copy of a bundle's graph whose operators and decisions take every mask from outside, always.

    The maskers still run, because their masks stay graph outputs. Unlike :func:`overlay_forced_masks` it adds no
    boolean input, and no node but inside branches, so that it is a graph for TensorRT of any version.

    Args:
        model: The graph of ``model.onnx``.
        masks: Its masks.

    Returns:
        A graph with the further input ``forced/<mask>`` for every mask.

    Raises:
        BundleError: Nothing consumes a mask.
    """
    copy, consumed = _redirected(model, masks, switched=False)
    unused = sorted({mask.name for mask in masks} - consumed)
    if unused:
        raise BundleError(f"The graph does not use the masks {', '.join(unused)}. Export the bundle again.")
    _add_inputs(copy, masks)
    return copy


def _add_inputs(model: onnx.ModelProto, masks: Sequence[MaskInfo]) -> None:
    model.graph.input.extend(
        helper.make_tensor_value_info(PREFIX + mask.name, TensorProto.FLOAT, mask.shape) for mask in masks
    )


def _redirected(
    model: onnx.ModelProto, masks: Sequence[MaskInfo], *, switched: bool
) -> tuple[onnx.ModelProto, set[str]]:
    """A copy whose consumers of masks read forced ones, or a switch between both; and the masks that are consumed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    infos = {mask.name: mask for mask in masks}
    consumed: set[str] = set()
    for scope in scopes(copy.graph):
        nodes: list[onnx.NodeProto] = []
        given: dict[str, str] = {}
        for node in scope.graph.node:
            for position in mask_positions(node):
                own = node.input[position]
                mask = scope.names.get(own, own)
                if mask not in infos:
                    continue
                if own not in given:
                    added, given[own] = _forced(infos[mask], own, scope.samples, switched)
                    nodes += added
                node.input[position] = given[own]
                consumed.add(mask)
            nodes.append(node)
        del scope.graph.node[:]
        scope.graph.node.extend(nodes)
    return copy, consumed


def _forced(info: MaskInfo, own: str, samples: Sequence[str], switched: bool) -> tuple[list[onnx.NodeProto], str]:
    """Nodes that give the forced mask of the images that a branch computes, and its name."""
    forced, name = PREFIX + info.name, f"{info.block}/force_{_gate(info)}"
    nodes = []
    for index, tensor in enumerate(samples):
        part = f"{forced}/samples{index}"
        nodes.append(helper.make_node("Gather", [forced, tensor], [part], name=f"{name}/samples{index}", axis=0))
        forced = part
    if switched:
        used = f"{PREFIX}{info.name}/used"
        nodes.append(helper.make_node("Where", [FLAG, forced, own], [used], name=name))
        forced = used
    return nodes, forced


def _gate(info: MaskInfo) -> str:
    """Name of a mask's gate in its block: a block may have several of one kind."""
    return info.name.rpartition("/")[2]


def forced_masks(masks: Sequence[MaskInfo], rate: float, seed: int) -> dict[str, npt.NDArray[np.float32]]:
    """Draw masks of a given rate.

    Spatial and channel masks get exactly ``round(rate * positions)`` active bits per sample at random positions.
    Of the blocks with a layer mask exactly ``round(rate * blocks)`` run per sample, spread evenly over the depth
    from a random start; blocks with several layer masks, of parts of them, have each of these spread by itself. Every
    sample has its own masks.

    Args:
        masks: The masks of the graph.
        rate: In [0, 1].
        seed: Of the random numbers; the same seed gives the same masks.

    Returns:
        Arrays of 0 and 1 by mask name.

    Raises:
        UsageError: A rate outside [0, 1].
    """
    if not 0.0 <= rate <= 1.0:
        raise UsageError(f"A rate must lie in [0, 1], not {rate}.")
    generator = np.random.default_rng(seed)
    result: dict[str, npt.NDArray[np.float32]] = {}
    layers: dict[str, list[MaskInfo]] = {}
    for mask in masks:
        if mask.kind == "layer":
            layers.setdefault(_gate(mask), []).append(mask)
            continue
        bits = np.zeros((mask.shape[0], int(np.prod(mask.shape[1:]))), np.float32)
        active = round(rate * bits.shape[1])
        for row in bits:
            row[generator.permutation(bits.shape[1])[:active]] = 1
        result[mask.name] = bits.reshape(mask.shape)
    for series in layers.values():
        running = round(rate * len(series))
        batch = series[0].shape[0]
        runs = np.zeros((batch, len(series)), np.float32)
        if running:
            for row in runs:
                start = generator.random()
                row[((np.arange(running) + start) * len(series) / running).astype(np.int64)] = 1
        for index, mask in enumerate(series):
            result[mask.name] = runs[:, index].reshape(mask.shape).copy()
    return {mask.name: result[mask.name] for mask in masks}


def forced_feeds(masks: Masks | None, shapes: Sequence[MaskInfo]) -> dict[str, npt.NDArray[np.generic]]:
    """Feeds of the overlay's further inputs.

    Args:
        masks: The masks to force, or None to let every masker decide.
        shapes: The masks of the graph.
    """
    feeds: dict[str, npt.NDArray[np.generic]] = {FLAG: np.array(masks is not None)}
    for mask in shapes:
        feeds[PREFIX + mask.name] = np.zeros(mask.shape, np.float32) if masks is None else masks[mask.name]
    return feeds
