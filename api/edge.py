"""The outermost layer: refuses bodies announced as too large, leads searches past the rest, and times every request.

Plain ASGI, because a request passes here whatever it asks for; it never reads a body.
"""

import time

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import problems
from api.metrics import Metrics
from api.search_route import SEARCH_ROUTE, SearchRoute, header

CLIENT_CLOSED = 499  # in metrics only, as nginx counts it


class Edge:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, body_bytes_max: int, metrics: Metrics, search: SearchRoute) -> None:
        self._app, self._search = app, search
        self._body_bytes_max = body_bytes_max
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        search = self._search.answers(scope)
        try:
            await (self._refusal(scope) or (self._search if search else self._app))(scope, receive, noting)
        except ClientDisconnect:
            status = CLIENT_CLOSED  # nobody waits for an answer
        finally:
            route = SEARCH_ROUTE if search else getattr(scope.get("route"), "path", "none")
            self._metrics.observe(route, status, time.perf_counter() - started)

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        length = header(scope, b"content-length", b"0")
        if length.isdigit() and int(length) <= self._body_bytes_max:
            return None
        announced = length[:20].decode("latin-1")
        return problems.error(413, "too_large", f"the body has {announced} bytes, at most {self._body_bytes_max}")
