"""An HNSW index says of its recall what queries see that are none of its rows."""

import faiss
import numpy as np
import pytest

from tests.rows import embeddings
from tests.searching import searched
from tidemark.ann import hnsw
from tidemark.ann.exact import exact_search
from tidemark.ann.graph import ROWS_LEAST
from tidemark.collection import Metric

ROWS, DIMENSION, TARGET, K = 10_000, 13, 0.95, 10


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("structure", [False, True])
def test_queries_that_are_no_rows_find_what_the_calibration_says(metric: Metric, structure: bool) -> None:
    vectors = np.random.default_rng(0).normal(size=(ROWS + 500, DIMENSION)).astype(np.float32)
    if structure:
        vectors = embeddings(ROWS + 500, DIMENSION)
    rows, queries = vectors[:ROWS], vectors[ROWS:]
    graph = searched("graph", rows, metric, TARGET)
    truth = exact_search(rows, queries, K, metric)[1].tolist()
    answers = graph.nearest(queries, K, np.ones(ROWS, np.bool_)).tolist()
    recall = sum(len(set(a) & set(b)) for a, b in zip(truth, answers, strict=True)) / (K * len(queries))
    assert recall == pytest.approx(graph.parameters.recall, abs=0.03)


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
    for rows in (np.ones((200, 4), np.float32), embeddings(ROWS_LEAST, 4)):
        graph = searched("graph", rows, "l2", TARGET)
        assert graph.parameters.recall > 0.5
        assert (graph.nearest(rows[:5], 10, np.ones(len(rows), np.bool_)) >= 0).all()
