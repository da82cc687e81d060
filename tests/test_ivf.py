"""Lists of an IVF index: as many centroids as asked for, nearly as good as FAISS's, and codes as FAISS lays them."""

from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.rows import embeddings, unit
from tidemark.ann import ivf
from tidemark.ann.exact import exact_search, faiss_metric, nearest_of_many
from tidemark.ann.index import codes_of
from tidemark.collection import Metric

LISTS = 300


def error(rows: NDArray[np.float32], centroids: NDArray[np.float32]) -> float:
    return float(exact_search(centroids, rows, 1, "l2")[0].mean())


def test_centroids_trained_in_groups_are_nearly_as_good_as_those_of_one_k_means() -> None:
    rows = embeddings(12_000, 16)
    grouped = ivf.train(rows, LISTS, "l2", seed=0)
    plain = faiss.Kmeans(16, LISTS, niter=8, seed=1, min_points_per_centroid=1)
    plain.train(rows)
    assert grouped.shape == (LISTS, 16)
    assert error(rows, grouped) <= 1.1 * error(rows, plain.centroids)


@pytest.mark.parametrize("rows", [np.ones((LISTS, 3)), np.repeat(np.eye(4), LISTS, axis=0), np.zeros((5_000, 2))])
def test_equal_rows_get_as_many_centroids_as_asked_for(rows: NDArray[np.float64]) -> None:
    centroids = ivf.train(rows.astype(np.float32), LISTS, "l2", seed=0)
    assert centroids.shape == (LISTS, rows.shape[1])
    assert np.isfinite(centroids).all()


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
def test_a_row_goes_to_the_nearest_centroid_or_to_one_almost_as_near(metric: Metric) -> None:
    rows = embeddings(12_000, 16) if metric == "l2" else unit(embeddings(12_000, 16))
    centroids = ivf.train(rows, LISTS, metric, seed=0)
    given = ivf.assign(rows, centroids, metric)
    best, nearest = exact_search(centroids, rows, 1, metric)
    assert (given == nearest[:, 0]).mean() > 0.8
    if metric == "l2":
        assert np.square(rows - centroids[given]).sum(axis=1).mean() <= 1.1 * best.mean()
    else:
        assert np.einsum("ij,ij->i", rows, centroids[given]).mean() >= 0.98 * best.mean()


@pytest.mark.parametrize("dimension", [1, 2, 3, 17, 32, 128])
@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_filled_lists_are_those_that_faiss_fills(dimension: int, metric: Metric) -> None:
    rows = embeddings(1_000, dimension, rank=min(8, dimension))
    quantizer = faiss.IndexFlat(dimension, faiss_metric(metric))
    theirs: Any = faiss.IndexIVFPQFastScan(quantizer, dimension, 7, codes_of(dimension), 4, faiss_metric(metric))
    theirs.train(rows)
    ours = faiss.clone_index(theirs)
    theirs.add(rows)
    ivf.fill(ours, rows, theirs.pq.compute_codes(rows), metric, np.empty(0, np.int64))
    assert ours.ntotal == theirs.ntotal
    assert (faiss.serialize_index(ours) == faiss.serialize_index(theirs)).all()


@pytest.mark.parametrize("offset", [1e2, 1e4])
def test_the_nearest_of_many_queries_are_found_far_from_the_origin_and_beside_outliers(offset: float) -> None:
    rows = (offset + np.random.default_rng(0).normal(size=(10_000, 12))).astype(np.float32)
    rows[:3] *= np.float32(1e12)
    queries = np.ascontiguousarray(rows[100:150])
    found = nearest_of_many(rows, queries, 10, "l2")
    expected = exact_search(rows, queries, 10, "l2")[1]
    # Among numbers of 10,000 float32 tells 0.001 apart.
    assert (np.sort(found, axis=1) == np.sort(expected, axis=1)).mean() > 0.98


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("count", [3, 4_096, 10_000])
def test_the_nearest_of_many_queries_are_those_of_an_exact_search(metric: Metric, count: int) -> None:
    rows = embeddings(count, 12)
    queries = embeddings(50, 12, seed=1)
    found = nearest_of_many(rows, queries, 10, metric)
    expected = exact_search(rows, queries, 10, metric)[1]
    assert found.shape == expected.shape
    assert (np.sort(found, axis=1) == np.sort(expected, axis=1)).mean() > 0.999
