"""The outermost layer: refuses what no route takes, leads searches past the rest, and times every request.

Plain ASGI, because a request passes here whatever it asks for; it never reads a body. HEAD is answered wherever GET
is: as GET, and uvicorn leaves the body out.
"""

import time
from urllib.parse import unquote_to_bytes

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import problems
from api.body import is_encoded
from api.connection import REFUSED_STATUS
from api.metrics import Metrics
from api.search_route import SEARCH_ROUTE, SearchRoute

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
        asked = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        try:
            await (self._refusal(scope) or (self._search if search else self._app))(asked, receive, noting)
        except ClientDisconnect:
            status = scope.get("state", {}).get(REFUSED_STATUS, CLIENT_CLOSED)  # nobody waits for an answer of ours
        finally:
            route = SEARCH_ROUTE if search else getattr(asked.get("route"), "path", "none")
            self._metrics.observe(route, status, time.perf_counter() - started)

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        """What is answered at once: bodies that are too large or compressed, paths that are no text."""
        for name, value in scope["headers"]:
            if name == b"content-length" and not (value.isdigit() and int(value) <= self._body_bytes_max):
                announced = value[:20].decode("latin-1")
                allowed = self._body_bytes_max
                return problems.error(413, "too_large", f"the body has {announced} bytes, at most {allowed}")
            if name == b"content-encoding" and is_encoded(value):
                coding = value[:80].decode("latin-1")
                return problems.error(
                    415, "unsupported_media_type", f"content-encoding {coding!r}: send it without content-encoding"
                )
        if b"%" in scope["raw_path"] and not _is_text(unquote_to_bytes(scope["raw_path"])):
            return problems.error(422, "bad_request", "the path is not UTF-8: percent-encode the id's UTF-8 bytes")
        return None


def _is_text(path: bytes) -> bool:
    try:
        path.decode()
    except UnicodeDecodeError:
        return False
    return True
