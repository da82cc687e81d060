"""ANN indexes over immutable rows: build, calibrate, open, search. With `exact.py` the only user of FAISS.

Invariant: an index answers row numbers of the rows it was built over, in their order, and is only ever read
from bytes whose checksum was verified (FAISS accepts flipped bits: it checks structure, not content).
Rows far beyond the others (`outliers.py`) are not in it: every search ranks them exactly, beside what it finds.
Knows nothing of ids, dead rows' causes, files' names or Kafka. Used by `segment.py` and by the builder.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np
from numpy.typing import NDArray

from tidemark.ann import hnsw, ivf, pq
from tidemark.ann.exact import faiss_metric, nearest_of_many, public_distance
from tidemark.ann.outliers import Bulk
from tidemark.ann.parameters import SearchParameters as SearchParameters
from tidemark.collection import IndexKind, IndexParameters, Metric
from tidemark.errors import CorruptCheckpoint

# Rows used as queries to calibrate a segment: their 10 neighbours give its recall to about +-0.4 %.
CALIBRATION_QUERIES = 400
# Enough for codes that are soon replaced.
CODES_QUERIES = 64
CALIBRATION_K = 10
TRAINING_ROWS_PER_CENTROID = 40
# A 4-bit codebook has 16 centroids, and needs as many rows to be trained on.
ANN_ROWS_LEAST = 64
HNSW_EF_MAX = 1_024
# Reach is counted from the third nearest centroid, which says more of how dense it is around a query than the nearest.
REACH_FROM = 3
# The least and the most lists a query probes, over those that a row of the segment typically probes.
LISTS_LEAST, LISTS_MOST = 0.5, 8
# Of squared distances to two centroids, where rows lie in the nearer one; and the largest that float32 holds.
RATIO_MAX, SQUARE_MAX = 1e12, float(np.finfo(np.float32).max)
# Lists to probe come in multiples of this, padded with none: FAISS's parameters are made once for each number.
LISTS_STEP = 16
# Recall below the target at which codes of rows in memory are of no use; calibration is exact to about 0.005.
SHORTFALL_MAX = 0.01
# Codes of rows in memory (`codes.py`): more rows make the codebooks hardly better, and more lists the searches hardly
# faster: of 300k rows of SIFT 64 lists leave a quarter to scan (0.31 ms), and to find the nearest of 256 instead takes
# 1 us a row more.
CODES_TRAINING_ROWS, CODES_LISTS = 2_048, 64
# A search of 65k rows of 128-d by 4-bit codes in so many lists takes 0.07 ms, an exact one 1.3 ms (AVX2, one thread).
CODES_SCAN_COST = 0.05


NO_ROWS: NDArray[np.int64] = np.empty(0, np.int64)


def _smallest(numbers: NDArray[np.float32], last: int) -> np.float32:
    """The number that sorting would put at `last`."""
    return np.partition(numbers, last)[last]  # type: ignore[no-any-return]


class Index:
    """A FAISS index over float32 rows (n, dimension), open for searching; any thread may use it."""

    def __init__(
        self,
        index: Any,
        outliers: NDArray[np.int64] = NO_ROWS,
        encoder: pq.Encoder | None = None,
        bulk: Bulk | None = None,
    ) -> None:
        """`outliers`: the rows that it does not hold. `encoder` and `bulk`: where it is to make more codes."""
        self.faiss, self.outliers = index, outliers
        self.metric: Metric = "l2" if index.metric_type == faiss.METRIC_L2 else "ip"  # cosine: of unit vectors
        self.is_hnsw = isinstance(index, faiss.IndexHNSW)
        self.lists = 1 if self.is_hnsw else int(index.nlist)
        self._encoder, self.bulk = encoder, bulk
        if self.is_hnsw:
            self._open_numbers()
            return
        quantizer: Any = faiss.downcast_index(index.quantizer)
        self._quantizer, self._centroids_pointer = quantizer, quantizer.get_xb()
        if self.metric == "ip":
            centroids = ivf.centroids_of(index)
            self._square_max = float(np.einsum("ij,ij->i", centroids, centroids).max())

    def _open_numbers(self) -> None:
        """The row of each of FAISS's own numbers, which count the rows that it holds; none where it holds all."""
        self.numbers, self.translation = NO_ROWS, None
        if len(self.outliers):
            self.numbers = np.delete(np.arange(self.faiss.ntotal + len(self.outliers)), self.outliers)
            self.translation = faiss.Int64Vector()
            faiss.copy_array_to_vector(self.numbers, self.translation)

    def held(self, rows: int) -> "Alive":
        """What finds nothing but the rows that it holds, of so many."""
        if not len(self.outliers):
            return ALL
        return Alive(np.packbits(~np.isin(np.arange(rows), self.outliers), bitorder="little"))

    def encoded(self, vectors: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The product codes (n, code bytes) of vectors, and the number of each one's list (n,); needs an encoder."""
        assert self._encoder is not None
        return self._encoder.encode(vectors), self._quantizer.search(vectors, 1)[1][:, 0]

    def error(self, vectors: NDArray[np.float32], codes: NDArray[np.uint8]) -> float:
        """Mean squared distance between vectors and what their codes stand for."""
        return pq.error(self.faiss.pq, vectors, codes)

    def _to_centroids(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """Squared distances (lists,) of one query to the centroids.

        Of inner products, of a query with length 1: to the centroids as if one more dimension made them equally long
        (Bachrach et al., 2014), where the nearest is the one with the largest product.
        """
        found = np.empty(self.lists, np.float32)
        pointers = faiss.swig_ptr(found), faiss.swig_ptr(query), self._centroids_pointer
        if self.metric == "l2":
            faiss.fvec_L2sqr_ny(*pointers, self.faiss.d, self.lists)  # type: ignore[attr-defined]
            return found
        faiss.fvec_inner_products_ny(*pointers, self.faiss.d, self.lists)  # type: ignore[attr-defined]
        farthest = np.float32(self._square_max + 1)
        squares: NDArray[np.float32] = np.maximum(farthest - 2 * found, np.float32(0))
        return squares

    def sorted_squares(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Squared distances (nq, lists) to the centroids, nearest first."""
        return np.sort([self._to_centroids(query) for query in self._directed(queries)], axis=1)

    def _directed(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Under inner product a query's length changes nothing about what is near: 1 for all, but for zero."""
        if self.metric == "l2":
            return queries
        lengths = np.sqrt(np.einsum("ij,ij->i", queries, queries, dtype=np.float64))[:, None]
        directed: NDArray[np.float32] = (queries / np.where(lengths > 0, lengths, 1)).astype(np.float32)
        return directed

    def lists_within(self, queries: NDArray[np.float32], effort: int, reach: float) -> NDArray[np.int64]:
        """The lists to probe for each query (nq, width), padded with -1 (see `SearchParameters`).

        How many differs by query, as in SPANN (Chen et al., 2021): few inside a dense region, many for a query far
        from all rows, whose neighbours lie scattered over lists that are almost equally far.
        """
        least, most = min(self.lists, math.ceil(LISTS_LEAST * effort)), min(self.lists, LISTS_MOST * effort)
        last, farthest = min(REACH_FROM, self.lists) - 1, (1 + reach) ** 2
        found = []
        for query in self._directed(queries):
            squares = self._to_centroids(query)
            third = _smallest(squares, last)
            lists = (squares <= np.float32(min(float(third) * farthest, SQUARE_MAX))).nonzero()[0]
            if len(lists) < least:
                lists = (squares <= _smallest(squares, least - 1)).nonzero()[0]
            if len(lists) > most:
                lists = lists[squares[lists] <= _smallest(squares[lists], most - 1)][:most]
            found.append(lists)
        width = -(-max(map(len, found)) // LISTS_STEP) * LISTS_STEP
        padded = np.full((len(queries), width), -1, np.int64)
        for line, lists in enumerate(found):
            padded[line, : len(lists)] = lists
        return padded

    def candidates(
        self, queries: NDArray[np.float32], count: int, parameters: SearchParameters, alive: "Alive"
    ) -> NDArray[np.int64]:
        """The rows (nq, count) nearest by codes, -1 where there are fewer; `parameters` as they are to be used."""
        if parameters.reach == 0 or self.lists == 1:
            options = alive.options(self, min(parameters.effort, self.lists))
            labels: NDArray[np.int64] = self.faiss.search(queries, count, params=options)[1]
            return labels
        lists = self.lists_within(queries, parameters.effort, parameters.reach)
        distances, labels = np.empty((len(queries), count), np.float32), np.empty((len(queries), count), np.int64)
        # Codes are of the rows, not of what is left of them after the centroid: its distance is not used.
        unused = np.zeros(lists.shape, np.float32)
        pointers = [faiss.swig_ptr(each) for each in (lists, unused, distances, labels)]
        options = alive.options(self, lists.shape[1])
        self.faiss.search_preassigned_c(len(queries), faiss.swig_ptr(queries), count, *pointers, False, options)
        return labels


def kind_for(rows: int, parameters: IndexParameters) -> IndexKind:
    """The kind a segment of so many rows is built as."""
    return "flat" if rows < max(parameters.ann_rows_min, ANN_ROWS_LEAST) else parameters.kind


def build(
    rows: NDArray[np.float32], metric: Metric, parameters: IndexParameters, seed: int
) -> tuple[Index, SearchParameters]:
    """Build and calibrate an ANN index over float32 rows (n, dimension); all threads of the process are used."""
    if parameters.kind == "hnsw":
        index = _build_hnsw(rows, metric, parameters, seed)
    else:
        lists = parameters.nlist or max(16, int(4 * math.sqrt(len(rows))))
        index = _build_ivfpq(rows, metric, lists, lists * TRAINING_ROWS_PER_CENTROID, seed)
    return index, _calibrate(index, rows, parameters.recall_target, seed, CALIBRATION_QUERIES)


def build_codes(
    rows: NDArray[np.float32], metric: Metric, recall_target: float, seed: int
) -> tuple[Index, SearchParameters]:
    """An index of few lists for rows that soon get another one: quickly trained, roughly calibrated."""
    index = _build_ivfpq(rows, metric, CODES_LISTS, CODES_TRAINING_ROWS, seed)
    return index, _calibrate(index, rows, recall_target, seed, CODES_QUERIES)


def _build_hnsw(rows: NDArray[np.float32], metric: Metric, parameters: IndexParameters, seed: int) -> Index:
    outliers = Bulk.of(rows, seed).outliers(rows)
    index = faiss.IndexHNSWFlat(rows.shape[1], parameters.m, faiss_metric(metric))
    index.hnsw.efConstruction = parameters.ef_construction
    # One add per segment: each allocates a lock per row.
    index.add(np.delete(rows, outliers, axis=0) if len(outliers) else rows)
    return Index(index, outliers)


def _build_ivfpq(rows: NDArray[np.float32], metric: Metric, lists: int, training: int, seed: int) -> Index:
    count, dimension = rows.shape
    bulk = Bulk.of(rows, seed)
    outliers = bulk.outliers(rows)
    lists = max(1, min(lists, count // TRAINING_ROWS_PER_CENTROID))
    quantizer = faiss.IndexFlat(dimension, faiss_metric(metric))
    index = faiss.IndexIVFPQFastScan(quantizer, dimension, lists, codes_of(dimension), 4, faiss_metric(metric))
    index.own_fields = True
    quantizer.this.disown()  # type: ignore[attr-defined]  # the index frees it
    index.pq.cp.niter, index.pq.cp.seed = ivf.TRAINING_ITERATIONS, 1 + seed % 2**30
    index.pq.cp.min_points_per_centroid = 1
    picked = np.random.default_rng(seed).choice(count, min(count, training), replace=False)
    picked = picked[~np.isin(picked, outliers)]
    quantizer.add(ivf.train(rows[np.sort(picked)], lists, metric, seed))
    training_rows = rows[picked[: pq.TRAINING_ROWS]]
    pq.start_apart(index.pq, training_rows, seed)
    index.train(training_rows)
    encoder = pq.Encoder.for_rows_like(index.pq, training_rows)
    ivf.fill(index, rows, encoder.encode(rows), metric, outliers)
    return Index(index, outliers, encoder, bulk)


def _sample(index: Index, rows: NDArray[np.float32], seed: int, count: int) -> NDArray[np.int64]:
    """The numbers of some rows that the index holds."""
    picked = np.random.default_rng(seed + 1).choice(len(rows), min(count, len(rows)), replace=False)
    return index.held(len(rows)).among(picked)


def _measurement(
    index: Index, rows: NDArray[np.float32], picked: NDArray[np.int64], left_out: NDArray[np.int64]
) -> Callable[[SearchParameters], SearchParameters]:
    """Measures recall@10 of search parameters on the picked rows, among all but those left out.

    Each picked row is a query whose own row is left out of the answer, found exactly over all rows. A row is
    found when it is as near as the 10th nearest: rows of equal distance are equally good answers. Of the rows that the
    index holds: outliers, which are always found, are not there any more when they are deleted.
    """
    metric, alive = index.metric, index.held(len(rows))
    queries = np.ascontiguousarray(rows[picked])

    def distances_of(labels: NDArray[np.int64]) -> NDArray[np.float32]:
        others = np.where(labels == picked[:, None], -1, labels)
        return public_distance(_rank_exactly(rows, queries, others, CALIBRATION_K, metric)[0], metric)

    worst = distances_of(nearest_of_many(rows, queries, 2 * CALIBRATION_K, metric, left_out))[:, -1:]

    def measured(parameters: SearchParameters) -> SearchParameters:
        found = search(index, rows, queries, CALIBRATION_K + 1, parameters, alive)[1]
        distances = distances_of(found)
        # By equal codes FAISS finds no row at all; whoever searches then compares all rows (`segment.py`, `tail.py`).
        distances[found[:, 0] < 0] = -np.inf
        return replace(parameters, recall=_share_as_near(distances, worst))

    return measured


def _share_as_near(distances: NDArray[np.float32], worst: NDArray[np.float32]) -> float:
    """How many of the distances (nq, k) are at most the query's worst (nq, 1), but for rounding."""
    return float((distances <= worst + np.abs(worst) * np.float32(1e-6)).mean())


def recall_of_narrow(
    index: Index,
    rows: NDArray[np.float32],
    queries: NDArray[np.float32],
    parameters: SearchParameters,
    alive: "Alive",
) -> float:
    """Which share of the 10 nearest that a search of all lists with four times the candidates finds is found anyway.

    In place of the recall where an exact scan of all rows would take too long. Some of the queries are used.
    """
    queries = np.ascontiguousarray(queries[:: -(-len(queries) // CODES_QUERIES)])
    wide = replace(parameters, effort=index.lists, k_factor=4 * parameters.k_factor)
    best = public_distance(search(index, rows, queries, CALIBRATION_K, wide, alive)[0], index.metric)[:, -1:]
    found = public_distance(search(index, rows, queries, CALIBRATION_K, parameters, alive)[0], index.metric)
    return _share_as_near(found, best)


def _calibrate(index: Index, rows: NDArray[np.float32], target: float, seed: int, queries: int) -> SearchParameters:
    """The cheapest search parameters whose recall@10 on sampled rows reaches the target."""
    if index.is_hnsw:
        return _calibrate_hnsw(index, rows, target, seed, queries)
    measured = _measurement(index, rows, _sample(index, rows, seed, queries), index.outliers)
    sample = np.ascontiguousarray(rows[:: max(1, len(rows) // CALIBRATION_QUERIES)])
    squares = index.sorted_squares(sample)
    from_squares = np.maximum(squares[:, min(REACH_FROM, index.lists) - 1], np.finfo(np.float32).tiny)

    def probing(effort: int, k_factor: int) -> SearchParameters:
        with np.errstate(over="ignore"):
            ratio = float(np.median(squares[:, effort - 1] / from_squares))
        reach = math.sqrt(min(ratio, RATIO_MAX)) - 1
        return measured(SearchParameters(effort, k_factor, reach=max(0.0, reach) if effort < index.lists else 0.0))

    best = SearchParameters(recall=-1.0)
    # An eighth of the lists is as good as all of them, but for rows without structure.
    for k_factor, effort in product((8, 16, 32, 64), sorted({-(-index.lists // 8), index.lists})):
        best = max(best, probing(effort, k_factor), key=lambda found: found.recall)
        if best.recall >= target:
            break
    return _least_effort(best, target, 1, lambda effort: probing(effort, best.k_factor))


def _calibrate_hnsw(
    index: Index, rows: NDArray[np.float32], target: float, seed: int, queries: int
) -> SearchParameters:
    """The same on rows that the graph is searched without, at most a tenth of them, so that it still leads anywhere."""
    picked = _sample(index, rows, seed, min(queries, len(rows) // 10))
    nodes = np.searchsorted(index.numbers, picked) if len(index.outliers) else picked
    with hnsw.without(index.faiss, nodes):
        measured = _measurement(index, rows, picked, np.union1d(index.outliers, picked))
        best = measured(SearchParameters(HNSW_EF_MAX))
        # efSearch below k counts as k: what was measured with CALIBRATION_K + 1 would not hold for a smaller k.
        return _least_effort(best, target, CALIBRATION_K, lambda ef: measured(SearchParameters(ef)))


def _least_effort(
    best: SearchParameters, target: float, low: int, measured: Callable[[int], SearchParameters]
) -> SearchParameters:
    """Bisect, in ratios, for the least effort above `low` that reaches the target (or what full effort reaches)."""
    target = min(target, best.recall)
    high = best
    while high.effort > low * 1.1 and high.effort > low + 1:
        tried = measured(max(low + 1, int(math.sqrt(low * high.effort))))
        if tried.recall >= target:
            high = tried
        else:
            low = tried.effort
    return high


class Alive:
    """The rows a search may answer, as FAISS asks for them: a bitmap (little-endian bit order), None for all rows.

    The bitmap is read while searching: a bit cleared meanwhile may or may not count. Any thread may use it.
    """

    def __init__(self, bitmap: NDArray[np.uint8] | None = None, first: int = 0) -> None:
        """`first`: the rows before it are passed over as well."""
        self._bitmap, self._first = bitmap, first  # FAISS keeps only its address
        self._selector: Any = None if bitmap is None else faiss.IDSelectorBitmap(bitmap)  # type: ignore[call-arg, arg-type]
        if first and self._selector is not None:
            self._parts = faiss.IDSelectorRange(first, 2**62), self._selector
            self._selector = faiss.IDSelectorAnd(*self._parts)
        self._options: dict[tuple[bool, int], Any] = {}

    def among(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the rows that may be answered."""
        if self._bitmap is None:
            return rows
        bits = self._bitmap[rows >> 3] >> (rows & 7).astype(np.uint8) & 1
        found: NDArray[np.int64] = rows[(rows >= self._first) & (bits != 0)]
        return found

    def options(self, index: Index, effort: int) -> Any:
        """FAISS's search parameters, always for the same index; made once, it takes as long as a small search."""
        known = self._options.get((index.is_hnsw, effort))
        if known is None:
            if index.is_hnsw:
                known = faiss.SearchParametersHNSW(  # type: ignore[attr-defined]
                    efSearch=effort, sel=self._translated(index), bounded_queue=True
                )
            else:
                known = faiss.SearchParametersIVF(nprobe=effort, sel=self._selector)  # type: ignore[call-arg]
            self._options[index.is_hnsw, effort] = known
        return known

    def _translated(self, index: Index) -> Any:
        """The selector for an index that numbers the rows it holds."""
        if index.translation is None or self._selector is None:
            return self._selector
        return faiss.IDSelectorTranslated(index.translation, self._selector)  # type: ignore[arg-type]


ALL = Alive()


def search(
    index: Index,
    rows: NDArray[np.float32],
    queries: NDArray[np.float32],
    k: int,
    parameters: SearchParameters,
    alive: Alive = ALL,
    effort: float = 1.0,
    more: int = 0,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """FAISS distances and row numbers (nq, k + more), nearest first, -1 where there are fewer.

    `effort` scales the calibrated effort, which was measured for 10 neighbours; for more it grows with the square
    root of their number. The `more` rows are those that the effort for k finds beside them.
    """
    scaled = parameters.scaled(effort * max(1.0, math.sqrt(k / (CALIBRATION_K + 1))))
    if index.is_hnsw:
        options = alive.options(index, max(scaled.effort, k + more))
        distances, labels = index.faiss.search(queries, k + more, params=options)
        if not len(index.outliers):
            return distances, labels
        labels = np.where(labels < 0, -1, index.numbers[labels])
    else:
        wanted = min(max(k, CALIBRATION_K) * math.ceil(parameters.k_factor * max(1.0, effort)), index.faiss.ntotal)
        queries = np.ascontiguousarray(queries)
        labels = index.candidates(queries, wanted, scaled, alive)
    if len(index.outliers):
        outliers = alive.among(index.outliers)
        labels = np.concatenate([labels, np.broadcast_to(outliers, (len(queries), len(outliers)))], axis=1)
    return _rank_exactly(rows, queries, labels, k + more, index.metric)


def _rank_exactly(
    rows: NDArray[np.float32], queries: NDArray[np.float32], candidates: NDArray[np.int64], k: int, metric: Metric
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k nearest of each query's candidates by exact distance to the mapped rows."""
    count, wanted = candidates.shape
    if wanted < k:
        candidates = np.pad(candidates, ((0, 0), (0, k - wanted)), constant_values=-1)
    candidates = np.ascontiguousarray(candidates)
    distances = np.empty(candidates.shape, np.float32)  # of candidate -1 it is infinite
    by_idx: Any = getattr(faiss, "fvec_L2sqr_by_idx" if metric == "l2" else "fvec_inner_products_by_idx")
    swig_ptr = faiss.swig_ptr
    pointers = swig_ptr(distances), swig_ptr(queries), swig_ptr(rows), swig_ptr(candidates)
    by_idx(*pointers, rows.shape[1], count, candidates.shape[1])
    order = (distances if metric == "l2" else -distances).argsort(axis=1, kind="stable")[:, :k]
    if count == 1:
        return distances[:, order[0]], candidates[:, order[0]]
    lines = np.arange(count)[:, None]
    return distances[lines, order], candidates[lines, order]


def codes_of(dimension: int) -> int:
    """4-bit codes of a row: one for two dimensions; an odd dimension has no such split, so each gets its own."""
    return dimension // 2 if dimension % 2 == 0 else dimension


def emptied(index: Index) -> Index:
    """What was trained, without any rows."""
    empty = faiss.clone_index(index.faiss)
    empty.reset()
    return Index(empty)


def to_bytes(index: Index) -> bytes:
    """The index as bytes, for `from_bytes` in another process."""
    written: NDArray[np.uint8] = faiss.serialize_index(index.faiss)
    return written.tobytes()


def from_bytes(written: bytes) -> Index:
    """An index from bytes that `to_bytes` gave and a checksum covered."""
    return Index(faiss.deserialize_index(np.frombuffer(written, np.uint8)))


def write(index: Index, file: BinaryIO) -> None:
    """Write FAISS's part through the file's own `write`: FAISS's does not tell when the last bytes found no room."""
    faiss.write_index(index.faiss, faiss.PyCallbackIOWriter(file.write))  # type: ignore[attr-defined]  # not in its stubs


def open_mapped(path: Path, kind: IndexKind, rows: int, dimension: int, outliers: NDArray[np.int64] = NO_ROWS) -> Index:
    """Map an index file whose checksum was verified; refuse any type or shape but the manifest's.

    `outliers`: the rows that are not in it, out of `rows`.
    """
    index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    expected = faiss.IndexHNSWFlat if kind == "hnsw" else faiss.IndexIVFPQFastScan
    if type(index) is not expected or index.ntotal != rows - len(outliers) or index.d != dimension:
        raise CorruptCheckpoint(
            f"{path}: holds a {type(index).__name__} of {index.ntotal} rows x {index.d}, "
            f"the manifest says {kind}, {rows} rows x {dimension}, {len(outliers)} of them outliers"
        )
    return Index(index, outliers)
