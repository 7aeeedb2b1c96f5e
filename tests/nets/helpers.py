"""Networks whose masks really vary, and a second opinion on what a LAUD-ResNet computes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dyndeploy.nets import LaudResNet, create_model

MODES = ("spatial", "channel", "layer", "both", "static")


def narrow_resnet50(**options: Any) -> LaudResNet:
    """A ResNet-50 of an eighth of the width: all of its structure, little of its cost."""
    model = create_model("laud_resnet50", **{"width_mult": 0.125, "num_classes": 7, **options})
    assert isinstance(model, LaudResNet)
    return model


@torch.no_grad()
def randomize(model: LaudResNet, x: Tensor, seed: int = 0) -> LaudResNet:
    """Give batch norms random statistics and maskers random weights, balanced on x; return it in eval mode.

    The mean of compute - skip over samples and positions is moved to zero for every mask entry, so that on x
    about half of the decisions fall either way.
    """
    model.eval()
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator, dtype=torch.float64).to(like) * (high - low) + low

    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 1.5),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
            ):
                assert tensor is not None
                tensor.copy_(uniform(tensor, low, high))
    y = model.forward_stem(x)
    for _, block in model.named_blocks():
        if block.masker_spatial is not None:
            _balance(block.masker_spatial.conv, block.masker_spatial.logits(y, block.mask_size(*y.shape[2:])), uniform)
        if block.masker_channel is not None:
            masker = block.masker_channel
            last = masker.linear if hasattr(masker, "linear") else masker.conv
            last = last if isinstance(last, torch.nn.Linear) else last[-1]
            _balance(last, masker.logits(y), uniform, lambda: masker.logits(y))
        y, _ = block(y)
    return model


def _balance(layer: Any, logits: Tensor, uniform: Any, again: Any = None) -> None:
    layer.weight.copy_(uniform(layer.weight, -1.0, 1.0))
    layer.bias.copy_(uniform(layer.bias, -1.0, 1.0))
