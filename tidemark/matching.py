"""Which row numbers of a view match a filter: a bit each, kept from one search to the next.

A segment's rows are asked once, a tail's as they come; what is asked again costs a look at how many rows there are.
Invariants: a bit says what its row's metadata says, whether the row lives or not; every row that was visible before
`refresh` has been asked after it. Any thread may ask; who asks for a filter that another thread is asking for waits.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tidemark.ann.open_lists import Alive, OpenLists
from tidemark.filters.columns import Columns
from tidemark.filters.evaluate import Mask, mask
from tidemark.filters.evaluate import Part as FilterPart
from tidemark.filters.grammar import Filter
from tidemark.filters.growing import Growing
from tidemark.live_rows import LiveRows
from tidemark.part import Part
from tidemark.record import hash_ids
from tidemark.segment import Segment
from tidemark.tail import Tail

if TYPE_CHECKING:
    from tidemark.mirror import Snapshot, ViewMirror

# Memory of the bits of all filters of a view, an eighth of a byte for each row number and filter; and filters at most.
BYTES_MAX, FILTERS_MAX = 64 * 2**20, 1_000

# Matching rows are counted by list again when the lists have so many times the entries.
COUNTED_AGAIN = 1.05

Bits = NDArray[np.uint8]


class _Counted(NamedTuple):
    """How many matching rows each list had, when it had so many in all."""

    lists: OpenLists
    sizes: NDArray[np.int64]
    matching: NDArray[np.int64]


class Matching:
    """The rows that match one filter. `bits`: uint8, little-endian bit order, by row number; it may be replaced."""

    def __init__(self, filter_: Filter, tails: "Tails") -> None:
        self.filter, self.bits = filter_, np.zeros(0, np.uint8)
        self._tails = tails
        self._asked: dict[Part, int] = {}
        self._snapshot: Snapshot | None = None
        self._counted: _Counted | None = None
        self._version = 0
        self.chosen: Any = None  # what `chosen.py` made last, and of which state
        self._lock = threading.Lock()

    def refresh(self, view: "ViewMirror") -> int:
        """Ask the rows that are visible now and were not asked yet; how often any were asked so far."""
        with self._lock:
            snapshot = view.snapshot()
            new: Sequence[Part] = snapshot.tails
            if snapshot is not self._snapshot:
                new = snapshot.parts
                self._make_room(snapshot)
                self._asked = {part: self._asked.get(part, 0) for part in new}
                self._snapshot = snapshot
            for part in new:
                first, stop = self._asked[part], part.row_count
                if first < stop:
                    self._ask(part, first, stop)
                    self._asked[part] = stop
                    self._version += 1
            return self._version

    def among(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the row numbers that match, of rows that were visible before the last `refresh`."""
        return numbers[LiveRows(self.bits, 8 * len(self.bits)).are_live(numbers)]

    def per_list(self, index: OpenLists, chosen: Alive) -> NDArray[np.int64]:
        """About how many of the rows chosen each list has, (lists,): what came since they were counted may be one."""
        index.refresh()
        sizes, counted = index.sizes, self._counted
        if counted is None or counted.lists is not index or sizes.sum() > COUNTED_AGAIN * counted.sizes.sum():
            counted = self._counted = _Counted(index, sizes, index.per_list(chosen))
        about: NDArray[np.int64] = counted.matching + np.maximum(sizes - counted.sizes, 0)
        return about

    def is_fresh(self, snapshot: "Snapshot") -> bool:
        """Whether nothing is left to ask but rows that have come to tails since."""
        return snapshot is self._snapshot

    def _make_room(self, snapshot: "Snapshot") -> None:
        """Bits for all parts; what was there before a part was, is not of its rows."""
        end = snapshot.end
        if end > 8 * len(self.bits):
            bits = np.zeros(-(-end // 8) * 5 // 4, np.uint8)
            bits[: len(self.bits)] = self.bits
            self.bits = bits
        for part in snapshot.parts:
            if part not in self._asked:
                self.bits[part.base >> 3 : (part.base + part.capacity + 7) >> 3] = 0

    def _ask(self, part: Part, first: int, stop: int) -> None:
        found = self._mask(part, first, stop)
        kept = first & 7  # rows of the first byte that were asked before
        start = (part.base + first) >> 3
        if kept:
            before = np.unpackbits(self.bits[start : start + 1], count=kept, bitorder="little").view(np.bool_)
            found = np.concatenate([before, found])
        packed = np.packbits(found, bitorder="little")
        self.bits[start : start + len(packed)] = packed

    def _mask(self, part: Part, first: int, stop: int) -> Mask:
        if isinstance(part, Tail):
            return self._tails.of(part).mask(self.filter, first, stop)
        return mask(self.filter, SegmentPart(part))


class Tails:
    """The columns of tails, which all filters share; those of tails that are gone are forgotten."""

    def __init__(self) -> None:
        self._known: dict[Tail, Growing] = {}
        self._lock = threading.Lock()

    def of(self, tail: Tail) -> Growing:
        with self._lock:
            return self._known.setdefault(tail, Growing(TailRows(tail)))

    def keep(self, tails: Sequence[Tail]) -> None:
        with self._lock:
            self._known = {tail: columns for tail, columns in self._known.items() if tail in tails}


class Matchings:
    """What is known of the filters of one view, the least recently used forgotten first."""

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._known: OrderedDict[Filter, Matching] = OrderedDict()
        self._tails = Tails()
        self._snapshot: Snapshot | None = None
        self._lock = threading.Lock()

    def of(self, filter_: Filter, view: "ViewMirror") -> Matching:
        """The rows that match a filter, of those that are visible now all asked."""
        with self._lock:
            snapshot = view.snapshot()
            if snapshot is not self._snapshot:
                self._tails.keep(snapshot.tails)
                self._snapshot = snapshot
            found = self._known.get(filter_) or Matching(filter_, self._tails)
            self._known[filter_] = found
            self._known.move_to_end(filter_)
        found.refresh(view)
        with self._lock:
            self._forget()
        return found

    def parts(self, part: Part, row_count: int) -> Iterator[tuple[int, FilterPart]]:
        """A part's first rows as filters see them, in runs, each with the number of its first row in the part."""
        if isinstance(part, Tail):
            return self._tails.of(part).parts(0, row_count)
        return iter([(0, SegmentPart(part))])

    def known_count(self, filter_: Filter, snapshot: "Snapshot") -> int | None:
        """How many rows matched lately; None when more than the newest rows are to be asked."""
        found = self._known.get(filter_)
        return None if found is None or found.chosen is None or not found.is_fresh(snapshot) else found.chosen[1].count

    @property
    def nbytes(self) -> int:
        """Memory of the bits."""
        return sum(len(one.bits) for one in self._known.values())

    def _forget(self) -> None:
        while len(self._known) > 1 and (len(self._known) > FILTERS_MAX or self.nbytes > self._bytes_max):
            self._known.popitem(last=False)


@dataclass(frozen=True, slots=True)
class SegmentPart:
    """A segment as filters see it."""

    segment: Segment

    @property
    def row_count(self) -> int:
        return self.segment.row_count

    @property
    def columns(self) -> Columns | None:
        return self.segment.meta

    def documents(self, rows: NDArray[np.int64]) -> list[bytes | None]:
        return list(map(self.segment.metadata_of, rows.tolist()))

    def rows_of(self, ids: Sequence[bytes]) -> NDArray[np.int64]:
        return self.segment.rows_with(hash_ids(ids), ids)


@dataclass(frozen=True, slots=True)
class TailRows:
    """A tail as filters see it."""

    tail: Tail

    def id_of(self, row: int) -> bytes:
        return self.tail.id_of(row)

    def metadata_of(self, row: int) -> bytes | None:
        return self.tail.metadata_of(row)

    def rows_of(self, ids: Sequence[bytes]) -> NDArray[np.int64]:
        rows = np.flatnonzero(np.isin(self.tail.hashes[: self.tail.row_count], hash_ids(ids)))
        wanted = set(ids)
        return np.array([row for row in rows.tolist() if self.tail.id_of(row) in wanted], np.int64)
