"""Atomic output: a file or folder appears under its final name only when it is complete; and text of other programs."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dyndeploy.errors import InputError, NotFiniteError, OutputError
from dyndeploy.finite import first_not_finite

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib
if sys.platform != "win32":
    import fcntl

STORAGE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG})
"""What ``write`` and ``close`` report without naming a file."""

_PART, _OLD = ".part", ".old"

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO or pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def reason_of(error: Exception) -> str:
    """What the system or a library says went wrong, without the file's name; never empty."""
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


def user_folder(variable: str, below_home: str) -> Path | None:
    """Where dyndeploy keeps things of this user; None for a user who has no home.

    Args:
        variable: Names the base folder, such as ``XDG_CONFIG_HOME``; a relative path in it does not count.
        below_home: The base folder without it, such as ``.config``.
    """
    base = os.environ.get(variable, "")
    if not os.path.isabs(base):
        # Neither HOME nor an entry in the list of users, as in a container that runs under a bare number: "~" stays.
        home = os.path.expanduser("~")
        if not os.path.isabs(home):
            return None
        base = os.path.join(home, below_home)
    return Path(base, "dyndeploy")


def unreadable(path: str | os.PathLike[str]) -> str | None:
    """Why a file that may be missing cannot be read: None where it can be, "" where there is none, else the reason."""
    try:
        with open(path, "rb"):
            return None
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        return reason_of(error)


def shipped_folder(name: str) -> Path:
    """Folder that comes with dyndeploy beside its code, such as ``models``: in the package once it is installed.

    It stands beside the package in a source checkout, and with an editable install of one.
    """
    package = Path(__file__).resolve().parent
    installed = package / name
    return installed if installed.is_dir() else package.parent / name


