"""A pre-norm transformer block whose tokens, heads and sublayers each image computes or leaves out.

Reference: AdaViT (Meng et al., CVPR 2022) and its published code, whose names of modules the block keeps, so that
published weights load: ``norm1``, ``attn.query``, ``attn.token_select``, ``head_select``, ``layer_select``,
``mlp.fc1``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyndeploy.blocks._timm import read_block, require_equal
from dyndeploy.blocks.block import Block, capacity_of
from dyndeploy.blocks.gates import Gate, LoweredCall
from dyndeploy.blocks.token_gates import HeadGate, SublayerGates, TokenGate
from dyndeploy.errors import UsageError, unknown_name
from dyndeploy.ops.base import Shape
from dyndeploy.ops.transformer_block import HEAD_MODES, variant


class Attention(nn.Module):
    """Weights of an attention, and the gate of its tokens.

    Attributes:
        query: D to A d; ``key`` and ``value`` alike, heads one behind the other.
        proj: A d to D.
        token_select: Gate of the tokens, or None.
    """

    def __init__(self, width: int, inner: int, bias: bool, token: Gate | None) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, inner, bias=bias) for _ in range(3))
        self.proj = nn.Linear(inner, width)
        self.token_select = token


class Mlp(nn.Module):
    """Weights of the MLP: ``fc1`` (D to F) and ``fc2`` (F to D), with a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)


