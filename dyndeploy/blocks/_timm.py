"""Transformer blocks of timm's layout (``norm1``, ``attn.qkv``, ``attn.proj``, ``norm2``, ``mlp.fc1``, ``mlp.fc2``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dyndeploy.errors import UsageError

_PLACES = {"norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"}
_SCALES = ("ls1", "ls2")
_PROBE_TOKENS = 7
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class TimmBlock:
    """What a block of that layout computes.

    Attributes:
        width: D.
        heads: A.
        head_size: d.
        hidden: F.
        epsilon: Of both LayerNorms.
        scale: Of queries and keys.
        state: Weights by the names of our block, layer scale folded.
    """

    width: int
    heads: int
    head_size: int
    hidden: int
    epsilon: float
    scale: float
    state: dict[str, Tensor]


@torch.no_grad()
def read_block(block: nn.Module) -> TimmBlock:
    """Read a block.

    Raises:
        UsageError: It has other parts, or computes something else; the message says what.
    """
    name = type(block).__name__

    def refuse(reason: str) -> UsageError:
        return UsageError(f"{name} cannot become a TransformerBlock: {reason}.")

    def part(path: str, kind: type[nn.Module]) -> Any:
        try:
            found = block.get_submodule(path)
        except AttributeError:
            raise refuse(f"it has no {path}") from None
        if not isinstance(found, kind):
            raise refuse(f"{path} is a {type(found).__name__}, not a {kind.__name__}")
        return found

    norms = [part(path, nn.LayerNorm) for path in ("norm1", "norm2")]
    qkv, proj, fc1, fc2 = (part(path, nn.Linear) for path in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"))
    attention, mlp = block.get_submodule("attn"), block.get_submodule("mlp")
    for path in ("attn.q_norm", "attn.k_norm"):
        _require_identity(block, path, refuse, "norms of queries and keys need every head's own statistics")
    for path in ("attn.norm", "mlp.norm"):
        _require_identity(block, path, refuse, "a norm inside a sublayer has no place in the operator")
    activation = getattr(mlp, "act", None)
    if not isinstance(activation, nn.GELU) or activation.approximate != "none":
        raise refuse(f"its activation is {activation}, and the operator computes the exact GELU")
    scales = {path: getattr(getattr(block, path, None), "gamma", None) for path in _SCALES}
    known = _PLACES | {path for path, gamma in scales.items() if gamma is not None}
    surplus = [key for key in block.state_dict() if key.rpartition(".")[0] not in known]
    if surplus:
        raise refuse(f"it has {', '.join(surplus[:3])}, which a pre-norm block with plain attention has not")
    if any(norm.weight is None or norm.bias is None for norm in norms) or norms[0].eps != norms[1].eps:
        raise refuse("both of its LayerNorms need weights and biases, and the same epsilon")
    heads, inner = getattr(attention, "num_heads", 0), qkv.out_features // 3
    if not heads or inner % heads or qkv.out_features != 3 * inner:
        raise refuse(f"attn.qkv with {qkv.out_features} outputs does not split into {heads} heads three times")
    width, size = qkv.in_features, inner // heads

    def bias(layer: nn.Linear) -> Tensor:
        return torch.zeros_like(layer.weight[:, 0]) if layer.bias is None else layer.bias

    state = {f"{path}.{key}": getattr(norm, key) for path, norm in zip(("norm1", "norm2"), norms, strict=True)
             for key in ("weight", "bias")}  # fmt: skip
    for index, key in enumerate(("query", "key", "value")):
        rows = slice(index * inner, (index + 1) * inner)
        state |= {f"attn.{key}.weight": qkv.weight[rows], f"attn.{key}.bias": bias(qkv)[rows]}
    state |= {"mlp.fc1.weight": fc1.weight, "mlp.fc1.bias": bias(fc1)}
    for path, layer, gamma in (("attn.proj", proj, scales["ls1"]), ("mlp.fc2", fc2, scales["ls2"])):
        factor = torch.ones_like(bias(layer)) if gamma is None else gamma
        state |= {f"{path}.weight": layer.weight * factor[:, None], f"{path}.bias": bias(layer) * factor}
    return TimmBlock(
        width, heads, size, fc1.out_features, norms[0].eps, float(getattr(attention, "scale", size**-0.5)),
        {key: value.detach().clone() for key, value in state.items()},
    )  # fmt: skip


def _require_identity(block: nn.Module, path: str, refuse: Any, reason: str) -> None:
    try:
        found = block.get_submodule(path)
    except AttributeError:
        return
    if not isinstance(found, nn.Identity):
        raise refuse(f"{path} is a {type(found).__name__}: {reason}")


@torch.no_grad()
def require_equal(block: nn.Module, ours: nn.Module, width: int) -> None:
    """Raise ``UsageError`` unless both compute the same for a few random tokens: structure alone does not show it."""
    parameter = next(block.parameters())
    x = torch.randn(1, _PROBE_TOKENS, width, generator=torch.Generator().manual_seed(0)).to(parameter)
    training = block.training
    try:
        expected = block.eval()(x)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UsageError(
            f"{type(block).__name__} cannot become a TransformerBlock: it does not run on tokens alone ({error})."
        ) from error
    finally:
        block.train(training)
    wrong = not isinstance(expected, Tensor) or expected.shape != x.shape
    apart = float("inf") if wrong else float((ours(x) - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    if not apart <= _TOLERANCE:
        raise UsageError(
            f"{type(block).__name__} cannot become a TransformerBlock: it has the layers of a pre-norm block, and "
            f"computes something else (by {apart:.2g} of the largest value). Post-norm, parallel sublayers and other "
            "kinds of attention are not supported."
        )
