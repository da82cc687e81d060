"""Rows in lists or in a graph, and what a search of them finds, for tests of either."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tidemark.ann import exact
from tidemark.ann.graph import Graph
from tidemark.ann.lists import Lists
from tidemark.ann.open_lists import Alive, OpenLists
from tidemark.ann.parameters import SearchParameters
from tidemark.ann.quantizer import OUTLIER, Quantizer
from tidemark.collection import IndexParameters, Metric
from tidemark.live_rows import LiveRows

Kind = Literal["lists", "graph"]
KINDS: tuple[Kind, ...] = ("lists", "graph")


def filled(quantizer: Quantizer, rows: NDArray[np.float32], shared: bool = False) -> Lists:
    encoded = quantizer.encode(rows)
    inside = encoded.lists[encoded.lists != OUTLIER]
    made = Lists(quantizer, np.bincount(inside, minlength=quantizer.lists), shared)
    assert made.append(encoded.lists, encoded.codes, np.arange(len(rows)))
    return made


def all_alive(count: int) -> NDArray[np.uint8]:
    return np.packbits(np.ones(count, np.bool_), bitorder="little")


def nearest(
    opened: OpenLists, rows: NDArray[np.float32], queries: NDArray[np.float32], k: int, alive: NDArray[np.uint8]
) -> NDArray[np.int64]:
    numbers = opened.candidates(queries, k, Alive(alive))
    distances = exact.rank(rows, queries, numbers, opened.quantizer.metric)
    order = np.argsort(distances if opened.quantizer.metric == "l2" else -distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(numbers, order, 1)


def recall(
    opened: OpenLists, rows: NDArray[np.float32], queries: NDArray[np.float32], k: int, alive: NDArray[np.bool_]
) -> float:
    numbers = np.flatnonzero(alive)
    truth = numbers[exact.exact_search(rows[alive], queries, k, opened.quantizer.metric)[1]]
    found = nearest(opened, rows, queries, k, np.packbits(alive, bitorder="little"))
    return float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(found, truth, strict=True)]))


@dataclass(frozen=True, slots=True)
class Searched:
    """`nearest` answers queries, k and which rows are alive with the numbers of rows (nq, k), nearest first."""

    nearest: Callable[[NDArray[np.float32], int, NDArray[np.bool_]], NDArray[np.int64]]
    parameters: SearchParameters
    outliers: list[int]


def searched(kind: Kind, rows: NDArray[np.float32], metric: Metric, target: float) -> Searched:
    """Rows as they are built, calibrated and searched."""
    if kind == "lists":
        quantizer = Quantizer.train(rows, metric, len(rows), target, seed=1)
        opened = OpenLists(quantizer, filled(quantizer, rows))
        outliers = np.flatnonzero(quantizer.encode(rows).lists == OUTLIER).tolist()

        def by_lists(queries: NDArray[np.float32], k: int, alive: NDArray[np.bool_]) -> NDArray[np.int64]:
            return nearest(opened, rows, queries, k, np.packbits(alive, bitorder="little"))

        return Searched(by_lists, quantizer.parameters, outliers)
    graph = Graph.build(rows, metric, IndexParameters(kind="hnsw", recall_target=target), seed=1)

    def by_graph(queries: NDArray[np.float32], k: int, alive: NDArray[np.bool_]) -> NDArray[np.int64]:
        live = LiveRows(np.packbits(alive, bitorder="little"), len(rows))
        distances, numbers = graph.search(rows, queries, k, live)
        order = np.argsort(distances if metric == "l2" else -distances, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(numbers, order, 1)

    return Searched(by_graph, graph.parameters, graph.outliers.tolist())
