"""The rows that a filter selects at one moment: counted, listed page by page, and what stands in their metadata.

Invariant: in a selection every id stands once, in the version that it had at the positions told with it. Such a moment
is one between two changes of the view. While a backlog is applied without a pause none may come within `MOMENT_S`: then
a row of the batch under way may stand in two versions. Any thread may select; a filter that was not asked before looks
at all rows first. Knows nothing of distances: `searcher.py` finds what is near.
"""

import heapq
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tidemark.filters.facets import Counts, Value, count_values, order_keys
from tidemark.filters.grammar import Filter, Path
from tidemark.live_rows import LiveRows
from tidemark.matching import Bits
from tidemark.mirror import Snapshot, ViewMirror
from tidemark.part import Part
from tidemark.searcher import Hit
from tidemark.tail import Tail

MOMENT_S, PAUSE_S = 1.0, 0.0005


class Place(NamedTuple):
    """Where a page ends: its last row's partition and offset and, in the order of a path, what it was ordered by."""

    partition: int
    offset: int
    key: float = 0.0


class Order(NamedTuple):
    """Rows by the least number or time at a path, or by the greatest, that one first."""

    path: Path
    descending: bool = False


class Row(NamedTuple):
    """A row selected, and where a page that ends with it ends."""

    hit: Hit
    place: Place


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows of the parts of a snapshot, a bit each by row number; `positions` are what they reflect."""

    view: ViewMirror
    snapshot: Snapshot
    bits: Bits
    positions: dict[int, int]

    @property
    def count(self) -> int:
        return sum(self._of(part).live_count for part in self.snapshot.parts)

    def facets(self, path: Path, limit: int) -> list[tuple[Value, int]]:
        """The values that most rows have at a path, and how many have each; of equally many the least first."""
        counts: Counts = Counts()
        for part in self._not_empty():
            wanted = ~self._of(part).dead_mask()
            for first, rows in self.view.matchings.parts(part, len(wanted)):
                some = wanted[first : first + rows.row_count]
                if some.any():
                    counts.update(count_values(rows, path, some))
        first_values = heapq.nsmallest(limit, counts.items(), key=_facet_order)
        return [(value, count) for (_, value), count in first_values]

    def page(self, after: Place | None, limit: int) -> list[Row]:
        """Up to `limit` rows in the order of partition and offset, after the place given."""
        found: list[Row] = []
        for partition in sorted(self.snapshot.partitions.tolist()):
            if len(found) < limit and (after is None or partition >= after.partition):
                start = after.offset + 1 if after is not None and partition == after.partition else 0
                found += self._of_partition(partition, start, limit - len(found))
        return found

    def ordered_page(self, order: Order, after: Place | None, limit: int) -> list[Row]:
        """Up to `limit` rows in an order, equal ones by partition and offset; of those that have a number or time."""
        found: list[Row] = []
        sign = -1.0 if order.descending else 1.0
        for part in self._not_empty():
            rows = self._of(part).numbers()
            keys = sign * self._keys(part, order)[rows]
            rows, keys = rows[~np.isnan(keys)], keys[~np.isnan(keys)]
            partitions, offsets = part.partitions_of(rows), part.offsets[rows]
            if after is not None:
                behind = _is_behind(keys, partitions, offsets, after._replace(key=sign * after.key))
                rows, keys, partitions, offsets = rows[behind], keys[behind], partitions[behind], offsets[behind]
            for at in _first(keys, partitions, offsets, limit).tolist():
                hit = Hit(part.id_of(int(rows[at])), 0.0, part, int(rows[at]), int(partitions[at]))
                found.append(Row(hit, Place(hit.partition, int(offsets[at]), float(keys[at]))))
        found.sort(key=lambda row: (row.place.key, row.place.partition, row.place.offset))
        return [Row(hit, place._replace(key=sign * place.key)) for hit, place in found[:limit]]

    def _of_partition(self, partition: int, start: int, limit: int) -> list[Row]:
        found: list[Row] = []
        for part in self.snapshot.parts:
            if not isinstance(part, Tail) and part.partition != partition:
                continue
            rows = self._of(part).numbers()
            offsets = part.offsets[rows]
            wanted = (part.partitions_of(rows) == partition) & (offsets >= start)
            rows, offsets = rows[wanted], offsets[wanted]
            for at in np.argsort(offsets, kind="stable")[:limit].tolist():
                hit = Hit(part.id_of(int(rows[at])), 0.0, part, int(rows[at]), partition)
                found.append(Row(hit, Place(partition, int(offsets[at]))))
        return heapq.nsmallest(limit, found, key=lambda row: row.place.offset)

    def _keys(self, part: Part, order: Order) -> NDArray[np.float64]:
        wanted = ~self._of(part).dead_mask()
        keys = np.full(len(wanted), np.nan)
        for first, rows in self.view.matchings.parts(part, len(wanted)):
            some = wanted[first : first + rows.row_count]
            if some.any():
                keys[first : first + len(some)] = order_keys(rows, order.path, some, order.descending)
        return keys

    def _not_empty(self) -> Iterator[Part]:
        return (part for part in self.snapshot.parts if self._of(part).live_count)

    def _of(self, part: Part) -> LiveRows:
        """The bits of a part's rows."""
        return LiveRows(self.bits[part.base >> 3 :], part.row_count)


def select(view: ViewMirror, filter_: Filter) -> Selection:
    """The living rows that match a filter; all of them for one without conditions."""
    matching = view.matchings.of(filter_, view) if filter_ != Filter() else None
    deadline = time.monotonic() + MOMENT_S
    while True:
        changes, positions = view.changes, view.positions
        snapshot = view.snapshot()
        bits = view.bitmap[: -(-snapshot.end // 8)].copy()
        if matching is not None:
            matching.refresh(view)
            matched = matching.bits[: len(bits)]
            bits[: len(matched)] &= matched
            bits[len(matched) :] = 0
        is_moment = changes % 2 == 0 and view.changes == changes
        if is_moment or time.monotonic() > deadline:
            return Selection(view, snapshot, bits, positions)
        time.sleep(PAUSE_S)


def _is_behind(
    keys: NDArray[np.float64], partitions: NDArray[np.int32], offsets: NDArray[np.int64], after: Place
) -> NDArray[np.bool_]:
    behind_offset = (partitions == after.partition) & (offsets > after.offset)
    found: NDArray[np.bool_] = (keys > after.key) | (
        (keys == after.key) & ((partitions > after.partition) | behind_offset)
    )
    return found


def _first(
    keys: NDArray[np.float64], partitions: NDArray[np.int32], offsets: NDArray[np.int64], limit: int
) -> NDArray[np.int64]:
    """The places of the first rows by (key, partition, offset), in that order."""
    some = np.arange(len(keys))
    if len(keys) > limit:
        some = np.flatnonzero(keys <= np.partition(keys, limit - 1)[limit - 1])
    return some[np.lexsort((offsets[some], partitions[some], keys[some]))[:limit]]


def _facet_order(counted: tuple[tuple[type, Value], int]) -> tuple[int, str, Value]:
    (kind, value), count = counted
    return -count, kind.__name__, value
