"""An immutable set of rows on disk: its files, its index, and the rows of it that have died since.

Invariants: files never change once named by a manifest; they are mapped only after their checksums matched;
an id is in a segment at most once. Which rows live is a bitmap, in memory that other processes may share: a
kill clears a bit. Kind `flat` is searched exactly (a search first puts a NaN into what died since the last one,
in its process's copy of the page), the others through an index, of whose answer the living are kept.
One writer kills rows; any number of readers search, without locks. Knows nothing of manifests' versions.
"""

import contextlib
import math
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from tidemark import files, layout
from tidemark.ann import index
from tidemark.ann.exact import exact_search, exact_search_among
from tidemark.collection import IndexKind, Metric
from tidemark.errors import CorruptCheckpoint
from tidemark.live_rows import DEAD_SHARE_LED, LiveRows
from tidemark.manifest import FileEntry, SegmentEntry
from tidemark.rows import Rows, concatenate, texts_of
from tidemark.segment_files import verify_file
from tidemark.shared_memory import Region, room

# To ask an exact search for so many more costs a fifth of it; to copy the rows that live takes as long again.
DEAD_PASSED_OVER = 1_000
# Beside k and those of them that are dead on average, with a margin. Asked again for so many times as many, an index
# costs about three times as much; for more than so many, as much as to compare all rows.
DEAD_ASKED_TOO, ASKED_AGAIN, ASKED_MAX = 3, 8, 1_024


def _unchanging(entry: SegmentEntry) -> dict[str, FileEntry]:
    return {name: file for name, file in entry.files.items() if name != entry.dead_file}


@contextlib.contextmanager
def _opening(directory: Path) -> Iterator[None]:
    try:
        with files.reading(directory):
            yield
    except FileNotFoundError as error:
        raise CorruptCheckpoint(f"{error.filename or directory}: the file is missing") from None


