"""LanceDB, a library over a local directory."""

import math
import time
from collections.abc import Iterable
from contextlib import ExitStack
from datetime import timedelta
from importlib import import_module
from importlib.metadata import version

import numpy as np
import pyarrow as pa

from benchmarks import sift
from benchmarks.conditions import Below, Columns
from benchmarks.peers.peer import COLLECTION, EF, WAIT_S, K, Place, Rows, batches


class Lance:
    """LanceDB on a local directory. Rows without an index are scanned; an index is built when asked for.

    Of 100,000 rows IVF_FLAT is built in a tenth of the time of IVF_HNSW_SQ and IVF_PQ, and searched no slower.
    """

    index = "IVF_FLAT"
    address = ""
    efforts = EF

    def __init__(self, stack: ExitStack, place: Place) -> None:
        self.version = version("lancedb")
        self._schema = _schema(())
        self._index_kind = import_module("lancedb.index").IvfFlat
        store = import_module("lancedb").connect(str(place.directory / "lance"))
        self._store = store
        self._table = store.create_table(COLLECTION, schema=self._schema)
        self._effort = EF[0]
        self._where: str | None = None

    def insert(self, base: Rows) -> None:
        self._insert(base, {})

    def insert_with(self, base: Rows, columns: Columns) -> None:
        self._schema = _schema(columns)
        self._table = self._store.create_table(COLLECTION, schema=self._schema, mode="overwrite")
        self._insert(base, columns)
        for name in columns:
            self._table.create_scalar_index(name)

    def _insert(self, base: Rows, columns: Columns) -> None:
        for first, rows in batches(base):
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), sift.DIMENSION)
            numbers = np.arange(first, first + len(rows))
            values = [pa.array(column[numbers]) for column in columns.values()]
            self._table.add(pa.Table.from_arrays([pa.array(numbers), vectors, *values], schema=self._schema))

    def choose(self, condition: Below | None) -> None:
        self._where = f"{condition.field} < {condition.limit}" if condition else None

    def count(self) -> int:
        return int(self._table.count_rows())

    def wait_indexed(self) -> float:
        config = self._index_kind(distance_type="l2", num_partitions=math.isqrt(self.count()))
        self._table.create_index("vector", config=config)
        self._table.wait_for_index(["vector_idx"], timedelta(seconds=WAIT_S))
        return time.perf_counter()

    def tune(self, effort: float) -> None:
        self._effort = int(effort)

    def search(self, query: Rows) -> list[int]:
        asked = self._table.search(query).limit(K).nprobes(self._effort).select(["row", "_distance"])
        if self._where:
            asked = asked.where(self._where, prefilter=True)
        return asked.to_arrow()["row"].to_pylist()  # type: ignore[no-any-return]


def _schema(columns: Iterable[str]) -> pa.Schema:
    vector = pa.list_(pa.float32(), sift.DIMENSION)
    return pa.schema([("row", pa.int64()), ("vector", vector), *((name, pa.int64()) for name in columns)])
