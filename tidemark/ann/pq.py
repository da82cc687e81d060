"""4-bit product codes of rows, by looking up a grid: a sixth of the time of FAISS's own loop over the centroids.

A codebook's 16 centroids lie in one or two dimensions. Those are cut into cells, each of which knows the centroid
nearest to its centre, so a row near the border between two centroids may get the other one: on SIFT the error of
the codes is 0.5 % larger. Where it would be much larger (rows in narrow clusters, long tails), FAISS makes the
codes. Used by `quantizer.py`. Knows nothing of lists.
"""

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

_CENTROIDS = 16
# A codebook is trained on so many rows by so many iterations of k-means: half as many of both leave the codes of SIFT
# an error 4 % larger, twice as many one 2 % smaller.
TRAINING_ROWS, TRAINING_ITERATIONS = 512 * _CENTROIDS, 16
# Cells in each of one or two dimensions.
_CELLS = {1: 256, 2: 64}
# The grid reaches beyond the outermost centroids by a quarter of what lies between them; further out a row counts as
# if it were at the border.
_MARGIN = 0.25
_BLOCK_ROWS = 4_096
# Among so many rows the first centroids are chosen.
_FIRST_ROWS = 512
# The error of the grid's codes over that of FAISS's, above which it is not used; measured on so many rows.
_ERROR_MAX, _MEASURED_ROWS = 1.02, 1_024


def start_apart(quantizer: Any, rows: NDArray[np.float32], seed: int) -> None:
    """Have the k-means of a `faiss.ProductQuantizer` start from centroids far apart, not from any rows.

    By k-means++ (Arthur and Vassilvitskii, 2007), all codebooks at once. Where many rows are equal in a codebook's
    dimensions, as in SIFT, eight iterations come as far as fifty otherwise: a quarter less error.
    """
    rng = np.random.default_rng(seed)
    books = rows[:_FIRST_ROWS].reshape(min(len(rows), _FIRST_ROWS), quantizer.M, quantizer.dsub).transpose(1, 0, 2)
    books, lines = np.ascontiguousarray(books), np.arange(quantizer.M)
    centroids = np.empty((quantizer.M, _CENTROIDS, quantizer.dsub), np.float32)
    centroids[:, 0] = books[:, rng.integers(books.shape[1])]
    squares = np.full(books.shape[:2], np.inf, np.float32)
    for number in range(1, _CENTROIDS):
        newest = centroids[:, number - 1, None]
        squares = np.minimum(squares, np.square(books - newest).sum(axis=2))
        sums = np.cumsum(squares, axis=1, dtype=np.float64)
        drawn = rng.random((quantizer.M, 1)) * sums[:, -1:]
        centroids[:, number] = books[lines, (sums[:, :-1] < drawn).sum(axis=1)]
    faiss.copy_array_to_vector(centroids.ravel(), quantizer.centroids)
    quantizer.train_type = faiss.ProductQuantizer.Train_hot_start


def error(quantizer: Any, rows: NDArray[np.float32], codes: NDArray[np.uint8]) -> float:
    """Mean squared distance between rows and what their codes stand for."""
    return float(np.square(rows - quantizer.decode(codes)).sum(axis=1, dtype=np.float64).mean())


class Encoder:
    """Makes codes with a trained `faiss.ProductQuantizer` of 4 bits; `grid`: by a grid, where that is as good."""

    def __init__(self, quantizer: Any, grid: bool) -> None:
        self._quantizer, self.grid = quantizer, _Grid(quantizer) if grid else None

    @classmethod
    def for_rows_like(cls, quantizer: Any, rows: NDArray[np.float32]) -> "Encoder":
        """With a grid, unless its codes of these rows are much worse than those of FAISS."""
        found = cls(quantizer, grid=True)
        sample = np.ascontiguousarray(rows[:: -(-len(rows) // _MEASURED_ROWS)])
        allowed = _ERROR_MAX * error(quantizer, sample, quantizer.compute_codes(sample))
        return found if error(quantizer, sample, found.encode(sample)) <= allowed else cls(quantizer, grid=False)

    def encode(self, rows: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The codes (n, code bytes) of float32 rows (n, dimension), two to a byte, as FAISS writes them."""
        return self._quantizer.compute_codes(rows) if self.grid is None else self.grid.encode(rows)


class _Grid:
    def __init__(self, quantizer: Any) -> None:
        dimensions = int(quantizer.dsub)
        cells = self._cells = _CELLS[dimensions]
        self._word = np.dtype(f"<u{dimensions}")  # the cells of a row in one codebook
        centroids = faiss.vector_to_array(quantizer.centroids).reshape(-1, _CENTROIDS, dimensions)
        least, extent = centroids.min(axis=1), np.maximum(np.ptp(centroids, axis=1), np.float32(1e-30))
        least, extent = least - extent * np.float32(_MARGIN), extent * np.float32(1 + 2 * _MARGIN)
        self._least, self._scale = least.ravel(), (cells / extent).ravel()
        at = (np.arange(cells, dtype=np.float32) + np.float32(0.5)) / np.float32(cells)
        centres = least[:, :, None] + at * extent[:, :, None]
        squares = np.square(centres[..., None] - centroids.transpose(0, 2, 1)[:, :, None, :])
        if dimensions == 1:
            self._nearest = squares[:, 0].argmin(axis=-1).astype(np.uint8)
            return
        self._nearest = np.zeros((len(centroids), cells, 256), np.uint8)
        for nearest, (low, high) in zip(self._nearest, squares, strict=True):
            nearest[:, :cells] = (high[:, None] + low).argmin(axis=-1)

    def encode(self, rows: NDArray[np.float32]) -> NDArray[np.uint8]:
        books = self._nearest.reshape(len(self._nearest), -1)  # by a row's cells as one number
        codes = np.empty((len(rows), -(-len(books) // 2)), np.uint8)
        halves = np.zeros((2 * codes.shape[1], _BLOCK_ROWS), np.uint8)
        for first in range(0, len(rows), _BLOCK_ROWS):
            scaled = rows[first : first + _BLOCK_ROWS] - self._least
            with np.errstate(over="ignore"):  # a row far beyond the codebooks is clipped to their border anyway
                scaled *= self._scale
            cells = np.clip(scaled, 0, self._cells - 1, out=scaled).astype(np.uint8).view(self._word)
            found = halves[:, : len(cells)]
            for nearest, cell, half in zip(books, np.ascontiguousarray(cells.T), found, strict=False):
                np.take(nearest, cell, out=half, mode="clip")
            codes[first : first + len(cells)] = (found[0::2] | found[1::2] << 4).T
        return codes
