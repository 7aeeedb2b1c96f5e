"""Work of the transformer operators against the counts of the published networks, and what their errors say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dyndeploy.errors import UsageError
from dyndeploy.ops import OPERATORS, operator
from dyndeploy.ops._transformer import WEIGHTS
from tests.ops.cases import Case, build

ALL = "TokenHeadLayerTransformerBlock"


def shapes(tokens: int, heads: int, ratio: int, batch: int = 1) -> list[tuple[int, ...]]:
    """Of the variant with every mask, for heads of 64 channels."""
    width = 64 * heads
    sizes = {"D": width, "A": heads, "d": 64, "F": ratio * width, "3": 3}
    masks = [(batch, tokens), (batch, heads), (batch, 1, 1, 1), (batch, 1, 1, 1)]
    return [(batch, tokens, width), *masks, *(tuple(sizes[s] for s in port.shape) for port in WEIGHTS)]


def attributes(token_mlp: int = 1, head_mode: int = 0) -> dict[str, float]:
    return {"epsilon": 1e-6, "scale": 0.125, "token_mlp": token_mlp, "head_mode": head_mode}


def macs(tokens: int, heads: int, on: tuple[int, int], total: tuple[int, int, int], **options: int) -> float:
    """MACs of a block that keeps so many tokens and heads of (tokens, heads, MLP ratio)."""
    spec, form = operator(ALL), shapes(*total)
    masks = {
        "token": (np.arange(total[0]) < tokens)[None].astype(np.float32),
        "head": (np.arange(total[1]) < heads)[None].astype(np.float32),
        "attention": np.full((1, 1, 1, 1), on[0], np.float32),
        "mlp": np.full((1, 1, 1, 1), on[1], np.float32),
    }
    settings = attributes(**options)
    (found,) = spec.work(form, settings, spec.counts(form, settings, masks), 4.0).macs
    return float(found)


@pytest.mark.parametrize(
    ("heads", "ratio", "attention", "mlp"),
    [
        (6, 3, 146_000_640, 174_292_992),
        (7, 3, 192_927_616, 237_232_128),
        (3, 4, 43_951_488, 58_097_664),
        (6, 4, 146_000_640, 232_390_656),
        (12, 4, 524_391_936, 929_562_624),
    ],
    ids=["t2t_vit_14", "t2t_vit_19", "deit_tiny", "deit_small", "deit_base"],
)
def test_macs_of_the_published_networks(heads: int, ratio: int, attention: int, mlp: int) -> None:
    size = (197, heads, ratio)
    assert macs(197, heads, (1, 0), size) == attention
    assert macs(197, heads, (0, 1), size) == mlp
    assert macs(197, heads, (1, 1), size) == attention + mlp
    assert macs(197, heads, (0, 0), size) == 0


def test_macs_under_masks_by_hand() -> None:
    n, h, d, width, hidden = 90, 4, 64, 384, 1536
    size = (197, 6, 4)
    attention = 3 * n * width * d * h + 2 * n * n * d * h + n * d * h * width
    assert macs(n, h, (1, 0), size) == attention
    assert macs(n, h, (0, 1), size) == n * d * h * hidden + n * hidden * width
    assert macs(n, h, (0, 1), size, token_mlp=0) == 197 * (d * h * hidden + hidden * width)
    assert macs(n, h, (0, 1), size, head_mode=1) == 2 * n * width * hidden * h / 6
    # Heads of the attention only: the linear layers are full, the products of queries and keys are not.
    full = 3 * n * width * width + n * width * width
    assert macs(n, h, (1, 1), size, head_mode=2) == full + 2 * n * n * d * h + 2 * n * width * hidden


def test_expected_counts_are_those_of_exact_shares() -> None:
    spec, form = operator(ALL), shapes(100, 10, 4)
    rates = {"token": 0.7, "head": 0.4, "layer": 0.5}
    expected = spec.work(form, attributes(), spec.expected(form, attributes(), rates), 4.0).macs
    assert expected == pytest.approx(macs(70, 4, (1, 1), (100, 10, 4)) / 2)
    apart = {**rates, "attention": 0.25, "mlp": 1.0}
    expected = spec.work(form, attributes(), spec.expected(form, attributes(), apart), 4.0).macs
    size = (100, 10, 4)
    assert expected == pytest.approx(macs(70, 4, (1, 0), size) / 4 + macs(70, 4, (0, 1), size))
    # Rates of what a variant has no masks for change nothing.
    token = operator("TokenTransformerBlock")
    own = [form[0], form[1], *form[5:]]
    assert token.expected(own, attributes(), rates) == token.expected(own, attributes(), {"token": 0.7})


def test_achieved_rates_tell_the_sublayers_apart() -> None:
    spec, form = operator(ALL), shapes(10, 2, 4, batch=4)
    masks = {
        "token": np.ones((4, 10), np.float32),
        "head": np.array([[1, 0]] * 4, np.float32),
        "attention": np.array([1, 0, 0, 0], np.float32).reshape(4, 1, 1, 1),
        "mlp": np.array([1, 1, 1, 0], np.float32).reshape(4, 1, 1, 1),
    }
    rates = spec.achieved_rates(form, attributes(), masks)
    assert rates == {"token": 1.0, "head": 0.5, "layer": 0.5, "attention": 0.25, "mlp": 0.75}
    found = spec.work(form, attributes(), spec.expected(form, attributes(), rates), 4.0).macs
    exact = spec.work(form, attributes(), spec.counts(form, attributes(), masks), 4.0).macs
    assert found == pytest.approx(exact.mean())


def test_weights_are_read_where_an_image_needs_them() -> None:
    spec, form = operator(ALL), shapes(10, 2, 4, batch=2)
    masks = {
        "token": np.ones((2, 10), np.float32),
        "head": np.array([[1, 0], [0, 0]], np.float32),
        "attention": np.zeros((2, 1, 1, 1), np.float32),
        "mlp": np.array([1, 0], np.float32).reshape(2, 1, 1, 1),
    }
    work = spec.work(form, attributes(), spec.counts(form, attributes(), masks), 2.0)
    width, hidden = 128, 512
    assert work.weights == 2.0 * (hidden * 64 + hidden * width)
    assert work.read == work.written == 2.0 * 2 * 10 * width


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": 0.0}, "epsilon"),
        ({"token_mlp": 2}, "token_mlp is 0 or 1"),
        ({"head_mode": 3}, "head_mode is 0, 1 or 2"),
    ],
)
def test_attributes_that_mean_nothing_are_refused(change: dict[str, float], message: str) -> None:
    case = build(ALL)
    with pytest.raises(UsageError, match=f"{ALL}: .*{message}"):
        case.spec.infer_shape(case.shapes, {**case.attributes, **change})


def test_heads_that_own_no_channels_or_units_are_refused() -> None:
    form = shapes(5, 2, 4)
    form[7], form[8], form[9] = (3, 2, 32, 128), (3, 2, 32), (128, 2, 32)
    with pytest.raises(UsageError, match="2 x 32 is not 128"):
        operator(ALL).infer_shape(form, attributes())
    assert operator(ALL).infer_shape(form, attributes(head_mode=2)) == (1, 5, 128)
    form = shapes(5, 2, 4)
    form[13], form[14], form[15] = (511, 128), (511,), (128, 511)
    with pytest.raises(UsageError, match="511 % 2"):
        operator(ALL).infer_shape(form, attributes(head_mode=1))


def test_a_batch_is_its_images_one_by_one() -> None:
    case = build(ALL, batch=3, channels=8, rate=0.6, seed=4)
    together = case.reference()
    for index in range(3):
        inputs = tuple(
            tensor[index : index + 1] if position < 5 else tensor for position, tensor in enumerate(case.inputs)
        )
        alone = Case(case.spec, inputs, case.attributes).reference()
        torch.testing.assert_close(alone[0], together[index], rtol=1e-5, atol=1e-5)


def test_maskers_keep_what_is_on_the_edge_and_leading_tokens() -> None:
    spec = OPERATORS["TokenMasker"]
    x = torch.tensor([[[-1.0], [0.0], [1.0], [float("nan")], [2.0]]])
    settings = {"epsilon": 1e-6, "normalise": 0, "kept": 1}
    mask = spec.reference(x, torch.ones(1), torch.tensor([-1.0]), **settings)
    assert mask.tolist() == [[1, 0, 1, 0, 1]]
    with pytest.raises(UsageError, match="6 leading tokens"):
        spec.infer_shape([(1, 5, 1), (1,), (1,)], {**settings, "kept": 6})
    with pytest.raises(UsageError, match="normalise is 0 or 1"):
        spec.infer_shape([(1, 5, 1), (1,), (1,)], {**settings, "normalise": 2})
