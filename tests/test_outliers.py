"""Rows far beyond the others: they spoil no index and no codes, and are found themselves."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.messages import delete, upsert
from tests.rows import embeddings, segment_of, unit
from tidemark import layout, searcher
from tidemark.ann import index
from tidemark.ann.exact import exact_search
from tidemark.ann.outliers import Bulk
from tidemark.collection import Collection, IndexKind, IndexParameters, Metric
from tidemark.mirror import ViewMirror
from tidemark.record import decode
from tidemark.segment import Segment
from tidemark.view import View

DIMENSION, ROWS, TARGET, K = 13, 9_000, 0.97, 10
KINDS: tuple[IndexKind, ...] = ("ivfpq", "hnsw")


def normal(count: int, dimension: int = DIMENSION, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)


def with_outliers(count: int, scale: float) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Rows of which so many are `scale` times as long as they were and one nearly zero, and the long ones' numbers."""
    rows = normal(ROWS)
    long = np.sort(np.random.default_rng(5).choice(np.arange(1, ROWS), count, replace=False))
    rows[long] *= np.float32(scale)
    rows[0] *= np.float32(1e-30)
    return rows, long


def recall(segment: Segment, queries: NDArray[np.float32], alive: NDArray[np.bool_] | None = None) -> float:
    rows = segment.vectors if alive is None else np.where(alive[:, None], segment.vectors, np.float32(np.nan))
    found = segment.search(queries, K, 1.0, False)[1]
    truth = exact_search(np.ascontiguousarray(rows), queries, K, segment.metric)[1]
    return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(found.tolist(), truth.tolist(), strict=True)]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize(("count", "scale"), [(1, 1e15), (3, 1e3), (90, 20), (90, 1e15)])
def test_a_few_rows_far_beyond_the_others_cost_no_recall(
    tmp_path: Path, kind: IndexKind, metric: Metric, count: int, scale: float
) -> None:
    rows, long = with_outliers(count, scale)
    segment = segment_of(tmp_path / "s", rows, metric, IndexParameters(kind=kind, recall_target=TARGET))
    assert segment.entry.recall >= TARGET
    assert segment.entry.effort <= (100 if kind == "ivfpq" else 60)  # with the outliers in them 206 of 225, and 765
    assert segment.opened_index is not None
    assert segment.opened_index.outliers.tolist() == long.tolist()
    assert recall(segment, normal(300, seed=9)) >= TARGET - 0.02
    assert (segment.search(rows[long], 1, 1.0, False)[0] == exact_search(rows, rows[long], 1, metric)[0]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_odd_directions_among_rows_of_one_direction_cost_no_recall(tmp_path: Path, kind: IndexKind) -> None:
    rows = normal(ROWS) * np.float32(0.2) + np.float32(1)
    rows[100:190] = normal(90, seed=3)
    queries = unit(normal(300, seed=9) * np.float32(0.2) + np.float32(1))
    segment = segment_of(tmp_path / "s", unit(rows), "cosine", IndexParameters(kind=kind, recall_target=TARGET))
    assert segment.entry.recall >= TARGET
    assert recall(segment, queries) >= TARGET - 0.03
    assert segment.opened_index is not None
    far = segment.opened_index.outliers
    assert len(far) > 45
    assert (segment.search(segment.vectors[far], 1, 1.0, False)[1][:, 0] == far).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_dead_outliers_are_not_answered_and_those_left_still_are(
    tmp_path: Path, kind: IndexKind, metric: Metric
) -> None:
    rows, long = with_outliers(90, 1e6)
    segment = segment_of(tmp_path / "s", rows, metric, IndexParameters(kind=kind, recall_target=TARGET))
    queries = normal(300, seed=9)
    segment.kill(np.concatenate([long[::2], np.setdiff1d(np.arange(0, ROWS, 3), long)]))
    alive = ~segment.dead_mask()
    assert recall(segment, queries, alive) >= TARGET - 0.03
    segment.kill(long[1::2])
    alive = ~segment.dead_mask()
    assert not np.isin(segment.search(queries, K, 1.0, False)[1], np.flatnonzero(~alive)).any()
    # Calibrated on the rows that the index holds: the recall does not fall when the outliers are gone.
    assert recall(segment, queries, alive) >= TARGET - 0.03


@pytest.mark.parametrize("kind", KINDS)
def test_ordinary_rows_are_all_in_the_index(tmp_path: Path, kind: IndexKind) -> None:
    rows = np.random.default_rng(0).standard_normal((2_000, 8)).astype(np.float32)
    for number, vectors in enumerate((rows, embeddings(2_000, 8), 1e4 + rows, rows * np.float32(1e-15))):
        segment = segment_of(tmp_path / f"{number}", vectors, "l2", IndexParameters(kind=kind, ann_rows_min=0))
        assert layout.OUTLIERS not in segment.entry.files


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


@pytest.mark.parametrize("length", [1e-25, 1e-6, 1e6, 1e16])
def test_the_length_of_a_query_changes_nothing_under_inner_product(length: float) -> None:
    rows, queries = normal(ROWS), normal(200, seed=9)
    built, parameters = index.build(rows, "ip", IndexParameters(recall_target=TARGET), seed=1)
    lists = built.lists_within(queries, parameters.effort, parameters.reach)
    scaled = built.lists_within(queries * np.float32(length), parameters.effort, parameters.reach)
    assert [len(set(a) & set(b)) >= 0.95 * len(set(a)) for a, b in zip(lists.tolist(), scaled.tolist(), strict=True)]
    assert (scaled >= 0).sum() == pytest.approx((lists >= 0).sum(), rel=0.01)


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_rows_in_memory_keep_their_codes_beside_outliers(metric: Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemark.view.ENCODED_NUMBERS", 1_024 * DIMENSION)
    collection = Collection(name="c", topic="t", dimension=DIMENSION, metric=metric)
    rows, long = with_outliers(90, 1e6)
    view = View(collection, 0, tail_rows=16_384, shared=True)
    mirror = ViewMirror(collection, view.place)
    for first in range(0, ROWS, 3_000):
        messages = [upsert(row, b"%d" % row, rows[row]) for row in range(first, first + 3_000)]
        view.apply(decode({0: messages}, collection)[0])
        if work := view.codes_wanted():
            work()
    assert len(view.searcher.tails) == 1
    assert view.searcher.scan_cost == pytest.approx(index.CODES_SCAN_COST * ROWS)
    assert _recall_of(mirror, rows) >= 0.93
    dead = [*long[::2].tolist(), *range(0, ROWS, 7)]
    view.apply(decode({0: [delete(ROWS + n, b"%d" % row) for n, row in enumerate(dict.fromkeys(dead))]}, collection)[0])
    assert _recall_of(mirror, rows) >= 0.93
    view.follow([], 4_000, -1, 0)
    assert _recall_of(mirror, rows) >= 0.93


def _recall_of(view: ViewMirror, rows: NDArray[np.float32]) -> float:
    queries = np.concatenate([normal(200, seed=9), rows[-20:]])
    found, exact = (searcher.search([view], queries, K, exact=exact).hits for exact in (False, True))
    same = sum(len({hit.id for hit in a} & {hit.id for hit in b}) for a, b in zip(found, exact, strict=True))
    return same / (K * len(queries))
