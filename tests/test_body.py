"""Large bodies are decoded beside the event loop, in steps between which it goes on."""

import asyncio
import json
import resource
import threading
from typing import Any

import msgspec
import numpy as np
import pytest
from starlette.types import Message, Receive

from api import requests, schemas, search
from api.body import LARGE_BYTES, Bodies
from tests.views import opened
from tidemark.collection import Collection
from tidemark.errors import BadQuery, Overloaded
from tidemark.mirror import ViewMirror


def sent(body: bytes) -> Receive:
    """A request's body, in one piece."""

    async def receive() -> Message:
        return {"type": "http.request", "body": body}

    return receive


def test_bodies_together_are_bounded_and_one_is_taken_again_when_another_is_done() -> None:
    bodies, decoded = Bodies(1_000, held_bytes_max=2_000), asyncio.Event()

    async def waiting() -> Message:
        await decoded.wait()
        return {"type": "http.request"}

    def slow(first: bytes) -> Receive:
        pieces = iter([{"type": "http.request", "body": first, "more_body": True}])

        async def receive() -> Message:
            return next(pieces, None) or await waiting()

        return receive

    async def run() -> None:
        held = [asyncio.create_task(bodies.decoded(slow(b"x" * 800), len)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="2400 bytes"):
            await bodies.decoded(sent(b"y" * 800), len)
        decoded.set()
        assert await asyncio.gather(*held) == [800, 800]
        assert await bodies.decoded(sent(b"y" * 800), len) == 800

    asyncio.run(run())
    bodies.close()


def test_the_event_loop_goes_on_while_a_large_body_is_decoded() -> None:
    bodies, loop_went_on = Bodies(10**6), threading.Event()

    async def other_work() -> None:
        loop_went_on.set()

    async def both() -> bool:
        decoded = bodies.decoded(sent(b" " * (LARGE_BYTES + 1)), lambda _: loop_went_on.wait(20))
        return (await asyncio.gather(decoded, other_work()))[0]

    assert asyncio.run(both())
    bodies.close()


def test_what_is_wrong_with_a_large_body_reaches_who_sent_it() -> None:
    bodies = Bodies(10**6)
    with pytest.raises(BadQuery, match="not JSON"):
        asyncio.run(bodies.decoded(sent(b"{" + b" " * LARGE_BYTES), requests.search_request))
    bodies.close()


def test_other_threads_are_let_run_all_the_while_sixteen_megabytes_are_decoded() -> None:
    """The kernel counts how often the decoding thread sleeps by itself: a count that no other load changes."""
    body = json.dumps({"vectors": np.random.default_rng(1).random((1_000, 900)).tolist()}).encode()
    assert len(body) > 15_000_000
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    requests.search_request(body)
    # Decoded in one call, which lets no other thread run, it is a handful.
    assert resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before >= 10


def test_the_vectors_of_a_large_write_are_left_for_later() -> None:
    line = {"id": "a", "vector": [0.5] * 100}
    request = requests.write_request(json.dumps({"upserts": [line] * 1_000}).encode())
    assert isinstance(request.upserts[0].vector, msgspec.Raw)
    assert requests.numbers(request.upserts[0].vector).tolist() == [0.5] * 100


def test_an_answer_that_takes_long_to_write_is_made_in_the_pool() -> None:
    view = opened(Collection(name="c", topic="t", dimension=128, metric="l2"))
    mirror = ViewMirror(view.collection, view.place)

    def inline(queries: int, **asked: Any) -> bool:
        return search._numbers(mirror, queries, schemas.SearchRequest(**asked)) <= search.INLINE_NUMBERS_MAX

    assert inline(1, k=10) and inline(1, k=100) and inline(10, k=10)
    assert not inline(1, k=1_000)
    assert not inline(100, k=10)
    assert inline(1, k=100, include=("metadata",)) and not inline(16, k=100, include=("vector",))
