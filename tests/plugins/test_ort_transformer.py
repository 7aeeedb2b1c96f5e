"""The transformer blocks and their maskers inside ONNX Runtime, on every instruction set, and against bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dyndeploy.ops import OPERATORS
from dyndeploy.ops.transformer_block import variant
from dyndeploy.runtimes.native import ISA_VARIABLE
from tests.plugins.reference import Transformer, row_logits, transformer, transformer_weights
from tests.plugins.test_ort_cpu import (
    LIBRARY,
    QUICK,
    Arrays,
    assert_agrees,
    bf16_isa,
    build_model,
    isa,
    node,
    open_session,
    run_node,
)

__all__ = ["bf16_isa", "isa"]

pytestmark = pytest.mark.skipif(
    LIBRARY is None, reason="native library not built: install with a compiler, or set DYNDEPLOY_CPU_LIBRARY"
)
Case = tuple[str, Transformer, Arrays, Arrays]
"""(operator, block, x and masks, weights)"""


def attributes_of(block: Transformer) -> dict[str, Any]:
    return {
        "epsilon": block.epsilon,
        "scale": block.scale,
        "token_mlp": block.token_mlp,
        "head_mode": block.head_mode,
    }


def make_case(
    block: Transformer,
    rng: np.random.Generator,
    shape: tuple[int, int],
    rate: float,
    *,
    token: bool = False,
    head: bool = False,
    layer: bool = False,
) -> Case:
    batch, tokens = shape
    sizes = {"token": (batch, tokens)} if token else {}
    sizes |= {"head": (batch, block.heads)} if head else {}
    sizes |= {"attention": (batch, 1, 1, 1), "mlp": (batch, 1, 1, 1)} if layer else {}  # type: ignore[dict-item]
    inputs = {"x": rng.standard_normal((batch, tokens, block.width)).astype(np.float32)}
    inputs |= {name: (rng.random(size) < rate).astype(np.float32) for name, size in sizes.items()}
    return variant(token=token, head=head, layer=layer), block, inputs, transformer_weights(block, rng)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    mode, heads, inner = draw(st.integers(0, 2)), draw(st.integers(1, 5)), draw(st.integers(1, 40))
    block = Transformer(
        width=heads * inner if mode == 0 else draw(st.integers(1, 100)),
        heads=heads,
        head_width=inner,
        hidden=heads * draw(st.integers(1, 40)),
        token_mlp=draw(st.integers(0, 1)),
        head_mode=mode,
        epsilon=draw(st.sampled_from([1e-6, 1e-5])),
        scale=inner**-0.5,
    )
    chosen = draw(st.tuples(st.booleans(), st.booleans(), st.booleans()).filter(any))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.integers(1, 3)), draw(st.integers(1, 40))
    rate = draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))
    return make_case(block, rng, shape, rate, token=chosen[0], head=chosen[1], layer=chosen[2])


def run_case(case: Case, threads: int = 1, constant: bool = True, precision: str | None = None) -> np.ndarray:
    op, block, inputs, weights = case
    feeds = inputs if constant else {**inputs, **weights}
    return run_node(op, feeds, weights if constant else {}, threads, precision, **attributes_of(block))


def expected_of(case: Case) -> np.ndarray:
    _, block, inputs, weights = case
    return transformer(block, weights, inputs["x"], {name: mask for name, mask in inputs.items() if name != "x"})


@QUICK
@given(case=cases())
def test_blocks(isa: str, case: Case) -> None:
    assert_agrees(run_case(case), expected_of(case), tolerance=4e-6)


@settings(QUICK, max_examples=15)
@given(case=cases(), threads=st.integers(2, 3))
def test_threads_do_not_change_a_bit(case: Case, threads: int) -> None:
    np.testing.assert_array_equal(run_case(case, threads), run_case(case))


@settings(QUICK, max_examples=10)
@given(case=cases())
def test_weights_may_be_computed_by_the_graph(case: Case) -> None:
    np.testing.assert_array_equal(run_case(case, constant=False), run_case(case))


@settings(QUICK, max_examples=15)
@given(case=cases())
def test_blocks_agree_with_the_operator(case: Case) -> None:
    op, block, inputs, weights = case
    tensors = [torch.from_numpy(value) for value in (*inputs.values(), *weights.values())]
    expected = OPERATORS[op].reference(*tensors, **attributes_of(block))
    assert_agrees(run_case(case), expected.numpy(), tolerance=1e-5)


SMALL = Transformer(width=384, heads=6, head_width=64, hidden=1536, token_mlp=1)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("mode", [0, 1, 2])
def test_a_block_of_a_published_network(isa: str, mode: int, threads: int) -> None:
    block = Transformer(**{**SMALL.__dict__, "head_mode": mode})
    case = make_case(block, np.random.default_rng(mode), (2, 197), 0.6, token=True, head=True)
    case[2]["token"][:, 0] = 1
    assert_agrees(run_case(case, threads), expected_of(case), tolerance=4e-6)


@settings(QUICK, max_examples=15)
@given(case=cases())
def test_bf16_blocks(bf16_isa: str, case: Case) -> None:
    error = np.abs(run_case(case, precision="bf16") - expected_of(case))
    scale = max(1.0, float(np.abs(expected_of(case)).max()))
    # Numbers of 8 bits, in four products one after the other.
    assert float(error.max()) <= 0.05 * scale
    assert float(np.sqrt((error**2).mean())) <= 0.01 * scale


def test_bf16_rounds_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ISA_VARIABLE, "generic")
    case = make_case(SMALL, np.random.default_rng(0), (1, 20), 1.0, token=True)
    exact, rounded = run_case(case), run_case(case, precision="bf16")
    assert 1e-4 < float(np.abs(exact - rounded).max()) < 0.05


def test_two_blocks_in_a_row_may_share_memory() -> None:
    block = Transformer(width=48, heads=4, head_width=12, hidden=96, token_mlp=1)
    rng = np.random.default_rng(3)
    op, _, inputs, weights = make_case(block, rng, (3, 11), 0.5, token=True, head=True, layer=True)
    masks = [name for name in inputs if name != "x"]
    nodes = [
        node(op, [source, *masks, *weights], target, **attributes_of(block))
        for source, target in (("x", "a"), ("a", "b"), ("b", "y"))
    ]
    model = build_model(nodes, {name: value.shape for name, value in inputs.items()}, weights)
    x = inputs["x"].copy()
    result = open_session(model).run(None, inputs)[0]
    np.testing.assert_array_equal(inputs["x"], x)
    for _ in range(3):
        x = transformer(block, weights, x, {name: inputs[name] for name in masks}).astype(np.float32)
    assert_agrees(np.asarray(result), x, tolerance=2e-5)


@QUICK
@given(data=st.data())
def test_token_masker(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    batch, tokens, width = (data.draw(st.integers(1, n)) for n in (3, 40, 90))
    normalise, kept = data.draw(st.integers(0, 1)), data.draw(st.integers(0, 1))
    x = rng.standard_normal((batch, tokens, width)).astype(np.float32)
    weight, bias = rng.standard_normal(width).astype(np.float32), rng.standard_normal(1).astype(np.float32)
    constants = {"weight": weight, "bias": bias}
    mask = run_node("TokenMasker", {"x": x}, constants, epsilon=1e-6, normalise=normalise, kept=kept)
    logits = row_logits(x, weight[None], bias, normalise=bool(normalise), epsilon=1e-6)[..., 0]
    assert mask.shape == (batch, tokens)
    sure = np.abs(logits) > 1e-4
    sure[:, :kept] = True
    expected = logits >= 0
    expected[:, :kept] = True
    np.testing.assert_array_equal(mask[sure], expected[sure].astype(np.float32))
    assert set(np.unique(mask)) <= {0.0, 1.0}


@QUICK
@given(data=st.data(), layer=st.booleans())
def test_class_token_maskers(data: st.DataObject, layer: bool) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    batch, tokens, width = (data.draw(st.integers(1, n)) for n in (3, 9, 90))
    decisions, normalise = 1 if layer else data.draw(st.integers(1, 12)), data.draw(st.integers(0, 1))
    x = rng.standard_normal((batch, tokens, width)).astype(np.float32)
    weight = rng.standard_normal((decisions, width)).astype(np.float32)
    bias = rng.standard_normal(decisions).astype(np.float32)
    op = "ClassTokenLayerMasker" if layer else "ClassTokenHeadMasker"
    mask = run_node(op, {"x": x}, {"weight": weight, "bias": bias}, epsilon=1e-5, normalise=normalise)
    logits = row_logits(x[:, 0], weight, bias, normalise=bool(normalise), epsilon=1e-5)
    assert mask.shape == ((batch, 1, 1, 1) if layer else (batch, decisions))
    sure = np.abs(logits) > 1e-4
    np.testing.assert_array_equal(mask.reshape(batch, -1)[sure], (logits >= 0)[sure].astype(np.float32))


def test_a_threshold_is_met_by_equality() -> None:
    x = np.zeros((1, 3, 4), np.float32)
    constants = {"weight": np.ones(4, np.float32), "bias": np.zeros(1, np.float32)}
    attributes = {"epsilon": 1e-6, "normalise": 0, "kept": 0}
    assert run_node("TokenMasker", {"x": x}, constants, **attributes).tolist() == [[1.0, 1.0, 1.0]]
    x[0, 1] = -1e-7
    x[0, 2] = np.nan
    assert run_node("TokenMasker", {"x": x}, constants, **attributes).tolist() == [[1.0, 0.0, 0.0]]


GOOD = Transformer(width=6, heads=2, head_width=3, hidden=8)
BLOCK, MASKER = variant(token=True, head=True, layer=True), "TokenMasker"
BAD_NODES: list[tuple[str, dict[str, Any], dict[str, tuple[int, ...]], str]] = [
    # (operator, attributes, changed shapes, what the message says)
    (BLOCK, {"epsilon": 0.0}, {}, "epsilon"),
    (BLOCK, {"epsilon": float("nan")}, {}, "epsilon"),
    (BLOCK, {"epsilon": 1}, {}, "epsilon has the wrong type"),
    (BLOCK, {"scale": "one"}, {}, "scale has the wrong type"),
    (BLOCK, {"token_mlp": 2}, {}, "token_mlp"),
    (BLOCK, {"head_mode": 3}, {}, "head_mode"),
    (BLOCK, {"head_mode": 1}, {"w_fc1": (7, 6), "b_fc1": (7,), "w_fc2": (6, 7)}, "heads must divide F"),
    (
        BLOCK,
        {},
        {"w_qkv": (3, 2, 4, 6), "b_qkv": (3, 2, 4), "w_proj": (6, 2, 4)},
        "A d must be D, and 2 x 4 is not 6",
    ),
    (BLOCK, {}, {"x": (1, 5, 7)}, r"input 0 \(x\)"),
    (BLOCK, {}, {"x": (5, 6)}, r"input 0 \(x\)"),
    (BLOCK, {}, {"x": (0, 5, 6)}, r"input 0 \(x\) is empty"),
    (BLOCK, {}, {"token": (1, 4)}, r"input 1 \(token\)"),
    (BLOCK, {}, {"head": (1, 3)}, r"input 2 \(head\)"),
    (BLOCK, {}, {"attention": (2, 1, 1, 1)}, r"input 3 \(attention\)"),
    (BLOCK, {}, {"mlp": (1, 1, 1, 2)}, r"input 4 \(mlp\)"),
    (BLOCK, {}, {"norm1_weight": (5,)}, r"input 5 \(norm1_weight\)"),
    (BLOCK, {}, {"w_qkv": (2, 2, 3, 6)}, r"input 7 \(w_qkv\)"),
    (BLOCK, {}, {"b_qkv": (3, 3, 2)}, r"input 8 \(b_qkv\)"),
    (BLOCK, {}, {"w_proj": (6, 3, 2)}, r"input 9 \(w_proj\)"),
    (BLOCK, {}, {"w_fc1": (8, 5)}, r"input 13 \(w_fc1\)"),
    (BLOCK, {}, {"w_fc2": (6, 9)}, r"input 15 \(w_fc2\)"),
    (MASKER, {"normalise": 2}, {}, "normalise"),
    (MASKER, {"epsilon": -1.0}, {}, "epsilon"),
    (MASKER, {"kept": -1}, {}, "kept"),
    (MASKER, {"kept": 6}, {}, "6 leading tokens cannot be kept of 5"),
    (MASKER, {}, {"weight": (5,)}, r"input 1 \(weight\)"),
    (MASKER, {}, {"bias": (2,)}, r"input 2 \(bias\)"),
    ("ClassTokenHeadMasker", {}, {"weight": (2, 5)}, r"input 1 \(weight\)"),
    ("ClassTokenHeadMasker", {}, {"bias": (3,)}, r"input 2 \(bias\)"),
    ("ClassTokenLayerMasker", {}, {"weight": (2, 6)}, r"input 1 \(weight\)"),
]


@pytest.mark.parametrize(("op", "attributes", "shapes", "message"), BAD_NODES)
@pytest.mark.parametrize("constant", [True, False], ids=["constant", "computed"])
def test_bad_nodes_end_in_an_error(
    op: str, attributes: dict[str, Any], shapes: dict[str, tuple[int, ...]], message: str, constant: bool
) -> None:
    rng = np.random.default_rng(0)
    right: dict[str, Any]
    if op == BLOCK:
        _, _, inputs, weights = make_case(GOOD, rng, (1, 5), 0.5, token=True, head=True, layer=True)
        right = attributes_of(GOOD)
    else:
        decisions = {"TokenMasker": (), "ClassTokenHeadMasker": (2,), "ClassTokenLayerMasker": (1,)}[op]
        inputs = {"x": np.ones((1, 5, 6), np.float32)}
        weights = {
            "weight": np.ones((*decisions, 6), np.float32),
            "bias": np.ones(decisions or (1,), np.float32),
        }
        right = {"epsilon": 1e-6, "normalise": 1} | ({"kept": 1} if op == MASKER else {})
    for name, shape in shapes.items():
        (inputs if name in inputs else weights)[name] = np.ones(shape, np.float32)
    feeds = inputs if constant else {**inputs, **weights}
    with pytest.raises(Exception, match=message) as caught:
        run_node(op, feeds, weights if constant else {}, **{**right, **attributes})
    assert f"dyndeploy.{op}" in str(caught.value)
