"""Rows far beyond the others: they spoil no index and no codes, and are found themselves."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.rows import embeddings, unit
from tests.searching import KINDS, Kind, Searched, searched
from tidemark.ann import exact
from tidemark.ann.exact import exact_search
from tidemark.ann.outliers import Bulk
from tidemark.collection import Metric

DIMENSION, ROWS, TARGET, K = 13, 9_000, 0.97, 10


def normal(count: int, dimension: int = DIMENSION, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)


def with_outliers(count: int, scale: float) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Rows of which so many are `scale` times as long as they were and one nearly zero, and the long ones' numbers."""
    rows = normal(ROWS)
    long = np.sort(np.random.default_rng(5).choice(np.arange(1, ROWS), count, replace=False))
    rows[long] *= np.float32(scale)
    rows[0] *= np.float32(1e-30)
    return rows, long


def recall(found: Searched, rows: NDArray[np.float32], metric: Metric, alive: NDArray[np.bool_]) -> float:
    queries, numbers = normal(300, seed=9), np.flatnonzero(alive)
    if metric == "cosine":
        queries = unit(queries * np.float32(0.2) + np.float32(1))
    truth = numbers[exact_search(rows[alive], queries, K, metric)[1]].tolist()
    answers = found.nearest(queries, K, alive).tolist()
    return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(answers, truth, strict=True)]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize(("count", "scale"), [(1, 1e15), (3, 1e3), (90, 20), (90, 1e15)])
def test_a_few_rows_far_beyond_the_others_cost_no_recall(kind: Kind, metric: Metric, count: int, scale: float) -> None:
    (rows, long), alive = with_outliers(count, scale), np.ones(ROWS, np.bool_)
    found = searched(kind, rows, metric, TARGET)
    assert found.parameters.recall >= TARGET
    # With the outliers in them 206 of 225, and 765.
    assert found.parameters.effort <= (100 if kind == "lists" else 60)
    assert found.outliers == long.tolist()
    assert recall(found, rows, metric, alive) >= TARGET - 0.02
    best = exact_search(rows, rows[long], 1, metric)[0]
    assert (exact.rank(rows, rows[long], found.nearest(rows[long], 1, alive), metric) == best).all()


@pytest.mark.parametrize("kind", KINDS)
def test_odd_directions_among_rows_of_one_direction_cost_no_recall(kind: Kind) -> None:
    rows = normal(ROWS) * np.float32(0.2) + np.float32(1)
    rows[100:190] = normal(90, seed=3)
    rows, alive = unit(rows), np.ones(ROWS, np.bool_)
    found = searched(kind, rows, "cosine", TARGET)
    assert found.parameters.recall >= TARGET
    assert recall(found, rows, "cosine", alive) >= TARGET - 0.03
    assert len(found.outliers) > 45
    assert found.nearest(rows[found.outliers], 1, alive)[:, 0].tolist() == found.outliers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_dead_outliers_are_not_answered_and_those_left_still_are(kind: Kind, metric: Metric) -> None:
    (rows, long), alive = with_outliers(90, 1e6), np.ones(ROWS, np.bool_)
    found = searched(kind, rows, metric, TARGET)
    alive[np.concatenate([long[::2], np.setdiff1d(np.arange(0, ROWS, 3), long)])] = False
    assert recall(found, rows, metric, alive) >= TARGET - 0.03
    alive[long[1::2]] = False
    assert alive[found.nearest(normal(300, seed=9), K, alive)].all()
    # Calibrated on the rows that have codes or links: the recall does not fall when the outliers are gone.
    assert recall(found, rows, metric, alive) >= TARGET - 0.03


@pytest.mark.parametrize("kind", KINDS)
def test_ordinary_rows_are_no_outliers(kind: Kind) -> None:
    rows = np.random.default_rng(0).standard_normal((2_000, 8)).astype(np.float32)
    for vectors in (rows, embeddings(2_000, 8), 1e4 + rows, rows * np.float32(1e-15)):
        assert not searched(kind, vectors, "l2", TARGET).outliers


def test_outliers_are_few_whatever_the_rows_are_like() -> None:
    rng = np.random.default_rng(0)
    heavy, scales = rng.standard_cauchy((20_000, 4)), 10.0 ** rng.uniform(-15, 15, (20_000, 1)) * normal(20_000, 4)
    mostly_equal = np.where(rng.random((20_000, 1)) < 0.5, 0, normal(20_000, 4))
    for rows in (heavy, scales, mostly_equal, np.ones((20_000, 4)), normal(64)):
        found = Bulk.of(rows.astype(np.float32), 0).outliers(rows.astype(np.float32))
        assert len(found) <= max(16, 0.03 * len(rows))


def test_rows_unlike_many_equal_ones_are_outliers() -> None:
    rows = np.ones((6_000, 4), np.float32)
    rows[:10] += normal(10, 4)
    assert Bulk.of(rows, 0).outliers(rows).tolist() == list(range(10))
