"""Vision transformers as the published simulator sees them: a T2T module, equal blocks, a classifier.

The simulator of the paper's third family prices token, head and layer skipping operator by operator, with the
quirks that a comparison with the paper's figures needs: queries, keys and values are priced on all tokens, the
output projection at the reduced width, layers by scaling their time, gathering and scattering not at all, and
head and token counts are truncated where widths are rounded. There is no repaired reading: the kernel predictor
prices transformers from their graphs.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from dyndeploy.errors import UsageError, unknown_name
from dyndeploy.prediction.laudnet.operators import Operator
from dyndeploy.prediction.rates import Rates

#: Modes of a transformer, each with the rates that it obeys.
TRANSFORMER_MODES: Mapping[str, tuple[str, ...]] = {
    "static": (),
    "token": ("token",),
    "head": ("head",),
    "layer": ("attention", "mlp"),
    "all": ("token", "head", "attention", "mlp"),
}

_IMAGE = 224
_TOKEN_WIDTH = 64
_KERNEL_FEATURES = 32


@dataclass(frozen=True)
class TransformerSpec:
    """A T2T vision transformer at 224x224; sizes are per image.

    Attributes:
        name: Name in the results.
        depth: Number of blocks.
        width: Features of a token.
        heads: Attention heads of a block.
        expansion: Hidden features of the MLP, in units of ``width``.
        classes: Outputs of the classifier.
        tokens: Tokens, the class token included.
    """

    name: str
    depth: int
    width: int
    heads: int
    expansion: int = 3
    classes: int = 1000
    tokens: int = (_IMAGE // 16) ** 2 + 1

    #: (height, width) of the image.
    input_size: ClassVar[tuple[int, int]] = (_IMAGE, _IMAGE)


_TRANSFORMERS = {
    "t2t_vit_14": TransformerSpec("ada_t2t_vit_14", 14, 384, 6),
    "t2t_vit_19": TransformerSpec("ada_t2t_vit_19", 19, 448, 7),
}


def transformer_names() -> list[str]:
    """Names that :func:`transformer_spec` documents; static names work as well."""
    return [spec.name for spec in _TRANSFORMERS.values()]


def is_transformer_name(name: str) -> bool:
    """Whether :func:`transformer_spec` knows the name."""
    return name.lower().removeprefix("ada_") in _TRANSFORMERS


@functools.lru_cache(maxsize=8)
def transformer_spec(name: str) -> TransformerSpec:
    """Describe a published transformer, e.g. ``ada_t2t_vit_19`` or ``t2t_vit_19``.

    Raises:
        UsageError: Unknown name.
    """
    if not is_transformer_name(name):
        raise unknown_name("network", name, transformer_names())
    return _TRANSFORMERS[name.lower().removeprefix("ada_")]


def transformer_rates(mode: str, rate: float | Rates | None) -> dict[str, float]:
    """Rates of a mode by name; what is left out is 1.

    Args:
        mode: One of :data:`TRANSFORMER_MODES`.
        rate: One rate for all that the mode skips, or rates by name; None is 1.

    Raises:
        UsageError: Unknown mode, or a rate other than 1 of something that the mode does not skip.
    """
    if mode not in TRANSFORMER_MODES:
        raise unknown_name("mode of a transformer", mode, TRANSFORMER_MODES)
    obeyed = TRANSFORMER_MODES[mode]
    if rate is None:
        return dict.fromkeys(obeyed, 1.0)
    if not isinstance(rate, Rates):
        return dict.fromkeys(obeyed, float(rate))
    for name, value in rate.named:
        if name not in TRANSFORMER_MODES["all"]:
            raise unknown_name("rate of a transformer", name, TRANSFORMER_MODES["all"])
        if name not in obeyed and value != 1.0:
            raise UsageError(
                f"Mode '{mode}' of a transformer skips no '{name}': leave that rate out, or take mode all."
            )
    return {**dict.fromkeys(obeyed, rate.default), **{key: own for key, own in rate.named if key in obeyed}}


def module_operators(spec: TransformerSpec) -> list[Operator]:
    """Operators of the T2T module: three unfoldings, two performers, the projection to the blocks' width."""
    operators = []
    side, width = _IMAGE, 3
    for index, (kernel, stride) in enumerate(((7, 4), (3, 2), (3, 2))):
        side //= stride
        shape = {"c_in": width, "c_out": width * kernel**2, "height": side, "width": side, "stride": stride}
        operators.append(Operator("unfold", f"unfold{index + 1}", shape))
        width *= kernel**2
        if index < 2:
            operators += _performer(f"attention{index + 1}", side * side, width)
            width = _TOKEN_WIDTH
    return [*operators, _linear("project", side * side, width, spec.width)]


