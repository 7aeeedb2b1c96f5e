"""Measurements that run at the same time on one machine: each takes the other's time, so each says so."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from dyndeploy.runtimes.machine import calendar_notes

TURN = "dyndeploy-turn"
"""Abstract socket that a measurement holds, as jobs on a board do (``agent.TURN``): free when its owner is gone."""

_INTRUDES = b"!"


@contextlib.contextmanager
def machine_turn() -> Iterator[list[str]]:
    """Yield the sentences that a reader of what is measured in the block needs; they are complete after it.

    There are none where nothing else of dyndeploy was measured or built on this machine meanwhile, and its clock is not
    plainly wrong.
    """
    notes = calendar_notes()
    note = (
        "Another measurement or build of dyndeploy ran on this machine at the same time: both took each other's time. "
        "Measure again when nothing else runs."
    )
    address = b"\0" + TURN.encode()
    with contextlib.ExitStack() as stack:
        mine = stack.enter_context(socket.socket(socket.AF_UNIX))
        try:
            mine.bind(address)
            mine.listen(64)
        except OSError:
            other = stack.enter_context(socket.socket(socket.AF_UNIX))
            other.settimeout(1)
            # Nobody answers where the system has no such sockets: then nobody can know.
            with contextlib.suppress(OSError):
                other.connect(address)
                other.sendall(_INTRUDES)
                notes.append(note)
            yield notes
            return
        yield notes
        mine.setblocking(False)
        with contextlib.suppress(OSError):
            while note not in notes:
                with mine.accept()[0] as asker:
                    asker.setblocking(False)
                    # Jobs that wait ask as well, and disturb nobody.
                    with contextlib.suppress(OSError):
                        notes += [note] if asker.recv(1) == _INTRUDES else []
