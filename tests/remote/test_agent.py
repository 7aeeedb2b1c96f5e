"""The agent's own parts: parsers, store, jobs; and that a board's Python can run it."""

from __future__ import annotations

import ast
import hashlib
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyndeploy.bundle.device_files import MODULES, PROGRAMS
from dyndeploy.measure.loop import Visit
from dyndeploy.remote import agent
from dyndeploy.remote.profiling import device_warnings
from dyndeploy.remote.transport import Frames, agent_source
from dyndeploy.targets import target_names

DATA = Path(__file__).parent / "data"
BOARDS: dict[str, dict[str, Any]] = json.loads((DATA / "boards.json").read_text())
AGENT = Path(agent.__file__)
ON_BOARDS = [*(AGENT.parent / name for name in PROGRAMS), *(AGENT.parents[1] / path for path in MODULES.values())]
VERMIN = Path(sys.executable).parent / "vermin"


def board_root(folder: Path, name: str) -> Path:
    """The system files of a board, as its Linux shows them."""
    facts = BOARDS[name]
    low, high = facts["gpu"]
    content = {
        "proc/device-tree/model": facts["model"],
        "etc/nv_tegra_release": facts["nv_tegra_release"],
        "proc/meminfo": "MemTotal:        4059712 kB\nMemAvailable:    2516582 kB\nSwapTotal:       2029856 kB\n",
        f"sys/class/devfreq/{facts['devfreq']}/min_freq": str(low),
        f"sys/class/devfreq/{facts['devfreq']}/max_freq": str(high),
        f"sys/class/devfreq/{facts['devfreq']}/cur_freq": str(low),
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq": "1479000",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "1479000",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
        "usr/local/cuda/version.txt": "CUDA Version 10.2.300\n",
    }
    for path, text in content.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


def samples_of(name: str) -> list[dict[str, Any]]:
    return [agent.parse_tegrastats(line) for line in (DATA / f"tegrastats_{name}.txt").read_text().splitlines(True)]


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_says_what_it_is(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "nvpmodel").write_text(f"#!/bin/sh\nprintf '%s' '{BOARDS[name]['nvpmodel']}'\n")
    (tools / "nvpmodel").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setattr(agent, "MODULES_SCRIPT", "print('MODULES {}')")
    facts = agent.probe(str(tmp_path), str(board_root(tmp_path / "root", name)))
    expected = BOARDS[name]
    assert facts["target"] == name and name in target_names()
    assert (facts["l4t"], facts["jetpack"], facts["power_mode"]) == tuple(
        expected[k] for k in ("l4t", "jetpack", "mode")
    )
    low, high = expected["gpu"]
    assert facts["clocks"]["gpu"] == {"min": low, "max": high, "current": low, "fixed": low == high}
    assert facts["clocks"]["cpu"]["fixed"] and facts["clocks"]["cpu"]["governor"] == "schedutil"
    assert facts["cuda"]["version"] == "10.2.300"
    assert facts["memory"] == {"total_mb": 3964, "available_mb": 2457, "swap_mb": 1982}
    json.dumps(facts, allow_nan=False)


@pytest.mark.parametrize("name", BOARDS)
def test_tegrastats_of_every_board(name: str) -> None:
    samples = samples_of(name)
    assert [sample["total_mw"] for sample in samples] == BOARDS[name]["total"]
    assert {sample["total_rails"] for sample in samples} == {BOARDS[name]["rails"]}
    summary = agent.summarise_samples(samples)
    assert summary["power_mw"]["mean"] == pytest.approx(sum(BOARDS[name]["total"]) / len(samples))
    assert summary["gpu_mhz"] == {"min": BOARDS[name]["mhz"], "max": BOARDS[name]["mhz"]}
    temperatures = summary["temperatures_c"]
    assert "PMIC" not in temperatures and all(20 < value < 60 for value in temperatures.values())
    assert {key.lower() for key in temperatures} >= {"gpu"}


def test_values_of_one_line() -> None:
    sample = samples_of("nano")[1]
    assert sample["rails_mw"] == {"POM_5V_IN": 7654, "POM_5V_GPU": 3120, "POM_5V_CPU": 1014}
    assert (sample["gpu_load"], sample["gpu_mhz"], sample["emc_mhz"], sample["cpu_mhz"]) == (99, 921, 1600, 1479)
    assert sample["ram_mb"] == 2101
    assert sample["temperatures_c"] == {"PLL": 34, "CPU": 37.5, "GPU": 36, "AO": 43, "thermal": 36.75}
    orin = samples_of("agx_orin")[0]
    assert "cv0" not in orin["temperatures_c"] and orin["temperatures_c"]["tj"] == 49.968
    assert orin["rails_mw"]["VDDQ_VDD2_1V8AO"] == 1816