def transformer_block_operators(spec: TransformerSpec, mode: str, rates: Mapping[str, float]) -> list[Operator]:
    """Operators of one block in execution order, its policies included.

    Raises:
        UsageError: The rates leave no token or no head: the simulator has no price for that.
    """
    obeyed, width = TRANSFORMER_MODES[mode], spec.width
    token, head = rates.get("token", 1.0), rates.get("head", 1.0)
    attention, mlp = rates.get("attention", 1.0), rates.get("mlp", 1.0)
    tokens, heads, kept_width = int(spec.tokens * token), int(spec.heads * head), round(width * head)
    if tokens < 1 or heads < 1:
        raise UsageError(
            f"The published simulator has no price for a block without any {'head' if tokens else 'token'}: "
            f"{spec.tokens} tokens at rate {token:g}, {spec.heads} heads at rate {head:g}."
        )
    side = width // spec.heads
    operators = []
    if "attention" in obeyed:
        operators.append(_linear("layer_policy", 1, width, 2))
    if "head" in obeyed:
        operators.append(_linear("head_policy", 1, width, spec.heads))
    operators += [
        _rows("layernorm", "norm1", spec.tokens, width, attention),
        *(_linear(name, spec.tokens, width, kept_width, attention) for name in ("query", "key", "value")),
    ]
    if "token" in obeyed:
        operators.append(_linear("token_policy", spec.tokens, kept_width, 1, attention))
    maps = {"rows": heads, "tokens": tokens, "channels": tokens}
    hidden = spec.expansion * width
    return [
        *operators,
        _linear("scores", heads * tokens, side, tokens, attention),
        Operator("softmax", "softmax", maps, active=attention),
        _linear("mix", heads * tokens, tokens, side, attention),
        _linear("proj", tokens, kept_width, kept_width, attention),
        _rows("elementwise", "add1", tokens, int(width * head), attention),
        _rows("layernorm", "norm2", spec.tokens, width, mlp),
        _linear("fc1", tokens, kept_width, hidden, mlp),
        _rows("elementwise", "gelu", tokens, hidden, mlp),
        _linear("fc2", tokens, hidden, width, mlp),
        _rows("elementwise", "add2", tokens, width, mlp),
    ]


def head_operators(spec: TransformerSpec) -> list[Operator]:
    """Operators behind the last block."""
    return [
        _rows("layernorm", "norm", spec.tokens, spec.width),
        _linear("classifier", 1, spec.width, spec.classes),
    ]


def _linear(name: str, rows: int, c_in: int, c_out: int, active: float = 1.0) -> Operator:
    return Operator("matmul", name, {"rows": rows, "c_in": c_in, "c_out": c_out}, active=active)


def _rows(kind: str, name: str, tokens: int, channels: int, active: float = 1.0) -> Operator:
    return Operator(kind, name, {"rows": 1, "tokens": tokens, "channels": channels}, active=active)


def _performer(name: str, tokens: int, width: int) -> list[Operator]:
    out, features = _TOKEN_WIDTH, _KERNEL_FEATURES
    feature_maps = [
        operator
        for part in ("key", "query")
        for operator in (
            _linear(f"{name}.{part}.features", tokens, out, features),
            _rows("elementwise", f"{name}.{part}.norm", tokens, features),
            _rows("elementwise", f"{name}.{part}.exp", tokens, features),
        )
    ]
    return [
        _rows("layernorm", f"{name}.norm1", tokens, width),
        _linear(f"{name}.kqv", tokens, width, 3 * out),
        *feature_maps,
        _linear(f"{name}.denominator", tokens, features, 1),
        _linear(f"{name}.key_values", out, tokens, features),
        _linear(f"{name}.mix", tokens, features, out),
        _linear(f"{name}.proj", tokens, out, out),
        _rows("elementwise", f"{name}.add1", tokens, out),
        _rows("layernorm", f"{name}.norm2", tokens, out),
        _linear(f"{name}.fc1", tokens, out, out),
        _rows("elementwise", f"{name}.gelu", tokens, out),
        _linear(f"{name}.fc2", tokens, out, out),
        _rows("elementwise", f"{name}.add2", tokens, out),
    ]
