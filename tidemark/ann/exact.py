"""Exact nearest neighbours over float32 rows, by matrix or by row numbers, and what a distance means.

Invariant: the distance of a query to a row is the same in `rank` wherever the row lies; -1 is no row and infinitely
far. Which rows may be answered is for the caller to say, by their numbers.
"""

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from tidemark.collection import Metric

# Products with so many rows at a time stay in the caches.
_BLOCK_ROWS = 2_048
# The median of so many is near enough to all rows but for a few far ones.
_CENTRE_ROWS = 256
# As many numbers are copied at a time where only some of the rows are searched: 1 MB.
_COPIED_NUMBERS = 2**18


def faiss_metric(metric: Metric) -> Any:
    return faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT


def exact_search(
    rows: NDArray[np.float32], queries: NDArray[np.float32], k: int, metric: Metric
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """FAISS distances and row numbers (nq, min(k, n)) of float32 rows (n, dimension); -1 where none is left.

    The GIL is released; rows may be appended meanwhile.
    """
    return faiss.knn(queries, rows, min(k, len(rows)), metric=faiss_metric(metric))


def exact_search_among(
    rows: NDArray[np.float32], among: NDArray[np.int64], queries: NDArray[np.float32], k: int, metric: Metric
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """As `exact_search`, (nq, min(k, len(among))), of those rows only whose ascending numbers are given.

    A block of them is copied at a time, or none where they follow each other.
    """
    k, width = min(k, len(among)), max(1, _COPIED_NUMBERS // rows.shape[1])
    distances, labels = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for start in range(0, len(among), width):
        numbers = among[start : start + width]
        first, stop = int(numbers[0]), int(numbers[-1]) + 1
        block = rows[first:stop] if stop - first == len(numbers) else rows[numbers]
        found, at = exact_search(block, queries, k, metric)
        distances = np.concatenate((distances, found), axis=1)
        labels = np.concatenate((labels, np.where(at < 0, -1, numbers[at])), axis=1)
        if distances.shape[1] > k:
            order = (distances if metric == "l2" else -distances).argsort(axis=1, kind="stable")[:, :k]
            distances, labels = np.take_along_axis(distances, order, 1), np.take_along_axis(labels, order, 1)
    return distances, labels


def rank(
    vectors: NDArray[np.float32], queries: NDArray[np.float32], numbers: NDArray[np.int64], metric: Metric
) -> NDArray[np.float32]:
    """FAISS distances (nq, w) of each query to the rows (nq, w) that are numbered for it; to row -1 infinitely far.

    Only the pages of `vectors` (capacity, dimension) in which those rows lie are read, however many it has.
    """
    queries, numbers = np.ascontiguousarray(queries), np.ascontiguousarray(numbers)
    distances = np.empty(numbers.shape, np.float32)
    by_idx: Any = getattr(faiss, "fvec_L2sqr_by_idx" if metric == "l2" else "fvec_inner_products_by_idx")
    pointers = [faiss.swig_ptr(each) for each in (distances, queries, vectors, numbers)]
    by_idx(*pointers, vectors.shape[1], *numbers.shape)
    return distances


def nearest_of_many(
    rows: NDArray[np.float32],
    queries: NDArray[np.float32],
    k: int,
    metric: Metric,
    left_out: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Row numbers (nq, k) of the nearest rows for hundreds of queries, nearest first up to rounding.

    Fewer than k where there are fewer rows. `left_out`: few rows that are not looked for.
    By matrix products, most of which are only compared with the worst row kept: for 200 queries half as long as
    `exact_search`, and on one thread.
    """
    passed_over = np.empty(0, np.int64) if left_out is None else left_out
    k, lines = min(k, len(rows) - len(passed_over)), np.arange(len(queries))
    best, labels = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    worst = np.full((len(queries), 1), np.inf, np.float32)
    gathered: list[tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]] = []
    # Far from the origin the squares are larger than the differences of distances by more than float32 holds.
    centre = np.zeros(rows.shape[1], np.float32)
    if metric == "l2":
        centre = np.median(rows[:: -(-len(rows) // _CENTRE_ROWS)], axis=0).astype(np.float32)
    negative: NDArray[np.float32] = centre - queries
    first, width = 0, k
    while first < len(rows):
        block = rows[first : first + width]
        if metric == "l2":
            block = block - centre
        scores = negative @ block.T
        if metric == "l2":
            scores += np.einsum("ij,ij->i", block, block) / np.float32(2)
        scores[:, passed_over[(first <= passed_over) & (passed_over < first + len(block))] - first] = np.inf
        nearer = np.flatnonzero(scores < worst)
        gathered.append((nearer // len(block), scores.ravel()[nearer], first + nearer % len(block)))
        first, width = first + len(block), min(2 * width, _BLOCK_ROWS)
        if first >= len(rows) or sum(len(part[0]) for part in gathered) >= k * len(queries):
            kept = (np.repeat(lines, best.shape[1]), best.ravel(), labels.ravel())
            line, score, label = map(np.concatenate, zip(kept, *gathered, strict=True))
            order = np.lexsort((score, line))
            nearest = order[np.searchsorted(line[order], lines)[:, None] + np.arange(k)]
            best, labels = score[nearest], label[nearest]
            worst, gathered = best[:, -1:], []
    return labels


def squares_to(rows: NDArray[np.float32], point: NDArray[np.float32]) -> NDArray[np.float32]:
    """Squared distances (n,) of float32 rows (n, dimension) to one point, by differences, so that none is cancelled."""
    rows, squares = np.ascontiguousarray(rows), np.empty(len(rows), np.float32)
    pointers = [faiss.swig_ptr(each) for each in (squares, np.ascontiguousarray(point), rows)]
    faiss.fvec_L2sqr_ny(*pointers, rows.shape[1], len(rows))  # type: ignore[attr-defined]
    return squares


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
