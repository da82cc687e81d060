"""The graph of an HNSW index, searched as if some of its rows were not in it. Used by `index.py`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray


@contextmanager
def without(index: Any, nodes: NDArray[np.int64]) -> Iterator[None]:
    """No link of an IndexHNSW leads to these nodes meanwhile, its entry point excepted; nobody else may search it.

    A row of the graph is one step away from its own neighbours, a query is not: with an effort that finds 0.97 of the
    neighbours of SIFT's rows, 60,000 of them, queries find 0.92 of theirs. A link to such a node leads on to one of its
    neighbours instead, which were linked through it: with no link in its place, the effort is a quarter too large.
    """
    links: NDArray[np.int32] = faiss.rev_swig_ptr(index.hnsw.neighbors.data(), index.hnsw.neighbors.size())
    is_one = np.zeros(index.ntotal + 1, np.bool_)  # the last stands for links to none, -1
    is_one[nodes] = True
    places = np.flatnonzero(is_one[links])
    kept = links[places]
    links[places] = _instead(index, links, places, is_one)
    try:
        yield
    finally:
        links[places] = kept


def _instead(
    index: Any, links: NDArray[np.int32], places: NDArray[np.int64], is_one: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Where the links at these places lead instead: to any neighbour on the bottom level, else back: nowhere."""
    starts = faiss.vector_to_array(index.hnsw.offsets).astype(np.int64)
    owners = np.searchsorted(starts, places, side="right") - 1
    width = index.hnsw.nb_neighbors(0)
    neighbours = links[starts[links[places]][:, None] + np.arange(width)]
    possible = (neighbours >= 0) & ~is_one[neighbours] & (neighbours != owners[:, None])
    chosen = np.where(possible, np.random.default_rng(0).random(possible.shape), -1).argmax(axis=1)
    lines = np.arange(len(places))
    usable = possible[lines, chosen] & (places - starts[owners] < width)
    return np.where(usable, neighbours[lines, chosen], owners)
