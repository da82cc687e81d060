"""Answering a search: decode, wait for positions when asked, search, encode. The api's hot path.

A cheap single query runs on the event loop itself when nothing else is under way: a hop to another thread
costs about as much as the search. Everything else goes to a pool with one thread per core, through a bounded
queue. No vector passes through Pydantic.
"""

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from api import schemas
from api.answers import encode
from api.mirror import FollowerMirror, Missing, Served
from api.problems import NotFound
from tidemark import filtered, grouped, searcher, service
from tidemark import id as ids
from tidemark.errors import NotFreshEnough, Overloaded
from tidemark.filters.grammar import Filter
from tidemark.filters.paths import parse_path
from tidemark.grouped import Groups
from tidemark.mirror import ViewMirror
from tidemark.searcher import Answer
from tidemark.settings import Settings

T = TypeVar("T")
# Numbers compared on the event loop: 20k rows of 128-d take 0.4 ms.
INLINE_NUMBERS_MAX = 200_000 * 128
# One query of an index takes 0.1 to 0.2 ms, as long as a scan of 6k rows of 128-d.
INDEX_NUMBERS = 6_000 * 128
# A hit takes 6 us to merge and to write, and a number of its vector 0.02.
HIT_NUMBERS, WRITTEN_NUMBERS = 300 * 128, 128
FRESHNESS_POLL_S = 0.002
# More that wait look as often as so many would together: each look takes the event loop some microseconds.
LOOKERS_MAX = 16


class Fresh(Protocol):
    """A request that may want positions to be reached before it is answered."""

    @property
    def min_positions(self) -> dict[str, int] | None: ...

    @property
    def timeout_ms(self) -> int: ...


class UnderWay:
    """Counts requests that are being answered; entering it raises Overloaded when they are too many."""

    def __init__(self, most: int, what: str) -> None:
        self._most, self._what = most, what
        self._count = 0

    def __enter__(self) -> None:
        if self._count >= self._most:
            raise Overloaded(f"{self._count} {self._what}: try again later, or add replicas")
        self._count += 1

    def __exit__(self, *_: object) -> None:
        self._count -= 1

    def seldom(self, interval_s: float) -> float:
        """How long one of them sleeps before it looks again whether it can be answered."""
        return interval_s * max(1.0, self._count / LOOKERS_MAX)


class Searches:
    """Runs searches of all collections; one per process, used on the event loop."""

    def __init__(self, settings: Settings) -> None:
        threads = settings.api.search_threads or len(service.cores())
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="search")
        self._queue_max = settings.api.search_queue_max
        # Half of the places at most are for those who wait for others, so that they do not keep out who need not wait.
        self.under_way = UnderWay(2 * settings.api.search_queue_max, "requests are under way")
        self.for_others = UnderWay(
            settings.api.search_queue_max, "searches wait for positions, or writes for the brokers"
        )
        self.waiting = 0

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def answer(
        self, served: Served, request: schemas.SearchRequest, queries: NDArray[np.float32] | None
    ) -> bytes:
        """The JSON of the answer; without `queries` the row of the request's id is one."""
        with self.under_way:
            return await self._answer(served, request, queries)

    async def _answer(
        self, served: Served, request: schemas.SearchRequest, queries: NDArray[np.float32] | None
    ) -> bytes:
        started = time.perf_counter()
        follower = served.follower()
        if request.min_positions:
            with self.for_others:
                follower = await self.wait_for(served, request)
        asked = self._stored(follower, request) if queries is None else queries

        def work() -> bytes:
            prepared = searcher.prepare_queries(asked, served.collection)
            answer, missing = follower.read(request.allow_partial, lambda view: _found(view, prepared, request))
            return encode(follower, answer, missing, request, started)

        numbers, _ = follower.read(request.allow_partial, lambda view: _numbers(view, len(asked), request))
        cheap = numbers <= INLINE_NUMBERS_MAX
        return work() if cheap and self.waiting == 0 else await self.in_pool(work)

    async def in_pool(self, work: Callable[[], T]) -> T:
        """Run on one of the search threads; raises Overloaded when too much waits for them."""
        if self.waiting >= self._queue_max:
            raise Overloaded(f"{self.waiting} searches are waiting: try again later, or add replicas")
        self.waiting += 1
        try:
            return await asyncio.wrap_future(self._pool.submit(work))
        finally:
            self.waiting -= 1

    async def wait_for(self, served: Served, request: Fresh) -> FollowerMirror:
        """Wait, bounded, until the wanted positions are applied; raises NotFreshEnough."""
        wanted = {int(partition): position for partition, position in (request.min_positions or {}).items()}
        deadline = time.monotonic() + request.timeout_ms / 1000
        while True:
            follower = served.follower()
            reached = follower.positions
            if all(reached.get(partition, -1) >= position for partition, position in wanted.items()):
                return follower
            if time.monotonic() >= deadline:
                raise NotFreshEnough(
                    f"positions {wanted} were not reached within {request.timeout_ms} ms; reached are {reached}"
                    + _open_transactions(follower, wanted)
                )
            await asyncio.sleep(self.for_others.seldom(FRESHNESS_POLL_S))

    def _stored(self, follower: FollowerMirror, request: schemas.SearchRequest) -> NDArray[np.float32]:
        hit, _ = stored(follower, request.id or "", request.allow_partial)
        return hit.vector[None, :]


