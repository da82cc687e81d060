"""What a user of FAISS would build over the same rows: the measure of our searches and of our build.

An IndexIVFPQFastScan with as many lists and codes as ours, trained and filled by FAISS alone, and IndexRefineFlat over
it, which ranks the candidates by their vectors. Tuned on the very queries that it is then asked: to its advantage.
"""

import math
import time
from collections.abc import Sequence

import faiss
import numpy as np
from numpy.typing import NDArray

TRAINING_ROWS_PER_CENTROID = 40
TRAINING_ITERATIONS = 8
K, CANDIDATES = 10, 8  # so many times k are ranked by their vectors


class PlainFaiss:
    """Over float32 rows (n, d) under L2. `built_s`: how long it took to train and to add, all threads."""

    def __init__(self, rows: NDArray[np.float32], seed: int = 0) -> None:
        count, dimension = rows.shape
        lists = max(1, min(int(4 * math.sqrt(count)), count // TRAINING_ROWS_PER_CENTROID))
        self._centroids = faiss.IndexFlatL2(dimension)
        self._index = faiss.IndexIVFPQFastScan(self._centroids, dimension, lists, dimension // 2, 4, faiss.METRIC_L2)
        self._index.cp.niter = self._index.pq.cp.niter = TRAINING_ITERATIONS
        self._index.cp.seed = self._index.pq.cp.seed = 1 + seed
        self._index.cp.max_points_per_centroid = TRAINING_ROWS_PER_CENTROID
        self._index.cp.min_points_per_centroid = self._index.pq.cp.min_points_per_centroid = 1
        training = min(count, lists * TRAINING_ROWS_PER_CENTROID)
        picked = np.sort(np.random.default_rng(seed).choice(count, training, replace=False))
        started = time.perf_counter()
        self._index.train(rows[picked])
        self._index.add(np.ascontiguousarray(rows))
        self.built_s = time.perf_counter() - started
        self._refined = faiss.IndexRefineFlat(self._index, faiss.swig_ptr(np.ascontiguousarray(rows)))
        self._refined.k_factor = CANDIDATES
        self.recall = 0.0

    def search(self, queries: NDArray[np.float32], k: int = K) -> NDArray[np.int64]:
        """Row numbers (nq, k), nearest first."""
        found: NDArray[np.int64] = self._refined.search(queries, k)[1]
        return found

    def tune(self, queries: NDArray[np.float32], truth: NDArray[np.int64], recall: float) -> int:
        """Probe the fewest lists that reach the recall@k of `truth` (nq, k), and return how many."""
        low, high = 0, int(self._index.nlist)
        while high - low > 1:
            self._index.nprobe = (low + high) // 2
            low, high = (
                (low, self._index.nprobe) if self._recall(queries, truth) >= recall else (self._index.nprobe, high)
            )
        self._index.nprobe = high
        self.recall = self._recall(queries, truth)
        return high

    def _recall(self, queries: NDArray[np.float32], truth: NDArray[np.int64]) -> float:
        found = self.search(queries, truth.shape[1])
        pairs: Sequence[tuple[list[int], list[int]]] = list(zip(found.tolist(), truth.tolist(), strict=True))
        return sum(len(set(a) & set(b)) for a, b in pairs) / truth.size
