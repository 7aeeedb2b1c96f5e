"""The CUDA kernels of the transformer block and its maskers against PyTorch, with no GPU."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dyndeploy.ops import OPERATORS
from tests.plugins.reference import MASKS, Transformer, row_logits, transformer, transformer_weights
from tests.plugins.test_kernels_cuda import (
    FLOAT,
    GUARD,
    HALF,
    QUICK,
    Arrays,
    Device,
    Gpu,
    Host,
    assert_bits,
    gpu,
    integers,
    kernels,
)

__all__ = ["gpu", "kernels"]

KINDS = pytest.mark.parametrize("kind", [FLOAT, HALF], ids=["float", "half"])
DEVICES = pytest.mark.parametrize(
    "device",
    [
        Device(53, 1),
        Device(62, 500),
        Device(62, 2, tiles=2),
        Device(75, 8),
        Device(90, 1),
        Device(90, 500),
        Device(87, 8, tiles=2),
    ],
    ids=lambda d: f"sm{d.capability}x{d.processors}t{d.tiles}",
)
VARIANTS = [
    ("token",),
    ("head",),
    ("attention", "mlp"),
    ("token", "head"),
    ("token", "attention", "mlp"),
    ("head", "attention", "mlp"),
    ("token", "head", "attention", "mlp"),
]
WITH_MODES = [(names, mode) for names in VARIANTS for mode in ((0, 1, 2) if "head" in names else (0, 2))]
"""Variants with every head mode; without heads the mode says nothing, and 2 stands for a head wider than a tile."""
MATRICES = ("w_qkv", "w_proj", "w_fc1", "w_fc2")


@dataclass(frozen=True)
class Case:
    block: Transformer
    x: np.ndarray
    weights: Arrays
    masks: Arrays = field(default_factory=dict)


def packed(block: Transformer, weights: Arrays, kind: int) -> Arrays:
    """Weights in the layout of kernels.h."""
    dtype = np.float16 if kind == HALF else np.float32
    shapes = {
        "w_qkv": (block.width, 3, block.heads, block.head_width),
        "w_proj": (block.heads, block.head_width, block.width),
        "w_fc1": (block.width, block.hidden),
        "w_fc2": (block.hidden, block.width),
    }
    matrices = {
        "w_qkv": weights["w_qkv"].reshape(-1, block.width).T,
        "w_proj": weights["w_proj"].reshape(block.width, -1).T,
        "w_fc1": weights["w_fc1"].T,
        "w_fc2": weights["w_fc2"].T,
    }
    return {**weights, **{name: matrices[name].reshape(shapes[name]).astype(dtype) for name in MATRICES}}


class Prepared:
    """A call of ``dyn_transformer``; y and the workspace hold NaN before it."""

    def __init__(self, backend: Host | Gpu, kind: int, case: Case, offset: int = 0) -> None:
        dtype = np.float16 if kind == HALF else np.float32
        block, (batch, tokens, _) = case.block, case.x.shape
        self._backend, self._kind, self._shape = backend, kind, case.x.shape
        given = ["token" in case.masks, "head" in case.masks, "attention" in case.masks]
        sizes = [batch, tokens, block.width, block.heads, block.head_width, block.hidden, *map(int, given)]
        self._sizes = integers([*sizes, block.token_mlp, block.head_mode])
        self._numbers = (ctypes.c_float * 2)(block.epsilon, block.scale)
        message = backend.library.dyn_check_transformer(self._sizes, self._numbers, kind)
        assert message is None, message
        arrays = packed(block, case.weights, kind)
        arrays["x"] = case.x.astype(dtype)
        memory = {n: backend.put(v, offset if n in ("x", *MATRICES) else 0) for n, v in arrays.items()}
        self._y = backend.put(np.full(case.x.size + GUARD, np.nan, dtype), offset)
        self._bytes = backend.library.dyn_transformer_workspace(self._sizes, self._numbers, kind)
        self._workspace = backend.put(np.full(self._bytes + GUARD, 0xFF, np.uint8))
        self.masks = {name: backend.put(case.masks[name]) for name in MASKS if name in case.masks}
        self._tensors = [memory["x"], *(self.masks.get(name) for name in MASKS)]
        self._tensors += [memory[name] for name in case.weights] + [self._y]
        addresses = [None if t is None else backend.address(t) for t in self._tensors]
        self.pointers = (ctypes.c_void_p * len(addresses))(*addresses)

    def _common(self) -> tuple[object, ...]:
        backend = self._backend
        return self.pointers, ctypes.c_void_p(backend.address(self._workspace)), backend.stream

    def run(self) -> None:
        self._backend.start()
        error = self._backend.library.dyn_transformer(self._sizes, self._numbers, self._kind, *self._common())
        assert error == 0

    def stand_in(self, rates: list[int]) -> int:
        self._backend.start()
        library = self._backend.library
        return int(
            library.dyn_stand_in_transformer_masks(
                self._sizes, self._numbers, self._kind, integers(rates), *self._common()
            )
        )

    def result(self) -> np.ndarray:
        y = self._backend.get(self._y).view(np.float16 if self._kind == HALF else np.float32)
        assert (self._backend.get(self._workspace)[self._bytes :] == 0xFF).all()
        assert np.isnan(y[-GUARD:]).all()
        return y[:-GUARD].reshape(self._shape)


def run(backend: Host | Gpu, kind: int, case: Case, offset: int = 0) -> np.ndarray:
    call = Prepared(backend, kind, case, offset)
    call.run()
    return call.result()


def reference(case: Case, kind: int) -> np.ndarray:
    weights = case.weights
    if kind == HALF:
        weights = {n: v.astype(np.float16).astype(np.float32) if n in MATRICES else v for n, v in weights.items()}
    return transformer(case.block, weights, case.x, case.masks)


def check(backend: Host | Gpu, kind: int, case: Case, capability: int, offset: int = 0) -> np.ndarray:
    """Halves: six tensors between the layers are rounded; lanes also round sums of 32 products."""
    y = run(backend, kind, case, offset)
    expected = reference(case, kind)
    scale = max(1.0, float(np.abs(expected).max()))
    worst = float(np.abs(y.astype(np.float64) - expected).max())
    allowed = 2e-5 if kind == FLOAT else 3e-3 if capability >= 70 else 6e-3
    assert worst <= allowed * scale, worst / scale
    for n in range(len(case.x)):
        unwritten = np.ones(case.x.shape[1], bool)
        if "token" in case.masks:
            unwritten = case.masks["token"][n] <= 0.5
        attention, mlp = (case.masks[name].reshape(-1)[n] > 0.5 if name in case.masks else True for name in MASKS[2:])
        if (mlp and not case.block.token_mlp) or ("token" not in case.masks and (attention or mlp)):
            continue
        rows = unwritten if attention or mlp else np.ones_like(unwritten)
        np.testing.assert_array_equal(y[n][rows], case.x[n][rows].astype(y.dtype))
    return y


def random_case(
    block: Transformer, batch: int, tokens: int, rates: dict[str, float], names: tuple[str, ...], seed: int
) -> Case:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, tokens, block.width)).astype(np.float16).astype(np.float32)
    shapes = {"token": (batch, tokens), "head": (batch, block.heads)}
    masks = {
        name: (rng.random(shapes.get(name, (batch, 1, 1, 1))) < rates.get(name, 0.5)).astype(np.float32)
        for name in names
    }
    return Case(block, x, transformer_weights(block, rng), masks)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    # Multiples of 8 take the vector paths of both types, multiples of 4 that of floats only.
    unit = draw(st.sampled_from([8, 8, 8, 4, 1]))
    heads = draw(st.integers(1, 4))
    inner = unit * draw(st.integers(1, 32 // unit))
    mode = draw(st.sampled_from([0, 1, 2]))
    names = draw(st.sampled_from(VARIANTS))
    square = mode == 0 or draw(st.booleans())
    block = Transformer(
        width=heads * inner if square else unit * draw(st.integers(1, 72 // unit)),
        heads=heads,
        head_width=inner,
        hidden=heads * unit * draw(st.integers(1, max(1, 96 // unit // heads))),
        token_mlp=draw(st.integers(0, 1)),
        head_mode=mode,
        epsilon=draw(st.sampled_from([1e-6, 1e-5])),
        scale=draw(st.sampled_from([0.125, inner**-0.5])),
    )
    rates = {name: draw(st.sampled_from([0.0, 0.3, 0.7, 1.0])) for name in MASKS}
    batch, tokens = draw(st.integers(1, 3)), draw(st.integers(1, 21))
    return random_case(block, batch, tokens, rates, names, draw(st.integers(0, 2**32 - 1)))


@KINDS
@DEVICES
@QUICK
@given(case=cases(), reverse=st.booleans())
def test_blocks(kernels: ctypes.CDLL, device: Device, kind: int, case: Case, reverse: bool) -> None:
    check(Host(kernels, replace(device, reverse=reverse)), kind, case, device.capability)


def several_tiles(names: tuple[str, ...], mode: int, token_mlp: int, wide: bool = False) -> Case:
    """Several tiles of rows, keys, columns and of a head that is wider than one; a batch of different counts."""
    block = Transformer(
        width=192,
        heads=2 if wide else 3,
        head_width=96 if wide else 64,
        hidden=288,
        token_mlp=token_mlp,
        head_mode=mode,
    )
    case = random_case(block, 3, 150, {"token": 0.6, "head": 0.7}, names, 7)
    for name, mask in case.masks.items():
        if name == "token":
            mask[:, 0] = 1
            mask[2] = 0  # one sample drops everything
        elif name == "head":
            mask[0], mask[1], mask[2] = 1, 0, np.arange(block.heads) == 1
        else:
            mask[...] = 1
    return case


@KINDS
@pytest.mark.parametrize("device", [Device(62, 2), Device(90, 500)], ids=["lanes", "tensor"])
@pytest.mark.parametrize(("names", "mode"), WITH_MODES)
def test_several_tiles(kernels: ctypes.CDLL, device: Device, kind: int, names: tuple[str, ...], mode: int) -> None:
    check(Host(kernels, device), kind, several_tiles(names, mode, mode % 2, wide=mode == 2), device.capability)


def sample_of(case: Case, n: int) -> Case:
    return replace(case, x=case.x[n : n + 1], masks={name: mask[n : n + 1] for name, mask in case.masks.items()})


@KINDS
@pytest.mark.parametrize("capability", [62, 75, 90])
def test_a_sample_has_the_same_bits_alone_and_in_any_tile(kernels: ctypes.CDLL, kind: int, capability: int) -> None:
    case = several_tiles(VARIANTS[-1], 0, 1)
    whole = run(Host(kernels, Device(capability, 2)), kind, case)
    for tiles in (1, 2, 3, 4):
        for reverse in (False, True):
            again = run(Host(kernels, Device(capability, 500, reverse, tiles)), kind, case)
            np.testing.assert_array_equal(again, whole)
    for n in range(len(case.x)):
        alone = run(Host(kernels, Device(capability, 2)), kind, sample_of(case, n))
        np.testing.assert_array_equal(alone[0], whole[n])


@KINDS
def test_unaligned_tensors_take_single_elements(kernels: ctypes.CDLL, kind: int) -> None:
    case = several_tiles(VARIANTS[-1], 0, 0)
    check(Host(kernels, Device(90, 12)), kind, case, 62, offset=np.dtype(np.float16 if kind else np.float32).itemsize)


@KINDS
def test_launches(kernels: ctypes.CDLL, kind: int) -> None:
    run(Host(kernels, Device()), kind, several_tiles(VARIANTS[-1], 0, 1))
    assert kernels.dyn_host_launches() == 8


@KINDS
@pytest.mark.parametrize("capability", [62, 90])
def test_what_is_dropped_is_not_read(kernels: ctypes.CDLL, kind: int, capability: int) -> None:
    """NaN in dropped rows of x reaches nothing but themselves; weights of a head that all drop are not read."""
    case = several_tiles(("token", "head"), 0, 1)
    case.masks["head"][:, 0] = 0
    case.weights["w_qkv"][:, 0] = np.nan
    case.weights["w_proj"][:, 0] = np.nan
    clean = {name: np.nan_to_num(value) for name, value in case.weights.items()}
    expected = run(Host(kernels, Device(capability, 2)), kind, replace(case, weights=clean))
    dropped = case.masks["token"] <= 0.5
    x = case.x.copy()
    x[dropped] = np.nan
    y = run(Host(kernels, Device(capability, 2)), kind, replace(case, x=x))
    assert np.isnan(y[dropped]).all()
    np.testing.assert_array_equal(y[~dropped], expected[~dropped])


@KINDS
def test_nan_is_not_hidden(kernels: ctypes.CDLL, kind: int) -> None:
    case = several_tiles(("token",), 0, 1)
    case.x[0, 0, 5] = np.nan  # the class token, which every kept row attends to
    y = run(Host(kernels, Device(90, 2)), kind, case)
    kept = case.masks["token"][0] > 0.5
    assert np.isnan(y[0][kept]).all() and not np.isnan(y[0][~kept]).any() and not np.isnan(y[1]).any()


@KINDS
def test_large_scores_do_not_overflow(kernels: ctypes.CDLL, kind: int) -> None:
    """Scores beyond what an exponential holds, in rising and in falling order of the keys."""
    case = several_tiles(("token",), 0, 1)
    ramp = np.linspace(-4, 4, case.x.shape[1], dtype=np.float32)
    case.x[0] += ramp[:, None] * np.sign(case.x[0, :1])
    case.x[1] -= ramp[:, None] * np.sign(case.x[1, :1])
    case.x[...] = case.x.astype(np.float16)
    case.weights["w_qkv"][:2] *= 5
    # Nearly all weight is on one key, and which one hangs on the rounding of halves.
    if kind == HALF:
        assert np.isfinite(run(Host(kernels, Device(90, 2)), kind, case)).all()
        assert np.isfinite(run(Host(kernels, Device(62, 2)), kind, case)).all()
    else:
        y, expected = run(Host(kernels, Device(62, 2)), kind, case), reference(case, kind)
        assert np.abs(y - expected).max() <= 2e-3 * np.abs(expected).max()


def test_refusals(kernels: ctypes.CDLL) -> None:
    good = [2, 9, 16, 2, 8, 32, 1, 1, 1, 1, 0]

    def refusal(change: dict[int, int], epsilon: float = 1e-6, scale: float = 0.125) -> str:
        sizes = [change.get(i, value) for i, value in enumerate(good)]
        said = kernels.dyn_check_transformer(integers(sizes), (ctypes.c_float * 2)(epsilon, scale), FLOAT)
        return "" if said is None else said.decode()

    assert refusal({}) == ""
    for change, words in (
        ({0: 0}, "x is empty"),
        ({1: 0}, "x is empty"),
        ({3: 0}, "no heads"),
        ({4: 0}, "no heads"),
        ({5: 0}, "no hidden units"),
        ({10: 3}, "head_mode"),
        ({2: 24}, "as wide as x"),
        ({5: 33, 10: 1}, "divide the hidden units"),
        ({0: 40000}, "65535"),
        ({0: 1000, 1: 1 << 20}, "too many tokens"),
        ({5: 1 << 30}, "too wide"),
    ):
        assert words in refusal(change), change
    assert refusal({2: 24, 10: 2}) == refusal({2: 24, 7: 0}) == ""
    assert "epsilon" in refusal({}, epsilon=-1.0) and "epsilon" in refusal({}, epsilon=float("nan"))
    assert "scale" in refusal({}, scale=0.0)


@pytest.mark.parametrize("names", VARIANTS, ids="-".join)
@pytest.mark.parametrize("reverse", [False, True])
def test_masks_for_timing_have_the_planned_rate(kernels: ctypes.CDLL, names: tuple[str, ...], reverse: bool) -> None:
    case = several_tiles(names, 1, 1)
    unread = {name: np.full_like(mask, np.nan) for name, mask in case.masks.items()}
    call = Prepared(Host(kernels, Device(87, 4, reverse)), HALF, replace(case, masks=unread))
    assert call.stand_in([700, 500, 400, 300]) == 1
    rates = {"token": 700, "head": 500, "attention": 400, "mlp": 300}
    for place, name in enumerate(MASKS, 1):
        if name not in names:
            assert not call.pointers[place]
            continue
        made = ctypes.cast(call.pointers[place], ctypes.POINTER(ctypes.c_float))
        mask = np.ctypeslib.as_array(made, case.masks[name].shape).copy()
        assert set(np.unique(mask)) <= {0.0, 1.0}
        assert mask.sum() == max(1, np.floor(mask.size * rates[name] / 1000 + 0.5))
        case.masks[name][...] = mask
    call.run()
    np.testing.assert_array_equal(call.result(), run(Host(kernels, Device(87, 4)), HALF, case))


@pytest.mark.parametrize(("capability", "kind"), [(62, FLOAT), (90, FLOAT), (62, HALF), (75, HALF), (90, HALF)])
def test_the_kernels_say_which_tiles_they_take(kernels: ctypes.CDLL, capability: int, kind: int) -> None:
    def choice(change: dict[int, int], processors: int) -> list[int]:
        good = {0: 1, 1: 197, 2: 384, 3: 6, 4: 64, 5: 1536, 7: 0, **change}
        out = integers([0] * 10)
        numbers = (ctypes.c_float * 2)(1e-6, 0.125)
        kernels.dyn_transformer_choice(
            integers([good.get(i, 1) for i in range(11)]), numbers, kind, capability, processors, out
        )
        return list(out)

    few, many = choice({}, 1), choice({}, 500)
    assert few[0] == many[0] == (8 if kind == HALF else 4)
    assert few[1] == many[1] == int(kind == HALF and capability >= 70)
    # Alone on its processor, a block of 16 rows (one warp) is no faster than one of 64 where that has four warps: of
    # floats. Of halves it has two.
    # The second one of lanes, of 32 rows, has two warps as well, against one.
    wmma, half_lanes = capability == 75, kind == HALF and capability < 70
    assert min(few[2:6]) >= (56 if half_lanes else 64) and max(many[2:6]) == (
        64 if kind == FLOAT else 32 if wmma or half_lanes else 16
    )
    assert set(choice({1: 12}, 1)[2:6]) == ({32} if wmma else {16, 32} if half_lanes else {16})
    # With heads the columns of qkv and of hidden units are gathered, which the largest tile has no registers for.
    assert choice({7: 1}, 1)[2:6:2] == ([56, 56] if half_lanes else [64, 64])
    assert choice({5: 1537}, 1)[0] == 1


def run_masker(
    host: Host,
    kind: int,
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    *,
    kept: int | None,
    epsilon: float | None,
) -> np.ndarray:
    """``kept`` None: of the class token; ``epsilon`` None: without normalisation."""
    batch, tokens, width = x.shape
    mask = host.put(np.full((batch, tokens if kept is not None else len(weight)), np.nan, np.float32))
    memory = [host.put(x.astype(np.float16 if kind == HALF else np.float32)), host.put(weight), host.put(bias)]
    function = host.library.dyn_class_token_masker if kept is None else host.library.dyn_token_masker
    sizes = integers([batch, tokens, width, len(weight) if kept is None else kept, int(epsilon is not None)])
    host.start()
    pointers = [ctypes.c_void_p(host.address(array)) for array in (*memory, mask)]
    assert function(sizes, ctypes.c_float(epsilon or 0.0), kind, *pointers, None) == 0
    return host.get(mask)


@KINDS
@QUICK
@given(data=st.data(), reverse=st.booleans())
def test_maskers(kernels: ctypes.CDLL, kind: int, data: st.DataObject, reverse: bool) -> None:
    host = Host(kernels, Device(reverse=reverse))
    batch, tokens = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 20))
    width = data.draw(st.sampled_from([1, 7, 8, 12, 64, 192, 250, 384]))
    outputs = data.draw(st.integers(1, 13))
    kept = data.draw(st.integers(0, 2))
    epsilon = data.draw(st.sampled_from([None, 1e-6, 1e-5]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    x = (rng.standard_normal((batch, tokens, width)) * 3 + 1).astype(np.float16).astype(np.float32)
    weight = rng.standard_normal((outputs, width)).astype(np.float32)
    bias = rng.standard_normal(outputs).astype(np.float32)
    options = {"normalise": epsilon is not None, "epsilon": epsilon or 0.0}
    logits = row_logits(x, weight[:1], bias[:1], **options)[..., 0]
    logits[:, :kept] = 1.0
    assert_bits(run_masker(host, kind, x, weight[:1], bias[:1], kept=kept, epsilon=epsilon), logits)
    logits = row_logits(x[:, 0], weight, bias, **options)
    assert_bits(run_masker(host, kind, x, weight, bias, kept=None, epsilon=epsilon), logits)


@KINDS
def test_maskers_keep_a_value_of_zero_and_no_nan(kernels: ctypes.CDLL, kind: int) -> None:
    x = np.zeros((1, 3, 8), np.float32)
    x[0, 1], x[0, 2] = -1, np.nan
    weight, bias = np.ones((1, 8), np.float32), np.zeros(1, np.float32)
    host = Host(kernels, Device())
    for kept, expected in ((0, [1, 0, 0]), (3, [1, 1, 1])):
        assert run_masker(host, kind, x, weight, bias, kept=kept, epsilon=None).tolist() == [expected]
    assert run_masker(host, kind, x, weight, bias, kept=None, epsilon=None).tolist() == [[1]]
    # A row without variance is the bias alone.
    assert run_masker(host, kind, x, weight, bias, kept=0, epsilon=1e-6).tolist() == [[1, 1, 0]]


OPERATORS_OF_BLOCKS = {
    name: spec for name, spec in OPERATORS.items() if spec.kind == "transformer_block" and "cuda" in spec.kernels
}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_operators_know_the_scratch_memory(kernels: ctypes.CDLL, data: st.DataObject) -> None:
    """What ``dyndeploy.ops`` says for builders that have no plugin library."""

    def draw(largest: int) -> int:
        return data.draw(st.integers(1, largest))

    spec = OPERATORS_OF_BLOCKS[data.draw(st.sampled_from(sorted(OPERATORS_OF_BLOCKS)))]
    kind, mode = data.draw(st.sampled_from([FLOAT, HALF])), draw(3) - 1
    heads, inner = draw(9), draw(70)
    width = heads * inner if mode == 0 else draw(400)
    sizes = {"N": draw(5), "T": draw(200), "D": width, "A": heads, "d": inner, "F": heads * draw(200)}
    masks = [int(name in spec.mask_inputs()) for name in ("token", "head", "attention")]
    block = integers([*sizes.values(), *masks, 1, mode])
    expected = kernels.dyn_transformer_workspace(block, (ctypes.c_float * 2)(1e-6, 0.125), kind)
    workspace = spec.kernels["tensorrt"].workspace
    assert workspace is not None
    assert workspace(sizes, {"head_mode": mode}, 2 if kind == HALF else 4) == expected


@KINDS
@pytest.mark.parametrize("mode", [0, 1, 2])
@pytest.mark.parametrize("name", sorted(OPERATORS_OF_BLOCKS))
def test_operators_agree_with_their_references(kernels: ctypes.CDLL, kind: int, name: str, mode: int) -> None:
    """With weights as the operator packs them, and its own reference."""
    spec = OPERATORS_OF_BLOCKS[name]
    case = random_case(Transformer(24, 3, 8, 36, mode % 2, mode, 1e-6, 0.35), 2, 11, {}, spec.mask_inputs(), mode)
    pack = spec.kernels["cuda"].pack
    assert pack is not None
    for port, value in pack(case.weights, {}).items():
        np.testing.assert_array_equal(packed(case.block, case.weights, FLOAT)[port], value)
    attributes = {"epsilon": 1e-6, "scale": 0.35, "token_mlp": mode % 2, "head_mode": mode}
    inputs = [case.x, *case.masks.values(), *case.weights.values()]
    expected = spec.reference(*map(torch.from_numpy, inputs), **attributes).numpy()
    y = check(Host(kernels, Device(90, 4)), kind, case, 90)
    assert np.abs(y - expected).max() <= (2e-5 if kind == FLOAT else 1e-2) * np.abs(expected).max()


EVERY_TILE = pytest.mark.parametrize("tiles", [0, 1, 2, 3])


@pytest.mark.gpu
@KINDS
@EVERY_TILE
@pytest.mark.parametrize(("names", "mode"), WITH_MODES)
def test_blocks_on_the_gpu(gpu: Gpu, kind: int, tiles: int, names: tuple[str, ...], mode: int) -> None:
    backend = Gpu(gpu.library, tiles)
    check(backend, kind, several_tiles(names, mode, mode % 2, wide=mode == 2), backend.capability or 90)


@pytest.mark.gpu
@KINDS
@EVERY_TILE
@QUICK
@given(case=cases())
def test_random_blocks_on_the_gpu(gpu: Gpu, kind: int, tiles: int, case: Case) -> None:
    backend = Gpu(gpu.library, tiles)
    check(backend, kind, case, backend.capability or 90)
