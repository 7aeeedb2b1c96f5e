"""Millijoules per image: from recorded lines of the boards' tools to profile, comparison and page."""

from __future__ import annotations

import copy
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from dyndeploy import ExportSettings, export_model
from dyndeploy.bundle import Bundle
from dyndeploy.cli import run
from dyndeploy.errors import InputError
from dyndeploy.measure import Profile, load_profile
from dyndeploy.measure.energy import Energy, EnergyEntry
from dyndeploy.measure.exits import ExitProfile
from dyndeploy.measure.load_exits import load_exit_profile
from dyndeploy.remote import DeviceClient, DeviceEntry, agent, profile_exits_on_device, profile_on_device
from dyndeploy.reporting import render_report
from dyndeploy.reporting.exit_profile import render_exit_profile_report
from tests.remote.test_exits import plain

DATA = Path(__file__).parent / "data"
IDLE_MW, LOADED_MW = 2545, 7654  # POM_5V_IN in the first two lines of the Nano's file


def tool(folder: Path, name: str, body: str) -> Path:
    """A program that says something ten times in a tenth of a second's time, until it is ended."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\nwhile :; do {body}; sleep 0.02; done\n")
    path.chmod(0o755)
    return path


def tegrastats(folder: Path, board: str = "nano") -> Path:
    """A board's tool: the recorded line of an idle board, and the next one once the file ``loaded`` is there."""
    lines = (DATA / f"tegrastats_{board}.txt").read_text().splitlines()
    for name, line in (("idle", lines[0]), ("busy", lines[min(1, len(lines) - 1)])):
        (folder / name).write_text(line + "\n")
    files = {name: folder / name for name in ("idle", "busy", "loaded")}
    return tool(
        folder, "tegrastats", f"if [ -e {files['loaded']} ]; then cat {files['busy']}; else cat {files['idle']}; fi"
    )


def quiet(message: str, fraction: float) -> None:
    del message, fraction


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the agent's tools are; comes before a client, whose agent inherits it."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def test_power_is_that_of_the_time_in_which_something_ran(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tegrastats(tools)
    monkeypatch.setattr(agent, "SETTLE_SECONDS", 0.2)

    def busy() -> None:
        (tools / "loaded").touch()
        time.sleep(0.01)

    def nothing() -> None:
        (tools / "loaded").unlink(missing_ok=True)
        time.sleep(0.02)

    found = agent.measure_energy([("busy", [busy, busy]), ("nothing", [nothing])], 0.8, False, quiet)
    assert found is not None
    assert (found["source"], found["rail"], found["idle_mw"]) == ("tegrastats", "POM_5V_IN", IDLE_MW)
    first, second = found["entries"]
    assert (first["power_mw"], second["power_mw"]) == (LOADED_MW, IDLE_MW)
    assert first["runs"] % 2 == 0 and first["ms"] >= 10 and second["ms"] >= 20 and first["readings"] >= 3


@pytest.mark.parametrize(("board", "rail"), [("agx_orin", "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"), ("tx2", "VDD_IN")])
def test_the_rail_of_each_board_is_named(board: str, rail: str, tools: Path) -> None:
    tegrastats(tools, board)
    found = agent.measure_energy([("x", [lambda: time.sleep(0.01)])], 0.4, False, quiet)
    assert found is not None and found["rail"] == rail


