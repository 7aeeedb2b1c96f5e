"""Gates of tokens, heads and sublayers: thresholds, the rule of training, fixed counts and chains."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from dyndeploy.blocks import (
    HeadGate,
    Tape,
    ThresholdGate,
    TokenGate,
    TopKTokenGate,
    TransformerBlock,
    cumulative,
)
from dyndeploy.blocks.gates import PooledGate, no_noise
from dyndeploy.blocks.token_gates import SublayerGates
from dyndeploy.errors import UsageError
from dyndeploy.ops import OPERATORS

WIDTH = 8


def with_logits(threshold: float, logits: list[float], **options: bool) -> tuple[HeadGate, torch.Tensor]:
    """A head gate that gives these logits for every image."""
    gate = HeadGate(WIDTH, len(logits), threshold=threshold, **options)
    nn.init.zeros_(gate.mlp_head.weight)
    gate.mlp_head.bias.data = torch.tensor(logits)
    return gate, torch.zeros(1, 3, WIDTH)


def test_thresholds_are_strict() -> None:
    gate, x = with_logits(0.5, [0.0, 1e-9, 3e-7, -1e-6])
    assert gate.eval()(x).tolist() == [[0, 0, 1, 0]]
    # log(0.6 / 0.4) = 0.4054651
    gate, x = with_logits(0.6, [0.40546, 0.40547, 0.4, 0.5])
    assert gate.eval()(x).tolist() == [[0, 1, 0, 1]]


@pytest.mark.parametrize("threshold", [0.5, 0.6])
@pytest.mark.parametrize("consistent", [False, True])
def test_training_keeps_by_the_rule_of_the_source(threshold: float, consistent: bool) -> None:
    logit, draws = 1.3, 40000
    gate, x = with_logits(threshold, [logit] * draws, consistent=consistent)
    torch.manual_seed(0)
    mask = gate.train()(x)
    offset = math.log(threshold / (1 - threshold))
    expected = 1 / (1 + math.exp(-(logit - (offset if consistent else 5 * offset))))
    assert set(mask.detach().unique().tolist()) <= {0.0, 1.0}
    assert float(mask.detach().mean()) == pytest.approx(expected, abs=4 * math.sqrt(0.25 / draws))


def test_the_gradient_of_training_is_that_of_the_soft_sample() -> None:
    gate, x = with_logits(0.6, [0.7])
    gate.noise = no_noise
    gate.train()(x).sum().backward()
    soft = 1 / (1 + math.exp(-0.7 / 5))
    assert gate.mlp_head.bias.grad is not None
    assert float(gate.mlp_head.bias.grad) == pytest.approx(soft * (1 - soft) / 5, rel=1e-5)


def test_without_noise_the_consistent_rule_decides_as_evaluation() -> None:
    logits = torch.linspace(-1, 3, 41).tolist()
    for threshold in (0.5, 0.6, 0.8):
        gate, x = with_logits(threshold, logits, consistent=True)
        gate.noise = no_noise
        assert torch.equal(gate.train()(x).detach(), gate.eval()(x))
    gate, x = with_logits(0.6, logits)
    gate.noise = no_noise
    # The published rule compares the softened probability with 0.6: on from 5 log(1.5) = 2.027.
    assert float(gate.train()(x).sum()) == sum(logit > 2.0273 for logit in logits)
    assert float(gate.eval()(x).sum()) == sum(logit > 0.40547 for logit in logits)


@pytest.mark.parametrize("training", [False, True])
def test_leading_tokens_stay(training: bool) -> None:
    for gate in (TokenGate(WIDTH, kept=3), TopKTokenGate(WIDTH, 1, kept=3)):
        for parameter in gate.parameters():
            nn.init.constant_(parameter, -3.0)
        mask = gate.train(training)(torch.rand(2, 9, WIDTH))
        assert mask.shape == (2, 9)
        assert mask[:, :3].min() == 1


@pytest.mark.parametrize("normalised", [False, True])
def test_lowered_gates_decide_alike(normalised: bool) -> None:
    torch.manual_seed(1)
    norm = nn.LayerNorm(WIDTH, eps=1e-6) if normalised else None
    if norm is not None:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    layers = SublayerGates(WIDTH, norm)
    x = torch.randn(5, 40, WIDTH)
    for gate in (TokenGate(WIDTH, norm, kept=2), HeadGate(WIDTH, 6, norm), layers.attention, layers.mlp):
        assert isinstance(gate, ThresholdGate)
        nn.init.normal_(layers.mlp_head.weight)
        call = gate.eval().lower(None)
        assert call is not None and call.operator is not None
        spec = OPERATORS[call.operator]
        found = spec.reference(x, call.tensors["weight"], call.tensors["bias"], **call.attributes)
        logits = gate.logits(x)
        sure = ((logits[:, 0] - logits[:, 1]).abs() > 1e-5).reshape(found.shape)
        assert sure.float().mean() > 0.95
        assert torch.equal(found[sure], gate(x).reshape(found.shape)[sure])
        assert {"mlp_head.weight", "mlp_head.bias"} >= set(gate.state_dict())


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.5, 2.0])
def test_thresholds_outside_are_refused(threshold: float) -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        TokenGate(WIDTH, threshold=threshold)


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (3, 3), (0.5, 4), (0.51, 5), (8, 8), (100, 8)])
def test_top_k_keeps_as_many_as_asked(count: int | float, expected: int) -> None:
    torch.manual_seed(0)
    gate = TopKTokenGate(WIDTH, count, nn.LayerNorm(WIDTH)).eval()
    x = torch.randn(4, 9, WIDTH)
    mask = gate(x)
    assert mask.sum(1).tolist() == [1 + expected] * 4
    scores = gate.scores(x)
    for kept, score in zip(mask[:, 1:].bool(), scores, strict=True):
        assert not bool((~kept).any()) or score[kept].min() > score[~kept].max()


@pytest.mark.parametrize("count", [0, -1, 1.5, 0.0, True])
def test_counts_that_are_none_are_refused(count: int | float) -> None:
    with pytest.raises(UsageError, match="number of tokens"):
        TopKTokenGate(WIDTH, count)


def test_what_a_chain_drops_stays_dropped() -> None:
    torch.manual_seed(0)
    gates = cumulative([None, TopKTokenGate(WIDTH, 6), None, TopKTokenGate(WIDTH, 3), TopKTokenGate(WIDTH, 5)])
    network = nn.Sequential(*(TransformerBlock(WIDTH, 2, 16, token=gate) for gate in gates)).eval()
    for _ in range(2):
        with Tape(network) as tape, torch.no_grad():
            network(torch.randn(3, 9, WIDTH))
        masks = [decision.mask for decision in tape.decisions.values()]
        counts = [mask.sum(1).tolist() for mask in masks]
        assert counts[:3] == [[9] * 3, [7] * 3, [7] * 3]
        for earlier, later in itertools.pairwise(masks):
            assert bool((later <= earlier).all())
        assert all(1 <= count <= 4 for count in counts[4])


def test_a_chain_follows_forced_and_sampled_masks() -> None:
    torch.manual_seed(0)
    gates = cumulative([TokenGate(WIDTH), TokenGate(WIDTH)])
    network = nn.Sequential(*(TransformerBlock(WIDTH, 2, 16, token=gate) for gate in gates))
    forced = torch.tensor([[1.0, 0, 1, 0, 1]])
    with Tape(network.eval(), force={"mask/0/token": forced}) as tape:
        network(torch.randn(1, 5, WIDTH))
    assert bool((tape.masks["mask/1/token"] <= forced).all())
    with Tape(network.train()) as tape:
        network(torch.randn(64, 5, WIDTH)).sum().backward()
    first, second = tape.masks.values()
    assert bool((second <= first).all())
    assert float(first.detach().mean()) < 1
    # Copies share a chain of their own.
    twin = copy.deepcopy(network)
    assert twin[0].attn.token_select.chain is twin[1].attn.token_select.chain
    assert twin[0].attn.token_select.chain is not gates[0].chain


def test_chains_take_token_gates_only() -> None:
    with pytest.raises(UsageError, match="one of kind 'layer'"):
        cumulative([PooledGate(WIDTH)])
