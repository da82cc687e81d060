"""The route of searches: plain ASGI, because what frameworks do for a request takes half as long as a search."""

import re
import time
from collections.abc import Callable
from functools import partial

from starlette.datastructures import QueryParams
from starlette.types import Receive, Scope, Send

from api import problems
from api.body import BYTES, JSON, Bodies, media_type
from api.metrics import Metrics
from api.mirror import Replica
from api.requests import Queries, binary_request, search_request
from api.schemas import SearchRequest
from api.search import Searches

SEARCH_ROUTE = "/collections/{c}/search"
_path = re.compile("/collections/([^/]+)/search").fullmatch


class SearchRoute:
    """ASGI application of `POST /collections/{c}/search`."""

    def __init__(self, replica: Replica, searches: Searches, bodies: Bodies, metrics: Metrics) -> None:
        self._replica, self._searches, self._bodies, self._metrics = replica, searches, bodies, metrics

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
        kind = media_type(scope, JSON, BYTES)
        collection = served.collection
        decode: Callable[[bytes], tuple[SearchRequest, Queries | None]]
        decode = partial(search_request, id_format=collection.id_format)
        if kind == BYTES:
            parameters = QueryParams(scope["query_string"])
            decode = partial(
                binary_request,
                dimension=collection.dimension,
                parameters=parameters,
                id_format=collection.id_format,
            )
        asked, queries = await self._bodies.decoded(receive, decode)
        started = time.perf_counter()
        answer = await self._searches.answer(served, asked, queries)
        self._metrics.searched(name, time.perf_counter() - started)
        return answer
