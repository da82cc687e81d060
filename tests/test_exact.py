"""Exact search: a killed row (first component NaN) is never answered, whichever path FAISS takes."""

import numpy as np
import pytest

from tidemark.ann.exact import exact_search, public_distance
from tidemark.collection import Metric


def expected_distances(rows: np.ndarray, queries: np.ndarray, metric: Metric) -> np.ndarray:  # type: ignore[type-arg]
    if metric == "l2":
        return ((queries[:, None].astype(np.float64) - rows[None]) ** 2).sum(axis=2)  # type: ignore[no-any-return]
    return queries.astype(np.float64) @ rows.T.astype(np.float64)


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("queries_count", [1, 3, 50])
@pytest.mark.parametrize("dimension", [1, 2, 8, 16, 33, 128])
def test_a_killed_row_is_never_answered(metric: Metric, queries_count: int, dimension: int) -> None:
    rng = np.random.default_rng(dimension)
    for count in (1, 5, 64, 1_500):
        rows = rng.normal(size=(count, dimension)).astype(np.float32)
        queries = rng.normal(size=(queries_count, dimension)).astype(np.float32)
        dead = rng.random(count) < 0.5
        rows[dead, 0] = np.nan
        live = np.flatnonzero(~dead)
        exact = np.sort(expected_distances(rows[live], queries, metric), axis=1)
        for k in (1, 10, 150, 2_000):
            distances, labels = exact_search(rows, queries, k, metric)
            assert distances.shape == labels.shape == (queries_count, min(k, count))
            answered = min(k, len(live))
            assert (labels[:, :answered] >= 0).all()
            assert (labels[:, answered:] == -1).all()
            assert not dead[labels[labels >= 0]].any()
            best = exact[:, :answered] if metric == "l2" else exact[:, ::-1][:, :answered]
            assert distances[:, :answered] == pytest.approx(best, abs=2e-3)


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_nothing_is_answered_when_all_rows_are_dead(metric: Metric) -> None:
    rows = np.full((100, 4), np.nan, np.float32)
    for queries_count in (1, 50):
        _, labels = exact_search(rows, np.ones((queries_count, 4), np.float32), 10, metric)
        assert (labels == -1).all()


def test_a_smaller_public_distance_is_nearer_under_every_metric() -> None:
    dot = np.array([1.0, 0.5, -1.0], np.float32)
    assert public_distance(dot, "cosine").tolist() == [0.0, 0.5, 2.0]
    assert public_distance(dot, "ip").tolist() == [-1.0, -0.5, 1.0]
    assert public_distance(np.array([0.0, 4.0], np.float32), "l2").tolist() == [0.0, 4.0]
