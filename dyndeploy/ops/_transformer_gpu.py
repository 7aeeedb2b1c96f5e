"""GPU kernels of the transformer operators: what they are given, and what they launch.

The layout is that of ``plugins/kernels/cuda/kernels.h``: inputs of a linear layer are rows, so that neighbouring
threads read neighbouring outputs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from dyndeploy.ops._transformer import ATTENTION_ONLY, WEIGHTS
from dyndeploy.ops._workspace import transformer_workspace
from dyndeploy.ops.base import Array, Attributes, Element, KernelSpec, Launch

_ROWS_OF_INPUTS = {
    "w_qkv": ("D", "3", "A", "d"),
    "w_proj": ("A", "d", "D"),
    "w_fc1": ("D", "F"),
    "w_fc2": ("F", "D"),
}
_INPUT_AXES = {"w_qkv": 1, "w_proj": 2, "w_fc1": 1, "w_fc2": 1}
"""How many of a weight's last axes are inputs."""

CONSTANTS = tuple(
    replace(port, shape=_ROWS_OF_INPUTS[port.name])
    if port.name in _ROWS_OF_INPUTS
    else replace(port, element=Element.FLOAT)
    for port in WEIGHTS
)
"""Weights as the kernels take them; normalisations and biases stay float."""


def pack(weights: Mapping[str, Array], attributes: Attributes) -> dict[str, Array]:
    """Weights of the operator with their input axes in front."""
    packed = dict(weights)
    for name, inputs in _INPUT_AXES.items():
        packed[name] = np.ascontiguousarray(np.moveaxis(weights[name], range(-inputs, 0), range(inputs)))
    return packed


def block_launches(f: Mapping[str, float], element: float) -> Sequence[Launch]:
    """Lists and copies, then norm, qkv, attention, proj, norm, fc1 and fc2."""
    width, batch = f["cin"], f["batch"]
    every = f["heads"] * f["head_size"]
    kept = every * f["head_rate"]
    values = every if f["head_mode"] == ATTENTION_ONLY else kept
    # Given that a sublayer runs: one that half of the images skip costs one image all or nothing. Tiles are those of an
    # image, and chosen for all of its tokens.
    attends, computes = (1.0 - (1.0 - f[name]) ** batch for name in ("attention_rate", "mlp_rate"))
    rows, pairs = (f[name] / max(attends, 1e-9) for name in ("rows1", "pairs"))
    mlp_rows = f["rows2"] / max(computes, 1e-9)
    attending, computing = (
        batch * f[name] / max(share, 1e-9) for name, share in (("attention_rate", attends), ("mlp_rate", computes))
    )
    copied = 2.0 * (batch * f["tokens"] - f["rows1"]) * width * element
    columns = 2.0 * kept + values

    def norm(rows: float, share: float) -> Launch:
        return Launch(moved=2.0 * rows * width * element, share=share)

    def linear(rows: float, depth: float, columns: float, images: float, share: float, added: float = 0.0) -> Launch:
        return Launch(
            rows / max(images, 1e-9), columns, depth, images, moved=rows * (depth + columns + added) * element,
            weights=depth * columns * element, share=share, uneven=True, layer="linear", tried=(f["tokens"],),
        )  # fmt: skip

    return (
        Launch(moved=copied + 4.0 * batch * (f["tokens"] + every) + 1.0),
        norm(rows, attends),
        linear(rows, width, columns, attending, attends),
        # Both products of a head, over all pairs of an image's tokens.
        Launch(
            rows / max(attending, 1e-9), 2.0 * f["head_size"], pairs / max(rows, 1e-9),
            attending * kept / f["head_size"], moved=rows * (columns + values) * element, share=attends, uneven=True,
            layer="attention",
        ),
        linear(rows, values, width, attending, attends, width),
        norm(mlp_rows, computes),
        linear(mlp_rows, f["hidden"], f["units"], computing, computes),
        linear(mlp_rows, f["units"], width, computing, computes, width),
    )  # fmt: skip


def masker_launches(f: Mapping[str, float], element: float) -> Sequence[Launch]:
    """One pass over the rows that decide; the mask is small."""
    rows, width, decisions = f["rows1"], f["cin"], f["cout"]
    return (Launch(moved=rows * (width * element + 4.0 * decisions), weights=4.0 * width * decisions),)


def block_kernels(masks: Collection[str]) -> dict[str, KernelSpec]:
    """Kernels of the variant with these masks."""
    kernel = KernelSpec(
        precisions=("fp32", "fp16"),
        pack=pack,
        constants=CONSTANTS,
        launches=block_launches,
        workspace=transformer_workspace(tokens="token" in masks, heads="head" in masks),
    )
    return {"cuda": kernel, "tensorrt": kernel}


def masker_kernels() -> dict[str, KernelSpec]:
    """Kernels of the maskers, which decide in float; ``fp16`` means that the block's input may be half."""
    kernel = KernelSpec(precisions=("fp32", "fp16"), launches=masker_launches)
    return {"cuda": kernel, "tensorrt": kernel}
