from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dyndeploy.training.losses import (
    UsageTerms,
    block_bounds,
    distillation_loss,
    head_usage,
    layer_usage,
    sparsity_loss,
    token_usage,
)

EPOCHS = 100
RATIOS = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)

unit = st.floats(0, 1)


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [
        # Values of the LAUDNet reference code, which computes in float32, for target 0.5, 3.0 of 4.0989 GMACs.
        (0, 0.13711268),
        (5, 0.12465838),
        (10, 0.09546731),
        (16.5, 0.06211267),
        (20, 0.05533126),
        (33, 0.05377934),
        (99, 0.05377934),
    ],
)
def test_sparsity_loss_equals_the_reference_code(epoch: float, expected: float) -> None:
    bounds = block_bounds(0.5, epoch / EPOCHS)
    flops = torch.tensor(3.0e9, dtype=torch.float64)
    assert sparsity_loss(flops, 4.0989e9, RATIOS, 0.5, bounds).item() == pytest.approx(expected, abs=5e-8)


@given(target=st.floats(0.05, 1), progress=unit, until=st.floats(0.05, 1))
def test_bounds_open_from_the_target_to_everything(target: float, progress: float, until: float) -> None:
    lower, upper = block_bounds(target, progress, until)
    assert 0 <= lower <= target + 1e-12
    assert target - 1e-12 <= upper <= 1
    later = block_bounds(target, min(1.0, progress + 0.1), until)
    assert later.lower <= lower + 1e-12
    assert later.upper >= upper - 1e-12
    assert block_bounds(target, 0.0, until) == pytest.approx((target, target))
    assert block_bounds(target, until, until) == pytest.approx((0.0, 1.0), abs=1e-12)


@given(ratios=st.lists(unit, min_size=1, max_size=6), share=unit, progress=unit)
def test_sparsity_loss_is_zero_exactly_inside(ratios: list[float], share: float, progress: float) -> None:
    bounds = block_bounds(0.5, progress)
    inside = torch.tensor(ratios, dtype=torch.float64).clamp(bounds.lower, bounds.upper)
    full = 1.0e9
    on_target = torch.tensor(0.5 * full, dtype=torch.float64)
    assert sparsity_loss(on_target, full, inside, 0.5, bounds).item() == pytest.approx(0, abs=1e-15)
    off_target = torch.tensor(share * full, dtype=torch.float64)
    assert sparsity_loss(off_target, full, inside, 0.5, bounds).item() == pytest.approx((share - 0.5) ** 2, abs=1e-12)


def test_sparsity_gradient_pulls_towards_the_target() -> None:
    flops = torch.tensor(0.8e9, requires_grad=True)
    ratios = torch.tensor([0.9, 0.5, 0.1], requires_grad=True)
    sparsity_loss(flops, 1.0e9, ratios, 0.5, block_bounds(0.5, 0.0)).backward()
    assert flops.grad is not None
    assert flops.grad.item() == pytest.approx(2 * 0.3 / 1e9, rel=1e-5)
    assert ratios.grad is not None
    assert ratios.grad.tolist() == pytest.approx([2 * 0.4 / 3, 0.0, -2 * 0.4 / 3], abs=1e-6)


def test_distillation_loss_by_hand() -> None:
    student = torch.tensor([[1.0, 3.0], [0.0, 0.0]], dtype=torch.float64)
    teacher = torch.tensor([[2.0, 0.0], [4.0, 0.0]], dtype=torch.float64)
    temperature = 4.0
    expected = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        ps = [math.exp(v / temperature) for v in s]
        pt = [math.exp(v / temperature) for v in t]
        ps, pt = [v / sum(ps) for v in ps], [v / sum(pt) for v in pt]
        expected += sum(p * math.log(p / q) for p, q in zip(pt, ps, strict=True)) / 2
    loss = distillation_loss(student, teacher, temperature)
    assert loss.item() == pytest.approx(16 * expected, rel=1e-12)


