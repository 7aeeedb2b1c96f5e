from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyndeploy.errors import UsageError
from dyndeploy.prediction import AnalyticalModel, Rates, device_model, own_kernels, static_graph
from dyndeploy.prediction.kernels import Kernel, conv_kernel, gemm_kernel, moving_kernel
from dyndeploy.targets import device_names, load_device
from dyndeploy.targets.devices import Device
from tests.prediction.calls import bottleneck

GPUS = [name for name in device_names() if not load_device(name).is_local]


def _ms(device: str, *kernels: Kernel, precision: str = "fp32", runtime: str = "tensorrt", graph: bool = True) -> float:
    return float(AnalyticalModel(load_device(device), precision, runtime, graph=graph).price(kernels)[0].sum())


def _conv(batch: int = 1, cin: int = 64, cout: int = 64, side: int = 28, kernel: int = 3, **options: object) -> Kernel:
    size = (side, side)
    return conv_kernel(
        "c", None, batch=batch, cin=cin, cout=cout, size=size, out_size=size, kernel=(kernel, kernel), **options
    )  # type: ignore[arg-type]


@settings(max_examples=80, deadline=None)
@given(
    device=st.sampled_from(GPUS),
    precision=st.sampled_from(["fp32", "fp16"]),
    batch=st.integers(1, 64),
    cin=st.integers(1, 512),
    cout=st.integers(1, 512),
    side=st.integers(1, 64),
    kernel=st.sampled_from([1, 3, 5]),
)
def test_no_kernel_beats_the_hardware(device, precision, batch, cin, cout, side, kernel):
    model, hardware = AnalyticalModel(load_device(device), precision), load_device(device).hardware
    conv = _conv(batch, cin, cout, side, kernel, precision=precision)
    (ms,), (low,), (high,) = model.price([conv])
    peak = max(hardware.fp16_tensor_tflops or 0, hardware.fp16_tflops) if precision == "fp16" else hardware.fp32_tflops
    # Winograd saves products, at most 2.25 of them to one.
    assert ms >= conv.macs / (2.25 * peak * 5e11) * 1e3
    assert low <= ms <= high
    if conv.bytes > 4 * (hardware.l2_mb or 0) * 2**20:
        assert ms >= 0.5 * conv.bytes / hardware.dram_gb_per_s / 1e6


@settings(max_examples=60, deadline=None)
@given(
    device=st.sampled_from(GPUS),
    batch=st.integers(1, 32),
    more=st.integers(1, 32),
    channels=st.integers(8, 256),
    side=st.integers(2, 40),
)
def test_more_images_never_take_less_time(device, batch, more, channels, side):
    few, many = (_ms(device, _conv(images, channels, channels, side)) for images in (batch, batch + more))
    assert many >= few * (1 - 1e-9)


def test_a_large_product_reaches_the_efficiency_and_no_more():
    for device, precision in (("tx2", "fp32"), ("a100", "fp16"), ("h100", "fp16")):
        model = AnalyticalModel(load_device(device), precision, "pytorch")
        hardware = load_device(device).hardware
        peak = hardware.fp32_tflops if precision == "fp32" else hardware.fp16_tensor_tflops
        product = gemm_kernel("g", None, rows=8192, cin=8192, cout=8192, precision=precision)
        reached = product.macs / model.price([product])[0][0] / peak / 5e8
        assert 0.57 < reached <= 0.6


def test_waves_are_whole_numbers():
    """On 132 multiprocessors a tile more than a full wave costs a whole wave more."""
    sms = load_device("h100").hardware.sms

    def arithmetic(tiles: int) -> float:
        product = gemm_kernel("g", None, rows=128 * tiles, cin=512, cout=128, precision="fp16")
        return _ms("h100", product, precision="fp16") - 0.0013

    assert arithmetic(sms) == pytest.approx(arithmetic(sms - 8), rel=1e-9)
    assert arithmetic(sms + 1) > 1.2 * arithmetic(sms)
    assert arithmetic(2 * sms) == pytest.approx(2 * arithmetic(sms), rel=1e-9)


def test_precision_and_tensor_cores():
    conv = {p: _conv(64, 256, 256, 28, precision=p) for p in ("fp32", "fp16", "int8")}
    for device in ("agx_xavier", "agx_orin", "a100"):
        assert _ms(device, conv["fp32"]) > 3 * _ms(device, conv["fp16"], precision="fp16")
    assert _ms("agx_orin", conv["fp16"], precision="fp16") > 1.5 * _ms("agx_orin", conv["int8"], precision="int8")
    ratio = _ms("nano", conv["fp32"]) / _ms("nano", conv["fp16"], precision="fp16")
    assert 1.6 < ratio <= 2.0  # twice the lanes, less the settling of sums
    with pytest.raises(UsageError, match="no INT8 arithmetic"):
        AnalyticalModel(load_device("tx2"), "int8")
    with pytest.raises(UsageError, match="calibrate-device"):
        AnalyticalModel(load_device("cpu"))


