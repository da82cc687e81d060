"""The cheapest search parameters that reach a recall, found by searching for rows whose nearest are known.

Invariant: the recall that is said was measured, with the row that is the query left out of the answer. A row counts
as found when it is as near as the 10th nearest: rows of equal distance are equally good answers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tidemark.ann import exact
from tidemark.ann.centroids import REACH_FROM
from tidemark.ann.lists import Lists
from tidemark.ann.open_lists import Alive, OpenLists
from tidemark.ann.parameters import CALIBRATION_K, SearchParameters
from tidemark.collection import Metric

if TYPE_CHECKING:
    from tidemark.ann.quantizer import Quantizer

# The 10 neighbours of so many rows give the recall to about +-0.4 %.
QUERIES = 400
# A query probes at least this share of the living rows that one typically probes: where those around it have died, the
# nearest that are left lie further out than the lists next to it.
LIVING_SHARE = 0.5
# Of squared distances to two centroids, where rows lie in the nearer one.
RATIO_MAX = 1e12
# Parameters that find so much more than the target are kept.
SURPLUS = 0.01

# FAISS distances (nq, w) of queries (nq, dimension) to rows by number (nq, w), -1 for none.
Rank = Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Rows that serve as queries, each with the row that it is itself and the nearest others among those alive.

    `queries` float32 (nq, dimension), `own` row numbers (nq,), `truth` row numbers (nq, at most 10), none of them -1.
    """

    queries: NDArray[np.float32]
    own: NDArray[np.int64]
    truth: NDArray[np.int64]


def calibrated(
    lists: OpenLists, alive: Alive, rank: Rank, held_out: HeldOut, target: float, start: SearchParameters
) -> SearchParameters:
    """Parameters whose recall reaches the target, or the best there are; `start`, where that is hardly better.

    A few searches of all `held_out` in the latter case, about twenty else: 400 of them take 3 s with 1M rows.
    """
    return _Calibration(lists, alive, rank, held_out).found(target, start)


