"""Weaviate, where a server runs."""

import time
from contextlib import ExitStack
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from benchmarks.peers.peer import COLLECTION, EF, EF_CONSTRUCTION, Insert, K, M, Place, Rows, insert_all, wait_for


class Weaviate:
    """A server that runs already, over gRPC on port 50051 of its host. A row's uuid is its number plus one."""

    index = "HNSW"
    efforts = EF

    def __init__(self, stack: ExitStack, place: Place) -> None:
        self.address = place.url
        config = import_module("weaviate.classes.config")
        self._reconfigure = config.Reconfigure
        client = connect_to_weaviate(place.url)
        stack.callback(client.close)
        self.version = str(client.get_meta()["version"])
        client.collections.delete(COLLECTION)
        hnsw = config.Configure.VectorIndex.hnsw(
            distance_metric=config.VectorDistances.L2_SQUARED, max_connections=M, ef_construction=EF_CONSTRUCTION
        )
        vectors = config.Configure.Vectors.self_provided(vector_index_config=hnsw)
        self._collection = client.collections.create(COLLECTION, vector_config=vectors)
        stack.callback(client.collections.delete, COLLECTION)

    def insert(self, base: Rows) -> None:
        insert_all(write_to_weaviate(self.address), base)

    def count(self) -> int:
        return int(self._collection.aggregate.over_all(total_count=True).total_count)

    def wait_indexed(self) -> float:
        wait_for(
            lambda: all(shard.vector_queue_size == 0 for shard in self._collection.config.get_shards()),
            "Weaviate's queue of vectors",
        )
        return time.perf_counter()

    def tune(self, effort: float) -> None:
        hnsw = self._reconfigure.VectorIndex.hnsw(ef=int(effort))
        vectors = self._reconfigure.Vectors.update(vector_index_config=hnsw)
        self._collection.config.update(vector_config=vectors)

    def search(self, query: Rows) -> list[int]:
        found = self._collection.query.near_vector(near_vector=query.tolist(), limit=K, return_properties=False)
        return [int(UUID(str(one.uuid))) - 1 for one in found.objects]


def connect_to_weaviate(url: str) -> Any:
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    return import_module("weaviate").connect_to_custom(
        http_host=parts.hostname,
        http_port=parts.port or (443 if secure else 8080),
        http_secure=secure,
        grpc_host=parts.hostname,
        grpc_port=50051,
        grpc_secure=secure,
        skip_init_checks=True,  # one of them asks a package index for a newer client
    )


def write_to_weaviate(url: str) -> Insert:
    data = connect_to_weaviate(url).collections.get(COLLECTION).data
    row_of = import_module("weaviate.classes.data").DataObject

    def insert(first: int, rows: Rows) -> None:
        objects = [row_of(uuid=UUID(int=n + 1), vector=row) for n, row in enumerate(rows.tolist(), first)]
        answer = data.insert_many(objects)
        if answer.has_errors:
            raise RuntimeError(f"Weaviate refused rows: {next(iter(answer.errors.values()))}")

    return insert
