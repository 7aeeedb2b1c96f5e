"""Boards over a real ssh server on the loopback address; the board is this machine with ONNX Runtime."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from dyndeploy.bundle import Bundle
from dyndeploy.cli import run
from dyndeploy.data import sample_photographs
from dyndeploy.errors import ConnectionLostError, DeviceError, UnreachableError
from dyndeploy.export import ExportSettings, export_model
from dyndeploy.inference import classify
from dyndeploy.measure import load_profile
from dyndeploy.measure.load_exits import load_exit_profile
from dyndeploy.remote import DeviceClient, DeviceEntry, SshTransport, profile_on_device
from dyndeploy.remote.agent import WAITING
from dyndeploy.remote.client import CHUNK_BYTES, Content
from dyndeploy.remote.transport import ProcessChannel
from tests.remote.test_agent import waiting_project
from tests.remote.test_exits import plain

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
pytestmark = pytest.mark.skipif(
    SSHD is None or shutil.which("ssh") is None,
    reason="needs OpenSSH's server and client (apt-get install openssh-server)",
)

CONFIG = """
Host board wrongkey unknown nokey
  HostName 127.0.0.1
  Port {port}
  GlobalKnownHostsFile /dev/null
  IdentitiesOnly yes
Host closed
  HostName 127.0.0.1
  Port {closed}
Host board wrongkey unknown
  IdentityFile {folder}/key
Host nokey
  IdentityFile {folder}/other
Host board nokey
  UserKnownHostsFile {folder}/known
Host wrongkey
  UserKnownHostsFile {folder}/wrong
Host unknown closed
  UserKnownHostsFile /dev/null
"""


@dataclass
class Server:
    """A running sshd."""

    process: subprocess.Popen[bytes]
    config: str
    log: Path

    def sessions(self) -> list[psutil.Process]:
        """Its processes that serve connections."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if child.name().startswith("sshd")]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _keygen(path: Path) -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path.with_suffix(".pub").read_text()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("sshd")
    host, other = _keygen(folder / "host"), _keygen(folder / "other")
    (folder / "authorized").write_text(_keygen(folder / "key"))
    port, closed = _free_port(), _free_port()
    name = f"[127.0.0.1]:{port}"
    (folder / "known").write_text(f"{name} {host}")
    (folder / "wrong").write_text(f"{name} {other}")
    (folder / "config").write_text(CONFIG.format(port=port, closed=closed, folder=folder))
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nPidFile none\nAuthorizedKeysFile {folder}/authorized\n"
        "UsePAM no\nStrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        "PermitRootLogin prohibit-password\nLogLevel VERBOSE\n"
    )
    if os.geteuid() == 0:
        os.makedirs("/run/sshd", exist_ok=True)  # What root's sshd chroots its helper into.
    assert SSHD is not None
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log, stdout=log)
    running = Server(process, str(folder / "config"), folder / "log")
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                text = running.log.read_text()
                assert process.poll() is None and time.monotonic() < deadline, text
                time.sleep(0.05)
        yield running
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def board(server: Server, tmp_path: Path) -> DeviceEntry:
    return DeviceEntry("board", "board", None, server.config, str(tmp_path / "agent"), sys.executable)


def connect(board: DeviceEntry, attempts: int = 0) -> DeviceClient:
    return DeviceClient(board.transport(), work=board.work, attempts=attempts, pause=0.1)


def kill_client(client: DeviceClient) -> None:
    """The user's ssh dies."""
    assert isinstance(client._channel, ProcessChannel)
    client._channel.process.kill()


def kill_sessions(server: Server) -> None:
    """The board's side of every connection dies."""
    sessions = server.sessions()
    assert sessions
    for process in sessions:
        process.kill()


