"""The newest rows of a partition: a preallocated append-only buffer in memory.

Searched exactly, or by codes of its first rows (`codes.py`) and exactly beyond them.

Invariants: a published row (below `rows`) never moves; a killed row only has its first component set to NaN
(`firsts` keeps it, so that a reader who found the row just before still gets the vector that was written).
One writer; any number of readers, also in other processes, which hold no lock. A full tail is sealed: it just
gets no more rows. Knows nothing of files. `segment.py` is its counterpart on disk; both answer the same
questions by row.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tidemark.ann import index
from tidemark.ann.codes import Coded, Codes
from tidemark.ann.exact import exact_search, exact_search_among
from tidemark.collection import Metric
from tidemark.live_rows import DEAD_SHARE_LED, LiveRows
from tidemark.record import Batch
from tidemark.rows import Rows, Texts
from tidemark.shared_memory import Region, fence, room

# Bytes of ids, and of metadata, in a tail, most never used: one row has at most 1 KiB and 64 KiB of them (record.py).
TEXT_BYTES = 128 * 2**20
# Rows that get codes at a time, at most: they take 25 ms at 128-d, and their writer has records to apply.
ENCODED_ROWS_MAX = 8_192

# Per row beside its vector and texts: first component, offset, timestamp, digest, hash, ends of two texts.
_COLUMNS_BYTES = 4 + 4 * 8 + 2 * 8


class TailPlace(msgspec.Struct, frozen=True):
    """Where another process finds a tail."""

    region: str
    capacity: int
    base: int
    first: int


class _Texts(Texts):
    """Byte strings that are appended in the memory of a region."""

    def __init__(self, region: Region, capacity: int) -> None:
        self.ends: NDArray[np.int64] = region.take(np.int64, capacity + 1)
        self.heap: NDArray[np.uint8] = region.take(np.uint8, TEXT_BYTES)
        super().__init__(self.ends, self.heap)

    @staticmethod
    def size(capacity: int) -> int:
        return room(np.int64, capacity + 1) + room(np.uint8, TEXT_BYTES)

    def fitting(self, first: int, lengths: NDArray[np.int64]) -> int:
        """How many of the strings to come have room after row `first`."""
        return int(np.searchsorted(np.cumsum(lengths), TEXT_BYTES - self.ends[first], side="right"))

    def append(self, first: int, strings: Sequence[bytes], lengths: NDArray[np.int64]) -> None:
        """Strings may be left out when all are empty."""
        start, text = int(self.ends[first]), b"".join(strings)
        self.heap[start : start + len(text)] = np.frombuffer(text, np.uint8)
        self.ends[first + 1 : first + 1 + len(lengths)] = start + np.cumsum(lengths)

    def length(self, first: int, stop: int) -> int:
        """Bytes of the strings of rows [first, stop)."""
        return int(self.ends[stop] - self.ends[first])

    def column(self, rows: int) -> Any:
        """The first rows as an Arrow column over the same memory."""
        buffers = [None, pa.py_buffer(self.ends[: rows + 1]), pa.py_buffer(self.heap)]
        return pa.Array.from_buffers(pa.large_binary(), rows, buffers)


class Tail:
    """A buffer for the rows from `base` on of a view's running row number.

    Its own rows are [first, rows): those before `first` are in a segment by now, and are passed over.
    """

    def __init__(
        self,
        dimension: int,
        capacity: int,
        base: int,
        shared: bool = False,
        region: Region | None = None,
        first: int = 0,
    ) -> None:
        self.base = base
        self.capacity = capacity
        self.region = region or Region(_size(dimension, capacity), shared)
        take = self.region.take
        self._words: NDArray[np.int64] = take(np.int64, 1)  # rows
        self.vectors: NDArray[np.float32] = take(np.float32, capacity, dimension)
        self.firsts: NDArray[np.float32] = take(np.float32, capacity)
        self.offsets: NDArray[np.int64] = take(np.int64, capacity)
        self.timestamps: NDArray[np.int64] = take(np.int64, capacity)
        self.digests: NDArray[np.uint64] = take(np.uint64, capacity)
        self.hashes: NDArray[np.uint64] = take(np.uint64, capacity)
        self._live = LiveRows(self.region.take(np.uint8, LiveRows.size(capacity)), capacity)
        if region is None:
            self._live.set(0, capacity)
        self._pass_over(first)
        self._codes = Codes(self.region, dimension, capacity)
        self._coded: Coded | None = None
        self._ids = _Texts(self.region, capacity)
        self._metadata = _Texts(self.region, capacity)

    @classmethod
    def open(cls, place: TailPlace, dimension: int) -> "Tail":
        """Another process's tail; raises FileNotFoundError when it is gone."""
        return cls(dimension, place.capacity, place.base, region=Region.open(place.region), first=place.first)

    def without(self, first: int) -> "Tail":
        """The same buffer without the rows before `first`."""
        tail = copy(self)
        tail._pass_over(first)
        return tail

    def _pass_over(self, first: int) -> None:
        self.first = first
        self._dead_before = int(np.count_nonzero(self._live.dead_mask(first)))
        self._alive = index.Alive(self._live.bitmap, first)
        self._coded = None

    @property
    def place(self) -> TailPlace:
        assert self.region.name is not None
        return TailPlace(self.region.name, self.capacity, self.base, self.first)

    @property
    def rows(self) -> int:
        return int(self._words[0])

    @property
    def count(self) -> int:
        """How many rows are ours."""
        return self.rows - self.first

    def memory_from(self, first: int) -> int:
        """Bytes of the rows from `first` on: vectors, ids, metadata and what is kept beside them.

        Codes are not counted: they are an eighth of the vectors at most.
        """
        row_bytes = 4 * self.vectors.shape[1] + _COLUMNS_BYTES
        texts = self._ids.length(first, self.rows) + self._metadata.length(first, self.rows)
        return int((self.rows - first) * row_bytes + texts)

    @property
    def start(self) -> int:
        """The view's number of our first row."""
        return self.base + self.first

    @property
    def dead_rows(self) -> int:
        return self._live.dead() - self._dead_before

    def dead_mask(self) -> NDArray[np.bool_]:
        """Which of the rows so far are dead, or not ours, bool (rows,)."""
        mask = self._live.dead_mask(self.rows)
        mask[: self.first] = True
        return mask

    @property
    def live_rows(self) -> NDArray[np.int64]:
        return np.flatnonzero(~self.dead_mask())

    def append(self, batch: Batch, start: int) -> int:
        """Append the batch's rows from `start` on, as many as there is room for; returns the first one left over.

        They become visible by the last assignment.
        """
        first = self.rows
        stop = min(len(batch.ids), start + self.capacity - first)
        id_lengths = _lengths(batch.ids[start:stop])
        metadata, metadata_lengths = [], np.zeros(stop - start, np.int64)
        if any(batch.metadata):
            metadata = [text or b"" for text in batch.metadata[start:stop]]
            metadata_lengths = _lengths(metadata)
        count = min(self._ids.fitting(first, id_lengths), self._metadata.fitting(first, metadata_lengths))
        last, stop = first + count, start + count
        self._ids.append(first, batch.ids[start:stop], id_lengths[:count])
        self._metadata.append(first, metadata[:count], metadata_lengths[:count])
        self.vectors[first:last] = batch.vectors[start:stop]
        self.firsts[first:last] = batch.vectors[start:stop, 0]
        self.offsets[first:last] = batch.offsets[start:stop]
        self.timestamps[first:last] = batch.timestamps[start:stop]
        self.digests[first:last] = batch.digests[start:stop]
        self.hashes[first:last] = batch.hashes[start:stop]
        fence()
        self._words[0] = last
        return stop

    def kill(self, rows: NDArray[np.int64]) -> int:
        """Mark live rows dead; returns the sum of their digests modulo 2**64."""
        self._live.kill(rows)
        self.vectors[rows, 0] = np.nan
        return int(self.digests[rows].sum())

    def encode(self, metric: Metric, recall_target: float) -> None:
        """Give codes to the next rows; on any thread, but one at a time.

        From rows on that codes cannot tell apart, or not any more, rows stay without and are searched exactly.
        """
        codes = self._codes
        first, stop = codes.rows, min(self.rows, codes.rows + ENCODED_ROWS_MAX)
        vectors = self.vectors[first:stop].copy()
        vectors[:, 0] = self.firsts[first:stop]  # without the NaN of dead rows
        if not codes.started:
            trained, found = index.build_codes(vectors, metric, recall_target, self.base)
            if found.recall < recall_target - index.SHORTFALL_MAX:
                codes.ended = True
                return
            codes.start(trained, found)
        codes.ended = not codes.append(vectors)
        if stop >= max(2 * codes.checked, 2 * ENCODED_ROWS_MAX):
            codes.checked = stop
            codes.ended = codes.ended or not self._codes_tell_apart(vectors, recall_target)

    def _codes_tell_apart(self, newest: NDArray[np.float32], recall_target: float) -> bool:
        """Whether searches by codes are as good as they were among fewer rows; asked whenever those have doubled."""
        coded = self._codes.opened(self.first)
        coded.refresh()
        found = index.recall_of_narrow(coded.index, self.vectors, newest, coded.parameters, self._alive)
        return found >= recall_target - 2 * index.SHORTFALL_MAX

    @property
    def uncoded(self) -> int:
        """How many rows could get codes; 0 where codes are of no use."""
        return 0 if self._codes.ended else self.rows - self._codes.rows

    @property
    def has_drifted(self) -> bool:
        """Whether codes ended because rows became too different from those they were trained on, or too many."""
        return self._codes.started and self._codes.ended

    @property
    def scan_cost(self) -> float:
        """What a search scans, in rows compared exactly; where codes find too few, all rows of theirs that live."""
        coded = max(0, self._codes.rows - self.first)
        scanned = coded * index.CODES_SCAN_COST
        if self.dead_rows > DEAD_SHARE_LED * self.count:
            scanned += max(0, coded - self.dead_rows)
        return self.count - coded + scanned

    def search(
        self, queries: NDArray[np.float32], k: int, metric: Metric, start: int, stop: int, effort: float, exact: bool
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """FAISS distances and row numbers of rows [start, stop): of those that have codes, and of the others."""
        coded = self._codes.rows
        if not exact and start == self.first and start < coded:
            yield self._search_codes(queries, k, metric, effort)
            start = coded
        if start < stop:
            distances, labels = exact_search(self.vectors[start:stop], queries, k, metric)
            if start:
                labels[labels >= 0] += start
            yield distances, labels

    def _search_codes(
        self, queries: NDArray[np.float32], k: int, metric: Metric, effort: float
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """May find rows newer than those that its caller knows to have codes."""
        fence()
        coded = self._coded
        if coded is None:
            coded = self._coded = self._codes.opened(self.first)
        coded.refresh()
        alive = self._alive if self.first or self._live.dead() else index.ALL
        distances, labels = index.search(coded.index, self.vectors, queries, k, coded.parameters, alive, effort)
        labels[np.isnan(distances)] = -1  # killed meanwhile
        if labels.min() < 0:
            self._complete(distances, labels, queries, metric)
        return distances, labels

    def _complete(
        self,
        distances: NDArray[np.float32],
        labels: NDArray[np.int64],
        queries: NDArray[np.float32],
        metric: Metric,
    ) -> None:
        """Search exactly where codes found too few: dead rows around a query can use up its effort."""
        live = self.live_rows
        live = live[: np.searchsorted(live, self._codes.rows)]
        k = labels.shape[1]
        short = (labels >= 0).sum(axis=1) < min(k, len(live))
        if short.any():
            found, rows = exact_search_among(self.vectors, live, queries[short], k, metric)
            width = rows.shape[1]
            distances[short, :width], labels[short, :width], labels[short, width:] = found, rows, -1

    def find(self, hash_: np.uint64, id_: bytes) -> int | None:
        """The live row that holds an id, whose hash is given; None when there is none."""
        for row in np.flatnonzero(self.hashes[: self.rows] == hash_).tolist():
            if row >= self.first and self._live.is_live(row) and self.id_of(row) == id_:
                return int(row)
        return None

    def id_of(self, row: int) -> bytes:
        return self._ids.of(row)

    def offset_of(self, row: int) -> int:
        return int(self.offsets[row])

    def timestamp_of(self, row: int) -> int:
        return int(self.timestamps[row])

    def metadata_of(self, row: int) -> bytes | None:
        return self._metadata.of(row) or None

    def vector_of(self, row: int) -> NDArray[np.float32]:
        vector: NDArray[np.float32] = self.vectors[row].copy()
        vector[0] = self.firsts[row]
        return vector

    def is_live(self, row: int) -> bool:
        return self._live.is_live(row)

    def live_part(self) -> Rows:
        """The rows alive now; a copy only where some are dead."""
        rows: Any = slice(self.first, self.rows)
        ids, metadata = self._ids.column(self.rows)[rows], self._metadata.column(self.rows)[rows]
        if self.dead_rows:
            rows = self.live_rows
            taken = pa.array(rows - self.first)
            ids, metadata = ids.take(taken), metadata.take(taken)
        return Rows(
            vectors=self.vectors[rows],
            ids=ids,
            offsets=self.offsets[rows],
            timestamps=self.timestamps[rows],
            metadata=pc.if_else(pc.equal(pc.binary_length(metadata), 0), None, metadata),
            digests=self.digests[rows],
            hashes=self.hashes[rows],
        )


def _size(dimension: int, capacity: int) -> int:
    columns = [np.float32, np.int64, np.int64, np.uint64, np.uint64]
    size = (
        room(np.int64, 1)
        + room(np.uint8, LiveRows.size(capacity))
        + room(np.float32, capacity, dimension)
        + 2 * _Texts.size(capacity)
    )
    return size + Codes.size(dimension, capacity) + sum(room(kind, capacity) for kind in columns)


def _lengths(strings: Sequence[bytes]) -> NDArray[np.int64]:
    return np.fromiter(map(len, strings), np.int64, len(strings))
