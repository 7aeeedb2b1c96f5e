"""Token merging (ToMe) in a ViT of timm's: blocks see fewer tokens, with standard layers alone, next to gates."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dyndeploy
from dyndeploy.blocks import TokenGate, TransformerBlock


class Merge(nn.Module):
    """Merges the r most similar pairs of tokens, one of each pair at an even place and one at an odd one (ToMe).

    ToMe weighs merged tokens in the attention by their sizes (its option prop_attn); here they count once.
    """

    def __init__(self, count: int, kept: int = 1) -> None:
        super().__init__()
        self.count, self.kept = count, kept

    def forward(self, x: Tensor) -> Tensor:
        leading, x = x[:, : self.kept], x[:, self.kept :]
        even, odd = x[:, ::2], x[:, 1::2]
        similar = F.normalize(even, dim=2) @ F.normalize(odd, dim=2).transpose(1, 2)
        best, partner = similar.max(2)
        order = torch.topk(best, even.shape[1], dim=1).indices
        merged, stay = order[:, : self.count], order[:, self.count :]
        width = x.shape[2]
        # A product with a matrix of zeros and ones adds tokens to their partners, which every runtime can do.
        place = F.one_hot(partner.gather(1, merged), odd.shape[1]).to(x.dtype).transpose(1, 2)
        sources = even.gather(1, merged.unsqueeze(2).expand(-1, -1, width))
        mean = (odd + place @ sources) / (1.0 + place.sum(2, keepdim=True))
        rest = even.gather(1, stay.unsqueeze(2).expand(-1, -1, width))
        return torch.cat([leading, rest, mean], 1)


def main(folder: Path, network: nn.Module | None = None) -> None:
    """Merge in front of every block but the first, with gates on what is left; a network of one's own as timm's."""
    torch.manual_seed(0)
    if network is None:
        import timm

        network = timm.create_model("vit_small_patch16_224")
    network.eval()
    layers: list[nn.Module] = []
    tokens = network.pos_embed.shape[1]
    for index, block in enumerate(network.blocks):
        if index:
            layers.append(Merge(tokens // 16))
        layers.append(TransformerBlock.from_timm(block, token=lambda norm: TokenGate(norm.weight.numel(), norm)))
    network.blocks = nn.Sequential(*layers)
    size = network.patch_embed.img_size
    bundle = dyndeploy.export_model(network, folder / "bundle", dyndeploy.ExportSettings(static=True, input_size=size))
    assert dyndeploy.verify_bundle(bundle).passed
    for mask in bundle.manifest.masks:
        print(f"{mask.name}: {mask.shape[1]} tokens, {bundle.manifest.reference.rates[mask.name]:.0%} kept")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "token_merging"))
