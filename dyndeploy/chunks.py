"""Long lists of images in fixed chunks: by several processes, gone on with after a break, with one result.

A list is cut in the same places whatever works on it, every chunk is computed by itself, and what the chunks give is
put together in their order. So sums of floating-point numbers are the same to the bit with one process and with many,
and whether a run was broken off or not.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

from dyndeploy.errors import DyndeployError, InputError, OutputError, UsageError
from dyndeploy.files import json_text, locked, read_json, write_json, write_text

CHUNK = 256
"""Images of a chunk."""

FORMAT, VERSION = "dyndeploy.chunks", 1

Part = dict[str, Any]
"""What a chunk gives, in plain JSON types."""
Tick = Callable[[], None]
"""To be called after every image."""
Work = Callable[[Sequence[int], Tick], Part]
"""Numbers of the images of a chunk -> what they give."""
Opener = Callable[[], AbstractContextManager[Work]]
"""Opens what the work needs; can be pickled where several processes work."""
Progress = Callable[[str, float], None]
OnPart = Callable[[Part], None]

_STATE = "state.json"
_LOOK_EVERY = 0.2
"""Seconds between two looks at what other processes have done."""


@dataclass(frozen=True)
class Processes:
    """The processes of torchrun that share the work with this one.

    Attributes:
        rank: Number of this one, from 0.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def of_torchrun(cls) -> Processes:
        """Read torchrun's environment variables; without them there is this process only.

        Raises:
            UsageError: They are not what torchrun sets.
        """
        found = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE")}
        if None in found.values():
            return cls()
        rank, count = (str(value) for value in found.values())
        if not (rank.isdigit() and count.isdigit() and int(rank) < int(count)):
            raise UsageError(f"RANK={rank} and WORLD_SIZE={count} in the environment are not torchrun's: unset them.")
        return cls(int(rank), int(count))


def speaks_for_all() -> bool:
    """Whether this process prints and stores the result: torchrun's first one, or the only one."""
    return Processes.of_torchrun().rank == 0


def chunk_results(
    opener: Opener,
    indices: Sequence[int],
    *,
    identity: Mapping[str, Any],
    workers: int = 1,
    state: str | os.PathLike[str] | None = None,
    processes: Processes | None = None,
    said: str = "ran",
    progress: Progress = lambda message, fraction: None,
    on_part: OnPart = lambda part: None,
) -> list[Part]:
    """Work on a list of images, a chunk at a time, and return what the chunks give, in their order.

    Every process of torchrun returns all of it; each computes the chunks whose number, divided by the number of
    processes, leaves its rank.

    Args:
        opener: Opens the work, once in each process that computes a chunk.
        indices: Numbers of the images, in the order in which their chunks are put together.
        identity: All that the parts depend on, in plain JSON types by name.
        workers: Processes that this one starts; 1 computes in this one.
        state: A folder that keeps what each chunk gave; chunks that are there are not computed again. None keeps
            nothing.
        processes: Of torchrun; None asks the environment.
        said: What is done with an image, for progress: a verb in the past.
        progress: Called with a message and the fraction done.
        on_part: Called with what each chunk gives, once, when it is there; those of other processes at the end.

    Raises:
        UsageError: Fewer than 1 worker, several processes without a folder, or one that was written for something
            else.
        OutputError: The folder cannot be written, or a process ended before its work was done.
        DyndeployError: What the work raises. Chunks that were computed before stay in the folder.
    """
    if workers < 1:
        raise UsageError(f"At least 1 process has to work, not {workers}.")
    processes = Processes.of_torchrun() if processes is None else processes
    if processes.count > 1 and state is None:
        raise UsageError(
            f"{processes.count} processes share the images: give a folder that all of them can write (--state FOLDER), "
            "where each puts what it has computed."
        )
    chunks = [list(indices[start : start + CHUNK]) for start in range(0, len(indices), CHUNK)]
    kept = None if state is None else _Kept(Path(state), {**identity, "images": len(indices), "chunk": CHUNK})
    found: dict[int, Part] = {} if kept is None else kept.read(range(len(chunks)))
    for part in found.values():
        on_part(part)
    own = [number for number in range(len(chunks)) if number % processes.count == processes.rank]
    missing = [number for number in own if number not in found]
    before = sum(len(chunks[number]) for number in found)

    def tell(images: int) -> None:
        progress(f"{said} {before + images} of {len(indices)} images", (before + images) / max(1, len(indices)))

    if before:
        tell(0)
    tasks = [(number, chunks[number]) for number in missing]
    run = _here if workers == 1 or len(tasks) < 2 else _elsewhere
    for number, part in run(opener, tasks, workers, tell):
        if kept is not None:
            kept.write(number, part)
        found[number] = part
        on_part(part)
    while len(found) < len(chunks):
        assert kept is not None
        others = kept.read(number for number in range(len(chunks)) if number not in found)
        for part in others.values():
            on_part(part)
        found |= others
        done = sum(len(chunks[number]) for number in found)
        progress(f"{done} of {len(indices)} images are done, waiting for the other processes", done / len(indices))
        if len(found) < len(chunks):
            time.sleep(_LOOK_EVERY)
    return [found[number] for number in range(len(chunks))]


