"""Atomic output: a file or folder appears under its final name only when it is complete."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dyndeploy.errors import InputError, NotFiniteError, OutputError
from dyndeploy.finite import first_not_finite

_STORAGE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG})
"""What ``write`` and ``close`` report without naming a file."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO or pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


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
        raise OutputError(f"Cannot write {path}: {_reason(error)}. {advice}") from error


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
        if inside or (not named and error.errno in _STORAGE_ERRORS):
            raise OutputError(f"Cannot write {path}: {_reason(error)}. Nothing was changed.") from error
        raise


def _locate(path: Path) -> tuple[Path, int | None]:
    """Follow symbolic links: the real path, and the type bits of what stands there (None: nothing)."""
    try:
        # The kernel is asked before the name is resolved: /dev/stdout may lead to a pipe, which has no name.
        kind: int | None = stat.S_IFMT(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        kind = None
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {_reason(error)}. Choose another output path.") from error
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
                f"Cannot create the folder {path.parent}: {_reason(error)}. Choose another output path."
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


def _remove_tree(folder: Path) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except BaseException:
        # An interrupt (Ctrl-C is often pressed twice) must not leave half a folder behind.
        shutil.rmtree(folder, ignore_errors=True)
        raise


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
    with _parents(given, target.parent):
        with _own_calls(given, "Choose another output path."):
            handle, name = tempfile.mkstemp(dir=target.parent, prefix=_prefix(target), suffix=".part")
            os.close(handle)
        temporary = Path(name)
        try:
            with _callers_block(given, temporary):
                yield temporary
            with _own_calls(given, "Nothing was changed."):
                temporary.chmod(_new_mode(0o666))
                with temporary.open("rb") as stream:
                    os.fsync(stream.fileno())
                temporary.replace(target)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


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
    with _parents(given, target.parent):
        with _own_calls(given, "Choose another output path."):
            temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=_prefix(target), suffix=".part"))
        try:
            with _callers_block(given, temporary):
                yield temporary
            # Asked again: the block may have taken hours, and somebody may have filled the folder meanwhile.
            _require_replaceable(given, target, replace_if)
            with _own_calls(given, "Nothing was changed."):
                temporary.chmod(_new_mode(0o777))
                if target.is_dir():
                    _swap(given, temporary, target)
                else:
                    temporary.replace(target)
        finally:
            _remove_tree(temporary)


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
    previous = temporary.with_suffix(".old")
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
            _remove_tree(previous)
        raise
    _remove_tree(previous)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def json_text(value: Any, indent: int | None = 2) -> str:
    """Return ``value`` as JSON, which knows neither NaN nor infinities.

    Raises:
        NotFiniteError: A number is one of these; the message says which.
    """
    where = first_not_finite(value)
    if where is not None:
        raise NotFiniteError(f"{where or 'The value'} is NaN or infinite: such a result is not written as JSON.")
    return json.dumps(value, indent=indent, allow_nan=False)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; raises ``NotFiniteError`` as :func:`json_text` does."""
    write_text(path, json_text(value) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        InputError: The file is missing, unreadable or not JSON.
    """
    source = Path(path)
    try:
        return json.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"Cannot read {source}: {_reason(error)}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source} is not valid JSON: {error}.") from error


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as lower-case hex."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
