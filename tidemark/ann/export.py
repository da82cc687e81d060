"""One plain FAISS index of all rows of a collection, for programs that know nothing of Tidemark.

Invariant: what is written is opened by `faiss.read_index` and searched as it stands: row numbers count from 0, what a
search takes (`nprobe`, `k_factor`, `efSearch`) is in the index, and every distance is that of the vectors themselves.
Rows far beyond the others (`outliers.py`) have lists of their own: FAISS has no place for rows that are in none.
Knows nothing of files' names, segments or ids. Used by `tidemark/export.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import faiss
import numpy as np
from numpy.typing import NDArray

from tidemark.ann import ivf
from tidemark.ann.centroids import LISTS_MOST, Centroids
from tidemark.ann.exact import faiss_metric, nearest_of_many, rank
from tidemark.ann.ivf import BLOCK_ROWS, PLACE_IN_BLOCK
from tidemark.ann.lists import OUTLIER
from tidemark.ann.outliers import Bulk
from tidemark.ann.quantizer import Quantizer
from tidemark.collection import IndexParameters, Metric

# Queries with which it is found out how much a search is to look at: recall to about +-0.3 %.
QUERIES, K = 200, 10
# FAISS looks at as much for each query, where Tidemark probes more lists for those far from all rows. So an effort is
# taken that finds this much, for rows and for points halfway between two of them, and then twice that.
RECALL, MARGIN = 0.99, 2
EF_SEARCH_LEAST, EF_SEARCH_MOST = 64, 1_024
# Under inner product all links lead to the longest rows, few back: 15 of 3,000 rows 10 to 1,000 times as long as the
# others let a graph find 0.92 at its best, made with this effort 0.98.
EF_CONSTRUCTION_OUTLIERS = 500
# Times the k_factor of Tidemark's searches are tried, in as many lists as it probes for a query far from all rows.
_K_FACTORS = (1, 2, 4, 8)
# `faiss.read_index` refuses a larger one.
K_FACTOR_MOST = 1_000
# Codes do not tell how far out an outlier is. For queries next to one of 40 in 20,000 rows (32-d, l2), whose other
# nearest are outliers too, a k_factor of 16 finds 0.72 of the ten nearest, 64 finds 0.82, 256 all.
K_FACTOR_OUTLIERS = 256
# More outliers than these share lists. Each list is one more centroid that every query is compared with.
OUTLIER_LISTS = 1_024


@dataclass(frozen=True, slots=True)
class Built:
    """A FAISS index, of the class `kind` when it is read; what a search takes, and recall@10 with half of that."""

    index: Any
    kind: str
    search: dict[str, int]
    recall: float

    def write(self, file: BinaryIO) -> None:
        """Through the file's own `write`: FAISS's does not tell when the last bytes found no room."""
        faiss.write_index(self.index, faiss.PyCallbackIOWriter(file.write))  # type: ignore[attr-defined]  # not in its stubs


class Flat:
    """An IndexFlat being filled: `vectors` float32 (n, dimension), all rows in memory once."""

    def __init__(self, row_count: int, dimension: int, metric: Metric) -> None:
        self.metric = metric
        self._index = faiss.IndexFlatL2(dimension) if metric == "l2" else faiss.IndexFlatIP(dimension)
        self._index.codes.resize(4 * row_count * dimension)
        self._index.ntotal = row_count
        pointer: Any = self._index.get_xb()
        self.vectors: NDArray[np.float32] = np.empty((0, dimension), np.float32)
        if row_count:
            self.vectors = faiss.rev_swig_ptr(pointer, row_count * dimension).reshape(row_count, dimension)

    def built(self) -> Built:
        """A search of it compares all rows."""
        return Built(self._index, type(self._index).__name__, {}, 1.0)

    def with_lists(self, quantizer: Quantizer, lists: NDArray[np.uint32], codes: NDArray[np.uint8]) -> Built:
        """Inverted lists of product codes, and the nearest by codes ranked by the vectors.

        `lists` uint32 (n,) and `codes` uint8 (n, code bytes) are as the quantizer gave them; those of outliers are
        changed.
        """
        coded, outlier_lists = _with_codes(quantizer, self.vectors, lists, codes)
        index = faiss.IndexRefine(coded, self._index)
        found = _effort_of_lists(index, quantizer, outlier_lists, self._recall_of(index))
        index.k_factor, coded.nprobe = found.search["k_factor"], found.search["nprobe"]
        return found

    def with_graph(self, parameters: IndexParameters) -> Built:
        """One HNSW graph over all rows, which has the vectors itself: until it is written they are there twice."""
        index = faiss.IndexHNSWFlat(self.vectors.shape[1], parameters.m, faiss_metric(self.metric))
        outliers = Bulk.of(self.vectors, seed=1).outliers(self.vectors)
        effort = EF_CONSTRUCTION_OUTLIERS if len(outliers) and self.metric == "ip" else 0
        index.hnsw.efConstruction = max(parameters.ef_construction, effort)
        faiss.copy_array_to_vector(_levels(index.hnsw, len(self.vectors), outliers), index.hnsw.levels)
        index.add(self.vectors)
        recall_of, effort = self._recall_of(index), EF_SEARCH_LEAST
        while (recall := recall_of(efSearch=effort)) < RECALL and effort < EF_SEARCH_MOST:
            effort *= 2
        index.hnsw.efSearch = MARGIN * effort
        return Built(index, "IndexHNSWFlat", {"efSearch": MARGIN * effort}, recall)

    def _recall_of(self, index: Any) -> "RecallOf":
        """Measures recall@10 of searches for points between rows, and for rows, which are left out of their answers."""
        rng, count = np.random.default_rng(1), len(self.vectors)
        own, other = rng.integers(count, size=(2, QUERIES))
        queries = self.vectors[own]
        queries[::2] = queries[::2] / 2 + self.vectors[other[::2]] / 2
        own[::2] = -1

        def others(labels: NDArray[np.int64]) -> NDArray[np.float32]:
            """Sorted distances to the rows, smaller is nearer, infinite for the query itself."""
            distances = rank(self.vectors, queries, np.where(labels == own[:, None], -1, labels), self.metric)
            return np.sort(distances if self.metric == "l2" else -distances, axis=1)

        worst = others(nearest_of_many(self.vectors, queries, K + 1, self.metric))[:, K - 1 : K]

        def recall_of(**search: int) -> float:
            labels = index.search(queries, K + 1, params=_parameters(index, **search))[1]
            return float((others(labels)[:, :K] <= worst + np.abs(worst) * np.float32(1e-6)).mean())

        return recall_of


RecallOf = Callable[..., float]


def _levels(hnsw: Any, row_count: int, outliers: NDArray[np.int64]) -> NDArray[np.int32]:
    """On how many levels of a graph each row is; outliers are on all, for from below no link leads out to them.

    Of 20,000 rows under cosine, 40 of them opposite to the others, a search near these finds 1.0 where it found 0.2.
    """
    shares = np.cumsum(faiss.vector_to_array(hnsw.assign_probas))
    levels = 1 + np.searchsorted(shares[:-1], np.random.default_rng(1).random(row_count)).astype(np.int32)
    levels[outliers] = levels.max()
    return levels


def _parameters(index: Any, **search: int) -> Any:
    if "efSearch" in search:
        return faiss.SearchParametersHNSW(efSearch=search["efSearch"])  # type: ignore[attr-defined]
    base = faiss.SearchParametersIVF(nprobe=search["nprobe"])  # type: ignore[call-arg]
    return faiss.IndexRefineSearchParameters(k_factor=search["k_factor"], base_index_params=base)  # type: ignore[call-arg]


def _effort_of_lists(index: Any, quantizer: Quantizer, outlier_lists: int, recall_of: RecallOf) -> Built:
    """First how many candidates are to be ranked when many lists are probed, then how few lists will do."""
    known, most = quantizer.parameters, quantizer.lists
    # Under inner product a long vector is near to half of all queries: their lists come before all others.
    beside = 0 if quantizer.metric == "l2" else outlier_lists
    widest, recall, k_factor = min(most, LISTS_MOST * known.effort), -1.0, known.k_factor
    for tried in (times * known.k_factor for times in _K_FACTORS):
        if recall < RECALL and (found := recall_of(nprobe=widest + beside, k_factor=tried)) > recall:
            recall, k_factor = found, tried
    goal, effort = min(RECALL, recall), min(widest, known.effort)
    while (recall := recall_of(nprobe=effort + beside, k_factor=k_factor)) < goal and effort < widest:
        effort = min(widest, 2 * effort)
    nprobe, k_factor = min(most, MARGIN * effort) + beside, MARGIN * k_factor
    k_factor = min(K_FACTOR_MOST, max(k_factor, K_FACTOR_OUTLIERS if outlier_lists else 1))
    return Built(index, "IndexRefineFlat", {"nprobe": nprobe, "k_factor": k_factor}, recall)


def _with_codes(
    quantizer: Quantizer, vectors: NDArray[np.float32], lists: NDArray[np.uint32], codes: NDArray[np.uint8]
) -> tuple[Any, int]:
    """An IndexIVFPQFastScan of all rows, and how many of its lists are for outliers alone."""
    trained = quantizer.empty_index()
    outliers = np.flatnonzero(lists == OUTLIER)
    centroids = quantizer.centroids.vectors
    if len(outliers):
        far = np.ascontiguousarray(vectors[outliers])
        centres, numbers = far, np.arange(len(far))
        if len(far) > OUTLIER_LISTS:
            centres = ivf.k_means(far, OUTLIER_LISTS, "l2", seed=1)  # as long as they are, so that they come first
            numbers = Centroids(centres, "l2").assign(far)
        lists[outliers] = quantizer.lists + numbers
        codes[outliers] = trained.pq.compute_codes(far)
        centroids = np.concatenate([centroids, centres])
    index = _empty(trained, centroids, quantizer.metric)
    _fill(index, lists, codes)
    return index, len(centroids) - quantizer.lists


def _empty(trained: Any, centroids: NDArray[np.float32], metric: Metric) -> Any:
    """An index like a trained one with these centroids (lists, dimension)."""
    lists, dimension = centroids.shape
    coarse = faiss.IndexFlat(dimension, faiss_metric(metric))
    coarse.add(np.ascontiguousarray(centroids))
    index = faiss.IndexIVFPQFastScan(coarse, dimension, lists, trained.pq.M, 4, faiss_metric(metric))
    index.own_fields = True
    coarse.this.disown()  # type: ignore[attr-defined]  # the index frees it
    index.pq, index.by_residual, index.is_trained = trained.pq, trained.by_residual, True
    return index


def _fill(index: Any, lists: NDArray[np.uint32], codes: NDArray[np.uint8]) -> None:
    order = np.argsort(lists, kind="stable")
    ends = np.searchsorted(lists[order], np.arange(index.nlist + 1))
    inverted = faiss.downcast_InvertedLists(index.invlists)
    for number in np.flatnonzero(np.diff(ends)).tolist():
        members = np.ascontiguousarray(order[ends[number] : ends[number + 1]])
        blocks = _blocks(codes[members])
        inverted.add_entries(number, len(members), faiss.swig_ptr(members), faiss.swig_ptr(blocks))
    index.ntotal = len(lists)


def _blocks(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes (n, code bytes) as FAISS's fast scan reads them: blocks of 32 rows, the last one filled with zeros."""
    count, half = -(-len(codes) // BLOCK_ROWS), BLOCK_ROWS // 2
    rows = np.zeros((count * BLOCK_ROWS, codes.shape[1]), np.uint8)
    rows[: len(codes)] = codes
    by_code = rows.reshape(count, BLOCK_ROWS, -1).transpose(0, 2, 1)
    blocks = np.empty((count, codes.shape[1], 2, half), np.uint8)
    for number, nibbles in enumerate((by_code & 15, by_code >> 4)):
        blocks[:, :, number, PLACE_IN_BLOCK[:half]] = nibbles[..., :half] | nibbles[..., half:] << 4
    return blocks
