"""AdaViT: vision transformers that decide per image which tokens, attention heads and sublayers to compute.

Reference: "AdaViT: Adaptive Vision Transformers for Efficient Image Recognition" (Meng et al., CVPR 2022) and its
published code, whose names of weights are kept, so that its checkpoints load. The networks are DeiT (Touvron et al.,
ICML 2021) and T2T-ViT (Yuan et al., ICCV 2021) with a policy for each kind of decision; without any policy they are
those networks themselves.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyndeploy.blocks import SublayerGates, TransformerBlock
from dyndeploy.errors import UsageError
from dyndeploy.nets.ada_vit_checkpoints import AdaVitRules
from dyndeploy.nets.registry import IMAGENET, SMALL_32, Preprocessing, register_model
from dyndeploy.nets.results import AdaVitOutput, NetworkFacts

_ONE: Mapping[str, Mapping[str, Any]] = {
    "token": {"token_with_mlp": True},
    "head": {"head": True},
    "layer": {"layer": True},
}
MODE_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    **_ONE,
    "all": {key: value for options in _ONE.values() for key, value in options.items()},
    "static": {},
}
"""Options by a word for what is skipped."""
MODES = tuple(MODE_OPTIONS)
"""What the networks may skip: each kind of decision has an option of its own."""

_PATCH = 16
_TOKEN_WIDTH = 64
_KERNEL_FEATURES = 32
_PERFORMER_DROPOUT = 0.1
_PERFORMER_EPSILON = 1e-8

AS_PUBLISHED = Preprocessing(IMAGENET.mean, IMAGENET.std, round(224 / 0.9), "bicubic")
"""Of the published evaluation: the centre is nine tenths of the shorter side."""


@dataclass(frozen=True)
class AdaVitConfig:
    """Every option of an adaptive vision transformer; without policies it is the static network.

    Attributes:
        token: Token policies: attention on kept tokens only.
        token_with_mlp: The same tokens limit the MLP as well; implies ``token``.
        head: Head policies. A dropped head's channels are left out of what the MLP reads, too.
        head_v2: A dropped head leaves out its share of the MLP's hidden units instead; implies ``head``.
        head_attn: A dropped head leaves out its attention alone and passes its values on; implies ``head``.
        layer: Policies of both sublayers, attention and MLP.
        keep_layers: First blocks without head and sublayer policies, at least 1.
        token_start_layer: First block with a token policy.
        norm_policy: Head and sublayer policies read the class token behind a LayerNorm of their own.
        token_threshold: Probability above which a token is kept, in (0, 1).
        head_threshold: The same of heads.
        layer_threshold: The same of sublayers.
        consistent: Train on the decisions of evaluation, plus noise around them. The published rule (False) compares a
            sample at temperature 5 with the threshold, so that tokens of threshold 0.6 are dropped more often in
            training than in evaluation: at logit 0 training keeps 11.6 % of them.
        drop_path: Probability of leaving out a sublayer of the last block in training, less before it; of no use where
            blocks have sublayer policies.
        img_size: Side of the image in pixels, a multiple of the patch.
        num_classes: Outputs of the classifier.
        resize_positions: A checkpoint's table of positions for another image size is interpolated (bicubic) when it is
            loaded; False refuses it.
    """

    modes: ClassVar[tuple[str, ...]] = MODES
    mode_options: ClassVar[Mapping[str, Mapping[str, Any]]] = MODE_OPTIONS
    token: bool = False
    token_with_mlp: bool = False
    head: bool = False
    head_v2: bool = False
    head_attn: bool = False
    layer: bool = False
    keep_layers: int = 1
    token_start_layer: int = 0
    norm_policy: bool = False
    token_threshold: float = 0.6
    head_threshold: float = 0.5
    layer_threshold: float = 0.5
    consistent: bool = False
    drop_path: float = 0.0
    img_size: int = 224
    num_classes: int = 1000
    resize_positions: bool = False

    def __post_init__(self) -> None:
        """Check every value that can be checked without the architecture; raises ``UsageError``."""
        switches = ("token", "token_with_mlp", "head", "head_v2", "head_attn", "layer", "norm_policy", "consistent")
        for name in (*switches, "resize_positions"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name} is true or false, not {getattr(self, name)!r}.")
        for name, least in (("keep_layers", 1), ("token_start_layer", 0), ("img_size", 1), ("num_classes", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UsageError(f"{name} must be a whole number of at least {least}, not {value!r}.")
        for name in ("token_threshold", "head_threshold", "layer_threshold"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 < value < 1.0:
                raise UsageError(f"{name} must be a probability between 0 and 1, both excluded, not {value!r}.")
        if isinstance(self.drop_path, bool) or not isinstance(self.drop_path, (int, float)):
            raise UsageError(f"drop_path must be a number, not {self.drop_path!r}.")
        if not 0.0 <= self.drop_path < 1.0:
            raise UsageError(f"drop_path must be a probability below 1, not {self.drop_path!r}.")
        if self.head_v2 and self.head_attn:
            raise UsageError("head_v2 and head_attn say two things of a dropped head: give one of them.")

    @property
    def with_tokens(self) -> bool:
        """Whether there are token policies."""
        return self.token or self.token_with_mlp

    @property
    def with_heads(self) -> bool:
        """Whether there are head policies."""
        return self.head or self.head_v2 or self.head_attn

    @property
    def head_mode(self) -> str:
        """What a dropped head leaves out; see :class:`~dyndeploy.blocks.TransformerBlock`."""
        return "units" if self.head_v2 else "attention" if self.head_attn else "inputs"

    @property
    def mode(self) -> str | None:
        """What the network skips, joined by ``+``; None for a static one."""
        kinds = {"token": self.with_tokens, "head": self.with_heads, "layer": self.layer}
        return "+".join(name for name, there in kinds.items() if there) or None

    def notes(self) -> tuple[str, ...]:
        """Return what has to be said of the options."""
        if self.norm_policy and not (self.with_heads or self.layer):
            return ("norm_policy has no use: there are no head and no sublayer policies",)
        return ()


@dataclass(frozen=True)
class Architecture:
    """Sizes of a vision transformer.

    Attributes:
        width: Features of a token.
        depth: Blocks.
        heads: Heads of each block.
        expansion: Hidden units of the MLP, in units of ``width``.
        patch: Side of a patch in pixels.
        performer: Whether tokens are made by a T2T module; else by one convolution.
        qkv_bias: Whether queries, keys and values have biases.
        epsilon: Of the blocks' LayerNorms.
    """

    width: int
    depth: int
    heads: int
    expansion: int
    patch: int = _PATCH
    performer: bool = False
    qkv_bias: bool = True
    epsilon: float = 1e-6


class PatchEmbed(nn.Module):
    """Non-overlapping patches, each a token: (N, 3, H, W) to (N, H W / patch^2, width), row by row.

    Attributes:
        proj: The convolution.
    """

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens."""
        tokens: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return tokens


