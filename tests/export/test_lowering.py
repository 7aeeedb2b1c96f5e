from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dyndeploy.errors import UsageError
from dyndeploy.export.lowering import fold_batch_norm, lower
from tests.export.conftest import MODES, lively_network


def mask_tensors(result: object) -> list[torch.Tensor]:
    return [mask for block in result.masks for mask in (block.spatial, block.channel) if mask is not None]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        *[(mode, {}) for mode in MODES],
        ("spatial", {"granularity": (3, 5, 2, 1)}),
        ("channel", {"channel_masker": "conv_linear"}),
        ("channel", {"channel_masker_layers": 1, "channel_granularity": (4, 8, 1, 2)}),
        ("both", {"groups": 2}),
        ("spatial", {"replace_stride_with_dilation": (False, True, True)}),
        (("spatial", "static", "channel", "layer"), {}),
        ("static", {}),
    ],
)
@settings(max_examples=3, deadline=None)
@given(size=st.tuples(st.integers(32, 45), st.integers(32, 45)), seed=st.integers(0, 1000))
def test_lowered_network_computes_the_same(
    mode: str, options: dict[str, object], size: tuple[int, int], seed: int
) -> None:
    network = lively_network(mode, seed, **options).double()
    lowered = lower(network, size)
    images = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        expected = network(images)
        logits, *masks = lowered(images)
    assert len(masks) == len(lowered.mask_outputs)
    for got, want in zip(masks, mask_tensors(expected), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=0, atol=0)
    torch.testing.assert_close(logits, expected.logits, rtol=1e-9, atol=1e-9)


def test_masks_do_vary_in_these_tests() -> None:
    network = lively_network("both")
    with torch.no_grad():
        masks = mask_tensors(network(torch.randn(8, 3, 32, 32)))
    rates = torch.stack([mask.mean() for mask in masks])
    assert ((rates > 0.05) & (rates < 0.95)).sum() >= 5


def test_static_twin_is_the_network_with_every_bit_set() -> None:
    network = lively_network("both").double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        x = network.forward_stem(images)
        for _, block in network.named_blocks():
            x = block.compute(x, None, None)
        (logits,) = lower(network, (32, 32), static=True)(images)
    torch.testing.assert_close(logits, network.forward_head(x), rtol=1e-9, atol=1e-9)


def test_fold_batch_norm_with_a_convolution_bias() -> None:
    torch.manual_seed(1)
    conv, norm = nn.Conv2d(3, 4, 3, bias=True).double(), nn.BatchNorm2d(4).double().eval()
    norm.running_mean = torch.randn(4, dtype=torch.float64)
    norm.running_var = torch.rand(4, dtype=torch.float64) + 0.1
    x = torch.randn(1, 3, 5, 5, dtype=torch.float64)
    weight, bias = fold_batch_norm(conv, norm)
    torch.testing.assert_close(torch.nn.functional.conv2d(x, weight, bias), norm(conv(x)))


def test_spatial_groups_are_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match="spatial_groups=1"):
        lower(lively_network("spatial", spatial_groups=2), (32, 32))


def test_foreign_network_is_refused() -> None:
    with pytest.raises(UsageError, match="Linear cannot be exported"):
        lower(nn.Linear(1, 1), (32, 32))
