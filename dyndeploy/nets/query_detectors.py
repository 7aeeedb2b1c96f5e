"""What detectors share whose queries become detections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dyndeploy.errors import UsageError
from dyndeploy.nets.detector import DetectorConfig
from dyndeploy.nets.laud import check_positive_int

GROUPS = 32
"""Of group norms."""


@dataclass(frozen=True)
class QueryDetectorConfig(DetectorConfig):
    """Every option of a detector whose queries become detections.

    Attributes:
        queries: Of the decoder.
        heads: Of every attention.
        encoder_layers: Layers that the cells of the maps go through.
        decoder_layers: Layers that the queries go through.
        feedforward: Hidden width of the decoder's feed-forward networks.
    """

    queries: int = 100
    heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 6
    feedforward: int = 2048

    def __post_init__(self) -> None:
        """Check every value; raises ``UsageError`` naming the option."""
        super().__post_init__()
        for name in ("queries", "heads", "encoder_layers", "decoder_layers", "feedforward"):
            check_positive_int(name, getattr(self, name))
        width, heads = self.pyramid_channels, self.heads
        if width % GROUPS or width % heads:
            raise UsageError(
                f"pyramid_channels={width} is not valid: give a multiple of {GROUPS} (groups of the norms) and of "
                f"heads={heads}."
            )


_CLOSED = -1e4
"""Added to the logits of an attention where it is closed: after the softmax it leaves exactly 0."""


def of_all_heads(closed: Tensor, heads: int) -> Tensor:
    """Return masks (N, Q, K) for :class:`MaskedAttention`: (N * heads, Q, K); of one image one for all heads."""
    return closed if closed.shape[0] == 1 else closed.repeat_interleave(heads, 0)


class MaskedAttention(nn.MultiheadAttention):
    """PyTorch's attention, with finite numbers for what is closed: an exported graph may hold no infinities.

    In every row of a mask something must be open.
    """

    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, *, attn_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; see :class:`torch.nn.MultiheadAttention`. True in ``attn_mask`` closes, see :func:`of_all_heads`."""
        if attn_mask is not None:
            if attn_mask.dim() == 3 and attn_mask.shape[0] == 1:
                attn_mask = attn_mask[0]
            attn_mask = torch.where(attn_mask, _CLOSED, 0.0).to(query.dtype)
        return super().forward(query, key, value, attn_mask=attn_mask, **options)
