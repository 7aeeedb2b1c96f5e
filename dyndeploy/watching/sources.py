"""Where readings come from: a file of ``dyndeploy-run --stats``, its socket, a board's file, a server's metrics.

What goes wrong at a source is a notice and no error: files are rotated, servers restart, boards are switched off. A
source says it once, and goes on when there is something to read again.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import re
import socket
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dyndeploy.errors import DeviceError, InputError, UsageError
from dyndeploy.remote import DeviceClient, DeviceEntry, load_devices
from dyndeploy.remote.agent import TAIL_BYTES, AgentError, file_tail
from dyndeploy.watching.prometheus import read_metrics
from dyndeploy.watching.reading import Reading, read_line

Item = Reading | str
"""A reading, or a notice."""

_UNIX = "unix:"
_LONGEST_LINE = 1 << 20
_LARGEST_PAGE = 16 << 20
_PATIENCE = 5.0
_TIMEOUT = 5.0


class Source(ABC):
    """Something that can be asked again and again.

    Attributes:
        label: How messages call it.
        pause: Seconds to wait before it is asked again.
    """

    label: str
    pause: float

    def __init__(self) -> None:
        self._said = ""

    @property
    def well(self) -> bool:
        """Whether nothing was wrong when it was asked last."""
        return not self._said

    @abstractmethod
    def poll(self) -> list[Item]:
        """What is new, in order; never waits for long."""

    def close(self) -> None:
        """Let go of it."""
        return

    def _trouble(self, what: str) -> list[Item]:
        """A notice, unless it was the last one."""
        if what == self._said:
            return []
        self._said = what
        return [what]

    def _well(self) -> list[Item]:
        """A notice where the last one was of trouble."""
        back, self._said = self._said, ""
        return [f"{self.label} is there again."] if back else []


class _Lines:
    """Lines out of pieces of a stream: readings, and notices of those that are none."""

    def __init__(self, label: str) -> None:
        self._label, self._rest = label, b""

    def begin(self, *, within: bool) -> None:
        """Forget half a line; ``within``: what comes next begins with half a line."""
        self._rest = b"" if not within else b"\0"

    def feed(self, data: bytes) -> list[Item]:
        """Take the next bytes."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST_LINE:
            self._rest = b"\0"
        items: list[Item] = []
        for line in whole:
            if not line.strip() or line.startswith(b"\0"):
                continue
            try:
                items.append(read_line(line.decode("utf-8", "replace")))
            except InputError as error:
                items.append(f"{self._label}: a line was passed over. {error}")
        return items


