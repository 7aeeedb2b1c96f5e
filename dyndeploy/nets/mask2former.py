"""Mask2Former on LAUD backbones, for instances.

Reference: "Masked-attention Mask Transformer for Universal Image Segmentation" (Cheng et al., CVPR 2022), as
mmdetection 3.3 builds it, on the pixel decoder and the transformer of the package transformers, which compute the same.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from dyndeploy.blocks.deformable import DeformableAttention, Size
from dyndeploy.errors import UsageError
from dyndeploy.nets.detection_losses import Target
from dyndeploy.nets.detector import Detector, register_detectors
from dyndeploy.nets.laud import check_positive_int
from dyndeploy.nets.query_detectors import MaskedAttention, QueryDetectorConfig, of_all_heads

LEVELS = 3
"""Maps that the transformer reads: the last three of the backbone."""

_LOSSES = (("classification", "loss_cross_entropy", 2.0), ("mask", "loss_mask", 5.0), ("dice", "loss_dice", 5.0))
"""Names of losses, what transformers calls them, and their weights."""

POINTS = 4
"""That a head of the pixel decoder's attention reads from each map."""


@dataclass(frozen=True)
class Mask2FormerConfig(QueryDetectorConfig):
    """Every option of a Mask2Former.

    Attributes:
        encoder_feedforward: Hidden width of the pixel decoder's feed-forward networks.
        mask_points: Points at which masks are compared in training.
    """

    decoder_layers: int = 9
    encoder_feedforward: int = 1024
    mask_points: int = 12544
    frozen_stages: int = 0

    def __post_init__(self) -> None:
        """See :class:`~dyndeploy.nets.DetectorConfig`."""
        super().__post_init__()
        for name in ("encoder_feedforward", "mask_points"):
            check_positive_int(name, getattr(self, name))


class MaskQueries(NamedTuple):
    """What a layer says of its queries.

    Attributes:
        class_logits: (N, queries, classes + 1): the last is that of no object.
        mask_logits: (N, queries, h, w): at the stride of the backbone's first map.
    """

    class_logits: Tensor
    mask_logits: Tensor


class MaskQueryOutput(NamedTuple):
    """Result of one pass in evaluation.

    Attributes:
        class_logits: See :class:`MaskQueries`.
        mask_logits: See :class:`MaskQueries`.
        masks: As of :class:`~dyndeploy.nets.DetectorOutput`, like the following ones.
        flops: See there.
        flops_ratio: See there.
        densities: See there.
    """

    class_logits: Tensor
    mask_logits: Tensor
    masks: Any
    flops: Tensor
    flops_ratio: Tensor
    densities: Any

    def outputs(self) -> dict[str, Tensor]:
        """Return what a deployed network gives."""
        return {"class_logits": self.class_logits, "mask_logits": self.mask_logits}


class PixelAttention(DeformableAttention):
    """Deformable attention with the call of transformers' pixel decoder."""

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        encoder_hidden_states: Tensor,
        position_embeddings: Tensor,
        reference_points: Tensor,
        spatial_shapes_list: Sequence[Size],
        **others: Any,
    ) -> tuple[Tensor, None]:
        """Return what the cells read, and no weights of the attention."""
        del attention_mask, others  # All cells count.
        query = hidden_states + position_embeddings
        return super().forward(query, reference_points, encoder_hidden_states, spatial_shapes_list), None


