"""A small HTTP port for few readers: pages that are made anew for each request, by GET and HEAD.

Each connection has a thread, for one request and at most `CONNECTION_S`. Of more than `CONNECTIONS_MAX` the oldest is
closed, so a client that is slow or silent holds no thread for long and keeps nobody out. Knows nothing of what is on
the pages.
"""

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)

CONNECTION_S = 10.0
CONNECTIONS_MAX = 32
_ALLOWED = "GET, HEAD"


class Page(NamedTuple):
    """An answer of 200, or of another status."""

    content: bytes
    content_type: str
    status: int = 200


class Pages(ThreadingHTTPServer):
    """Serves the pages from a daemon thread from the start; raises OSError when the port is in use."""

    request_queue_size = 128

    def __init__(self, host: str, port: int, pages: Mapping[str, Callable[[], Page]]) -> None:
        self.pages = pages
        self._since: dict[Any, float] = {}
        self._lock = threading.Lock()
        super().__init__((host, port), _Request)
        threading.Thread(target=self.serve_forever, name="pages", daemon=True).start()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            if len(self._since) >= CONNECTIONS_MAX:
                self._end(next(iter(self._since)))
            self._since[request] = time.monotonic()
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Called twice a second."""
        with self._lock:
            for request, since in list(self._since.items()):
                if time.monotonic() - since > CONNECTION_S:
                    self._end(request)

    def _end(self, request: Any) -> None:
        """Let the thread of a connection find its end."""
        self._since.pop(request)
        _shut(request)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._since.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("a client went away, or was too slow", exc_info=True)


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the client was faster
        connection.shutdown(socket.SHUT_RDWR)


class _Request(BaseHTTPRequestHandler):
    server: Pages

    def do_GET(self) -> None:
        make = self.server.pages.get(self.path.partition("?")[0])
        if make is None:
            known = " and ".join(sorted(self.server.pages))
            self._answer(_error(404, "not_found", f"there are {known}"))
        else:
            self._answer(_made(make))

    def do_HEAD(self) -> None:
        self.do_GET()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """The library calls it for what is no request, and with 501 for other methods."""
        if code == HTTPStatus.NOT_IMPLEMENTED:
            self._answer(_error(405, "method_not_allowed", f"there are {_ALLOWED}"), {"allow": _ALLOWED})
        else:
            self._answer(_error(code, "bad_request", message or HTTPStatus(code).phrase))

    def _answer(self, page: Page, headers: Mapping[str, str] = {}) -> None:
        self.request_version = self.protocol_version  # of what is no request it is 0.9, whose answers have no headers
        self.send_response_only(page.status)
        given = {"content-type": page.content_type, "content-length": str(len(page.content)), "connection": "close"}
        for name, value in {**given, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page.content)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _made(make: Callable[[], Page]) -> Page:
    try:
        return make()
    except Exception:
        logger.exception("a page could not be made")
        return _error(500, "internal", "the service failed; its log says why")


def _error(status: int, code: str, message: str) -> Page:
    body = {"error": {"code": code, "message": message}}
    return Page(json.dumps(body).encode(), "application/json", status)
