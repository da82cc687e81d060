"""Chroma: its own server as a child process."""

import sys
import time
from contextlib import ExitStack, closing
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson

from benchmarks.client import SearchClient
from benchmarks.conditions import Below, Columns
from benchmarks.peers.peer import (
    COLLECTION,
    EF,
    EF_CONSTRUCTION,
    Insert,
    K,
    M,
    Place,
    Rows,
    batches,
    insert_all,
    start,
    wait_for,
)
from cli.ports import free_port


class Chroma:
    """Its own server as a child process. It takes rows into its log; the first search after that indexes them."""

    index = "HNSW"
    efforts = EF

    def __init__(self, stack: ExitStack, place: Place) -> None:
        self.version = version("chromadb")
        self._port = free_port()
        self.address = f"127.0.0.1:{self._port}"
        self._directory = place.directory
        self._running = stack.enter_context(ExitStack())
        self._asked: dict[str, Any] = {}
        self._start()
        hnsw = {"space": "l2", "max_neighbors": M, "ef_construction": EF_CONSTRUCTION}
        self._client.create_collection(COLLECTION, configuration={"hnsw": hnsw}, embedding_function=None)

    def _start(self) -> None:
        log = self._running.enter_context((self._directory / "chroma.log").open("ab"))
        command = [str(Path(sys.executable).with_name("chroma")), "run", "--path", str(self._directory / "chroma")]
        start(self._running, [*command, "--host", "127.0.0.1", "--port", str(self._port)], log)
        self._client = wait_for(self._connected, "Chroma's server")

    def _connected(self) -> Any:
        try:
            return connect_to_chroma(self.address)
        except ValueError:  # what its client makes of a refused connection
            return None

    def insert(self, base: Rows) -> None:
        insert_all(write_to_chroma(self.address), base)

    def insert_with(self, base: Rows, columns: Columns) -> None:
        collection = connect_to_chroma(self.address).get_collection(COLLECTION, embedding_function=None)
        for first, rows in batches(base):
            numbers = range(first, first + len(rows))
            values = [{name: int(column[number]) for name, column in columns.items()} for number in numbers]
            collection.add(ids=[str(number) for number in numbers], embeddings=rows, metadatas=values)

    def choose(self, condition: Below | None) -> None:
        self._asked = {"where": {condition.field: {"$lt": condition.limit}}} if condition else {}

    def count(self) -> int:
        return int(self._collection.count())

    def wait_indexed(self) -> float:
        return time.perf_counter()

    def tune(self, effort: float) -> None:
        """An index in memory keeps the efSearch it was loaded with, so the server must load it again."""
        self._client.get_collection(COLLECTION, embedding_function=None).modify(
            configuration={"hnsw": {"ef_search": int(effort)}}
        )
        self._running.close()
        self._start()
        self._collection = self._client.get_collection(COLLECTION, embedding_function=None)
        path = "/api/v2/tenants/default_tenant/databases/default_database/collections"
        self._head = f"POST {path}/{self._collection.id}/query HTTP/1.1\r\nhost: benchmark\r\n"
        self._http = self._running.enter_context(closing(SearchClient(self._port, COLLECTION)))

    def search(self, query: Rows) -> list[int]:
        body = {"query_embeddings": [query], "n_results": K, "include": [], **self._asked}
        encoded = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        head = f"{self._head}content-type: application/json\r\ncontent-length: {len(encoded)}\r\n\r\n"
        answer = self._http.post(head.encode() + encoded)
        return [int(name) for name in orjson.loads(answer)["ids"][0]]


def connect_to_chroma(address: str) -> Any:
    settings = import_module("chromadb.config").Settings(anonymized_telemetry=False)
    host, _, port = address.partition(":")
    return import_module("chromadb").HttpClient(host=host, port=int(port), settings=settings)


def write_to_chroma(address: str) -> Insert:
    collection = connect_to_chroma(address).get_collection(COLLECTION, embedding_function=None)

    def insert(first: int, rows: Rows) -> None:
        collection.add(ids=[str(number) for number in range(first, first + len(rows))], embeddings=rows)

    return insert
