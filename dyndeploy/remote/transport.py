"""How bytes reach a board: a process here that starts the agent there and passes on its stdin and stdout."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from queue import Empty, Queue

from dyndeploy.errors import ConnectionLostError, DeviceError, UnreachableError, UsageError

_FIRST_LINE = "dyndeploy-agent"
# The agent's text comes first on stdin: nothing has to be installed on the board, and it never is an old one. Python 2
# must be able to read this and say what it is.
_BOOTSTRAP = (
    "import sys;sys.version_info<(3,6) and sys.exit('dyndeploy: Python '+sys.version.split()[0]+' is too old');"
    "s=sys.stdin.buffer;h=s.readline().split();"
    f"h[:1]==[b'{_FIRST_LINE}'] or sys.exit('dyndeploy: the input does not begin with the agent');"
    "b=s.read(int(h[1]));g={'__name__':'agent'};exec(compile(b,'agent.py','exec'),g);sys.exit(g['main'](sys.argv[1:],b))"
)
_FRAME = re.compile(rb"<dyndeploy ([+.]) ([0-9a-f]{8}) ([^<\n]*)\n")
_LONGEST_FRAME = 8192
_SHOWN = 4000
_CHUNK = 1 << 16


def agent_source() -> bytes:
    """The text of the agent."""
    return (resources.files("dyndeploy") / "remote" / "agent.py").read_bytes()


class Frames:
    """Finds an agent's answers (``agent.frames``) in a stream that logins and other programs write to as well.

    Attributes:
        foreign: The beginning of what the others wrote.
    """

    def __init__(self) -> None:
        self.foreign = b""
        self._rest = b""
        self._pieces: list[bytes] = []

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes; returns the answers that they complete."""
        text, answers, position = self._rest + data, [], 0
        for found in _FRAME.finditer(text):
            last, checksum, piece = found.groups()
            if zlib.crc32(piece) != int(checksum, 16):
                continue
            self._skip(text[position : found.start()])
            position = found.end()
            self._pieces.append(piece)
            if last == b".":
                answers.append(b"".join(self._pieces))
                self._pieces = []
        # No frame holds this sign, so only the last one can be the beginning of one that is still on its way.
        begun = text.rfind(b"<", max(position, len(text) - _LONGEST_FRAME))
        begun = len(text) if begun < 0 or b"\n" in text[begun:] else begun
        self._skip(text[position:begun])
        self._rest = text[begun:]
        return answers

    def _skip(self, text: bytes) -> None:
        self.foreign += text[: _SHOWN - len(self.foreign)]


