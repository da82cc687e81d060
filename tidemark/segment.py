"""An immutable set of rows on disk, opened: its columns, mapped, and a bit for each row that lives.

Invariants: files never change once named by a manifest; they are mapped only after their checksums matched; an id is
in a segment at most once. The bits are as of the manifest until a view takes the segment into its row space.
One writer kills rows; any number of readers look, without locks. Knows nothing of manifests' versions or of searches.
`segment_files.py` writes what is opened here; `tail.py` is its counterpart in memory.
"""

import contextlib
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from tidemark import files, layout
from tidemark.ann.graph import Graph
from tidemark.collection import Metric
from tidemark.errors import CorruptCheckpoint
from tidemark.filters import columns_file
from tidemark.filters.columns import Columns
from tidemark.live_rows import LiveRows
from tidemark.manifest import FileEntry, SegmentEntry
from tidemark.row_space import Mapping, VectorSpace
from tidemark.rows import Rows, concatenate, texts_of
from tidemark.segment_files import verify_file


def _unchanging(entry: SegmentEntry) -> dict[str, FileEntry]:
    return {name: file for name, file in entry.files.items() if name not in (entry.dead_file, entry.codes_file)}


@contextlib.contextmanager
def _opening(directory: Path) -> Iterator[None]:
    try:
        with files.reading(directory):
            yield
    except FileNotFoundError as error:
        raise CorruptCheckpoint(f"{error.filename or directory}: the file is missing") from None