def test_the_whole_way(
    server: Server,
    board: DeviceEntry,
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DYNDEPLOY_DEVICES", str(tmp_path / "devices.json"))
    options = ("--ssh-config", server.config, "--work", str(board.work), "--python", sys.executable)
    assert run(["device", "add", "lab", "board", *options]) == 0
    assert run(["device", "probe", "lab", "--json"]) == 0
    capsys_text = capsys.readouterr().out
    facts = json.loads(capsys_text[capsys_text.index("{") :])
    assert facts["target"] is None and facts["work"] == board.work
    page, profile = tmp_path / "report.html", tmp_path / "profile.json"
    command = ["profile", str(bundle.path), "--device", "lab", "--rates", "0.25,1.0", "--repeats", "4"]
    assert run([*command, "--json", str(profile), "--report", str(page)]) == 0
    out, err = capsys.readouterr()
    assert [line for line in err.splitlines() if re.match("Note:|dyndeploy:", line) and WAITING not in line] == []
    for words in ("Verified on the board (5 checks)", "engine static: done", "profile: done", "realisation"):
        assert words in out
    measured = load_profile(profile)
    assert measured.device == "cpu" and measured.runtime["name"] == "onnxruntime"
    assert [result.rate for result in measured.rates] == [0.25, 1.0]
    assert measured.machine["python"] == facts["python"]
    assert "<html" in page.read_text() and facts["cpu"].split()[0] in page.read_text()
    assert run(["compare", str(profile), "-o", str(tmp_path / "compare.html"), "--json"]) == 0
    capsys.readouterr()
    # A second run sends nothing, builds nothing, and measures anew.
    assert run(command) == 0
    out = capsys.readouterr().out
    assert "0.0 MB sent" in out and "engine static: as before" in out and "profile: done" in out
    # The engine of the profile classifies an image, as this machine does.
    photo = str(sample_photographs()[0])
    assert run(["run", str(bundle.path), photo, "--device", "lab", "--json"]) == 0
    there = json.loads(capsys.readouterr().out)
    [here] = classify(bundle, [photo], native="off")
    assert (there["image"], there["label"], there["rates"]) == (photo, here.label, here.rates)
    assert run(["device", "clean", "lab"]) == 0
    assert list((Path(str(board.work)) / "store").iterdir()) == []


def test_early_exits_the_whole_way(
    server: Server,
    board: DeviceEntry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DYNDEPLOY_DEVICES", str(tmp_path / "devices.json"))
    exits = export_model(plain(), tmp_path / "exits", ExportSettings(static=True))
    options = ("--ssh-config", server.config, "--work", str(board.work), "--python", sys.executable)
    assert run(["device", "add", "lab", "board", *options]) == 0
    capsys.readouterr()
    profile, page = tmp_path / "exits.json", tmp_path / "report.html"
    command = ["profile", str(exits.path), "--device", "lab", "--exit-mix", "50/30/20", "--repeats", "3"]
    assert run([*command, "--json", str(profile), "--report", str(page)]) == 0
    out, err = capsys.readouterr()
    # A slow machine's progress is told, and whose job is waited for; nothing else is.
    assert [line for line in err.splitlines() if not re.search(rf"\(\d+%|{WAITING}", line)] == []
    for words in ("Verified on the board (7 checks)", "engine stage2: done", "profile: done", "mix 50/30/20", "exit 3"):
        assert words in out
    measured = load_exit_profile(profile)
    assert measured.runtime["name"] == "onnxruntime" and measured.mixes[0].shares == pytest.approx((0.5, 0.3, 0.2))
    assert "<html" in page.read_text()
    result = tmp_path / "compare.html"
    assert run(["compare", str(profile), "-o", str(result), "--predict-device", "nano", "--json"]) == 0
    (comparison,) = json.loads(capsys.readouterr().out)["comparisons"]
    assert (comparison["profiled_device"], comparison["predicted_device"]) == ("cpu", "nano")
    assert [entry["name"] for entry in comparison["exits"]] == ["exit 1", "exit 2", "exit 3"]
    assert comparison["latency_mape"] is None, "milliseconds of two devices are two different things"


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("wrongkey", ["is not the one that is known", "ssh-keygen -R"]),
        ("unknown", ["is not known yet", "by hand"]),
        ("nokey", ["accepts none of your keys", "ssh-copy-id"]),
        ("closed", ["cannot be reached"]),
        ("no-such-host.invalid", ["cannot be resolved"]),
    ],
)
def test_what_keeps_one_out_is_said(server: Server, host: str, words: list[str]) -> None:
    with pytest.raises(DeviceError) as caught, DeviceClient(SshTransport(host, server.config), attempts=0):
        pass
    assert not isinstance(caught.value, ConnectionLostError)
    for word in words:
        assert word in str(caught.value)


