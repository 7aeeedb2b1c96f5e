"""How bytes reach a board: a process here that starts the agent there and passes on its stdin and stdout."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from queue import Empty, Queue

from dyndeploy.errors import ConnectionLostError, DeviceError, UsageError

# The agent's text comes first on stdin: nothing has to be installed on the board, and it never is an old one.
_BOOTSTRAP = (
    "import sys;s=sys.stdin.buffer;b=s.read(int(s.readline()));g={'__name__':'agent'};"
    "exec(compile(b,'agent.py','exec'),g);sys.exit(g['main'](sys.argv[1:],b))"
)


def agent_source() -> bytes:
    """The text of the agent."""
    return (resources.files("dyndeploy") / "remote" / "agent.py").read_bytes()


class Channel(ABC):
    """An open connection to an agent: lines out, lines in."""

    @abstractmethod
    def send(self, data: bytes) -> None:
        """Send bytes; raises ``ConnectionLostError`` when nobody takes them."""

    @abstractmethod
    def receive(self, seconds: float) -> bytes:
        """Return the next line; raises ``ConnectionLostError`` at the end, or when none comes in time."""

    @abstractmethod
    def close(self) -> None:
        """End the connection; jobs go on."""


class Transport(ABC):
    """A way to a board.

    Attributes:
        label: The board, for messages.
    """

    label: str

    @abstractmethod
    def connect(self, arguments: Sequence[str]) -> Channel:
        """Start an agent with command-line arguments; raises ``DeviceError`` where that is impossible."""


class ProcessChannel(Channel):
    """The pipes of a local process."""

    def __init__(self, command: Sequence[str], label: str) -> None:
        self._label = label
        self._heard = False
        try:
            self.process = subprocess.Popen(
                list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except OSError as error:
            raise DeviceError(f"Cannot run {command[0]}: {error.strerror}.") from error
        self._lines: Queue[bytes | None] = Queue()
        self._errors: list[bytes] = []
        self._readers = [
            threading.Thread(target=self._read_lines, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read_lines(self) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(ValueError, OSError):
            for line in self.process.stdout:
                self._lines.put(line)
        self._lines.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        with contextlib.suppress(ValueError, OSError):
            for line in self.process.stderr:
                self._errors = [*self._errors[-50:], line]

    def send(self, data: bytes) -> None:
        """Send bytes."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(data)
            self.process.stdin.flush()
        except (OSError, ValueError):
            raise self._lost() from None

    def receive(self, seconds: float) -> bytes:
        """Return the next line."""
        try:
            line = self._lines.get(timeout=seconds)
        except Empty:
            self.close()
            raise ConnectionLostError(f"{self._label} has not answered for {seconds:.0f} seconds.") from None
        if line is None or not line.endswith(b"\n"):
            self._lines.put(None)
            raise self._lost()
        self._heard = True
        return line

    def _lost(self) -> DeviceError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self._readers[1].join(5)
        text = b"".join(self._errors).decode("utf-8", "replace").strip()
        return self.explain(self.process.poll(), text, heard=self._heard)

    def explain(self, code: int | None, text: str, *, heard: bool) -> DeviceError:
        """Turn the end of the process into an error.

        Args:
            code: Its exit code.
            text: What it wrote on stderr.
            heard: Whether the agent had answered before.
        """
        detail = f": {text.splitlines()[-1]}" if text else ""
        if heard:
            return ConnectionLostError(f"The connection to {self._label} was lost{detail}.")
        return DeviceError(f"The agent did not start on {self._label} (exit code {code}){detail}.")

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for reader in self._readers:
            reader.join(2)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


@dataclass(frozen=True)
class LocalTransport(Transport):
    """The machine that dyndeploy runs on, as a board.

    Attributes:
        python: Interpreter that runs the agent.
    """

    python: str = sys.executable
    label: str = "this machine"

    def connect(self, arguments: Sequence[str]) -> Channel:
        """Start an agent."""
        channel = ProcessChannel([self.python, "-u", "-c", _BOOTSTRAP, *arguments], self.label)
        _send_agent(channel)
        return channel


