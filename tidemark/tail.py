"""The newest rows of a view, in memory, of all its partitions: a buffer that fills up and never changes again.

Invariants: a row that counts (below `row_count`) never moves or changes, it only dies, by its bit in the row space;
columns and bit come before the count, so who reads the count finds the rows before it whole. One writer; any number
of readers, also in other processes, which hold no lock. A full tail gets no more rows. Knows nothing of files, codes
or searches. `segment.py` is its counterpart on disk; both answer the same questions by row.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tidemark.live_rows import LiveRows
from tidemark.record import Batch
from tidemark.row_space import Mapping, VectorSpace
from tidemark.rows import Rows, Texts
from tidemark.shared_memory import Region, fence, room

# Bytes of ids, and of metadata, in a tail, most never used: one row has at most 1 KiB and 64 KiB of them (record.py).
TEXT_BYTES = 128 * 2**20
# Per row beside its vector and texts: partition, offset, timestamp, digest, hash, ends of two texts.
_COLUMNS_BYTES = 4 + 4 * 8 + 2 * 8


class TailPlace(msgspec.Struct, frozen=True):
    """Where another process finds a tail: its memory, and its rows' numbers from `base` on.

    `start` counts the rows that all tails before it have had.
    """

    region: str
    capacity: int
    base: int
    start: int


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

    def lengths(self, row_count: int) -> NDArray[np.int64]:
        """Bytes of each of the first strings, int64 (row_count,)."""
        lengths: NDArray[np.int64] = np.diff(self.ends[: row_count + 1])
        return lengths

    def column(self, row_count: int) -> Any:
        """The first strings as an Arrow column over the same memory."""
        buffers = [None, pa.py_buffer(self.ends[: row_count + 1]), pa.py_buffer(self.heap)]
        return pa.Array.from_buffers(pa.large_binary(), row_count, buffers)


class Tail:
    """A buffer for `capacity` rows, which have the numbers from `base` on; see `TailPlace` for `start`."""

    def __init__(
        self, dimension: int, capacity: int, base: int, start: int, live: LiveRows, region: Region | bool = False
    ) -> None:
        """`region`: the memory of the one who writes it; True: new memory that other processes may read."""
        self.base, self.start, self.capacity, self.live = base, start, capacity, live
        self.region = region if isinstance(region, Region) else Region(_size(dimension, capacity), region)
        self._mapping: Mapping | None = None
        take = self.region.take
        self.vectors: NDArray[np.float32] = take(np.float32, capacity, dimension)  # first: see `VectorSpace`
        self._words: NDArray[np.int64] = take(np.int64, 1)  # the row count
        self.partitions: NDArray[np.int32] = take(np.int32, capacity)
        self.offsets: NDArray[np.int64] = take(np.int64, capacity)
        self.timestamps: NDArray[np.int64] = take(np.int64, capacity)
        self.digests: NDArray[np.uint64] = take(np.uint64, capacity)
        self.hashes: NDArray[np.uint64] = take(np.uint64, capacity)
        self._ids = _Texts(self.region, capacity)
        self._metadata = _Texts(self.region, capacity)

    @classmethod
    def open(cls, place: TailPlace, dimension: int, live: LiveRows) -> "Tail":
        """Another process's tail; raises FileNotFoundError when it is gone."""
        return cls(dimension, place.capacity, place.base, place.start, live, Region.open(place.region))

    def map_in(self, space: VectorSpace) -> None:
        """Have the vectors mapped at their place among those of all parts, as long as this tail is held."""
        self._mapping = space.map_region(self.base, self.region, self.capacity)

    @property
    def place(self) -> TailPlace:
        assert self.region.name is not None
        return TailPlace(self.region.name, self.capacity, self.base, self.start)

    @property
    def row_count(self) -> int:
        return int(self._words[0])

    @property
    def stop(self) -> int:
        """How many rows all tails up to this one have had."""
        return self.start + self.row_count

    def row_bytes(self, row_count: int) -> NDArray[np.int64]:
        """Memory of each of the first rows, int64 (row_count,): vector, id, metadata and what is kept beside them."""
        texts = self._ids.lengths(row_count) + self._metadata.lengths(row_count)
        sizes: NDArray[np.int64] = texts + (4 * self.vectors.shape[1] + _COLUMNS_BYTES)
        return sizes

    def bytes_between(self, first: NDArray[np.int64], stop: NDArray[np.int64]) -> NDArray[np.int64]:
        """Memory of the rows [first, stop), as `row_bytes` counts it; of several such runs, int64 (n,)."""
        ends = self._ids.ends, self._metadata.ends
        sizes: NDArray[np.int64] = (stop - first) * (4 * self.vectors.shape[1] + _COLUMNS_BYTES)
        for end in ends:
            sizes += end[stop] - end[first]
        return sizes

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """Some of the rows, as they were appended."""
        some = rows.tolist()
        return Batch(
            ids=[self.id_of(row) for row in some],
            hashes=self.hashes[rows],
            vectors=self.vectors[rows],
            offsets=self.offsets[rows],
            timestamps=self.timestamps[rows],
            metadata=[self.metadata_of(row) for row in some],
            digests=self.digests[rows],
            partitions=self.partitions[rows],
            deleted_ids=[],
            deleted_hashes=np.empty(0, np.uint64),
            deleted_partitions=np.empty(0, np.int32),
            positions={},
            leader_epochs={},
            newest_timestamps={},
        )

    def append(self, batch: Batch, first: int) -> int:
        """Append the batch's rows from `first` on, as many as there is room for; returns the first one left over.

        They become visible by the last assignment.
        """
        start = self.row_count
        stop = min(len(batch.ids), first + self.capacity - start)
        id_lengths = _lengths(batch.ids[first:stop])
        metadata, metadata_lengths = [], np.zeros(stop - first, np.int64)
        if any(batch.metadata):
            metadata = [text or b"" for text in batch.metadata[first:stop]]
            metadata_lengths = _lengths(metadata)
        count = min(self._ids.fitting(start, id_lengths), self._metadata.fitting(start, metadata_lengths))
        end, stop = start + count, first + count
        self._ids.append(start, batch.ids[first:stop], id_lengths[:count])
        self._metadata.append(start, metadata[:count], metadata_lengths[:count])
        self.vectors[start:end] = batch.vectors[first:stop]
        self.partitions[start:end] = batch.partitions[first:stop]
        self.offsets[start:end] = batch.offsets[first:stop]
        self.timestamps[start:end] = batch.timestamps[first:stop]
        self.digests[start:end] = batch.digests[first:stop]
        self.hashes[start:end] = batch.hashes[first:stop]
        fence()
        self.live.set(start, end)
        fence()
        self._words[0] = end
        return stop

    def rows_of(self, partition: int, from_offset: int = 0, only_live: bool = True) -> NDArray[np.int64]:
        """The rows of a partition from an offset on, ascending; those that live, or all."""
        count = self.row_count
        wanted = (self.partitions[:count] == partition) & (self.offsets[:count] >= from_offset)
        if only_live:
            wanted &= ~self.live.dead_mask(count)
        return np.flatnonzero(wanted)

    def find(self, hash_: np.uint64, id_: bytes) -> Sequence[int]:
        """The live rows that hold an id, whose hash is given; of several partitions there may be several."""
        rows = np.flatnonzero(self.hashes[: self.row_count] == hash_).tolist()
        return [row for row in rows if self.live.is_live(row) and self.id_of(row) == id_]

    def id_of(self, row: int) -> bytes:
        return self._ids.of(row)

    def partition_of(self, row: int) -> int:
        return int(self.partitions[row])

    def partitions_of(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        partitions: NDArray[np.int32] = self.partitions[rows]
        return partitions

    def offset_of(self, row: int) -> int:
        return int(self.offsets[row])

    def timestamp_of(self, row: int) -> int:
        return int(self.timestamps[row])

    def metadata_of(self, row: int) -> bytes | None:
        return self._metadata.of(row) or None

    def vector_of(self, row: int) -> NDArray[np.float32]:
        vector: NDArray[np.float32] = self.vectors[row]
        return vector

    def columns(self, rows: NDArray[np.int64]) -> Rows:
        """Some of the rows, ascending; a copy only where they are not all of them."""
        count = self.row_count
        at: Any = slice(0, count) if len(rows) == count else rows
        ids, metadata = self._ids.column(count), self._metadata.column(count)
        if len(rows) != count:
            taken = pa.array(rows)
            ids, metadata = ids.take(taken), metadata.take(taken)
        return Rows(
            vectors=self.vectors[at],
            ids=ids,
            offsets=self.offsets[at],
            timestamps=self.timestamps[at],
            metadata=pc.if_else(pc.equal(pc.binary_length(metadata), 0), None, metadata),
            digests=self.digests[at],
            hashes=self.hashes[at],
        )


def _size(dimension: int, capacity: int) -> int:
    columns = [np.int32, np.int64, np.int64, np.uint64, np.uint64]
    size = room(np.int64, 1) + room(np.float32, capacity, dimension) + 2 * _Texts.size(capacity)
    return size + sum(room(kind, capacity) for kind in columns)


def _lengths(strings: Sequence[bytes]) -> NDArray[np.int64]:
    return np.fromiter(map(len, strings), np.int64, len(strings))
