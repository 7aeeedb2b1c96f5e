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
from dyndeploy.ops import DOMAIN, OPERATORS

Masks = Mapping[str, npt.NDArray[np.float32]]

FLAG = "forced"
"""Graph input of the overlay (bool scalar): whether the operators see the forced masks."""

PREFIX = "forced/"
"""The overlay's input for a mask is this followed by the mask's name."""


def overlay_forced_masks(model: onnx.ModelProto, masks: Sequence[MaskInfo]) -> onnx.ModelProto:
    """Return a copy of a bundle's graph in which the masks can be forced from outside.

    Every mask that an operator consumes is replaced by ``Where(forced, forced mask, mask)``. The graph outputs keep
    the maskers' own masks.

    Args:
        model: The graph of ``model.onnx``.
        masks: Its masks.

    Returns:
        A graph with the further inputs :data:`FLAG` and ``forced/<mask>`` for every mask.

    Raises:
        BundleError: A mask does not exist in the graph, or no operator consumes it.
    """
    overlay = onnx.ModelProto()
    overlay.CopyFrom(model)
    graph = overlay.graph
    produced = {name for node in graph.node for name in node.output}
    replaced = {mask.name: f"{PREFIX}{mask.name}/used" for mask in masks}
    consumed = set()
    for node in graph.node:
        if node.domain != DOMAIN or node.op_type not in OPERATORS:
            continue
        spec = OPERATORS[node.op_type]
        for name in spec.mask_inputs():
            index = spec.input_index(name)
            mask = node.input[index]
            if mask in replaced:
                consumed.add(mask)
                node.input[index] = replaced[mask]
    wrong = [mask.name for mask in masks if mask.name not in produced or mask.name not in consumed]
    if wrong:
        raise BundleError(f"The graph does not compute and use the masks {', '.join(wrong)}. Export the bundle again.")
    graph.input.append(helper.make_tensor_value_info(FLAG, TensorProto.BOOL, []))
    infos = {mask.name: mask for mask in masks}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
        for name in infos.keys() & set(node.output):
            forced, info = PREFIX + name, infos[name]
            graph.input.append(helper.make_tensor_value_info(forced, TensorProto.FLOAT, info.shape))
            nodes.append(
                helper.make_node(
                    "Where", [FLAG, forced, name], [replaced[name]], name=f"{info.block}/force_{info.kind}"
                )
            )
    del graph.node[:]
    graph.node.extend(nodes)
    return overlay


def replace_masks(model: onnx.ModelProto, masks: Sequence[MaskInfo]) -> onnx.ModelProto:
    """Return a copy of a bundle's graph whose operators take every mask from outside, always.

    The maskers still run, because their masks stay graph outputs. Unlike :func:`overlay_forced_masks` it adds no node
    and no boolean input, so that it is a graph for TensorRT of any version.

    Args:
        model: The graph of ``model.onnx``.
        masks: Its masks.

    Returns:
        A graph with the further input ``forced/<mask>`` for every mask.

    Raises:
        BundleError: No operator consumes a mask.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    wanted, consumed = {mask.name for mask in masks}, set()
    for node in copy.graph.node:
        if node.domain == DOMAIN and node.op_type in OPERATORS:
            for index in map(OPERATORS[node.op_type].input_index, OPERATORS[node.op_type].mask_inputs()):
                if node.input[index] in wanted:
                    consumed.add(node.input[index])
                    node.input[index] = PREFIX + node.input[index]
    unused = sorted(wanted - consumed)
    if unused:
        raise BundleError(f"The graph does not use the masks {', '.join(unused)}. Export the bundle again.")
    copy.graph.input.extend(
        helper.make_tensor_value_info(PREFIX + mask.name, TensorProto.FLOAT, mask.shape) for mask in masks
    )
    return copy


def forced_masks(masks: Sequence[MaskInfo], rate: float, seed: int) -> dict[str, npt.NDArray[np.float32]]:
    """Draw masks of a given rate.

    Spatial and channel masks get exactly ``round(rate * positions)`` active bits per sample at random positions.
    Of the blocks with a layer mask exactly ``round(rate * blocks)`` run per sample, spread evenly over the depth
    from a random start. Every sample has its own masks.

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
    layers = [mask for mask in masks if mask.kind == "layer"]
    for mask in masks:
        if mask.kind == "layer":
            continue
        bits = np.zeros((mask.shape[0], int(np.prod(mask.shape[1:]))), np.float32)
        active = round(rate * bits.shape[1])
        for row in bits:
            row[generator.permutation(bits.shape[1])[:active]] = 1
        result[mask.name] = bits.reshape(mask.shape)
    if layers:
        running = round(rate * len(layers))
        batch = layers[0].shape[0]
        runs = np.zeros((batch, len(layers)), np.float32)
        if running:
            for row in runs:
                start = generator.random()
                row[((np.arange(running) + start) * len(layers) / running).astype(np.int64)] = 1
        for index, mask in enumerate(layers):
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
