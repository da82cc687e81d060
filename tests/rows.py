"""Rows and segments for tests: vectors that look like embeddings, and how they are written."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tidemark.ann.quantizer import Quantizer
from tidemark.collection import IndexParameters, Metric
from tidemark.quantizers import Versioned
from tidemark.record import hash_ids, row_digests
from tidemark.rows import Rows
from tidemark.segment import Segment
from tidemark.segment_files import write_segment

FLAT = IndexParameters(kind="flat")


def embeddings(count: int, dimension: int, seed: int = 0, rank: int = 8, clusters: int = 20) -> NDArray[np.float32]:
    """A mixture of low-rank Gaussians: few directions vary locally, as in real embeddings."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(clusters, dimension))
    bases = 0.3 * rng.normal(size=(clusters, rank, dimension))
    which = rng.integers(clusters, size=count)
    within = np.einsum("nr,nrd->nd", rng.normal(size=(count, rank)), bases[which])
    noise = 0.02 * rng.normal(size=(count, dimension))
    return (centres[which] + within + noise).astype(np.float32)


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.ascontiguousarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def rows_of(vectors: NDArray[np.float32], first: int = 0) -> Rows:
    """Rows with ids `id-<number>`, one offset each; every third has no metadata."""
    numbers = range(first, first + len(vectors))
    ids = [b"id-%d" % number for number in numbers]
    offsets, hashes = np.arange(first, first + len(vectors), dtype=np.int64), hash_ids(ids)
    return Rows(
        vectors=vectors,
        ids=pa.array(ids, pa.large_binary()),
        offsets=offsets,
        timestamps=offsets + 1_000,
        metadata=pa.array([b'{"n":%d}' % n if n % 3 else None for n in numbers], pa.large_binary()),
        digests=row_digests(hashes, offsets, [vector.tobytes() for vector in vectors]),
        hashes=hashes,
    )


def segment_of(
    directory: Path, vectors: NDArray[np.float32], metric: Metric = "l2", parameters: IndexParameters = FLAT
) -> Segment:
    entry = write_segment(directory, rows_of(vectors), metric, parameters, seed=1)
    return Segment(directory, entry, vectors.shape[1], metric)


def quantizer_of(dimension: int, metric: Metric = "l2", version: int = 1) -> Versioned:
    """One for rows like `embeddings`; each version is another one."""
    sample = embeddings(600, dimension)
    return Versioned(version, Quantizer.train(sample, metric, len(sample), 0.95, seed=version))
