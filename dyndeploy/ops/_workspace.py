"""Scratch memory of the GPU kernels: what a TensorRT plugin asks for, said where no plugin library is.

The kernels say it themselves (``bottleneck_workspace``, ``transformer_workspace`` and ``channel_masker_workspace`` in
``plugins/kernels/cuda``); tests hold the two against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dyndeploy.ops._transformer import UNITS_OF_MLP
from dyndeploy.ops._winograd import fits, transforms
from dyndeploy.ops.base import Attributes

Workspace = Callable[[Mapping[str, int], Attributes, int], int]

_LIST_ENTRY, _SAMPLE_ROWS, _SAMPLE_TOKENS, _FLOAT, _SHORT = 4, 16, 16, 4, 2
_BORDER_CLASSES = 16
_POOLED_PIXELS, _MOST_PARTS = 64, 32


def _total(*parts: int) -> int:
    """Parts one behind the other, each from a multiple of 256 bytes on."""
    return sum(-(-part // 256) * 256 for part in parts)


def _parts(pixels: int) -> int:
    """Parts of a map of that many pixels that are summed side by side."""
    return min(-(-pixels // _POOLED_PIXELS), _MOST_PARTS)


def bottleneck_workspace(*, pixels: bool, channels: bool, excites: bool = False) -> Workspace:
    """Bytes of the two hidden maps, the lists, the transformed patches and the sums of a bottleneck.

    Patches are transformed on boards alone: a GPU with tensor cores asks for less.

    Args:
        pixels: It skips pixels or whole samples.
        channels: It skips channels.
        excites: A squeeze-and-excitation averages the second hidden map.
    """

    def workspace(sizes: Mapping[str, int], attributes: Attributes, element: int) -> int:
        stride, batch, hidden = int(attributes["strides"][0]), sizes["N"], sizes["M"]
        read = batch * sizes["H"] * sizes["W"]
        written = batch * -(-sizes["H"] // stride) * -(-sizes["W"] // stride)
        parts = [read * hidden * element, written * hidden * element]
        if pixels:
            parts += [(batch + 1) * _SAMPLE_ROWS, read * _LIST_ENTRY, written * _LIST_ENTRY]
        mask = (sizes.get("mh", 1), sizes.get("mw", 1)) if pixels else (1, 1)
        transformed = transforms(hidden, int(attributes["group"]), stride, int(attributes["dilations"][0]))
        if transformed and not channels and not excites and fits(sizes["H"], sizes["W"], *mask):
            parts += 2 * [4 * written * hidden * element]
            if pixels:
                parts += [written // 4 * _LIST_ENTRY, written // 2 * _LIST_ENTRY]
        if channels:
            groups = int(attributes["group"])
            parts += [batch * hidden * _LIST_ENTRY, batch * (groups + 1) * _LIST_ENTRY]
        if excites:
            parts += [batch * _parts(written // batch) * hidden * _FLOAT, batch * sizes["S"] * _FLOAT]
        return _total(*parts)

    return workspace


def quantized_bottleneck_workspace(*, pixels: bool, channels: bool, projection: bool) -> Workspace:
    """Bytes of what :func:`bottleneck_workspace` names, of bytes, and of what integers need besides.

    These are the rounded projection, and the weights and biases of active channels.

    Args:
        pixels: It skips pixels or whole samples.
        channels: It skips channels.
        projection: It has a projection.
    """

    def workspace(sizes: Mapping[str, int], attributes: Attributes, element: int) -> int:
        stride, groups = int(attributes["strides"][0]), int(attributes["group"])
        batch, hidden, outputs = sizes["N"], sizes["M"], sizes["Co"] if projection else sizes["C"]
        read = batch * sizes["H"] * sizes["W"]
        written = batch * -(-sizes["H"] // stride) * -(-sizes["W"] // stride)
        parts = [read * hidden, written * hidden]
        if pixels:
            parts += [(batch + 1) * _SAMPLE_ROWS, read * _LIST_ENTRY, written * _LIST_ENTRY]
        if channels:
            parts += [batch * hidden * _LIST_ENTRY, batch * (groups + 1) * _LIST_ENTRY]
        if projection:
            parts += [written * outputs * _SHORT]
        if channels:
            parts += [batch * hidden * 9 * (hidden // groups), batch * outputs * hidden]
            parts += [batch * _BORDER_CLASSES * hidden * _FLOAT, batch * outputs * _FLOAT]
        return _total(*parts)

    return workspace


def channel_masker_workspace(sizes: Mapping[str, int], attributes: Attributes, element: int) -> int:
    """Bytes of the partial sums, the features and the hidden layer of a channel masker."""
    parts = _parts(sizes["H"] * sizes["W"])
    features = sizes["N"] * sizes["C"] * _FLOAT
    return _total(parts * features, features, sizes["N"] * sizes.get("h", 0) * _FLOAT)


def transformer_workspace(*, tokens: bool, heads: bool) -> Workspace:
    """Bytes of normalised rows, of q, k and v or hidden units, and of the lists of a transformer block.

    Args:
        tokens: It skips tokens.
        heads: It skips heads.
    """

    def workspace(sizes: Mapping[str, int], attributes: Attributes, element: int) -> int:
        batch, rows, channels = sizes["N"], sizes["N"] * sizes["T"], sizes["A"] * sizes["d"]
        parts = [
            rows * max(sizes["D"], channels) * element,
            rows * max(3 * channels, sizes["F"]) * element,
            batch * _SAMPLE_TOKENS,
        ]
        if tokens:
            parts += [rows * _LIST_ENTRY]
        if heads:
            parts += [batch * sizes["A"] * _LIST_ENTRY, batch * channels * _LIST_ENTRY]
            if int(attributes["head_mode"]) == UNITS_OF_MLP:
                parts += [batch * sizes["F"] * _LIST_ENTRY]
        return _total(*parts)

    return workspace
