"""The outermost layer: refuses bodies announced as too large, and times every request.

Plain ASGI, because a request passes here whatever it asks for; it never reads a body.
"""

import time

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.metrics import Metrics


def error(status: int, code: str, message: str) -> Response:
    """The one shape of every error."""
    headers = {"retry-after": "1"} if status in (429, 503) else None
    return JSONResponse({"error": {"code": code, "message": message}}, status, headers=headers)


class Edge:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, body_bytes_max: int, metrics: Metrics) -> None:
        self._app = app
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

        try:
            refused = self._refused(Headers(scope=scope))
            await (refused or self._app)(scope, receive, noting)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.observe(route, status, time.perf_counter() - started)

    def _refused(self, headers: Headers) -> Response | None:
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length) <= self._body_bytes_max:
            return None
        return error(413, "too_large", f"the body has {length[:20]} bytes, at most {self._body_bytes_max}")