class Performer(nn.Module):
    """One block of linear attention (Choromanski et al., ICLR 2021) with one head, and an MLP: (N, T, in) to (N, T, e).

    Computed in float32 at least: exponentials do not survive half precision. The skip is around the values.

    Args:
        in_width: Features of the input.
        width: e.
        features: Random features that stand for the softmax.

    Attributes:
        w: The features (features, e), not trained.
        kqv: Keys, queries and values, in this order.
    """

    def __init__(self, in_width: int, width: int = _TOKEN_WIDTH, features: int = _KERNEL_FEATURES) -> None:
        super().__init__()
        self.norm1, self.kqv = nn.LayerNorm(in_width, eps=1e-5), nn.Linear(in_width, 3 * width)
        self.proj, self.norm2 = nn.Linear(width, width), nn.LayerNorm(width, eps=1e-5)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.dropout = nn.Dropout(_PERFORMER_DROPOUT)
        self.w = nn.Parameter(torch.empty(features, width), requires_grad=False)
        nn.init.orthogonal_(self.w, gain=math.sqrt(features))

    def _features(self, z: Tensor) -> Tensor:
        w = self.w.to(z.dtype)
        return torch.exp(z @ w.T - z.square().sum(2, keepdim=True) / 2) / math.sqrt(len(w))

    def forward(self, x: Tensor) -> Tensor:
        """Return the new tokens."""
        key, query, value = self.kqv(self.norm1(x)).chunk(3, dim=2)
        wide = torch.promote_types(x.dtype, torch.float32)
        with _full_precision(x.device.type):
            value = value.to(wide)
            keys, queries = self._features(key.to(wide)), self._features(query.to(wide))
            total = queries @ keys.sum(1).unsqueeze(2)
            mixed = queries @ (keys.transpose(1, 2) @ value) / (total + _PERFORMER_EPSILON)
        value, mixed = value.to(x.dtype), mixed.to(x.dtype)
        y = value + self.dropout(self.proj(mixed))
        out: Tensor = y + self.dropout(self.mlp(self.norm2(y)))
        return out


def _full_precision(device: str) -> contextlib.AbstractContextManager[Any]:
    """Switch autocast off, which would compute products in half precision; nothing where it is not on."""
    on = device != "meta" and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else contextlib.nullcontext()


