"""Networks of timm's itself: their blocks become ours, and their weights are loaded."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dyndeploy import create_model, load_checkpoint
from dyndeploy.blocks import TransformerBlock
from dyndeploy.errors import UsageError

pytestmark = pytest.mark.vision("timm")


def vit(name: str, **options: Any) -> nn.Module:
    """A network of timm's with parameters that all matter."""
    torch.manual_seed(0)
    network: nn.Module = importlib.import_module("timm").create_model(name, **options)
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if key.endswith(("bias", "gamma")) or "norm" in key:
                parameter.add_(torch.rand_like(parameter) - 0.5)
    return network.eval()


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    [
        "deit_tiny_patch16_224",
        "vit_tiny_patch16_224",
        "deit3_small_patch16_224",  # Layer scale.
        "vit_small_patch14_reg4_dinov2",  # Layer scale and register tokens.
    ],
)
def test_blocks_of_timm(name: str) -> None:
    size = 28 if "patch14" in name else 32
    network = vit(name, img_size=size, depth=2)
    x = torch.randn(2, 3, size, size)
    expected = network(x)
    blocks: Any = network.blocks
    network.blocks = nn.Sequential(*(TransformerBlock.from_timm(block, token=True) for block in blocks))
    for block in network.blocks:
        nn.init.constant_(block.attn.token_select.mlp_head.bias, 99.0)
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"qk_norm": True}, "norms of queries and keys"), ({"act_layer": "quick_gelu"}, "computes the exact GELU")],
)
def test_what_the_operator_does_not_compute_is_refused(options: dict[str, Any], words: str) -> None:
    network: Any = vit("vit_tiny_patch16_224", img_size=32, depth=1, **options)
    with pytest.raises(UsageError, match=words):
        TransformerBlock.from_timm(network.blocks[0])


@torch.no_grad()
@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "vit_small_patch16_224"])
def test_weights_of_timm(name: str, tmp_path: Path) -> None:
    theirs = vit(name)
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    ours = create_model(
        "ada_deit_tiny" if "tiny" in name else "ada_deit_small", token_with_mlp=True, head=True, layer=True
    )
    load_checkpoint(ours, tmp_path / "timm.pth")
    x = torch.randn(1, 3, 224, 224)
    result: Any = ours.eval()(x)
    expected = theirs(x)
    assert (result.logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert all(bool((mask == 1).all()) for mask in (result.token, result.head, result.layer))
