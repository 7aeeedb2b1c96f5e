"""A small ViT whose tokens, heads and sublayers are skipped goes the whole way: export to prediction and boards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dyndeploy
from dyndeploy.blocks import TokenGate, TransformerBlock
from dyndeploy.bundle import Bundle, MaskInfo
from dyndeploy.errors import UsageError
from dyndeploy.export.graph import build_graph
from dyndeploy.graphs.forced import forced_masks
from dyndeploy.graphs.inspect import all_nodes
from dyndeploy.graphs.tensorrt import PrecisionPlan, tensorrt_model
from dyndeploy.measure import load_profile, profile_bundle
from dyndeploy.prediction.rates import Rates
from dyndeploy.targets import load_target

TOKENS = 17


class Vit(nn.Module):
    """Three blocks on 16 patches and a class token."""

    input_size = (64, 64)

    def __init__(self, **options: bool) -> None:
        super().__init__()
        width = 32
        self.patch = nn.Conv2d(3, width, 16, 16)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, TOKENS, width))
        self.blocks = nn.ModuleList(TransformerBlock(width, 4, 2 * width, **options) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        for module in self.modules():
            if isinstance(module, TokenGate):
                module.mlp_head.bias.data.fill_(0.4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.position
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x)[:, 0])
        return logits


def everything() -> Vit:
    return Vit(token=True, head=True, layer=True).eval()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    settings = dyndeploy.ExportSettings(static=True)
    return dyndeploy.export_model(everything(), tmp_path_factory.mktemp("vit") / "b", settings)


def test_masks_and_operators_have_their_places(bundle: Bundle) -> None:
    found = [(mask.name, mask.kind, mask.shape) for mask in bundle.manifest.masks[:4]]
    assert found == [
        ("mask/blocks.0/token", "token", (1, TOKENS)),
        ("mask/blocks.0/head", "head", (1, 4)),
        ("mask/blocks.0/attention", "layer", (1, 1, 1, 1)),
        ("mask/blocks.0/mlp", "layer", (1, 1, 1, 1)),
    ]
    kinds = [info.op_type for info in bundle.manifest.operators]
    assert kinds.count("TokenHeadLayerTransformerBlock") == kinds.count("TokenMasker") == 3
    assert kinds.count("ClassTokenLayerMasker") == 6
    rates = bundle.manifest.reference.rates
    assert all(0 < rates[f"mask/blocks.{index}/token"] < 1 for index in range(3))


def test_the_bundle_is_right_and_counts_flips(bundle: Bundle) -> None:
    report = dyndeploy.verify_bundle(bundle)
    assert report.passed, [check for check in report.checks if not check.passed]
    assert report.mask_bits == 4 * 3 * (TOKENS + 4 + 2)


def test_batches_are_right(tmp_path: Path) -> None:
    settings = dyndeploy.ExportSettings(batch=3)
    assert dyndeploy.verify_bundle(dyndeploy.export_model(everything(), tmp_path / "b", settings)).passed


def test_profiles_and_predictions_follow_the_rates(bundle: Bundle) -> None:
    profile = profile_bundle(bundle, rates=(0.0, 0.5, 1.0), repeats=2)
    needed = [rate.needed_macs for rate in profile.rates]
    per_block = 3 * TOKENS * 32 * 32 + 2 * TOKENS**2 * 32 + TOKENS * 32 * 32 + 2 * TOKENS * 32 * 64
    assert needed[2] - needed[0] == 3 * per_block
    assert needed[0] < needed[1] < needed[2]
    assert profile.rates[0].overflows == {}
    prices = [dyndeploy.predict(bundle, "nano", rate=rate) for rate in (0.0, 0.5, 1.0)]
    assert prices[0].latency_ms < prices[1].latency_ms < prices[2].latency_ms
    assert not prices[1].coverage.unknown
    apart = [
        dyndeploy.predict(bundle, "nano", rate=Rates(token=0.5, head=1.0, attention=on, mlp=1.0)).latency_ms
        for on in (0.0, 1.0)
    ]
    assert apart[0] < apart[1]


def test_forced_masks_spread_each_sublayer_over_the_depth() -> None:
    masks = [
        MaskInfo(f"mask/blocks.{index}/{gate}", f"blocks.{index}", "layer", (4, 1, 1, 1))
        for index in range(6)
        for gate in ("attention", "mlp")
    ]
    drawn = forced_masks(masks, 0.5, seed=0)
    for gate in ("attention", "mlp"):
        runs = np.stack([drawn[f"mask/blocks.{index}/{gate}"].reshape(4) for index in range(6)])
        assert runs.sum(0).tolist() == [3, 3, 3, 3]


@pytest.mark.parametrize("device", ["nano", "tx2", "orin_nx"])
def test_copies_for_tensorrt_have_static_shapes_only(device: str) -> None:
    target = load_target(device)
    model, _ = build_graph(everything(), target, 1, static=False)
    for mode in ("fp32", "fp16"):
        copy = tensorrt_model(model, PrecisionPlan(mode, typed=False))
        kinds = {node.op_type for node in all_nodes(copy.graph)}
        assert not copy.functions
        assert "TokenHeadLayerTransformerBlock" in kinds
        assert kinds.isdisjoint({"NonZero", "If", "Loop", "Scan", "Compress", "Unique"})
        assert ("LayerNormalization" in kinds) == (target.opset >= 17)


@pytest.mark.parametrize("capacity", [3, 0.9, 1.0])
def test_a_fixed_capacity_is_exact_and_counts_its_overflows(capacity: int | float, tmp_path: Path) -> None:
    settings = dyndeploy.ExportSettings(static=True, token_capacity=capacity)
    bundle = dyndeploy.export_model(everything(), tmp_path / "b", settings)
    assert "FixedTokenHeadLayerTransformerBlock" in {info.op_type for info in bundle.manifest.operators}
    report = dyndeploy.verify_bundle(bundle)
    assert report.passed, [check for check in report.checks if not check.passed]
    profile = profile_bundle(bundle, rates=(0.5, 1.0), repeats=2)
    half, full = profile.rates
    blocks = [f"blocks.{index}" for index in range(3)]
    # Of 17 tokens half are 8: too many for 3 places, not for 16; all are too many for 16.
    assert half.overflows == dict.fromkeys(blocks, float(capacity == 3))
    assert full.overflows == dict.fromkeys(blocks, float(capacity != 1.0))
    (tmp_path / "profile.json").write_text(json.dumps(profile.to_json()))
    assert load_profile(tmp_path / "profile.json").rates[1].overflows == full.overflows


@pytest.mark.parametrize("capacity", [0, -1, 0.0, 1.5, True])
def test_a_capacity_below_a_token_is_refused(capacity: float) -> None:
    with pytest.raises(UsageError, match="number of tokens from 1"):
        dyndeploy.ExportSettings(token_capacity=capacity)


def test_a_capacity_needs_tokens_to_limit(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no block whose tokens"):
        dyndeploy.export_model(Vit(head=True), tmp_path / "b", dyndeploy.ExportSettings(token_capacity=0.5))