def test_what_no_source_states_widens_the_interval():
    conv = [_conv(64, 512, 512, 28, precision="fp16")]
    orin = load_device("agx_orin")
    unknown = dataclasses.replace(orin, hardware=dataclasses.replace(orin.hardware, fp16_tensor_tflops=None))
    (ms,), (low,), _ = AnalyticalModel(unknown, "fp16", "tensorrt").price(conv)
    (known,), (known_low,), _ = AnalyticalModel(orin, "fp16", "tensorrt").price(conv)
    assert low / ms < 0.5 * known_low / known


def test_int8_is_refused_where_no_source_states_its_rate():
    with pytest.raises(UsageError, match="No source states how fast NVIDIA Jetson Thor T5000 computes in INT8"):
        AnalyticalModel(load_device("thor"), "int8")
    known = {name for name in GPUS if load_device(name).hardware.int8 is not False} - {"thor"}
    assert known == set(GPUS) - {"nano", "tx2", "thor"}
    for name in known:
        AnalyticalModel(load_device(name), "int8")


def test_int8_without_tensor_cores_takes_the_rate_of_dp4a():
    product = gemm_kernel("g", None, rows=8192, cin=8192, cout=8192, precision="int8")
    reached = 2e-9 * product.macs / _ms("v100", product, precision="int8")
    assert reached == pytest.approx(0.6 * 62.7, rel=0.03)


def test_weights_come_from_memory_unless_all_of_them_fit_the_cache():
    small = gemm_kernel("g", None, rows=1, cin=1024, cout=1024)
    large = gemm_kernel("h", None, rows=1, cin=4096, cout=16384)
    for device, fits in (("rtx4090", True), ("nano", False)):
        model = AnalyticalModel(load_device(device), "fp32", "tensorrt")
        alone, beside = model.price([small])[0][0], model.price([small, large])[0][0]
        assert (alone < 0.7 * beside) == fits


def test_a_map_that_fits_the_cache_is_not_read_from_memory():
    relu = {n: moving_kernel("r", None, "elementwise", read=n, written=n) for n in (10**6, 10**8)}
    hardware = load_device("a100").hardware
    small, large = (_ms("a100", relu[n]) - 0.0013 for n in (10**6, 10**8))
    assert large == pytest.approx(8 * 10**8 / (0.8 * hardware.dram_gb_per_s * 1e6), rel=1e-3)
    assert small == pytest.approx(8 * 10**6 / (hardware.l2_gb_per_s * 1e6), rel=1e-3)


def test_launches_and_dispatch():
    nothing = moving_kernel("r", None, "elementwise", read=1, written=1)
    assert _ms("v100", nothing) == pytest.approx(0.0013, rel=1e-3), "a node of a CUDA graph"
    assert _ms("v100", nothing, graph=False) == pytest.approx(0.003, rel=1e-3)
    assert _ms("v100", nothing, runtime="onnxruntime") == pytest.approx(0.003, rel=1e-3), "which runs no graph"
    assert _ms("v100", nothing, runtime="pytorch") == pytest.approx(0.010, rel=1e-3)
    assert _ms("nano", nothing) == _ms("nano", nothing, graph=False) == pytest.approx(0.008, rel=1e-3)


def test_gaps_between_the_launches_of_an_operator():
    """From sm_90 on all but the first begin early; from sm_80 on one image's lists are made by conv1."""

    def gaps(device: str, kernel: Kernel, **options: Any) -> tuple[int, float]:
        count, ms = AnalyticalModel(load_device(device), **{"precision": "fp16"} | options).gaps([kernel])
        return count, pytest.approx(ms)

    assert gaps("h200", _bottleneck()) == (3, 1.3e-3 + 2 * 0.34e-3)
    assert gaps("h200", _bottleneck(batch=2)) == (4, 1.3e-3 + 3 * 0.34e-3)
    assert gaps("h200", _bottleneck(), graph=False) == (3, 3e-3 + 2 * 2.04e-3)
    assert gaps("h200", _bottleneck(), runtime="pytorch") == (3, 9e-3)
    assert gaps("h200", _bottleneck(), precision="fp32") == (4, 1.3e-3 + 3 * 0.34e-3)
    assert gaps("h200", _bottleneck("spatial_channel")) == (4, 1.3e-3 + 3 * 0.34e-3)
    assert gaps("a100", _bottleneck()) == (3, 3.9e-3)
    assert gaps("v100", _bottleneck()) == (4, 5.2e-3)
    assert gaps("agx_orin", _bottleneck()) == (3, 24e-3), "no figure of a graph was found of boards"
    assert gaps("nano", _bottleneck()) == (6, 48e-3), "Winograd's algorithm in three launches"


def test_a_launch_that_joins_another_is_paid_for(monkeypatch):
    """Lists within conv1, with nothing to copy: one gap less, and the cycles in which a block finds its rows more."""
    kernel, device = _bottleneck(rates=Rates(1.0)), load_device("a100")
    joined = _ms("a100", kernel, precision="fp16")
    monkeypatch.setattr(device_model, "_JOINS_FROM", 99.0)
    apart = _ms("a100", kernel, precision="fp16")
    assert device.hardware.boost_mhz
    expected = 1.3e-3 - own_kernels.OPENING_CYCLES / device.hardware.boost_mhz * 1e-3
    assert apart - joined == pytest.approx(expected, abs=2e-5), (
        "a wave of blocks; the lists' bytes take next to nothing"
    )


