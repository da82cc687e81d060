"""Qdrant, where a server runs."""

import time
from contextlib import ExitStack
from importlib import import_module
from typing import Any

from benchmarks import sift
from benchmarks.peers.peer import COLLECTION, EF, EF_CONSTRUCTION, Insert, K, M, Place, Rows, insert_all, wait_for


class Qdrant:
    """A server that runs already, over gRPC on its usual port. It keeps small segments without an index."""

    index = "HNSW"
    efforts = EF

    def __init__(self, stack: ExitStack, place: Place) -> None:
        self.address = place.url
        self._models = models = import_module("qdrant_client.models")
        self._client = connect_to_qdrant(place.url)
        stack.callback(self._client.close)
        self.version = str(self._client.info().version)
        self._client.delete_collection(COLLECTION)
        self._client.create_collection(
            COLLECTION,
            vectors_config=models.VectorParams(size=sift.DIMENSION, distance=models.Distance.EUCLID),
            hnsw_config=models.HnswConfigDiff(m=M, ef_construct=EF_CONSTRUCTION),
        )
        stack.callback(self._client.delete_collection, COLLECTION)

    def insert(self, base: Rows) -> None:
        insert_all(write_to_qdrant(self.address), base)

    def count(self) -> int:
        return int(self._client.count(COLLECTION, exact=True).count)

    def wait_indexed(self) -> float:
        green = self._models.CollectionStatus.GREEN
        wait_for(lambda: self._client.get_collection(COLLECTION).status == green, "Qdrant's optimizers")
        return time.perf_counter()

    def tune(self, effort: float) -> None:
        self._parameters = self._models.SearchParams(hnsw_ef=int(effort))

    def search(self, query: Rows) -> list[int]:
        answer = self._client.query_points(
            COLLECTION, query=query.tolist(), limit=K, search_params=self._parameters, with_payload=False
        )
        return [int(point.id) for point in answer.points]


def connect_to_qdrant(url: str) -> Any:
    return import_module("qdrant_client").QdrantClient(url=url, prefer_grpc=True, timeout=60)


def write_to_qdrant(url: str) -> Insert:
    client, batch = connect_to_qdrant(url), import_module("qdrant_client.models").Batch

    def insert(first: int, rows: Rows) -> None:
        ids = list(range(first, first + len(rows)))
        client.upsert(COLLECTION, points=batch(ids=ids, vectors=rows.tolist()), wait=True)

    return insert
