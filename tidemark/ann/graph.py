"""The graph of a segment of kind `hnsw` (Malkov and Yashunin, 2018), built once over rows that never change.

Invariant: it answers row numbers of the rows it was built over, in their order, and is only ever read from bytes whose
checksum was verified (FAISS accepts flipped bits: it checks structure, not content). Rows far beyond the others
(`outliers.py`) and all but a few of the rows that are equal (`copies.py`) are not in it: these, here called outliers
both, are candidates of every search. Knows nothing of ids, files' names or Kafka.
"""

import math
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np
from numpy.typing import NDArray

from tidemark.ann import calibration, exact, hnsw
from tidemark.ann.copies import surplus_copies
from tidemark.ann.outliers import Bulk
from tidemark.ann.parameters import CALIBRATION_K, SearchParameters
from tidemark.collection import IndexParameters, Metric
from tidemark.errors import CorruptCheckpoint
from tidemark.live_rows import LiveRows

EF_MAX = 1_024
# Fewer rows are compared one by one.
ROWS_LEAST = 64
# Beside k and those of them that are dead on average, with a margin. Asked again for so many times as many, a graph
# costs about three times as much; for more than so many, as much as to compare all rows.
DEAD_ASKED_TOO, ASKED_AGAIN, ASKED_MAX = 3, 8, 1_024
NO_ROWS: NDArray[np.int64] = np.empty(0, np.int64)


