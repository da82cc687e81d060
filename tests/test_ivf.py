"""Centroids of inverted lists: as many as asked for, and nearly as good as those of one k-means of FAISS."""

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.rows import embeddings
from tidemark.ann import ivf
from tidemark.ann.exact import exact_search

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