class TransformerBlock(Block):
    """``x + attention(norm1(x))``, then ``x + mlp(norm2(x))``, as far as the gates compute it.

    Kept tokens attend to kept tokens only; a dropped token keeps its value. A dropped head leaves out its attention
    and what ``head_mode`` says; biases behind heads stay. All gates read the block's input.

    Args:
        width: D.
        heads: A.
        hidden: F, units of the MLP.
        head_size: d; None for D / A.
        qkv_bias: Whether queries, keys and values have biases.
        epsilon: Of both LayerNorms.
        scale: Of the products of queries and keys; None for ``d^-0.5``.
        token: Gate of the tokens, kind ``token``; True makes a :class:`TokenGate`, a function is given ``norm1`` and
            makes a gate, e.g. ``lambda norm: TokenGate(384, norm, kept=5)``.
        head: Gate of the heads, kind ``head``; True makes a :class:`HeadGate`.
        layer: Gates of both sublayers; True makes :class:`SublayerGates`.
        token_mlp: Whether dropped tokens leave out the MLP, too.
        head_mode: ``"inputs"``: a dropped head's channels of the MLP's input are left out, too; ``"units"``: its share
            of the MLP's hidden units instead; ``"attention"``: its attention alone, and it passes on its own values.
        norm_policy: Whether gates of heads and sublayers that are made here read the class token behind a LayerNorm.
        drop_path: Probability of leaving out a sublayer in training, for blocks without gates of sublayers.
        consistent: See :class:`~dyndeploy.blocks.token_gates.ThresholdGate`; for gates that are made here.
        token_capacity: Export to static shapes with places for so many tokens, or for such a share of them; images that
            keep more are computed on all of them. None lets shapes follow the masks.

    Attributes:
        norm1: LayerNorm before the attention.
        attn: See :class:`Attention`.
        norm2: LayerNorm before the MLP.
        mlp: See :class:`Mlp`.
        head_select: Gate of the heads, or None.
        layer_select: Gates of the sublayers, or None.
        norm_policy: LayerNorm of the gates of heads and sublayers, or None.

    Raises:
        UsageError: Sizes that do not fit, or a gate of another kind.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        head_size: int | None = None,
        qkv_bias: bool = True,
        epsilon: float = 1e-6,
        scale: float | None = None,
        token: Gate | Callable[[nn.LayerNorm], Gate] | bool | None = None,
        head: Gate | bool | None = None,
        layer: SublayerGates | bool | None = None,
        token_mlp: bool = True,
        head_mode: str = "inputs",
        norm_policy: bool = False,
        drop_path: float = 0.0,
        consistent: bool = False,
        token_capacity: int | float | None = None,
    ) -> None:
        super().__init__()
        if head_mode not in HEAD_MODES:
            raise unknown_name("head mode", head_mode, HEAD_MODES)
        if head_size is None:
            if width % heads:
                raise UsageError(f"{heads} heads cannot share {width} channels. Give head_size.")
            head_size = width // heads
        if not 0.0 <= drop_path < 1.0:
            raise UsageError(f"drop_path is a probability below 1, not {drop_path!r}.")
        self.width, self.heads, self.head_size, self.hidden = width, heads, head_size, hidden
        self.scale = head_size**-0.5 if scale is None else scale
        self.token_mlp, self.head_mode, self.drop_path = token_mlp, head_mode, drop_path
        self.token_capacity = token_capacity
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=epsilon) for _ in range(2))
        self.norm_policy = nn.LayerNorm(width, eps=epsilon) if norm_policy and (head or layer) else None
        tokens: Gate | None
        if token is None or isinstance(token, bool):
            tokens = TokenGate(width, self.norm1, consistent=consistent) if token else None
        else:
            tokens = token if isinstance(token, Gate) else token(self.norm1)
        if head is True:
            head = HeadGate(width, heads, self.norm_policy, consistent=consistent)
        if layer is True:
            layer = SublayerGates(width, self.norm_policy, consistent=consistent)
        self.attn = Attention(width, heads * head_size, qkv_bias, tokens)
        self.mlp = Mlp(width, hidden)
        self.head_select = head or None
        self.layer_select = layer or None
        if self.head_select is not None and head_mode == "inputs" and heads * head_size != width:
            raise UsageError(
                f"With head_mode 'inputs' a head owns its channels of x, and {heads} heads of {head_size} are not "
                f"{width}."
            )
        if self.head_select is not None and head_mode == "units" and hidden % heads:
            raise UsageError(
                f"With head_mode 'units' heads share the hidden units, and {heads} do not divide {hidden}."
            )
        for name, kind in (("token", "token"), ("head", "head")):
            gate = self.gates().get(name)
            if gate is not None and gate.kind.name != kind:
                raise UsageError(f"The {name} gate of a transformer block is of kind '{kind}', not '{gate.kind.name}'.")

    @classmethod
    def from_timm(cls, block: nn.Module, **options: Any) -> TransformerBlock:
        """Make a block of the weights of one of timm's layout, whose output it has where every mask is on.

        Layer scale is folded into the layers before it; dropout and stochastic depth are left out (``drop_path``).

        Args:
            block: With ``norm1``, ``attn.qkv``, ``attn.proj``, ``norm2``, ``mlp.fc1``, ``mlp.fc2``, optionally ``ls1``
                and ``ls2``; it is not changed.
            options: Gates and what else the class takes but sizes.

        Raises:
            UsageError: It has other parts (norms of queries and keys, another activation, a position bias), or computes
                something else (post-norm, parallel sublayers, another attention).
        """
        read = read_block(block)
        ours = cls(
            read.width, read.heads, read.hidden, head_size=read.head_size, epsilon=read.epsilon, scale=read.scale,
            **options,
        )  # fmt: skip
        parameter = next(block.parameters())
        ours = ours.to(device=parameter.device, dtype=parameter.dtype)
        ours.load_state_dict(read.state, strict=False)
        require_equal(block, _Dense(ours), read.width)
        return ours.train(block.training)

    def gates(self) -> Mapping[str, Gate]:
        """The gates that there are, of ``token``, ``head``, ``attention`` and ``mlp``."""
        layers = self.layer_select
        found = {
            "token": self.attn.token_select,
            "head": self.head_select,
            "attention": None if layers is None else layers.attention,
            "mlp": None if layers is None else layers.mlp,
        }
        return {name: gate for name, gate in found.items() if gate is not None}

    def compute(  # type: ignore[override]
        self,
        x: Tensor,
        token: Tensor | None = None,
        head: Tensor | None = None,
        attention: Tensor | None = None,
        mlp: Tensor | None = None,
    ) -> Tensor:
        """Return (N, T, D) under masks.

        Masks multiply as in the published code, so that training sends gradients through them; those of the tokens
        receive none through the softmax.

        Args:
            x: (N, T, D).
            token: (N, T).
            head: (N, A).
            attention: (N, 1, 1, 1), of the attention.
            mlp: (N, 1, 1, 1), of the MLP.
        """
        rows = None if token is None else token.to(x.dtype).unsqueeze(2)
        heads = None if head is None else head.to(x.dtype)
        branch = self._attention(self.norm1(x), rows, heads)
        x = x + self._kept(branch, rows, attention)
        branch = self._mlp(self.norm2(x), heads)
        return x + self._kept(branch, rows if self.token_mlp else None, mlp)

    def _attention(self, normal: Tensor, rows: Tensor | None, heads: Tensor | None) -> Tensor:
        """(N, T, D); rows are (N, T, 1), heads (N, A)."""
        whole = None if heads is None else heads[:, :, None, None]
        q, k, v = (
            layer(normal).unflatten(2, (self.heads, self.head_size)).transpose(1, 2)
            for layer in (self.attn.query, self.attn.key, self.attn.value)
        )
        passes = self.head_mode == "attention"
        if whole is not None and not passes:
            q, k, v = q * whole, k * whole, v * whole
        scores = q @ k.transpose(2, 3) * self.scale
        if rows is not None:
            kept = rows.detach().squeeze(2) > 0.5
            together = kept[:, None, :, None] & kept[:, None, None, :]
            alone = torch.eye(scores.shape[2], dtype=torch.bool, device=scores.device)
            scores = torch.where(together, scores, torch.where(alone, 0.0, float("-inf")).to(scores.dtype))
        mixed = scores.softmax(3) @ v
        if whole is not None:
            mixed = mixed * whole + v * (1 - whole) if passes else mixed * whole
        branch: Tensor = self.attn.proj(mixed.transpose(1, 2).flatten(2))
        return branch

    def _mlp(self, normal: Tensor, heads: Tensor | None) -> Tensor:
        if heads is not None and self.head_mode == "inputs":
            normal = normal * heads.repeat_interleave(self.head_size, 1).unsqueeze(1)
        hidden = F.gelu(self.mlp.fc1(normal))
        if heads is not None and self.head_mode == "units":
            hidden = hidden * heads.repeat_interleave(self.hidden // self.heads, 1).unsqueeze(1)
        branch: Tensor = self.mlp.fc2(hidden)
        return branch

    def _kept(self, branch: Tensor, rows: Tensor | None, runs: Tensor | None) -> Tensor:
        if rows is not None:
            branch = branch * rows
        if runs is not None:
            return branch * runs.to(branch.dtype).reshape(-1, 1, 1)
        if self.training and self.drop_path and self.layer_select is None:
            keep = 1.0 - self.drop_path
            branch = branch * (torch.rand(len(branch), 1, 1, device=branch.device) < keep) / keep
        return branch

    def lower(self, *shapes: Shape) -> LoweredCall:
        """Return the transformer operator with inputs for the gates that there are."""
        gates, attention = self.gates(), self.attn
        layers = (attention.query, attention.key, attention.value)
        split = (self.heads, self.head_size)
        biases = [torch.zeros_like(item.weight[:, 0]) if item.bias is None else item.bias for item in layers]
        tensors = {
            "norm1_weight": self.norm1.weight,
            "norm1_bias": self.norm1.bias,
            "w_qkv": torch.stack([item.weight.reshape(*split, self.width) for item in layers]),
            "b_qkv": torch.stack([item.reshape(split) for item in biases]),
            "w_proj": attention.proj.weight.reshape(self.width, *split),
            "b_proj": attention.proj.bias,
            "norm2_weight": self.norm2.weight,
            "norm2_bias": self.norm2.bias,
            "w_fc1": self.mlp.fc1.weight,
            "b_fc1": self.mlp.fc1.bias,
            "w_fc2": self.mlp.fc2.weight,
            "b_fc2": self.mlp.fc2.bias,
        }
        attributes: dict[str, float] = {
            "epsilon": self.norm1.eps,
            "scale": self.scale,
            "token_mlp": int(self.token_mlp),
            "head_mode": HEAD_MODES.index(self.head_mode),
        }
        fixed = self.token_capacity is not None and "token" in gates
        if self.token_capacity is not None and fixed:
            attributes["capacity"] = capacity_of(self.token_capacity, shapes[0][1])
        name = variant(token="token" in gates, head="head" in gates, layer="attention" in gates, fixed=fixed)
        return LoweredCall(name, {key: value.detach() for key, value in tensors.items()}, attributes)


class _Dense(nn.Module):
    """A block that computes everything."""

    def __init__(self, block: TransformerBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block.compute(x)