class Segment:
    """An opened segment. `rows` never changes; `dead_rows` only grows."""

    def __init__(
        self,
        directory: Path,
        entry: SegmentEntry,
        dimension: int,
        metric: Metric,
        verified: Collection[str] = (),
        shared: bool = False,
        live: Region | None = None,
    ) -> None:
        """Map the files, after verifying those not named as `verified`.

        `shared`: other processes may see which rows live; `live` is the memory of the one that kills them.
        """
        self.name = entry.name
        self.entry = entry
        self.directory = directory
        self.kind: IndexKind = entry.kind
        self.rows = entry.rows
        self.metric = metric
        self.parameters = index.SearchParameters(entry.effort, entry.k_factor, entry.recall, entry.reach)
        for name, expected in entry.files.items():
            if name not in verified:
                verify_file(directory / name, expected)
        self._dimension = dimension
        with _opening(directory):
            self._open_vectors(dimension)
            self._open_columns()
        self.region = live or Region(room(np.uint8, max(1, LiveRows.size(self.rows))), shared)
        self._live = LiveRows(self.region.take(np.uint8, LiveRows.size(self.rows)), self.rows)
        if live is None:
            self._live.set(0, self.rows)
        self._live_in_vectors = np.full_like(self._live.bitmap, 0xFF)
        self.saved_dead_rows = 0
        if live is None and entry.dead_file:
            with _opening(directory):
                self._open_dead_rows(entry.dead_file)

    @cached_property
    def opened_index(self) -> index.Index | None:
        """Opened at the first search: its codes are memory of the process, which who only writes need not have."""
        if self.kind == "flat":
            return None
        outliers = index.NO_ROWS
        if layout.OUTLIERS in self.entry.files:
            outliers = np.fromfile(self.directory / layout.OUTLIERS, "<u4").astype(np.int64)
        return index.open_mapped(self.directory / layout.INDEX, self.kind, self.rows, self._dimension, outliers)

    def _open_vectors(self, dimension: int) -> None:
        path = self.directory / layout.VECTORS
        if path.stat().st_size != 4 * dimension * self.rows:
            raise CorruptCheckpoint(f"{path}: is not {self.rows} rows x {dimension} float32")
        shape = (self.rows, dimension)
        self._written = np.asarray(np.memmap(path, np.dtype("<f4"), "r", shape=shape))
        self.vectors = self._written
        if self.kind == "flat":
            # Copy on write: the NaN of a dead row dirties one private page, the file stays as it is.
            self.vectors = np.asarray(np.memmap(path, np.dtype("<f4"), "c", shape=shape))

    def _open_columns(self) -> None:
        path = self.directory / layout.ROWS
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all().combine_chunks()
        if table.num_rows != self.rows:
            raise CorruptCheckpoint(f"{path}: has {table.num_rows} rows, the manifest says {self.rows}")
        columns = {name: table.column(name).chunk(0) for name in table.column_names}
        self.ids, self.metadata = columns["id"], columns["metadata"]
        self._texts = texts_of(self.ids), texts_of(self.metadata)
        self.offsets: NDArray[np.int64] = columns["offset"].to_numpy()
        self.timestamps: NDArray[np.int64] = columns["timestamp"].to_numpy()
        self.digests: NDArray[np.uint64] = columns["digest"].to_numpy()
        self._sorted_hashes: NDArray[np.uint64] = columns["sorted_hash"].to_numpy()
        self._sorted_rows: NDArray[np.uint32] = columns["sorted_row"].to_numpy()

    def _open_dead_rows(self, name: str) -> None:
        bits = np.fromfile(self.directory / name, np.uint8)
        if len(bits) != len(self._live.bitmap):
            raise CorruptCheckpoint(f"{self.directory / name}: has {len(bits)} bytes for {self.rows} rows")
        dead = np.flatnonzero(np.unpackbits(bits, count=self.rows, bitorder="little"))
        self.kill(dead.astype(np.int64))
        self.saved_dead_rows = self.dead_rows

    def reopened(self, entry: SegmentEntry) -> "Segment":
        """The same files, verified before, with exactly the dead rows of a newer manifest's entry."""
        unchanged = {name for name, file in entry.files.items() if self.entry.files.get(name) == file}
        shared = self.region.name is not None
        return Segment(self.directory, entry, self._dimension, self.metric, verified=unchanged, shared=shared)

    def is_of(self, entry: SegmentEntry) -> bool:
        """Whether an entry names the very files of this segment, whatever has died in them."""
        return _unchanging(self.entry) == _unchanging(entry)

    @property
    def dead_rows(self) -> int:
        return self._live.dead()

    @property
    def live_count(self) -> int:
        return self.rows - self.dead_rows

    @property
    def is_built(self) -> bool:
        """Whether it has the index that its rows are to have in the end."""
        return self.kind != "flat"

    @property
    def scan_cost(self) -> float:
        """What a search scans, in rows compared exactly; 0 when the index leads it to a part.

        An index finds too few where many rows are dead: then those that live are compared, all of them.
        """
        if self.kind == "flat":
            return self.rows
        return self.live_count if self.dead_rows > DEAD_SHARE_LED * self.rows else 0.0

    @cached_property
    def first_offset(self) -> int:
        """The least offset of its rows; only where there are rows."""
        return int(self.offsets.min())

    @cached_property
    def last_offset(self) -> int:
        """The greatest offset of its rows; only where there are rows."""
        return int(self.offsets.max())

    def dead_mask(self) -> NDArray[np.bool_]:
        """Which rows are dead, bool (rows,)."""
        return self._live.dead_mask()

    def save_dead_rows(self, writer_epoch: int, number: int) -> None:
        """Write the dead rows' bitmap as of now, durably, and name it in `entry`.

        The writer has not used the number before. The file is created, never written over: another writer's manifest
        may name what is there.
        """
        if self.dead_rows == self.saved_dead_rows:
            return
        path = self.directory / layout.dead_rows_name(writer_epoch, number)
        dead_rows, bits = self.dead_rows, np.packbits(self.dead_mask(), bitorder="little").tobytes()
        with files.entering(self.directory):
            files.write(path, bits)
        named = {name: file for name, file in self.entry.files.items() if name != self.entry.dead_file}
        named[path.name] = FileEntry(len(bits), xxhash.xxh3_128_hexdigest(bits))
        self.entry = msgspec.structs.replace(self.entry, files=named, dead_rows=dead_rows, dead_file=path.name)
        self.saved_dead_rows = dead_rows

    def find(self, hashes: NDArray[np.uint64], ids: Sequence[bytes]) -> NDArray[np.int64]:
        """The live rows that hold one of the ids (whose hashes are given, in the same order)."""
        found = []
        at = np.searchsorted(self._sorted_hashes, hashes)
        candidates = np.flatnonzero(at < self.rows)
        at = at[candidates]
        while len(candidates):
            same = self._sorted_hashes[at] == hashes[candidates]
            candidates, at = candidates[same], at[same]
            if not len(candidates):
                break
            rows = self._sorted_rows[at].astype(np.int64)
            equal = pc.equal(self.ids.take(pa.array(rows)), pa.array([ids[i] for i in candidates], pa.large_binary()))
            hit = equal.to_numpy(zero_copy_only=False)
            found.append(rows[hit])
            # Two ids may share a hash: those not yet found look at the next entry too.
            candidates, at = candidates[~hit], at[~hit] + 1
            inside = at < self.rows
            candidates, at = candidates[inside], at[inside]
        if not found:
            return np.empty(0, np.int64)
        rows = np.concatenate(found)
        return rows[self._live.are_live(rows)]

    def kill(self, rows: NDArray[np.int64]) -> int:
        """Mark live rows dead; returns the sum of their digests modulo 2**64."""
        self._live.kill(rows)
        return int(self.digests[rows].sum())

    def search(
        self, queries: NDArray[np.float32], k: int, effort: float, exact: bool
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """FAISS distances and row numbers of live rows, nearest first, -1 where there are fewer."""
        if self.opened_index is None:
            self._hide_dead_rows()
            return exact_search(self.vectors, queries, k, self.metric)
        if exact:
            return self._search_exactly(queries, k)
        if not self.dead_rows:
            found = index.search(self.opened_index, self.vectors, queries, k, self.parameters, effort=effort)
            if found[1][:, -1].min() >= 0:
                return found
        return self._search_led(self.opened_index, queries, k, effort)

    def _hide_dead_rows(self) -> None:
        """Put a NaN into the vectors of rows that died since the last time (exact.py); any thread may do it."""
        live = self._live.bitmap.copy()
        changed = np.flatnonzero(live != self._live_in_vectors)
        if len(changed):
            dead = np.unpackbits(~live[changed], bitorder="little").reshape(-1, 8)
            rows = (changed[:, None] * 8 + np.arange(8))[dead != 0]
            self.vectors[rows[rows < self.rows], 0] = np.nan
            self._live_in_vectors = live

    def _search_led(
        self, opened: index.Index, queries: NDArray[np.float32], k: int, effort: float
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Ask the index for so many rows, dead or alive, that k of them live; compare all beyond some.

        Its effort is for the nearest of all its rows. Were dead ones passed over, those around a query would use up
        what is to find its neighbours, and farther rows be answered in their place.
        """
        wanted, more = min(k, self.live_count), math.ceil(2 * k * self.dead_rows / self.rows) + DEAD_ASKED_TOO
        found, labels = index.search(opened, self.vectors, queries, k, self.parameters, effort=effort, more=more)
        alive = (labels >= 0) & self._live.are_live(labels)
        if alive[:, :wanted].all():
            return found[:, :wanted], labels[:, :wanted]
        asked = k + more
        distances = np.zeros((len(queries), wanted), np.float32)
        rows = np.full((len(queries), wanted), -1, np.int64)
        left = np.arange(len(queries))
        while True:
            enough = alive.sum(axis=1) >= wanted
            for line in enough.nonzero()[0].tolist():
                at = alive[line].nonzero()[0][:wanted]
                distances[left[line]], rows[left[line]] = found[line, at], labels[line, at]
            left, asked = left[~enough], ASKED_AGAIN * asked
            if not len(left) or asked > max(ASKED_MAX, 2 * k):
                break
            found, labels = index.search(opened, self.vectors, queries[left], asked, self.parameters, effort=effort)
            alive = (labels >= 0) & self._live.are_live(labels)
        if len(left):
            found, labels = self._search_exactly(queries[left], wanted)
            distances[left, : labels.shape[1]], rows[left, : labels.shape[1]] = found, labels
        return distances, rows

    def _search_exactly(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The nearest of the rows that live as it starts, (nq, min(k, live rows)), in one scan."""
        live = self._live.numbers()
        dead = self.rows - len(live)
        if dead > DEAD_PASSED_OVER:
            return exact_search_among(self._written, live, queries, k, self.metric)
        distances, rows = exact_search(self._written, queries, k + dead, self.metric)
        if not dead:
            return distances, rows
        alive = np.zeros(self.rows, np.bool_)
        alive[live] = True
        order = np.argsort((rows < 0) | ~alive[rows], axis=1, kind="stable")[:, : min(k, len(live))]
        return np.take_along_axis(distances, order, 1), np.take_along_axis(rows, order, 1)

    def id_of(self, row: int) -> bytes:
        return self._texts[0].of(row)

    def offset_of(self, row: int) -> int:
        return int(self.offsets[row])

    def timestamp_of(self, row: int) -> int:
        return int(self.timestamps[row])

    def metadata_of(self, row: int) -> bytes | None:
        return self._texts[1].of(row) or None  # as JSON objects they are never empty

    def vector_of(self, row: int) -> NDArray[np.float32]:
        vector: NDArray[np.float32] = self._written[row]
        return vector

    def is_live(self, row: int) -> bool:
        return self._live.is_live(row)

    def _live_part(self, vectors: NDArray[np.float32]) -> Rows:
        """The rows alive now; their vectors are copied into `vectors` (live rows, dimension)."""
        rows = np.flatnonzero(~self.dead_mask())
        taken = pa.array(rows)
        hashes = np.empty_like(self._sorted_hashes)
        hashes[self._sorted_rows] = self._sorted_hashes
        np.take(self._written, rows, axis=0, out=vectors, mode="clip")
        return Rows(
            vectors=vectors,
            ids=self.ids.take(taken),
            offsets=self.offsets[rows],
            timestamps=self.timestamps[rows],
            metadata=self.metadata.take(taken),
            digests=self.digests[rows],
            hashes=hashes[rows],
        )


def merged(segments: Sequence[Segment]) -> Rows:
    """The live rows of segments of the same dimension, one after the other."""
    ends = list(accumulate(segment.live_count for segment in segments))
    vectors = np.empty((ends[-1], segments[0].vectors.shape[1]), np.float32)
    starts = [0, *ends[:-1]]
    parts = [s._live_part(vectors[start:end]) for s, start, end in zip(segments, starts, ends, strict=True)]
    return concatenate(parts, vectors)
