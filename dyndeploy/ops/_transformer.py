"""What the transformer operators share: shapes and their checks, work, sizes for device models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dyndeploy.errors import UsageError
from dyndeploy.ops.base import Attribute, Attributes, Counts, Masks, Port, Rates, Role, Shape, Work
from dyndeploy.ops.gates import BLOCK, HEAD, TOKEN

EPSILON = Attribute("epsilon", type=float)
ATTRIBUTES = (EPSILON, Attribute("scale", type=float), Attribute("token_mlp"), Attribute("head_mode"))

WEIGHTS = (
    Port("norm1_weight", Role.WEIGHT, ("D",)),
    Port("norm1_bias", Role.WEIGHT, ("D",)),
    Port("w_qkv", Role.WEIGHT, ("3", "A", "d", "D")),
    Port("b_qkv", Role.WEIGHT, ("3", "A", "d")),
    Port("w_proj", Role.WEIGHT, ("D", "A", "d")),
    Port("b_proj", Role.WEIGHT, ("D",)),
    Port("norm2_weight", Role.WEIGHT, ("D",)),
    Port("norm2_bias", Role.WEIGHT, ("D",)),
    Port("w_fc1", Role.WEIGHT, ("F", "D")),
    Port("b_fc1", Role.WEIGHT, ("F",)),
    Port("w_fc2", Role.WEIGHT, ("D", "F")),
    Port("b_fc2", Role.WEIGHT, ("D",)),
)

INPUTS_OF_MLP, UNITS_OF_MLP, ATTENTION_ONLY = 0, 1, 2
"""What a dropped head (``head_mode``) leaves out besides its attention: its channels of what fc1 reads; its share of
fc1's hidden units; nothing, and it passes on its own values."""

ATTENTION, MLP = "attention", "mlp"
"""Names of the masks of the two sublayers."""


@dataclass(frozen=True)
class BlockGeometry:
    """Sizes of a transformer block.

    Attributes:
        batch: N.
        tokens: T.
        width: D.
        heads: A.
        head_size: d.
        hidden: F, units between fc1 and fc2.
        token_mlp: Whether the token mask limits the MLP, too.
        head_mode: What a dropped head leaves out, 0 to 2.
    """

    batch: int
    tokens: int
    width: int
    heads: int
    head_size: int
    hidden: int
    token_mlp: bool
    head_mode: int


def block_geometry(name: str, masks: Sequence[str], shapes: Sequence[Shape], attributes: Attributes) -> BlockGeometry:
    """Check the shapes of ``x``, the masks of these names and the weights.

    Raises:
        UsageError: Naming the operator and what does not fit.
    """

    def require(condition: bool, message: str) -> None:
        if not condition:
            raise UsageError(f"{name}: {message}.")

    x = shapes[0]
    require(len(x) == 3 and min(x) > 0, f"x must be (N, T, D), not {x}")
    batch, tokens, width = x
    weights = {port.name: shape for port, shape in zip(WEIGHTS, shapes[1 + len(masks) :], strict=True)}
    qkv = weights["w_qkv"]
    require(len(qkv) == 4 and qkv[0] == 3 and qkv[3] == width, f"w_qkv must be (3, A, d, {width}), not {qkv}")
    _, heads, head_size, _ = qkv
    fc1 = weights["w_fc1"]
    require(len(fc1) == 2 and fc1[1] == width, f"w_fc1 must be (F, {width}), not {fc1}")
    sizes = {"D": width, "A": heads, "d": head_size, "F": fc1[0], "3": 3}
    for port in WEIGHTS:
        expected = tuple(sizes[symbol] for symbol in port.shape)
        require(weights[port.name] == expected, f"{port.name} must be {expected}, not {weights[port.name]}")
    whole = (batch, 1, 1, 1)
    for mask, expected in (
        ("token", (batch, tokens)), ("head", (batch, heads)), (ATTENTION, whole), (MLP, whole),
    ):  # fmt: skip
        if mask in masks:
            found = shapes[1 + list(masks).index(mask)]
            require(found == expected, f"the mask {mask} must be {expected}, not {found}")
    require(attributes["epsilon"] > 0, f"epsilon {attributes['epsilon']} must be above 0")
    require(attributes["token_mlp"] in (0, 1), f"token_mlp is 0 or 1, not {attributes['token_mlp']}")
    mode = int(attributes["head_mode"])
    require(mode in (INPUTS_OF_MLP, UNITS_OF_MLP, ATTENTION_ONLY), f"head_mode is 0, 1 or 2, not {mode}")
    if "head" in masks and mode == INPUTS_OF_MLP:
        require(
            heads * head_size == width,
            f"with head_mode 0 a head owns d channels of x, so that A d must be D, and {heads} x {head_size} is not "
            f"{width}",
        )
    if "head" in masks and mode == UNITS_OF_MLP:
        require(fc1[0] % heads == 0, f"with head_mode 1 the heads must divide F, and {fc1[0]} % {heads} is not 0")
    token_mlp = bool(attributes["token_mlp"]) and "token" in masks
    return BlockGeometry(batch, tokens, width, heads, head_size, fc1[0], token_mlp, mode)


