"""What the rows of a collection are coded with: the centroids of its lists, its product codebooks, where its bulk lies.

Invariant: trained once, never changed, the same bytes for all who code or search (`to_bytes`); what was coded by one
quantizer is searched with the same. A row far beyond the others (`outliers.py`) gets no code: it is in no list
(`OUTLIER`), and every search ranks it exactly. Product codes (Jégou et al., 2011) are of the rows, not of what is left
of them after their centroid. Knows nothing of parts, of files' names or of dead rows. Searched by `lists.py`.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import faiss
import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from tidemark.ann import calibration, ivf, pq
from tidemark.ann.centroids import Centroids
from tidemark.ann.exact import faiss_metric
from tidemark.ann.groups import Groups
from tidemark.ann.lists import OUTLIER as OUTLIER
from tidemark.ann.outliers import FAR, Bulk
from tidemark.ann.parameters import SearchParameters
from tidemark.collection import Metric

TRAINING_ROWS_PER_CENTROID = 40
# Times the error of the rows that it was trained on.
DRIFT_MAX = 1.5
# A 4-bit codebook has 16 centroids, and needs as many rows to be trained on.
ROWS_LEAST = 64
# Of so many rows the error of one is measured.
_MEASURED_EVERY = 8


@dataclass(frozen=True, slots=True)
class Encoded:
    """Of n rows: `lists` uint32 (n,), `codes` uint8 (n, code bytes), the mean squared error of those measured."""

    lists: NDArray[np.uint32]
    codes: NDArray[np.uint8]
    error: float


class _Head(msgspec.Struct, frozen=True):
    """What stands before FAISS's bytes."""

    metric: Metric
    row_count: int
    recall_target: float
    parameters: SearchParameters
    error: float
    grids: bool  # whether rows are like those for which grids make nearly the same codes as FAISS (`pq.py`)
    bulk_square_max: float
    bulk_centre: bytes
    group_centres: bytes = b""  # of many centroids (`groups.py`)
    group_of: bytes = b""