def readable(text: bytes, length: int = 300) -> str:
    """Text of an unknown program as one line that can be printed: without control characters, and not too long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text.decode("utf-8", "replace")).split())
    return line if len(line) <= length else f"{line[:length]} ..."


class Channel(ABC):
    """An open connection to an agent: lines out, answers in.

    Attributes:
        foreign: The beginning of what others than the agent wrote into it.
    """

    foreign: bytes = b""

    @abstractmethod
    def send(self, data: bytes) -> None:
        """Send bytes; raises ``ConnectionLostError`` when nobody takes them."""

    @abstractmethod
    def receive(self, seconds: float) -> bytes:
        """Return the next answer.

        Raises:
            UnreachableError: The agent has not said anything yet, and the connection ends, or the time is over.
            ConnectionLostError: The same later.
        """

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
    """The pipes of a local process that leads to an agent; the agent's text is sent first.

    Args:
        command: What starts it.
        label: The board, for messages.
        python: The interpreter there, for messages.
    """

    def __init__(self, command: Sequence[str], label: str, python: str) -> None:
        self._label, self._python = label, python
        self._heard = False
        try:
            # A session of its own: no question is asked on the terminal, and all that it starts ends with it.
            self.process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as error:
            raise DeviceError(f"Cannot run {command[0]}: {error.strerror}.") from error
        self._frames = Frames()
        self._answers: Queue[bytes | None] = Queue()
        self._errors = b""
        self._readers = [threading.Thread(target=work, daemon=True) for work in (self._read_answers, self._read_errors)]
        # Beside the readers: whatever stands in the agent's place may read nothing.
        for thread in (*self._readers, threading.Thread(target=self._send_agent, daemon=True)):
            thread.start()

    @property
    def foreign(self) -> bytes:  # type: ignore[override]
        """What others than the agent wrote."""
        return self._frames.foreign

    def _send_agent(self) -> None:
        source = agent_source()
        # Where the process has ended already, the first answer, which never comes, tells why.
        with contextlib.suppress(OSError, ValueError):
            self._write(b"%s %d\n" % (_FIRST_LINE.encode(), len(source)) + source)

    def _write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        while data:
            data = data[self.process.stdin.write(data) :]

    def _read_answers(self) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(ValueError, OSError):
            while data := self.process.stdout.read(_CHUNK):
                for answer in self._frames.feed(data):
                    self._answers.put(answer)
        self._answers.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        with contextlib.suppress(ValueError, OSError):
            while data := self.process.stderr.read(_CHUNK):
                self._errors = (self._errors + data)[-_CHUNK:]

    def send(self, data: bytes) -> None:
        """Send bytes."""
        try:
            self._write(data)
        except (OSError, ValueError):
            raise self._lost() from None

    def receive(self, seconds: float) -> bytes:
        """Return the next answer."""
        try:
            answer = self._answers.get(timeout=seconds)
        except Empty:
            self.close()
            if self._heard:
                raise ConnectionLostError(f"{self._label} has not answered for {seconds:.0f} seconds.") from None
            raise UnreachableError(
                f"No agent answered on {self._label} for {seconds:.0f} seconds: what its login starts does not end, or "
                f"'{self._python}' is no Python there.{_printed(self.foreign or self._errors)}"
            ) from None
        if answer is None:
            self._answers.put(None)
            raise self._lost()
        self._heard = True
        return answer

    def _lost(self) -> DeviceError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self._readers[1].join(5)
        text = self._errors.decode("utf-8", "replace").strip()
        return self.explain(self.process.poll(), text, heard=self._heard)

    def explain(self, code: int | None, text: str, *, heard: bool) -> DeviceError:
        """Turn the end of the process into an error.

        Args:
            code: Its exit code.
            text: What it wrote on stderr.
            heard: Whether the agent had answered before.
        """
        last = _telling(text)
        if heard:
            return ConnectionLostError(f"The connection to {self._label} was lost{last and f': {last}'}.")
        python, label = self._python, self._label
        too_old = re.search(r"dyndeploy: Python (\S+) is too old", text)
        if too_old:
            what = f"'{python}' on {label} is Python {too_old[1]}, and the agent needs 3.6 or newer. {_NAME_ANOTHER}"
        elif "dyndeploy: the input does not begin" in text:
            what = (
                f"A program that the login on {label} starts has read what was sent to the agent ('read' or 'ssh' in "
                "~/.bashrc?). Let only logins with a terminal start it."
            )
        elif code == 127 or re.search(r"[Cc]ommand not found|[Uu]nknown command|: not found$", text, re.MULTILINE):
            what = f"{label} has no '{python}'. Install it there, or name another: {_NAME_ANOTHER}"
        elif code == 126:
            what = f"'{python}' on {label} cannot be run. {_NAME_ANOTHER}"
        else:
            what = f"The agent did not start on {label}: '{python}' ended with exit code {code}."
        return UnreachableError(f"{what}{last and f' ({last})'}{_printed(self.foreign)}")

    def close(self) -> None:
        """End the process and all that it started."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(2 if self._heard else 0.1)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for reader in self._readers:
            reader.join(2)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


_NAME_ANOTHER = "'dyndeploy device add NAME HOST --python INTERPRETER' names the one to use."


