"""Centroids in groups: of some thousands only those near a row or a query are compared with it.

To find a row's list the centroids of the groups nearest to it are compared, a thirtieth of all of them, in matrix
products of many rows. Of one row in fourteen that gives the list of a centroid that is not the nearest, but almost.
"""

import math

import faiss
import numpy as np
from numpy.typing import NDArray

from tidemark.ann import ivf
from tidemark.ann.exact import exact_search
from tidemark.collection import Metric

# Fewer centroids are all compared.
GROUPED_LEAST = 256
# Groups for the square root of so many times the centroids, and those of them that a row's list is looked for in: six
# instead of four take a quarter longer for an error 0.4 % smaller.
_GROUPS_OF, _GROUPS_PROBED = 4, 4


class Groups:
    """`centres` float32 (groups, dimension), and the group of each centroid, uint16 (centroids,)."""

    def __init__(self, centres: NDArray[np.float32], group_of: NDArray[np.uint16], metric: Metric) -> None:
        self.centres, self.group_of, self._metric = centres, group_of, metric
        self.numbers = np.argsort(group_of, kind="stable")
        self.ends = np.searchsorted(group_of[self.numbers], np.arange(len(centres) + 1))
        self._sizes = np.diff(self.ends)
        self._parts = [self.numbers[first:end] for first, end in zip(self.ends[:-1], self.ends[1:], strict=True)]

    @classmethod
    def of(cls, vectors: NDArray[np.float32], metric: Metric) -> "Groups | None":
        """Of these centroids (n, dimension); None of a few."""
        if len(vectors) < GROUPED_LEAST:
            return None
        middle = ivf.middle_of(vectors, metric)
        centres = ivf.k_means(vectors - middle, math.isqrt(_GROUPS_OF * len(vectors)), metric, seed=0)
        group_of = np.maximum(exact_search(centres, vectors - middle, 1, metric)[1][:, 0], 0)
        return cls(centres + middle, group_of.astype(np.uint16), metric)

    def near(self, query: NDArray[np.float32], share: float) -> NDArray[np.int64]:
        """The centroids of the groups nearest to one query, as many groups as have the share of all centroids."""
        found = np.empty(len(self.centres), np.float32)
        by_row = faiss.fvec_L2sqr_ny if self._metric == "l2" else faiss.fvec_inner_products_ny  # type: ignore[attr-defined]
        by_row(*map(faiss.swig_ptr, (found, query, self.centres)), *self.centres.shape[::-1])
        order = (found if self._metric == "l2" else -found).argsort()
        count = int(np.cumsum(self._sizes[order]).searchsorted(share * len(self.numbers))) + 1
        return np.concatenate([self._parts[group] for group in order[:count].tolist()])


class Members:
    """The centroids once more, group by group, for comparing many rows with those of a group at once."""

    def __init__(self, groups: Groups, vectors: NDArray[np.float32], metric: Metric) -> None:
        self._groups, self._metric, self._middle = groups, metric, ivf.middle_of(vectors, metric)
        self._centres = groups.centres - self._middle
        self._probed = min(_GROUPS_PROBED, len(groups.centres))
        self._vectors = members = vectors[groups.numbers] - self._middle
        self._halves = np.zeros(len(vectors), np.float32)
        if metric == "l2":
            self._halves = np.einsum("ij,ij->i", members, members) / np.float32(2)

    def assign(self, rows: NDArray[np.float32]) -> NDArray[np.int64]:
        """The number of a centroid (n,) near to each row."""
        rows = rows - self._middle
        groups, starts = exact_search(self._centres, rows, self._probed, self._metric)[1], self._groups.ends
        order = np.argsort(groups.astype(np.int16).ravel(), kind="stable")
        ends = np.searchsorted(groups.ravel()[order], np.arange(len(starts)))
        lines = order // self._probed
        best, at = np.full(groups.size, -np.inf, np.float32), np.zeros(groups.size, np.int64)
        with np.errstate(over="ignore", invalid="ignore"):
            for group in np.flatnonzero((np.diff(ends) > 0) & (np.diff(starts) > 0)).tolist():
                pairs, first, end = order[ends[group] : ends[group + 1]], starts[group], starts[group + 1]
                scores = rows[lines[ends[group] : ends[group + 1]]] @ self._vectors[first:end].T
                scores -= self._halves[first:end]
                place = scores.argmax(axis=1)
                at[pairs], best[pairs] = first + place, scores[np.arange(len(pairs)), place]
        chosen = best.reshape(groups.shape).argmax(axis=1)
        assigned: NDArray[np.int64] = self._groups.numbers[at.reshape(groups.shape)[np.arange(len(rows)), chosen]]
        return assigned
