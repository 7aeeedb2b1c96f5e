"""Transformer blocks that compute kept tokens, kept heads and kept sublayers only.

Source: AdaViT (Meng et al., CVPR 2022) in evaluation. Pre-norm: LayerNorm, attention, residual, LayerNorm, MLP with the
exact GELU, residual. Kept rows attend to kept rows only; the rows of ``x`` that a sublayer drops pass through it
unchanged. The biases behind attention and fc1 belong to no head. LayerNorms see every channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dyndeploy.errors import UsageError
from dyndeploy.ops._transformer import (
    ATTENTION,
    ATTENTION_ONLY,
    ATTRIBUTES,
    INPUTS_OF_MLP,
    MLP,
    UNITS_OF_MLP,
    WEIGHTS,
    BlockGeometry,
    block_counts,
    block_geometry,
    block_sizes,
    block_work,
    expected_counts,
)
from dyndeploy.ops._transformer_body import block_body
from dyndeploy.ops._transformer_fixed import fixed_body
from dyndeploy.ops._transformer_gpu import block_kernels
from dyndeploy.ops.base import (
    Attribute,
    Attributes,
    Counts,
    Element,
    KernelSpec,
    Masks,
    OperatorSpec,
    Port,
    Rates,
    Role,
    Shape,
)
from dyndeploy.ops.gates import BLOCK, HEAD, TOKEN

if TYPE_CHECKING:
    import torch

SUFFIX, FIXED = "TransformerBlock", "Fixed"
CAPACITY = Attribute("capacity")
"""Tokens of an image that the static shapes have places for; an image that keeps more is computed on all rows."""
X = Port("x", Role.ACTIVATION, ("N", "T", "D"))
Y = Port("y", Role.ACTIVATION, ("N", "T", "D"))
TOKEN_MASK = Port("token", Role.MASK, ("N", "T"), Element.FLOAT)
HEAD_MASK = Port("head", Role.MASK, ("N", "A"), Element.FLOAT)
SUBLAYER_MASKS = tuple(Port(name, Role.MASK, ("N", "1", "1", "1"), Element.FLOAT) for name in (ATTENTION, MLP))
KINDS = {"token": TOKEN, "head": HEAD, ATTENTION: BLOCK, MLP: BLOCK}
PARTS = {"Token": (TOKEN_MASK,), "Head": (HEAD_MASK,), "Layer": SUBLAYER_MASKS}
"""Masks by the part of a variant's name that stands for them, in the order of both."""
HEAD_MODES = ("inputs", "units", "attention")
"""Names of the values of ``head_mode``, in order."""
KERNELS: Mapping[str, KernelSpec] = {"cpu": KernelSpec(precisions=("fp32", "bf16"))}


def variant(*, token: bool = False, head: bool = False, layer: bool = False, fixed: bool = False) -> str:
    """``op_type`` of the variant with these masks, at least one; ``fixed``: that of a fixed capacity of tokens."""
    parts = [name for name, there in zip(PARTS, (token, head, layer), strict=True) if there]
    return fixed * FIXED + "".join(parts) + SUFFIX


