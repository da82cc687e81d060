"""A search client for measuring: one keep-alive connection, bodies encoded before the clock starts."""

import itertools
import json
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

START_S_MAX = 60.0
NOTHING_MORE: Mapping[str, Any] = MappingProxyType({})
_POSITION = re.compile(rb'"positions":{"0":(\d+)')


def connected(port: int, collection: str) -> "SearchClient":
    """A client of a service that is being started, as soon as it answers; raises OSError when it never does."""
    deadline = time.monotonic() + START_S_MAX
    while True:
        try:
            client = SearchClient(port, collection)
            client.get("/healthz")
            return client
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


class SearchClient:
    """Searches one collection over HTTP, one request at a time.

    A bare socket, because it shares its cores with what it measures: Python's own client takes 0.2 ms a request.
    """

    def __init__(self, port: int, collection: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._collection = collection

    def get(self, path: str) -> Any:
        return json.loads(self._ask(b"GET %s HTTP/1.1\r\nhost: benchmark\r\n\r\n" % path.encode())[1])

    def request(self, body: bytes) -> bytes:
        """The bytes of a request to search."""
        head = f"POST /collections/{self._collection}/search HTTP/1.1\r\nhost: benchmark\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        return head.encode() + body

    def post(self, request: bytes) -> bytes:
        """Send what `request` made; the answer's body."""
        status, found = self._ask(request)
        if status != 200:
            raise RuntimeError(f"search answered {status}: {found[:300]!r}")
        return found

    def _ask(self, request: bytes) -> tuple[int, bytes]:
        self._socket.sendall(request)
        answer = self._more()
        while (end := answer.find(b"\r\n\r\n")) < 0:
            answer += self._more()
        head = answer[:end].lower()
        length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        while len(answer) < end + 4 + length:
            answer += self._more()
        return int(head.split(b" ", 2)[1]), answer[end + 4 :]

    def _more(self) -> bytes:
        piece = self._socket.recv(65_536)
        if not piece:
            raise ConnectionError("the service closed the connection")
        return piece

    def requests(self, queries: NDArray[np.float32], asked: Mapping[str, Any] = NOTHING_MORE) -> list[bytes]:
        """What is sent for each query: the 10 nearest, ids and distances alone; `asked` is added to each body."""
        bodies = [{"vector": query.tolist(), "k": 10, "include": [], **asked} for query in queries]
        return [self.request(json.dumps(body).encode()) for body in bodies]

    def measure(
        self,
        queries: NDArray[np.float32],
        seconds: float,
        pause_s: float = 0.0,
        asked: Mapping[str, Any] = NOTHING_MORE,
    ) -> tuple[NDArray[np.float64], list[list[str]]]:
        """Latencies in ms of searches over the queries again and again for a time, and the first round's ids.

        `pause_s`: between an answer and the next search; no part of a latency.
        """
        count = len(queries)
        latencies: list[float] = []
        found: list[list[str]] = []
        deadline = time.perf_counter() + seconds
        for before, after, answer in self._answers(self.requests(queries, asked)):
            latencies.append((after - before) * 1e3)
            if len(found) < count:
                found.append([hit["id"] for hit in json.loads(answer)["hits"]])
            if after >= deadline and len(found) >= count:
                break
            if pause_s:
                time.sleep(pause_s)
        return np.array(latencies), found

    def _answers(self, requests: Sequence[bytes]) -> Iterator[tuple[float, float, bytes]]:
        """The requests again and again: the times (`perf_counter`) before each and after, and the answer."""
        for request in itertools.cycle(requests):
            before = time.perf_counter()
            answer = self.post(request)
            yield before, time.perf_counter(), answer

    def search_for(
        self, requests: Sequence[bytes], seconds: float
    ) -> tuple[NDArray[np.float64], list[tuple[float, int]]]:
        """Latencies in ms of the requests again and again for a time, and which positions the answers were of.

        Of partition 0: the time (`perf_counter`, one clock for all processes) at which an answer first had it.
        """
        latencies: list[float] = []
        seen: list[tuple[float, int]] = []
        newest = -1
        deadline = time.perf_counter() + seconds
        for before, after, answer in self._answers(requests):
            latencies.append((after - before) * 1e3)
            position = int(_POSITION.search(answer)[1])  # type: ignore[index]  # every answer says it
            if position > newest:
                newest = position
                seen.append((after, position))
            if after >= deadline:
                break
        return np.array(latencies), seen

    def close(self) -> None:
        self._socket.close()
