"""Graphs: they reach the recall asked for, answer no dead row however many there are, and take any shape of rows."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.rows import embeddings, unit
from tests.test_quantizer import odd_rows
from tidemark.ann import exact
from tidemark.ann.graph import NO_ROWS, ROWS_LEAST, Graph
from tidemark.collection import IndexParameters, Metric
from tidemark.errors import CorruptCheckpoint
from tidemark.live_rows import LiveRows

TARGET = 0.95
PARAMETERS = IndexParameters(kind="hnsw", recall_target=TARGET)


def found(
    graph: Graph,
    rows: NDArray[np.float32],
    queries: NDArray[np.float32],
    k: int,
    alive: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    alive = np.ones(len(rows), np.bool_) if alive is None else alive
    live = LiveRows(np.packbits(alive, bitorder="little"), len(rows))
    distances, numbers = graph.search(rows, queries, k, live)
    assert alive[numbers[numbers >= 0]].all()
    assert all(len(set(line[line >= 0].tolist())) == np.count_nonzero(line >= 0) for line in numbers)
    order = np.argsort(distances if graph.metric == "l2" else -distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(numbers, order, 1)


def recall(
    graph: Graph, rows: NDArray[np.float32], queries: NDArray[np.float32], k: int, alive: NDArray[np.bool_]
) -> float:
    numbers = np.flatnonzero(alive)
    truth = numbers[exact.exact_search(rows[alive], queries, k, graph.metric)[1]]
    answers = found(graph, rows, queries, k, alive)
    return float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(answers, truth, strict=True)]))


@pytest.mark.parametrize(("dimension", "metric"), [(1, "l2"), (32, "l2"), (33, "cosine"), (24, "ip")])
def test_the_recall_target_is_reached_on_queries_not_seen(dimension: int, metric: Metric) -> None:
    vectors = embeddings(8_200, dimension)
    vectors = unit(vectors) if metric == "cosine" else vectors
    rows, queries = vectors[:8_000], np.ascontiguousarray(vectors[8_000:])
    graph, alive = Graph.build(rows, metric, PARAMETERS, seed=1), np.ones(8_000, np.bool_)
    assert graph.parameters.recall >= TARGET
    for k, allowed in ((1, 0.05), (10, 0.03), (100, 0.05)):
        assert recall(graph, rows, queries, k, alive) >= TARGET - allowed


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999, 1.0])
def test_however_many_rows_are_dead_those_alive_are_found_and_no_others(share: float) -> None:
    rows = embeddings(6_000, 16)
    rows[50:60] *= np.float32(1e6)
    graph, rng = Graph.build(rows, "l2", PARAMETERS, seed=1), np.random.default_rng(0)
    assert graph.outliers.tolist() == list(range(50, 60))
    alive = rng.random(6_000) >= share
    around = exact.exact_search(rows, rows[:1], int(share * 1_000), "l2")[1][0]
    alive[around] = False
    for k in (1, 10, 100):
        answers = found(graph, rows, rows[:20], k, alive)
        assert (np.count_nonzero(answers >= 0, axis=1) == min(k, np.count_nonzero(alive))).all()
        if k <= np.count_nonzero(alive):
            assert recall(graph, rows, rows[:20], k, alive) >= TARGET


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize(("vectors", "copies"), [(1, 300), (10, 64), (10, 300)])
def test_many_rows_of_one_vector_do_not_hide_the_others(vectors: int, copies: int, zero: bool) -> None:
    rng = np.random.default_rng(0)
    repeated = rng.standard_normal((vectors, 7)).astype(np.float32) * np.float32(not zero or vectors > 1)
    rows = np.concatenate([rng.standard_normal((3_000, 7)), np.repeat(repeated, copies, axis=0)]).astype(np.float32)
    rows = np.ascontiguousarray(rows[rng.permutation(len(rows))])
    graph, alive = Graph.build(rows, "l2", PARAMETERS, seed=1), np.ones(len(rows), np.bool_)
    queries = np.ascontiguousarray(rng.standard_normal((200, 7)), np.float32)
    truth, answers = exact.exact_search(rows, queries, 10, "l2")[1], found(graph, rows, queries, 10)
    far = np.linalg.norm(rows[truth[:, -1]] - queries, axis=1) * 1.00001
    assert np.mean(np.linalg.norm(rows[answers] - queries[:, None], axis=2) <= far[:, None]) >= TARGET
    at_copies = found(graph, rows, repeated, copies, alive)
    assert (rows[at_copies] == repeated[:, None]).all()


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("name", odd_rows())
def test_any_rows_can_be_built_and_searched(metric: Metric, name: str) -> None:
    rows = odd_rows()[name].astype(np.float32)
    graph = Graph.build(rows, metric, PARAMETERS, seed=1)
    answers = found(graph, rows, np.ascontiguousarray(rows[:20]), 10)
    assert all(len(set(line)) == 10 and min(line) >= 0 for line in answers.tolist())


def test_a_file_of_another_type_or_shape_is_refused(tmp_path: Path) -> None:
    rows, path = embeddings(500, 8), tmp_path / "index.faiss"
    built = Graph.build(rows, "l2", PARAMETERS, seed=1)
    with path.open("wb") as file:
        built.write(file)
    opened = Graph.open_mapped(path, 500, 8, built.parameters.effort)
    assert found(opened, rows, rows[:9], 5).tolist() == found(built, rows, rows[:9], 5).tolist()
    for count, dimension, outliers in ((501, 8, NO_ROWS), (500, 9, NO_ROWS), (500, 8, np.array([3]))):
        with pytest.raises(CorruptCheckpoint, match="the manifest says hnsw"):
            Graph.open_mapped(path, count, dimension, built.parameters.effort, outliers)


@pytest.mark.parametrize("count", [ROWS_LEAST, 150])
def test_a_small_segment_can_be_built(count: int) -> None:
    rows = embeddings(count, 6)
    graph = Graph.build(rows, "l2", PARAMETERS, seed=1)
    assert 0.5 < graph.parameters.recall <= 1.0
    assert (np.count_nonzero(found(graph, rows, rows[:3], count + 5) >= 0, axis=1) == count).all()
