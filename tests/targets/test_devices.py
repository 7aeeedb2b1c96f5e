from __future__ import annotations

import pytest

from dyndeploy.errors import InputError, UsageError
from dyndeploy.targets import load_target, target_names
from dyndeploy.targets.devices import device_names, device_of_gpu, load_device, read_device

#: PEs, lanes, MHz, GB/s, L2 factor, batch, peak TMAC/s of the reference code's device table.
_REFERENCE = {
    "v100": (80, 64, 1500, 700, 4, 128, 7.68),
    "rtx3090": (82, 128, 1250, 936, 1, 128, 13.12),
    "rtx3060": (28, 128, 1777, 360, 4, 128, 6.37),
    "tx2": (2, 128, 1300, 59.7, 4, 1, 0.333),
    "nano": (1, 128, 921, 25.6, 4, 1, 0.118),
}


_NAMES = (
    "nano", "tx2", "xavier_nx", "agx_xavier", "orin_nano", "orin_nx", "agx_orin", "thor", "v100", "a100", "h100",
    "h200", "rtx3060", "rtx3090", "rtx4090", "rtx5090", "cpu",
)  # fmt: skip


def test_all_devices_exist():
    assert device_names() == sorted(_NAMES)
    assert {name for name in _NAMES if load_device(name).laudnet is not None} == set(_REFERENCE)
    with pytest.raises(UsageError, match="knows nothing of h100, only nano, rtx3060"):
        load_device("h100").reference()


@pytest.mark.parametrize("name", _NAMES)
def test_every_figure_has_a_source_and_at_most_two_constants_are_fitted(name):
    device = load_device(name)
    assert device.hardware.source and device.model.source
    assert device.is_local == (name == "cpu")
    assert len(device.model.fitted) <= 2
    for constant in device.model.fitted:
        assert getattr(device.model, constant) > 0 and constant in device.model.source
    for efficiency in (device.model.compute_efficiency, device.model.memory_efficiency):
        assert efficiency is None or 0 < efficiency <= 1


@pytest.mark.parametrize("name", sorted(_REFERENCE))
def test_parameters_are_those_of_the_reference(name):
    device = load_device(name)
    p = device.laudnet
    pes, lanes, mhz, bandwidth, l2, batch, peak = _REFERENCE[name]
    assert (p.n_pes, p.pe_fp32s, p.l2_speed_frac, p.batch_size) == (pes, lanes, l2, batch)
    assert (p.frequency_hz / 1e6, p.mem_bandwidth_bytes_per_s / 1e9) == (mhz, bandwidth)
    assert (p.fp32_cycles, p.mem_concurrent_fp32, p.memory_efficiency, p.launch_time_s) == (4, 8, 0.9, 8e-6)
    assert p.peak_macs_per_s / 1e12 == pytest.approx(peak, rel=2e-3)
    assert p.source
    assert device.hardware.source


def test_hardware_figures_are_consistent():
    for name in device_names():
        hardware = load_device(name).hardware
        if name == "cpu":
            continue
        if hardware.boost_mhz is not None:
            lanes = hardware.sms * hardware.fp32_lanes_per_sm
            assert 2e-6 * lanes * hardware.boost_mhz == pytest.approx(hardware.fp32_tflops, rel=3e-3)
        assert hardware.fp16_tflops >= hardware.fp32_tflops
        for slower in load_device(name).slower.values():
            scale = slower.hardware.boost_mhz / hardware.boost_mhz
            for rate in ("fp32_tflops", "fp16_tflops", "fp16_tensor_tflops", "int8_tensor_tops"):
                assert getattr(slower.hardware, rate) == pytest.approx(scale * getattr(hardware, rate), rel=6e-3)
    # Volta has one tensor rate for each multiprocessor, Orin one for each tensor core.
    v100, xavier = load_device("v100").hardware, load_device("agx_xavier").hardware
    assert xavier.fp16_tensor_tflops / xavier.sms / xavier.boost_mhz == pytest.approx(
        v100.fp16_tensor_tflops / v100.sms / v100.boost_mhz, rel=5e-3
    )
    for name in ("orin_nano", "orin_nx"):
        orin, agx = load_device(name).hardware, load_device("agx_orin").hardware
        assert orin.int8_tensor_tops == pytest.approx(2 * orin.fp16_tensor_tflops, rel=5e-3)
        assert orin.int8_tensor_tops / orin.tensor_cores / orin.boost_mhz == pytest.approx(
            agx.int8_tensor_tops / agx.tensor_cores / agx.boost_mhz, rel=5e-3
        )
    # No source found.
    assert load_device("thor").hardware.boost_mhz is None and load_device("thor").hardware.int8_tensor_tops is None
    assert load_device("nano").hardware.int8 is False
    # Volta's tensor cores know no INT8.
    assert load_device("v100").hardware.int8_tensor_tops is None
    assert load_device("v100").hardware.int8_tops == pytest.approx(
        4 * load_device("v100").hardware.fp32_tflops, rel=2e-3
    )
    for name in set(device_names()) - {"cpu", "v100", "thor", "nano", "tx2"}:
        hardware = load_device(name).hardware
        assert hardware.int8_tensor_tops == pytest.approx(2 * hardware.fp16_tensor_tflops, rel=0.03)


