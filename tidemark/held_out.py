"""Rows that serve as queries, with their nearest others by an exact scan: searches of lists are measured by them.

All is as of one moment, of the rows that were in the lists then: while rows come and die, whoever compared with those
of now would find the lists worse than they are.
"""

import numpy as np
from numpy.typing import NDArray

from tidemark import searcher
from tidemark.ann import calibration
from tidemark.ann.exact import rank
from tidemark.ann.open_lists import Alive
from tidemark.ann.parameters import CALIBRATION_K
from tidemark.collection import Metric
from tidemark.mirror import ViewMirror
from tidemark.part import Part
from tidemark.tail import Tail


def held_out(mirror: ViewMirror, count: int, coded: int) -> tuple[calibration.HeldOut, Alive] | None:
    """Some of the living rows, as queries, the others nearest to each, and what lived; None when hardly a row did.

    `coded`: as the lists said before.
    """
    parts = _listed(mirror, coded)
    living = np.concatenate([part.base + rows for part, rows in parts]) if parts else np.empty(0, np.int64)
    if len(living) < 2:
        return None
    own = np.sort(np.random.default_rng(0).choice(living, min(count, len(living)), replace=False))
    queries = np.ascontiguousarray(mirror.vectors[own])
    found = [searcher.scan_part(part, rows, queries, CALIBRATION_K + 1, mirror) for part, rows in parts]
    numbers = np.concatenate([some.numbers for some in found], axis=1)
    distances = np.concatenate([some.distances for some in found], axis=1)
    distances = distances if mirror.collection.metric == "l2" else -distances
    distances[(numbers < 0) | (numbers == own[:, None])] = np.inf
    nearest = np.argsort(distances, axis=1, kind="stable")[:, : min(CALIBRATION_K, len(living) - 1)]
    bits = np.zeros(-(-(int(living.max()) + 1) // 64) * 64, np.bool_)
    bits[living] = True
    alive = Alive(np.packbits(bits, bitorder="little"), len(living))
    return calibration.HeldOut(queries, own, np.take_along_axis(numbers, nearest, 1)), alive


def _listed(mirror: ViewMirror, coded: int) -> list[tuple[Part, NDArray[np.int64]]]:
    """The parts that the lists have rows of, and which of those lived."""
    snapshot, living = mirror.living()
    outside = {*snapshot.unindexed, *snapshot.graphs}
    listed = []
    for part, live in living:
        rows = live.numbers()
        if isinstance(part, Tail):
            rows = rows[rows < coded - part.start]
        if part not in outside and len(rows):
            listed.append((part, rows))
    return listed


def ranked(
    mirror: ViewMirror, metric: Metric, queries: NDArray[np.float32], numbers: NDArray[np.int64]
) -> NDArray[np.float32]:
    return rank(mirror.vectors, queries, numbers, metric)
