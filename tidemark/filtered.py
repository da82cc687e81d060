"""Searching among the rows that match a filter, and what else is asked of those rows.

The rows that match and live are chosen as of one moment (`chosen.py`). Few of them are ranked one by one; of more,
the lists offer candidates. Rows that the lists did not have then are looked at afterwards, so no id is missing, for
the reasons that `searcher.py` gives. An answer is true as of moments since the positions were read.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tidemark import searcher
from tidemark.chosen import Chosen, choose
from tidemark.collection import Metric
from tidemark.filters.grammar import Filter
from tidemark.matching import Matching
from tidemark.mirror import Snapshot, ViewMirror
from tidemark.searcher import Answer, Found, Looked, Plan

# To rank so many numbers of matching rows takes as long as a search of lists in a million rows.
RANKED_NUMBERS = 16_384 * 128


def search(
    view: ViewMirror,
    queries: NDArray[np.float32],
    k: int,
    filter_: Filter,
    effort: float = 1.0,
    exact: bool = False,
    ranked_numbers: int = RANKED_NUMBERS,
) -> Answer:
    """The k nearest of the live rows that match, of each prepared query (nq, dimension)."""
    matching = view.matchings.of(filter_, view)
    exact = exact or view.collection.index.kind == "flat"

    def look(asked: int) -> Looked:
        before = view.snapshot()
        coded = 0 if before.index is None else before.index.coded
        chosen = choose(view, matching)
        if exact or not (before.index or before.graphs) or chosen.count * view.collection.dimension <= ranked_numbers:
            return Looked(chosen.snapshot, _rank_all(view, chosen, queries, asked), Plan("exact", chosen.count))
        snapshot, found = _search_lists(view, before, coded, matching, chosen, queries, k, effort)
        return Looked(snapshot, found, Plan("index", chosen.count))

    return searcher.answer(view, len(queries), k, look)


def _rank_all(view: ViewMirror, chosen: Chosen, queries: NDArray[np.float32], k: int) -> Sequence[Found]:
    """The k nearest of all rows chosen: ranked one by one, or part by part where all queries together are many."""
    if chosen.count * view.collection.dimension * len(queries) <= RANKED_NUMBERS:
        found = searcher.ranked(view, queries, np.empty((len(queries), 0), np.int64), [chosen.numbers])
        return [_nearest(found, k, view.collection.metric)]
    parts = [(part, chosen.of(part).numbers()) for part in chosen.snapshot.parts]
    return [searcher.scan_part(part, rows, queries, k, view) for part, rows in parts if len(rows)]


def _nearest(found: Found, k: int, metric: Metric) -> Found:
    """The k nearest rows of each query, in no order."""
    if found.numbers.shape[1] <= k:
        return found
    order = np.argpartition(found.distances if metric == "l2" else -found.distances, k - 1, axis=1)[:, :k]
    return Found(np.take_along_axis(found.distances, order, 1), np.take_along_axis(found.numbers, order, 1))


def _search_lists(
    view: ViewMirror,
    before: Snapshot,
    coded: int,
    matching: Matching,
    chosen: Chosen,
    queries: NDArray[np.float32],
    k: int,
    effort: float,
) -> tuple[Snapshot, Sequence[Found]]:
    """As a search without a filter, of the rows chosen and the newest that match."""
    numbers = np.empty((len(queries), 0), np.int64)
    if before.index is not None:
        alive = chosen.alive
        numbers = before.index.candidates_matching(queries, k, alive, effort, matching.per_list(before.index, alive))
    found, few = searcher.unlisted(view, before, queries, k, effort, chosen.of)
    snapshot, new = searcher.newest(view, coded)
    matching.refresh(view)
    return snapshot, [*found, searcher.ranked(view, queries, numbers, [*few, matching.among(new)])]
