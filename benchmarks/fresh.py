"""An index made afresh of rows that are all there: what a rebuild would give, without dead rows and without growth."""

import numpy as np
from numpy.typing import NDArray

from tidemark.ann.exact import exact_search, rank
from tidemark.ann.lists import OUTLIER, Lists
from tidemark.ann.open_lists import Alive, OpenLists
from tidemark.ann.quantizer import Encoded, Quantizer
from tidemark.collection import IndexParameters, Metric
from tidemark.collection_index import SAMPLE_ROWS


def trained(rows: NDArray[np.float32], metric: Metric, seed: int) -> Quantizer:
    """From a sample of float32 rows (n, dimension), as the consumers make one."""
    picked = np.sort(np.random.default_rng(seed).choice(len(rows), min(len(rows), SAMPLE_ROWS), replace=False))
    return Quantizer.train(rows[picked], metric, len(rows), IndexParameters().recall_target, seed)


def filled(quantizer: Quantizer, encoded: Encoded) -> Lists:
    """Lists that hold all rows, whose numbers are their places."""
    inside = encoded.lists[encoded.lists != OUTLIER]
    lists = Lists(quantizer, np.bincount(inside, minlength=quantizer.lists), shared=False)
    if not lists.append(encoded.lists, encoded.codes, np.arange(len(encoded.lists))):
        raise MemoryError("lists have no room for the rows they are made for")
    return lists


def recall(rows: NDArray[np.float32], queries: NDArray[np.float32], metric: Metric, seed: int, k: int = 10) -> float:
    """recall@k of its default searches; a row as near as the k-th nearest counts as found."""
    quantizer = trained(rows, metric, seed)
    lists = OpenLists(quantizer, filled(quantizer, quantizer.encode(rows)))
    alive = Alive(np.full(-(-len(rows) // 8), 0xFF, np.uint8))
    worst = exact_search(rows, queries, k, metric)[0][:, -1:]
    numbers = lists.candidates(queries, k, alive)
    distances = rank(rows, queries, numbers, metric)
    near = distances <= worst * (1 + 1e-6) if metric == "l2" else distances >= worst * (1 - 1e-6)
    return float(np.minimum((near & (numbers >= 0)).sum(axis=1), k).mean() / k)