def test_without_a_sensor_there_is_none(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [("x", [lambda: time.sleep(0.01)])]
    monkeypatch.setattr(agent, "tool", lambda name: None)
    assert agent.measure_energy(entries, 0.4, True, quiet) is None
    path = tool(tools, "tegrastats", "echo RAM 1/2MB CPU [1%@2]")
    monkeypatch.setattr(agent, "tool", lambda name: str(path) if name == "tegrastats" else None)
    assert agent.measure_energy(entries, 0.4, True, quiet) is None
    assert agent.measure_energy(entries, 0, True, quiet) is None


def test_a_gpu_without_rails_is_read_by_nvidia_smi(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tool(tools, "nvidia-smi", "echo 71.25, 40, 90, 1800, 5000")
    monkeypatch.setattr(agent, "tool", lambda name: str(path) if name == "nvidia-smi" else None)
    entries = [("x", [lambda: time.sleep(0.01)])]
    found = agent.measure_energy(entries, 0.4, True, quiet)
    assert found is not None and (found["source"], found["idle_mw"]) == ("nvidia-smi", 71250.0)
    assert "power.draw" in found["rail"]
    # A processor computes: the GPU's power is not that of the computation.
    assert agent.measure_energy(entries, 0.4, False, quiet) is None
    for text in ("[N/A]", "nan", "-1", ""):
        assert "total_mw" not in agent.parse_nvidia_smi(f"{text}, 40, 90, 1800, 5000")


def test_a_profile_has_it_and_an_older_one_loads(
    tools: Path, bundle: Bundle, client: DeviceClient, entry: DeviceEntry, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    tegrastats(tools)
    (tools / "loaded").touch()
    report = profile_on_device(bundle, client, entry, rates=(0.5,), repeats=2, warmup=1, energy_seconds=0.4)
    profile = report.profile
    assert isinstance(profile, Profile) and profile.energy is not None
    names = [item.name for item in profile.energy.entries]
    assert names == ["static twin", "rate 0.5 (forced)", "the data's own masks"]
    for item in profile.energy.entries:
        assert item.mj == pytest.approx(LOADED_MW * item.ms / 1000)
        assert item.above(profile.energy.idle_mw) == pytest.approx(0)  # This tool knows no idle board.
    value = profile.to_json()
    assert value["energy"]["schema_version"] == 1 and value["energy"]["kind"] == "measured"
    assert Profile.from_json(value) == profile
    older = copy.deepcopy(value)
    del older["energy"]
    assert Profile.from_json(older).energy is None
    newer = copy.deepcopy(value)
    newer["energy"]["schema_version"] = 2
    with pytest.raises(InputError, match=r"energy\.schema_version must be 1, which this release reads"):
        Profile.from_json(newer)
    page = render_report(profile)
    assert "mJ per image" in page and "measured: POM_5V_IN by tegrastats, idle 7.65 W" in page
    assert "mJ per image" not in render_report(Profile.from_json(older))
    paths = [tmp_path / "new.json", tmp_path / "old.json"]
    for path, content in zip(paths, (value, older), strict=True):
        path.write_text(json.dumps(content))
    assert run(["compare", *map(str, paths), "-o", str(tmp_path / "pair.html")]) == 0
    out = capsys.readouterr().out
    assert "energy per image, measured" in out and "power sensor" in out
    assert "Energy per image, measured" in (tmp_path / "pair.html").read_text()
    assert load_profile(paths[0]).energy == profile.energy


def test_exits_have_it_and_mixes_follow(tools: Path, client: DeviceClient, entry: DeviceEntry, tmp_path: Path) -> None:
    tegrastats(tools)
    (tools / "loaded").touch()
    bundle = export_model(plain(), tmp_path / "b", ExportSettings(static=True))
    numbers = [stage.exit for stage in bundle.exits.stages]
    options: dict[str, Any] = {"mixes": [[1.0] * len(numbers)], "repeats": 2, "warmup": 1, "energy_seconds": 0.4}
    profile = profile_exits_on_device(bundle, client, entry, **options).profile
    assert isinstance(profile, ExitProfile) and profile.energy is not None
    assert [item.name for item in profile.energy.entries] == ["without exits", *(f"exit {n}" for n in numbers)]
    mix = next(item for item in profile.mixes if item.name != "data")
    wanted = sum(item.mj for item in profile.energy.entries[1:]) / len(numbers)
    assert profile.mix_mj(mix) == pytest.approx(wanted)
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile.to_json()))
    assert load_exit_profile(path).energy == profile.energy
    assert "mJ per image" in render_exit_profile_report(profile)


def test_means_over_exits_need_all_of_them() -> None:
    energy = Energy("tegrastats", "VDD_IN", 1000.0, (EnergyEntry("exit 1", 2000.0, 5.0, 9),))
    assert energy.mj("exit 1") == 10.0 and energy.entries[0].above(1000.0) == 5.0
    assert energy.mean_mj(["exit 1"], [1.0]) == 10.0
    assert energy.mean_mj(["exit 1", "exit 2"], [0.5, 0.5]) is None
