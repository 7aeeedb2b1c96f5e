from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dyndeploy import processors


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(processors, "_CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(processors, "_OWN_CGROUPS", tmp_path / "own")
    (tmp_path / "groups").mkdir()
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("150000 100000\n", 1.5), ("max 100000\n", None), ("", None), ("100000 0\n", None), ("0 100000\n", None)],
)
def test_the_limit_of_a_container(groups: Path, text: str, expected: float | None) -> None:
    write(groups / "own", "0::/\n")
    write(groups / "groups" / "cpu.max", text)
    assert processors.processor_quota() == expected


def test_the_strictest_group_above_counts(groups: Path) -> None:
    write(groups / "own", "0::/user.slice/mine.service\n")
    write(groups / "groups" / "user.slice" / "cpu.max", "300000 100000\n")
    write(groups / "groups" / "user.slice" / "mine.service" / "cpu.max", "max 100000\n")
    assert processors.processor_quota() == 3.0
    write(groups / "groups" / "user.slice" / "mine.service" / "cpu.max", "50000 100000\n")
    assert processors.processor_quota() == 0.5


def test_version_1_and_a_path_of_the_host(groups: Path) -> None:
    write(groups / "own", "9:name=systemd:/x\n4:memory:/docker/1\n2:cpu,cpuacct:/docker/1\n")
    write(groups / "groups" / "cpu,cpuacct" / "cpu.cfs_quota_us", "200000\n")
    write(groups / "groups" / "cpu,cpuacct" / "cpu.cfs_period_us", "100000\n")
    assert processors.processor_quota() == 2.0
    write(groups / "groups" / "cpu,cpuacct" / "cpu.cfs_quota_us", "-1\n")
    assert processors.processor_quota() is None


def test_without_control_groups_there_is_no_limit(groups: Path) -> None:
    assert processors.processor_quota() is None
    assert processors.usable_processors() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("quota", "expected"), [("50000 100000", 1), ("250000 100000", 2), ("max 100000", 4)])
def test_the_quota_and_the_affinity_bound_the_processors(
    groups: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3})
    write(groups / "own", "0::/\n")
    write(groups / "groups" / "cpu.max", quota)
    assert processors.usable_processors() == expected


def test_a_user_s_settings_stay(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(groups / "groups" / "cpu.max", "100000 100000\n")
    for name in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    processors.share_processors()
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "GOMP_SPINCOUNT" not in os.environ


def test_pytorch_takes_what_the_quota_leaves(groups: Path) -> None:
    write(groups / "own", "0::/\n")
    write(groups / "groups" / "cpu.max", "100000 100000\n")
    code = (
        "from pathlib import Path; from dyndeploy import processors\n"
        f"processors._CGROUPS = Path({str(groups / 'groups')!r})\n"
        f"processors._OWN_CGROUPS = Path({str(groups / 'own')!r})\n"
        "processors.share_processors()\n"
        "import torch; print(torch.get_num_threads())"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "1"
