"""Which rows hold the ids of given hashes, over all segments of a view: sorted levels, merged as they become many.

A segment brings its own sorted hashes as a level, mapped from its file, and nothing is copied. Levels of like size are
merged into one in memory (12 bytes a row), so that a look-up is a few binary searches however many segments there are.

Invariants: a row that was added and lives is found. What is found may be dead, may be of another id of the same hash,
and may be a row that has its number from a segment that is gone: who asks compares the ids, and looks at the bits.
One thread adds, forgets and finds; merges may run on another one. Knows nothing of ids, nor of what a segment is.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Levels are merged until each has more than so many times the rows of the next smaller one.
RATIO = 4
# Merges of so few rows are done as a segment is added: they take a millisecond or two.
ROWS_MERGED_AT_ONCE = 65_536

AreLive = Callable[[NDArray[np.int64]], NDArray[np.bool_]]


@dataclass(frozen=True, slots=True, eq=False)
class _Level:
    """Ascending hashes, and the row number of each less `base`."""

    hashes: NDArray[np.uint64]
    rows: NDArray[np.uint32] | NDArray[np.int64]
    base: int
    is_merged: bool

    def numbers(self, at: Any = slice(None)) -> NDArray[np.int64]:
        numbers: NDArray[np.int64] = self.rows[at].astype(np.int64) + self.base
        return numbers

    def find(self, hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All pairs of an index into ascending hashes and a row number."""
        place = np.searchsorted(self.hashes, hashes)
        wanted = np.flatnonzero(self.hashes[np.minimum(place, len(self.hashes) - 1)] == hashes)
        place = place[wanted]
        indices, numbers = [wanted], [self.numbers(place)]
        while len(wanted):  # several rows may have a hash
            place = place + 1
            inside = place < len(self.hashes)
            wanted, place = wanted[inside], place[inside]
            same = self.hashes[place] == hashes[wanted]
            wanted, place = wanted[same], place[same]
            indices.append(wanted)
            numbers.append(self.numbers(place))
        return np.concatenate(indices), np.concatenate(numbers)


class IdIndex:
    """See the module's docstring. `are_live` tells merges which row numbers (int64) to keep; None: all."""

    def __init__(self, are_live: AreLive | None = None) -> None:
        self._are_live = are_live
        self._levels: tuple[_Level, ...] = ()
        self._lock = threading.Lock()  # of `_levels`: a merge may end while a level is added
        self._is_merging = False
        self._forgotten_rows = 0

    @property
    def level_count(self) -> int:
        return len(self._levels)

    @property
    def row_count(self) -> int:
        """Rows in it, dead ones too."""
        return _row_count(self._levels)

    def add(self, sorted_hashes: NDArray[np.uint64], rows: NDArray[np.uint32], base: int) -> None:
        """Add a segment's rows, which live by now: ascending hashes (n,), the row of each, and the segment's base.

        The arrays are kept, not copied, until they are merged. Takes 2 ms at most.
        """
        if not len(sorted_hashes):
            return
        with self._lock:
            self._levels = (*self._levels, _Level(sorted_hashes, rows, base, is_merged=False))
        some = () if self._is_merging else self._to_merge()
        if some and _row_count(some) <= ROWS_MERGED_AT_ONCE:
            self._merge(some)

    def forget(self, base: int, row_count: int) -> None:
        """A segment is gone, its rows are dead: its file is let go of, or a merge to come drops the rows."""
        with self._lock:
            kept = tuple(level for level in self._levels if level.is_merged or level.base != base)
            if self._is_merging or len(kept) == len(self._levels):
                self._forgotten_rows += row_count
            self._levels = kept

    def find(self, hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All pairs of an index into `hashes` (n,) and the number of a row with that hash: int64, ascending, each once.

        Takes 40 us for 50 hashes and 0.2 ms for 500 in a million rows, and half as much more where there are 3 levels.
        """
        order = np.argsort(hashes)
        ascending = hashes[order]
        found = [level.find(ascending) for level in self._levels]
        if not found:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        indices = order[np.concatenate([one for one, _ in found])]
        numbers = np.concatenate([one for _, one in found])
        order = np.lexsort((numbers, indices))
        indices, numbers = indices[order], numbers[order]
        new = np.ones(len(order), np.bool_)
        new[1:] = (indices[1:] != indices[:-1]) | (numbers[1:] != numbers[:-1])
        return indices[new], numbers[new]

    def merge_work(self) -> Callable[[], None] | None:
        """A merge that is due, to be called on any thread, one at a time; None when there is none. 0.1 us a row."""
        some = () if self._is_merging else self._to_merge()
        if not some:
            return None
        self._is_merging = True
        return partial(self._merge, some)

    def _to_merge(self) -> Sequence[_Level]:
        """All levels up to the last that is not far larger than those before; all, when most rows are forgotten."""
        levels = sorted(self._levels, key=lambda level: len(level.hashes))
        if 2 * self._forgotten_rows > self.row_count:
            return levels
        sizes = np.array([len(level.hashes) for level in levels], np.int64)
        alike = np.flatnonzero(sizes[1:] <= RATIO * np.cumsum(sizes)[:-1])
        return levels[: alike[-1] + 2] if len(alike) else ()

    def _merge(self, some: Sequence[_Level]) -> None:
        try:
            forgotten_rows = self._forgotten_rows
            merged = _merged(some, self._are_live)
            with self._lock:
                left = [level for level in self._levels if level not in some]
                self._levels = (*left, merged) if len(merged.hashes) else tuple(left)
                if not left:
                    self._forgotten_rows -= forgotten_rows
        finally:
            self._is_merging = False


def _row_count(levels: Sequence[_Level]) -> int:
    return sum(len(level.hashes) for level in levels)


def _merged(levels: Sequence[_Level], are_live: AreLive | None) -> _Level:
    hashes, numbers = [level.hashes for level in levels], [level.numbers() for level in levels]
    if are_live is not None:
        living = [are_live(some) for some in numbers]
        hashes = [some[mask] for some, mask in zip(hashes, living, strict=True)]
        numbers = [some[mask] for some, mask in zip(numbers, living, strict=True)]
    joined = np.concatenate(hashes)
    order = np.argsort(joined, kind="stable")  # a merge of runs that ascend already
    rows = np.concatenate(numbers)[order]
    if not len(rows) or rows.max() < 2**32:
        return _Level(joined[order], rows.astype(np.uint32), 0, is_merged=True)
    return _Level(joined[order], rows, 0, is_merged=True)