def test_a_board_in_another_power_mode():
    nano, nx = load_device("orin_nano"), load_device("orin_nx")
    assert (nano.hardware.power_mode, nx.hardware.power_mode) == ("MAXN_SUPER", "MAXN_SUPER")
    slow = load_device("Orin_Nano@15w")
    assert (slow.name, slow.board, slow.hardware.power_mode) == ("orin_nano@15W", "orin_nano", "15W")
    assert (slow.hardware.boost_mhz, slow.hardware.dram_gb_per_s) == (625, 68.2)
    assert slow.hardware.sms == nano.hardware.sms and slow.model == nano.model
    assert load_device("orin_nx@maxn_super") is nx
    with pytest.raises(UsageError, match=r"power mode of orin_nx '30w'.*Known: MAXN, MAXN_SUPER"):
        load_device("orin_nx@30W")
    with pytest.raises(UsageError, match="Nothing is known of power modes of h100"):
        load_device("h100@MAXN")


@pytest.mark.parametrize("name", _NAMES)
def test_the_power_mode_is_that_in_which_the_target_is_measured(name):
    """A board is predicted in the mode that 'profile' asks for."""
    if name in target_names() and load_target(name).power_modes:
        assert load_device(name).hardware.power_mode == load_target(name).power_modes[0].name


def test_one_runtime_for_every_kind_of_network():
    assert {name: load_device(name).runtime for name in _NAMES} == {
        name: "onnxruntime" if name == "cpu" else "tensorrt" for name in _NAMES
    }


def test_a_gpu_by_its_own_name():
    assert device_of_gpu("NVIDIA H200") == "h200"
    assert device_of_gpu("NVIDIA A100-SXM4-80GB") == "a100"
    assert device_of_gpu("NVIDIA Tegra X1") == "nano"
    # The Ti is another chip; two boards with a Xavier call their GPU the same.
    assert device_of_gpu("NVIDIA GeForce RTX 3090 Ti") is None
    assert device_of_gpu("Xavier") is None


def test_aliases_and_case():
    assert load_device("3090") is load_device("rtx3090")
    assert load_device("3060").name == "rtx3060"
    assert load_device("V100").name == "v100"


def test_unknown_device_suggests_the_nearest():
    with pytest.raises(UsageError, match=r"Unknown device 'rtx309'\. Did you mean 'rtx3090'"):
        load_device("rtx309")


def test_own_device_file(tmp_path):
    text = 'name = "mine"\ntitle = "Mine"\n[model]\nsource = "me"\nruntime = "tensorrt"\n'
    text += '[laudnet]\nsource = "me"\nn_pes = 4\npe_fp32s = 64\nfrequency_hz = 1e9\n'
    rest = "mem_bandwidth_bytes_per_s = 5e10\nl2_speed_frac = 4\nfp32_cycles = 4\nmem_concurrent_fp32 = 8\n"
    rest += 'memory_efficiency = 0.9\nlaunch_time_s = 8e-6\nbatch_size = 1\n[hardware]\nsource = "none"\n'
    path = tmp_path / "mine.toml"
    path.write_text(text + rest)
    assert read_device(path).laudnet.peak_macs_per_s == 256e9
    path.write_text(text)
    with pytest.raises(InputError, match="hardware"):
        read_device(path)
    path.write_text(text + rest.replace("batch_size = 1", "batchsize = 1"))
    with pytest.raises(InputError, match="unknown keys: batchsize"):
        read_device(path)
    path.write_text(text + rest.replace("batch_size = 1", ""))
    with pytest.raises(InputError, match="batch_size"):
        read_device(path)
    path.write_text(text + rest.replace("fp32_cycles = 4", "fp32_cycles = 0"))
    with pytest.raises(InputError, match="fp32_cycles must be positive"):
        read_device(path)
    path.write_text("name = [")
    with pytest.raises(InputError, match="not valid TOML"):
        read_device(path)
    with pytest.raises(InputError, match="Cannot read"):
        read_device(tmp_path / "absent.toml")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_device_files_of_other_editors(tmp_path, encoding):
    from dyndeploy.targets import devices

    text = (devices._FOLDER / "nano.toml").read_text()
    (tmp_path / "mine.toml").write_bytes(text.replace("\n", "\r\n").encode(encoding))
    assert read_device(tmp_path / "mine.toml") == load_device("nano")


def test_the_fastest_modes_are_told_of_every_board():
    for name in target_names():
        modes = load_target(name).power_modes
        jetson = "Jetson" in load_target(name).title
        assert bool(modes) == jetson and (not modes or modes[-1].since == "")