def test_groups_that_run_one_by_one():
    conv = _conv(1, 256, 256, 28, groups=32)
    device = load_device("tx2")
    (ms,), (low,), (high,) = AnalyticalModel(device).price([conv])
    (slow,), (least,), _ = AnalyticalModel(device, groups_in_turn=True).price([conv])
    assert slow - ms == pytest.approx(31 * device.model.group_launch_us * 1e-3)
    assert least == low and high > slow  # which of the two a runtime does is not known


def _bottleneck(kind: str = "spatial", batch: int = 1, **options: object) -> Kernel:
    given: dict[str, object] = {"mask_size": (14, 14), "rates": Rates(0.5, 0.5), "channel_groups": 64} | options
    return bottleneck(kind, batch=batch, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["spatial", "layer", "channel", "spatial_channel"])
@pytest.mark.parametrize(("device", "batch"), [("nano", 1), ("agx_orin", 1), ("h100", 16)])
def test_a_dynamic_block_costs_more_at_higher_rates(kind, device, batch):
    mask, rates = (14, 14) if "spatial" in kind else (1, 1), (0.0, 0.25, 0.5, 0.75, 1.0)
    times = [_ms(device, _bottleneck(kind, batch, mask_size=mask, rates=Rates(r, r))) for r in rates]
    assert times[0] < times[2] < times[4]
    # A block that computes nothing still lists its pixels and copies its input.
    assert times[0] > 0.003


def test_tiles_that_run_all_at_once_take_as_long_as_one():
    """One image of 28 x 28 is fewer tiles than an H100 has multiprocessors: there a mask of patches saves nothing."""
    half, every = (_ms("h100", _bottleneck(rates=Rates(rate))) for rate in (0.5, 1.0))
    assert half == pytest.approx(every, rel=0.01)


def test_a_skipped_layer_is_all_or_nothing():
    on, half, off = (_ms("tx2", _bottleneck("layer", mask_size=(1, 1), rates=Rates(r))) for r in (1.0, 0.5, 0.0))
    assert half == pytest.approx((on + off) / 2, rel=1e-3)


def test_a_batch_pays_for_its_slowest_image():
    same = _bottleneck("channel", 8, rates=Rates(1.0, 0.5, channel_slowest=0.5))
    one = _bottleneck("channel", 8, rates=Rates(1.0, 0.5, channel_slowest=1.0))
    expected = _bottleneck("channel", 8, rates=Rates(1.0, 0.5))
    assert _ms("h100", same) < _ms("h100", expected) < _ms("h100", one)
    alone = (
        _bottleneck("channel", 1, rates=Rates(1.0, 0.5)),
        _bottleneck("channel", 1, rates=Rates(1.0, 0.5, channel_slowest=1.0)),
    )
    assert _ms("h100", alone[0]) == _ms("h100", alone[1])


def test_dilation_costs():
    near, far = (bottleneck(dilation=dilation, mask_size=(7, 7), rates=Rates(0.3)) for dilation in (1, 4))
    assert near.features["rate_conv1"] < far.features["rate_conv1"]
    assert _ms("tx2", near) < _ms("tx2", far)


def test_unknown_kernels_are_priced_by_their_bytes_with_a_wide_interval():
    kernel = moving_kernel("u", None, "unknown:Roi", read=10**7, written=10**7)
    known = moving_kernel("u", None, "elementwise", read=10**7, written=10**7)
    model = AnalyticalModel(load_device("tx2"))
    (ms, other), (low, other_low), (high, other_high) = model.price([kernel, known])
    assert ms == other
    assert high / low > 3 * other_high / other_low


def test_runs_priced_together_are_as_priced_alone():
    model = AnalyticalModel(load_device("h100"), "fp16")
    graphs = [static_graph(name, precision="fp16", batch=4) for name in ("resnet18", "vgg16", "mobilenet_v3_large")]
    alone = np.concatenate([model.price(graph.kernels)[0] for graph in graphs])
    resident = [sum(kernel.weight_bytes for kernel in graph.kernels) for graph in graphs]
    together = model.price(
        [kernel for graph in graphs for kernel in graph.kernels],
        np.repeat(resident, [len(graph.kernels) for graph in graphs]),
    )[0]
    np.testing.assert_allclose(alone, together, rtol=1e-12)
    assert all(values.shape == (0,) for values in model.price([]))


def test_another_runtime_leaves_fitted_constants_behind():
    device: Device = load_device("rtx3090")
    own, other = AnalyticalModel(device, "fp16", "pytorch"), AnalyticalModel(device, "fp16", "tensorrt")
    assert "memory_efficiency fitted to published PyTorch" in own.basis and "nothing fitted to tensorrt" in other.basis
    kernel = [moving_kernel("r", None, "elementwise", read=10**8, written=10**8, precision="fp16")]
    assert own.price(kernel)[0][0] < other.price(kernel)[0][0]
