"""An HNSW index says of its recall what queries see that are none of its rows."""

import faiss
import numpy as np
import pytest

from tests.rows import embeddings
from tidemark.ann import hnsw, index
from tidemark.ann.exact import exact_search
from tidemark.collection import IndexParameters, Metric

ROWS, DIMENSION, TARGET, K = 10_000, 13, 0.95, 10


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("structure", [False, True])
def test_queries_that_are_no_rows_find_what_the_calibration_says(metric: Metric, structure: bool) -> None:
    vectors = np.random.default_rng(0).normal(size=(ROWS + 500, DIMENSION)).astype(np.float32)
    if structure:
        vectors = embeddings(ROWS + 500, DIMENSION)
    rows, queries = vectors[:ROWS], vectors[ROWS:]
    built, found = index.build(rows, metric, IndexParameters(kind="hnsw", recall_target=TARGET), seed=1)
    truth = exact_search(rows, queries, K, metric)[1].tolist()
    answers = index.search(built, rows, queries, K, found)[1].tolist()
    recall = sum(len(set(a) & set(b)) for a, b in zip(truth, answers, strict=True)) / (K * len(queries))
    assert recall == pytest.approx(found.recall, abs=0.03)


def test_nodes_left_out_are_not_found_and_are_there_again_afterwards() -> None:
    rows = np.random.default_rng(0).normal(size=(3_000, 8)).astype(np.float32)
    graph = faiss.IndexHNSWFlat(8, 16)
    graph.add(rows)
    nodes = np.setdiff1d(np.arange(0, 3_000, 30), [graph.hnsw.entry_point])
    written = faiss.serialize_index(graph).tobytes()
    with hnsw.without(graph, nodes):
        answers = graph.search(rows, 20)[1]
        assert not np.isin(answers, nodes).any()
        assert (answers >= 0).all()
    assert faiss.serialize_index(graph).tobytes() == written
    assert (graph.search(rows[nodes], 1)[1][:, 0] == nodes).all()


def test_equal_rows_and_few_rows_can_be_left_out() -> None:
    for rows in (np.ones((200, 4), np.float32), embeddings(index.ANN_ROWS_LEAST, 4)):
        built, found = index.build(rows, "l2", IndexParameters(kind="hnsw", ann_rows_min=0), seed=1)
        assert found.recall > 0.5
        assert (index.search(built, rows, rows[:5], 10, found)[1] >= 0).all()
