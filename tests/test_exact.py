"""Exact distances: of all rows, of some by their numbers, of many queries at once; and what a distance means."""

import mmap

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.rows import embeddings
from tidemark.ann.exact import exact_search, exact_search_among, nearest_of_many, public_distance, rank
from tidemark.collection import Metric


def expected_distances(rows: NDArray[np.float32], queries: NDArray[np.float32], metric: Metric) -> NDArray[np.float64]:
    if metric == "l2":
        return np.square(queries[:, None].astype(np.float64) - rows[None]).sum(axis=2)
    return queries.astype(np.float64) @ rows.T.astype(np.float64)


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("queries_count", [1, 3, 50])
@pytest.mark.parametrize("dimension", [1, 2, 8, 33, 128])
def test_the_nearest_of_all_and_of_some_rows_are_found(metric: Metric, queries_count: int, dimension: int) -> None:
    rng = np.random.default_rng(dimension)
    for count in (1, 5, 1_500):
        rows = rng.normal(size=(count, dimension)).astype(np.float32)
        queries = rng.normal(size=(queries_count, dimension)).astype(np.float32)
        some = np.flatnonzero(rng.random(count) < 0.5)
        distances = expected_distances(rows, queries, metric)
        for numbers in (np.arange(count), some):
            best = np.sort(distances[:, numbers] * (1 if metric == "l2" else -1), axis=1)
            for k in (1, 10, 2_000):
                found, labels = exact_search_among(rows, numbers, queries, k, metric)
                assert found.shape == labels.shape == (queries_count, min(k, len(numbers)))
                assert np.isin(labels, numbers).all()
                assert np.abs(found) == pytest.approx(np.abs(best[:, : labels.shape[1]]), abs=2e-3)
        everything = exact_search(rows, queries, 10, metric)
        assert (everything[1] == exact_search_among(rows, np.arange(count), queries, 10, metric)[1]).all()


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("dimension", [1, 3, 128])
def test_rows_ranked_by_number_have_their_exact_distances_and_no_row_is_infinitely_far(
    metric: Metric, dimension: int
) -> None:
    rng = np.random.default_rng(0)
    rows, queries = (rng.normal(size=(count, dimension)).astype(np.float32) for count in (500, 7))
    numbers = rng.integers(-1, 500, (7, 40))
    found, expected = rank(rows, queries, numbers, metric), expected_distances(rows, queries, metric)
    for line, row_numbers in enumerate(numbers.tolist()):
        for at, number in enumerate(row_numbers):
            worst = np.inf if metric == "l2" else -np.inf
            assert found[line, at] == pytest.approx(worst if number < 0 else expected[line, number], abs=1e-3)
    assert rank(rows, queries, numbers[:, :0], metric).shape == (7, 0)


def test_rows_are_ranked_wherever_they_lie_in_a_reserved_range_of_addresses() -> None:
    memory = mmap.mmap(-1, 2**42, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)  # without a promise of memory
    vectors = np.frombuffer(memory, np.float32).reshape(-1, 64)
    numbers = np.array([[0, 7, len(vectors) - 1]])
    vectors[7] = 1
    vectors[-1] = 2
    assert rank(vectors, np.zeros((1, 64), np.float32), numbers, "l2").tolist() == [[0, 64, 256]]


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


def test_a_smaller_public_distance_is_nearer_under_every_metric() -> None:
    dot = np.array([1.0, 0.5, -1.0], np.float32)
    assert public_distance(dot, "cosine").tolist() == [0.0, 0.5, 2.0]
    assert public_distance(dot, "ip").tolist() == [-1.0, -0.5, 1.0]
    assert public_distance(np.array([0.0, 4.0], np.float32), "l2").tolist() == [0.0, 4.0]