def block_counts(geometry: BlockGeometry, masks: Masks) -> Counts:
    """What masks by input name leave; see :func:`block_work`."""
    g = geometry
    any_mask = next(iter(masks.values()))
    one = _per_image_sum(any_mask) * 0 + 1
    kept = _per_image_sum(masks["token"]) if "token" in masks else one * g.tokens
    heads = _per_image_sum(masks["head"]) if "head" in masks else one * g.heads
    attention, mlp = (_per_image_sum(masks[name]) if name in masks else one for name in (ATTENTION, MLP))
    attention_runs, rows = attention * (kept > 0), mlp * (kept if g.token_mlp else one * g.tokens)
    return {
        "attention_tokens": attention * kept,
        "attention_pairs": attention * kept * kept,
        "mlp_tokens": rows,
        "heads": heads,
        "touched_attention": _largest(attention_runs),
        "touched_mlp": _largest(mlp * (rows > 0)),
        "touched_heads": _largest(heads),
    }


def expected_counts(geometry: BlockGeometry, rates: Rates) -> Counts:
    """Counts per image of random masks of these rates; see :func:`used_rates`."""
    g, used = geometry, used_rates(geometry, rates)
    kept, heads = g.tokens * used[TOKEN.name], g.heads * used[HEAD.name]
    rows = kept if g.token_mlp else float(g.tokens)
    return {
        "attention_tokens": used[ATTENTION] * kept,
        "attention_pairs": used[ATTENTION] * kept * kept,
        "mlp_tokens": used[MLP] * rows,
        "heads": heads,
        "touched_attention": _any(used[ATTENTION] if kept else 0.0, g.batch),
        "touched_mlp": _any(used[MLP] if rows else 0.0, g.batch),
        "touched_heads": heads,
    }


def used_rates(geometry: BlockGeometry, rates: Rates) -> dict[str, float]:
    """Rates of ``token``, ``head``, ``attention`` and ``mlp``.

    The two sublayers share the rate of whole blocks where they have none of their own names.
    """
    whole = rates.get(BLOCK.name, 1.0)
    return {
        TOKEN.name: rates.get(TOKEN.name, 1.0),
        HEAD.name: rates.get(HEAD.name, 1.0),
        ATTENTION: rates.get(ATTENTION, whole),
        MLP: rates.get(MLP, whole),
    }


def _any(rate: float, batch: int) -> float:
    """Probability that one of the images of a batch computes."""
    return 1.0 - (1.0 - rate) ** batch


