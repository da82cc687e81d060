"""The route of searches: plain ASGI, because what frameworks do for a request takes half as long as a search."""

import re
import time

from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from api import problems, schemas
from api.metrics import Metrics
from api.mirror import Replica
from api.search import Searches

SEARCH_ROUTE = "/collections/{c}/search"
BYTES = "application/octet-stream"
_path = re.compile("/collections/([^/]+)/search").fullmatch


def header(scope: Scope, wanted: bytes, otherwise: bytes = b"") -> bytes:
    """The first header of that name, which is in lower case."""
    return next((value for name, value in scope["headers"] if name == wanted), otherwise)


async def body_of(receive: Receive, bytes_max: int) -> bytes:
    """The body of a request, never more than the cap, also when its length was not announced."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > bytes_max:
            raise HTTPException(413, f"the body has more than {bytes_max} bytes")
        if not message.get("more_body"):
            return bytes(body)


class SearchRoute:
    """ASGI application of `POST /collections/{c}/search`."""

    def __init__(self, replica: Replica, searches: Searches, metrics: Metrics) -> None:
        self._replica, self._searches, self._metrics = replica, searches, metrics
        self._body_bytes_max = replica.settings.api.body_bytes_max

    @staticmethod
    def answers(scope: Scope) -> bool:
        return scope["method"] == "POST" and _path(scope["path"]) is not None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            answer = await self._answer(scope, receive)
        except problems.KINDS as problem:
            await problems.answer_to(problem)(scope, receive, send)
            return
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def _answer(self, scope: Scope, receive: Receive) -> bytes:
        name = scope["path"].split("/")[2]
        served = self._replica.served(name)
        body = await body_of(receive, self._body_bytes_max)
        queries = None
        if header(scope, b"content-type").startswith(BYTES.encode()):
            queries = schemas.queries_from_bytes(body, served.collection.dimension)
            asked = schemas.binary_request(len(queries), QueryParams(scope["query_string"]))
        else:
            asked = schemas.search_request(body)
        started = time.perf_counter()
        answer = await self._searches.answer(served, asked, queries)
        self._metrics.searched(name, time.perf_counter() - started)
        return answer
