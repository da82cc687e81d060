"""Product codes by grids: laid out as FAISS lays them, and nearly as good as its own, whatever the rows are like."""

from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.rows import embeddings
from tidemark.ann.pq import Encoder, error, start_apart
from tidemark.ann.quantizer import codes_of

ROWS = 20_000


def trained(rows: NDArray[np.float32]) -> Any:
    found = faiss.ProductQuantizer(rows.shape[1], codes_of(rows.shape[1]), 4)
    found.cp.min_points_per_centroid = 1
    found.train(rows[:4_096])
    return found


def heavy_tails(rng: np.random.Generator) -> NDArray[np.float64]:
    return rng.standard_t(3, (ROWS, 16))


def lopsided(rng: np.random.Generator) -> NDArray[np.float64]:
    return rng.exponential(1, (ROWS, 16)) ** 2


def clusters(rng: np.random.Generator) -> NDArray[np.float64]:
    return rng.normal(size=(5, 16))[rng.integers(0, 5, ROWS)] + rng.normal(scale=1e-3, size=(ROWS, 16))


def far_from_the_origin(rng: np.random.Generator) -> NDArray[np.float64]:
    return 1e4 + rng.normal(size=(ROWS, 16))


@pytest.mark.parametrize("made", [heavy_tails, lopsided, clusters, far_from_the_origin])
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e15])
def test_codes_are_nearly_as_good_as_faiss_s(made: Any, scale: float) -> None:
    rows = (scale * made(np.random.default_rng(0))).astype(np.float32)
    quantizer = trained(rows)
    ours, theirs = Encoder.for_rows_like(quantizer, rows).encode(rows), quantizer.compute_codes(rows)
    assert error(quantizer, rows, ours) <= 1.03 * error(quantizer, rows, theirs)


def test_centroids_that_start_apart_are_better_where_many_rows_are_equal() -> None:
    rng = np.random.default_rng(0)
    rows = (rng.exponential(1, (ROWS, 32)) * (rng.random((ROWS, 32)) < 0.3)).astype(np.float32)
    anyhow, apart = (faiss.ProductQuantizer(32, 16, 4) for _ in range(2))
    start_apart(apart, rows, seed=0)
    for quantizer in (anyhow, apart):
        quantizer.cp.niter = 8
        quantizer.train(rows[:4_096])
    errors = [error(quantizer, rows, quantizer.compute_codes(rows)) for quantizer in (apart, anyhow)]
    assert errors[0] <= 0.9 * errors[1]


@pytest.mark.parametrize("dimension", [1, 2, 3, 6, 17, 128])
def test_codes_lie_as_faiss_lays_them(dimension: int) -> None:
    rows = embeddings(5_000, dimension, rank=min(8, dimension))
    quantizer = trained(rows)
    encoder = Encoder.for_rows_like(quantizer, rows)
    ours, theirs = encoder.encode(rows), quantizer.compute_codes(rows)
    assert encoder.grid is not None
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    assert ((ours & 15) == (theirs & 15)).mean() > 0.9 and ((ours >> 4) == (theirs >> 4)).mean() > 0.9


def test_equal_rows_have_codes_without_error() -> None:
    rows = np.full((5_000, 4), 7, np.float32)
    quantizer = trained(rows)
    assert error(quantizer, rows, Encoder.for_rows_like(quantizer, rows).encode(rows)) < 1e-6


def test_rows_far_beyond_the_codebooks_get_codes_at_the_border() -> None:
    quantizer = trained(embeddings(5_000, 8))
    far = np.array([[1e18] * 8, [-1e18] * 8], np.float32)
    codes = Encoder.for_rows_like(quantizer, embeddings(5_000, 8)).encode(far)
    assert error(quantizer, far, codes) == pytest.approx(error(quantizer, far, quantizer.compute_codes(far)), rel=1e-3)