@dataclass(frozen=True)
class SshTransport(Transport):
    """A board over the user's own OpenSSH client, with the user's own configuration, keys and known hosts.

    Attributes:
        host: As for ``ssh``: an alias of the configuration, ``user@address``, or ``ssh://user@address:port``.
        config: Another configuration file than the user's, or None.
        python: Interpreter on the board.
    """

    host: str
    config: str | None = None
    python: str = "python3"

    def __post_init__(self) -> None:
        """Refuse what ssh would take for an option, or what no host name can be."""
        if not re.fullmatch(r"[^\s\-'\"\\;|&$`<>()][^\s'\"\\;|&$`<>()]*", self.host):
            raise UsageError(f"'{self.host}' is no address: give user@host, or a host of your ssh configuration.")

    @property
    def label(self) -> str:  # type: ignore[override]
        """The address."""
        return self.host

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The ssh command line."""
        remote = " ".join(shlex.quote(part) for part in (self.python, "-u", "-c", _BOOTSTRAP, *arguments))
        return [
            "ssh",
            *([] if self.config is None else ["-F", self.config]),
            "-T",
            "-x",
            "-a",
            # Never a question that nobody would answer: no password, no unknown host key.
            *("-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes"),
            # A pulled cable is noticed within half a minute.
            *("-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=3"),
            "--",
            self.host,
            remote,
        ]

    def connect(self, arguments: Sequence[str]) -> Channel:
        """Start an agent on the board."""
        if shutil.which("ssh") is None:
            raise DeviceError("There is no ssh client on this machine. Install OpenSSH's.")
        channel = _SshChannel(self.command(arguments), self.host)
        _send_agent(channel)
        return channel


def _send_agent(channel: Channel) -> None:
    source = agent_source()
    # Where the process has ended already, the first answer, which never comes, tells why.
    with contextlib.suppress(DeviceError):
        channel.send(b"%d\n" % len(source) + source)


_SSH_FAILURES = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        "The host key of {host} is not the one that is known for it: another machine answers at this address, or the "
        "board was installed anew. If that is so, remove the old key ('ssh-keygen -R ADDRESS') and connect by hand",
    ),
    (
        r"host key is known|Host key verification failed",
        "The host key of {host} is not known yet. Connect once by hand ('ssh {host}') and compare its fingerprint",
    ),
    (
        r"Permission denied|Too many authentication failures|no mutual signature",
        "{host} accepts none of your keys. Passwords are not used: copy a key there with 'ssh-copy-id {host}', and "
        "load it into your agent if it has a passphrase",
    ),
    (r"Could not resolve hostname", "The name {host} cannot be resolved. Check it, or give the board's address"),
    (
        r"Connection refused|No route to host|Network is unreachable|Connection timed out|Operation timed out",
        "{host} cannot be reached. Is the board on, and does its ssh server run?",
    ),
    (r"Bad owner or permissions|Can't open user config file|Bad configuration option", "ssh refuses its configuration"),
    (
        r"python3?: (?:command )?not found|No such file or directory|not found",
        "{host} has no python3. Install it there",
    ),
)


class _SshChannel(ProcessChannel):
    def explain(self, code: int | None, text: str, *, heard: bool) -> DeviceError:
        if heard:
            return super().explain(code, text, heard=heard)
        last = text.splitlines()[-1] if text else "no message"
        for pattern, message in _SSH_FAILURES:
            if re.search(pattern, text):
                return DeviceError(f"{message.format(host=self._label)} (ssh: {last}).")
        if code == 255:
            return ConnectionLostError(f"The connection to {self._label} was lost (ssh: {last}).")
        return super().explain(code, text, heard=heard)