def test_a_board_without_python_and_one_with_a_talkative_login(server: Server, tmp_path: Path) -> None:
    none = SshTransport("board", server.config, "/nowhere/python3")
    with pytest.raises(DeviceError, match="board has no '/nowhere/python3'"), DeviceClient(none, attempts=0):
        pass
    talker = tmp_path / "python"
    talker.write_text(f'#!/bin/sh\necho "Welcome to Ubuntu"\necho "{{}}"\nprintf $\nexec {sys.executable} "$@"\n')
    talker.chmod(0o755)
    transport = SshTransport("board", server.config, str(talker))
    with DeviceClient(transport, work=str(tmp_path / "work"), attempts=0) as client:
        assert client.probe()["work"] == str(tmp_path / "work")
    assert client.foreign == b"Welcome to Ubuntu\n{}\n$"
    broken = tmp_path / "broken"
    broken.write_text("")
    with pytest.raises(UnreachableError, match=r"cannot be run.*Permission denied"):
        DeviceClient(SshTransport("board", server.config, str(broken))).__enter__()


def configured(server: Server, folder: Path, *lines: str) -> str:
    """A configuration with further lines in front: the first value of an option holds."""
    path = folder / "config"
    path.write_text("\n".join([*lines, "Host *", f"Include {server.config}"]))
    return str(path)


@pytest.mark.parametrize(
    "lines",
    [
        ("Host board", "  RemoteCommand tmux new -A", "  RequestTTY yes"),
        ("Host board", "  RequestTTY force"),
        ("Host board", "  ExitOnForwardFailure yes", "  LocalForward {taken} 127.0.0.1:9"),
        ("Host board", "  SessionType none"),
        ("Host board", "  StdinNull yes"),
        ("Host board", "  ForkAfterAuthentication yes"),
        ("Host board", "  ControlMaster auto", "  ControlPersist 30", "  ControlPath /tmp/{taken}-%C"),
        ("Host board", "  PermitLocalCommand yes", "  LocalCommand printf 'Hello from here'"),
        ("Host board", "  LogLevel DEBUG3"),
        ("Host nano", "  HostName 127.0.0.1", "  ProxyJump board"),
    ],
    ids=lambda lines: lines[-1].split()[0],
)
def test_configurations_for_people_do_not_stand_in_the_way(
    server: Server, lines: tuple[str, ...], tmp_path: Path
) -> None:
    host = lines[0].split()[1]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        lines = tuple(line.format(taken=taken.getsockname()[1]) for line in lines)
        config = Path(configured(server, tmp_path, *lines))
        if host == "nano":  # The same server, reached through itself.
            same = Path(server.config).read_text().replace("Host board", "Host nano")
            config.write_text(f"{config.read_text()}\n{same}")
        try:
            transport = SshTransport(host, str(config), sys.executable)
            with DeviceClient(transport, work=str(tmp_path / "work"), attempts=0) as client:
                assert client.call("running") == []
        except DeviceError as error:
            if "Bad configuration option" not in str(error):  # Of a newer OpenSSH.
                raise


@pytest.mark.parametrize(
    ("host", "lines", "words"),
    [
        ("nokey", ("LogLevel QUIET",), ["nokey accepts none of your keys", "Permission denied"]),
        ("unknown", ("LogLevel QUIET",), ["host key of unknown is not known yet"]),
        ("closed", ("LogLevel DEBUG3",), ["closed cannot be reached", "Connection refused"]),
        ("closed", ("Host closed", "  RemoteCommand tmux"), ["closed cannot be reached"]),
        (
            "behind",
            ("Host behind", "  ProxyJump closed"),
            ["closed (127.0.0.1), a host on the way to behind, can"],
        ),
        ("behind", ("Host behind", "  ProxyJump nokey"), ["a host on the way to behind, accepts none of your keys"]),
        ("behind", ("Host behind", "  ProxyJump unknown"), ["The host key of unknown, the host before behind,"]),
        ("behind", ("Host behind", "  ProxyJump no-such.invalid"), ["name of no-such.invalid", "on the way to behind"]),
        (
            "behind",
            ("Host behind", "  HostName 127.0.0.1", "  Port 1", "  ProxyJump board"),
            ["behind cannot be reached from board"],
        ),
        ("behind", ("Host behind", "  ProxyCommand false"), ["ProxyCommand 'false'"]),
        ("behind", ("Host behind", "  ProxyCommand no-such-tool"), ["ProxyCommand 'no-such-tool'", "not found"]),
        ("board", ("NoSuchOption yes",), ["refuses its configuration", "nosuchoption"]),
    ],
)
def test_the_culprit_is_named_with_the_reason_that_ssh_gives(
    server: Server, host: str, lines: tuple[str, ...], words: list[str], tmp_path: Path
) -> None:
    begin = time.monotonic()
    with pytest.raises(UnreachableError) as caught:
        DeviceClient(SshTransport(host, configured(server, tmp_path, *lines))).__enter__()
    assert time.monotonic() - begin < 10
    for word in words:
        assert word in str(caught.value)
    for word in ("Nothing is lost", "was lost"):
        assert word not in str(caught.value)


