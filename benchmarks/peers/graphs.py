"""hnswlib and usearch: graphs in memory and nothing else, no log and no file. They are the floor."""

import time
from contextlib import ExitStack
from importlib import import_module
from importlib.metadata import version

import numpy as np

from benchmarks import sift
from benchmarks.peers.peer import EF, EF_CONSTRUCTION, K, M, Place, Rows, batches


class Hnswlib:
    """A graph in memory; a row is in it when insert returns. All cores insert, one searches."""

    index = "HNSW"
    address = ""
    efforts = EF

    def __init__(self, stack: ExitStack, place: Place) -> None:
        self.version = version("hnswlib")
        self._index = import_module("hnswlib").Index(space="l2", dim=sift.DIMENSION)
        self._index.init_index(max_elements=place.rows, M=M, ef_construction=EF_CONSTRUCTION)

    def insert(self, base: Rows) -> None:
        for first, rows in batches(base):
            self._index.add_items(rows, np.arange(first, first + len(rows)))

    def count(self) -> int:
        return int(self._index.get_current_count())

    def wait_indexed(self) -> float:
        return time.perf_counter()

    def tune(self, effort: float) -> None:
        self._index.set_ef(int(effort))

    def search(self, query: Rows) -> list[int]:
        return self._index.knn_query(query, k=K, num_threads=1)[0][0].tolist()  # type: ignore[no-any-return]


class Usearch:
    """A graph in memory; a row is in it when insert returns. All cores insert, one searches."""

    index = "HNSW"
    address = ""
    efforts = EF

    def __init__(self, stack: ExitStack, place: Place) -> None:
        self.version = version("usearch")
        self._index = import_module("usearch.index").Index(
            ndim=sift.DIMENSION, metric="l2sq", dtype="f32", connectivity=M, expansion_add=EF_CONSTRUCTION
        )

    def insert(self, base: Rows) -> None:
        for first, rows in batches(base):
            self._index.add(np.arange(first, first + len(rows)), rows)

    def count(self) -> int:
        return len(self._index)

    def wait_indexed(self) -> float:
        return time.perf_counter()

    def tune(self, effort: float) -> None:
        self._index.expansion_search = int(effort)

    def search(self, query: Rows) -> list[int]:
        return self._index.search(query, K, threads=1).keys.tolist()  # type: ignore[no-any-return]