@given(
    logits=st.lists(st.floats(-20, 20), min_size=3, max_size=3),
    other=st.lists(st.floats(-20, 20), min_size=3, max_size=3),
    temperature=st.floats(0.5, 8),
)
def test_distillation_loss_is_a_divergence(logits: list[float], other: list[float], temperature: float) -> None:
    a, b = (torch.tensor([v], dtype=torch.float64) for v in (logits, other))
    assert distillation_loss(a, b, temperature).item() >= -1e-9
    # A constant added to all logits changes no probability.
    assert distillation_loss(a, a + 3, temperature).item() == pytest.approx(0, abs=1e-9)


#: Vectors of the AdaViT code's loss file: two images, three blocks of two heads, four of five tokens.
HEADS = [[[1, 0], [0, 1], [1, 0]], [[0, 0], [1, 1], [0, 1]]]
LAYERS = [[[1, 0], [0, 0], [1, 1]], [[0, 0], [0, 1], [1, 1]]]
TOKENS = [
    [[1, 1, 0, 1, 1], [0, 1, 0, 0, 1], [0, 1, 1, 1, 1], [1, 0, 1, 1, 1]],
    [[1, 0, 1, 1, 0], [1, 1, 1, 1, 0], [1, 0, 1, 0, 1], [0, 1, 1, 0, 1]],
]
_VECTORS = Path(__file__).with_name("data") / "ada_vit_losses.npz"


def _blocks(values: object) -> list[torch.Tensor]:
    return list(torch.as_tensor(values, dtype=torch.float32).unbind(1))


@pytest.mark.parametrize(
    ("head", "layer", "token", "expected"),
    [
        (UsageTerms(), UsageTerms(), UsageTerms(), (0.1249999, 0.0, 0.0306250, 2.7482345)),
        (
            UsageTerms(0.5, 0.1, 0.1, 0.3, 1.0),
            UsageTerms(0.5, 0.1, 0.1, 0.6, 1.0),
            UsageTerms(0.5, minimal=0.75, minimal_weight=1.0),
            (0.3930770, 1.3738638, 0.8306249, 7.6321163),
        ),
    ],
    ids=["defaults", "all terms"],
)
def test_usage_equals_the_reference_code(
    head: UsageTerms, layer: UsageTerms, token: UsageTerms, expected: tuple[float, ...]
) -> None:
    stored = np.load(_VECTORS)
    assert stored["hs"].tolist() == HEADS and stored["ls"].tolist() == LAYERS and stored["ts"].tolist() == TOKENS
    heads, layers, tokens = _blocks(HEADS), _blocks(LAYERS), _blocks(TOKENS)
    active = [(block.sum(1) > 0).float() for block in layers]
    losses = (
        head_usage(heads, _blocks(stored["hl"]), active, head),
        layer_usage(layers, _blocks(stored["ll"]), layer),
        token_usage(tokens, tokens, token),
    )
    assert [loss.item() for loss in losses] == pytest.approx(expected[:3], abs=2e-7)
    base = torch.nn.functional.cross_entropy(torch.tensor(stored["logits"]), torch.tensor(stored["target"]))
    assert base.item() == pytest.approx(2.4369845, abs=1e-6)
    assert (base + 2 * sum(losses)).item() == pytest.approx(expected[3], abs=1e-6)


def test_heads_of_idle_blocks_do_not_count_and_pass_no_gradient() -> None:
    heads = torch.tensor([[1.0, 1.0], [0.0, 0.0]], requires_grad=True)
    loss = head_usage([heads], [heads], [torch.tensor([1.0, 0.0])], UsageTerms(0.25))
    assert loss.item() == pytest.approx(0.75, abs=1e-5)
    loss.backward()
    assert heads.grad.tolist()[1] == [0.0, 0.0] and heads.grad[0, 0].item() == pytest.approx(0.5, abs=1e-5)


def test_blocks_may_have_different_numbers_of_heads() -> None:
    masks = [torch.ones(2, 3), torch.zeros(2, 1)]
    assert head_usage(masks, masks, None, UsageTerms(0.5)).item() == pytest.approx(0.25, abs=1e-6)
