"""The lists of an IVF index of 4-bit product codes: their centroids, which rows go into which, how their codes lie.

FAISS compares every row with every centroid. Here both are grouped first and compared within reach of their group,
which is a twentieth of the time to train and a third to assign, for an error 1 % larger (decision 11).
Used by `index.py` and `codes.py`. Knows nothing of searches.
"""

import math
from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from tidemark.ann.exact import exact_search
from tidemark.collection import Metric

TRAINING_ITERATIONS = 8
# Below it every row is compared with every centroid.
GROUPED_LISTS_MIN = 256
# Of the centroids, those nearest to a group's centre that a row of the group is compared with.
REACH_SHARE = 1 / 16
# FAISS's fast scan reads codes in blocks of 32 rows, interleaved (André et al., 2017), in this order of rows.
BLOCK_ROWS = 32
_ORDER = np.array([0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15])
# Where in half a block a row of it lies.
PLACE_IN_BLOCK = np.tile(np.argsort(_ORDER), 2)


def train(rows: NDArray[np.float32], lists: int, metric: Metric, seed: int) -> NDArray[np.float32]:
    """Centroids (lists, dimension) of at least as many float32 rows: k-means within the groups of a first k-means."""
    if lists < GROUPED_LISTS_MIN:
        return k_means(rows, lists, metric, seed)
    groups = math.isqrt(lists)
    centres = k_means(rows[:: max(1, len(rows) // (256 * groups))], groups, metric, seed)
    members = list(_members(_nearest(rows, centres, metric), groups))
    counts = _shares(np.array([len(numbers) for numbers in members]), lists)
    trained = [
        k_means(rows[numbers], count, metric, seed)
        for numbers, count in zip(members, counts.tolist(), strict=True)
        if count
    ]
    return np.concatenate(trained)


def k_means(rows: NDArray[np.float32], count: int, metric: Metric, seed: int) -> NDArray[np.float32]:
    """Centroids (count, dimension) of at least as many float32 rows, by FAISS."""
    found = faiss.Kmeans(
        rows.shape[1],
        count,
        niter=TRAINING_ITERATIONS,
        seed=1 + seed % 2**30,
        spherical=metric != "l2",
        min_points_per_centroid=1,
        max_points_per_centroid=len(rows),
    )
    found.train(np.ascontiguousarray(rows))
    assert found.centroids is not None
    return found.centroids


def _shares(sizes: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """`total` shared out by size, none more than its size: whole parts first, then by what is left of each."""
    exact = sizes * (total / sizes.sum())
    whole: NDArray[np.int64] = exact.astype(np.int64)
    left = np.argsort(whole - exact, kind="stable")[: total - int(whole.sum())]
    whole[left] += 1
    return whole


def _members(groups: NDArray[np.int64], count: int) -> Iterator[NDArray[np.int64]]:
    """The rows of each group, ascending."""
    order = np.argsort(groups, kind="stable")
    ends = np.searchsorted(groups[order], np.arange(count + 1))
    for number in range(count):
        yield order[ends[number] : ends[number + 1]]


def _nearest(rows: NDArray[np.float32], centroids: NDArray[np.float32], metric: Metric) -> NDArray[np.int64]:
    nearest: NDArray[np.int64] = exact_search(centroids, rows, 1, metric)[1][:, 0]
    return nearest


def assign(rows: NDArray[np.float32], centroids: NDArray[np.float32], metric: Metric) -> NDArray[np.int64]:
    """The number of the centroid nearest to each row (n,); of one in fourteen it is that of one almost as near."""
    rows, lists = np.ascontiguousarray(rows), len(centroids)
    if lists < GROUPED_LISTS_MIN or len(rows) < lists:
        return _nearest(rows, centroids, metric)
    groups = 4 * math.isqrt(lists)
    centres = k_means(centroids, groups, metric, seed=0)
    reach = exact_search(centroids, centres, math.ceil(lists * REACH_SHARE), metric)[1]
    assigned = np.empty(len(rows), np.int64)
    for group, members in enumerate(_members(_nearest(rows, centres, metric), groups)):
        if len(members):
            within = reach[group]
            assigned[members] = within[_nearest(rows[members], centroids[within], metric)]
    return assigned


def packed(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """FAISS's blocks (blocks, code bytes, 32) of uint8 codes (n, code bytes), two to a byte; the last one is filled."""
    blocks = -(-len(codes) // BLOCK_ROWS)
    if blocks * BLOCK_ROWS > len(codes):
        codes = np.concatenate([codes, np.zeros((blocks * BLOCK_ROWS - len(codes), codes.shape[1]), np.uint8)])
    rows = codes.reshape(blocks, BLOCK_ROWS, -1).transpose(0, 2, 1)
    low, high = rows & 15, rows >> 4
    halves = [part[..., _ORDER] | (part[..., _ORDER + 16] << 4) for part in (low, high)]
    return np.ascontiguousarray(np.concatenate(halves, axis=2))


def centroids_of(index: Any) -> NDArray[np.float32]:
    """The centroids (nlist, d) of a FAISS IVF index, where they lie."""
    pointer: Any = faiss.downcast_index(index.quantizer).get_xb()  # type: ignore[attr-defined]
    centroids: NDArray[np.float32] = faiss.rev_swig_ptr(pointer, index.nlist * index.d).reshape(index.nlist, index.d)
    return centroids


def fill(
    index: Any, rows: NDArray[np.float32], codes: NDArray[np.uint8], metric: Metric, left_out: NDArray[np.int64]
) -> None:
    """Add rows and their codes (n, code bytes), but for those left out, to a trained IndexIVFPQFastScan without any."""
    lists = faiss.downcast_InvertedLists(index.invlists)
    assigned = assign(rows, centroids_of(index), metric)
    assigned[left_out] = index.nlist
    for number, members in enumerate(_members(assigned, index.nlist)):
        if len(members):
            blocks = packed(codes[members])
            lists.add_entries(number, len(members), faiss.swig_ptr(members), faiss.swig_ptr(blocks))
    index.ntotal = len(rows) - len(left_out)
