"""ANN indexes: all kinds reach the recall asked for, answer no cleared bit, and take any shape of rows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.rows import embeddings, segment_of, unit
from tidemark.ann import index
from tidemark.ann.exact import exact_search
from tidemark.collection import IndexKind, IndexParameters, Metric
from tidemark.errors import CorruptCheckpoint

KINDS: tuple[IndexKind, ...] = ("ivfpq", "hnsw")
TARGET = 0.95


def parameters(kind: IndexKind) -> IndexParameters:
    return IndexParameters(kind=kind, recall_target=TARGET)


def recall(
    built: tuple[index.Index, index.SearchParameters],
    rows: NDArray[np.float32],
    queries: NDArray[np.float32],
    k: int,
    metric: Metric,
) -> float:
    truth = exact_search(rows, queries, k, metric)[1]
    found = index.search(built[0], rows, queries, k, built[1])[1]
    return float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(found, truth, strict=True)]))


@pytest.mark.parametrize(
    ("kind", "dimension", "metric"),
    [
        (kind, dimension, metric)
        for kind in KINDS
        for dimension, metric in ((1, "l2"), (32, "l2"), (33, "cosine"), (24, "ip"))
    ],
)
def test_the_recall_target_is_reached_on_queries_not_seen(kind: IndexKind, dimension: int, metric: Metric) -> None:
    vectors = embeddings(8_200, dimension)
    if metric == "cosine":
        vectors = unit(vectors)
    rows, queries = vectors[:8_000], np.ascontiguousarray(vectors[8_000:])
    built = index.build(rows, metric, parameters(kind), seed=1)
    assert built[1].recall >= TARGET
    assert recall(built, rows, queries, 10, metric) >= TARGET - 0.03
    assert recall(built, rows, queries, 1, metric) >= TARGET - 0.05
    assert recall(built, rows, queries, 100, metric) >= TARGET - 0.05


@pytest.mark.parametrize("offset", [1e3, 1e4])
def test_the_recall_target_is_reached_far_from_the_origin(offset: float) -> None:
    vectors = (offset + np.random.default_rng(0).normal(size=(8_200, 16))).astype(np.float32)
    rows, queries = vectors[:8_000], np.ascontiguousarray(vectors[8_000:])
    built = index.build(rows, "l2", parameters("ivfpq"), seed=1)
    assert built[1].recall >= TARGET
    assert recall(built, rows, queries, 10, "l2") >= TARGET - 0.03


@pytest.mark.parametrize("kind", KINDS)
def test_rows_in_sorted_order_are_found_as_well(kind: IndexKind) -> None:
    vectors = embeddings(5_000, 16)
    vectors = np.ascontiguousarray(vectors[np.argsort(vectors[:, 0])])
    built = index.build(vectors, "l2", parameters(kind), seed=1)
    assert recall(built, vectors, vectors[::50], 10, "l2") >= TARGET - 0.03


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_all_the_same_are_answered_and_count_as_found(kind: IndexKind) -> None:
    rows = np.ones((3_000, 8), np.float32)
    built, search = index.build(rows, "l2", parameters(kind), seed=1)
    distances, labels = index.search(built, rows, rows[:2], 10, search)
    assert search.recall == 1.0
    assert (distances == 0).all()
    assert all(len(set(line)) == 10 and min(line) >= 0 for line in labels.tolist())


def _odd_rows() -> dict[str, NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    return {
        "zeros": np.zeros((3_000, 8)),
        "equal but for a few": np.concatenate([np.ones((2_990, 3)), rng.normal(size=(10, 3))]),
        "three numbers": rng.integers(0, 3, (5_000, 1)).astype(np.float64),
        "one dimension": rng.normal(size=(5_000, 1)),
        "bits": rng.integers(0, 2, (4_000, 16)).astype(np.float64),
        "longest": 3e17 * rng.normal(size=(3_000, 4)),
        "shortest": 1e-38 * rng.normal(size=(3_000, 4)),
        "of all lengths": 10.0 ** rng.uniform(-30, 17, (3_000, 1)) * rng.normal(size=(3_000, 4)),
        "half far out": np.concatenate([rng.normal(size=(1_500, 4)), 1e15 * rng.normal(size=(1_500, 4))]),
        "wide": rng.normal(size=(index.ANN_ROWS_LEAST, 4_096)),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("name", _odd_rows())
def test_any_rows_can_be_built_and_searched(tmp_path: Path, kind: IndexKind, metric: Metric, name: str) -> None:
    rows = _odd_rows()[name].astype(np.float32)
    segment = segment_of(tmp_path / "s", rows, metric, IndexParameters(kind=kind, ann_rows_min=0))
    distances, labels = segment.search(rows[:20], 10, 1.0, False)
    assert all(len(set(line)) == 10 and min(line) >= 0 for line in labels.tolist())
    assert np.isfinite(distances).all()
    # Said by the calibration, or as good.
    worst = np.sort(exact_search(rows, rows[:20], 10, metric)[0], axis=1)[:, -1 if metric == "l2" else 0][:, None]
    near = distances <= worst * (1 + 1e-5) if metric == "l2" else distances >= worst - 1e-5 * np.abs(worst)
    assert near.mean() >= segment.entry.recall - 0.15
    assert segment.entry.recall >= 0.97 or name in ("of all lengths", "wide")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [index.ANN_ROWS_LEAST, 150, 700])
@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_a_small_segment_can_be_built(kind: IndexKind, count: int, metric: Metric) -> None:
    rows = embeddings(count, 6)
    built, search = index.build(rows, metric, parameters(kind), seed=1)
    assert 0.5 < search.recall <= 1.0
    _, labels = index.search(built, rows, rows[:3], count + 5, search)
    assert labels.shape == (3, count + 5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_a_cleared_bit_is_never_answered(kind: IndexKind, metric: Metric) -> None:
    rows = embeddings(3_001, 16)
    built, search = index.build(rows, metric, parameters(kind), seed=1)
    rng = np.random.default_rng(0)
    for share in (0.01, 0.5, 0.999, 1.0):
        dead = rng.random(len(rows)) < share
        live = np.packbits(~dead, bitorder="little")
        for k in (1, 10, 500):
            _, labels = index.search(built, rows, rows[:20], k, search, index.Alive(live))
            assert not dead[labels[labels >= 0]].any()
    live[:] = 0xFF
    assert index.search(built, rows, rows[:1], 1, search, index.Alive(live))[1][0, 0] >= 0


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_nearest_first_with_exact_distances(kind: IndexKind) -> None:
    rows = embeddings(3_000, 16)
    built, search = index.build(rows, "l2", parameters(kind), seed=1)
    distances, labels = index.search(built, rows, rows[:5], 20, search, effort=2.0)
    assert (np.diff(distances, axis=1) >= 0).all()
    exact = ((rows[labels] - rows[:5, None]) ** 2).sum(axis=2)
    assert distances == pytest.approx(exact, abs=1e-4)


def test_few_rows_stay_flat() -> None:
    asked = IndexParameters(kind="hnsw", ann_rows_min=100)
    assert [index.kind_for(rows, asked) for rows in (1, 99, 100)] == ["flat", "flat", "hnsw"]
    assert index.kind_for(index.ANN_ROWS_LEAST - 1, IndexParameters(kind="ivfpq", ann_rows_min=0)) == "flat"
    assert index.kind_for(10**9, IndexParameters(kind="flat")) == "flat"


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_file_of_another_type_or_shape_is_refused(tmp_path: Path, kind: IndexKind) -> None:
    rows = embeddings(500, 8)
    built, search = index.build(rows, "l2", parameters(kind), seed=1)
    path = tmp_path / "index.faiss"
    with path.open("wb") as file:
        index.write(built, file)
    opened = index.open_mapped(path, kind, 500, 8)
    found = index.search(opened, rows, rows[:9], 5, search)
    assert found[1].tolist() == index.search(built, rows, rows[:9], 5, search)[1].tolist()
    other: IndexKind = "ivfpq" if kind == "hnsw" else "hnsw"
    for wrong in ((other, 500, 8), (kind, 501, 8), (kind, 500, 9)):
        with pytest.raises(CorruptCheckpoint, match="the manifest says"):
            index.open_mapped(path, *wrong)


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_a_query_unlike_all_rows_probes_more_lists_and_is_answered_better_for_it(metric: Metric) -> None:
    rows = embeddings(20_000, 32)
    if metric == "ip":
        rows = unit(rows)
    built, search = index.build(rows, metric, parameters("ivfpq"), seed=1)
    strange = np.ascontiguousarray(embeddings(200, 32, seed=7)[:, ::-1])
    amid, far = (
        np.count_nonzero(built.lists_within(queries, search.effort, search.reach) >= 0, axis=1)
        for queries in (np.ascontiguousarray(rows[::100]), strange)
    )
    assert far.mean() > 1.5 * amid.mean()
    assert max(*far, *amid) <= index.LISTS_MOST * search.effort
    assert min(*far, *amid) >= index.LISTS_LEAST * search.effort
    by_lists = replace(search, k_factor=64)  # not what codes leave out
    as_many_as_a_row = replace(by_lists, reach=0.0)
    better, worse = (recall((built, each), rows, strange, 10, metric) for each in (by_lists, as_many_as_a_row))
    assert better > worse + 0.04


def test_few_lists_and_equal_centroids_are_probed_within_the_bounds() -> None:
    for rows in (embeddings(170, 6), np.repeat(embeddings(4, 6), 1_000, axis=0)):
        built, _ = index.build(rows, "l2", parameters("ivfpq"), seed=1)
        for effort, reach in ((1, 0.001), (2, 0.5), (1_000, 0.1)):
            probed = np.count_nonzero(built.lists_within(rows[:9], effort, reach) >= 0, axis=1)
            assert (probed >= min(built.lists, index.LISTS_LEAST * effort)).all()
            assert (probed <= min(built.lists, index.LISTS_MOST * effort)).all()
