"""The plugins' numbers against PyTorch, without a GPU: TensorRT's calls, with the CUDA kernels' bodies on this machine.

Needs TensorRT's headers (see test_contract.py). The weights are repacked here as the TensorRT copy of a graph has them.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import subprocess
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dyndeploy.graphs.tensorrt_bytes import as_words, word_shape
from dyndeploy.ops import OPERATORS, Element, Role
from dyndeploy.ops.byte_conversions import quantize
from tests.ops.cases import CONVERSIONS, QUANTIZED, Case, build, in_integers
from tests.plugins.reference import (
    Layer,
    Transformer,
    bottleneck,
    channel_logits,
    random_weights,
    row_logits,
    spatial_logits,
    transformer,
    transformer_weights,
)
from tests.tensorrt.test_contract import HEADERS, HERE, NO_HEADERS, TOOLS

HOST_KERNELS = HERE.parents[1] / "plugins" / "kernels" / "cuda" / "host"
pytestmark = [
    pytest.mark.skipif(not TOOLS, reason="no cmake or no C++ compiler"),
    pytest.mark.skipif(not HEADERS, reason=NO_HEADERS),
    pytest.mark.skipif(not HOST_KERNELS.is_dir(), reason="the CUDA kernels have no host build"),
]
QUICK = settings(
    deadline=None,
    max_examples=12,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
Arrays = dict[str, np.ndarray]
MASKS = {
    "Spatial": ("spatial",),
    "Layer": ("spatial",),
    "Channel": ("channel",),
    "SpatialChannel": ("spatial", "channel"),
}


def newest(versions: list[str]) -> str:
    """The highest ``major.minor``; from 10 on it has both interfaces."""
    return max(versions, key=lambda version: tuple(map(int, version.split("."))))


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "tensorrt-host"
    folder.mkdir(exist_ok=True)
    options = [f"-DTENSORRT_INCLUDE_DIR={HEADERS[newest(list(HEADERS))]}", "-DTENSORRT_LIBRARY=NOTFOUND"]
    configure = ["cmake", "-S", str(HERE), "-B", str(folder), *options]
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one build for all workers of a test run
        configured = subprocess.run(configure, capture_output=True, text=True)
        if "no cuda_runtime_api.h" in configured.stdout:
            pytest.skip("no CUDA headers: set CUDA_HOME")
        assert configured.returncode == 0, configured.stderr
        command = ["cmake", "--build", str(folder), "--target", "plugins_on_host"]
        built = subprocess.run(command, capture_output=True, text=True)
        assert built.returncode == 0, built.stdout + built.stderr
    library = ctypes.CDLL(str(folder / "libplugins_on_host.so"))
    library.plugin_run.restype = ctypes.c_char_p
    return library


def run(
    library: ctypes.CDLL,
    interface: int,
    op: str,
    attributes: list[int | float],
    inputs: list[np.ndarray],
    output: np.ndarray,
) -> np.ndarray:
    """One call of the plugin; the output is full of NaN, or of ones, before. Real attributes go as bits of a float."""
    bits = [int(np.float32(v).view(np.int32)) if isinstance(v, float) else v for v in attributes]
    inputs = [np.ascontiguousarray(array) for array in inputs]
    output.fill(np.nan if output.dtype.kind == "f" else -1)
    tensors = [*inputs, output]
    kinds = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(np.int32): 2}
    shapes = [n for array in tensors for n in (kinds[array.dtype], array.ndim, *array.shape)]
    problem = library.plugin_run(
        interface,
        op.encode(),
        (ctypes.c_int32 * max(1, len(bits)))(*bits),
        (ctypes.c_int64 * len(shapes))(*shapes),
        (ctypes.c_void_p * len(tensors))(*[array.ctypes.data for array in tensors]),
    )
    assert problem is None, problem
    return output


def interfaces(library: ctypes.CDLL) -> list[int]:
    """2 for IPluginV2DynamicExt, 3 for IPluginV3."""
    return list(range(2, int(library.plugin_interfaces()) + 1))


def repack(layer: Layer, weights: Arrays, dtype: type, channel: bool) -> list[np.ndarray]:
    """The weight inputs of a node in the TensorRT copy, in order."""
    group, width = layer.groups, layer.middle // layer.groups
    w2 = weights["w2"].reshape(group, width, width, 3, 3).transpose(0, 3, 4, 2, 1).reshape(group, 9 * width, width)
    b1, b2, b3 = (weights[name] for name in ("b1", "b2", "b3"))
    packed = [weights["w1"].T.astype(dtype), b1, w2.astype(dtype), b2]
    if layer.squeeze:
        packed += [weights["ws"].T.astype(dtype), weights["bs"], weights["we"].T.astype(dtype), weights["be"]]
    packed += [weights["w3"].T.astype(dtype), b3]
    if layer.projection:
        packed += [weights["wd"].T.astype(dtype), weights["bd"]]
    if channel and not layer.squeeze:
        skipped = np.maximum(b1, 0).reshape(group, 1, width, 1, 1)
        taps = (weights["w2"].reshape(group, width, width, 3, 3) * skipped).sum(2).reshape(layer.middle, 3, 3)
        border = np.empty((16, layer.middle), np.float32)
        for bits in range(16):
            top, bottom, left, right = (bits >> shift & 1 for shift in range(4))
            border[bits] = b2 + taps[:, top : 3 - bottom, left : 3 - right].sum((1, 2))
        packed += [border, b3 + weights["w3"] @ np.maximum(b2, 0)]
    return packed


@st.composite
def layers(draw: st.DrawFn, projection: bool, excites: bool) -> tuple[Layer, int]:
    """A bottleneck and the number of its channel groups."""
    groups, channel_groups = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    inputs = draw(st.integers(1, 12))
    layer = Layer(
        inputs=inputs,
        middle=groups * channel_groups * draw(st.integers(1, 4)),
        outputs=draw(st.integers(1, 12)) if projection else inputs,
        stride=draw(st.sampled_from([1, 2])) if projection else 1,
        dilation=draw(st.integers(1, 2)),
        groups=groups,
        projection=projection,
        squeeze=draw(st.integers(1, 5)) if excites else 0,
    )
    return layer, channel_groups


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("excites", [False, True], ids=["", "SE"])
@pytest.mark.parametrize("mode", MASKS)
def test_bottleneck(plugins: ctypes.CDLL, mode: str, excites: bool, projection: bool, dtype: type) -> None:
    op = f"{mode}{'SE' if excites else ''}Bottleneck{'Projection' if projection else ''}"

    @QUICK
    @given(
        layers(projection, excites), st.tuples(*[st.integers(1, 9)] * 2), st.integers(1, 3), st.integers(0, 2**32 - 1)
    )
    def agree(drawn: tuple[Layer, int], size: tuple[int, int], batch: int, seed: int) -> None:
        layer, channel_groups = drawn
        rng = np.random.default_rng(seed)
        # Not negative, as the operators want it where a skipped pixel is x itself.
        x = np.abs(rng.standard_normal((batch, *size, layer.inputs))).astype(dtype).astype(np.float32)
        weights = random_weights(layer, rng)
        for name in ("w1", "w2", "w3", "wd", "ws", "we"):
            if name in weights:
                weights[name] = weights[name].astype(dtype).astype(np.float32)
        rows, columns = (-(-pixels // layer.stride) for pixels in size)
        patches = (1, 1) if mode == "Layer" else (int(rng.integers(1, rows + 1)), int(rng.integers(1, columns + 1)))
        masks = {
            "spatial": (rng.random((batch, 1, *patches)) < rng.random()).astype(np.float32),
            "channel": (rng.random((batch, channel_groups)) < rng.random()).astype(np.float32),
        }
        used = {f"{name}_mask": masks[name] for name in MASKS[mode]}
        pool_active = not excites or "Spatial" not in mode or bool(rng.integers(2))
        expected = bottleneck(layer, weights, x, **used, pool_active=pool_active)
        attributes: list[int | float] = [layer.stride] * 2 + [layer.dilation] * 6 + [layer.groups]
        attributes += [int(pool_active)] if excites and "Spatial" in mode else []
        inputs = [x.astype(dtype), *used.values(), *repack(layer, weights, dtype, "channel_mask" in used)]
        for interface in interfaces(plugins):
            y = run(plugins, interface, op, attributes, inputs, np.empty(expected.shape, dtype))
            scale = (6e-3 if dtype == np.float16 else 2e-5) * max(1.0, float(np.abs(expected).max()))
            np.testing.assert_allclose(y.astype(np.float64), expected, rtol=0, atol=scale)

    agree()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("op", ["SpatialMasker", "ChannelMasker", "ChannelMaskerHidden"])
def test_masker(plugins: ctypes.CDLL, op: str, dtype: type) -> None:
    @QUICK
    @given(st.tuples(*[st.integers(1, 9)] * 2), st.integers(1, 40), st.integers(1, 5), st.integers(0, 2**32 - 1))
    def agree(size: tuple[int, int], channels: int, groups: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((2, *size, channels)).astype(dtype).astype(np.float32)

        def linear(outputs: int, inputs: int) -> list[np.ndarray]:
            return [rng.standard_normal(shape).astype(np.float32) for shape in ((outputs, inputs), (outputs,))]

        attributes: list[int | float] = []
        if op == "SpatialMasker":
            rows, columns = (int(rng.integers(1, pixels + 1)) for pixels in size)
            attributes = [rows, columns]
            parameters = linear(groups, channels)
            logits = spatial_logits(x, parameters[0], parameters[1], (rows, columns))
        elif op == "ChannelMasker":
            parameters = linear(groups, channels)
            logits = channel_logits(x, *parameters)
        else:
            hidden, parameters = linear(7, channels), linear(groups, 7)
            logits = channel_logits(x, *parameters, *hidden)
            parameters = hidden + parameters
        for interface in interfaces(plugins):
            inputs = [x.astype(dtype), *parameters]
            mask = run(plugins, interface, op, attributes, inputs, np.empty(logits.shape, np.float32))
            assert set(np.unique(mask)) <= {0.0, 1.0}
            clear = np.abs(logits) > 1e-4
            np.testing.assert_array_equal(mask[clear], (logits >= 0)[clear])

    agree()


TRANSFORMERS = {
    name: spec for name, spec in OPERATORS.items() if spec.kind == "transformer_block" and "tensorrt" in spec.kernels
}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("op", TRANSFORMERS)
def test_transformer(plugins: ctypes.CDLL, op: str, dtype: type) -> None:
    """With weights as the operator itself packs them."""
    spec = TRANSFORMERS[op]
    kernel = spec.kernels["tensorrt"]
    assert kernel.pack is not None

    @QUICK
    @given(
        st.tuples(*[st.integers(1, 4)] * 2),
        st.integers(1, 9),
        st.integers(0, 1),
        st.integers(0, 2),
        st.integers(0, 2**32 - 1),
    )
    def agree(heads: tuple[int, int], tokens: int, token_mlp: int, mode: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        width = heads[0] * heads[1] if mode == 0 else int(rng.integers(1, 17))
        block = Transformer(width, *heads, heads[0] * int(rng.integers(1, 6)), token_mlp, mode, 1e-5, 0.25)
        x = rng.standard_normal((2, tokens, width)).astype(dtype).astype(np.float32)
        weights = transformer_weights(block, rng)
        rounded = {n: v.astype(dtype).astype(np.float32) if n in kernel.half else v for n, v in weights.items()}
        shapes = {"token": (2, tokens), "head": (2, heads[0]), "attention": (2, 1, 1, 1), "mlp": (2, 1, 1, 1)}
        masks = {n: (rng.random(shapes[n]) < rng.random()).astype(np.float32) for n in spec.mask_inputs()}
        expected = transformer(block, rounded, x, masks)
        assert kernel.pack is not None
        packed = kernel.pack(rounded, {})
        constants = [
            packed[port.name].astype(dtype if port.name in kernel.half else np.float32) for port in kernel.constants
        ]
        attributes: list[int | float] = [block.epsilon, block.scale, token_mlp, mode]
        for interface in interfaces(plugins):
            inputs = [x.astype(dtype), *masks.values(), *constants]
            y = run(plugins, interface, op, attributes, inputs, np.empty(x.shape, dtype))
            scale = (6e-3 if dtype == np.float16 else 2e-5) * max(1.0, float(np.abs(expected).max()))
            np.testing.assert_allclose(y.astype(np.float64), expected, rtol=0, atol=scale)

    agree()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("op", ["TokenMasker", "ClassTokenHeadMasker", "ClassTokenLayerMasker"])
def test_token_masker(plugins: ctypes.CDLL, op: str, dtype: type) -> None:
    @QUICK
    @given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 5), st.integers(0, 1), st.integers(0, 2**32 - 1))
    def agree(tokens: int, width: int, heads: int, normalise: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        outputs = heads if op == "ClassTokenHeadMasker" else 1
        kept = int(rng.integers(0, tokens + 1))
        x = rng.standard_normal((2, tokens, width)).astype(dtype).astype(np.float32)
        weight, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((outputs, width), (outputs,)))
        attributes: list[int | float] = [1e-5, normalise]
        logits = row_logits(x, weight, bias, normalise=bool(normalise), epsilon=1e-5)
        if op == "TokenMasker":
            attributes, weight, logits = [*attributes, kept], weight[0], logits[..., 0]
            logits[:, :kept] = 1.0
        else:
            logits = logits[:, 0].reshape((2, 1, 1, 1) if op == "ClassTokenLayerMasker" else (2, outputs))
        for interface in interfaces(plugins):
            mask = run(
                plugins, interface, op, attributes, [x.astype(dtype), weight, bias], np.empty(logits.shape, np.float32)
            )
            assert set(np.unique(mask)) <= {0.0, 1.0}
            clear = np.abs(logits) > 1e-4
            np.testing.assert_array_equal(mask[clear], (logits >= 0)[clear])

    agree()


PLAIN = [
    name
    for name, spec in OPERATORS.items()
    if "tensorrt" in spec.kernels and not spec.gates and not spec.decides and name not in CONVERSIONS
]
"""Operators that neither decide nor skip."""


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("op", PLAIN)
def test_reading_of_maps(plugins: ctypes.CDLL, op: str, dtype: type) -> None:
    @QUICK
    @given(st.integers(1, 2), st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**31))
    def agree(batch: int, channels: int, heads: int, seed: int) -> None:
        drawn = build(op, seed=seed, batch=batch, channels=channels, channel_groups=heads, size=(9, 7), stride=2)
        kinds = {Element.DATA: dtype, Element.FLOAT: np.float32, Element.INDEX: np.int32}
        ports = zip(drawn.spec.inputs, drawn.inputs, strict=True)
        inputs = [tensor.numpy().astype(kinds[port.element]) for port, tensor in ports]
        wide = [torch.from_numpy(value).to(tensor.dtype) for value, tensor in zip(inputs, drawn.inputs, strict=True)]
        expected = drawn.spec.reference(*wide, **drawn.attributes).numpy()
        values = [drawn.attributes[attribute.name] for attribute in drawn.spec.attributes]
        attributes = [int(n) for value in values for n in (value if isinstance(value, list) else [value])]
        for interface in interfaces(plugins):
            y = run(plugins, interface, op, attributes, inputs, np.empty(expected.shape, dtype))
            limit = 1e-3 if dtype == np.float16 else 2e-5
            np.testing.assert_allclose(y.astype(np.float32), expected, rtol=limit, atol=limit)

    agree()


IN_INTEGERS = [name for name, spec in OPERATORS.items() if name.startswith(QUANTIZED) and "tensorrt" in spec.kernels]


def in_words(case: Case) -> list[np.ndarray]:
    """What a plugin is given: bytes by four, weights as the operator packs them."""
    spec, kernel = case.spec, case.spec.kernels["tensorrt"]
    values = {port.name: value.numpy() for port, value in zip(spec.inputs, case.inputs, strict=True)}
    if kernel.pack is not None:
        weights = {port.name: values[port.name] for port in spec.inputs if port.role is Role.WEIGHT}
        values |= kernel.pack(weights, case.attributes)
    ports = spec.native_inputs("tensorrt")
    return [as_words(values[port.name]) if port.element.in_words else values[port.name] for port in ports]


@pytest.fixture
def orin(plugins: ctypes.CDLL) -> Iterator[ctypes.CDLL]:
    """The plugins on a GPU that multiplies bytes."""
    plugins.plugin_device(87, 16)
    yield plugins
    plugins.plugin_device(62, 2)


@pytest.mark.parametrize("name", IN_INTEGERS)
def test_operators_in_integers(orin: ctypes.CDLL, name: str) -> None:
    """To the bit."""
    plugins = orin
    for seed in range(3):
        sizes = {"batch": 2, "size": (9, 7), "channels": 16, "hidden": 32, "out_channels": 48, "group": 1 + seed % 2}
        case = in_integers(build(name.removeprefix(QUANTIZED), seed=seed, channel_groups=4, stride=2, **sizes), seed)
        expected = case.reference().numpy()
        attributes = [v for a in case.spec.attributes for v in np.atleast_1d(case.attributes[a.name]).tolist()]
        makes_bytes = expected.dtype == np.uint8
        shape = word_shape(case.spec.outputs[0].element, expected.shape)
        for interface in interfaces(plugins):
            output = np.empty(shape, np.int32 if makes_bytes else np.float32)
            y = run(plugins, interface, name, attributes, in_words(case), output)
            np.testing.assert_array_equal(y.view(np.uint8) if makes_bytes else y, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_where_bytes_begin_and_end(plugins: ctypes.CDLL, dtype: type) -> None:
    rng = np.random.default_rng(0)
    x, scale = (rng.standard_normal((2, 5, 3, 12)) * 4).astype(dtype), 0.037
    expected = quantize(torch.from_numpy(x), scale=scale).numpy()
    for interface in interfaces(plugins):
        words = run(plugins, interface, "QuantizeBytes", [scale], [x], np.empty((2, 5, 3, 3), np.int32))
        np.testing.assert_array_equal(words.view(np.uint8), expected)
        y = run(plugins, interface, "DequantizeBytes", [scale], [words], np.empty(x.shape, dtype))
        np.testing.assert_array_equal(y, (expected.astype(np.float32) * np.float32(scale)).astype(dtype))
