from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from dyndeploy.runtimes import machine
from dyndeploy.runtimes.machine import machine_facts


def test_this_machine_is_described() -> None:
    facts = machine_facts()
    json.dumps(facts, allow_nan=False)
    assert facts["cpu"]
    assert facts["logical_cores"] >= 1
    assert facts["memory_gb"] > 0
    assert facts["versions"]["onnxruntime"]
    assert facts["versions"]["dyndeploy"]
    assert datetime.fromisoformat(facts["date"]).tzinfo is not None


def test_an_x86_and_an_arm_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(machine, "_CPUINFO", info)
    info.write_text(
        "model name\t: Some CPU\ncpu MHz\t\t: 2000.5\nflags\t\t: fpu avx2 fma avx512f\n\nmodel name: Other\n"
    )
    facts = machine_facts()
    assert (facts["cpu"], facts["isa"]) == ("Some CPU", ["avx2", "fma", "avx512f"])
    info.write_text("processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU implementer : 0x41\n")
    assert machine_facts()["isa"] == ["asimd", "asimddp"]


def test_the_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CACHES", tmp_path)
    for number, (level, kind, size) in enumerate(
        [
            ("1", "Data", "48K"),
            ("1", "Instruction", "64K"),
            ("2", "Unified", "2048K"),
            ("3", "Unified", ""),
            ("x", "", "1"),
        ]
    ):
        folder = tmp_path / f"index{number}"
        folder.mkdir()
        for name, text in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(text + "\n")
    assert machine_facts()["caches"] == {"L1d": 48 << 10, "L2": 2 << 20}


def test_what_cannot_be_read_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_CPUINFO", "_CPUFREQ", "_CACHES"):
        monkeypatch.setattr(machine, name, tmp_path / "nothing")
    facts = machine_facts()
    assert facts["frequency_mhz"] is None
    assert facts["governor"] is None
    assert facts["isa"] == []
    assert facts["caches"] == {}
    assert facts["cpu"]
