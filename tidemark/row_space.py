"""One space of row numbers for all parts (segments and tails) of a collection: who has which, who lives, what is where.

A part has a `base`: a row's number in the space is base + its row in the part. `RowSpace` gives bases and keeps one
bit per number, set while the row lives; it belongs to the process that writes. `VectorSpace` is the same space as
vectors, in any process: each part's file or memory is mapped at its place, so that one pointer and a row number find
every vector.

Invariants: bases are multiples of 1,024, so a part starts at a whole page whatever the dimension, and at a whole cache
line of bits. No number has two meanings: a freed range is given again only once it is reclaimed. What is not mapped
reads as zeros. Knows nothing of what parts are.
"""

import ctypes
import mmap
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidemark.live_rows import LiveRows
from tidemark.shared_memory import Region

ALIGNMENT = 1024
# At most so many rows (their bits are 1 GiB, of which only what is used takes memory), and so many bytes of vectors:
# a process has addresses for some 60 such spaces, and needs two for a collection while its generation is switched.
ROWS_MAX = 2**33
ADDRESS_BYTES_MAX = 2**41

# Linux, as mmap(2) names them; Python does not have all of them.
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_MADV_POPULATE_READ = 22
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def capacity_of(dimension: int) -> int:
    """The row numbers that a space has when it is not told how many."""
    return min(ROWS_MAX, ADDRESS_BYTES_MAX // (4 * dimension)) // ALIGNMENT * ALIGNMENT


class RowSpace:
    """Row numbers for parts, and a bit for each; any thread may ask, one at a time may write a part's bits."""

    def __init__(self, dimension: int, shared: bool, capacity: int | None = None) -> None:
        """Made `shared` other processes open its bitmap by `name`, and `capacity` tells them its length."""
        self.capacity = (capacity or capacity_of(dimension)) // ALIGNMENT * ALIGNMENT
        self._region = Region(LiveRows.size(self.capacity), shared)
        self.bitmap: NDArray[np.uint8] = self._region.take(np.uint8, LiveRows.size(self.capacity))
        self._lock = threading.Lock()
        self._free = [(0, self.capacity)]  # ascending, never touching
        self._taken: dict[int, int] = {}  # base → first number behind
        self._freed: deque[tuple[float, int]] = deque()

    @property
    def name(self) -> str | None:
        return self._region.name

    @property
    def used(self) -> int:
        """Row numbers that parts have, or had and that are not reclaimed."""
        with self._lock:
            return self.capacity - sum(stop - first for first, stop in self._free)

    def allocate(self, row_count: int) -> int:
        """The base of a range for so many rows, all dead; raises MemoryError when none is long enough."""
        length = max(1, -(-row_count // ALIGNMENT)) * ALIGNMENT
        with self._lock:
            for at, (first, stop) in enumerate(self._free):
                if stop - first >= length:
                    self._free[at : at + 1] = [(first + length, stop)] if stop - first > length else []
                    self._taken[first] = first + length
                    return first
        raise MemoryError(f"no {length} row numbers in a row are free: {self.used} of {self.capacity} are used")

    def live(self, base: int, row_count: int) -> LiveRows:
        """The bits of a part's rows."""
        return LiveRows(self.bitmap[base >> 3 :], row_count)

    def free(self, base: int) -> None:
        """Let go of a part's range, by its base; it is not given again before it is reclaimed. Takes no lock."""
        self._freed.append((time.monotonic(), base))

    def reclaim(self, before: float) -> None:
        """Give ranges again that were freed before a moment (time.monotonic).

        By then neither a reader nor a list holds their numbers: whoever asks knows that.
        """
        with self._lock:
            while self._freed and self._freed[0][0] < before:
                base = self._freed.popleft()[1]
                stop = self._taken.pop(base)
                self._region.clear(base >> 3, stop >> 3)
                self._free = _joined(sorted([*self._free, (base, stop)]))


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ascending ranges, those that touch made one."""
    joined: list[tuple[int, int]] = []
    for first, stop in ranges:
        if joined and joined[-1][1] == first:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((first, stop))
    return joined


class _Reserved:
    """Addresses that nobody else gets, as a numpy array that keeps them."""

    def __init__(self, capacity: int, dimension: int) -> None:
        size = 4 * capacity * dimension
        self.address = _map(None, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, -1)
        weakref.finalize(self, _libc.munmap, self.address, size).atexit = False
        shape = (capacity, dimension)
        self.__array_interface__ = {"version": 3, "typestr": "<f4", "shape": shape, "data": (self.address, True)}


class Mapping:
    """Keeps a part's vectors mapped as long as it lives."""

    def __init__(self, address: int, size: int) -> None:
        self._address, self._size = address, size

    def touch(self) -> None:
        """Look at every page, so that the first searches need not: 0.2 to 75 ms for 512 MB that are in memory.

        On any thread, without the interpreter's lock. Not for memory that is yet to be written: it would be taken.
        """
        _libc.madvise(self._address, self._size, _MADV_POPULATE_READ)  # a kernel before 5.14 does nothing


class VectorSpace:
    """All vectors of a collection as one array; any thread may map, and read what is mapped without a lock."""

    def __init__(self, dimension: int, capacity: int) -> None:
        """Takes addresses, no memory. Raises OSError when the process may not have so many."""
        self._row_bytes = 4 * dimension
        self._reserved = _Reserved(capacity, dimension)
        self.vectors: NDArray[np.float32] = np.asarray(self._reserved)  # float32 (capacity, dimension), read-only
        self._lock = threading.Lock()
        self._mapped: dict[int, tuple[int, int]] = {}  # number of a mapping → its bytes [start, end), oldest first
        self._number = 0
        self._let_go: deque[int] = deque()

    def map_file(self, base: int, path: Path, row_count: int) -> Mapping:
        """Map a file that starts with `row_count` vectors; raises OSError, also when it is too short for them."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return self._map(base, row_count, descriptor, str(path))
        finally:
            os.close(descriptor)

    def map_region(self, base: int, region: Region, row_count: int) -> Mapping:
        """Map memory whose first array are `row_count` vectors."""
        return self._map(base, row_count, region.descriptor, f"region {region.name}")

    def _map(self, base: int, row_count: int, descriptor: int, what: str) -> Mapping:
        size, found = row_count * self._row_bytes, os.fstat(descriptor).st_size
        if base % ALIGNMENT or not 0 <= base <= base + row_count <= len(self.vectors):
            raise ValueError(f"{what}: rows {base} to {base + row_count} are not in a space of {len(self.vectors)}")
        if found < size:
            raise OSError(f"{what}: has {found} bytes, {row_count} vectors of {self._row_bytes} bytes take {size}")
        start = base * self._row_bytes
        mapping = Mapping(self._reserved.address + start, size)
        with self._lock:
            if size:
                _map(self._reserved.address + start, size, mmap.MAP_SHARED | _MAP_FIXED, descriptor, what)
            self._number += 1
            self._mapped[self._number] = (start, start + _whole_pages(size))
            weakref.finalize(mapping, self._unmap, self._number).atexit = False
        self._unmap_let_go()
        return mapping

    def _unmap(self, number: int) -> None:
        """Called when a mapping is collected, wherever that happens: perhaps by who holds the lock."""
        self._let_go.append(number)
        self._unmap_let_go()

    def _unmap_let_go(self) -> None:
        while self._let_go and self._lock.acquire(blocking=False):
            try:
                self._unmap_next()
            finally:
                self._lock.release()

    def _unmap_next(self) -> None:
        """Put zeros in its place, mapped just as those around it: they become one mapping of the kernel again."""
        number = self._let_go.popleft()
        start, end = self._mapped.pop(number)
        newer = [place for other, place in self._mapped.items() if other > number]
        for first, last in _without(start, end, newer):
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED
            _map(self._reserved.address + first, last - first, flags, -1)


def _without(start: int, end: int, others: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """What is left of a range without others."""
    for first, last in sorted(others):
        if first < end and last > start:
            if start < first:
                yield start, first
            start = max(start, last)
    if start < end:
        yield start, end


def _whole_pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def _map(address: int | None, size: int, flags: int, descriptor: int, what: str = "addresses") -> int:
    """mmap(2) for reading; raises OSError with what the limits are."""
    found: Any = _libc.mmap(address, size, mmap.PROT_READ, flags, descriptor, 0)
    if found == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        raise OSError(
            number,
            f"cannot map {size} bytes of {what}: {os.strerror(number)} (a process has so many addresses as `ulimit -v` "
            "says, and so many mappings as /proc/sys/vm/max_map_count says)",
        )
    return int(found)
