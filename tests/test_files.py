from __future__ import annotations

import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dyndeploy import files
from dyndeploy.errors import InputError, NotFiniteError, OutputError


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


REPLACE = Path.replace


def break_renames(monkeypatch: pytest.MonkeyPatch, error: BaseException, *, at: set[int], after: bool) -> list[Path]:
    """Let the renames with these numbers (from 1) raise, before or right after they happen; returns the sources."""
    calls: list[Path] = []

    def replace(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) in at and not after:
            raise error
        result = REPLACE(self, target)
        if len(calls) in at:
            raise error
        return result

    monkeypatch.setattr(Path, "replace", replace)
    return calls


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    target = tmp_path / "b"
    with files.atomic_directory(target, replace_if="marker") as folder:
        (folder / "marker").write_text("first")
    return target


def replace_by_second(target: Path) -> None:
    with files.atomic_directory(target, replace_if="marker") as folder:
        (folder / "marker").write_text("second")


@pytest.mark.parametrize(
    ("error", "at", "after", "content"),
    [
        (OSError(errno.EACCES, "refused"), {1}, False, "first"),
        (OSError(errno.EACCES, "refused"), {2}, False, "first"),
        (KeyboardInterrupt(), {1}, False, "first"),
        (KeyboardInterrupt(), {1}, True, "first"),
        (KeyboardInterrupt(), {2}, False, "first"),
        (KeyboardInterrupt(), {2}, True, "second"),
        (KeyboardInterrupt(), {1, 2}, True, "first"),
    ],
)
def test_an_error_at_a_rename_loses_no_folder(
    earlier: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, at: set[int], after: bool, content: str
) -> None:
    calls = break_renames(monkeypatch, error, at=at, after=after)
    with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt):
        replace_by_second(earlier)
    assert max(at) <= len(calls)
    assert (earlier / "marker").read_text() == content
    assert names(earlier.parent) == ["b"], "neither the new nor the old folder may stay under a temporary name"


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "refused"), KeyboardInterrupt()])
def test_a_folder_that_cannot_be_put_back_is_kept_and_named(
    earlier: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    calls = break_renames(monkeypatch, error, at={2, 3}, after=False)
    with pytest.raises(OutputError, match="nor put the earlier folder back") as caught:
        replace_by_second(earlier)
    previous = calls[2]
    assert names(earlier.parent) == [previous.name]
    assert previous.suffix == ".old"
    assert str(previous) in str(caught.value)
    assert (previous / "marker").read_text() == "first"


def test_a_folder_filled_meanwhile_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "b"
    with pytest.raises(OutputError, match="not empty"), files.atomic_directory(target, replace_if="marker") as folder:
        (folder / "marker").write_text("x")
        target.mkdir()
        (target / "precious").write_text("x")
    assert names(tmp_path) == ["b"]
    assert names(target) == ["precious"]


def test_links_are_written_through(tmp_path: Path, earlier: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a.txt").write_text("old")
    for name, goal in {"file": "far/a.txt", "dangling": "far/new/c.txt", "folder": "b"}.items():
        (tmp_path / name).symlink_to(goal)
    for name in ("file", "dangling"):
        files.write_text(tmp_path / name, "new")
    replace_by_second(tmp_path / "folder")
    assert (tmp_path / "far" / "a.txt").read_text() == (tmp_path / "far" / "new" / "c.txt").read_text() == "new"
    assert (earlier / "marker").read_text() == "second"
    assert all((tmp_path / name).is_symlink() for name in ("file", "dangling", "folder"))
    assert names(tmp_path) == ["b", "dangling", "far", "file", "folder"]
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OutputError, match="symbolic links"):
        files.write_text(tmp_path / "loop", "x")


def make_socket(path: Path) -> None:
    # Bound by a relative name: the address of a socket has room for about 100 bytes only.
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize(("make", "what"), [(os.mkfifo, "FIFO"), (make_socket, "socket"), (Path.mkdir, "folder")])
def test_what_is_no_regular_file_is_refused(tmp_path: Path, make: Any, what: str) -> None:
    make(tmp_path / "a")
    (tmp_path / "link").symlink_to("a")
    for name in ("a", "link"):
        with pytest.raises(OutputError, match=rf"is a {what}.*--json -"), files.atomic_file(tmp_path / name):
            pytest.fail("must not run")
        if what != "folder":
            with pytest.raises(OutputError, match="not a folder"), files.atomic_directory(tmp_path / name):
                pytest.fail("must not run")
    assert names(tmp_path) == ["a", "link"]


def test_devices_and_pipes_are_refused() -> None:
    with pytest.raises(OutputError, match="is a device"), files.atomic_file("/dev/null"):
        pytest.fail("must not run")
    reading, writing = os.pipe()
    try:
        with pytest.raises(OutputError, match="pipe"), files.atomic_file(f"/dev/fd/{writing}"):
            pytest.fail("must not run")
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000])
def test_impossible_names(tmp_path: Path, path: str) -> None:
    with pytest.raises(OutputError), files.atomic_file(tmp_path / path):
        pytest.fail("must not run")