def block_work(geometry: BlockGeometry, counts: Counts, element: float) -> Work:
    """Work of a transformer block: the one formula, for numbers, arrays and tensors alike.

    Norms, softmax, GELU and additions are not counted; a head that is left out takes its products with it, as
    ``head_mode`` says.

    Args:
        geometry: Sizes.
        counts: Per image ``attention_tokens`` (rows that attention computes), ``attention_pairs`` (pairs of them),
            ``mlp_tokens`` (rows of the MLP) and ``heads``; of the whole batch ``touched_attention`` and
            ``touched_mlp`` (0 to 1: whether the weights are read) and ``touched_heads``.
        element: Bytes of an element.

    Returns:
        Work; x is read and y written whole, because what is skipped is copied.
    """
    g, channels = geometry, counts["heads"] * geometry.head_size
    touched = counts["touched_heads"] * g.head_size
    full = g.heads * g.head_size
    linear, touched_linear = (full, full) if g.head_mode == ATTENTION_ONLY else (channels, touched)
    attention = counts["attention_tokens"] * linear * (4 * g.width) + counts["attention_pairs"] * channels * 2
    attention_weights = counts["touched_attention"] * touched_linear * (4 * g.width)
    if g.head_mode == ATTENTION_ONLY:
        per_row = weights_of_mlp = 2 * g.width * g.hidden
    elif g.head_mode == UNITS_OF_MLP:
        per_unit = 2 * g.width * g.hidden / g.heads
        per_row, weights_of_mlp = counts["heads"] * per_unit, counts["touched_heads"] * per_unit
    else:
        per_row, weights_of_mlp = (
            item * (g.hidden * g.width / g.heads) + g.width * g.hidden
            for item in (counts["heads"], counts["touched_heads"])
        )
    elements = element * g.batch * g.tokens * g.width
    return Work(
        macs=attention + counts["mlp_tokens"] * per_row,
        read=elements,
        written=elements,
        weights=(attention_weights + counts["touched_mlp"] * weights_of_mlp) * element,
    )


def block_sizes(geometry: BlockGeometry, rates: Rates) -> Mapping[str, float]:
    """Sizes of a transformer block for device models.

    ``rows1`` are rows that attention computes, ``rows2`` those of the MLP, of the whole batch; ``pairs`` are pairs of
    tokens that attend to each other; ``channel_rate`` and ``channel_groups`` are those of the heads; ``hidden`` is
    fc1's depth at these rates, ``units`` what stands between fc1 and fc2.
    """
    g, used = geometry, used_rates(geometry, rates)
    kept = g.tokens * used[TOKEN.name]
    heads = used[HEAD.name] if g.head_mode != ATTENTION_ONLY else 1.0
    return {
        "batch": g.batch,
        "tokens": g.tokens,
        "heads": g.heads,
        "head_size": g.head_size,
        "cin": g.width,
        "cmid": g.hidden,
        "cout": g.width,
        "token_mlp": float(g.token_mlp),
        "head_mode": g.head_mode,
        "rate": used[TOKEN.name],
        "head_rate": used[HEAD.name],
        "channel_rate": used[HEAD.name],
        "channel_groups": g.heads,
        "attention_rate": used[ATTENTION],
        "mlp_rate": used[MLP],
        "rows1": g.batch * used[ATTENTION] * kept,
        "rows2": g.batch * used[MLP] * (kept if g.token_mlp else g.tokens),
        "pairs": g.batch * used[ATTENTION] * kept * kept,
        "hidden": g.width * (heads if g.head_mode == INPUTS_OF_MLP else 1.0),
        "units": g.hidden * (heads if g.head_mode == UNITS_OF_MLP else 1.0),
    }


def masker_sizes(batch: int, tokens: int, width: int, decisions: int) -> Mapping[str, float]:
    """Sizes of a masker of tokens: rows that are read, their width, decisions per row."""
    return {"batch": batch, "tokens": tokens, "cin": width, "cout": decisions, "rows1": batch * tokens}


def normalised(x: Any, epsilon: float) -> Any:
    """LayerNorm over the last axis without weights, on torch tensors."""
    import torch.nn.functional as F

    return F.layer_norm(x, (x.shape[-1],), None, None, epsilon)


def _per_image_sum(mask: Any) -> Any:
    rows = mask.reshape(mask.shape[0], -1)
    return rows.sum(1, dtype=np.float64) if isinstance(rows, np.ndarray) else rows.sum(1)


def _largest(values: Any) -> Any:
    return values.max() if len(values) else 0.0