def require_same_list(now: str, before: str, data: Any) -> None:
    """Refuse another list of images than the one that was shared out, both by their checksums."""
    if now != before:
        raise InputError(f"The images of {data} have changed while they were run. Start again.")


class _Kept:
    """A folder with what chunks gave.

    Args:
        folder: It; made where it is missing.
        identity: What the parts depend on.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"Cannot make the folder {folder}: {error.strerror}. Choose another one.") from error
        path = folder / _STATE
        # Processes of torchrun come here at the same time.
        with locked(path):
            if not path.exists():
                # Files that are written have hidden names until they are complete.
                if not all(entry.name.startswith(".") for entry in folder.iterdir()):
                    raise UsageError(f"{folder} holds other files: give a new folder to keep what the chunks give.")
                write_json(path, {"format": FORMAT, "version": VERSION, "identity": dict(identity)})
        written = read_json(path)
        if not isinstance(written, dict) or (written.get("format"), written.get("version")) != (FORMAT, VERSION):
            raise UsageError(f"{path} was not written by this release: give a new folder.")
        theirs = written.get("identity")
        theirs = theirs if isinstance(theirs, dict) else {}
        # What JSON makes of tuples is compared with lists.
        ours = {name: _plain(value) for name, value in identity.items()}
        differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
        if differing:
            raise UsageError(
                f"{folder} keeps what another run gave (it differs in {', '.join(differing)}). Give another folder, or "
                "remove that one."
            )

    def _path(self, number: int) -> Path:
        return self._folder / f"chunk-{number:06}.json"

    def read(self, numbers: Iterator[int] | range) -> dict[int, Part]:
        """The parts that are there; one that is damaged is as if it were not."""
        found = {}
        for number in numbers:
            if not self._path(number).exists():
                continue
            try:
                part = read_json(self._path(number))
            except DyndeployError:
                continue
            if isinstance(part, dict):
                found[number] = part
        return found

    def write(self, number: int, part: Part) -> None:
        write_text(self._path(number), json_text(part, indent=None))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


_Tasks = Sequence[tuple[int, Sequence[int]]]
"""Numbers of chunks and of their images."""


def _here(opener: Opener, tasks: _Tasks, workers: int, tell: Callable[[int], None]) -> Iterator[tuple[int, Part]]:
    """Compute chunks in this process."""
    if not tasks:
        return
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        tell(done)

    with opener() as work:
        for number, images in tasks:
            yield number, work(images, tick)


def _elsewhere(opener: Opener, tasks: _Tasks, workers: int, tell: Callable[[int], None]) -> Iterator[tuple[int, Part]]:
    """Compute chunks in processes that this one starts."""
    # What a fork would copy, threads of a runtime among it, does not live on in the copy.
    context = get_context("spawn")
    stop, done = context.Event(), context.Value("q", 0)
    with ProcessPoolExecutor(
        min(workers, len(tasks)), context, initializer=_begin, initargs=(opener, stop, done)
    ) as pool:
        try:
            waiting: dict[Future[Part], int] = {pool.submit(_work, images): number for number, images in tasks}
            while waiting:
                finished, _ = wait(waiting, timeout=_LOOK_EVERY, return_when=FIRST_COMPLETED)
                tell(done.value)
                for future in finished:
                    number = waiting.pop(future)
                    yield number, future.result()
        except BrokenProcessPool as error:
            raise OutputError(
                "A process ended before its work was done: it was killed, or the machine has too little memory for "
                f"{workers} of them. Start again with fewer; with --state what was finished is kept."
            ) from error
        finally:
            # Every process looks after each image whether it is to go on.
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


class _StoppedError(Exception):
    """The process that gave the work ends."""


@dataclass
class _Own:
    """What a started process has; filled in once."""

    work: Work
    tick: Tick


_own: _Own | None = None
_opened = ExitStack()


def _begin(opener: Opener, stop: Any, done: Any) -> None:
    """Open the work in a process that was started for it."""
    global _own
    # Of a terminal all processes get Ctrl-C; the first one tells the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def tick() -> None:
        with done.get_lock():
            done.value += 1
        if stop.is_set():
            raise _StoppedError

    _own = _Own(_Lazily(opener), tick)


class _Lazily:
    """Work that is opened when the first chunk comes, so that what fails is told as the chunk's failure."""

    def __init__(self, opener: Opener) -> None:
        self._opener = opener
        self._work: Work | None = None

    def __call__(self, images: Sequence[int], tick: Tick) -> Part:
        if self._work is None:
            self._work = _opened.enter_context(self._opener())
        return self._work(images, tick)


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, however that ended."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _work(images: Sequence[int]) -> Part:
    assert _own is not None
    return _own.work(images, _own.tick)
