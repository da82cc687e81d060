"""The HNSW graph of one segment, searched on its own. Knows nothing of ids or files' names."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tidemark.ann import index
from tidemark.live_rows import LiveRows


class Graph:
    """A graph over the rows of a segment, open for searching by any thread."""

    def __init__(self, opened: index.Index, effort: int) -> None:
        self._index, self._parameters = opened, index.SearchParameters(effort)

    def search(
        self, vectors: NDArray[np.float32], queries: NDArray[np.float32], k: int, live: LiveRows, effort: float = 1.0
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """FAISS distances and row numbers (nq, w) of rows alive, -1 where there are fewer than k."""
        more = live.row_count - live.live_count
        found = index.search(self._index, vectors, queries, k, self._parameters, effort=effort, more=more)
        distances, rows = found
        return distances, np.where((rows >= 0) & live.are_live(np.maximum(rows, 0)), rows, -1)


def open_mapped(
    path: Path, row_count: int, dimension: int, effort: int, outliers: NDArray[np.int64] = index.NO_ROWS
) -> Graph:
    """Map a graph's file whose checksum was verified; raises CorruptCheckpoint when it has another shape."""
    return Graph(index.open_mapped(path, "hnsw", row_count, dimension, outliers), effort)
