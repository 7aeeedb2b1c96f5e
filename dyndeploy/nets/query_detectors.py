"""What detectors share whose queries become detections."""

from __future__ import annotations

from dataclasses import dataclass

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
