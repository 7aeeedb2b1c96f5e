"""LayerSEBottleneck: a bottleneck with squeeze-and-excitation that each sample computes entirely or skips entirely.

Source: LAUD-RegNetY (Han et al., TPAMI 2024) with a spatial mask of one patch, (N, 1, 1, 1); a sample is computed where
it is above 0.5 (NaN is not). Whatever is computed at all is computed whole, and so is its mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dyndeploy.ops import _bottleneck as shared
from dyndeploy.ops._excitation import compute
from dyndeploy.ops.gates import BLOCK
from dyndeploy.ops.layer_bottleneck import MASK, layer_body, layer_geometry

if TYPE_CHECKING:
    import torch

NAME = "LayerSEBottleneck"


def reference(
    x: torch.Tensor,
    mask: torch.Tensor,
    w1: torch.Tensor,
    b1: torch.Tensor,
    w2: torch.Tensor,
    b2: torch.Tensor,
    ws: torch.Tensor,
    bs: torch.Tensor,
    we: torch.Tensor,
    be: torch.Tensor,
    w3: torch.Tensor,
    b3: torch.Tensor,
    wd: torch.Tensor | None = None,
    bd: torch.Tensor | None = None,
    *,
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    group: int,
) -> torch.Tensor:
    """Compute the operator densely; see :func:`dyndeploy.ops._excitation.compute`.

    Args:
        x: (N, H, W, C), non-negative where there is no projection.
        mask: (N, 1, 1, 1), active where above 0.5.
        w1: See there, like all that follow.
        b1: Bias.
        w2: 3x3.
        b2: Bias.
        ws: Squeeze.
        bs: Bias.
        we: Excitation.
        be: Bias.
        w3: Last 1x1.
        b3: Bias.
        wd: Projection or None.
        bd: Bias or None.
        strides: Of the 3x3.
        dilations: Of the 3x3.
        pads: Equal to the dilation.
        group: Of the 3x3.

    Returns:
        (N, Ho, Wo, Co).
    """
    return compute(
        x,
        (w1, b1, w2, b2, ws, bs, we, be, w3, b3, wd, bd),
        spatial=mask,
        strides=strides,
        dilations=dilations,
        group=group,
    )


SPECS = shared.bottleneck_specs(
    NAME,
    "Bottleneck with squeeze-and-excitation that each sample computes or skips as a whole",
    masks=(MASK,),
    gates={"mask": BLOCK},
    reference=reference,
    geometry=layer_geometry,
    body=layer_body,
    excites=True,
    skipped_kind="layer_skipped",
)
