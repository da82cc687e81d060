"""Answering a search: decode, wait for positions when asked, search, encode. The api's hot path.

A cheap single query runs on the event loop itself when nothing else is under way: a hop to another thread
costs about as much as the search. Everything else goes to a pool with one thread per core, through a bounded
queue. No vector passes through Pydantic.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray

from api import schemas
from api.mirror import FollowerMirror, Missing, Served
from api.problems import NotFound
from tidemark import id as ids
from tidemark import searcher, service
from tidemark.errors import BadQuery, NotFreshEnough, Overloaded
from tidemark.mirror import ViewMirror
from tidemark.settings import Settings

T = TypeVar("T")
# Numbers compared on the event loop: 20k rows of 128-d take 0.4 ms.
INLINE_NUMBERS_MAX = 200_000 * 128
# One query of an index takes 0.1 to 0.2 ms, as long as a scan of 6k rows of 128-d.
INDEX_NUMBERS = 6_000 * 128
# A hit takes 6 us to merge and to write, and a number of its vector 0.02.
HIT_NUMBERS, WRITTEN_NUMBERS = 300 * 128, 128
ANSWER_BYTES_MAX = 256 * 2**20
# So many are written as JSON in one call, in which no other thread runs: with vectors of 3072-d it takes 1 ms.
HITS_TOGETHER = 16
FRESHNESS_POLL_S = 0.002
# More that wait look as often as so many would together: each look takes the event loop some microseconds.
LOOKERS_MAX = 16
FLOAT32_MAX = float(np.finfo(np.float32).max)  # JSON has no infinity


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
            answer, missing = follower.read(
                request.allow_partial,
                lambda view: searcher.search(view, prepared, request.k, request.effort, request.exact),
            )
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


def name_missing(body: dict[str, Any], missing: list[Missing]) -> None:
    """Say in an answer which partitions it does not hold; nothing when it holds all."""
    if missing:
        body["partial"] = True
        body["missing"] = [{"partition": partition, "why": why} for partition, why in missing]


def _numbers(view: ViewMirror, queries: int, request: schemas.SearchRequest) -> float:
    """What an answer costs, in numbers compared: an index or a hit costs about as much as a scan of some rows."""
    dimension, snapshot = view.collection.dimension, view.snapshot()
    hit = HIT_NUMBERS + ("vector" in request.include) * dimension * WRITTEN_NUMBERS
    rendered = queries * request.k * hit
    if request.exact or view.collection.index.kind == "flat":
        return rendered + queries * dimension * sum(part.row_count for part in snapshot.parts)
    coded = snapshot.index.coded if snapshot.index else 0
    scanned = sum(segment.row_count for segment in snapshot.unindexed)
    scanned += max(0, snapshot.tails[-1].stop - coded) if snapshot.tails else 0
    built = (snapshot.index is not None) + sum(segment.has_graph for segment in snapshot.segments)
    effort = max(1.0, request.effort) * max(1.0, request.k / 100)
    return rendered + queries * (dimension * scanned + built * effort * INDEX_NUMBERS)


def encode(
    follower: FollowerMirror,
    answer: searcher.Answer,
    missing: list[Missing],
    request: schemas.SearchRequest,
    started: float,
) -> bytes:
    """The answer as JSON; raises BadQuery when it gets too large."""
    with_metadata, with_vector = "metadata" in request.include, "vector" in request.include
    lists: list[Any] = []
    left = ANSWER_BYTES_MAX
    for hits in answer.hits:
        # Other threads run between two calls of the encoder, not during one.
        parts = [hits[at : at + HITS_TOGETHER] for at in range(0, len(hits), HITS_TOGETHER)]
        texts = [_dumped([_hit(follower, hit, with_metadata, with_vector) for hit in part])[1:-1] for part in parts]
        left -= sum(map(len, texts))
        if left < 0:
            raise BadQuery(f"the answer has more than {ANSWER_BYTES_MAX} bytes: ask for fewer hits, or include less")
        lists.append(orjson.Fragment(b"[%s]" % b",".join(texts)))
    body: dict[str, Any] = {"hits": lists[0]} if request.vectors is None else {"results": lists}
    body["positions"] = {str(partition): position for partition, position in answer.positions.items()}
    body["generation"] = follower.generation
    body["staleness_ms"] = follower.staleness_ms
    name_missing(body, missing)
    body["took_ms"] = round((time.perf_counter() - started) * 1000, 3)
    return _dumped(body)


def _dumped(body: Any) -> bytes:
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def _hit(follower: FollowerMirror, hit: searcher.Hit, with_metadata: bool, with_vector: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": ids.to_text(hit.id, follower.collection.id_format),
        "distance": min(max(hit.distance, -FLOAT32_MAX), FLOAT32_MAX),
    }
    if with_metadata:
        found["metadata"] = raw_json(hit.metadata)
    if with_vector:
        found["vector"] = hit.vector
    return found


def raw_json(metadata: bytes | None) -> Any:
    """Metadata as it was written: its bytes go into the answer unparsed."""
    return None if metadata is None else orjson.Fragment(metadata)
