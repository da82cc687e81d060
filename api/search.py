"""Answering a search: decode, wait for positions when asked, search, encode. The api's hot path.

A cheap single query runs on the event loop itself when nothing else is under way: a hop to another thread
costs about as much as the search. Everything else goes to a pool with one thread per core, through a bounded
queue. No vector passes through Pydantic.
"""

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from api import schemas
from api.follower import Follower
from api.lag import staleness_ms
from api.serving import Served
from tidemark import id as ids
from tidemark import searcher
from tidemark.errors import BadQuery, NotFreshEnough, Overloaded
from tidemark.settings import Settings

# Rows scanned exactly by one query on the event loop: 20k rows of 128-d take 0.2 ms.
INLINE_NUMBERS_MAX = 20_000 * 128
FRESHNESS_POLL_S = 0.002


class Searches:
    """Runs searches of all collections; one per process, used on the event loop."""

    def __init__(self, settings: Settings) -> None:
        threads = settings.api.search_threads or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="search")
        self._queue_max = settings.api.search_queue_max
        self.waiting = 0

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def answer(
        self, served: Served, request: schemas.SearchRequest, queries: NDArray[np.float32] | None
    ) -> bytes:
        """The JSON of the answer; `queries` are given when they did not come as JSON."""
        started = time.perf_counter()
        follower = served.follower
        if request.min_positions:
            follower = await self._wait_for(served, request)
        if queries is None:
            queries = self._stored(follower, request.id) if request.id else schemas.queries_from_json(request)
        prepared = searcher.prepare_queries(queries, served.collection)
        many = request.vectors is not None
        answer = await self._search(follower, prepared, request)
        return encode(follower, answer, request, many, started)

    async def _search(
        self, follower: Follower, queries: NDArray[np.float32], request: schemas.SearchRequest
    ) -> searcher.Answer:
        views = follower.views
        if not views:
            raise NotReady(f"{follower.collection.name}: {follower.problem or 'not opened yet'}")
        scanned = sum(view.live_rows if request.exact else view.unbuilt_rows for view in views)
        cheap = (scanned + 1) * queries.size <= INLINE_NUMBERS_MAX and request.effort <= 4
        if cheap and self.waiting == 0:
            return searcher.search(views, queries, request.k, request.effort, request.exact)
        if self.waiting >= self._queue_max:
            raise Overloaded(f"{self.waiting} searches are waiting: try again later, or add replicas")
        self.waiting += 1
        work = self._pool.submit(searcher.search, views, queries, request.k, request.effort, request.exact)
        try:
            return await asyncio.wrap_future(work)
        finally:
            self.waiting -= 1

    async def _wait_for(self, served: Served, request: schemas.SearchRequest) -> Follower:
        """Wait, bounded, until the wanted positions are applied; raises NotFreshEnough."""
        assert request.min_positions is not None
        try:
            wanted = {int(partition): position for partition, position in request.min_positions.items()}
        except ValueError:
            raise BadQuery('min_positions: the names are partition numbers, such as {"0": 123}') from None
        deadline = time.monotonic() + request.timeout_ms / 1000
        while True:
            reached = served.follower.positions
            if all(reached.get(partition, -1) >= position for partition, position in wanted.items()):
                return served.follower
            if time.monotonic() >= deadline:
                raise NotFreshEnough(
                    f"positions {wanted} were not reached within {request.timeout_ms} ms; reached are {reached}"
                )
            await asyncio.sleep(FRESHNESS_POLL_S)

    def _stored(self, follower: Follower, text: str) -> NDArray[np.float32]:
        id_ = ids.from_text(text, follower.collection.id_format)
        found = searcher.get(follower.views, id_)
        if found is None:
            raise NotFound(f"collection {follower.collection.name!r} holds no id {text!r}")
        return np.array(found.vector)[None, :]


class NotFound(Exception):
    """Answered as 404."""


class NotReady(Exception):
    """Answered as 503."""


def encode(
    follower: Follower, answer: searcher.Answer, request: schemas.SearchRequest, many: bool, started: float
) -> bytes:
    with_metadata, with_vector = "metadata" in request.include, "vector" in request.include
    lists = [[_hit(follower, hit, with_metadata, with_vector) for hit in hits] for hits in answer.hits]
    body: dict[str, Any] = {"results": lists} if many else {"hits": lists[0]}
    body["positions"] = {str(partition): position for partition, position in answer.positions.items()}
    body["generation"] = follower.generation
    body["staleness_ms"] = staleness_ms(follower)
    body["took_ms"] = round((time.perf_counter() - started) * 1000, 3)
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def _hit(follower: Follower, hit: searcher.Hit, with_metadata: bool, with_vector: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": ids.to_text(hit.id, follower.collection.id_format),
        "distance": hit.distance,
    }
    if with_metadata:
        found["metadata"] = raw_json(hit.metadata)
    if with_vector:
        found["vector"] = np.array(hit.vector)
    return found


def raw_json(metadata: bytes | None) -> Any:
    """Metadata as it was written: its bytes go into the answer unparsed."""
    return None if metadata is None else orjson.Fragment(metadata)
