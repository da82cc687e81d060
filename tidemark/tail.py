"""The newest rows of a partition: a preallocated append-only buffer in memory, searched exactly.

Invariants: a published row (below `rows`) never moves; a killed row only has its first component set to NaN
(`firsts` keeps it, so that a reader who found the row just before still gets the vector that was written).
One writer; any number of readers, which hold no lock. A full tail is sealed: it just gets no more rows.
Knows nothing of files. `segment.py` is its counterpart on disk; both answer the same questions by row.
"""

import numpy as np
from numpy.typing import NDArray

from tidemark.collection import Metric
from tidemark.exact import exact_search
from tidemark.record import Batch


class Tail:
    """Rows `base` to `base + rows` of a view's running row number."""

    def __init__(self, dimension: int, capacity: int, base: int) -> None:
        self.base = base
        self.capacity = capacity
        self.rows = 0
        self.vectors = np.empty((capacity, dimension), np.float32)
        self.firsts = np.empty(capacity, np.float32)
        self.offsets = np.empty(capacity, np.int64)
        self.timestamps = np.empty(capacity, np.int64)
        self.digests = np.empty(capacity, np.uint64)
        self.hashes = np.empty(capacity, np.uint64)
        self.dead = np.zeros(capacity, np.bool_)
        self.ids: list[bytes] = []
        self.metadata: list[bytes | None] = []

    @property
    def room(self) -> int:
        return self.capacity - self.rows

    def dead_mask(self) -> NDArray[np.bool_]:
        """Which of the rows so far are dead, bool (rows,)."""
        return self.dead[: self.rows].copy()

    @property
    def live_rows(self) -> NDArray[np.int64]:
        return np.flatnonzero(~self.dead[: self.rows])

    def append(self, batch: Batch, start: int, stop: int) -> None:
        """Append rows [start, stop) of the batch; they become visible by the last assignment."""
        first, last = self.rows, self.rows + stop - start
        self.vectors[first:last] = batch.vectors[start:stop]
        self.firsts[first:last] = batch.vectors[start:stop, 0]
        self.offsets[first:last] = batch.offsets[start:stop]
        self.timestamps[first:last] = batch.timestamps[start:stop]
        self.digests[first:last] = batch.digests[start:stop]
        self.hashes[first:last] = batch.hashes[start:stop]
        self.ids += batch.ids[start:stop]
        self.metadata += batch.metadata[start:stop]
        self.rows = last

    def kill(self, rows: NDArray[np.int64]) -> int:
        """Mark rows dead; returns the sum of their digests modulo 2**64."""
        self.dead[rows] = True
        self.vectors[rows, 0] = np.nan
        return int(self.digests[rows].sum())

    def search(
        self, queries: NDArray[np.float32], k: int, metric: Metric, start: int, stop: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """FAISS distances and row numbers of rows [start, stop)."""
        distances, labels = exact_search(self.vectors[start:stop], queries, k, metric)
        if start:
            labels[labels >= 0] += start
        return distances, labels

    def id_of(self, row: int) -> bytes:
        return self.ids[row]

    def offset_of(self, row: int) -> int:
        return int(self.offsets[row])

    def timestamp_of(self, row: int) -> int:
        return int(self.timestamps[row])

    def metadata_of(self, row: int) -> bytes | None:
        return self.metadata[row]

    def vector_of(self, row: int) -> NDArray[np.float32]:
        vector: NDArray[np.float32] = self.vectors[row].copy()
        vector[0] = self.firsts[row]
        return vector

    def is_live(self, row: int) -> bool:
        return not self.dead[row]