def test_the_longest_name_fits(tmp_path: Path) -> None:
    files.write_text(tmp_path / ("n" * 255), "x")
    assert names(tmp_path) == ["n" * 255]


@pytest.mark.parametrize(
    ("path", "why"), [(".", "is the current"), ("..", "contains the current"), ("", "is the current")]
)
def test_the_current_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, why: str) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "marker").write_text("x")
    (tmp_path / "marker").write_text("x")
    monkeypatch.chdir(here)
    with pytest.raises(OutputError, match=why), files.atomic_directory(path, replace_if="marker"):
        pytest.fail("must not run")
    assert names(tmp_path) == ["here", "marker"]
    assert names(here) == ["marker"]


def test_a_mount_point_is_refused(earlier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match="cannot be replaced as a whole"), files.atomic_directory("/"):
        pytest.fail("must not run")
    monkeypatch.setattr(Path, "is_mount", lambda self: self == earlier)
    with pytest.raises(OutputError, match="mount point"):
        replace_by_second(earlier)
    assert names(earlier.parent) == ["b"]
    assert (earlier / "marker").read_text() == "first"


@pytest.mark.parametrize("atomic", [files.atomic_file, files.atomic_directory])
def test_errors_of_the_callers_own_work_pass_through(tmp_path: Path, atomic: Any) -> None:
    (tmp_path / "b").write_text("not a folder")
    missing = tmp_path / "input.png"
    for error in (
        OSError(errno.ENOSPC, "elsewhere", str(missing)),
        OSError(errno.ECONNRESET, "no file"),
        OSError("no errno"),
        OSError(errno.EBADF, "a descriptor", 3),
    ):
        with pytest.raises(OSError) as caught, atomic(tmp_path / "deep" / "a"):  # noqa: PT011
            raise error
        assert caught.value is error
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "a"):
        missing.read_bytes()
    assert names(tmp_path) == ["b"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG])
def test_errors_of_writing_are_reported(tmp_path: Path, code: int) -> None:
    with pytest.raises(OutputError, match="Nothing was changed"), files.atomic_file(tmp_path / "a"):
        raise OSError(code, os.strerror(code))
    with pytest.raises(OutputError, match="No such file"), files.atomic_directory(tmp_path / "a") as folder:
        (folder / "missing" / "x").write_text("x")
    with pytest.raises(OutputError, match="refused"), files.atomic_directory(tmp_path / "a") as folder:
        raise OSError(errno.EACCES, "refused", os.fsencode(folder / "x"))
    assert names(tmp_path) == []


@pytest.mark.parametrize("call", ["fsync", "mkstemp"])
def test_own_calls_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EACCES, "refused")

    monkeypatch.setattr(files.os if call == "fsync" else files.tempfile, call, fail)
    with pytest.raises(OutputError, match="refused"):
        files.write_text(tmp_path / "deep" / "er" / "a", "x")
    assert names(tmp_path) == []


