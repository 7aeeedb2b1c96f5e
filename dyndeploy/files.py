"""Atomic output: a file or folder appears under its final name only when it is complete."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dyndeploy.errors import InputError, OutputError


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _parent_of(path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"Cannot create the folder {path.parent}: {_reason(error)}. Choose another output path."
        ) from error
    return path.parent


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; move it into place when the block ends without error.

    Raises:
        OutputError: The folder is not writable or the disk is full. Nothing is left behind, and a file
            that stood at ``path`` before is untouched.
    """
    target = Path(path)
    parent = _parent_of(target)
    try:
        handle, name = tempfile.mkstemp(dir=parent, prefix=f".{target.name}.", suffix=".part")
        os.close(handle)
    except OSError as error:
        raise OutputError(f"Cannot write {target}: {_reason(error)}. Choose another output path.") from error
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private; an output gets the permissions any new file would have.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(target)
    except OSError as error:
        raise OutputError(f"Cannot write {target}: {_reason(error)}. Nothing was changed.") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str], *, replace_if: str | None = None) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; move it into place when the block ends without error.

    Args:
        path: The final folder.
        replace_if: Name of a marker file. An existing non-empty folder at ``path`` is replaced only when it
            holds this file, so that a mistyped path can never delete somebody's data.

    Raises:
        OutputError: ``path`` is in the way, the parent is not writable, or the disk is full.
    """
    target = Path(path)
    parent = _parent_of(target)
    if target.exists() and not target.is_dir():
        raise OutputError(f"{target} exists and is not a folder. Choose another output path.")
    replaceable = replace_if is not None and (target / replace_if).is_file()
    if target.is_dir() and any(target.iterdir()) and not replaceable:
        raise OutputError(
            f"{target} is not empty and holds no {replace_if or 'earlier result'}: it is left alone. "
            "Choose another output path."
        )
    try:
        temporary = Path(tempfile.mkdtemp(dir=parent, prefix=f".{target.name}.", suffix=".part"))
    except OSError as error:
        raise OutputError(f"Cannot write {target}: {_reason(error)}. Choose another output path.") from error
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        if target.is_dir():
            # Two renames keep the old folder whole until the new one is complete.
            old = Path(tempfile.mkdtemp(dir=parent, prefix=f".{target.name}.", suffix=".old"))
            target.replace(old / "previous")
            try:
                temporary.replace(target)
            except OSError:
                (old / "previous").replace(target)
                raise
            finally:
                shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.replace(target)
    except OSError as error:
        raise OutputError(f"Cannot write {target}: {_reason(error)}. Nothing was changed.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. NaN and infinities are refused with ``ValueError``."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


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
    except ValueError as error:
        raise InputError(f"{source} is not valid JSON: {error}.") from error


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as lower-case hex."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