def of_sample(quantizer: "Quantizer", sample: NDArray[np.float32], seed: int) -> SearchParameters:
    """Of lists that hold nothing but the sample (n, dimension) that the quantizer was trained on."""
    encoded = quantizer.encode(sample)
    inside = np.flatnonzero(encoded.lists < quantizer.lists)
    lists = Lists(quantizer, np.bincount(encoded.lists[inside], minlength=quantizer.lists), shared=False)
    lists.append(encoded.lists[inside], encoded.codes[inside], inside)
    own = np.random.default_rng(seed + 1).choice(inside, min(QUERIES, len(inside)), replace=False)
    queries = np.ascontiguousarray(sample[own])
    left_out = np.setdiff1d(np.arange(len(sample)), inside)
    held_out = HeldOut(queries, own, nearest_others(sample, queries, own, quantizer.metric, left_out))
    alive = Alive(np.full(-(-len(sample) // 8), 0xFF, np.uint8))

    def rank(queries: NDArray[np.float32], numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        return exact.rank(sample, queries, numbers, quantizer.metric)

    opened = OpenLists(quantizer, lists)
    return calibrated(opened, alive, rank, held_out, quantizer.recall_target, SearchParameters())


def nearest_others(
    rows: NDArray[np.float32],
    queries: NDArray[np.float32],
    own: NDArray[np.int64],
    metric: Metric,
    left_out: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """The rows (nq, at most 10) of (n, dimension) nearest to each query but itself; few may be left out for all."""
    found = exact.nearest_of_many(rows, queries, CALIBRATION_K + 1, metric, left_out)
    last = np.argsort(found == own[:, None], axis=1, kind="stable")[:, : min(CALIBRATION_K, found.shape[1] - 1)]
    return np.take_along_axis(found, last, 1)


class Near:
    """Tells what share of the nearest rows are found: FAISS distances by row numbers (nq, w), the truth (nq, k)."""

    def __init__(
        self, rank: Callable[[NDArray[np.int64]], NDArray[np.float32]], truth: NDArray[np.int64], metric: Metric
    ) -> None:
        self._rank, self._sign, self._wanted = rank, np.float32(1 if metric == "l2" else -1), truth.shape[1]
        self._worst = self._nearness(truth).max(axis=1, keepdims=True, initial=-np.inf)

    def _nearness(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """Distances (nq, w), smaller is nearer under every metric."""
        return self._sign * self._rank(numbers)

    def share_of(self, numbers: NDArray[np.int64]) -> float:
        """How many of the truth's rows, or rows as near but for rounding, are among these (nq, w), -1 for none."""
        if not self._wanted or not len(numbers):
            return 1.0
        near = self._nearness(numbers) <= self._worst + np.abs(self._worst) * np.float32(1e-6)
        return float(np.minimum(np.count_nonzero(near, axis=1), self._wanted).mean() / self._wanted)


class _Calibration:
    def __init__(self, lists: OpenLists, alive: Alive, rank: Rank, held_out: HeldOut) -> None:
        self._lists, self._alive, self._held_out = lists, alive, held_out
        metric = lists.quantizer.metric
        self._near = Near(lambda numbers: rank(held_out.queries, numbers), held_out.truth, metric)
        squares = np.sort(lists.quantizer.centroids.squares(held_out.queries), axis=1)
        third = np.maximum(squares[:, min(REACH_FROM, squares.shape[1]) - 1], np.finfo(np.float32).tiny)
        with np.errstate(over="ignore"):
            self._ratios = np.median(squares / third[:, None], axis=0)

    def found(self, target: float, start: SearchParameters) -> SearchParameters:
        lists = self._lists.quantizer.lists
        if start.effort:
            begun = self._measured(start)
            if begun.recall >= target and (begun.recall < target + SURPLUS or start.effort <= REACH_FROM + 1):
                return begun
        best = SearchParameters(recall=-1.0)
        # An eighth of the lists is as good as all of them, but for rows without structure.
        for k_factor, effort in product((8, 16, 32, 64), sorted({-(-lists // 8), lists})):
            best = max(best, self._probing(effort, k_factor), key=lambda found: found.recall)
            if best.recall >= target:
                break
        # With so few lists reach would be none, and queries unlike the rows find little.
        low = min(REACH_FROM, lists)
        found = least_effort(best, target, low, lambda effort: self._probing(effort, best.k_factor))
        return replace(found, living=self._living_share(found))

    def _probing(self, effort: int, k_factor: int) -> SearchParameters:
        reach = math.sqrt(min(float(self._ratios[effort - 1]), RATIO_MAX)) - 1
        reach = max(0.0, reach) if effort < self._lists.quantizer.lists else 0.0
        return self._measured(SearchParameters(effort, k_factor, reach=reach))

    def _measured(self, parameters: SearchParameters) -> SearchParameters:
        held_out = self._held_out
        numbers = self._lists.candidates(held_out.queries, CALIBRATION_K + 1, self._alive, parameters=parameters)
        others = np.where(numbers == held_out.own[:, None], -1, numbers)
        return replace(parameters, recall=self._near.share_of(others))

    def _living_share(self, parameters: SearchParameters) -> float:
        """`LIVING_SHARE` of the living rows that are typically probed, as a share of all that are alive."""
        occupancy = self._lists.refresh()
        probed, _ = self._lists.quantizer.centroids.within(self._held_out.queries, parameters, occupancy)
        counts = np.where(probed >= 0, occupancy.living[probed], 0).sum(axis=1)
        return float(LIVING_SHARE * np.median(counts) / max(1, occupancy.living_count))


def least_effort(
    best: SearchParameters, target: float, low: int, measured: Callable[[int], SearchParameters]
) -> SearchParameters:
    """Bisect, in ratios, for the least effort above `low` that reaches the target (or what full effort reaches)."""
    target = min(target, best.recall)
    high = best
    while high.effort > low * 1.1 and high.effort > low + 1:
        tried = measured(max(low + 1, int(math.sqrt(low * high.effort))))
        if tried.recall >= target:
            high = tried
        else:
            low = tried.effort
    return high
