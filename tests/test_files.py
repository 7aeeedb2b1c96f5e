from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from dyndeploy import files
from dyndeploy.errors import InputError, OutputError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_appears_only_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.txt"
    with files.atomic_file(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert names(target.parent) == ["a.txt"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("error", [ValueError("boom"), KeyboardInterrupt()])
def test_a_failure_keeps_the_old_file(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(type(error)), files.atomic_file(target) as temporary:
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_full_disk_is_reported_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No space left"), files.atomic_directory(tmp_path / "b") as folder:
        (folder / "half").write_text("x")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path) == []


def test_unwritable_parent_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="Cannot create the folder"), files.atomic_file(tmp_path / "file" / "a"):
        pytest.fail("must not run")
    with pytest.raises(OutputError, match="Cannot create the folder"), files.atomic_directory(tmp_path / "file" / "a"):
        pytest.fail("must not run")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that refuses writes even to root")
def test_read_only_file_system() -> None:
    with pytest.raises(OutputError), files.atomic_directory("/proc/dyndeploy/bundle"):
        pytest.fail("must not run")


def test_directory_replaces_only_its_own_kind(tmp_path: Path) -> None:
    target = tmp_path / "b"
    for content in ("first", "second"):
        with files.atomic_directory(target, replace_if="marker") as folder:
            (folder / "marker").write_text(content)
    assert (target / "marker").read_text() == "second"
    assert names(tmp_path) == ["b"]
    (target / "marker").unlink()
    (target / "precious").write_text("x")
    with pytest.raises(OutputError, match="not empty"), files.atomic_directory(target, replace_if="marker"):
        pytest.fail("must not run")
    assert names(target) == ["precious"]
    (tmp_path / "plain").write_text("x")
    with pytest.raises(OutputError, match="is not a folder"), files.atomic_directory(tmp_path / "plain"):
        pytest.fail("must not run")


def test_failed_replacement_keeps_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "b"
    with files.atomic_directory(target, replace_if="marker") as folder:
        (folder / "marker").write_text("first")
    with pytest.raises(RuntimeError), files.atomic_directory(target, replace_if="marker") as folder:
        (folder / "marker").write_text("half")
        raise RuntimeError
    assert (target / "marker").read_text() == "first"
    assert names(tmp_path) == ["b"]


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"a": [1, 2.5]})
    assert files.read_json(path) == {"a": [1, 2.5]}
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(path, float("nan"))
    assert files.read_json(path) == {"a": [1, 2.5]}
    path.write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        files.read_json(path)
    with pytest.raises(InputError, match="No such file"):
        files.read_json(tmp_path / "missing.json")


def test_sha256(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert files.sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