class TokensToToken(nn.Module):
    """The T2T module: overlapping windows become tokens in three steps, with a performer after each of the first two.

    Args:
        width: Features of the tokens that come out, (N, H W / 256, width).

    Attributes:
        attention1, attention2: The performers.
        project: Last linear layer.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention1, self.attention2 = Performer(3 * 7 * 7), Performer(_TOKEN_WIDTH * 3 * 3)
        self.project = nn.Linear(_TOKEN_WIDTH * 3 * 3, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens of images (N, 3, H, W)."""
        rows, columns = x.shape[2] // 4, x.shape[3] // 4
        x = self.attention1(F.unfold(x, 7, stride=4, padding=2).transpose(1, 2))
        x = x.transpose(1, 2).reshape(x.shape[0], -1, rows, columns)
        x = self.attention2(F.unfold(x, 3, stride=2, padding=1).transpose(1, 2))
        x = x.transpose(1, 2).reshape(x.shape[0], -1, rows // 2, columns // 2)
        tokens: Tensor = self.project(F.unfold(x, 3, stride=2, padding=1).transpose(1, 2))
        return tokens


def sine_positions(tokens: int, width: int) -> Tensor:
    """Return the fixed table of positions (1, tokens, width): sines at even features, cosines at odd ones."""
    feature = torch.arange(width, dtype=torch.float64)
    wavelength = torch.pow(10000.0, 2 * torch.div(feature, 2, rounding_mode="floor") / width)
    angle = torch.arange(tokens, dtype=torch.float64)[:, None] / wavelength
    return torch.where(feature % 2 == 0, angle.sin(), angle.cos()).float()[None]


class AdaVitBlock(TransformerBlock):
    """A transformer block that also returns its masks."""

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        """Return (N, T, D) and the masks by the gates' names."""
        masks = {name: gate(x) for name, gate in self.gates().items()}
        return self.compute(x, **masks), masks


class AdaVit(nn.Module):
    """An adaptive vision transformer.

    Args:
        name: Registered name.
        sizes: Its architecture.
        config: Options.

    Attributes:
        config: The options.
        sizes: The architecture.
        patch_embed: Makes tokens of a DeiT; of a T2T-ViT it is ``tokens_to_token``.
        cls_token: The class token (1, 1, width).
        pos_embed: Table of positions (1, tokens, width), not trained.
        blocks: The blocks.
        norm: Last LayerNorm.
        head: The classifier.

    Raises:
        UsageError: An image size that is no multiple of the patch, or policies that start behind the last block.
    """

    def __init__(self, name: str, sizes: Architecture, config: AdaVitConfig) -> None:
        super().__init__()
        if config.img_size % sizes.patch:
            raise UsageError(
                f"img_size={config.img_size}: {name} cuts its images into patches of {sizes.patch} pixels: give a "
                "multiple of that."
            )
        for option, value, used in (
            ("keep_layers", config.keep_layers, config.with_heads or config.layer),
            ("token_start_layer", config.token_start_layer, config.with_tokens),
        ):
            if used and value >= sizes.depth:
                raise UsageError(f"{option}={value} leaves none of the {sizes.depth} blocks of {name} a policy.")
        self.name, self.config, self.sizes = name, config, sizes
        self.input_size = (config.img_size, config.img_size)
        if sizes.performer:
            self.tokens_to_token = TokensToToken(sizes.width)
        else:
            self.patch_embed = PatchEmbed(sizes.width, sizes.patch)
        tokens = (config.img_size // sizes.patch) ** 2 + 1
        self.cls_token = nn.Parameter(torch.zeros(1, 1, sizes.width))
        self.pos_embed = nn.Parameter(sine_positions(tokens, sizes.width), requires_grad=False)
        self.blocks = nn.ModuleList(self._block(index) for index in range(sizes.depth))
        self.norm = nn.LayerNorm(sizes.width, eps=sizes.epsilon)
        self.head = nn.Linear(sizes.width, config.num_classes)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _block(self, index: int) -> AdaVitBlock:
        sizes, config = self.sizes, self.config
        late = index >= config.keep_layers
        block = AdaVitBlock(
            sizes.width,
            sizes.heads,
            sizes.expansion * sizes.width,
            qkv_bias=sizes.qkv_bias,
            epsilon=sizes.epsilon,
            token=config.with_tokens and index >= config.token_start_layer,
            head=config.with_heads and late,
            layer=config.layer and late,
            token_mlp=config.token_with_mlp,
            head_mode=config.head_mode,
            norm_policy=config.norm_policy,
            drop_path=config.drop_path * index / max(1, sizes.depth - 1),
            consistent=config.consistent,
        )
        for gate, threshold in (
            (block.attn.token_select, config.token_threshold),
            (block.head_select, config.head_threshold),
            *((gate, config.layer_threshold) for gate in _sublayers(block.layer_select)),
        ):
            if gate is not None:
                gate.threshold = float(threshold)
        return block

    def forward(self, x: Tensor) -> AdaVitOutput:
        """Classify a batch of images.

        Args:
            x: Images (N, 3, img_size, img_size).

        Returns:
            Logits and decisions.

        Raises:
            UsageError: Images of another size: the table of positions is for one.
        """
        if tuple(x.shape[2:]) != self.input_size:
            raise UsageError(
                f"{self.name} takes images of {self.input_size[0]}x{self.input_size[1]} pixels, and got "
                f"{' x '.join(map(str, x.shape[2:]))}: its positions are for one size. Create it with img_size=... for "
                "another."
            )
        x = self.tokens_to_token(x) if self.sizes.performer else self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.pos_embed
        decided = []
        for block in self.blocks:
            x, masks = block(x)
            decided.append(masks)
        # LayerNorm sees one token at a time, and the classifier one only.
        logits: Tensor = self.head(self.norm(x[:, 0]))
        if torch.onnx.is_in_onnx_export():
            return AdaVitOutput(logits)
        return AdaVitOutput(
            logits,
            token=_stack([masks["token"] for masks in decided if "token" in masks]),
            head=_stack([masks["head"] for masks in decided if "head" in masks]),
            layer=_stack(
                [
                    torch.cat([masks["attention"], masks["mlp"]], 1).flatten(1)
                    for masks in decided
                    if "attention" in masks
                ]
            ),
        )

    def facts(self) -> NetworkFacts:
        """Return what a bundle says of the network."""
        return NetworkFacts(mode=self.config.mode, options=asdict(self.config), notes=self.config.notes())

    def checkpoint_rules(self) -> AdaVitRules:
        """Return what its files of weights may lack, and how one is made to fit."""
        return AdaVitRules(self)


def _sublayers(gates: SublayerGates | None) -> tuple[Any, ...]:
    return () if gates is None else (gates.attention, gates.mlp)


def _stack(masks: list[Tensor]) -> Tensor | None:
    return torch.stack(masks, 1) if masks else None


_SIZES: Mapping[str, Architecture] = {
    "ada_t2t_vit_14": Architecture(384, 14, 6, 3, performer=True, qkv_bias=False, epsilon=1e-5),
    "ada_t2t_vit_19": Architecture(448, 19, 7, 3, performer=True, qkv_bias=False, epsilon=1e-5),
    "ada_deit_tiny": Architecture(192, 12, 3, 4),
    "ada_deit_small": Architecture(384, 12, 6, 4),
    "ada_deit_base": Architecture(768, 12, 12, 4),
    "ada_vit_small": Architecture(96, 6, 4, 2, patch=8),
}


def _published(name: str, config: AdaVitConfig) -> AdaVit:
    return AdaVit(name, _SIZES[name], config)


@register_model(family="ada_vit", config_type=AdaVitConfig, input_size=(224, 224), preprocessing=AS_PUBLISHED)
def ada_t2t_vit_14(config: AdaVitConfig) -> AdaVit:
    """T2T-ViT-14 for 224x224 images, with token, head and sublayer policies where they are asked for."""
    return _published("ada_t2t_vit_14", config)


@register_model(family="ada_vit", config_type=AdaVitConfig, input_size=(224, 224), preprocessing=AS_PUBLISHED)
def ada_t2t_vit_19(config: AdaVitConfig) -> AdaVit:
    """T2T-ViT-19 for 224x224 images, with token, head and sublayer policies where they are asked for."""
    return _published("ada_t2t_vit_19", config)


@register_model(family="ada_vit", config_type=AdaVitConfig, input_size=(224, 224), preprocessing=AS_PUBLISHED)
def ada_deit_tiny(config: AdaVitConfig) -> AdaVit:
    """DeiT-tiny for 224x224 images, with token, head and sublayer policies where they are asked for."""
    return _published("ada_deit_tiny", config)


@register_model(family="ada_vit", config_type=AdaVitConfig, input_size=(224, 224), preprocessing=AS_PUBLISHED)
def ada_deit_small(config: AdaVitConfig) -> AdaVit:
    """DeiT-small for 224x224 images, with token, head and sublayer policies where they are asked for."""
    return _published("ada_deit_small", config)


@register_model(family="ada_vit", config_type=AdaVitConfig, input_size=(224, 224), preprocessing=AS_PUBLISHED)
def ada_deit_base(config: AdaVitConfig) -> AdaVit:
    """DeiT-base for 224x224 images, with token, head and sublayer policies where they are asked for."""
    return _published("ada_deit_base", config)


@register_model(
    family="ada_vit",
    config_type=AdaVitConfig,
    input_size=(32, 32),
    preprocessing=SMALL_32,
    defaults={"num_classes": 10, "img_size": 32},
)
def ada_vit_small(config: AdaVitConfig) -> AdaVit:
    """DeiT of six narrow blocks for 32x32 images, with token, head and sublayer policies where they are asked for."""
    return _published("ada_vit_small", config)