class PixelDecoder(nn.Module):
    """transformers' pixel decoder: maps for the queries to read, and one that masks are compared with.

    Args:
        config: Options of the detector.
        in_channels: Channels of the backbone's maps, the finest first.
    """

    def __init__(self, config: Mask2FormerConfig, in_channels: Sequence[int]) -> None:
        super().__init__()
        package = transformers_mask2former()
        self.decoder = package.Mask2FormerPixelDecoder(_package_config(config), list(in_channels))
        for layer in self.decoder.encoder.layers:
            for parameter in layer.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
            layer.self_attn = PixelAttention(config.pyramid_channels, config.heads, LEVELS, POINTS)
        nn.init.normal_(self.decoder.level_embed)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return three maps (N, width, h, w), the coarsest first, and the one of the masks, which is the finest."""
        found = self.decoder(list(maps))
        return [*found.multi_scale_features, found.mask_features]


class MaskPredictor(nn.Module):
    """The masks of queries, and where the next layer may look, with the call of transformers' decoder.

    As a product of matrices: what runs and prices graphs knows it better than the sum by indices there (Einsum).

    Args:
        mask_embedder: transformers' layers that make (N, queries, width) of what the queries hold.
        heads: Of the attention.
    """

    def __init__(self, mask_embedder: nn.Module, heads: int) -> None:
        super().__init__()
        self.mask_embedder, self.heads = mask_embedder, heads

    def forward(
        self, outputs: Tensor, pixel_embeddings: Tensor, attention_mask_target_size: Size
    ) -> tuple[Tensor, Tensor]:
        """Return logits of masks (N, queries, h, w), and what the next layer leaves out (N * heads, queries, cells).

        Args:
            outputs: The queries, (queries, N, width).
            pixel_embeddings: What they are compared with, (N, width, h, w).
            attention_mask_target_size: Height and width of the map that the next layer reads.
        """
        embeddings: Tensor = self.mask_embedder(outputs.transpose(0, 1))
        masks = (embeddings @ pixel_embeddings.flatten(2)).view(*embeddings.shape[:2], *pixel_embeddings.shape[2:])
        resized = F.interpolate(masks.detach(), attention_mask_target_size, mode="bilinear", align_corners=False)
        closed = resized.sigmoid().flatten(2) < 0.5
        return masks, of_all_heads(closed, self.heads)


class MaskHead(nn.Module):
    """transformers' decoder of the queries, and what their classes are.

    Args:
        config: Options of the detector.
    """

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__()
        package, width = transformers_mask2former(), config.pyramid_channels
        self.transformer = package.Mask2FormerTransformerModule(width, _package_config(config))
        decoder = self.transformer.decoder
        decoder.mask_predictor = MaskPredictor(decoder.mask_predictor.mask_embedder, config.heads)
        self.class_predictor = nn.Linear(width, config.num_classes + 1)
        for layer in self.transformer.decoder.layers:
            layer.cross_attn = MaskedAttention(width, config.heads)
            for parameter in layer.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)

    def forward(self, pyramid: Sequence[Tensor]) -> list[MaskQueries]:
        """Return what every layer says, and before them what the queries say at first.

        Args:
            pyramid: What :class:`PixelDecoder` gives.
        """
        found = self.transformer(list(pyramid[:-1]), pyramid[-1])
        hidden, masks = found.intermediate_hidden_states, found.masks_queries_logits
        return [
            MaskQueries(self.class_predictor(query.transpose(0, 1)), mask)
            for query, mask in zip(hidden, masks, strict=True)
        ]


def transformers_mask2former() -> Any:
    """Return transformers' module with its Mask2Former; raises ``UsageError`` where it is missing or does not fit."""
    try:
        from transformers.models.mask2former import modeling_mask2former
    except (ImportError, RuntimeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UsageError(
            f"Mask2Former needs the package transformers, and it cannot be imported ({reason}). Install it, e.g. with "
            "pip install 'dyndeploy[detection]'."
        ) from error
    return modeling_mask2former


def _package_config(config: Mask2FormerConfig) -> Any:
    """Return the options as transformers has them."""
    from transformers import Mask2FormerConfig as PackageConfig

    width = config.pyramid_channels
    return PackageConfig(
        feature_size=width,
        mask_feature_size=width,
        hidden_dim=width,
        encoder_feedforward_dim=config.encoder_feedforward,
        dim_feedforward=config.feedforward,
        encoder_layers=config.encoder_layers,
        # It counts what the queries say at first as a layer.
        decoder_layers=config.decoder_layers + 1,
        num_attention_heads=config.heads,
        num_queries=config.queries,
        num_labels=config.num_classes,
        train_num_points=config.mask_points,
        dropout=0.0,
    )


class Mask2Former(Detector):
    """A detector whose queries have a class and a mask each.

    Args:
        name: Registered name.
        backbone: Registered name of the backbone.
        config: Options.

    Attributes:
        neck: The pixel decoder.
        head: The decoder of the queries.
    """

    config: Mask2FormerConfig
    trains_norms: ClassVar[bool] = False
    task_options: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"masks": True, "rounding": False, "decoding": "queries"}
    )

    def __init__(self, name: str, backbone: str, config: Mask2FormerConfig) -> None:
        super().__init__(name, backbone, config, first_stage=0, neck=functools.partial(PixelDecoder, config), added=0)
        self.task = replace(self.task, mask_stride=self.strides[0])
        self.head = MaskHead(config)
        self.train()

    def losses(self, pyramid: Sequence[Tensor], image_size: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return the losses of a batch, to be summed: of every layer those of transformers, which are the paper's.

        Points at which masks are compared are drawn from torch's global generator.

        Args:
            pyramid: See :meth:`~dyndeploy.nets.detector.Detector.features`.
            image_size: See :meth:`~dyndeploy.nets.detector.Detector.forward`.
            targets: What is in each image: ``labels`` (n,), and ``masks`` (n, h, w) in pixels of the input, whose
                padding may be left out.
        """
        height, width = (cells * self.task.mask_stride for cells in pyramid[-1].shape[2:])
        masks = [
            F.pad(own, (0, width - own.shape[2], 0, height - own.shape[1]))
            for own in (target["masks"].to(pyramid[-1]) for target in targets)
        ]
        labels = [target["labels"] for target in targets]
        criterion = self._criterion.to(pyramid[-1].device)
        found: dict[str, Tensor] = {}
        for number, (classes, queries) in enumerate(self.head(pyramid)):
            losses = criterion(queries, classes, masks, labels)
            found.update({f"layer{number}.{name}": weight * losses[theirs] for name, theirs, weight in _LOSSES})
        return found

    @functools.cached_property
    def _criterion(self) -> Any:
        return transformers_mask2former().Mask2FormerLoss(_package_config(self.config), {})

    def output(
        self, pyramid: Sequence[Tensor], image_size: Tensor, account: tuple[Any, Tensor, Tensor, Any]
    ) -> MaskQueryOutput:
        """See :meth:`~dyndeploy.nets.detector.Detector.output`; the padding counts as image, as in mmdetection."""
        classes, masks = self.head(pyramid)[-1]
        return MaskQueryOutput(classes, masks, *account)


register_detectors(
    "mask2former",
    "Mask2Former",
    Mask2Former,
    Mask2FormerConfig,
    small={
        "pyramid_channels": 128,
        "queries": 50,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "feedforward": 512,
        "encoder_feedforward": 512,
        "mask_points": 2048,
    },
)