class Segment:
    """An opened segment of a partition; its rows never change, they only die.

    `base` is the number of its first row in the row space of a view, -1 while it is in none.
    """

    def __init__(
        self,
        directory: Path,
        entry: SegmentEntry,
        dimension: int,
        metric: Metric,
        partition: int = 0,
        verified: Collection[str] = (),
        live: LiveRows | None = None,
    ) -> None:
        """Map the files, after verifying those not named as `verified`. `live`: which rows do, if not by `entry`."""
        self.directory, self.entry, self.metric, self.partition = directory, entry, metric, partition
        self.name, self.row_count, self.dimension = entry.name, entry.rows, dimension
        self.base, self.capacity = -1, entry.rows
        self._mapping: Mapping | None = None
        for name, expected in entry.files.items():
            if name not in verified:
                verify_file(directory / name, expected)
        with _opening(directory):
            self._open_vectors()
            self._open_columns()
            self.live = live or self._as_of_manifest()
        self.saved_dead_rows = self.dead_rows

    def _open_vectors(self) -> None:
        path = self.directory / layout.VECTORS
        if path.stat().st_size != 4 * self.dimension * self.row_count:
            raise CorruptCheckpoint(f"{path}: is not {self.row_count} rows x {self.dimension} float32")
        mapped = np.memmap(path, np.dtype("<f4"), "r", shape=(self.row_count, self.dimension))
        self.vectors: NDArray[np.float32] = np.asarray(mapped)

    def map_in(self, space: VectorSpace) -> None:
        """Have the vectors mapped at their place among those of all parts, as long as this segment is held."""
        self._mapping = space.map_file(self.base, self.directory / layout.VECTORS, self.row_count)
        self.vectors = space.vectors[self.base : self.base + self.row_count]

    def _open_columns(self) -> None:
        path = self.directory / layout.ROWS
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all().combine_chunks()
        if table.num_rows != self.row_count:
            raise CorruptCheckpoint(f"{path}: has {table.num_rows} rows, the manifest says {self.row_count}")
        columns = {name: table.column(name).chunk(0) for name in table.column_names}
        self.ids, self.metadata = columns["id"], columns["metadata"]
        self._texts = texts_of(self.ids), texts_of(self.metadata)
        self.offsets: NDArray[np.int64] = columns["offset"].to_numpy()
        self.timestamps: NDArray[np.int64] = columns["timestamp"].to_numpy()
        self.digests: NDArray[np.uint64] = columns["digest"].to_numpy()
        self.sorted_hashes: NDArray[np.uint64] = columns["sorted_hash"].to_numpy()
        self.sorted_rows: NDArray[np.uint32] = columns["sorted_row"].to_numpy()

    def _as_of_manifest(self) -> LiveRows:
        live = LiveRows(np.zeros(-(-self.row_count // 8), np.uint8), self.row_count)
        live.set_all_but(self._dead_in_file())
        return live

    def _dead_in_file(self) -> NDArray[np.bool_]:
        if not self.entry.dead_file:
            return np.zeros(self.row_count, np.bool_)
        path = self.directory / self.entry.dead_file
        bits = np.fromfile(path, np.uint8)
        if len(bits) != -(-self.row_count // 8):
            raise CorruptCheckpoint(f"{path}: has {len(bits)} bytes for {self.row_count} rows")
        return np.unpackbits(bits, count=self.row_count, bitorder="little").astype(np.bool_)

    def reopened(self, entry: SegmentEntry) -> "Segment":
        """The same files, verified before, with exactly the dead rows of a newer manifest's entry."""
        unchanged = {name for name, file in entry.files.items() if self.entry.files.get(name) == file}
        return Segment(self.directory, entry, self.dimension, self.metric, self.partition, unchanged)

    def is_of(self, entry: SegmentEntry) -> bool:
        """Whether an entry names the very rows of this segment, whatever has died in them and how they are coded."""
        return _unchanging(self.entry) == _unchanging(entry)

    # -- what is searched ----------------------------------------------------------------------------------

    @property
    def has_graph(self) -> bool:
        """Whether it has an HNSW graph of its own."""
        return self.entry.kind == "hnsw"

    @cached_property
    def meta(self) -> Columns | None:
        """The columns of the metadata; None when they were never made, and filters read the JSON."""
        if self.metadata.null_count == self.row_count:
            return Columns(self.row_count, {}, {})
        if layout.META not in self.entry.files:
            return None
        return columns_file.read(self.directory / layout.META, self.row_count)

    @cached_property
    def graph(self) -> Graph:
        """Opened at the first search: its links are memory of the process, which who only writes need not have."""
        outliers = self.directory / layout.OUTLIERS
        numbers = np.empty(0, np.int64)
        if layout.OUTLIERS in self.entry.files:
            numbers = np.fromfile(outliers, "<u4").astype(np.int64)
        path = self.directory / layout.INDEX
        return Graph.open_mapped(path, self.row_count, self.dimension, self.entry.effort, numbers)

    @property
    def codes(self) -> tuple[NDArray[np.uint32], NDArray[np.uint8]] | None:
        """The list of each row, uint32 (n,), and its product code (n, code bytes), mapped; None when it has none."""
        return self.codes_by(self.entry)

    def codes_by(self, entry: SegmentEntry) -> tuple[NDArray[np.uint32], NDArray[np.uint8]] | None:
        """The same, as an entry of this segment names them: `entry` may be replaced by another thread at any time."""
        if entry.codes_file is None:
            return None
        path, count = self.directory / entry.codes_file, self.row_count
        with _opening(self.directory):
            size = path.stat().st_size
            if count and size % count == 0 and size > 4 * count:
                mapped = np.memmap(path, np.uint8, "r")
                return mapped[: 4 * count].view("<u4"), np.asarray(mapped[4 * count :].reshape(count, -1))
        raise CorruptCheckpoint(f"{path}: has {size} bytes, which are not a list and a code for {count} rows")

    # -- which rows live -----------------------------------------------------------------------------------

    @property
    def live_count(self) -> int:
        return self.live.live_count

    @property
    def dead_rows(self) -> int:
        return self.row_count - self.live_count

    def dead_mask(self) -> NDArray[np.bool_]:
        """Which rows are dead, bool (n,)."""
        return self.live.dead_mask(self.row_count)

    def kill(self, rows: NDArray[np.int64]) -> int:
        """Mark live rows dead; returns the sum of their digests modulo 2**64."""
        self.live.kill(rows)
        return int(self.digests[rows].sum())

    def save_dead_rows(self, writer_epoch: int, number: int) -> None:
        """Write the dead rows' bitmap as of now, durably, and name it in `entry`.

        The writer has not used the number before. The file is created, never written over: another writer's manifest
        may name what is there.
        """
        mask = self.dead_mask()
        dead_rows = int(np.count_nonzero(mask))
        if dead_rows == self.saved_dead_rows:
            return
        path = self.directory / layout.dead_rows_name(writer_epoch, number)
        bits = np.packbits(mask, bitorder="little").tobytes()
        with files.entering(self.directory):
            files.write(path, bits)
        named = {name: file for name, file in self.entry.files.items() if name != self.entry.dead_file}
        named[path.name] = FileEntry(len(bits), xxhash.xxh3_128_hexdigest(bits))
        self.entry = msgspec.structs.replace(self.entry, files=named, dead_rows=dead_rows, dead_file=path.name)
        self.saved_dead_rows = dead_rows

    def find(self, hashes: NDArray[np.uint64], ids: Sequence[bytes]) -> NDArray[np.int64]:
        """The live rows that hold one of the ids, whose hashes are given in the same order."""
        rows = self.rows_with(hashes, ids)
        return rows[self.live.are_live(rows)]

    def rows_with(self, hashes: NDArray[np.uint64], ids: Sequence[bytes]) -> NDArray[np.int64]:
        """The same, of dead rows too."""
        first = np.searchsorted(self.sorted_hashes, hashes)
        last = np.minimum(first, max(0, self.row_count - 1))
        found: list[int] = []
        if self.row_count:
            for at in np.flatnonzero(self.sorted_hashes[last] == hashes).tolist():
                found += self._holding(int(first[at]), hashes[at], ids[at])
        return np.array(found, np.int64)

    def _holding(self, place: int, hash_: np.uint64, id_: bytes) -> list[int]:
        """The row that holds an id, if one does; two ids may share a hash."""
        while place < self.row_count and self.sorted_hashes[place] == hash_:
            row = int(self.sorted_rows[place])
            if self.id_of(row) == id_:
                return [row]
            place += 1
        return []

    # -- rows ----------------------------------------------------------------------------------------------

    @cached_property
    def first_offset(self) -> int:
        """The least offset of its rows; only where there are rows."""
        return int(self.offsets.min())

    @cached_property
    def last_offset(self) -> int:
        """The greatest offset of its rows; only where there are rows."""
        return int(self.offsets.max())

    def id_of(self, row: int) -> bytes:
        return self._texts[0].of(row)

    def partition_of(self, row: int) -> int:
        return self.partition

    def partitions_of(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        return np.full(len(rows), self.partition, np.int32)

    def offset_of(self, row: int) -> int:
        return int(self.offsets[row])

    def timestamp_of(self, row: int) -> int:
        return int(self.timestamps[row])

    def metadata_of(self, row: int) -> bytes | None:
        return self._texts[1].of(row) or None  # as JSON objects they are never empty

    def vector_of(self, row: int) -> NDArray[np.float32]:
        vector: NDArray[np.float32] = self.vectors[row]
        return vector

    def columns(self, rows: NDArray[np.int64], vectors: Any = None) -> Rows:
        """Some of the rows, as columns; their vectors are copied into `vectors` (rows, dimension) when it is given."""
        taken = pa.array(rows)
        hashes = np.empty_like(self.sorted_hashes)
        hashes[self.sorted_rows] = self.sorted_hashes
        return Rows(
            vectors=np.take(self.vectors, rows, axis=0, out=vectors, mode="clip"),
            ids=self.ids.take(taken),
            offsets=self.offsets[rows],
            timestamps=self.timestamps[rows],
            metadata=self.metadata.take(taken),
            digests=self.digests[rows],
            hashes=hashes[rows],
        )


def merged(segments: Sequence[Segment]) -> Rows:
    """The live rows of segments of the same dimension, one after the other."""
    rows = [segment.live.numbers() for segment in segments]
    ends = list(accumulate(map(len, rows)))
    vectors = np.empty((ends[-1], segments[0].dimension), np.float32)
    starts = [0, *ends[:-1]]
    places = zip(segments, rows, starts, ends, strict=True)
    return concatenate([segment.columns(some, vectors[start:end]) for segment, some, start, end in places], vectors)
