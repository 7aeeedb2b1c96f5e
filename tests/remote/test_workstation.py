"""A workstation over SSH: its card is known by its name, with a stand-in for nvidia-smi and those of ``fakes/``."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from dyndeploy.bundle import Bundle
from dyndeploy.cli import run
from dyndeploy.errors import UsageError
from dyndeploy.remote import DeviceClient, DeviceEntry, LocalTransport, agent, profile_on_device
from dyndeploy.remote.profiling import device_warnings, machine_name
from dyndeploy.runtimes import tensorrt_plan
from tests.remote.test_tensorrt import FAKES, OPTIONS, device_bundle

SMI = """#!/bin/sh
case "$*" in
  *--loop-ms*) while :; do echo "311.27, 61, 97, 2520, 10501"; sleep 0.05; done;;
  *compute_cap*) {newest};;
  *) echo "{name}, 470.82.01, 24564, 3105";;
esac
"""

needs_cmake = pytest.mark.skipif(
    shutil.which("cmake") is None or shutil.which("cc") is None, reason="needs cmake and a C compiler"
)


def card(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, capability: str | None = "8.9") -> None:
    """Put a card into this machine; without a capability its driver is too old to tell one."""
    newest = "echo 'Field \"compute_cap\" is not a valid field to query.'; exit 2"
    if capability is not None:
        newest = f'echo "{name}, 550.54.14, 24564, 3105, {capability}"'
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "nvidia-smi").write_text(SMI.format(name=name, newest=newest))
    (tools / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")


def connect(folder: Path) -> DeviceClient:
    return DeviceClient(LocalTransport(), work=str(folder / "agent"), pause=0.05)


@pytest.fixture
def workstation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DeviceClient:
    """This machine with an RTX 4090 and TensorRT 10.3."""
    card(tmp_path, monkeypatch, "NVIDIA GeForce RTX 4090")
    path = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", str(FAKES) + (f"{os.pathsep}{path}" if path else ""))
    monkeypatch.setenv("FAKE_TENSORRT", "10.3.0")
    monkeypatch.setattr(tensorrt_plan, "tensorrt_model", lambda model, types, rates, **_: model)
    return connect(tmp_path)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return device_bundle(tmp_path_factory.mktemp("workstation") / "bundle", "rtx4090", "89")


def test_what_a_card_says_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card(tmp_path, monkeypatch, "NVIDIA H200", "9.0")
    [found] = agent.find_gpus()
    assert found == {
        "name": "NVIDIA H200",
        "compute_capability": "9.0",
        "driver": "550.54.14",
        "memory_mb": 24564,
        "max_mhz": 3105,
    }
    card(tmp_path, monkeypatch, "Tesla V100-SXM2-16GB", None)
    [found] = agent.find_gpus()
    assert (found["name"], found["compute_capability"], found["driver"]) == ("Tesla V100-SXM2-16GB", None, "470.82.01")
    with connect(tmp_path) as client:
        facts = client.probe()
    assert facts["target"] == "v100" and machine_name(facts) == "Tesla V100-SXM2-16GB"
    assert facts["power_mode"] is None and facts["l4t"] is None


def test_sensors_of_a_card() -> None:
    sample = agent.parse_nvidia_smi("311.27, 61, 97, 2520, 10501\n")
    assert sample == {
        "total_mw": 311270,
        "total_rails": "the card (power.draw of nvidia-smi)",
        "temperatures_c": {"GPU": 61.0},
        "gpu_load": 97,
        "gpu_mhz": 2520,
        "emc_mhz": 10501,
    }
    assert agent.parse_nvidia_smi("[N/A], 61, [Not Supported], 2520, [N/A]") == {
        "temperatures_c": {"GPU": 61.0},
        "gpu_mhz": 2520,
    }
    for text in ("", "Unable to determine the device handle", "1, 2", "a, b, c, d, e"):
        assert agent.parse_nvidia_smi(text) == {}


def test_a_clock_that_moves_is_said() -> None:
    clocks = {"gpu": None, "cpu": {"min": 800000, "max": 4200000, "current": 900000, "fixed": False}}
    facts = {"target": "rtx4090", "power_mode": None, "clocks": clocks, "gpus": [{"name": "x"}]}
    assert device_warnings(facts, {"gpu_mhz": {"min": 2500, "max": 2520}}) == [], "no advice for boards"
    [note] = device_warnings(facts, {"gpu_mhz": {"min": 1900, "max": 2520}, "temperatures_c": {"GPU": 83.0}})
    assert "moved between 1900 and 2520 MHz under load (GPU reached 83 degrees Celsius)" in note
    assert "--lock-gpu-clocks=1900" in note


@needs_cmake
def test_a_profile_from_a_workstation(workstation: DeviceClient, bundle: Bundle) -> None:
    with workstation:
        report = profile_on_device(bundle, workstation, DeviceEntry("desk", "local:"), **OPTIONS)
    profile = report.profile
    assert list(report.steps) == ["plugins", "engine static", "engine dynamic", "engine forced", "verify", "profile"]
    assert (profile.device, profile.runtime["name"], profile.runtime["version"]) == ("rtx4090", "tensorrt", "10.3.0")
    assert profile.machine["gpu"] == "NVIDIA GeForce RTX 4090" and profile.machine["board"] == "rtx4090"
    summary = profile.machine["sensors"]["summary"]
    assert summary["power_mw"] == {"mean": 311270, "max": 311270} and summary["gpu_mhz"] == {"min": 2520, "max": 2520}
    facts = profile.machine["device_facts"]
    assert facts["Power"] == "311.27 W on average, 311.27 W at most (the card (power.draw of nvidia-smi))"
    assert "Power mode" not in facts and not any("jetson" in note for note in profile.machine["warnings"])


def test_bundles_for_another_card_are_refused(
    workstation: DeviceClient, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(entry: DeviceEntry) -> str:
        with connect(tmp_path) as client, pytest.raises(UsageError) as caught:
            profile_on_device(bundle, client, entry, **OPTIONS)
        return str(caught.value)

    desk = DeviceEntry("desk", "local:")
    card(tmp_path, monkeypatch, "NVIDIA GeForce RTX 3090", "8.6")
    assert refusal(desk) == (
        "The bundle was exported for rtx4090, and 'desk' is a rtx3090 (NVIDIA GeForce RTX 3090). Export it again with "
        "--target rtx3090."
    )
    assert "the device 'named' is a h200" in refusal(DeviceEntry("named", "local:", "h200"))
    card(tmp_path, monkeypatch, "NVIDIA T4", "7.5")
    assert "'desk' is NVIDIA T4: no known device" in refusal(desk)
    card(tmp_path, monkeypatch, "NVIDIA GeForce RTX 4090")
    monkeypatch.setenv("FAKE_TENSORRT", "8.0.1")
    assert "8.2 is the oldest that is supported" in refusal(desk)


def test_what_the_command_says_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    card(tmp_path, monkeypatch, "Tesla V100-SXM2-16GB", "7.0")
    monkeypatch.setenv("DYNDEPLOY_DEVICES", str(tmp_path / "devices.json"))
    assert run(["device", "add", "desk", "local:", "--work", str(tmp_path / "agent")]) == 0
    assert run(["device", "probe", "desk"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Tesla V100-SXM2-16GB (v100)" in out
    assert "Tesla V100-SXM2-16GB, compute capability 7.0, driver 550.54.14, memory MB 24564" in out


def test_a_tensorrt_that_no_longer_knows_the_card(
    workstation: DeviceClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card(tmp_path, monkeypatch, "Tesla V100-SXM2-16GB", "7.0")
    monkeypatch.setenv("FAKE_TENSORRT", "11.1.0")
    bundle = device_bundle(tmp_path / "v100", "v100", "70")
    with workstation, pytest.raises(UsageError, match=r"11\.1\.0, and TensorRT 10\.4 is the last release for Volta"):
        profile_on_device(bundle, workstation, DeviceEntry("desk", "local:"), **OPTIONS)
