"""Tokens of a ViT of timm's that are pruned as EViT does: a fixed number, by the attention of the class token."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import dyndeploy
from dyndeploy.blocks import TopKTokenGate, TransformerBlock, cumulative
from dyndeploy.measure import profile_bundle


class ClassAttentionGate(TopKTokenGate):
    """Keeps the tokens that a block's class token attends to most, by the block's own queries and keys."""

    def __init__(self, block: TransformerBlock, share: float) -> None:
        super().__init__(block.width, share)
        del self.score_head
        # Not registered a second time: the weights stay the block's.
        object.__setattr__(self, "block", block)

    def scores(self, x: Tensor) -> Tensor:
        block, normal = self.block, self.block.norm1(x)
        heads = (block.heads, block.head_size)
        query = block.attn.query(normal[:, :1]).unflatten(2, heads).transpose(1, 2)
        key = block.attn.key(normal).unflatten(2, heads).permute(0, 2, 3, 1)
        attention = (query @ key * block.scale).softmax(3)
        return attention.mean(1)[:, 0, self.kept :]


def main(folder: Path, network: nn.Module | None = None, share: float = 0.7) -> None:
    """Prune in three blocks, export, verify, and measure; a network of one's own has the names of timm's modules."""
    torch.manual_seed(0)
    if network is None:
        import timm

        network = timm.create_model("vit_small_patch16_224")
    network.eval()
    blocks = [TransformerBlock.from_timm(block) for block in network.blocks]
    stages = range(len(blocks) // 4, len(blocks), len(blocks) // 4)
    pruned = list(zip(range(stages[0], len(blocks)), blocks[stages[0] :], strict=True))
    # EViT's share is of the tokens that are left: stage after stage a smaller share of all.
    gates = [
        ClassAttentionGate(block, share ** (1 + stages.index(index))) if index in stages else None
        for index, block in pruned
    ]
    for (_, block), gate in zip(pruned, cumulative(gates), strict=True):
        block.attn.token_select = gate
    network.blocks = nn.Sequential(*blocks)
    size = network.patch_embed.img_size
    bundle = dyndeploy.export_model(network, folder / "bundle", dyndeploy.ExportSettings(static=True, input_size=size))
    assert dyndeploy.verify_bundle(bundle).passed
    kept = [f"{rate:.0%}" for rate in bundle.manifest.reference.rates.values()]
    print(f"tokens kept, block by block: {', '.join(kept)}")
    profile = profile_bundle(bundle, rates=(share,), repeats=8)
    print(f"forced {share:g}: measured {profile.rates[0].realised_speedup:.2f}x")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "evit"))
