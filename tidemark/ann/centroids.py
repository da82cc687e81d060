"""The centroids of inverted lists: which list a row goes into, and which lists a query probes.

To find a row's list both are grouped first: centroids of the groups nearest to the row are compared with it, a
sixteenth of all of them in a batch of matrix products. Of one row in fourteen that gives the list of a centroid that
is not the nearest, but almost (`_GROUPS_PROBED`). Knows nothing of codes or of what is in the lists but how many.
"""

import math
from functools import cached_property

import faiss
import numpy as np
from numpy.typing import NDArray

from tidemark.ann import ivf
from tidemark.ann.exact import exact_search
from tidemark.ann.parameters import SearchParameters
from tidemark.collection import Metric

# Reach is counted from the third nearest centroid, which says more of how dense it is around a query than the nearest.
REACH_FROM = 3
# The least and the most lists a query probes, over those that a row typically probes.
LISTS_LEAST, LISTS_MOST = 0.5, 8
# A list of which less is alive does not tell how far a query is from rows.
LIVING_LEAST = 0.25
# So many times as many living rows are probed, and candidates ranked, for a query that lists of dead rows are near to.
AMID_DEAD_LIVING, AMID_DEAD_CANDIDATES = 8, 4
# The largest squared distance that float32 holds.
SQUARE_MAX = float(np.finfo(np.float32).max)
# Lists to probe come in multiples of this, padded with none: FAISS's parameters are made once for each number.
LISTS_STEP = 16
# Below it every row is compared with every centroid.
GROUPED_LISTS_MIN = 256
# Groups for the square root of so many times the lists, and those of them that a row's list is looked for in.
_GROUPS_OF, _GROUPS_PROBED = 4, 4
# Rows that are assigned at a time: their copies stay in the caches.
_BLOCK_ROWS = 4_096


class Occupancy:
    """How many rows of each list are alive. `usual`: the lists that tell what is near a query, None if all do.

    `dying`: those that do not, because of many rows few are alive.
    """

    def __init__(self, sizes: NDArray[np.int64], dead: NDArray[np.int64]) -> None:
        """How many rows each list has (lists,), and how many of them are dead."""
        self.living: NDArray[np.int64] = np.maximum(sizes - dead, 0)
        self.living_count = int(self.living.sum())
        is_usual = (self.living >= LIVING_LEAST * sizes) & (sizes > 0)
        self.usual = None if is_usual.all() or not is_usual.any() else np.flatnonzero(is_usual)
        self.dying = np.flatnonzero(~is_usual & (sizes > 0))


