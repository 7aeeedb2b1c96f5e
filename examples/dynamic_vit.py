"""Tokens of a ViT of timm's that are pruned as DynamicViT does: learnt scores, once dropped stays dropped."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import dyndeploy
from dyndeploy.blocks import Gate, TransformerBlock, cumulative
from dyndeploy.measure import profile_bundle
from dyndeploy.ops import GATE_KINDS


class DynamicVitGate(Gate):
    """Half of a token's features and the mean of the others decide; the larger of two logits wins."""

    kind = GATE_KINDS["token"]

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        # Untrained here: weights that make tokens differ.
        self.decision = nn.Sequential(nn.Linear(width, width // 4), nn.GELU(), nn.Linear(width // 4, 2))
        nn.init.normal_(self.decision[2].weight)

    def logits(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        local, others = self.features(x[:, 1:]).chunk(2, 2)
        both = torch.cat([local, others.mean(1, keepdim=True).expand_as(local)], 2)
        logits = self.decision(both).transpose(1, 2)
        class_token = logits.new_tensor([1.0, 0.0]).reshape(1, 2, 1).expand(len(x), 2, 1)
        return torch.cat([class_token, logits], 2)


def main(folder: Path, network: nn.Module | None = None) -> None:
    """Put gates into every fourth block, export, verify, and measure; a network of one's own has timm's names."""
    torch.manual_seed(0)
    if network is None:
        import timm

        network = timm.create_model("vit_small_patch16_224")
    network.eval()
    blocks = list(network.blocks)
    width = blocks[0].norm1.normalized_shape[0]
    stages = range(len(blocks) // 4, len(blocks), len(blocks) // 4)
    # Between two stages nothing more is dropped: those blocks have the mask of the last stage.
    gates = cumulative(DynamicVitGate(width) if index in stages else None for index in range(len(blocks)))
    network.blocks = nn.Sequential(
        *(
            block if index < stages[0] else TransformerBlock.from_timm(block, token=gates[index])
            for index, block in enumerate(blocks)
        )
    )
    size = network.patch_embed.img_size
    bundle = dyndeploy.export_model(network, folder / "bundle", dyndeploy.ExportSettings(static=True, input_size=size))
    assert dyndeploy.verify_bundle(bundle).passed
    kept = [f"{rate:.0%}" for rate in bundle.manifest.reference.rates.values()]
    print(f"tokens kept, block by block: {', '.join(kept)}")
    for rate in profile_bundle(bundle, rates=(0.5, 1.0), repeats=8).rates:
        print(f"forced rate {rate.rate:g}: measured {rate.realised_speedup:.2f}x, ideal {rate.ideal_speedup:.2f}x")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "dynamic_vit"))
