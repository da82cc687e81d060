"""The body of a request: what it is said to be, its bytes up to the cap, and large ones decoded beside the event loop.

Media types are compared as RFC 9110 says: whatever the case, parameters aside. Knows nothing of what bodies hold.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from functools import lru_cache
from typing import TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from tidemark.errors import Overloaded

T = TypeVar("T")
JSON, BYTES = "application/json", "application/octet-stream"
# JSON of so many bytes is decoded in 0.3 ms; beyond, a thread does it while the event loop answers others.
LARGE_BYTES = 64 * 1024
STEP_S, PAUSE_S = 0.002, 0.0001
# Connections times the largest body would be 16 GB by default.
HELD_BYTES_MAX = 256 * 1024 * 1024
_CONTENT_TYPE_BYTES_MAX = 256
_UTF8 = ("utf-8", "utf8", "us-ascii")


def headers(scope: Scope, wanted: bytes) -> bytes:
    """The values of a header, whose name is in lower case, as one list; empty when there is none."""
    return b", ".join([value for name, value in scope["headers"] if name == wanted])


def media_type(scope: Scope, *known: str) -> str:
    """Which of the known media types the body has, "" when it does not say; raises 415 for any other.

    `application/*+json` is JSON.
    """
    said = headers(scope, b"content-type")
    if not said:
        return ""
    found, charset = _parsed(said)
    if found not in known:
        raise HTTPException(415, f"content-type {_shown(said)}: send the header content-type: {' or '.join(known)}")
    if found == JSON and charset not in _UTF8:
        raise HTTPException(415, f"content-type {_shown(said)}: JSON is sent as UTF-8")
    return found


def _shown(value: bytes) -> str:
    return repr(value[:80].decode("latin-1"))


@lru_cache(64)
def _parsed(said: bytes) -> tuple[str, str]:
    """The media type in lower case, and the charset."""
    if len(said) > _CONTENT_TYPE_BYTES_MAX:
        return "", ""
    message = Message()
    message["content-type"] = said.decode("latin-1")
    found = message.get_content_type()
    if found.startswith("application/") and found.endswith("+json"):
        found = JSON
    try:
        return found, message.get_content_charset("utf-8")
    except (TypeError, ValueError):  # a parameter given in two of the ways of RFC 2231
        return "", ""


def is_encoded(content_encoding: bytes) -> bool:
    """Whether the header says that the body is compressed, in a way or in several."""
    return any(coding.strip().lower() not in (b"", b"identity") for coding in content_encoding.split(b","))


def in_steps(items: Iterable[T]) -> Iterator[T]:
    """The items; between the work on two of them other threads run, every few milliseconds.

    A thread that gives the interpreter lock up and takes it again at once, as numpy does for larger arrays, starves
    those that wait for it: each time they are woken too late, and then wait anew. So it sleeps for a moment.
    """
    until = time.perf_counter() + STEP_S
    for item in items:
        yield item
        if time.perf_counter() >= until:
            time.sleep(PAUSE_S)
            until = time.perf_counter() + STEP_S


class Bodies:
    """Receives and decodes bodies: small ones at once, the others one at a time on a thread of its own.

    `bytes_max` is the most of one body; of all that are being received and decoded `held_bytes_max` of this process.
    Python runs one thread at a time, so decoding must go in small steps to let the event loop in between.
    """

    def __init__(self, bytes_max: int, held_bytes_max: int = HELD_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._held, self._held_max = 0, max(held_bytes_max, 2 * bytes_max)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="decode")

    async def decoded(self, receive: Receive, decode: Callable[[bytes], T]) -> T:
        """What `decode` makes of a request's body, also when its length was not announced.

        Raises HTTPException 413 beyond the cap, Overloaded when too much is held, ClientDisconnect.
        """
        body = bytearray()
        try:
            await self._receive(receive, body)
            if len(body) <= LARGE_BYTES:
                return decode(bytes(body))
            return await asyncio.wrap_future(self._thread.submit(decode, bytes(body)))
        finally:
            self._held -= len(body)

    async def _receive(self, receive: Receive, body: bytearray) -> None:
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            piece = message.get("body", b"")
            body += piece
            self._held += len(piece)
            if len(body) > self._bytes_max:
                raise HTTPException(413, f"the body has more than {self._bytes_max} bytes")
            if self._held > self._held_max:
                raise Overloaded(f"bodies of {self._held} bytes are being received: send this one again later")
            more = message.get("more_body", False)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