class Graph:
    """Open for searching; any thread may use it. `outliers`: the rows that it does not hold, ascending."""

    def __init__(self, index: Any, outliers: NDArray[np.int64], parameters: SearchParameters) -> None:
        self._index, self.outliers, self.parameters = index, outliers, parameters
        self.metric: Metric = "l2" if index.metric_type == faiss.METRIC_L2 else "ip"  # cosine: of unit vectors
        self.row_count = int(index.ntotal) + len(outliers)
        self._options: dict[int, Any] = {}
        # FAISS counts the rows that it holds.
        self._numbers = np.delete(np.arange(self.row_count), outliers) if len(outliers) else NO_ROWS

    @classmethod
    def build(cls, rows: NDArray[np.float32], metric: Metric, parameters: IndexParameters, seed: int) -> "Graph":
        """Over at least 64 float32 rows (n, dimension), and calibrated; all threads of FAISS are used."""
        outliers = np.union1d(
            Bulk.of(rows, seed).outliers(rows), surplus_copies(rows, most=parameters.m, least=ROWS_LEAST)
        )
        index = faiss.IndexHNSWFlat(rows.shape[1], parameters.m, exact.faiss_metric(metric))
        index.hnsw.efConstruction = parameters.ef_construction
        # One add per segment: each allocates a lock per row.
        index.add(np.delete(rows, outliers, axis=0) if len(outliers) else rows)
        built = cls(index, outliers, SearchParameters())
        built.parameters = built._calibrated(rows, parameters.recall_target, seed)
        return built

    @classmethod
    def open_mapped(
        cls, path: Path, rows: int, dimension: int, effort: int, outliers: NDArray[np.int64] = NO_ROWS
    ) -> "Graph":
        """Map a file whose checksum was verified; refuse any type or shape but the manifest's: `rows` with outliers.

        `effort`: the efSearch that its calibration found.
        """
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        held = rows - len(outliers)
        if type(index) is not faiss.IndexHNSWFlat or index.ntotal != held or index.d != dimension:
            raise CorruptCheckpoint(
                f"{path}: holds a {type(index).__name__} of {index.ntotal} rows x {index.d}, the manifest says hnsw, "
                f"{rows} rows x {dimension}, {len(outliers)} of them outliers"
            )
        return cls(index, outliers, SearchParameters(effort))

    def write(self, file: BinaryIO) -> None:
        """All but the outliers' numbers."""
        # By the file's own `write`: FAISS's does not tell when the last bytes found no room.
        faiss.write_index(self._index, faiss.PyCallbackIOWriter(file.write))  # type: ignore[attr-defined]

    def search(
        self, vectors: NDArray[np.float32], queries: NDArray[np.float32], k: int, live: LiveRows, effort: float = 1.0
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """FAISS distances and row numbers (nq, width), among them about the k nearest that live; padded with -1.

        `vectors` float32 (n, dimension) are those of its rows. The effort is for the nearest of all rows, so the graph
        is asked for so many, dead or alive, that k of them live; beyond some, all rows that live are compared. Were
        dead ones passed over in the graph, those around a query would use up what is to find its neighbours, and
        farther rows be answered in their place.
        """
        queries, numbers = np.ascontiguousarray(queries), self._living(vectors, queries, k, live, effort)
        return exact.rank(vectors, queries, numbers, self.metric), numbers

    def _living(
        self, vectors: NDArray[np.float32], queries: NDArray[np.float32], k: int, live: LiveRows, effort: float
    ) -> NDArray[np.int64]:
        outliers = self.outliers[live.are_live(self.outliers)]
        living, asked = live.live_count, k
        if living < self.row_count:
            asked += math.ceil(2 * k * (1 - living / self.row_count)) + DEAD_ASKED_TOO
        wanted = max(0, min(k, living - len(outliers)))
        rows, left = np.full((len(queries), wanted), -1, np.int64), np.arange(len(queries) if wanted else 0)
        while len(left) and asked <= max(ASKED_MAX, 2 * k):
            found = self._nearest(queries[left], asked, k, effort)
            found = np.where((found >= 0) & live.are_live(found), found, -1)
            order = np.argsort(found < 0, axis=1, kind="stable")[:, :wanted]
            rows[left] = np.take_along_axis(found, order, 1)
            left, asked = left[rows[left, -1] < 0], ASKED_AGAIN * asked
        if len(left):
            compared = exact.exact_search_among(vectors, live.numbers(), queries[left], wanted, self.metric)[1]
            rows[left, : compared.shape[1]] = compared
        if not len(outliers):
            return rows
        # What was compared may be an outlier as well: nothing twice.
        rows[left] = np.where(np.isin(rows[left], outliers), -1, rows[left])
        return np.concatenate([rows, np.broadcast_to(outliers, (len(queries), len(outliers)))], axis=1)

    def _nearest(self, queries: NDArray[np.float32], count: int, k: int, effort: float) -> NDArray[np.int64]:
        """Rows (nq, count) that it finds, dead or alive, with the effort for k of them."""
        return self._found(queries, count, self.parameters.for_neighbours(k, effort).effort)

    def _found(self, queries: NDArray[np.float32], count: int, ef_search: int) -> NDArray[np.int64]:
        ef_search = max(ef_search, count)
        if ef_search not in self._options:  # to make them takes as long as a small search
            options = faiss.SearchParametersHNSW(efSearch=ef_search, bounded_queue=True)  # type: ignore[attr-defined]
            self._options[ef_search] = options
        found: NDArray[np.int64] = self._index.search(queries, count, params=self._options[ef_search])[1]
        return np.where(found < 0, -1, self._numbers[found]) if len(self.outliers) else found

    def _calibrated(self, rows: NDArray[np.float32], target: float, seed: int) -> SearchParameters:
        """Measured on rows that the graph is searched without, at most a tenth of them, so that it still leads on."""
        held = self._numbers if len(self.outliers) else np.arange(self.row_count)
        rng = np.random.default_rng(seed + 1)
        picked = rng.choice(held, min(calibration.QUERIES, len(held) // 10), replace=False)
        queries = np.ascontiguousarray(rows[picked])
        nodes = np.searchsorted(held, picked)
        left_out = np.union1d(self.outliers, picked)
        truth = exact.nearest_of_many(rows, queries, CALIBRATION_K, self.metric, left_out)
        near = calibration.Near(lambda numbers: exact.rank(rows, queries, numbers, self.metric), truth, self.metric)

        def measured(effort: int) -> SearchParameters:
            found = self._found(queries, CALIBRATION_K + 1, effort)
            return SearchParameters(effort, recall=near.share_of(np.where(found == picked[:, None], -1, found)))

        with hnsw.without(self._index, nodes):
            # efSearch below k counts as k: what was measured with K + 1 would not hold for a smaller k.
            return calibration.least_effort(measured(EF_MAX), target, CALIBRATION_K, measured)
