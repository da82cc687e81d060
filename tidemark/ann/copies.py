"""Rows that are copies of others: a graph that holds many of one has no way out of them, nor in.

The neighbours of a row that has more copies than a node has links are its copies and nothing else. With 300 rows of one
vector among 3,000 others, 0.65 of the neighbours of a query were found with any effort, and of some queries none.
So a graph holds few copies of each row, and the others are left to the exact ranking that every search ends with.
Used by `graph.py`. Knows nothing of graphs.
"""

import numpy as np
from numpy.typing import NDArray

BLOCK_NUMBERS = 2**20


def surplus_copies(rows: NDArray[np.float32], most: int, least: int) -> NDArray[np.int64]:
    """The numbers, ascending, of rows (n, dimension) that have `most` equal ones before them.

    `least`: so many rows are left, if there are as many. Where two rows have the same hash, one may be given without
    being a copy.
    """
    _, groups, counts = np.unique(_hashes(rows), return_inverse=True, return_counts=True)
    most = max(most, -(-least // len(counts)))
    if counts.max() <= most:
        return np.empty(0, np.int64)
    order = np.argsort(groups, kind="stable")
    before = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(order[before >= most])


def _hashes(rows: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Of each row (n,), the same for equal rows; 0.0 and -0.0 are equal."""
    factors = np.random.default_rng(0).integers(2**63, size=rows.shape[1], dtype=np.uint64) * np.uint64(2) + np.uint64(
        1
    )
    block = max(1, BLOCK_NUMBERS // rows.shape[1])
    return np.concatenate(
        [
            (rows[first : first + block] + np.float32(0)).view(np.uint32).astype(np.uint64) @ factors
            for first in range(0, len(rows), block)
        ]
    )