class Centroids:
    """Float32 centroids (lists, dimension), not changed any more; any thread may use them."""

    def __init__(self, vectors: NDArray[np.float32], metric: Metric) -> None:
        self.vectors, self.metric = vectors, metric
        self.lists, self._dimension = vectors.shape
        self._pointer = faiss.swig_ptr(vectors)
        if metric != "l2":
            self._square_max = float(np.einsum("ij,ij->i", vectors, vectors).max())

    # -- of rows -------------------------------------------------------------------------------------------

    @cached_property
    def _groups(self) -> "_Groups":
        return _Groups(self.vectors, self.metric)

    def assign(self, rows: NDArray[np.float32]) -> NDArray[np.int64]:
        """The number of the list (n,) of each row, that of the nearest centroid or of one almost as near."""
        rows = np.ascontiguousarray(rows)
        if self.lists < GROUPED_LISTS_MIN:
            middle = ivf.middle_of(self.vectors, self.metric)
            nearest: NDArray[np.int64] = exact_search(self.vectors - middle, rows - middle, 1, self.metric)[1][:, 0]
            return np.maximum(nearest, 0)  # none where all distances overflow
        assigned = np.empty(len(rows), np.int64)
        for first in range(0, len(rows), _BLOCK_ROWS):
            block = rows[first : first + _BLOCK_ROWS]
            assigned[first : first + len(block)] = self._groups.assign(block)
        return assigned

    # -- of queries ----------------------------------------------------------------------------------------

    def _squares_of(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """Squared distances (lists,) of one query to the centroids.

        Of inner products, of a query with length 1: to the centroids as if one more dimension made them equally long
        (Bachrach et al., 2014), where the nearest is the one with the largest product.
        """
        found = np.empty(self.lists, np.float32)
        pointers = faiss.swig_ptr(found), faiss.swig_ptr(query), self._pointer
        if self.metric == "l2":
            faiss.fvec_L2sqr_ny(*pointers, self._dimension, self.lists)  # type: ignore[attr-defined]
            return found
        faiss.fvec_inner_products_ny(*pointers, self._dimension, self.lists)  # type: ignore[attr-defined]
        farthest = np.float32(self._square_max + 1)
        squares: NDArray[np.float32] = np.maximum(farthest - 2 * found, np.float32(0))
        return squares

    def _directed(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Under inner product a query's length changes nothing about what is near: 1 for all, but for zero."""
        if self.metric == "l2":
            return queries
        lengths = np.sqrt(np.einsum("ij,ij->i", queries, queries, dtype=np.float64))[:, None]
        directed: NDArray[np.float32] = (queries / np.where(lengths > 0, lengths, 1)).astype(np.float32)
        return directed

    def squares(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Squared distances (nq, lists) to the centroids."""
        return np.stack([self._squares_of(query) for query in self._directed(queries)])

    def within(
        self, queries: NDArray[np.float32], parameters: SearchParameters, occupancy: "Occupancy"
    ) -> tuple[NDArray[np.int64], bool]:
        """The lists to probe for each query (nq, width), padded with -1 (see `SearchParameters`).

        How many differs by query, as in SPANN (Chen et al., 2021): few inside a dense region, many for a query far
        from all rows, whose neighbours lie scattered over lists that are almost equally far. Beside them: whether a
        query is amid rows that have died, which makes it such a one. Then what is near is told by lists that live, and
        more candidates are to be ranked, for codes tell them less well apart.
        """
        found, amid_dead = [], False
        wanted, living = math.ceil(parameters.living * occupancy.living_count), occupancy.living
        for query in self._directed(queries):
            squares, least = self._squares_of(query), wanted
            if occupancy.usual is None:
                lists = self._reached(squares, parameters)
            else:
                lists, is_amid = self._reached_alive(squares, parameters, occupancy.usual, occupancy.dying)
                least *= AMID_DEAD_LIVING if is_amid else 1
                amid_dead |= is_amid
            if least and int(living[lists].sum()) < least:
                lists = _nearest_with(squares, living, least, len(lists))
            found.append(lists)
        return padded(found), amid_dead

    def _reached_alive(
        self,
        squares: NDArray[np.float32],
        parameters: SearchParameters,
        usual: NDArray[np.int64],
        dying: NDArray[np.int64],
    ) -> tuple[NDArray[np.int64], bool]:
        """The lists reached as if those dying were none, those of the latter that are no farther, whether any is near.

        A list is near that is among the first from which reach is counted.
        """
        near = squares[usual]
        lists = usual[self._reached(near, parameters)]
        beside = dying[squares[dying] <= squares[lists].max()]
        if not len(beside):
            return lists, False
        is_near = squares[beside].min() <= smallest(near, min(REACH_FROM, len(usual)) - 1)
        return np.concatenate([lists, beside]), bool(is_near)

    def _reached(self, squares: NDArray[np.float32], parameters: SearchParameters) -> NDArray[np.int64]:
        effort, count = parameters.effort, len(squares)
        if parameters.reach == 0:
            return nearest(squares, min(count, effort))
        least, most = min(count, math.ceil(LISTS_LEAST * effort)), min(count, LISTS_MOST * effort)
        third = float(smallest(squares, min(REACH_FROM, count) - 1))
        lists = (squares <= np.float32(min(third * (1 + parameters.reach) ** 2, SQUARE_MAX))).nonzero()[0]
        if len(lists) < least:
            return nearest(squares, least)
        if len(lists) > most:
            lists = lists[nearest(squares[lists], most)]
        return lists

    def nearest_lists(self, queries: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """The `count` nearest lists of each query (nq, width), padded with -1."""
        return padded([nearest(squares, min(self.lists, count)) for squares in self.squares(queries)])


def padded(found: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Lists of list numbers as one array, padded with -1 to a multiple of `LISTS_STEP`."""
    width = -(-max(map(len, found)) // LISTS_STEP) * LISTS_STEP
    lines = np.empty((len(found), width), np.int64)
    for line, lists in enumerate(found):
        lines[line, : len(lists)], lines[line, len(lists) :] = lists, -1
    return lines


def smallest(numbers: NDArray[np.float32], last: int) -> np.float32:
    """The number that sorting would put at `last`."""
    return np.partition(numbers, last)[last]  # type: ignore[no-any-return]


def nearest(squares: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Where the `count` smallest numbers are."""
    return np.argpartition(squares, count - 1)[:count] if count < len(squares) else np.arange(len(squares))


def _nearest_with(
    squares: NDArray[np.float32], living: NDArray[np.int64], wanted: int, least: int
) -> NDArray[np.int64]:
    """The nearest lists, at least `least`, that hold `wanted` living rows, or all lists."""
    count = least
    while True:
        count = min(2 * count, len(squares))
        lists = nearest(squares, count)
        lists = lists[squares[lists].argsort(kind="stable")]
        enough = int(np.cumsum(living[lists]).searchsorted(wanted)) + 1
        if enough <= count or count == len(squares):
            return lists[: max(least, enough)]


class _Groups:
    """The centroids, group by group, so that many rows are compared with those of a group at once."""

    def __init__(self, vectors: NDArray[np.float32], metric: Metric) -> None:
        self._metric, self._middle = metric, ivf.middle_of(vectors, metric)
        vectors = vectors - self._middle
        count = max(1, math.isqrt(_GROUPS_OF * len(vectors)))
        self._centres = ivf.k_means(vectors, count, metric, seed=0)
        self._probed = min(_GROUPS_PROBED, count)
        group_of = np.maximum(exact_search(self._centres, vectors, 1, metric)[1][:, 0], 0)
        self._numbers = np.argsort(group_of, kind="stable")
        self._ends = np.searchsorted(group_of[self._numbers], np.arange(count + 1))
        self._members = members = vectors[self._numbers]
        self._halves = np.zeros(len(vectors), np.float32)
        if metric == "l2":
            self._halves = np.einsum("ij,ij->i", members, members) / np.float32(2)

    def assign(self, rows: NDArray[np.float32]) -> NDArray[np.int64]:
        rows = rows - self._middle
        groups = exact_search(self._centres, rows, self._probed, self._metric)[1]
        order = np.argsort(groups.astype(np.int16).ravel(), kind="stable")
        ends = np.searchsorted(groups.ravel()[order], np.arange(len(self._ends)))
        lines = order // self._probed
        best, at = np.full(groups.size, -np.inf, np.float32), np.zeros(groups.size, np.int64)
        with np.errstate(over="ignore", invalid="ignore"):
            for group in np.flatnonzero((np.diff(ends) > 0) & (np.diff(self._ends) > 0)).tolist():
                pairs, first, end = order[ends[group] : ends[group + 1]], self._ends[group], self._ends[group + 1]
                scores = rows[lines[ends[group] : ends[group + 1]]] @ self._members[first:end].T
                scores -= self._halves[first:end]
                place = scores.argmax(axis=1)
                at[pairs], best[pairs] = first + place, scores[np.arange(len(pairs)), place]
        chosen = best.reshape(groups.shape).argmax(axis=1)
        assigned: NDArray[np.int64] = self._numbers[at.reshape(groups.shape)[np.arange(len(rows)), chosen]]
        return assigned