class FileSource(Source):
    """A file that another program adds lines to.

    Args:
        label: How messages call it.
        tail: What was added since: see ``agent.file_tail``; ``data`` are bytes.
        pause: Seconds between two calls.
        clock: Seconds, of no particular origin.
    """

    def __init__(
        self,
        label: str,
        tail: Callable[[list[int] | None], dict[str, Any]],
        pause: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self.label, self.pause = label, pause
        self._tail, self._clock = tail, clock
        self._seen: list[int] | None = None
        self._lines = _Lines(label)
        self._heard = clock()
        self._last: Reading | None = None
        self._silent = False

    def poll(self) -> list[Item]:
        """Lines that were added."""
        items: list[Item] = []
        try:
            while True:
                first = self._seen is None
                found = self._tail(self._seen)
                self._seen = [int(number) for number in found["seen"]]
                if not items and not self._silent:
                    items += self._well()
                if found["anew"]:
                    self._lines.begin(within=bool(found["cut"]))
                    if not first:
                        items.append(f"{self.label} was begun anew.")
                items += self._lines.feed(found["data"])
                if len(found["data"]) < TAIL_BYTES:
                    break
        except (AgentError, DeviceError) as error:
            return items + self._trouble(f"{str(error).rstrip('.')}: waiting for it.")
        readings = [item for item in items if isinstance(item, Reading)]
        if readings:
            self._last, self._heard = readings[-1], self._clock()
            if self._silent:
                items = [*self._well(), *items]
            self._silent = False
        return items + self._silence()

    def _silence(self) -> list[Item]:
        """A notice where a session that has not ended says nothing; the line that comes after all takes it back."""
        waited, last = self._clock() - self._heard, self._last
        every = 0.0 if last is None else last.every or 0.0
        if (last is not None and last.ended) or waited <= max(_PATIENCE, 3 * every):
            return []
        self._silent = True
        if last is None:
            return self._trouble(f"{self.label} holds no line yet: waiting.")
        return self._trouble(f"{self.label}: no new line; the program was killed, or hangs. Waiting.")


class SocketSource(Source):
    """The socket of ``dyndeploy-run --stats unix:PATH``."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.label, self.pause = _UNIX + path, 0.2
        self._path = path
        self._socket: socket.socket | None = None
        self._lines = _Lines(self.label)

    def poll(self) -> list[Item]:
        """Lines that have come."""
        items: list[Item] = []
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self._socket.settimeout(_TIMEOUT)
                self._socket.connect(self._path)
            except OSError as error:
                self.close()
                why = error.strerror or error
                return self._trouble(f"nobody answers at {self.label} ({why}): waiting for dyndeploy-run.")
            items += self._well()
            self._lines.begin(within=False)
            # The line of the moment comes at once.
            self._socket.settimeout(1.0)
        else:
            self._socket.setblocking(False)
        try:
            while data := self._socket.recv(1 << 16):
                items += self._lines.feed(data)
                self._socket.setblocking(False)
        except (BlockingIOError, TimeoutError):
            return items
        except OSError:
            pass
        self.close()
        return items + self._trouble(f"{self.label}: the session has ended. Waiting for the next one.")

    def close(self) -> None:
        """Disconnect."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None


class MetricsSource(Source):
    """A server's page of metrics.

    Args:
        url: Its address.
        pause: Seconds between two calls.
    """

    def __init__(self, url: str, pause: float) -> None:
        super().__init__()
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"'{url}' is no address of metrics: give one like http://localhost:8002/metrics.")
        self.label, self.pause = url, pause

    def poll(self) -> list[Item]:
        """A reading of every model."""
        try:
            with urllib.request.urlopen(self.label, timeout=_TIMEOUT) as answer:
                page = answer.read(_LARGEST_PAGE)
            readings = read_metrics(page.decode("utf-8", "replace"), time.time())
        except urllib.error.HTTPError as error:
            error.close()
            return self._trouble(f"{self.label} answers {error.code} {error.reason}: waiting for metrics.")
        except (OSError, http.client.HTTPException) as error:
            why = getattr(error, "reason", None) or error
            return self._trouble(f"{self.label} cannot be reached ({why}): waiting for it.")
        except InputError as error:
            return self._trouble(f"{self.label}: {error}")
        if not readings:
            return self._trouble(f"{self.label} has no metrics of dyndeploy: no model of it has answered yet. Waiting.")
        return [*self._well(), *readings]


class BoardSource(FileSource):
    """A file of ``dyndeploy-run --stats`` on a board of ``dyndeploy device``.

    Args:
        entry: The board.
        path: Of the file there.
        pause: Seconds between two calls.
    """

    def __init__(self, entry: DeviceEntry, path: str, pause: float) -> None:
        self._entry, self._path = entry, path
        self._client: DeviceClient | None = None
        super().__init__(f"{entry.name}:{path}", self._ask, pause)

    def _ask(self, seen: list[int] | None) -> dict[str, Any]:
        try:
            if self._client is None:
                client = DeviceClient(self._entry.transport(), work=self._entry.work, attempts=0)
                client.__enter__()
                self._client = client
            found: dict[str, Any] = self._client.call("tail", path=self._path, seen=seen)
        except DeviceError:
            self.close()
            raise
        return {**found, "data": base64.b64decode(found["data"])}

    def close(self) -> None:
        """Disconnect."""
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(DeviceError):
                client.__exit__(None, None, None)


def open_source(named: str, every: float = 1.0) -> Source:
    """Open what a user names.

    Args:
        named: A file of ``dyndeploy-run --stats``; ``unix:PATH``; ``http://HOST:PORT/metrics``; ``NAME:PATH``, a file
            on a board of ``dyndeploy device``.
        every: Seconds between two looks at a server or a board.

    Raises:
        UsageError: It cannot be any of these. That nothing is there yet is no error.
    """
    if named.startswith(_UNIX):
        if not named[len(_UNIX) :]:
            raise UsageError("unix: needs the path of a socket, e.g. unix:/run/user/1000/stats.")
        return SocketSource(named[len(_UNIX) :])
    if "://" in named:
        return MetricsSource(named, every)
    board = re.fullmatch(r"([A-Za-z0-9][\w.-]*):(.+)", named)
    if board is not None and not Path(named).exists():
        devices = load_devices()
        if board[1] not in devices:
            known = ", ".join(sorted(devices)) or "none"
            raise UsageError(
                f"'{board[1]}' is no device (known: {known}). Add it with 'dyndeploy device add {board[1]} "
                "user@address'; a file here whose name has a colon is written ./FILE."
            )
        return BoardSource(devices[board[1]], board[2], every)
    if not named or Path(named).is_dir():
        raise UsageError(f"'{named}' is no file: give the one that dyndeploy-run --stats writes.")
    return FileSource(named, lambda seen: file_tail(named, seen), min(every, 0.25))
