"""Rows that serve as queries, with their nearest others by an exact scan: searches of lists are measured by them."""

import numpy as np
from numpy.typing import NDArray

from tidemark import searcher
from tidemark.ann import calibration
from tidemark.ann.exact import rank
from tidemark.ann.parameters import CALIBRATION_K
from tidemark.collection import Metric
from tidemark.mirror import ViewMirror


def held_out(mirror: ViewMirror, count: int) -> calibration.HeldOut | None:
    """Some of the living rows, as queries, and the others nearest to each; None when none lives."""
    rng = np.random.default_rng(0)
    while True:
        moves, snapshot = mirror.moves, mirror.snapshot()
        living = np.concatenate([part.base + part.live.numbers() for part in snapshot.parts])
        if mirror.moves == moves:
            break
    if not len(living):
        return None
    own = np.sort(rng.choice(living, min(count, len(living)), replace=False))
    queries = np.ascontiguousarray(mirror.vectors[own])
    found = searcher.scan_all(mirror, queries, CALIBRATION_K + 1).found
    numbers = np.concatenate([part.numbers for part in found], axis=1)
    distances = np.concatenate([part.distances for part in found], axis=1)
    distances = distances if mirror.collection.metric == "l2" else -distances
    distances[(numbers < 0) | (numbers == own[:, None])] = np.inf
    nearest = np.argsort(distances, axis=1, kind="stable")[:, : min(CALIBRATION_K, len(living) - 1)]
    return calibration.HeldOut(queries, own, np.take_along_axis(numbers, nearest, 1))


def ranked(
    mirror: ViewMirror, metric: Metric, queries: NDArray[np.float32], numbers: NDArray[np.int64]
) -> NDArray[np.float32]:
    return rank(mirror.vectors, queries, numbers, metric)
