"""Memory that one process writes and others on the machine read, without locks: regions, and documents in them.

Invariants: a region is zeroed, never moves and never grows; a page is taken when it is first written. It lives
as long as a process holds it. A document is read whole or not at all, whatever its writer does meanwhile.
Not `/dev/shm`, which containers cap at 64 MB: anonymous files (memfd), opened through their owner's descriptors.
"""

import contextlib
import mmap
import os
import threading
import weakref
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

_fence = threading.Lock()


def fence() -> None:
    """What was stored before is seen before what is stored after, by other processes too, on any processor."""
    with _fence:
        pass


class Region:
    """`size` bytes as numpy arrays. Made `shared` it has a name, by which other processes of the user open it.

    `descriptor` is its file, from whose first byte on it can be mapped once more (`row_space.py`).
    """

    def __init__(self, size: int, shared: bool = False) -> None:
        self.name: str | None = None
        self.size, self._taken = size, 0
        self.descriptor = os.memfd_create("tidemark")
        weakref.finalize(self, os.close, self.descriptor)
        os.ftruncate(self.descriptor, size)
        self._memory = mmap.mmap(self.descriptor, size)
        if shared:
            # The number of the file tells it from another one that gets the same descriptor later.
            self.name = f"{os.getpid()}:{self.descriptor}:{os.fstat(self.descriptor).st_ino}"

    @classmethod
    def open(cls, name: str) -> "Region":
        """Open another process's region for reading; raises FileNotFoundError when its owner has let go of it."""
        owner, number, inode = name.split(":")
        region = cls.__new__(cls)
        region.descriptor = os.open(f"/proc/{owner}/fd/{number}", os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(region, os.close, region.descriptor)
        found = os.fstat(region.descriptor)
        if str(found.st_ino) != inode:
            raise FileNotFoundError(f"region {name} is gone")
        region.name, region.size, region._taken = name, found.st_size, 0
        region._memory = mmap.mmap(region.descriptor, found.st_size, prot=mmap.PROT_READ)
        return region

    def clear(self, start: int, stop: int) -> None:
        """Make bytes [start, stop) zero, and give back the memory of the whole pages among them; its owner only."""
        page = mmap.PAGESIZE
        first, last = -(-start // page) * page, stop // page * page
        if first < last:
            self._memory.madvise(mmap.MADV_REMOVE, first, last - first)
        edges = [(start, stop)] if first >= last else [(start, first), (last, stop)]
        for one, end in edges:
            self._memory[one:end] = bytes(end - one)

    def take_small_pages(self) -> None:
        """Take single pages when they are written, also on a machine that prefers huge ones (of 2 MB)."""
        with contextlib.suppress(OSError):  # a kernel without huge pages
            self._memory.madvise(mmap.MADV_NOHUGEPAGE)

    def take(self, dtype: Any, *shape: int) -> NDArray[Any]:
        """The next array of the region, the first one at its first byte.

        Whoever opens it takes the same ones in the same order.
        """
        kind = np.dtype(dtype)
        count = int(np.prod(shape))
        array = np.frombuffer(self._memory, kind, count, self._taken).reshape(shape)
        self._taken += room(dtype, *shape)
        return array


def room(dtype: Any, *shape: int) -> int:
    """Bytes that an array takes in a region: whole cache lines."""
    return -(-int(np.prod(shape)) * int(np.dtype(dtype).itemsize) // 64) * 64


class Document:
    """Versioned bytes in a region, if none is given of their own: one writer, any readers.

    Two slots are written in turn, so a reader has a whole turn's time for its copy; a checksum tells it when that
    was not enough.
    """

    SLOT_BYTES = 32 * 2**20

    def __init__(self, region: Region | None = None, slot_bytes: int = SLOT_BYTES) -> None:
        self.region = region or Region(self.size(slot_bytes), shared=True)
        self._words = self.region.take(np.int64, 8)  # version, then length and checksum of each slot
        self._slots = [self.region.take(np.uint8, slot_bytes) for _ in range(2)]

    @staticmethod
    def size(slot_bytes: int) -> int:
        """Bytes it takes of a region."""
        return room(np.int64, 8) + 2 * room(np.uint8, slot_bytes)

    @property
    def name(self) -> str:
        assert self.region.name is not None
        return self.region.name

    @property
    def version(self) -> int:
        return int(self._words[0])

    def write(self, content: bytes) -> None:
        version = self.version + 1
        words = self._words[1 + 2 * (version % 2) :]
        self._slots[version % 2][: len(content)] = np.frombuffer(content, np.uint8)
        words[0], words[1] = len(content), _checksum(content)
        fence()
        self._words[0] = version

    def read(self) -> tuple[int, bytes]:
        """The newest version and its bytes; version 0 is empty."""
        while True:
            version = self.version
            length, checksum = self._words[1 + 2 * (version % 2) :][:2].tolist()
            content = self._slots[version % 2][:length].tobytes()
            if version == 0 or checksum == _checksum(content):
                return version, content


def _checksum(content: bytes) -> int:
    return int(xxhash.xxh3_64_intdigest(content)) >> 1  # a signed word
