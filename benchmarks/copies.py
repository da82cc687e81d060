"""More rows than there are: those of a data set, then all of them again, moved by noise, as often as is needed.

The noise has the size of half the distance from a typical row to its nearest one: a copy is no duplicate, and is
nearer to its original than most others are. Row numbers are those of the data set, then those of the first copies,
and so on; a row is the same whenever it is asked for.
"""

from functools import lru_cache

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.sift import Sift

BLOCK = 250_000
_NOISE_FROM = 2_000  # rows, whose nearest ones tell how large the noise is


class Copies:
    """Rows of `data`, float32, without end."""

    def __init__(self, data: Sift) -> None:
        self._data, self.queries = data, np.ascontiguousarray(data.queries)
        self._block = lru_cache(maxsize=2)(self._make)
        self._noise: float | None = None

    def rows(self, first: int, stop: int) -> NDArray[np.float32]:
        """Rows [first, stop)."""
        size = len(self._data.base)
        if stop <= size:
            return np.ascontiguousarray(self._data.base[first:stop])
        starts = range(first // BLOCK * BLOCK, stop, BLOCK)
        blocks = [self._block(start)[max(0, first - start) : stop - start] for start in starts]
        return np.concatenate(blocks)

    def sample(self, rows: int, count: int, seed: int) -> NDArray[np.float32]:
        """So many of the first `rows` rows: the first ones of each copy, for they are in no order."""
        size = len(self._data.base)
        parts = [(start, min(size, rows - start)) for start in range(0, rows, size)]
        return np.concatenate([self.rows(start, start + count * held // rows) for start, held in parts])

    def _make(self, start: int) -> NDArray[np.float32]:
        size = len(self._data.base)
        numbers = np.arange(start, start + BLOCK)
        copied = numbers >= size
        made: NDArray[np.float32] = np.ascontiguousarray(self._data.base[numbers % size])
        noise = np.random.default_rng((7, start)).standard_normal(made.shape, np.float32) * self._noise_size()
        made[copied] += noise[copied]
        return made

    def _noise_size(self) -> float:
        """Of each number, so that a copy moves by half the distance to the nearest row."""
        if self._noise is None:
            base = np.ascontiguousarray(self._data.base)
            squares = faiss.knn(base[:_NOISE_FROM], base, 2)[0][:, 1]
            self._noise = float(np.sqrt(np.median(squares)) / 2 / np.sqrt(base.shape[1]))
        return self._noise

    def ground_truth(self, rows: int, k: int = 10) -> NDArray[np.int64]:
        """Of the first `rows` rows, those nearest to each query, nearest first, (queries, k)."""
        heap = faiss.ResultHeap(len(self.queries), k)
        for start in range(0, rows, BLOCK):
            part = self.rows(start, min(rows, start + BLOCK))
            squares, numbers = faiss.knn(self.queries, part, min(k, len(part)))
            heap.add_result(squares, numbers + start)
        heap.finalize()
        found: NDArray[np.int64] = heap.I
        return found