class Quantizer:
    """Codes rows; any thread may use it."""

    def __init__(self, head: _Head, index: Any) -> None:
        self._head, self._index = head, index
        self.metric: Metric = head.metric
        self.row_count, self.recall_target = head.row_count, head.recall_target
        self.parameters, self.error = head.parameters, head.error
        self.dimension, self.lists, self.code_bytes = int(index.d), int(index.nlist), int(index.pq.code_size)
        self.centroids = Centroids(ivf.centroids_of(index), head.metric, self._groups())
        self._bulk = Bulk(np.frombuffer(head.bulk_centre, "<f4"), head.bulk_square_max)

    def _groups(self) -> Groups | None:
        if not self._head.group_of:
            return None
        centres = np.frombuffer(self._head.group_centres, "<f4").reshape(-1, self.dimension)
        return Groups(centres, np.frombuffer(self._head.group_of, "<u2"), self.metric)

    @classmethod
    def train(
        cls,
        sample: NDArray[np.float32],
        metric: Metric,
        row_count: int,
        recall_target: float,
        seed: int,
        nlist: int = 0,
    ) -> "Quantizer":
        """From at least 64 random rows, float32 (n, dimension), of the `row_count` rows that the collection has.

        `nlist`: as many lists, else four times the root of `row_count`, as the sample allows. Its searches are
        calibrated on the sample alone. All threads of FAISS are used; 262,144 rows of 128-d take half a minute of one.
        """
        assert len(sample) >= ROWS_LEAST
        sample = np.ascontiguousarray(sample)
        bulk = Bulk.of(sample, seed)
        numbers = np.delete(np.arange(len(sample)), bulk.outliers(sample))
        inside = sample[np.random.default_rng(seed).permutation(numbers)]
        wanted = nlist or max(16, int(4 * math.sqrt(row_count)))
        index = _trained(inside, metric, max(1, min(wanted, len(inside) // TRAINING_ROWS_PER_CENTROID)), seed)
        encoder = pq.Encoder.for_rows_like(index.pq, inside[: pq.TRAINING_ROWS])
        groups = Groups.of(ivf.centroids_of(index), metric)
        head = _Head(
            metric=metric,
            row_count=row_count,
            recall_target=recall_target,
            parameters=SearchParameters(),
            error=pq.error(index.pq, inside, encoder.encode(inside)),
            grids=encoder.grid is not None,
            bulk_square_max=float(bulk.square_max),
            bulk_centre=bulk.centre.astype("<f4").tobytes(),
            group_centres=groups.centres.astype("<f4").tobytes() if groups else b"",
            group_of=groups.group_of.astype("<u2").tobytes() if groups else b"",
        )
        found = calibration.of_sample(cls(head, index), sample, seed)
        return cls(msgspec.structs.replace(head, parameters=found), index)

    @property
    def error_max(self) -> float:
        """Beyond this error of their codes rows are unlike those that it was trained on.

        Where those had hardly any error it is a hundredth of the squared distance within which nearly all of them lie.
        """
        return max(DRIFT_MAX * self.error, 0.01 * float(self._bulk.square_max) / FAR**2)

    # -- code ----------------------------------------------------------------------------------------------

    @cached_property
    def _encoder(self) -> pq.Encoder:
        return pq.Encoder(self._index.pq, self._head.grids)

    def encode(self, vectors: NDArray[np.float32]) -> Encoded:
        """The lists and codes of float32 rows (n, dimension); an outlier has list `OUTLIER` and code zero.

        The first call takes some milliseconds more.
        """
        vectors = np.ascontiguousarray(vectors)
        lists, codes = self.centroids.assign(vectors).astype(np.uint32), self._encoder.encode(vectors)
        outliers = self._bulk.outliers(vectors)
        lists[outliers], codes[outliers] = OUTLIER, 0
        measured = np.flatnonzero(lists[::_MEASURED_EVERY] != OUTLIER) * _MEASURED_EVERY
        if not len(measured):
            return Encoded(lists, codes, 0.0)
        return Encoded(lists, codes, pq.error(self._index.pq, vectors[measured], codes[measured]))

    def decode(self, codes: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What codes (n, code bytes) stand for, float32 (n, dimension)."""
        decoded: NDArray[np.float32] = self._index.pq.decode(codes)
        return decoded

    # -- keep ----------------------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """All of it, for `from_bytes` in another process or later."""
        head, index = msgspec.msgpack.encode(self._head), faiss.serialize_index(self._index)
        return len(head).to_bytes(8, "little") + head + index.tobytes()

    @classmethod
    def from_bytes(cls, written: bytes) -> "Quantizer":
        """From bytes that `to_bytes` gave and a checksum covered."""
        end = 8 + int.from_bytes(written[:8], "little")
        index = faiss.deserialize_index(np.frombuffer(written, np.uint8, offset=end))
        made = cls(msgspec.msgpack.decode(written[8:end], type=_Head), index)
        made.identity = xxhash.xxh3_128_hexdigest(written)
        return made

    @cached_property
    def identity(self) -> str:
        """XXH3-128 of `to_bytes`, in hex: codes are of this quantizer when they name it, whatever its number."""
        return xxhash.xxh3_128_hexdigest(self.to_bytes())

    def empty_index(self) -> Any:
        """A FAISS IndexIVFPQFastScan of its own, without rows."""
        return faiss.clone_index(self._index)


def codes_of(dimension: int) -> int:
    """4-bit codes of a row: one for two dimensions; an odd dimension has no such split, so each gets its own."""
    return dimension // 2 if dimension % 2 == 0 else dimension


def code_bytes(dimension: int) -> int:
    """Bytes of a row's product code."""
    return -(-codes_of(dimension) // 2)


def _trained(rows: NDArray[np.float32], metric: Metric, lists: int, seed: int) -> Any:
    """An IndexIVFPQFastScan without rows."""
    dimension = rows.shape[1]
    quantizer = faiss.IndexFlat(dimension, faiss_metric(metric))
    index = faiss.IndexIVFPQFastScan(quantizer, dimension, lists, codes_of(dimension), 4, faiss_metric(metric))
    index.own_fields = True
    quantizer.this.disown()  # type: ignore[attr-defined]  # the index frees it
    index.pq.cp.niter, index.pq.cp.seed = pq.TRAINING_ITERATIONS, 1 + seed % 2**30
    index.pq.cp.min_points_per_centroid, index.pq.cp.max_points_per_centroid = 1, len(rows)
    quantizer.add(ivf.train(rows[: lists * TRAINING_ROWS_PER_CENTROID], lists, metric, seed))
    pq.start_apart(index.pq, rows[: pq.TRAINING_ROWS], seed)
    index.train(rows[: pq.TRAINING_ROWS])
    return index
