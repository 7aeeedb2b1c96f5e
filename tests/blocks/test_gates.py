from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dyndeploy.blocks.gates import (
    ConvLinearChannelMasker,
    MlpChannelMasker,
    SpatialMasker,
    decide,
    expand_groups,
)
from dyndeploy.ops.masks import dilate_mask, nearest_index, upsample_mask


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def _interpolate(size: int, length: int) -> torch.Tensor:
    values = torch.arange(size, dtype=torch.float32).view(1, 1, 1, size)
    return F.interpolate(values, size=(1, length), mode="nearest").view(-1).long()


def _differing(lengths: range, granularities: list[int]) -> list[tuple[int, int]]:
    return [
        (length, granularity)
        for length in lengths
        for granularity in granularities
        if not torch.equal(
            torch.from_numpy(nearest_index(length, max(1, length // granularity))),
            _interpolate(max(1, length // granularity), length),
        )
    ]


def test_nearest_equals_interpolate_where_it_is_used() -> None:
    # Every granularity on every map of a 224 or 288 pixel image's size, and powers of two on any map.
    assert _differing(range(1, 74), list(range(1, 65))) == []
    assert _differing(range(74, 600), [1, 2, 4, 8, 16]) == []
    # Evenly divided maps.
    for granularity in range(1, 41):
        assert _differing(range(granularity, 600, granularity), [granularity]) == []


def test_nearest_is_exact_where_interpolate_is_not() -> None:
    # 41 * (2 / 82) rounds below 1 in float32; pixel 41 is the first of the second patch all the same.
    assert _interpolate(2, 82)[41] == 0
    assert nearest_index(82, 2).tolist() == [0] * 41 + [1] * 41


def test_upsampling_is_not_square_only() -> None:
    mask = torch.tensor([[[[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]]])
    pixels = upsample_mask(mask, 5, 4)
    assert pixels[0, 0].tolist() == [[1, 1, 0, 1]] * 3 + [[0, 0, 0, 1]] * 2


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 5),
    rate=st.sampled_from([0.0, 0.2, 0.6, 1.0]),
    seed=st.integers(0, 1000),
)
def test_dilation_marks_what_the_convolution_reads(
    height: int, width: int, stride: int, dilation: int, rate: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (height - 1) // stride + 1, (width - 1) // stride + 1
    mask = (torch.rand(2, 1, rows, columns, generator=generator) < rate).double()
    # The gradient of a convolution with all-ones weights is positive exactly at what it read.
    image = torch.zeros(2, 1, height, width, dtype=torch.float64, requires_grad=True)
    ones = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    output = F.conv2d(image, ones, stride=stride, padding=dilation, dilation=dilation)
    (read,) = torch.autograd.grad((output * mask).sum(), image)
    assert torch.equal(dilate_mask(mask, height, width, stride, dilation), (read > 0).double())


@pytest.mark.parametrize("stride", [1, 2])
def test_dilation_passes_the_whole_gradient(stride: int) -> None:
    mask = torch.ones(1, 1, 6, 6, dtype=torch.float64, requires_grad=True)
    dilate_mask(mask, 6 * stride, 6 * stride, stride).sum().backward()
    # Every input pixel hangs on some output pixel, and each passes a gradient of 1.
    assert mask.grad is not None
    assert mask.grad.sum().item() == pytest.approx(36 * stride**2)


def test_groups_cover_consecutive_channels() -> None:
    mask = torch.tensor([[1.0, 2.0, 3.0]])
    assert expand_groups(mask, 6).tolist() == [[1, 1, 2, 2, 3, 3]]
    assert expand_groups(mask, 3) is mask
    one = torch.ones(2, 1, 4, 4)
    assert expand_groups(one, 8) is one
    spatial = torch.rand(2, 2, 3, 3)
    assert torch.equal(expand_groups(spatial, 8), spatial.repeat_interleave(4, 1))


def test_ties_are_kept_in_evaluation() -> None:
    logits = torch.tensor([[[1.0, 0.0, -1.0], [1.0, 1.0, -2.0]]])
    assert decide(logits, training=False, temperature=None).tolist() == [[1, 0, 1]]


@pytest.mark.parametrize("temperature", [None, 0.1, 5.0])
def test_samples_are_hard_with_the_gradient_of_the_soft_sample(temperature: float | None) -> None:
    logits = torch.randn(16, 2, 9, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(7)
    mask = decide(logits, training=True, temperature=temperature)
    torch.manual_seed(7)
    soft = F.gumbel_softmax(logits, tau=temperature or 1.0, dim=1)[:, 0]
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(mask, (soft >= 0.5).double())
    weights = torch.randn(16, 9, dtype=torch.float64)
    (ours,) = torch.autograd.grad((mask * weights).sum(), logits)
    (expected,) = torch.autograd.grad((soft * weights).sum(), logits)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_patches_start_active_with_the_promised_probability(dtype: torch.dtype) -> None:
    logits = torch.zeros(200_000, 2, dtype=dtype)
    logits[:, 0] = 5
    for temperature in (0.1, 5.0):
        mask = decide(logits, training=True, temperature=temperature)
        assert mask.dtype == dtype
        assert mask.float().mean().item() == pytest.approx(0.99331, abs=0.001)


def test_temperature_may_be_a_tensor() -> None:
    logits = torch.randn(4, 2, 3)
    torch.manual_seed(1)
    expected = decide(logits, True, 0.7)
    torch.manual_seed(1)
    assert torch.equal(decide(logits, True, torch.tensor(0.7)), expected)


def test_spatial_masker_reads_compute_before_skip() -> None:
    masker = SpatialMasker(3, groups=2).eval()
    with torch.no_grad():
        masker.conv.weight.zero_()
        masker.conv.bias.copy_(torch.tensor([1.0, -1.0, 0.0, 0.0]))
    mask = masker(torch.randn(2, 3, 7, 9), (2, 3))
    assert mask.shape == (2, 2, 2, 3)
    assert (mask[:, 0] == 1).all()
    assert (mask[:, 1] == 0).all()


def test_hidden_widths_and_macs() -> None:
    assert MlpChannelMasker(256, 32).conv[0].out_features == 16
    assert MlpChannelMasker(256, 512, reduction=8).conv[0].out_features == 64
    # Pool 4 * 5 pixels, then 256 -> 16 -> 64.
    assert MlpChannelMasker(256, 32).macs(4, 5) == 256 * 20 + 256 * 16 + 16 * 64
    assert MlpChannelMasker(256, 32, layers=1).macs(4, 5) == 256 * 20 + 256 * 64
    assert ConvLinearChannelMasker(256, 32).macs(4, 5) == 16 * 20 + 256 * 16 + 16 * 64
    assert SpatialMasker(64, groups=2).macs((3, 5)) == 64 * 15 + 5 * 64 * 15
