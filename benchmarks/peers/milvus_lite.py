"""Milvus Lite, a library over a local file."""

import time
from contextlib import ExitStack
from importlib import import_module
from importlib.metadata import version

from benchmarks import sift
from benchmarks.peers.peer import COLLECTION, EF, EF_CONSTRUCTION, K, M, Place, Rows, batches


class MilvusLite:
    """Milvus Lite over a local file, which pymilvus serves from a thread of this process."""

    index = "HNSW"
    address = ""
    efforts = EF

    def __init__(self, stack: ExitStack, place: Place) -> None:
        self.version = version("milvus-lite")
        milvus = import_module("pymilvus")
        self._client = client = milvus.MilvusClient(str(place.directory / "milvus.db"))
        stack.callback(client.close)
        schema = client.create_schema()
        schema.add_field("row", milvus.DataType.INT64, is_primary=True)
        schema.add_field("vector", milvus.DataType.FLOAT_VECTOR, dim=sift.DIMENSION)
        self._index = client.prepare_index_params()
        parameters = {"M": M, "efConstruction": EF_CONSTRUCTION}
        self._index.add_index("vector", index_type="HNSW", metric_type="L2", params=parameters)
        client.create_collection(COLLECTION, schema=schema, index_params=self._index)
        self._effort = EF[0]

    def insert(self, base: Rows) -> None:
        for first, rows in batches(base):
            self._client.insert(COLLECTION, [{"row": n, "vector": row} for n, row in enumerate(rows, first)])

    def count(self) -> int:
        return int(self._client.query(COLLECTION, filter="", output_fields=["count(*)"])[0]["count(*)"])

    def wait_indexed(self) -> float:
        self._client.flush(COLLECTION)
        return time.perf_counter()

    def tune(self, effort: float) -> None:
        self._effort = int(effort)

    def search(self, query: Rows) -> list[int]:
        parameters = {"metric_type": "L2", "params": {"ef": self._effort}}
        found = self._client.search(COLLECTION, [query], limit=K, search_params=parameters)
        return [int(hit["row"]) for hit in found[0]]