def _printed(text: bytes) -> str:
    """What was printed instead of answers, as a sentence with a blank before it."""
    printed = readable(text)
    return f" It printed: {printed}" if printed else ""


def _telling(text: str) -> str:
    """The line of an error output that tells most: the last one that speaks of a failure, else the last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not re.search(_SAYS_NOTHING, line)]
    failures = [line for line in lines if re.search(r"(?i)error|denied|fail|can't|unable|refused|not |no ", line)]
    return readable((failures or lines or [""])[-1].encode())


_SAYS_NOTHING = r"UNKNOWN port|^kex_exchange_identification|^\*\* |^Pseudo-terminal"


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
        return ProcessChannel([self.python, "-u", "-c", _BOOTSTRAP, *arguments], self.label, self.python)


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

    def command(self, arguments: Sequence[str], settings: Mapping[str, str] | None = None) -> list[str]:
        """The ssh command line.

        Args:
            arguments: Of the agent.
            settings: What ssh's configuration says of the host (:func:`ssh_settings`).
        """
        remote = " ".join(shlex.quote(part) for part in (self.python, "-u", "-c", _BOOTSTRAP, *arguments))
        settings = settings or {}
        options = [
            # Never a question that nobody would answer: no password, no unknown host key.
            *("BatchMode=yes", "StrictHostKeyChecking=yes"),
            # A pulled cable is noticed within half a minute.
            *("ConnectTimeout=15", "ServerAliveInterval=10", "ServerAliveCountMax=3"),
            # What a configuration adds to a person's login: another command, forwardings that may be taken, silence.
            *("RemoteCommand=none", "ClearAllForwardings=yes", "ControlMaster=no", "LogLevel=INFO"),
            # Named only to an ssh that knows them.
            *(f"{name}={value}" for name, value in _PLAIN_LOGIN.items() if settings.get(name.lower(), value) != value),
        ]
        return [
            "ssh",
            *([] if self.config is None else ["-F", self.config]),
            "-T",
            "-x",
            "-a",
            *(part for option in options for part in ("-o", option)),
            "--",
            self.host,
            remote,
        ]

    def connect(self, arguments: Sequence[str]) -> Channel:
        """Start an agent on the board."""
        if shutil.which("ssh") is None:
            raise DeviceError("There is no ssh client on this machine. Install OpenSSH's.")
        settings = ssh_settings(self.host, self.config)
        return _SshChannel(self, self.command(arguments, settings), settings)


_PLAIN_LOGIN = {"SessionType": "default", "ForkAfterAuthentication": "no", "StdinNull": "no"}
"""Options of ssh that must have these values."""


def ssh_settings(host: str, config: str | None) -> dict[str, str]:
    """What ssh's configuration says of a host (``ssh -G``), by option in lower case; empty where ssh does not tell."""
    command = ["ssh", *([] if config is None else ["-F", config]), "-G", "--", host]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        start_new_session=True,
    )
    assert process.stdout is not None
    with process.stdout as stream:
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        # What a wrapper of ssh has left running may hold the pipe open.
        os.set_blocking(stream.fileno(), False)
        text = (stream.read(_CHUNK) or b"").decode("utf-8", "replace")
    return dict(line.split(" ", 1) for line in text.splitlines() if " " in line)


