"""A search client for measuring: one keep-alive connection, bodies encoded before the clock starts."""

import http.client
import json
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray


class SearchClient:
    """Searches one collection over HTTP, one request at a time."""

    def __init__(self, port: int, collection: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self._collection = collection

    def get(self, path: str) -> Any:
        self._connection.request("GET", path)
        answer = self._connection.getresponse()
        return json.loads(answer.read())

    def post(self, body: bytes) -> bytes:
        path = f"/collections/{self._collection}/search"
        self._connection.request("POST", path, body, {"content-type": "application/json"})
        answer = self._connection.getresponse()
        found = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"search answered {answer.status}: {found[:300]!r}")
        return found

    def measure(self, queries: NDArray[np.float32], seconds: float) -> tuple[NDArray[np.float64], list[list[str]]]:
        """Latencies in ms of searches over the queries again and again for a time, and the first round's ids."""
        bodies = [json.dumps({"vector": query.tolist(), "k": 10, "include": []}).encode() for query in queries]
        latencies: list[float] = []
        found: list[list[str]] = []
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline or len(found) < len(bodies):
            body = bodies[len(latencies) % len(bodies)]
            before = time.perf_counter()
            answer = self.post(body)
            latencies.append((time.perf_counter() - before) * 1e3)
            if len(found) < len(bodies):
                found.append([hit["id"] for hit in json.loads(answer)["hits"]])
        return np.array(latencies), found

    def close(self) -> None:
        self._connection.close()
