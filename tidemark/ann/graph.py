"""The HNSW graph of one segment, searched on its own. Knows nothing of ids or files' names."""

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tidemark.ann import index
from tidemark.ann.exact import exact_search_among
from tidemark.live_rows import DEAD_SHARE_LED, LiveRows

# Beside k rows a graph is asked for twice the dead ones to be met on average, and so many; then for so many times as
# many, up to a number that takes as long as a scan.
DEAD_ASKED_TOO, ASKED_AGAIN, ASKED_MAX = 3, 8, 1_024


class Graph:
    """A graph over the rows of a segment, open for searching by any thread."""

    def __init__(self, opened: index.Index, effort: int) -> None:
        self._index, self._parameters = opened, index.SearchParameters(effort)

    def search(
        self, vectors: NDArray[np.float32], queries: NDArray[np.float32], k: int, live: LiveRows, effort: float = 1.0
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """FAISS distances and row numbers (nq, w) of rows alive, -1 for others; k at least where so many live.

        Were dead rows passed over in the graph, those around a query would use up the effort that is to find its
        neighbours; so it is asked for more rows, dead or alive. Where it does not find enough all rows are compared.
        """
        dead, wanted = live.row_count - live.live_count, min(k, live.live_count)
        more = math.ceil(2 * k * dead / live.row_count) + DEAD_ASKED_TOO if dead else 0
        while dead <= DEAD_SHARE_LED * live.row_count and more <= max(ASKED_MAX, k):
            found = index.search(self._index, vectors, queries, k, self._parameters, effort=effort, more=more)
            distances, rows = found
            rows = np.where((rows >= 0) & live.are_live(np.maximum(rows, 0)), rows, -1)
            if ((rows >= 0).sum(axis=1) >= wanted).all():
                return distances, rows
            more = ASKED_AGAIN * (k + more)
        return exact_search_among(vectors, live.numbers(), queries, k, self._index.metric)


def open_mapped(
    path: Path, row_count: int, dimension: int, effort: int, outliers: NDArray[np.int64] = index.NO_ROWS
) -> Graph:
    """Map a graph's file whose checksum was verified; raises CorruptCheckpoint when it has another shape."""
    return Graph(index.open_mapped(path, "hnsw", row_count, dimension, outliers), effort)
