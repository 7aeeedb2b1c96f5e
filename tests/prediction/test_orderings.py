"""Predictions of different devices, precisions and networks must be in an order that makes sense."""

from __future__ import annotations

import functools
import itertools

import pytest

from dyndeploy.prediction import Configuration, Estimator
from dyndeploy.prediction.architectures import static_names
from dyndeploy.targets.devices import Hardware, device_names, load_device

BOARDS = [name for name in device_names() if not load_device(name).is_local]
DEVICES = [*BOARDS, *(f"{name}@{mode}" for name in BOARDS for mode in load_device(name).slower)]
DYNAMIC = {
    f"{name} {mode}": (name, Configuration(mode, rate=0.5))
    for name, mode in itertools.product(
        ("laud_resnet50", "laud_resnet14_small"), ("static", "spatial", "channel", "layer")
    )
}
NETWORKS: dict[str, tuple[str, Configuration]] = {name: (name, Configuration()) for name in static_names()} | DYNAMIC


@functools.cache
def _estimator(device: str, precision: str) -> Estimator:
    return Estimator(device, precision=precision, batch=1)


@functools.cache
def _ms(device: str, network: str, precision: str) -> float:
    name, configuration = NETWORKS[network]
    return float(_estimator(device, precision).sweep(name, [configuration])[0])


def _rate(hardware: Hardware, precision: str) -> float:
    """Peak arithmetic rate of matrix products; 0 where it is not known."""
    rates = {
        "fp32": hardware.fp32_tflops,
        "fp16": hardware.fp16_tensor_tflops or hardware.fp16_tflops,
        "int8": hardware.int8_tensor_tops or hardware.int8_tops,
    }
    return rates[precision] or 0.0


def _twice(larger: str, smaller: str, precision: str) -> bool:
    """Whether a device has at least twice the arithmetic and bandwidth of another one, and no smaller a cache."""
    one, other = load_device(larger).hardware, load_device(smaller).hardware
    lanes = (one.fp16_tflops or 0) >= 2 * (other.fp16_tflops or 0) and one.fp32_tflops >= 2 * other.fp32_tflops
    rates = lanes and _rate(one, precision) >= 2 * _rate(other, precision) > 0
    return rates and one.dram_gb_per_s >= 2 * other.dram_gb_per_s and one.l2_mb >= other.l2_mb


@pytest.mark.parametrize("network", NETWORKS)
def test_a_device_with_twice_the_units_and_bandwidth_is_not_slower(network):
    # Of dynamic blocks that leave multiprocessors idle the clock and the machine code of an architecture decide.
    compared, alike = 0, 1.03 if network in DYNAMIC else 1.0
    for precision in ("fp32", "fp16", "int8"):
        for larger, smaller in itertools.permutations(DEVICES, 2):
            if _twice(larger, smaller, precision):
                compared += 1
                slow, fast = _ms(larger, network, precision), _ms(smaller, network, precision)
                assert slow <= fast * alike, (larger, smaller, precision)
    assert compared > 100


@pytest.mark.parametrize("network", NETWORKS)
def test_fewer_bits_are_not_slower_where_their_rate_is_not(network):
    for device in DEVICES:
        hardware = load_device(device).hardware
        known = [p for p in ("fp32", "fp16", "int8") if _rate(hardware, p)]
        for wide, narrow in itertools.pairwise(known):
            if _rate(hardware, narrow) >= _rate(hardware, wide):
                # Dynamic blocks in integers have launches more, which decide where kernels are short: lists, copies,
                # projections, weights that are gathered, and the conversions at both ends.
                alike = 1.35 if narrow == "int8" and network in DYNAMIC else 1.0
                assert _ms(device, network, narrow) <= alike * _ms(device, network, wide), (device, wide, narrow)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_faster_power_mode_is_not_slower(network):
    for name in BOARDS:
        for mode in load_device(name).slower:
            assert _ms(name, network, "fp16") <= _ms(f"{name}@{mode}", network, "fp16")
    # The same chip, more of it.
    assert _ms("orin_nx", network, "fp16") <= _ms("orin_nano", network, "fp16")
    assert _ms("agx_xavier", network, "fp16") <= _ms("xavier_nx", network, "fp16")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("runtime", [None, "pytorch"])
def test_static_and_dynamic_networks_are_predicted_in_one_runtime(device, runtime):
    estimator = Estimator(device, batch=1, runtime=runtime)
    found = {estimator.predict(name, configuration).runtime for name, configuration in DYNAMIC.values()}
    assert found | {estimator.predict("resnet50").runtime} == {runtime or "tensorrt"}


def test_a_prediction_says_its_power_mode():
    predicted = Estimator("orin_nano@15W", precision="fp16", batch=1).predict("resnet50")
    assert predicted.device == "orin_nano@15W" and "power mode 15W" in predicted.basis
    assert "power mode MAXN_SUPER" in Estimator("orin_nano", batch=1).predict("resnet50").basis
