"""Exact nearest neighbours over a float32 matrix, and what a distance means.

A killed row is one whose first component is NaN: its distance to anything is NaN, and FAISS's heaps never
keep a NaN (tests/test_exact.py holds that fact). So a kill is one 4-byte store, seen by the next scan, with
no selector, which would put the scan on FAISS's slow path.
"""

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from tidemark.collection import Metric

# Products with so many rows at a time stay in the caches.
_BLOCK_ROWS = 4_096


def faiss_metric(metric: Metric) -> Any:
    return faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT


def exact_search(
    rows: NDArray[np.float32], queries: NDArray[np.float32], k: int, metric: Metric
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """FAISS distances and row numbers (nq, min(k, n)) of float32 rows (n, dimension); -1 where none is left.

    The GIL is released; rows may be appended or killed behind the scan meanwhile.
    """
    return faiss.knn(queries, rows, min(k, len(rows)), metric=faiss_metric(metric))


def nearest_of_many(
    rows: NDArray[np.float32], queries: NDArray[np.float32], k: int, metric: Metric
) -> NDArray[np.int64]:
    """Row numbers (nq, min(k, n)) of the nearest rows for hundreds of queries, nearest first up to rounding.

    By matrix products, of which few are looked at again: a third of `exact_search`'s time for 200 queries.
    """
    k, lines = min(k, len(rows)), np.arange(len(queries))
    best = np.full((len(queries), k), np.inf, np.float32)
    labels = np.zeros((len(queries), k), np.int64)
    for first in range(0, len(rows), _BLOCK_ROWS):
        block = rows[first : first + _BLOCK_ROWS]
        scores = queries @ block.T
        np.negative(scores, out=scores)
        if metric == "l2":
            scores += np.einsum("ij,ij->i", block, block) / np.float32(2)
        line, column = np.nonzero(scores < best.max(axis=1)[:, None])
        line, score = np.concatenate([np.repeat(lines, k), line]), np.concatenate([best.ravel(), scores[line, column]])
        label = np.concatenate([labels.ravel(), first + column])
        order = np.lexsort((score, line))
        starts = np.searchsorted(line[order], lines)
        nearest = order[starts[:, None] + np.arange(k)]
        best, labels = score[nearest], label[nearest]
    return labels


def public_distance(distances: NDArray[np.float32], metric: Metric) -> NDArray[np.float32]:
    """The public contract's distance, smaller is nearer: l2 squared; cosine 1 - cos; ip minus the dot product."""
    if metric == "l2":
        return distances
    return 1.0 - distances if metric == "cosine" else -distances


def use_one_thread_per_search() -> None:
    """One OpenMP thread for searches of the calling thread; with more, one query costs several times the CPU."""
    faiss.omp_set_num_threads(1)


def simd_level() -> str:
    return str(faiss.get_compile_options()).strip()
