"""What comes back from a board besides answers, and processes that are no agent."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dyndeploy.bundle import Bundle
from dyndeploy.errors import ConnectionLostError, DeviceError, UnreachableError, UsageError
from dyndeploy.remote import DeviceClient, DeviceEntry, LocalTransport, SshTransport, agent, client
from dyndeploy.remote.profiling import require_possible
from dyndeploy.remote.transport import Frames, ProcessChannel, readable
from dyndeploy.targets import load_target

JUNK = st.one_of(
    st.binary(max_size=300),
    st.sampled_from(
        [
            b"Welcome to Ubuntu\n",
            b"\x1b]0;me@nano\x07",
            b"<dyndeploy . ",
            b"<dyndeploy . 00000000 {}\n",
            b"<dyndeploy + 1234",
            b'{"greeting": "dyndeploy-agent"}\n',
            bytes(range(256)) * 64,
        ]
    ),
)


@settings(deadline=None)
@given(
    parts=st.lists(st.tuples(JUNK, st.integers(0, 3 * agent.PIECE_BYTES)), max_size=5),
    last=JUNK,
    cuts=st.lists(st.integers(0, 40000), max_size=8),
)
@example(parts=[(b"no line end", 10), (b"", 0), (b"", 9000)], last=b"<", cuts=[])
def test_answers_are_found_in_whatever_is_around_them(
    parts: list[tuple[bytes, int]], last: bytes, cuts: list[int]
) -> None:
    stream, sent, foreign = b"", [], b""
    for junk, size in parts:
        sent.append(b"x" * size)
        pieces = list(agent.frames(sent[-1]))
        # Also between the pieces of one answer.
        stream += b"".join(junk + piece for piece in pieces)
        foreign += junk * len(pieces)
    stream, foreign = stream + last, foreign + last
    frames, found, position = Frames(), [], 0
    for cut in [*sorted(cuts), len(stream)]:
        found += frames.feed(stream[position:cut])
        position = max(position, cut)
    assert found == sent
    # Only what may be the beginning of a frame that is still on its way is held back.
    assert foreign.startswith(frames.foreign)
    assert len(frames.foreign) == 4000 or b"\n" not in foreign[len(frames.foreign) :]


def test_long_answers_travel_in_pieces_that_pipes_keep_whole() -> None:
    pieces = list(agent.frames(b"y" * 100_000))
    assert len(pieces) == 25 and max(map(len, pieces)) <= 4096
    assert Frames().feed(b"".join(pieces)) == [b"y" * 100_000]


def test_text_of_unknown_programs_is_shown_without_control_characters() -> None:
    assert readable(b"\x1b]0;me@nano\x07Hello\r\n  w\xf6rld\x00") == "]0;me@nano Hello w\ufffdrld"
    assert readable(b"a" * 1000) == "a" * 300 + " ..."


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    "login",
    [
        r"printf '\033]0;me@nano\007'",
        "echo Welcome; printf 'no line end'",
        "head -c 300000 /dev/urandom",
        "yes | head -c 3000000",
        "(while sleep 0.02; do printf 'reminder'; done) &",
    ],
)
def test_logins_that_print(login: str, tmp_path: Path) -> None:
    python = script(tmp_path / "python", f'{login}\nexec {sys.executable} "$@"')
    with DeviceClient(LocalTransport(python), work=str(tmp_path / "work"), attempts=0) as connected:
        assert connected.probe()["work"] == str(tmp_path / "work")
        for _ in range(20):
            assert connected.call("running") == []
            time.sleep(0.005)
    assert connected.foreign


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("exit 3", ["did not start", "exit code 3"]),
        ("echo 'This account is not available.'; exit 1", ["It printed: This account is not available."]),
        ("echo 'Fatal Python error: no encodings' >&2; exit 1", ["Fatal Python error: no encodings"]),
        ("cat", ["No agent answered", "It printed: dyndeploy-agent"]),
        ("exec sleep 60", ["No agent answered", "no Python there"]),
        ("yes", ["No agent answered", "It printed: y y y"]),
        ('read line; exec PYTHON "$@"', ["has read what was sent to the agent"]),
    ],
)
def test_what_is_no_agent_is_said_at_once(
    text: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_GREETING_SECONDS", 1.0)
    python = script(tmp_path / "python", text.replace("PYTHON", sys.executable))
    begin = time.monotonic()
    with pytest.raises(UnreachableError) as caught, DeviceClient(LocalTransport(python)):
        pass
    assert time.monotonic() - begin < 10
    for word in words:
        assert word in str(caught.value)
    assert "Nothing is lost" not in str(caught.value)


def old_python() -> str | None:
    found = [shutil.which("python2.7"), *map(str, (Path.home() / ".pyenv/versions").glob("2.7.*/bin/python2.7"))]
    # pyenv puts stubs into the PATH for versions that are not switched on.
    usable = [path for path in found if path and os.system(f"'{path}' -c '' 2>/dev/null") == 0]
    return usable[0] if usable else None


def test_a_python_that_is_too_old_is_named() -> None:
    python = old_python()
    if python is None:
        pytest.skip("no Python 2.7 on this machine")
    with pytest.raises(DeviceError, match=r"is Python 2\.7\.\d+, and the agent needs 3\.6 or newer.*--python"):
        DeviceClient(LocalTransport(python)).__enter__()


def test_a_lack_of_modules_names_the_interpreter(entry: DeviceEntry, bundle: Bundle) -> None:
    facts = {"model": None, "cpu": "X", "modules": {}, "python": "3.8.10", "interpreter": "/opt/conda/bin/python3"}
    with pytest.raises(UsageError, match=r"/opt/conda/bin/python3\) lacks numpy.*onnxruntime.*--python"):
        require_possible(bundle, load_target("cpu"), facts, entry)


def test_an_agent_that_falls_silent_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_ANSWER_SECONDS", 0.2)
    with DeviceClient(LocalTransport(), work=str(tmp_path), attempts=0) as connected:
        assert isinstance(connected._channel, ProcessChannel)
        os.kill(connected._channel.process.pid, 19)
        with pytest.raises(ConnectionLostError, match="has not answered"):
            connected.call("running")


@pytest.mark.parametrize("login", ["printf 'no line end'", "(while sleep 0.01; do printf zz; done) &", "echo a b"])
def test_wrappers_of_ssh_may_print_and_leave_things_running(
    login: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    script(tmp_path / "bin" / "ssh", f'{login}\nwhile [ "$1" != "--" ]; do shift; done\nexec bash -c "$3"')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    begin = time.monotonic()
    transport = SshTransport("me@nano", None, sys.executable)
    with DeviceClient(transport, work=str(tmp_path / "work"), attempts=0) as connected:
        assert connected.call("running") == []
    assert time.monotonic() - begin < 15