@pytest.fixture(scope="module")
def large() -> Content:
    return Content.of(np.random.default_rng(0).bytes(6 * CHUNK_BYTES + 12345))


@pytest.mark.parametrize("side", ["client", "board"])
def test_a_connection_lost_in_an_upload(server: Server, board: DeviceEntry, large: Content, side: str) -> None:
    def cut(client: DeviceClient, at: float) -> Any:
        def progress(_: str, fraction: float) -> None:
            nonlocal at
            if fraction >= at:
                at = 2.0
                kill_client(client) if side == "client" else kill_sessions(server)

        return progress

    with connect(board) as client, pytest.raises(ConnectionLostError, match="Run the same command again"):
        client.upload([large], cut(client, 0.4))
    store = Path(str(board.work)) / "store"
    assert [path.name for path in store.iterdir()] == [f"{large.sha256}.part"]
    with connect(board) as client:
        left = client.missing_bytes([large])
        assert 0 < left <= 4 * CHUNK_BYTES + 12345
        client.upload([large], lambda *_: None)
        assert client.uploaded == left
    assert [path.name for path in store.iterdir()] == [large.sha256]
    assert Content.of(store / large.sha256).sha256 == large.sha256


def test_a_client_may_reconnect_by_itself(server: Server, board: DeviceEntry, large: Content) -> None:
    cuts = [0.2, 0.6]

    def progress(_: str, fraction: float) -> None:
        if cuts and fraction >= cuts[0]:
            cuts.pop(0)
            kill_sessions(server)

    with connect(board, attempts=3) as client:
        client.upload([large], progress)
        assert not cuts and client.missing_bytes([large]) == 0


@pytest.mark.parametrize("side", ["client", "board"])
def test_a_connection_lost_in_a_build(server: Server, board: DeviceEntry, tmp_path: Path, side: str) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("no cmake on this machine")
    gate = tmp_path / "gate"
    project = Content.of(waiting_project(gate))
    spec = {"sources": {"CMakeLists.txt": project.sha256}, "library": "libmade.so"}
    with connect(board) as client, pytest.raises(ConnectionLostError):
        client.upload([project], lambda *_: None)

        def cut(message: str, fraction: float) -> None:
            if message == "building the plugins":
                kill_client(client) if side == "client" else kill_sessions(server)

        client.run("plugins", spec, cut)
    with connect(board) as client:
        assert len(client.call("running")) == 1
        gate.write_text("")
        result = client.run("plugins", spec, lambda *_: None)
    assert result.found
    assert (Path(str(board.work)) / "jobs" / result.key / "out" / "libmade.so").read_text() == "made\n"


@pytest.mark.parametrize("side", ["client", "board"])
def test_a_connection_lost_in_a_profile(server: Server, board: DeviceEntry, bundle: Bundle, side: str) -> None:
    options = {"rates": (0.5,), "min_seconds": 2.0}
    with connect(board) as client, pytest.raises(ConnectionLostError):

        def cut(message: str, fraction: float) -> None:
            if "round" in message:
                kill_client(client) if side == "client" else kill_sessions(server)

        profile_on_device(bundle, client, board, **options, progress=cut)  # type: ignore[arg-type]
    with connect(board) as client:
        report = profile_on_device(bundle, client, board, **options)  # type: ignore[arg-type]
        assert set(report.steps.values()) == {"found"} and "profile" in report.steps
        assert report.uploaded_bytes == 0
        assert client.call("running") == []
    assert report.profile.settings["rounds"] >= 12
