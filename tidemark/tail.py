"""The newest rows of a partition: a preallocated append-only buffer in memory.

Searched exactly, or by codes of its first rows (an index of kind `pq`, see `index.py`) and exactly beyond them.

Invariants: a published row (below `rows`) never moves; a killed row only has its first component set to NaN
(`firsts` keeps it, so that a reader who found the row just before still gets the vector that was written).
One writer; any number of readers, also in other processes, which hold no lock. A full tail is sealed: it just
gets no more rows. Knows nothing of files. `segment.py` is its counterpart on disk; both answer the same
questions by row.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from struct import Struct
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tidemark import index
from tidemark.collection import IndexParameters, Metric
from tidemark.exact import exact_search
from tidemark.index import Donor, SearchParameters
from tidemark.live_rows import LiveRows
from tidemark.record import Batch
from tidemark.rows import Rows
from tidemark.shared_memory import Document, Region, fence, room

# What stands before the codes in their document: rows that have them, effort, k_factor, reach.
_HEAD = Struct("<qqqd")
# Bytes of ids, and of metadata, in a tail: one row has at most 1 KiB and 64 KiB of them (record.py).
TEXT_BYTES = 32 * 2**20


class TailPlace(msgspec.Struct, frozen=True):
    """Where another process finds a tail."""

    region: str
    capacity: int
    base: int
    first: int


class _Texts:
    """Byte strings by row, one after the other: row r is `heap[ends[r]:ends[r + 1]]`, as in an Arrow column."""

    def __init__(self, region: Region, capacity: int) -> None:
        self.ends: NDArray[np.int64] = region.take(np.int64, capacity + 1)
        self.heap: NDArray[np.uint8] = region.take(np.uint8, TEXT_BYTES)

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

    def of(self, row: int) -> bytes:
        return self.heap[self.ends[row] : self.ends[row + 1]].tobytes()

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
        self._live = LiveRows(self.region, capacity, new=region is None)
        self._pass_over(first)
        self._codes = Document(self.region, _codes_bytes(dimension, capacity))
        self._encoder: tuple[index.Index, SearchParameters] | None = None  # the writer's, to which rows are added
        self._can_encode = True
        self._coded = _Coded()
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

    @property
    def start(self) -> int:
        """The view's number of our first row."""
        return self.base + self.first

    @property
    def dead_rows(self) -> int:
        return self._live.dead - self._dead_before

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

    def encode(self, metric: Metric, parameters: IndexParameters, donor: Donor | None) -> Donor | None:
        """Make codes of all rows so far, with a donor's codebooks while they fit; returns the codebooks to use next.

        Rows that codes cannot tell apart stay without, and the tail is searched exactly.
        """
        first, stop = self.rows - self.uncoded, self.rows
        vectors = self.vectors[first:stop].copy()
        vectors[:, 0] = self.firsts[first:stop]  # without the NaN of dead rows
        if self._encoder is None:
            built, found = index.build(vectors, metric, parameters, self.base, donor)
            if found.recall < parameters.recall_target - index.DRIFT_MAX:
                self._can_encode = False
                return None
            self._encoder = built, found
            donor = Donor.of(built, found, parameters.recall_target)
        else:
            self._encoder[0].faiss.add(vectors)
        built, found = self._encoder
        self._codes.write(_HEAD.pack(stop, found.effort, found.k_factor, found.reach) + index.to_bytes(built))
        return donor

    @property
    def uncoded(self) -> int:
        """How many rows could get codes; 0 where codes are of no use."""
        encoded = self._encoder[0].faiss.ntotal if self._encoder else 0
        return self.rows - encoded if self._can_encode else 0

    def open_codes(self) -> None:
        """Search by the newest codes from now on. Opening them takes milliseconds: not for a search to do."""
        if self._coded.version != self._codes.version:
            version, content = self._codes.read()
            rows, effort, k_factor, reach = _HEAD.unpack_from(content)
            found = index.from_bytes(content[_HEAD.size :])
            self._coded = _Coded(version, rows, found, SearchParameters(effort, k_factor, reach=reach))

    @property
    def scan_cost(self) -> float:
        """What a search scans, in rows compared exactly."""
        coded = max(0, min(self._coded.rows, self.rows) - self.first)
        return self.count - coded * (1 - index.PQ_SCAN_COST)

    def search(
        self, queries: NDArray[np.float32], k: int, metric: Metric, start: int, stop: int, effort: float, exact: bool
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """FAISS distances and row numbers of rows [start, stop): of those that have codes, and of the others."""
        coded = self._coded
        if not exact and start == self.first and start < coded.rows <= stop:
            distances, labels = index.search(
                coded.index, self.vectors, queries, k, coded.parameters, self._alive, effort
            )
            labels[np.isnan(distances)] = -1  # killed meanwhile
            yield distances, labels
            start = coded.rows
        if start < stop:
            distances, labels = exact_search(self.vectors[start:stop], queries, k, metric)
            if start:
                labels[labels >= 0] += start
            yield distances, labels

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


@dataclass(frozen=True, slots=True)
class _Coded:
    """An index over the first `rows` rows, as of a version of the codes' document."""

    version: int = 0
    rows: int = 0
    index: Any = None
    parameters: SearchParameters = field(default_factory=SearchParameters)


def _codes_bytes(dimension: int, capacity: int) -> int:
    """Room for the codes' document: at most 4 bits a dimension and 8 bytes a row, and the codebooks."""
    return capacity * (dimension // 2 + 16) + 256 * dimension + 65_536


def _size(dimension: int, capacity: int) -> int:
    columns = [np.float32, np.int64, np.int64, np.uint64, np.uint64]
    size = (
        room(np.int64, 1) + LiveRows.size(capacity) + room(np.float32, capacity, dimension) + 2 * _Texts.size(capacity)
    )
    size += Document.size(_codes_bytes(dimension, capacity))
    return size + sum(room(kind, capacity) for kind in columns)


def _lengths(strings: Sequence[bytes]) -> NDArray[np.int64]:
    return np.fromiter(map(len, strings), np.int64, len(strings))