@contextlib.contextmanager
def _own_calls(path: Path, advice: str) -> Iterator[None]:
    """Report an ``OSError`` of this module's own file calls as ``OutputError``."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {reason_of(error)}. {advice}") from error


@contextlib.contextmanager
def _callers_block(path: Path, temporary: Path) -> Iterator[None]:
    """Report an ``OSError`` of the caller's block as ``OutputError`` only if writing the output caused it.

    The block also does the caller's work; an input that it cannot read must not be blamed on the output.
    """
    try:
        yield
    except OSError as error:
        named = [name for name in (error.filename, error.filename2) if isinstance(name, (str, bytes, os.PathLike))]
        inside = any(Path(os.path.abspath(os.fsdecode(name))).is_relative_to(temporary) for name in named)
        if inside or (not named and error.errno in STORAGE_ERRORS):
            raise OutputError(f"Cannot write {path}: {reason_of(error)}. Nothing was changed.") from error
        raise


def _locate(path: Path) -> tuple[Path, int | None]:
    """Follow symbolic links: the real path, and the type bits of what stands there (None: nothing)."""
    try:
        # The kernel is asked before the name is resolved: /dev/stdout may lead to a pipe, which has no name.
        kind: int | None = stat.S_IFMT(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        kind = None
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {reason_of(error)}. Choose another output path.") from error
    except ValueError as error:
        raise OutputError(f"{str(path)!r} cannot be an output path: {error}.") from error
    return Path(os.path.realpath(path)), kind


@contextlib.contextmanager
def _parents(path: Path, parent: Path) -> Iterator[None]:
    """Create the missing folders up to ``parent``; when the block fails, remove those again that are empty."""
    missing = []
    for folder in (parent, *parent.parents):
        if os.path.lexists(folder):
            break
        missing.append(folder)
    created: list[Path] = []
    try:
        try:
            for folder in reversed(missing):
                with contextlib.suppress(FileExistsError):
                    folder.mkdir()
                    created.append(folder)
            if not parent.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        except OSError as error:
            raise OutputError(
                f"Cannot create the folder {path.parent}: {reason_of(error)}. Choose another output path."
            ) from error
        yield
    except BaseException:
        for folder in reversed(created):
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _new_mode(mode: int) -> int:
    """The permissions that a new file gets; ``tempfile`` makes private ones."""
    umask = os.umask(0)
    os.umask(umask)
    return mode & ~umask


def _prefix(target: Path) -> str:
    # Shortened, so that the temporary name fits wherever the final name does.
    return f".{target.name[:40]}."


def _remove(path: Path) -> None:
    def remove() -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()

    try:
        remove()
    except BaseException:
        # An interrupt (Ctrl-C is often pressed twice) must not leave half a folder behind.
        remove()
        raise


def _lock(path: Path, *, wait: bool) -> int | None:
    """Open a file or folder and lock it; None where somebody else holds it, or it cannot be locked.

    The lock ends with the process, however that ends: what nobody holds has lost its writer.
    """
    if sys.platform == "win32":
        return None
    handle = None
    try:
        # Network file systems lock for writing only what is open for writing, which a folder cannot be.
        handle = os.open(path, os.O_NOFOLLOW | (os.O_RDONLY if path.is_dir() else os.O_RDWR))
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        if handle is not None:
            os.close(handle)
        return None
    return handle


@contextlib.contextmanager
def _temporary(given: Path, target: Path, *, folder: bool) -> Iterator[Path]:
    """Yield a new file or folder beside ``target`` under a name and a lock of its own; it is removed at the end."""
    make = tempfile.mkdtemp if folder else _make_file
    with _own_calls(given, "Choose another output path."):
        _sweep(target)
        while True:
            temporary = Path(make(dir=target.parent, prefix=_prefix(target), suffix=_PART))
            lock = _lock(temporary, wait=True)
            # Another writer's sweep may have come between.
            if temporary.exists():
                break
            if lock is not None:
                os.close(lock)
    try:
        yield temporary
    finally:
        _remove(temporary)
        if lock is not None:
            os.close(lock)


def _make_file(dir: Path, prefix: str, suffix: str) -> str:
    handle, name = tempfile.mkstemp(suffix, prefix, dir)
    os.close(handle)
    return name


def _sweep(target: Path) -> None:
    """Remove what writers of ``target`` left that were killed; put an earlier folder back that one had moved away."""
    left = re.compile(re.escape(_prefix(target)) + r"[a-z0-9_]{8}" + re.escape(_PART))
    with contextlib.suppress(OSError):
        for name in filter(left.fullmatch, os.listdir(target.parent)):
            path = target.parent / name
            lock = _lock(path, wait=False)
            if lock is None:
                continue
            _remove(path)
            os.close(lock)
            earlier = path.with_suffix(_OLD)
            if earlier.is_dir() and not os.path.lexists(target):
                earlier.replace(target)


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], seconds: float = 10.0) -> Iterator[None]:
    """Keep other processes that ask for the same path out while the block runs; a process that dies lets go of it.

    Whoever reads a file, changes what it read and writes it back does all three in the block.

    Args:
        path: What is written; it need not exist.
        seconds: How long to wait for another process.

    Raises:
        OutputError: Another process has it for longer, or the folder is not writable.
    """
    given = Path(path)
    target, _ = _locate(given)
    lock = target.parent / f"{_prefix(target)}lock"
    deadline = time.monotonic() + seconds
    with _parents(given, target.parent):
        while (handle := _claim(given, lock)) is None:
            if time.monotonic() > deadline:
                raise OutputError(
                    f"Another process is writing {given}. Wait until it ends, or choose another output path."
                )
            time.sleep(0.02)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                lock.unlink()
            os.close(handle)


def _claim(given: Path, lock: Path) -> int | None:
    """A descriptor that holds the lock file, made where there is none; None while another process does."""
    with _own_calls(given, "Choose another output path."):
        try:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except PermissionError:
            if lock.exists():  # Another user's, who removes it.
                return None
            raise
    if sys.platform == "win32":
        return handle
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its last owner may have removed it since it was opened: then another process can lock a new one.
        if os.path.samestat(os.fstat(handle), os.stat(lock)):
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:  # A file system without locks.
        return handle
    os.close(handle)
    return None


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; move it into place when the block ends without error.

    A symbolic link is written through: the file that it leads to is replaced, the link stays.

    Raises:
        OutputError: ``path`` is a folder, FIFO, socket or device (before the block runs), the folder is not
            writable, or the disk is full. Nothing is left behind, and a file that stood at ``path`` before
            is untouched. Other errors of the block pass through unchanged.
    """
    given = Path(path)
    target, kind = _locate(given)
    if kind not in (None, stat.S_IFREG):
        raise OutputError(
            f"{given} is {_KINDS.get(kind or 0, 'no regular file')}, which cannot be replaced by a file. "
            "Choose another output path; for the standard output use '--json -'."
        )
    with _parents(given, target.parent), _temporary(given, target, folder=False) as temporary:
        with _callers_block(given, temporary):
            yield temporary
        with _own_calls(given, "Nothing was changed."):
            temporary.chmod(_new_mode(0o666))
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            temporary.replace(target)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str], *, replace_if: str | None = None) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; move it into place when the block ends without error.

    A symbolic link is written through: the folder that it leads to is replaced, the link stays.

    Args:
        path: The final folder.
        replace_if: Name of a marker file. An existing non-empty folder at ``path`` is replaced only when it
            holds this file, so that a mistyped path can never delete somebody's data.

    Raises:
        OutputError: ``path`` is in the way, is a folder that cannot be replaced (the current folder, one above
            it, a mount point), the parent is not writable, or the disk is full. Nothing is left behind and an
            earlier folder is untouched; only if moving that one back fails, it stays under the name that the
            message gives. Other errors of the block pass through unchanged.
    """
    given = Path(path)
    target, kind = _locate(given)
    if kind not in (None, stat.S_IFDIR):
        raise OutputError(f"{given} exists and is not a folder. Choose another output path.")
    _require_replaceable(given, target, replace_if)
    with _parents(given, target.parent), _temporary(given, target, folder=True) as temporary:
        with _callers_block(given, temporary):
            yield temporary
        # Asked again: the block may have taken hours, and somebody may have filled the folder meanwhile.
        with locked(target), _own_calls(given, "Nothing was changed."):
            _require_replaceable(given, target, replace_if)
            temporary.chmod(_new_mode(0o777))
            if target.is_dir():
                _swap(given, temporary, target)
            else:
                temporary.replace(target)


def _require_replaceable(given: Path, target: Path, marker: str | None) -> None:
    with _own_calls(given, "Choose another output path."):
        if not target.is_dir():
            return
        occupied = any(target.iterdir()) and not (marker is not None and (target / marker).is_file())
        mounted = target.is_mount()
    try:
        current = Path(os.path.realpath(Path.cwd()))
    except FileNotFoundError:  # deleted under this process: nothing can contain it
        current = None
    why = ""
    if current is not None and current.is_relative_to(target):
        why = "is the current folder" if current == target else "contains the current folder"
    elif mounted:
        why = "is a mount point"
    if why:
        raise OutputError(f"{given} {why} and cannot be replaced as a whole. Give a folder inside it: {given / 'out'}.")
    if occupied:
        raise OutputError(
            f"{given} is not empty and holds no {marker or 'earlier result'}: it is left alone. "
            "Choose another output path."
        )


def _swap(given: Path, temporary: Path, target: Path) -> None:
    """Put ``temporary`` in the place of ``target``: two renames keep the old folder whole until the new one is there.

    The disk, not the program counter, says how far it got: an interrupt may arrive right after a rename.
    """
    previous = temporary.with_suffix(_OLD)
    try:
        target.replace(previous)
        temporary.replace(target)
    except BaseException:
        if previous.is_dir() and temporary.is_dir():
            try:
                previous.replace(target)
            except BaseException as error:
                # A second interrupt may also arrive right after this rename.
                if previous.is_dir():
                    raise OutputError(
                        f"Cannot write {given}, nor put the earlier folder back ({error or type(error).__name__}). "
                        f"The earlier folder is whole: it is now {previous}. Move it back to {target}."
                    ) from error
                raise
        elif previous.is_dir():
            _remove(previous)
        raise
    _remove(previous)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8, atomically; bytes of a file's name that are none become ``\\udcNN``."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(encoded(text))


def shown(path: str | os.PathLike[str]) -> str:
    """A path, or the name of a file, as text that can be kept in results: see :func:`encoded`."""
    return encoded(os.fspath(path)).decode()


def encoded(text: str) -> bytes:
    """``text`` as UTF-8; names of files that are not UTF-8 hold what it cannot write, which becomes ``\\udcNN``."""
    return text.encode("utf-8", "backslashreplace")


def json_text(value: Any, indent: int | None = 2) -> str:
    """Return ``value`` as JSON, which knows neither NaN nor infinities.

    Raises:
        NotFiniteError: A number is one of these; the message says which.
    """
    where = first_not_finite(value)
    if where is not None:
        raise NotFiniteError(f"{where or 'The value'} is NaN or infinite: such a result is not written as JSON.")
    return json.dumps(value, indent=indent, separators=None if indent else (",", ":"), allow_nan=False)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; raises ``NotFiniteError`` as :func:`json_text` does."""
    write_text(path, json_text(value) + "\n")


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a text file that people or other programs may have written: UTF-8 or UTF-16, with or without a mark.

    Raises:
        InputError: The file is missing, unreadable, or in another encoding.
    """
    source = Path(path)
    try:
        content = source.read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read {source}: {reason_of(error)}.") from error
    except ValueError as error:
        raise InputError(f"{str(source)!r} cannot be a path: {error}.") from error
    try:
        # What tells the encodings of JSON apart tells those of any text that begins with an ASCII character.
        return content.decode(json.detect_encoding(content))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{source} is not text in {error.encoding.upper()} (line {line}, byte 0x{content[error.start]:02x}). Save "
            "it as UTF-8."
        ) from error


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        InputError: The file is missing, unreadable or not JSON.
    """
    text = read_text(path)
    if not text.strip():
        raise InputError(f"{path} is not valid JSON: it is empty.")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}.") from error


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a TOML file; raises ``InputError`` where it is missing, unreadable or not TOML."""
    # Unlike open(), decoding leaves the line ends of other systems alone.
    text = read_text(path).replace("\r\n", "\n")
    try:
        return tomllib.loads(text)
    except ValueError as error:
        raise InputError(f"{path} is not valid TOML: {error}.") from error


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as lower-case hex."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
