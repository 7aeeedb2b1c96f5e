"""Memory by address; streams run at once."""

from __future__ import annotations

import itertools
import time

import numpy as np

MEMORY: dict[int, bytearray] = {}
_addresses = itertools.count(4096, 4096)


class DeviceAllocation:
    def __init__(self, size: int) -> None:
        self.address = next(_addresses)
        MEMORY[self.address] = bytearray(size)

    def __int__(self) -> int:
        return self.address

    def __del__(self) -> None:
        # Memory that nothing points to any more is gone, as on a device.
        MEMORY.pop(self.address, None)


def mem_alloc(size: int) -> DeviceAllocation:
    return DeviceAllocation(size)


def memcpy_htod(destination: DeviceAllocation, source: np.ndarray) -> None:
    data = source.tobytes()
    assert len(MEMORY[destination.address]) == len(data)
    MEMORY[destination.address][:] = data


def memcpy_dtoh(destination: np.ndarray, source: DeviceAllocation) -> None:
    destination[...] = np.frombuffer(MEMORY[source.address], destination.dtype).reshape(destination.shape)


class Stream:
    handle = 7

    def synchronize(self) -> None:
        pass


class Event:
    def record(self, stream: Stream) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def time_since(self, other: Event) -> float:
        return (self.time - other.time) * 1000