RAILS = st.sampled_from(["POM_5V_IN", "VDD_IN", "VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "GPU", "CPU", "SOC", "X_Y"])


@settings(deadline=None)
@given(
    rails=st.dictionaries(RAILS, st.integers(0, 99999), max_size=6),
    sensors=st.dictionaries(st.sampled_from(["CPU", "GPU", "tj", "soc0", "AO"]), st.integers(-50, 1200), max_size=5),
    load=st.integers(0, 100),
    clock=st.none() | st.integers(1, 9999),
    unit=st.sampled_from(["", "mW"]),
    brackets=st.booleans(),
)
def test_any_tegrastats_line_reads_back(
    rails: dict[str, int], sensors: dict[str, int], load: int, clock: int | None, unit: str, brackets: bool
) -> None:
    parts = ["RAM 5/7MB (lfb 1x4MB) SWAP 0/2MB (cached 0MB) CPU [1%@5,off]", f"GR3D_FREQ {load}%"]
    if clock is not None:
        parts[-1] += f"@[{clock},{clock}]" if brackets else f"@{clock}"
    parts += [f"{name}@{tenths / 10}C" for name, tenths in sensors.items()]
    parts += [f"{name} {value}{unit}/{value}{unit}" for name, value in rails.items()]
    sample = agent.parse_tegrastats(" ".join(parts) + "\n")
    assert sample.get("rails_mw", {}) == rails
    assert sample.get("temperatures_c", {}) == {name: pytest.approx(tenths / 10) for name, tenths in sensors.items()}
    assert (sample["gpu_load"], sample.get("gpu_mhz")) == (load, clock)
    if "VDD_IN" in rails and "POM_5V_IN" not in rails:
        assert sample["total_mw"] == rails["VDD_IN"]
    elif not {"VDD_IN", "POM_5V_IN"} & set(rails) and {"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"} <= set(rails):
        assert sample["total_mw"] == rails["VDD_GPU_SOC"] + rails["VDD_CPU_CV"] + rails["VIN_SYS_5V0"]


@settings(deadline=None)
@given(st.text(max_size=300))
def test_any_text_is_survived(text: str) -> None:
    json.dumps([agent.parse_tegrastats(text), agent.parse_nvpmodel(text), agent.parse_l4t(text)], allow_nan=False)


@settings(deadline=None)
@given(st.integers(1, 99), st.lists(st.integers(0, 99), min_size=1, max_size=3))
def test_any_release_reads_back(major: int, revision: list[int]) -> None:
    dotted = ".".join(map(str, revision))
    assert agent.parse_l4t(f"# R{major} (release), REVISION: {dotted}, GCID: 1") == f"{major}.{dotted}"


@settings(deadline=None)
@given(st.text(st.characters(categories=["Lu", "Nd"]), min_size=1, max_size=12), st.integers(0, 99))
def test_any_power_mode_reads_back(name: str, number: int) -> None:
    text = f"NVPM WARN: fan mode is not set!\nNV Power Mode: {name}\n{number}\n"
    assert agent.parse_nvpmodel(text) == {"name": name, "id": number}


@pytest.mark.parametrize(
    ("l4t", "package", "jetpack"),
    [
        ("32.5.1", None, "4.5.1"),
        ("32.7.6", None, "4.6.6"),
        ("35.5.0", None, "5.1.3"),
        ("35.6.0", None, "5.1.4"),
        ("35.6.1", None, "5.1.5"),
        ("35.6.2", None, "5.1.5"),
        ("36.2.0", None, "6.0 DP"),
        ("36.4", None, "6.1"),
        ("36.4.3", None, "6.2"),
        ("36.4.4", None, "6.2.1"),
        ("36.4.7", None, "6.2.1"),
        ("36.5.0", None, "6.2.2"),
        ("38.2.0", None, "7.0"),
        ("38.4.0", None, "7.1"),
        ("39.2.0", None, "7.2"),
        ("41.1.0", "8.0.1+b12", "8.0.1"),
        ("41.1.0", None, None),
        (None, None, None),
    ],
)
def test_jetpack_by_release_of_jetson_linux(l4t: str | None, package: str | None, jetpack: str | None) -> None:
    assert agent.jetpack_of(l4t, package) == jetpack


def test_modes_that_a_board_has() -> None:
    text = (
        "< PARAM TYPE=FILE NAME=CPU_ONLINE >\nCORE_0 /sys/devices/system/cpu/cpu0/online\n"
        "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n"
        "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n< PM_CONFIG DEFAULT=1 >\n"
    )
    assert agent.power_modes(text) == [{"id": 0, "name": "15W"}, {"id": 2, "name": "MAXN_SUPER"}]
    assert agent.power_modes("") == []


# ---------------------------------------------------------------- warnings about clocks


def facts_of(name: str, **changes: Any) -> dict[str, Any]:
    low, high = BOARDS[name]["gpu"]
    gpu = {"min": low, "max": high, "current": low, "fixed": low == high}
    cpu = {"min": 1479000, "max": 1479000, "current": 1479000, "fixed": True}
    return {"target": name, "power_mode": BOARDS[name]["mode"], "clocks": {"gpu": gpu, "cpu": cpu}, **changes}


def test_steady_clocks_give_no_warning() -> None:
    facts = facts_of("nano")
    assert device_warnings(facts, agent.summarise_samples(samples_of("nano")), facts["clocks"]) == []


def test_clocks_that_move_and_limited_modes_are_named() -> None:
    notes = device_warnings(facts_of("tx2"), agent.summarise_samples(samples_of("tx2")))
    assert len(notes) == 2
    assert "GPU 115-1300 MHz" in notes[0] and "jetson_clocks" in notes[0]
    assert "MAXP_CORE_ARM" in notes[1] and "nvpmodel" in notes[1]


OWN_MODES = {
    "xavier_nx": [
        f"MODE_{name}"
        for name in (
            *("15W_2CORE", "15W_4CORE", "15W_6CORE", "10W_2CORE", "10W_4CORE", "10W_DESKTOP"),
            *("20W_2CORE", "20W_4CORE", "20W_6CORE"),
        )
    ],
    "orin_nano": ["15W", "25W", "MAXN_SUPER", "7W"],
    "agx_xavier": ["MAXN", "MODE_10W", "MODE_15W", "MODE_30W_ALL", "MODE_30W_6CORE", "MODE_30W_4CORE"],
    "agx_orin": ["MAXN", "MODE_15W", "MODE_30W", "MODE_50W"],
    "tx2": ["MAXN", "MAXQ", "MAXP_CORE_ALL", "MAXP_CORE_ARM", "MAXP_CORE_DENVER"],
    "nano": ["MAXN", "5W"],
}


@pytest.mark.parametrize("told", [True, False], ids=["the board tells its modes", "the table"])
@pytest.mark.parametrize(
    ("board", "l4t", "mode", "advice"),
    [
        ("xavier_nx", "35.4.1", "MODE_20W_6CORE", None),
        ("xavier_nx", "35.4.1", "MODE_15W_2CORE", "-m 8' (MODE_20W_6CORE)"),
        ("xavier_nx", "35.4.1", "MODE_20W_2CORE", "-m 8' (MODE_20W_6CORE)"),
        ("orin_nano", "36.4.4", "15W", "-m 2' (MAXN_SUPER)"),
        ("orin_nano", "36.4.4", "MAXN_SUPER", None),
        ("agx_xavier", "35.4.1", "MODE_30W_ALL", "-m 0' (MAXN)"),
        ("agx_orin", "36.4.3", "MODE_50W", "-m 0' (MAXN)"),
        ("tx2", "32.7.6", "MAXP_CORE_ARM", "-m 0' (MAXN)"),
        ("nano", "32.7.1", "5W", "-m 0' (MAXN)"),
        ("nano", "32.7.1", "MAXN", None),
    ],
)
def test_the_fastest_power_mode_of_every_board(board: str, l4t: str, mode: str, advice: str | None, told: bool) -> None:
    own = [{"id": number, "name": name} for number, name in enumerate(OWN_MODES[board])] if told else []
    facts = {"clocks": {}, "target": board, "power_mode": {"name": mode, "id": 0}, "l4t": l4t, "power_modes": own}
    notes = device_warnings(facts, {})
    assert len(notes) == (advice is not None) and all(f"'sudo nvpmodel {advice}" in note for note in notes)


def test_before_super_modes_the_orin_nano_was_fastest_at_15_watts() -> None:
    facts = {"clocks": {}, "target": "orin_nano", "l4t": "36.4.0", "power_mode": {"name": "15W", "id": 0}}
    assert device_warnings(facts, {}) == []
    (note,) = device_warnings({**facts, "power_mode": {"name": "7W", "id": 1}}, {})
    assert "-m 0' (15W)" in note


@pytest.mark.parametrize(
    ("date", "said"),
    [
        ("1970-01-01T00:03:00+00:00", "1970-01-01 00:03"),
        ("2100-01-01T00:00:00+00:00", "2100-01-01"),
        (time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()), None),
        ("", None),
    ],
    ids=["1970", "2100", "now", "unknown"],
)
def test_a_clock_that_is_wrong_is_said(date: str, said: str | None) -> None:
    notes = device_warnings({"target": None, "power_mode": None, "clocks": {}, "date": date}, {})
    assert len(notes) == (said is not None) and all(f"The board's clock says {said}" in note for note in notes)
    assert all("timedatectl" in note for note in notes)


def test_throttling_is_seen_in_tegrastats_and_in_the_limits() -> None:
    facts = facts_of("nano")
    hot = [*samples_of("nano"), {"gpu_load": 99, "gpu_mhz": 614, "temperatures_c": {"GPU": 97.0, "CPU": 90.0}}]
    (note,) = device_warnings(facts, agent.summarise_samples(hot), facts["clocks"])
    assert "614 MHz of 922 MHz" in note and "GPU reached 97 degrees" in note
    idle = [*samples_of("nano"), {"gpu_load": 0, "gpu_mhz": 76}]
    assert device_warnings(facts, agent.summarise_samples(idle), facts["clocks"]) == []
    lowered = {"gpu": {"min": 640000000, "max": 640000000, "current": 640000000, "fixed": True}}
    (note,) = device_warnings(facts, {}, lowered)
    assert "from 922 to 640 MHz" in note


def test_a_machine_that_is_no_board_is_not_told_to_run_board_tools() -> None:
    cpu = {"min": 800000, "max": 3000000, "current": 800000, "fixed": False}
    assert device_warnings({"target": None, "power_mode": None, "clocks": {"gpu": None, "cpu": cpu}}, {}) == []


def test_the_monitor_reads_while_something_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "tegrastats"
    tool.write_text(f"#!/bin/sh\nwhile cat '{DATA / 'tegrastats_nano.txt'}'; do sleep 0.02; done\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monitor = agent.Monitor(10)
    deadline = time.monotonic() + 10
    while len(monitor.samples) < 6 and time.monotonic() < deadline:
        time.sleep(0.02)
    result = monitor.stop()
    assert result["summary"]["count"] >= 6
    assert result["summary"]["power_mw"]["max"] == 7734
    assert monitor._process is not None and monitor._process.poll() is not None


# ---------------------------------------------------------------- the store


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@settings(deadline=None, max_examples=30)
@given(data=st.binary(max_size=200), cuts=st.lists(st.integers(0, 200), max_size=5))
def test_any_pieces_give_the_file(data: bytes, cuts: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    store = agent.Store(str(tmp_path_factory.mktemp("store")))
    name, size, offset, whole = digest(data), len(data), 0, False
    edges = [*sorted({min(cut, size) for cut in cuts} - {0, size}), size]
    for edge in edges:
        assert not whole
        # A piece sent twice, as after a lost answer, changes nothing.
        for _ in range(2):
            offset_now, whole = store.put(name, size, offset, data[offset:edge])
            assert offset_now == edge
        offset = edge
    assert whole and Path(store.checked(name)).read_bytes() == data
    assert os.listdir(store.folder) == [name]


def test_half_a_file_is_no_file_and_is_continued(tmp_path: Path) -> None:
    store, data = agent.Store(str(tmp_path)), b"0123456789"
    name = digest(data)
    assert store.put(name, 10, 0, data[:4]) == (4, False)
    assert store.have(name) == (4, False)
    with pytest.raises(agent.AgentError, match="never received"):
        store.checked(name)
    assert agent.Store(str(tmp_path)).put(name, 10, 7, data[7:]) == (4, False)
    assert store.put(name, 10, 4, data[4:]) == (10, True)
    assert store.have(name) == (10, True)


def test_wrong_bytes_never_become_the_file(tmp_path: Path) -> None:
    store, data = agent.Store(str(tmp_path)), b"0123456789"
    with pytest.raises(agent.AgentError) as caught:
        store.put(digest(data), 10, 0, b"x" * 10)
    assert caught.value.kind == "checksum"
    assert store.have(digest(data)) == (0, False)


def test_a_file_damaged_on_the_disk_is_removed(tmp_path: Path) -> None:
    store, data = agent.Store(str(tmp_path)), b"0123456789"
    store.put(digest(data), 10, 0, data)
    (tmp_path / digest(data)).write_bytes(b"rotten")
    with pytest.raises(agent.AgentError, match="damaged"):
        store.checked(digest(data))
    assert store.have(digest(data)) == (0, False)


def test_a_full_disk_keeps_what_was_received(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, data = agent.Store(str(tmp_path)), b"0123456789"
    store.put(digest(data), 10, 0, data[:4])
    real = os.statvfs(tmp_path)
    full = os.statvfs_result((*real[:4], 1, *real[5:10]))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    with pytest.raises(agent.AgentError) as caught:
        store.put(digest(data), 10, 4, data[4:])
    assert caught.value.kind == "disk_full"
    assert store.have(digest(data)) == (4, False)


@pytest.mark.parametrize("name", ["", "..", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_names_that_are_no_checksums_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(agent.AgentError):
        agent.Store(str(tmp_path)).path(name)
    with pytest.raises(agent.AgentError):
        agent.Jobs(str(tmp_path)).path(name)


# ---------------------------------------------------------------- the protocol


class Talk:
    """An agent process and its pipes."""

    def __init__(self, work: Path, python: str = sys.executable, *, agent: Path = AGENT) -> None:
        self.process = subprocess.Popen(
            [python, str(agent), "serve", "--work", str(work)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.frames = Frames()
        self.greeting = self.read()

    def read(self) -> Any:
        assert self.process.stdout is not None
        while not (answers := self.frames.feed(self.process.stdout.readline())):
            assert self.process.poll() is None
        return json.loads(answers[0])

    def ask(self, **request: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"id": 1, **request}).encode() + b"\n")
        self.process.stdin.flush()
        return self.read()

    def put(self, data: bytes) -> Any:
        import base64

        text = base64.b64encode(data).decode()
        return self.ask(command="put", sha256=digest(data), size=len(data), offset=0, data=text, crc32=zlib.crc32(data))

    def end(self) -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        code = self.process.wait(10)
        self.process.stdout.close()
        return code


def test_requests_that_make_no_sense_are_answered(tmp_path: Path) -> None:
    talk = Talk(tmp_path)
    assert talk.greeting["greeting"] == agent.GREETING
    assert talk.greeting["agent"] == digest(agent_source())
    for request in (
        {"command": "fly"},
        {"command": "put"},
        {"command": "start", "kind": "x", "spec": {}},
        {"command": "poll", "key": "../.."},
        {"command": "poll", "key": 3},
        {"command": "have", "files": 3},
        {},
    ):
        assert talk.ask(**request)["error"]["kind"] == "protocol", request
    assert talk.process.stdin is not None
    for line in (b"\n", b"[]\n", b"\xff\xfe\n", b'{"id": 1\n', b"null\n"):
        talk.process.stdin.write(line)
        talk.process.stdin.flush()
        assert talk.read()["error"]["kind"] == "protocol", line
    data = b"piece"
    broken = talk.ask(command="put", sha256=digest(data), size=5, offset=0, data="cGllY2U=", crc32=1)
    assert broken["error"]["kind"] == "protocol"
    assert talk.put(data)["result"] == [5, True]
    # Half a request, as when the line breaks: not carried out.
    talk.process.stdin.write(b'{"id": 1, "command": "clean"}')
    assert talk.end() == 0
    assert (tmp_path / "store" / digest(data)).is_file()


def test_a_job_that_was_killed_is_seen_and_started_again(tmp_path: Path) -> None:
    talk = Talk(tmp_path)
    gate = tmp_path / "gate"
    sources = {"CMakeLists.txt": waiting_project(gate)}
    spec = {"sources": {name: digest(data) for name, data in sources.items()}, "library": "libmade.so"}
    for data in sources.values():
        talk.put(data)
    if shutil.which("cmake") is None:
        pytest.skip("no cmake on this machine")
    started = talk.ask(command="start", kind="plugins", spec=spec)["result"]
    key = started["key"]
    assert talk.ask(command="start", kind="plugins", spec=spec)["result"] == {**started, "found": True}
    assert talk.ask(command="running")["result"] == [key]
    assert talk.ask(command="clean")["error"]["kind"] == "busy"
    assert talk.ask(command="cancel", key=key)["result"]["key"] == key
    deadline = time.monotonic() + 10
    while (answer := talk.ask(command="poll", key=key, wait=0.2)["result"])["status"] == "running":
        assert time.monotonic() < deadline
    assert answer["status"] == "died"
    gate.write_text("")
    assert talk.ask(command="start", kind="plugins", spec=spec)["result"]["found"] is False
    while (answer := talk.ask(command="poll", key=key, wait=5, seen=answer["state"])["result"])["status"] == "running":
        pass
    assert answer["status"] == "done", answer
    library = tmp_path / "jobs" / key / "out" / "libmade.so"
    assert answer["result"]["files"] == {"libmade.so": digest(library.read_bytes())}
    assert talk.ask(command="clean")["result"]["freed_mb"] >= 0
    assert os.listdir(tmp_path / "jobs") == []
    assert talk.end() == 0


def waiting_project(gate: Path) -> bytes:
    """A CMake project whose build makes libmade.so, and waits for a file to appear first."""
    return (
        "cmake_minimum_required(VERSION 3.10)\nproject(waiting NONE)\n"
        f'add_custom_target(made ALL COMMAND sh -c "i=0; while [ ! -e \\"{gate}\\" ] && [ $i -lt 300 ]; '
        'do sleep 0.1; i=$((i+1)); done; echo made > libmade.so" VERBATIM)\n'
    ).encode()


def test_a_failed_build_says_why_and_is_tried_again(tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("no cmake on this machine")
    talk = Talk(tmp_path)
    project = b'cmake_minimum_required(VERSION 3.10)\nproject(x NONE)\nmessage(FATAL_ERROR "no CUDA here")\n'
    talk.put(project)
    spec = {"sources": {"CMakeLists.txt": digest(project)}, "library": "libmade.so"}
    key = talk.ask(command="start", kind="plugins", spec=spec)["result"]["key"]
    while (answer := talk.ask(command="poll", key=key, wait=5)["result"])["status"] == "running":
        pass
    assert answer["failure"]["kind"] == "tool" and "cmake failed" in answer["failure"]["message"]
    assert "no CUDA here" in answer["log"]
    assert talk.ask(command="start", kind="plugins", spec=spec)["result"]["found"] is False
    nothing = project.replace(b'FATAL_ERROR "no CUDA here"', b'STATUS "plugins are not built: no NvInfer.h"')
    talk.put(nothing)
    spec = {"sources": {"CMakeLists.txt": digest(nothing)}, "library": "libmade.so"}
    key = talk.ask(command="start", kind="plugins", spec=spec)["result"]["key"]
    while (answer := talk.ask(command="poll", key=key, wait=5)["result"])["status"] == "running":
        pass
    assert "made no libmade.so: -- plugins are not built: no NvInfer.h" in answer["failure"]["message"]
    outside = {"sources": {"../../evil": digest(project)}, "library": "libmade.so"}
    key = talk.ask(command="start", kind="plugins", spec=outside)["result"]["key"]
    while (answer := talk.ask(command="poll", key=key, wait=5)["result"])["status"] == "running":
        pass
    assert answer["failure"]["kind"] == "protocol"
    assert talk.end() == 0


def test_without_cmake_nvcc_builds_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text('#!/bin/sh\necho "$@" > arguments\nwhile [ $# -gt 1 ]; do shift; done\ncp arguments "$1"\n')
    nvcc.chmod(0o755)
    monkeypatch.setattr(agent, "tool", lambda name: None)
    monkeypatch.setattr(agent, "_cuda", lambda root: {"version": "10.2", "nvcc": str(nvcc)})
    store = agent.Store(str(tmp_path / "store"))
    names = ("kernels/cuda/a.cu", "kernels/cuda/host/b.cpp", "adapters/tensorrt/c.cpp", "adapters/tensorrt/d.h")
    for name in names:
        store.put(digest(name.encode()), len(name), 0, name.encode())
    sources = {name: digest(name.encode()) for name in names}
    job = agent.Job(str(tmp_path), "0" * 32)
    os.makedirs(job.out)
    result = agent.job_plugins(job, {"sources": sources, "library": "libmade.so", "architecture": "53"})
    command = (Path(job.out) / "libmade.so").read_text().split()
    assert result["files"] == {"libmade.so": digest((Path(job.out) / "libmade.so").read_bytes())}
    assert [Path(part).name for part in command if part.endswith((".cu", ".cpp"))] == ["c.cpp", "a.cu"]
    assert "arch=compute_53,code=sm_53" in command and "-lnvinfer" in command and "-std=c++14" in command
    monkeypatch.setattr(agent, "_cuda", lambda root: {"version": None, "nvcc": None})
    with pytest.raises(agent.AgentError, match="neither cmake nor nvcc"):
        other = agent.Job(str(tmp_path), "1" * 32)
        agent.job_plugins(other, {"sources": sources, "library": "libmade.so", "architecture": "53"})


# ---------------------------------------------------------------- one job at a time


def waited(talk: Talk, key: str, words: str) -> Any:
    """Poll a job until its state has the words."""
    deadline, seen = time.monotonic() + 20, None
    while time.monotonic() < deadline:
        answer = talk.ask(command="poll", key=key, wait=1, seen=seen)["result"]
        seen = answer["state"]
        if answer["status"] != "running" or words in str((seen or {}).get("message")):
            return answer
    raise AssertionError(seen)


def test_jobs_of_all_users_take_turns(tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("no cmake on this machine")
    # A turn of their own: other tests' jobs must not take it.
    own = tmp_path / "agent.py"
    own.write_text(AGENT.read_text().replace('TURN = "dyndeploy-turn"', f'TURN = "{tmp_path}"'))
    talks, keys = [Talk(tmp_path / name, agent=own) for name in ("one", "two")], []
    gate = tmp_path / "gate"
    for talk in talks:
        project = waiting_project(gate)
        talk.put(project)
        spec = {"sources": {"CMakeLists.txt": digest(project)}, "library": "libmade.so"}
        keys.append(talk.ask(command="start", kind="plugins", spec=spec)["result"]["key"])
        # The second one is started when the first one surely runs.
        waited(talk, keys[-1], "building" if talk is talks[0] else "waiting until")
    state = waited(talks[1], keys[1], "waiting until")["state"]["message"]
    owner = int((tmp_path / "one" / "jobs" / keys[0] / "pid.json").read_text())
    assert f"process {owner} of user" in state
    # Its owner is killed: the turn is free at once.
    os.killpg(owner, 9)
    waited(talks[1], keys[1], "building")
    gate.write_text("")
    assert waited(talks[1], keys[1], "done")["status"] == "done"
    assert waited(talks[0], keys[0], "never")["status"] == "died"
    assert [talk.end() for talk in talks] == [0, 0]


# ---------------------------------------------------------------- a board's Python

STANDARD_3_6 = {
    "argparse", "base64", "errno", "fcntl", "functools", "hashlib", "json", "os", "platform", "pwd", "re", "shutil",
    "signal", "socket", "stat", "statistics", "struct", "subprocess", "sys", "threading", "time", "traceback", "types",
    "typing", "zlib",
}  # fmt: skip
FURTHER = {"contextlib", "ctypes", "math", "resource", "tempfile"}


@pytest.mark.parametrize("path", ON_BOARDS, ids=lambda path: path.name)
def test_only_the_standard_library_is_imported_with_the_module(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 6))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
    assert imported <= STANDARD_3_6 | FURTHER
    assert set(sys.stdlib_module_names) >= STANDARD_3_6 | FURTHER


@pytest.mark.parametrize("path", ON_BOARDS, ids=lambda path: path.name)
def test_python_3_6_can_run_it(path: Path) -> None:
    """vermin finds the oldest Python that knows all syntax and all library calls of a file."""
    done = subprocess.run(
        [str(VERMIN), "--target=3.6-", "--violations", "--no-tips", str(path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    (oldest,) = re.findall(r"Minimum required versions: 3\.(\d+)", done.stdout)
    assert int(oldest) <= 6


def test_the_static_check_can_fail(tmp_path: Path) -> None:
    newer = tmp_path / "newer.py"
    newer.write_text("import subprocess\nsubprocess.run(['x'], capture_output=True)\n")
    done = subprocess.run([str(VERMIN), "--target=3.6-", "--no-tips", str(newer)], capture_output=True)
    assert done.returncode != 0


def old_python() -> str | None:
    """The oldest Python at hand, older than this one: named by a variable, in the PATH, or among pyenv's."""
    named = os.environ.get("DYNDEPLOY_OLD_PYTHON")
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for minor in range(6, sys.version_info[1]):
        candidates = [shutil.which(f"python3.{minor}"), *(str(p) for p in pyenv.glob(f"3.{minor}.*/bin/python3"))]
        for path in [named] if named else candidates:
            # pyenv puts stubs into the PATH for versions that are not switched on.
            if path and subprocess.run([path, "-c", "import json"], capture_output=True).returncode == 0:
                return path
    return None


def test_the_oldest_python_at_hand_probes_stores_and_verifies(tmp_path: Path) -> None:
    python = old_python()
    if python is None:
        pytest.skip("no older Python: name one with DYNDEPLOY_OLD_PYTHON")
    talk = Talk(tmp_path / "work", python)
    assert talk.greeting["python"] != platform.python_version()
    facts = talk.ask(command="probe")["result"]
    assert facts["python"] == talk.greeting["python"] and facts["cores"] == os.cpu_count()
    data = bytes(range(256)) * 1000
    assert talk.put(data)["result"] == [len(data), True]
    assert (tmp_path / "work" / "store" / digest(data)).read_bytes() == data
    spec = {"engines": {}, "reference": digest(data), "runtime": "onnxruntime", "threads": 1}
    key = talk.ask(command="start", kind="verify", spec=spec)["result"]["key"]
    while (answer := talk.ask(command="poll", key=key, wait=10)["result"])["status"] == "running":
        pass
    # Without numpy it must say so; with it, that these bytes are no reference.
    assert answer["status"] == "failed" and answer["failure"]["kind"] in ("unsupported", "bug"), answer
    if "version" not in facts["modules"]["numpy"]:
        assert "numpy" in answer["failure"]["message"]
    assert talk.end() == 0


def test_a_person_can_ask_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(AGENT), "probe", "--work", str(tmp_path)], capture_output=True, text=True, check=True
    )
    facts = json.loads(done.stdout)
    assert facts["cores"] == os.cpu_count() and math.isfinite(facts["disk_free_mb"])


class Engine:
    """What a chain asks of a session: adds one to everything that it reads."""

    note = ""

    def __init__(self, inputs: dict[str, str], given: dict[str, Engine | None]) -> None:
        self._inputs, self._given = inputs, given
        self.own_inputs = [name for name in inputs if given[name] is None]
        self.memory: dict[str, Any] = {}
        self.log: list[str] = []

    def put(self, arrays: dict[str, Any]) -> None:
        self.log += [f"put {name}" for name in arrays]
        self.memory |= arrays

    def enqueue(self) -> None:
        for name, output in self._inputs.items():
            other = self._given[name]
            self.memory[output] = (self if other is None else other).memory[name] + 1

    def read(self, names: list[str]) -> dict[str, Any]:
        self.log += [f"read {name}" for name in names if name in self._inputs.values()]
        return {name: self.memory[name] for name in names if name in self._inputs.values()}

    def layers(self, runs: int) -> list[tuple[str, float]]:
        return [("layer", float(runs))]


class Program:
    def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        return {"chosen": feeds["scores"] * 10 + feeds["image_size"]}


def test_only_what_the_other_side_needs_is_copied() -> None:
    first = Engine({"input": "map", "mask_input": "scores"}, {"input": None, "mask_input": None})
    second = Engine({"map": "pooled", "chosen": "found"}, {"map": first, "chosen": None})
    parts = [
        {"inputs": ["input", "mask_input"], "outputs": ["map", "scores"], "engine": "part0"},
        {"inputs": ["scores", "image_size"], "outputs": ["chosen"], "program": "0" * 64},
        {"inputs": ["map", "chosen"], "outputs": ["pooled", "found"], "engine": "part2"},
    ]
    chain = agent.PartsChain([first, Program(), second], parts, ["chosen", "found", "map"])
    feeds = {"input": 1, "mask_input": 2, "image_size": 4}
    run_once = chain.prepare(feeds, [])
    ms = [run_once() for _ in range(3)]
    # Inputs go there once; a program reads what it needs, and an engine is given what programs made.
    assert first.log == ["put input", "put mask_input", *["read scores"] * 3]
    assert second.log == ["put chosen"] * 3
    assert chain.run(feeds) == {"chosen": 34, "found": 35, "map": 2}
    assert first.log[-2:] == ["read scores", "read map"] and second.log[-1] == "read found"
    [of_parts] = chain.layer_times([feeds], 5)
    assert (of_parts[0], of_parts[2]) == ([("layer", 5.0)], [("layer", 5.0)]) and of_parts[1] > 0
    # Medians are of those runs only that the loop has kept.
    counted = Visit(0, ms[1:])
    medians = agent.parts_ms([run_once], [counted])
    assert medians == [np.median([taken[index] for _, taken in run_once.taken[1:3]]) for index in range(3)]
    assert all(total >= sum(taken) for total, taken in run_once.taken)
