"""Typed calls to an agent, over whatever transport: reconnects, resumes uploads, follows detached jobs."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from dyndeploy import files
from dyndeploy.errors import ConnectionLostError, DeviceError, UnreachableError
from dyndeploy.remote.transport import Channel, Transport
from dyndeploy.targets import device_of_gpu, target_names

PROTOCOL = 2
CHUNK_BYTES = 1 << 20

_GREETING = "dyndeploy-agent"
_ANSWER_SECONDS = 180.0
_GREETING_SECONDS = 45.0
_POLL_SECONDS = 5.0

Progress = Callable[[str, float], None]


class MissingError(DeviceError):
    """A file that should be on the board is not there any more: send or build it again."""


class _DamagedError(DeviceError):
    """All bytes of a file arrived and are not its own; they were removed."""


@dataclass(frozen=True)
class Content:
    """A file to send: its bytes, or where they are.

    Attributes:
        sha256: Of the bytes.
        size: In bytes.
        source: The bytes, or the path of a file that holds them.
    """

    sha256: str
    size: int
    source: bytes | Path

    @classmethod
    def of(cls, source: bytes | Path) -> Content:
        """Describe bytes or a file."""
        if isinstance(source, Path):
            return cls(files.sha256(source), source.stat().st_size, source)
        return cls(hashlib.sha256(source).hexdigest(), len(source), source)

    def piece(self, offset: int) -> bytes:
        """At most :data:`CHUNK_BYTES` bytes from ``offset``."""
        if isinstance(self.source, bytes):
            return self.source[offset : offset + CHUNK_BYTES]
        with self.source.open("rb") as stream:
            stream.seek(offset)
            return stream.read(CHUNK_BYTES)


@dataclass(frozen=True)
class JobResult:
    """What a job gave.

    Attributes:
        key: Its name; other jobs take its files by it.
        value: Its result.
        found: Whether it had been started before: by an earlier run whose connection was lost, for example.
    """

    key: str
    value: dict[str, Any]
    found: bool


class DeviceClient:
    """A connection to a board's agent. A context manager; leaving it ends the connection, not the jobs.

    Every request may be sent twice without harm: so a lost connection is opened again and the request repeated,
    ``attempts`` times with growing pauses, before it is given up.

    Args:
        transport: The way to the board.
        work: The agent's folder there, or None for its own choice.
        attempts: How often a lost connection is opened again.
        pause: Seconds before the first new attempt; doubled for each further one.

    Attributes:
        uploaded: Bytes sent so far.
        foreign: The beginning of what other programs on the board, such as its login, wrote between the answers.
    """

    def __init__(self, transport: Transport, *, work: str | None = None, attempts: int = 4, pause: float = 1.0) -> None:
        self.transport = transport
        self.uploaded = 0
        self.foreign = b""
        self._arguments = ["serve", *(["--work", work] if work else [])]
        self._attempts = attempts
        self._pause = pause
        self._channel: Channel | None = None
        self._opened = False
        self._numbers = itertools.count(1)

    def __enter__(self) -> DeviceClient:
        """Connect. What never worked is not tried again: raises ``DeviceError``."""
        self._retrying(self._connect)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Disconnect."""
        self._disconnect()

    def _disconnect(self) -> None:
        if self._channel is not None:
            channel, self._channel = self._channel, None
            self.foreign = self.foreign or channel.foreign
            channel.close()

    def _connect(self) -> Channel:
        if self._channel is None:
            channel = self.transport.connect(self._arguments)
            try:
                self._greet(channel)
            except BaseException:
                channel.close()
                raise
            self._channel, self._opened = channel, True
        return self._channel

    def _greet(self, channel: Channel) -> None:
        while True:
            value = _parse(channel.receive(_GREETING_SECONDS))
            if value.get("greeting") != _GREETING:
                continue
            if value.get("protocol") != PROTOCOL:
                raise DeviceError(f"The agent speaks protocol {value.get('protocol')}, this release {PROTOCOL}.")
            if "error" in value:
                raise DeviceError(f"The agent cannot work on {self.transport.label}: {value['error'].get('message')}.")
            return

    def _retrying(self, action: Callable[[], Any]) -> Any:
        for attempt in range(self._attempts + 1):
            try:
                return action()
            except (ConnectionLostError, UnreachableError) as error:
                if not self._opened:
                    raise
                self._disconnect()
                if attempt == self._attempts:
                    lost = "" if isinstance(error, ConnectionLostError) else "The connection was lost, and: "
                    raise ConnectionLostError(
                        f"{lost}{error} Nothing is lost: what was sent is kept, running steps go on there. Run the "
                        "same command again to continue."
                    ) from error
                time.sleep(self._pause * 2**attempt)
        raise AssertionError("unreachable")

    def call(self, command: str, **fields: Any) -> Any:
        """Send a request and return its result.

        Raises:
            ConnectionLostError: The connection was lost and could not be opened again.
            MissingError: A file is not there any more.
            DeviceError: The agent refuses, or cannot do it.
        """

        def once() -> Any:
            channel = self._connect()
            identity = next(self._numbers)
            request = json.dumps({"id": identity, "command": command, **fields}, allow_nan=False)
            channel.send(request.encode() + b"\n")
            while True:
                answer = _parse(channel.receive(_ANSWER_SECONDS))
                if answer.get("id") == identity:
                    break
            if "error" in answer:
                raise self._error(answer["error"], command)
            return answer["result"]

        return self._retrying(once)

    def _error(self, error: Mapping[str, Any], doing: str) -> DeviceError:
        kind, message = error.get("kind"), error.get("message")
        where = self.transport.label
        if kind == "disk_full":
            return DeviceError(
                f"The disk of {where} is full ({message}). Free some space, for example with 'dyndeploy device clean "
                "NAME', and run the same command again: what was sent is kept."
            )
        if kind == "checksum":
            return _DamagedError(
                f"{where}: a file arrived damaged twice: {message}. Check the board's disk and memory."
            )
        if kind == "missing":
            return MissingError(f"{where}: {message}.")
        if kind == "memory":
            return DeviceError(f"{where}: {message}. Close other programs there, or give it swap space.")
        if kind == "busy":
            return DeviceError(f"{where}: {message}. Wait for them, or run the command that started them again.")
        if kind == "unsupported":
            return DeviceError(f"{where}: {message}.")
        return DeviceError(f"{where} failed at '{doing}' ({kind}): {message}")

    def probe(self) -> dict[str, Any]:
        """What the board is; see ``agent.probe``. A computer is known by its first card, of which the table says."""
        facts: dict[str, Any] = self.call("probe")
        if facts["target"] is None and facts["gpus"]:
            name = device_of_gpu(facts["gpus"][0]["name"])
            facts["target"] = name if name in target_names() else None
        return facts

    def missing_bytes(self, contents: Sequence[Content]) -> int:
        """Bytes of these files that are not on the board yet."""
        unique = {content.sha256: content for content in contents}
        have = self.call("have", files=list(unique))
        return sum(content.size - have[sha256][0] for sha256, content in unique.items() if not have[sha256][1])

    def upload(self, contents: Sequence[Content], progress: Progress) -> None:
        """Send the files that the board does not have; a file half sent before is continued.

        Raises:
            DeviceError: The disk is full, or a file arrives damaged again and again.
        """
        unique = list({content.sha256: content for content in contents}.values())
        have = self.call("have", files=[content.sha256 for content in unique])
        total = sum(content.size for content in unique) or 1
        done = 0
        for content in unique:
            offset, whole = have[content.sha256]
            damaged = 0
            while not whole:
                progress("uploading", min((done + offset) / total, 1.0))
                data = content.piece(offset)
                try:
                    offset, whole = self.call(
                        "put",
                        sha256=content.sha256,
                        size=content.size,
                        offset=offset,
                        data=base64.b64encode(data).decode("ascii"),
                        crc32=zlib.crc32(data),
                    )
                    self.uploaded += len(data)
                except _DamagedError:
                    # What an earlier run left can be half of something else. It was removed: once more, from the start.
                    damaged += 1
                    offset = 0
                    if damaged > 1:
                        raise
            done += content.size
        progress("uploading", 1.0)

    def run(self, kind: str, spec: Mapping[str, Any], progress: Progress) -> JobResult:
        """Run a job, or follow one that runs already, or take the result of one that is done.

        Raises:
            MissingError: Something it needs is not there any more.
            DeviceError: It failed.
        """
        found = False
        for restart in range(2):
            started = self.call("start", kind=kind, spec=dict(spec))
            key = started["key"]
            found = found or (started["found"] and restart == 0)
            if not started["found"]:
                # A short job is done before it was ever seen running.
                progress("started", 0.0)
            seen: Any = None
            while True:
                answer = self.call("poll", key=key, wait=_POLL_SECONDS, seen=seen)
                seen = answer["state"]
                if answer["status"] != "running":
                    break
                if isinstance(seen, dict):
                    progress(str(seen.get("message")), float(seen.get("fraction", 0.0)))
            if answer["status"] == "done":
                return JobResult(key, answer["result"], found)
            if answer["status"] == "failed":
                raise self._error(answer["failure"] or {}, kind)
            # It was killed, or the board restarted: once more, then the reason lies with the board.
        tail = str(answer.get("log", "")).strip().splitlines()[-3:]
        raise DeviceError(
            f"{self.transport.label}: the step '{kind}' was ended from outside twice; out of memory is the usual "
            f"reason (see 'dmesg' there). Its last words: {' / '.join(tail) or 'none'}."
        )

    def forget(self, key: str) -> None:
        """Remove a finished job, so that the next one like it runs anew."""
        self.call("forget", key=key)

    def clean(self) -> int:
        """Remove everything that was sent and built; returns the freed megabytes."""
        return int(self.call("clean")["freed_mb"])


def _parse(line: bytes) -> dict[str, Any]:
    """One line as JSON; an empty object where it is something else."""
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
