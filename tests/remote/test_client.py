"""The client against an agent that answers as the test says: lost answers, refusals, foreign peers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from dyndeploy.errors import ConnectionLostError, DeviceError, UnreachableError, UsageError
from dyndeploy.remote import DeviceClient, LocalTransport, SshTransport, Transport
from dyndeploy.remote.client import CHUNK_BYTES, PROTOCOL, Content, MissingError
from dyndeploy.remote.transport import Channel

GREETING = {"greeting": "dyndeploy-agent", "protocol": PROTOCOL}


class FakeChannel(Channel):
    def __init__(self, transport: FakeTransport) -> None:
        self.transport = transport
        self.lines: list[bytes] = list(transport.first)
        self.open = True

    def send(self, data: bytes) -> None:
        request = json.loads(data)
        self.transport.requests.append(request)
        answer = self.transport.answer(request)
        if answer is not None:
            self.lines.append(json.dumps({"id": request["id"], **answer}).encode() + b"\n")

    def receive(self, seconds: float) -> bytes:
        if not self.lines:
            raise ConnectionLostError("The connection to the fake was lost.")
        return self.lines.pop(0)

    def close(self) -> None:
        self.open = False


class FakeTransport(Transport):
    """``answer`` gives the reply to a request; None loses the connection."""

    label = "fake"

    def __init__(self, answer: Callable[[dict[str, Any]], dict[str, Any] | None], first: Any = GREETING) -> None:
        self.answer = answer
        self.first = [json.dumps(first).encode() + b"\n"]
        self.requests: list[dict[str, Any]] = []
        self.channels: list[FakeChannel] = []
        self.refusals: list[Exception] = []

    def connect(self, arguments: Sequence[str]) -> Channel:
        assert arguments[0] == "serve"
        if self.refusals:
            raise self.refusals.pop()
        self.channels.append(FakeChannel(self))
        return self.channels[-1]


def connected(transport: FakeTransport, attempts: int = 2) -> DeviceClient:
    return DeviceClient(transport, attempts=attempts, pause=0.001)


def test_a_lost_answer_is_asked_for_again() -> None:
    answers: list[dict[str, Any] | None] = [None, None, {"result": 7}]
    transport = FakeTransport(lambda _: answers.pop(0))
    with connected(transport) as client:
        assert client.call("running") == 7
    assert len(transport.channels) == 3 and not any(channel.open for channel in transport.channels)
    assert len({request["id"] for request in transport.requests}) == 3


def test_it_gives_up_and_says_that_nothing_is_lost() -> None:
    transport = FakeTransport(lambda _: None)
    with connected(transport) as client, pytest.raises(ConnectionLostError, match=r"lost\. Nothing is lost.*again"):
        client.call("running")
    assert len(transport.channels) == 3


def test_what_never_opened_is_neither_lost_nor_tried_again() -> None:
    transport = FakeTransport(lambda _: None)
    transport.refusals = [UnreachableError("nobody there")] * 9
    with pytest.raises(UnreachableError, match=r"^nobody there$"), connected(transport):
        pass
    assert len(transport.refusals) == 8


def test_what_was_open_is_opened_again_and_else_called_lost() -> None:
    answers: list[dict[str, Any] | None] = [None, {"result": 7}]
    transport = FakeTransport(lambda _: answers.pop(0))
    with connected(transport) as client:
        transport.refusals = [UnreachableError("No route to host.")]
        assert client.call("running") == 7
        answers.append(None)
        transport.refusals = [UnreachableError("No route to host.")] * 9
        with pytest.raises(ConnectionLostError, match=r"was lost, and: No route to host\. Nothing is lost.*again"):
            client.call("running")


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("disk_full", DeviceError, "device clean"),
        ("missing", MissingError, "text"),
        ("memory", DeviceError, "swap"),
        ("busy", DeviceError, "Wait"),
        ("unsupported", DeviceError, "text"),
        ("bug", DeviceError, "failed at 'probe'"),
        (None, DeviceError, "text"),
    ],
)
def test_refusals(kind: str | None, error: type[DeviceError], words: str) -> None:
    transport = FakeTransport(lambda _: {"error": {"kind": kind, "message": "text"}})
    with connected(transport) as client, pytest.raises(error, match=words):
        client.probe()
    assert len(transport.requests) == 1


@pytest.mark.parametrize(
    ("first", "words"),
    [
        ({"greeting": "dyndeploy-agent", "protocol": 99}, "protocol 99"),
        ({**GREETING, "error": {"kind": "system", "message": "Read-only file system"}}, "Read-only file system"),
    ],
)
def test_foreign_agents(first: Any, words: str) -> None:
    transport = FakeTransport(lambda _: None, first)
    with pytest.raises(DeviceError, match=words), connected(transport):
        pass
    assert not transport.channels[0].open


def test_a_file_that_arrives_damaged_is_sent_once_more_from_the_start() -> None:
    content = Content.of(bytes(2 * CHUNK_BYTES))
    damaged: list[int] = []

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        if request["command"] == "have":
            return {"result": {content.sha256: [CHUNK_BYTES, False]}}
        end = request["offset"] + CHUNK_BYTES
        if end == content.size and len(damaged) < limit:
            damaged.append(request["offset"])
            return {"error": {"kind": "checksum", "message": "wrong"}}
        return {"result": [end, end == content.size]}

    limit = 1
    transport = FakeTransport(answer)
    with connected(transport) as client:
        client.upload([content, content], lambda *_: None)
    assert [r["offset"] for r in transport.requests[1:]] == [CHUNK_BYTES, 0, CHUNK_BYTES]
    limit, damaged = 9, []
    with connected(FakeTransport(answer)) as client, pytest.raises(DeviceError, match="damaged twice"):
        client.upload([content], lambda *_: None)


def test_a_job_that_dies_is_started_once_more() -> None:
    polls = [{"status": "died", "state": None, "log": "Killed\n"}] * 2
    transport = FakeTransport(
        lambda r: {
            "result": {"key": "k", "status": "running", "found": False} if r["command"] == "start" else polls.pop()
        }
    )
    with connected(transport) as client, pytest.raises(DeviceError, match=r"twice.*memory.*Killed"):
        client.run("engine", {}, lambda *_: None)
    assert [r["command"] for r in transport.requests] == ["start", "poll"] * 2


@pytest.mark.parametrize("host", ["", "-oProxyCommand=evil", "a b", "user@host;reboot", "$(x)", "a\nb"])
def test_addresses_that_could_be_options_or_commands_are_refused(host: str) -> None:
    with pytest.raises(UsageError, match="no address"):
        SshTransport(host)


def test_ssh_is_asked_nothing_and_checks_host_keys() -> None:
    command = SshTransport("user@host", "config").command(["serve", "--work", "a b'c"])
    assert command[:3] == ["ssh", "-F", "config"] and command[-3:-1] == ["--", "user@host"]
    assert "BatchMode=yes" in command and "StrictHostKeyChecking=yes" in command
    import shlex

    assert shlex.split(command[-1])[-3:] == ["serve", "--work", "a b'c"]


def test_a_program_that_is_no_python() -> None:
    with pytest.raises(DeviceError, match="Cannot run /nowhere"):
        LocalTransport("/nowhere").connect(["serve"])
    with pytest.raises(DeviceError, match="did not start"), DeviceClient(LocalTransport("/bin/false"), attempts=0):
        pass