def _found(view: ViewMirror, queries: NDArray[np.float32], request: schemas.SearchRequest) -> Answer | Groups:
    filter_, k, effort, exact = request.rows, request.k, request.effort, request.exact
    if request.group_by is not None:
        path = parse_path(request.group_by)
        return grouped.search(view, queries, k, request.group_size, path, filter_ or Filter(), effort, exact)
    if filter_ is not None:
        return filtered.search(view, queries, k, filter_, effort, exact)
    return searcher.search(view, queries, k, effort, exact)


def _open_transactions(follower: FollowerMirror, wanted: dict[int, int]) -> str:
    """What to say of open transactions before positions that are not reached; nothing when there are none."""
    return "".join(
        f"; of partition {number} {waiting} offsets wait behind an open transaction: "
        "nobody who reads committed records sees them before it is committed or aborted"
        for partition in follower.partitions
        if partition.status.position < wanted.get(number := partition.number, 0)
        and (waiting := partition.status.open_transaction_offsets)
    )


def stored(follower: FollowerMirror, text: str, allow_partial: bool) -> tuple[searcher.Hit, list[Missing]]:
    """The live row of an id, and the partitions that were not looked into whole; raises NotFound."""
    id_ = ids.from_text(text, follower.collection.id_format)
    found, missing = follower.read(allow_partial, lambda view: searcher.get(view, id_))
    if found is None:
        where = "the partitions of it that can be served hold" if missing else "it holds"
        raise NotFound(f"collection {follower.collection.name!r}: {where} no id {text[:80]!r}")
    return found, missing


def _numbers(view: ViewMirror, queries: int, request: schemas.SearchRequest) -> float:
    """What an answer costs, in numbers compared: an index or a hit costs about as much as a scan of some rows."""
    dimension, snapshot = view.collection.dimension, view.snapshot()
    hit = HIT_NUMBERS + ("vector" in request.include) * dimension * WRITTEN_NUMBERS
    rendered = queries * request.k * hit
    if request.group_by is not None:
        return math.inf
    if request.rows is not None:
        matches = view.matchings.known_count(request.rows, snapshot)
        if matches is None:  # many rows are to be asked
            return math.inf
        if request.exact or matches * dimension <= filtered.RANKED_NUMBERS:
            return rendered + queries * dimension * matches
    if request.exact or view.collection.index.kind == "flat":
        return rendered + queries * dimension * sum(part.row_count for part in snapshot.parts)
    coded = snapshot.index.coded if snapshot.index else 0
    scanned = sum(segment.row_count for segment in snapshot.unindexed)
    scanned += max(0, snapshot.tails[-1].stop - coded) if snapshot.tails else 0
    built = (snapshot.index is not None) + sum(segment.has_graph for segment in snapshot.segments)
    effort = max(1.0, request.effort) * max(1.0, request.k / 100)
    return rendered + queries * (dimension * scanned + built * effort * INDEX_NUMBERS)