_SSH_FAILURES = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        "The host key of {who} is not the one that is known for it: another machine answers at this address, or it was "
        "installed anew. If that is so, remove the old key ('ssh-keygen -R ADDRESS') and connect by hand",
    ),
    (
        r"host key is known|Host key verification failed",
        "The host key of {who} is not known yet. Connect once by hand ('ssh {host}') and compare its fingerprint",
    ),
    (
        r"UNPROTECTED PRIVATE KEY",
        "ssh does not use your key for {who}, because others may read its file: 'chmod 600 FILE'",
    ),
    (
        r"Permission denied|Too many authentication failures|no mutual signature",
        "{who} accepts none of your keys. Passwords are not used: copy a key there with 'ssh-copy-id {host}', and "
        "load it into your agent if it has a passphrase",
    ),
    (r"Could not resolve hostname", "The name of {who} cannot be resolved. Check it, or give the address"),
    (
        r"administratively prohibited|open failed: unknown",
        "{who} lets nobody through to {board}: its ssh server forbids forwarding (AllowTcpForwarding)",
    ),
    (
        r"open failed: connect failed",
        "{board} cannot be reached from {host}, the host before it. Is it on, and does its ssh server run?",
    ),
    (
        r"Connection refused|No route to host|Network is unreachable|Connection timed out|Operation timed out",
        "{who} cannot be reached. Is it on, and does its ssh server run?",
    ),
    (
        r"Bad owner or permissions|Can't open user config file|Bad configuration option|[Bb]ad configuration|"
        r"keyword .* extra arguments|unsupported option|Cannot execute",
        "ssh refuses its configuration for {who}",
    ),
)
"""What ssh says when it gives up, and what that means. {who}: whom it is about, {host}: its name for commands."""

_NAMED_HOSTS = (
    r"connect to host (\S+) port (\d+)",
    r"resolve hostname (\S+?):",
    r"host key is known for \[?([^\s\]]+)\]?(?::(\d+))?",
    r"[Hh]ost key for \[?([^\s\]]+)\]?(?::(\d+))? has changed",
    r"\S@(\S+?): Permission denied",
)
"""How ssh names the host that it speaks of, and its port."""


class _SshChannel(ProcessChannel):
    def __init__(self, transport: SshTransport, command: Sequence[str], settings: Mapping[str, str]) -> None:
        self._transport, self._settings = transport, settings
        super().__init__(command, transport.label, transport.python)

    def explain(self, code: int | None, text: str, *, heard: bool) -> DeviceError:
        # 255 is ssh's own; everything else is the exit code of what it started.
        if heard or code != 255:
            return super().explain(code, text, heard=heard)
        who, host = self._culprit(text)
        for pattern, message in _SSH_FAILURES:
            found = re.search(rf"^.*(?:{pattern}).*$", text, re.MULTILINE)
            if found:
                said = message.format(who=who, host=host, board=self._label)
                return UnreachableError(f"{said} (ssh: {readable(found[0].removeprefix('ssh: ').encode())}).")
        told = _telling(text)
        reason = (
            f"ssh: {told.removeprefix('ssh: ')}"
            if told
            else f"ssh gives no reason; 'ssh -v {host}' shows how far it comes"
        )
        where = "" if who == self._label else f": it failed at {who.rstrip(',')}"
        return UnreachableError(
            f"No connection to {self._label} could be opened{where} ({reason}).{_printed(self.foreign)}"
        )

    def _culprit(self, text: str) -> tuple[str, str]:
        """Whom ssh's message is about, in words, and its name for commands: the board, or a host on the way to it."""
        label = self._label
        proxy, jumps = (self._settings.get(key, "none") for key in ("proxycommand", "proxyjump"))
        forbidden = "open failed: " in text
        if not forbidden and "UNKNOWN port" not in text:
            return label, label
        hops = [] if jumps == "none" else jumps.split(",")
        named = next((found for pattern in _NAMED_HOSTS if (found := re.search(pattern, text))), None)
        if named is not None and not forbidden:
            address, port = named[1], named[2] if named.re.groups > 1 else None
            for hop in hops:
                its = ssh_settings(hop if "://" in hop else f"ssh://{hop}", self._transport.config)
                if its.get("hostname", hop) == address and port in (None, its.get("port")):
                    where = "" if address in hop else f" ({address})"
                    return f"{hop}{where}, a host on the way to {label},", hop
            return f"{address}, a host on the way to {label},", address
        if hops:
            named_hops = hops[0] if len(hops) == 1 else f"one of {' and '.join(hops)}"
            return f"{named_hops}, the host before {label},", hops[-1]
        return f"its ProxyCommand '{proxy}'", label
