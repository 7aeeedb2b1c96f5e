"""The user's boards by name, and what the command line says about them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyndeploy.bundle import Bundle
from dyndeploy.cli import run
from dyndeploy.errors import DyndeployError, InputError, UsageError
from dyndeploy.remote import DeviceEntry, agent, devices_file, load_devices, remove_device, save_device

WORD = st.text("abcdefghijklmnopqrstuvwxyz0123456789_", min_size=1, max_size=12)


@settings(deadline=None, max_examples=20)
@given(
    entries=st.dictionaries(
        WORD.filter(lambda name: name != "cpu" and name[0] != "_"),
        st.tuples(WORD, st.sampled_from([None, "nano", "tx2", "agx_orin"]), st.none() | WORD, st.none() | WORD),
        max_size=5,
    )
)
def test_what_is_saved_is_read(
    entries: dict[str, tuple[str, str | None, str | None, str | None]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("devices") / "new" / "devices.json"
    written = {name: DeviceEntry(name, f"me@{entry[0]}", *entry[1:]) for name, entry in entries.items()}
    for entry in written.values():
        save_device(entry, path)
    assert load_devices(path) == written
    for name in entries:
        remove_device(name, path)
    assert load_devices(path) == {}


@pytest.mark.parametrize(
    ("name", "host", "target", "words"),
    [
        ("cpu", "a@b", None, "this machine"),
        ("a b", "a@b", None, "cannot be a device's name"),
        ("x", "-v", None, "no address"),
        ("x", "a@b", "nanoo", "Did you mean 'nano'"),
    ],
)
def test_entries_that_cannot_work(name: str, host: str, target: str | None, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        DeviceEntry(name, host, target)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        '{"devices": 3}',
        '{"devices": {"a": {}}}',
        '{"devices": {"a": {"host": 3}}}',
        "{",
        '{"devices": {"a": {"host": "b", "x": "y"}}}',
    ],
)
def test_damaged_files_are_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "devices.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"devices\.json"):
        load_devices(path)


def test_where_the_file_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DYNDEPLOY_DEVICES", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert devices_file() == tmp_path / "dyndeploy" / "devices.json"
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert devices_file() == tmp_path / ".config" / "dyndeploy" / "devices.json"
    monkeypatch.setenv("DYNDEPLOY_DEVICES", str(tmp_path / "mine.json"))
    assert devices_file() == tmp_path / "mine.json"


def test_users_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("DYNDEPLOY_DEVICES", "XDG_CONFIG_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert load_devices() == {}
    with pytest.raises(UsageError, match="set HOME, XDG_CONFIG_HOME or DYNDEPLOY_DEVICES"):
        save_device(DeviceEntry("desk", "me@host"))
    with pytest.raises(OSError, match="no home folder"):
        agent.Agent("~/.cache/dyndeploy", b"")


def test_a_file_that_cannot_be_read_is_never_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "devices.json"
    path.symlink_to(path)  # As good as one without the right to read: root may read everything.
    monkeypatch.setenv("DYNDEPLOY_DEVICES", str(path))
    with pytest.raises(DyndeployError, match=r"devices\.json: Too many levels"):
        save_device(DeviceEntry("desk", "me@host"))
    assert path.is_symlink()
    # Who gives an address does not need the file.
    assert run(["profile", str(tmp_path / "nothing"), "--device", "desk", "--host", "me@host"]) == 1
    err = capsys.readouterr().err
    assert "Note: Cannot read" in err and "does not exist" in err


def test_names_that_would_spoil_the_file_are_refused() -> None:
    with pytest.raises(UsageError, match="no UTF-8"):
        DeviceEntry("desk", "me@host", ssh_config=os.fsdecode(b"caf\xe9"))


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    path = tmp_path / "devices.json"
    monkeypatch.setenv("DYNDEPLOY_DEVICES", str(path))
    return path


def test_add_list_remove(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["device", "list"]) == 0
    assert "device add NAME user@address" in capsys.readouterr().out
    assert run(["device", "add", "desk", "me@192.0.2.7", "--target", "nano"]) == 0
    assert run(["device", "list", "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out[out.index("{") :]) == {"desk": {"host": "me@192.0.2.7", "target": "nano"}}
    assert run(["device", "list"]) == 0
    assert "me@192.0.2.7" in capsys.readouterr().out
    assert run(["device", "remove", "desk"]) == 0
    assert load_devices(own) == {}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("add", "desk"), "needs NAME HOST"),
        (("remove",), "needs NAME"),
        (("remove", "desk"), "Unknown device"),
        (("probe", "desk"), "Unknown device"),
        (("add", "desk", "me@host", "--target", "toaster"), "Unknown target"),
        (("dance",), "dance"),
    ],
)
def test_wrong_usage(own: Path, arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["device", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not own.exists()


def test_profiling_without_an_address(own: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["profile", str(bundle.path), "--device", "agx_orin"]) == 2
    err = capsys.readouterr().err
    assert "--host user@address" in err and "dyndeploy device add agx_orin" in err and "predict BUNDLE" in err
    save_device(DeviceEntry("desk", "me@192.0.2.7"))
    assert run(["profile", str(bundle.path), "--device", "desc"]) == 2
    assert "Did you mean 'desk'" in capsys.readouterr().err


def test_this_machine_through_an_agent(own: Path, bundle: Bundle, tmp_path: Path) -> None:
    save_device(DeviceEntry("desk", "local:", work=str(tmp_path / "agent")))
    page, profile = tmp_path / "page.html", tmp_path / "profile.json"
    assert run(["profile", str(bundle.path), "--device", "desk", "--native", "off"]) == 2
    rest = ["--rates", "1.0", "--repeats", "2", "--report", str(page), "--json", str(profile)]
    assert run(["profile", str(bundle.path), "--device", "desk", *rest]) == 0
    assert json.loads(profile.read_text())["device"] == "cpu"
    assert "<html" in page.read_text()


def test_boards_that_scripts_add_at_once_are_all_kept(own: Path) -> None:
    command = [sys.executable, "-m", "dyndeploy.cli", "device", "add"]
    adding = [subprocess.Popen([*command, f"n{i}", f"me@192.0.2.{i}"], stdout=subprocess.DEVNULL) for i in range(8)]
    assert [process.wait(60) for process in adding] == [0] * 8
    assert sorted(load_devices(own)) == [f"n{i}" for i in range(8)]
    assert [path.name for path in own.parent.iterdir()] == [own.name]


def test_what_a_board_prints_besides_is_shown(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nprintf 'Mind the gap'\nexec {sys.executable} \"$@\"\n")
    python.chmod(0o755)
    save_device(DeviceEntry("desk", "local:", work=str(tmp_path / "agent"), python=str(python)))
    assert run(["device", "probe", "desk", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["work"] == str(tmp_path / "agent")
    assert "which was skipped: Mind the gap" in err
