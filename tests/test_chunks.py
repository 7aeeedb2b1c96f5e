"""Long lists in chunks: one result whatever works on it, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dyndeploy.chunks import CHUNK, Part, Processes, Tick, Work, chunk_results, speaks_for_all
from dyndeploy.errors import InputError, OutputError, UsageError

IMAGES = 3 * CHUNK + 5
IDENTITY = {"kind": "sum", "thresholds": (0.5, 0.25)}


@dataclass(frozen=True)
class Sum:
    """Sums numbers that no order of adding leaves equal; notes which chunks it was asked for."""

    seen: Path
    fails_at: int = -1
    ends_at: int = -1
    waits_at: int = -1

    @contextmanager
    def __call__(self) -> Iterator[Work]:
        yield self.work

    def work(self, indices: Sequence[int], tick: Tick) -> Part:
        with (self.seen / f"{os.getpid()}-{indices[0]}").open("w"):
            pass
        if self.fails_at in indices:
            raise InputError(f"image {self.fails_at} is damaged.")
        if self.ends_at in indices:
            os.kill(os.getpid(), signal.SIGKILL)
        while self.waits_at in indices:
            time.sleep(0.05)
            tick()
        total = 0.0
        for index in indices:
            total += float(np.float64(1) / (index + 3))
            tick()
        return {"sum": total, "images": len(indices)}


@pytest.fixture
def seen(tmp_path: Path) -> Path:
    folder = tmp_path / "seen"
    folder.mkdir()
    return folder


def chunks_seen(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in folder.iterdir())


def test_one_result_whatever_works(seen: Path, tmp_path: Path) -> None:
    said: list[tuple[str, float]] = []
    alone = chunk_results(
        Sum(seen), range(IMAGES), identity=IDENTITY, said="added", progress=lambda *told: said.append(told)
    )
    assert [part["images"] for part in alone] == [CHUNK, CHUNK, CHUNK, 5]
    assert said[-1] == (f"added {IMAGES} of {IMAGES} images", 1.0) and len(said) == IMAGES
    given: list[Part] = []
    shared = chunk_results(
        Sum(seen), range(IMAGES), identity=IDENTITY, workers=3, state=tmp_path / "state", on_part=given.append
    )
    assert shared == alone
    assert sorted(part["sum"] for part in given) == sorted(part["sum"] for part in alone)
    workers = {path.name.split("-")[0] for path in seen.iterdir()} - {str(os.getpid())}
    assert 1 <= len(workers) <= 3
    # What is there is not computed again, also where JSON made lists of tuples.
    before = chunks_seen(seen)
    assert chunk_results(Sum(seen), range(IMAGES), identity=IDENTITY, state=tmp_path / "state") == alone
    assert chunks_seen(seen) == before


def test_a_broken_off_run_goes_on(seen: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with pytest.raises(InputError, match=f"image {2 * CHUNK} is damaged"):
        chunk_results(Sum(seen, fails_at=2 * CHUNK), range(IMAGES), identity=IDENTITY, state=state)
    assert sorted(path.name for path in state.iterdir()) == ["chunk-000000.json", "chunk-000001.json", "state.json"]
    (state / "chunk-000001.json").write_text('{"sum": 0.')
    said: list[str] = []
    other = tmp_path / "other"
    other.mkdir()
    found = chunk_results(
        Sum(other), range(IMAGES), identity=IDENTITY, state=state, progress=lambda message, _: said.append(message)
    )
    assert chunks_seen(other) == [CHUNK, 2 * CHUNK, 3 * CHUNK]
    assert said[0] == f"ran {CHUNK} of {IMAGES} images"
    assert found == chunk_results(Sum(seen), range(IMAGES), identity=IDENTITY)


def test_a_failure_of_a_process_is_its_own(seen: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="image 700 is damaged"):
        chunk_results(Sum(seen, fails_at=700), range(IMAGES), identity=IDENTITY, workers=2, state=tmp_path / "state")


def test_a_killed_process_is_told(seen: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with pytest.raises(OutputError, match=r"was killed.*too little memory for 2"):
        chunk_results(Sum(seen, ends_at=IMAGES - 1), range(IMAGES), identity=IDENTITY, workers=2, state=state)
    found = chunk_results(Sum(seen), range(IMAGES), identity=IDENTITY, workers=2, state=state)
    assert found == chunk_results(Sum(seen), range(IMAGES), identity=IDENTITY)


def test_processes_of_torchrun_share(seen: Path, tmp_path: Path) -> None:
    found: dict[int, list[Part]] = {}

    def share(rank: int) -> None:
        found[rank] = chunk_results(
            Sum(seen), range(IMAGES), identity=IDENTITY, state=tmp_path / "state", processes=Processes(rank, 2)
        )

    threads = [threading.Thread(target=share, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert chunks_seen(seen) == [0, CHUNK, 2 * CHUNK, 3 * CHUNK]
    assert found[0] == found[1] == chunk_results(Sum(seen), range(IMAGES), identity=IDENTITY)


def test_torchruns_variables(monkeypatch: pytest.MonkeyPatch, seen: Path) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert Processes.of_torchrun() == Processes(0, 1) and speaks_for_all()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert Processes.of_torchrun() == Processes(1, 2) and not speaks_for_all()
    with pytest.raises(UsageError, match="2 processes share the images: give a folder"):
        chunk_results(Sum(seen), range(9), identity=IDENTITY)
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(UsageError, match="RANK=1 and WORLD_SIZE=1"):
        Processes.of_torchrun()


def test_states_of_other_runs_are_refused(seen: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    chunk_results(Sum(seen), range(9), identity=IDENTITY, state=state)
    with pytest.raises(UsageError, match=r"differs in images, kind"):
        chunk_results(Sum(seen), range(10), identity={**IDENTITY, "kind": "product"}, state=state)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="holds other files"):
        chunk_results(Sum(seen), range(9), identity=IDENTITY, state=tmp_path / "mine")
    (state / "state.json").write_text(json.dumps({"format": "else"}))
    with pytest.raises(UsageError, match="was not written by this release"):
        chunk_results(Sum(seen), range(9), identity=IDENTITY, state=state)
    with pytest.raises(UsageError, match="At least 1 process"):
        chunk_results(Sum(seen), range(9), identity=IDENTITY, workers=0)
    with pytest.raises(OutputError, match="Cannot make the folder"):
        chunk_results(Sum(seen), range(9), identity=IDENTITY, state=tmp_path / "mine" / "letter.txt" / "state")


SCRIPT = """
import sys
from pathlib import Path
from dyndeploy.chunks import chunk_results
from tests.test_chunks import IDENTITY, IMAGES, Sum

if __name__ == "__main__":
    chunk_results(Sum(Path(sys.argv[1]), waits_at=1), range(IMAGES), identity=IDENTITY, workers=2)
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="asks /proc which processes there are")
def test_processes_end_with_the_one_that_started_them(seen: Path, tmp_path: Path) -> None:
    script = tmp_path / "share.py"
    script.write_text(SCRIPT)
    root = str(Path(__file__).parent.parent)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    with subprocess.Popen([sys.executable, str(script), str(seen)], env={**os.environ, "PYTHONPATH": path}) as process:
        limit = time.monotonic() + 60
        while 0 not in chunks_seen(seen):
            assert time.monotonic() < limit
            time.sleep(0.05)
        process.kill()
    workers = {int(path.name.split("-")[0]) for path in seen.iterdir()}
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < limit
        time.sleep(0.05)
