"""Metadata for SIFT rows, and the conditions that pick 50 %, 10 %, 1 % and 0.1 % of them: for every store the same.

Two numbers from 0 to 999 (thousandths) are a row's metadata. `chance` is drawn by lot, so what a condition on it picks
lies everywhere. `place` goes with the vector: rows are sorted by their cluster (k-means), clusters by how far they
are from one of them, so `place` below 10 picks the hundredth of the rows around one spot, and most queries are far
from all that it picks: the harder kind.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks import sift

THOUSANDTHS = (500, 100, 10, 1)
CLUSTERS, TRAINING_ROWS_PER_CLUSTER = 1_000, 50
Columns = Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class Below:
    """Rows whose `field` is less than `limit`."""

    field: str
    limit: int

    def __str__(self) -> str:
        return f"{self.field} < {self.limit} ({self.limit / 10:g} %)"


ALL = tuple(Below(field, limit) for field in ("chance", "place") for limit in THOUSANDTHS)


def columns(base: NDArray[np.float32], seed: int = 0) -> Columns:
    """`chance` and `place` of each row, (rows,)."""
    rows = len(base)
    chance = np.random.default_rng(seed).integers(0, 1_000, rows)
    near = _cluster_order(base, seed)
    place = np.empty(rows, np.int64)
    place[np.argsort(near, kind="stable")] = np.arange(rows) * 1_000 // rows
    return {"chance": chance, "place": place}


def _cluster_order(base: NDArray[np.float32], seed: int) -> NDArray[np.int64]:
    """Of each row: how many clusters are nearer to the first one than its own."""
    clusters = min(CLUSTERS, len(base) // TRAINING_ROWS_PER_CLUSTER)
    kmeans = faiss.Kmeans(sift.DIMENSION, clusters, niter=10, seed=1 + seed)
    kmeans.train(np.ascontiguousarray(base[: clusters * TRAINING_ROWS_PER_CLUSTER]))
    centroids: NDArray[np.float32] = np.asarray(kmeans.centroids)
    order = faiss.knn(centroids[:1], centroids, clusters)[1][0]
    places = np.empty(clusters, np.int64)
    places[order] = np.arange(clusters)
    found: NDArray[np.int64] = places[kmeans.index.search(np.ascontiguousarray(base), 1)[1][:, 0]]
    return found


def picked(condition: Below, values: Columns) -> NDArray[np.int64]:
    """Numbers of the rows it picks, ascending."""
    return np.flatnonzero(values[condition.field] < condition.limit)


def ground_truth(data: sift.Sift, numbers: NDArray[np.int64], k: int = 10) -> NDArray[np.int64]:
    """Of these rows, those nearest to each query, nearest first, (queries, k); -1 where there are fewer."""
    rows = np.ascontiguousarray(data.base[numbers])
    near = faiss.knn(np.ascontiguousarray(data.queries), rows, min(k, len(rows)))[1]
    found = np.full((len(near), k), -1, np.int64)
    found[:, : near.shape[1]] = numbers[near]
    return found
