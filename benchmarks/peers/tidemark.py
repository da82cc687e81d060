"""Tidemark, as everybody else is measured: from outside."""

import time
from contextlib import ExitStack
from typing import Any

import orjson
from confluent_kafka import Producer

from benchmarks.client import SearchClient
from benchmarks.conditions import Below, Columns
from benchmarks.filters import filter_of, metadata
from benchmarks.main_job import TOPIC, Run
from benchmarks.peers.peer import Insert, K, Place, Rows, wait_for
from tidemark import __version__
from tidemark.kafka_settings import producer_settings


class Tidemark:
    """A real Kafka, the consumer and the api, as processes; inserted is what the broker has acknowledged."""

    version = __version__
    index = "ivfpq"
    efforts = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0, 4.0)

    def __init__(self, stack: ExitStack, place: Place) -> None:
        self._run = Run(place.rows, 0.0, stack)
        self._rows = place.rows
        self.address = self._run.deployment.kafka.bootstrap_servers
        self._run.deployment.start("consumer")
        self._run.deployment.start("api")
        self._client = wait_for(self._ready, "Tidemark's api")
        stack.callback(self._client.close)
        self._effort = 1.0
        self._asked: dict[str, Any] = {}

    def _ready(self) -> SearchClient | None:
        try:
            client = self._run.client()
        except OSError:
            return None
        if client.get("/readyz").get("ready"):
            return client
        client.close()
        return None

    def insert(self, base: Rows) -> None:
        self._run.produce_backlog()

    def insert_with(self, base: Rows, columns: Columns) -> None:
        self._run.deployment.produce(base, metadata=metadata(columns))

    def choose(self, condition: Below | None) -> None:
        self._asked = {"filter": filter_of(condition)} if condition else {}

    def count(self) -> int:
        partitions = self._client.get("/collections/sift/lag")["partitions"]
        return sum(partition["applied_position"] or 0 for partition in partitions)

    def wait_indexed(self) -> float:
        wait_for(self._built, "Tidemark's builds")
        indexed = time.perf_counter()
        self._run.settle()
        return indexed

    def _built(self) -> bool:
        lag = self._client.get("/collections/sift/lag")
        checkpointed = sum(partition["checkpointed_position"] or 0 for partition in lag["partitions"])
        return lag["unbuilt_rows"] == 0 and checkpointed >= self._rows

    def tune(self, effort: float) -> None:
        self._effort = effort

    def search(self, query: Rows) -> list[int]:
        body = {"vector": query, "k": K, "include": [], "effort": self._effort, **self._asked}
        answer = self._client.post(self._client.request(orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)))
        return [int(hit["id"][1:]) for hit in orjson.loads(answer)["hits"]]


def write_to_tidemark(address: str) -> Insert:
    producer = Producer(producer_settings({"bootstrap.servers": address}))

    def insert(first: int, rows: Rows) -> None:
        for number, row in enumerate(rows, first):
            producer.produce(TOPIC, row.tobytes(), f"v{number}")
        producer.flush()

    return insert
