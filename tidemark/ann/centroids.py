"""The centroids of inverted lists: which list a row goes into, and which lists a query probes.

Of many centroids those are compared that are in the groups (`groups.py`) nearest to the row or the query.
Knows nothing of codes, nor of what is in the lists but how many.
"""

import math
from functools import cached_property
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from tidemark.ann import ivf
from tidemark.ann.exact import exact_search
from tidemark.ann.groups import Groups, Members
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
# A query is amid the rows that match a filter where so many of those around it match, of what is usual. It probes lists
# that hold so many times the least share of matching rows, and one far from them so many (`make bench-filters`).
MATCHING_AMID, MATCHING_LIVING, MATCHING_LIVING_FAR = 0.5, 2, 32
# The largest squared distance that float32 holds.
SQUARE_MAX = float(np.finfo(np.float32).max)
# Lists to probe come in multiples of this, padded with none: FAISS's parameters are made once for each number.
LISTS_STEP = 16
# With so few lists probed that twice as many are this share of all, they are looked for in the groups nearest to the
# query that have so many: of the lists of 4,000 that SIFT's queries reach, 1.6 % lie in others.
NEAR_SHARE = 0.25
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

    def __init__(self, vectors: NDArray[np.float32], metric: Metric, groups: Groups | None = None) -> None:
        """`groups`: those of the same centroids; there are none of a few."""
        self.vectors, self.metric, self._groups = vectors, metric, groups
        self.lists, self._dimension = vectors.shape
        self._pointer = faiss.swig_ptr(vectors)
        if metric != "l2":
            self._square_max = float(np.einsum("ij,ij->i", vectors, vectors).max())

    # -- of rows -------------------------------------------------------------------------------------------

    @cached_property
    def _members(self) -> Members:
        assert self._groups is not None
        return Members(self._groups, self.vectors, self.metric)

    def assign(self, rows: NDArray[np.float32]) -> NDArray[np.int64]:
        """The number of the list (n,) of each row, that of the nearest centroid or of one almost as near."""
        rows = np.ascontiguousarray(rows)
        if self._groups is None:
            middle = ivf.middle_of(self.vectors, self.metric)
            nearest: NDArray[np.int64] = exact_search(self.vectors - middle, rows - middle, 1, self.metric)[1][:, 0]
            return np.maximum(nearest, 0)  # none where all distances overflow
        assigned = np.empty(len(rows), np.int64)
        for first in range(0, len(rows), _BLOCK_ROWS):
            block = rows[first : first + _BLOCK_ROWS]
            assigned[first : first + len(block)] = self._members.assign(block)
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
        return self._squares_by(found)

    def _squares_by(self, products: NDArray[np.float32]) -> NDArray[np.float32]:
        squares: NDArray[np.float32] = np.maximum(np.float32(self._square_max + 1) - 2 * products, np.float32(0))
        return squares

    def _near(self, groups: Groups, query: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The lists of the groups nearest to a query, a share of all lists, and the squared distances to those."""
        lists = groups.near(query, NEAR_SHARE)
        found = np.empty(len(lists), np.float32)
        by_idx: Any = getattr(faiss, "fvec_L2sqr_by_idx" if self.metric == "l2" else "fvec_inner_products_by_idx")
        pointers = [faiss.swig_ptr(found), faiss.swig_ptr(query), self._pointer, faiss.swig_ptr(lists)]
        by_idx(*pointers, self._dimension, 1, len(lists))
        return lists, found if self.metric == "l2" else self._squares_by(found)

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
        wanted = math.ceil(parameters.living * occupancy.living_count)
        most = parameters.effort if parameters.reach == 0 else LISTS_MOST * parameters.effort
        in_groups = occupancy.usual is None and 2 * most <= NEAR_SHARE * self.lists
        for query in self._directed(queries):
            if in_groups and self._groups is not None:
                near, squares = self._near(self._groups, query)
                lists = near[self._reached(squares, parameters)]
                if int(occupancy.living[lists].sum()) >= wanted:
                    found.append(lists)
                    continue
            lists, is_amid = self._within_all(self._squares_of(query), parameters, occupancy, wanted)
            amid_dead |= is_amid
            found.append(lists)
        return padded(found), amid_dead

    def _within_all(
        self, squares: NDArray[np.float32], parameters: SearchParameters, occupancy: "Occupancy", wanted: int
    ) -> tuple[NDArray[np.int64], bool]:
        """The lists of one query, chosen among all, and whether it is amid the dead."""
        if occupancy.usual is None:
            lists, is_amid = self._reached(squares, parameters), False
        else:
            lists, is_amid = self._reached_alive(squares, parameters, occupancy.usual, occupancy.dying)
        wanted *= AMID_DEAD_LIVING if is_amid else 1
        if wanted and int(occupancy.living[lists].sum()) < wanted:
            lists = _nearest_with(squares, occupancy.living, wanted, len(lists))
        return lists, is_amid

    def with_matching(
        self,
        queries: NDArray[np.float32],
        parameters: SearchParameters,
        occupancy: "Occupancy",
        matching: NDArray[np.int64],
        wanted: int,
    ) -> NDArray[np.int64]:
        """The lists to probe for rows that match a filter (nq, width), padded with -1; `matching`: how many each has.

        Those reached, and as many more of the nearest as it takes to hold what is wanted, and the least share of those
        that match; of a larger share for a query around which fewer match than elsewhere, as it is far from them. None
        of the lists in which none match.
        """
        found, count = [], int(matching.sum())
        usual, share = count / max(1, occupancy.living_count), parameters.living * count
        for squares in map(self._squares_of, self._directed(queries)):
            lists = self._reached(squares, parameters)
            here = int(matching[lists].sum())
            is_amid = here >= MATCHING_AMID * usual * int(occupancy.living[lists].sum())
            least = min(count, max(wanted, math.ceil(share * (MATCHING_LIVING if is_amid else MATCHING_LIVING_FAR))))
            if here < least:
                lists = _nearest_with(squares, matching, least, len(lists))
            found.append(lists[matching[lists] > 0])
        return padded(found)

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