@pytest.mark.parametrize("atomic", [files.atomic_file, files.atomic_directory])
def test_created_parents_go_again_unless_used(tmp_path: Path, atomic: Any) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(KeyboardInterrupt), atomic(tmp_path / "mine" / "x" / "y" / "a"):
        assert names(tmp_path / "mine" / "x") == ["y"]
        raise KeyboardInterrupt
    assert names(tmp_path) == ["mine"]
    assert names(tmp_path / "mine") == []
    with pytest.raises(RuntimeError), atomic(tmp_path / "x" / "y" / "a"):
        (tmp_path / "x" / "other").write_text("x")
        raise RuntimeError
    assert names(tmp_path / "x") == ["other"]


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"a": [1, 2.5]})
    assert files.read_json(path) == {"a": [1, 2.5]}
    with pytest.raises(NotFiniteError, match="JSON"):
        files.write_json(path, float("nan"))
    assert files.read_json(path) == {"a": [1, 2.5]}
    path.write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        files.read_json(path)
    path.write_text("[" * 200_000)
    with pytest.raises(InputError, match="not valid JSON"):
        files.read_json(path)
    with pytest.raises(InputError, match="No such file"):
        files.read_json(tmp_path / "missing.json")


def test_sha256(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert files.sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_text_of_other_systems_is_read(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "x"
    path.write_bytes('{"name": "B\u00e4r"}\r\n'.encode(encoding))
    assert files.read_json(path) == {"name": "B\u00e4r"}
    path.write_bytes('name = "B\u00e4r"\r\n'.encode(encoding))
    assert files.read_toml(path) == {"name": "B\u00e4r"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"a":\n"B\u00e4r"}'.encode("latin-1"), "not text in UTF-8 (line 2, byte 0xe4). Save it as UTF-8"),
        (b"", "it is empty"),
        (b"\xef\xbb\xbf \n", "it is empty"),
    ],
)
def test_what_is_wrong_with_a_text_is_said(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        files.read_json(path)
    assert words in str(caught.value) and str(path) in str(caught.value)


def test_a_lock_keeps_others_out_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.json"
    with files.locked(path):
        begin = time.monotonic()
        with pytest.raises(OutputError, match=r"Another process is writing .*x\.json"), files.locked(path, 0.1):
            pass
        assert time.monotonic() - begin < 5
        with files.locked(path.with_name("y.json"), 0.1):
            files.write_json(path, {})
    with files.locked(path, 0.1):
        pass
    assert names(path.parent) == ["x.json"]


def test_a_lock_is_free_when_its_owner_was_killed(tmp_path: Path) -> None:
    code = (
        "import sys,time;from dyndeploy import files\nwith files.locked(sys.argv[1]): print(flush=True);time.sleep(60)"
    )
    path = tmp_path / "x"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    with pytest.raises(OutputError), files.locked(path, 0.1):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with files.locked(path, 0.1):
        pass
    assert names(tmp_path) == []


COUNT = """
import sys
from dyndeploy import files
for _ in range(40):
    with files.locked(sys.argv[1]):
        files.write_json(sys.argv[1], files.read_json(sys.argv[1]) + 1)
"""
WRITE_FOLDER = """
import sys
from pathlib import Path
from dyndeploy import files
for number in range(30):
    with files.atomic_directory(sys.argv[1], replace_if="marker") as folder:
        for name in ("marker", "twin"):
            (folder / name).write_text(f"{sys.argv[2]} {number}")
"""


def test_no_update_of_several_processes_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "count.json"
    files.write_json(path, 0)
    workers = [subprocess.Popen([sys.executable, "-c", COUNT, str(path)]) for _ in range(4)]
    assert [worker.wait(60) for worker in workers] == [0] * 4
    assert files.read_json(path) == 160 and names(tmp_path) == ["count.json"]


def test_several_writers_of_a_folder_leave_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "b"
    workers = [subprocess.Popen([sys.executable, "-c", WRITE_FOLDER, str(path), name]) for name in "abcd"]
    assert [worker.wait(60) for worker in workers] == [0] * 4
    assert (path / "marker").read_text() == (path / "twin").read_text()
    assert names(path) == ["marker", "twin"] and names(tmp_path) == ["b"]


WRITER = """
import sys
from dyndeploy import files
with getattr(files, sys.argv[1])(sys.argv[2], **({'replace_if': 'm'} if 'dir' in sys.argv[1] else {})) as path:
    (path / 'm' if path.is_dir() else path).write_text('half')
    print('ready', flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["atomic_file", "atomic_directory"])
def test_what_a_killed_writer_left_is_swept_by_the_next_one(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "a[1]"
    stranger, other = tmp_path / ".a[1].mine.part", tmp_path / ".b.abcdefgh.part"
    stranger.write_text("not from here")
    other.write_text("of another output")
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, kind, target], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    dead, alive = writers
    try:
        for writer in writers:
            assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
        dead.kill()
        dead.wait(30)
        left = {path.name for path in tmp_path.iterdir()} - {stranger.name, other.name}
        assert len(left) == 2
        with getattr(files, kind)(target) as path:
            assert len({entry.name for entry in tmp_path.iterdir()} - {stranger.name, other.name}) == 2
            (path / "m" if path.is_dir() else path).write_text("new")
        # The one that lives goes on undisturbed.
        assert alive.communicate(b"", 30) is not None and alive.returncode == 0
    finally:
        for writer in writers:
            writer.kill()
            writer.wait(30)
    assert (target / "m" if target.is_dir() else target).read_text() == "half"
    assert names(tmp_path) == sorted([stranger.name, other.name, target.name])


def test_a_folder_that_a_killed_writer_moved_away_comes_back(tmp_path: Path) -> None:
    for name in (".b.abcdefgh.part", ".b.abcdefgh.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "marker").write_text(name)
    with pytest.raises(RuntimeError), files.atomic_directory(tmp_path / "b", replace_if="marker"):
        assert names(tmp_path / "b") == ["marker"]
        raise RuntimeError
    assert names(tmp_path) == ["b"]
    assert (tmp_path / "b" / "marker").read_text() == ".b.abcdefgh.old"


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_signals_leave_nothing_and_nohup_is_obeyed(tmp_path: Path, number: signal.Signals) -> None:
    script = f"import sys, signal\nfrom dyndeploy.cli._progress import interrupt\ninterrupt.install()\n{WRITER}"
    for ignored in (False, True):
        first = f"import signal; signal.signal({int(number)}, signal.SIG_IGN)\n" if ignored else ""
        writer = subprocess.Popen(
            [sys.executable, "-c", first + script, "atomic_file", tmp_path / "a"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
        writer.send_signal(number)
        writer.communicate(b"", 30)
        assert (writer.returncode == 0) == ignored
        assert names(tmp_path) == (["a"] if ignored else [])


def test_folders_of_users_with_and_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert files.user_folder("XDG_CONFIG_HOME", ".config") == tmp_path / "dyndeploy"
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert files.user_folder("XDG_CONFIG_HOME", ".config") == Path("/home/somebody/.config/dyndeploy")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # No entry in the list of users either.
    assert files.user_folder("XDG_CONFIG_HOME", ".config") is None


def test_why_an_optional_file_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    assert files.unreadable(tmp_path / "a") is None
    assert files.unreadable(tmp_path / "b") == files.unreadable(tmp_path / "a" / "b") == ""
    (tmp_path / "loop").symlink_to("loop")
    assert files.unreadable(tmp_path / "loop") == "Too many levels of symbolic links"
    assert files.unreadable(tmp_path) == "Is a directory"


def test_names_that_are_no_text_can_be_written_into_pages(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a", "é " + os.fsdecode(b"caf\xe9.jpg"))
    assert (tmp_path / "a").read_bytes() == "é caf\\udce9.jpg".encode()