def reference(
    x: torch.Tensor,
    masks: Mapping[str, torch.Tensor],
    weights: Mapping[str, torch.Tensor],
    *,
    epsilon: float,
    scale: float,
    token_mlp: int,
    head_mode: int,
) -> torch.Tensor:
    """Compute the block densely and select.

    Args:
        x: (N, T, D).
        masks: ``token`` (N, T), ``head`` (N, A), ``attention`` and ``mlp`` (N, 1, 1, 1), as far as the variant has
            them; on where above 0.5 (NaN is not).
        weights: By port name: ``norm1_weight``, ``norm1_bias``, ``b_proj``, ``norm2_weight``, ``norm2_bias``,
            ``b_fc2`` (D,), ``w_qkv`` (3, A, d, D), ``b_qkv`` (3, A, d), ``w_proj`` (D, A, d), ``w_fc1`` (F, D),
            ``b_fc1`` (F,), ``w_fc2`` (D, F).
        epsilon: Of both LayerNorms.
        scale: Of the products of queries and keys.
        token_mlp: 1: the token mask limits the MLP, too; 0: the MLP runs on all rows.
        head_mode: What a dropped head leaves out. 0: its attention, and its channels ``k d ... (k + 1) d - 1`` of what
            fc1 reads; 1: its attention, and the hidden units ``k F / A ... (k + 1) F / A - 1`` of fc1; 2: the products
            of its queries and keys, so that it passes on its own values.

    Returns:
        (N, T, D).
    """
    import torch
    import torch.nn.functional as F

    width = x.shape[2]
    on = {name: mask > 0.5 for name, mask in masks.items()}
    every = torch.ones(1, dtype=torch.bool, device=x.device)
    rows = on["token"][:, :, None] if "token" in on else every
    runs = {name: on[name].reshape(-1, 1, 1) if name in on else every for name in (ATTENTION, MLP)}
    heads = on.get("head")

    normal = F.layer_norm(x, (width,), weights["norm1_weight"], weights["norm1_bias"], epsilon)
    q, k, v = torch.einsum("ntc,jadc->jnatd", normal, weights["w_qkv"]) + weights["b_qkv"][:, None, :, None]
    scores = q @ k.transpose(2, 3) * scale
    if "token" in on:
        # Finite, so that an image without any token gives no NaN.
        scores = scores.masked_fill(~on["token"][:, None, None], torch.finfo(x.dtype).min)
    mixed = scores.softmax(3) @ v
    if heads is not None:
        mixed = torch.where(heads[:, :, None, None], mixed, v if head_mode == ATTENTION_ONLY else torch.zeros_like(v))
    branch = torch.einsum("natd,cad->ntc", mixed, weights["w_proj"]) + weights["b_proj"]
    x = torch.where(rows & runs[ATTENTION], x + branch, x)

    normal = F.layer_norm(x, (width,), weights["norm2_weight"], weights["norm2_bias"], epsilon)
    if heads is not None and head_mode == INPUTS_OF_MLP:
        normal = normal * heads.repeat_interleave(width // heads.shape[1], 1)[:, None].to(x.dtype)
    hidden = F.gelu(F.linear(normal, weights["w_fc1"], weights["b_fc1"]))
    if heads is not None and head_mode == UNITS_OF_MLP:
        hidden = hidden * heads.repeat_interleave(hidden.shape[2] // heads.shape[1], 1)[:, None].to(x.dtype)
    branch = F.linear(hidden, weights["w_fc2"], weights["b_fc2"])
    return torch.where((rows if token_mlp else every) & runs[MLP], x + branch, x)


def _spec(parts: Sequence[str], *, fixed: bool = False) -> OperatorSpec:
    name = fixed * FIXED + "".join(parts) + SUFFIX
    ports = tuple(port for part in parts for port in PARTS[part])
    masks = tuple(port.name for port in ports)

    def positional(*inputs: torch.Tensor, capacity: int = 0, **attributes: float) -> torch.Tensor:
        weights = {port.name: tensor for port, tensor in zip(WEIGHTS, inputs[1 + len(masks) :], strict=True)}
        return reference(inputs[0], dict(zip(masks, inputs[1:], strict=False)), weights, **attributes)  # type: ignore[arg-type]

    def geometry(shapes: Sequence[Shape], attributes: Attributes) -> BlockGeometry:
        found = block_geometry(name, masks, shapes, attributes)
        if fixed and not 1 <= attributes[CAPACITY.name] <= found.tokens:
            raise UsageError(
                f"{name}: a capacity of {attributes[CAPACITY.name]} tokens is not within 1 to {found.tokens}."
            )
        return found

    def counts(shapes: Sequence[Shape], attributes: Attributes, bits: Masks) -> Counts:
        return block_counts(geometry(shapes, attributes), {mask: bits[mask] for mask in masks})

    def own(rates: Rates) -> Rates:
        """Without rates of what the variant has no masks for."""
        kinds = {KINDS[mask].name for mask in masks}
        known = kinds | set(masks)
        return {rate: value for rate, value in rates.items() if rate in known}

    def further_rates(shapes: Sequence[Shape], attributes: Attributes, found: Counts) -> Rates:
        if ATTENTION not in masks:
            return {}
        g = geometry(shapes, attributes)
        rows = found["mlp_tokens"]
        return {
            ATTENTION: float((found["attention_pairs"] > 0).mean()),
            MLP: float((rows > 0).mean()) if g.token_mlp else float(rows.mean()) / g.tokens,
        }

    def overflows(shapes: Sequence[Shape], attributes: Attributes, bits: Masks) -> Any:
        return bits["token"].sum(1) > attributes[CAPACITY.name]

    words = {"Token": "tokens", "Head": "attention heads", "Layer": "sublayers"}
    return OperatorSpec(
        name=name,
        version=1,
        kind="transformer_block",
        summary=f"Transformer block on the kept {' and '.join(words[part] for part in parts)} only"
        + (", in static shapes for so many tokens." if fixed else "."),
        inputs=(X, *ports, *WEIGHTS),
        outputs=(Y,),
        attributes=(*ATTRIBUTES, CAPACITY) if fixed else ATTRIBUTES,
        gates={mask: KINDS[mask] for mask in masks},
        reference=positional,
        infer_shape=lambda shapes, attributes: (geometry(shapes, attributes), shapes[0])[1],
        body=fixed_body if fixed else block_body,
        counts=counts,
        expected=lambda shapes, attributes, rates: expected_counts(geometry(shapes, attributes), own(rates)),
        work=lambda shapes, attributes, found, element: block_work(geometry(shapes, attributes), found, element),
        sizes=lambda shapes, attributes, rates: block_sizes(geometry(shapes, attributes), own(rates)),
        further_rates=further_rates,
        kernels={} if fixed else {**KERNELS, **block_kernels(masks)},
        overflows=overflows if fixed else None,
    )


_VARIANTS = (
    ("Token",), ("Head",), ("Layer",), ("Token", "Head"), ("Token", "Layer"), ("Head", "Layer"),
    ("Token", "Head", "Layer"),
)  # fmt: skip
SPECS = (
    *(_spec(parts) for parts in _VARIANTS),
    *(_spec(parts, fixed=True) for parts in _VARIANTS if "Token" in parts),
)
