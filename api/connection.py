"""One HTTP connection: uvicorn's protocol, with bounds on what a client sends and how long it takes to.

uvicorn bounds neither. Here a client has `header_timeout_s` for a request's line and headers, which together have at
most `header_bytes_max`, and `body_timeout_s` for its body. Of more than `connections_max` connections the one that has
kept us waiting longest is closed, so that connections on which nothing goes on keep nobody out. What is refused here
is answered as the application answers errors. Knows nothing of routes. A request that has arrived in one piece, as
small ones do, costs no timer.
"""

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from api import problems

# After a refusal what still comes is thrown away for so long: closed at once, the answer would be lost to a reset.
LINGER_S = 1.0
# In the state of a request's scope: the status of a refusal that the application did not send.
REFUSED_STATUS = "refused_status"


# What a connection waits for. Nothing: it rests between two requests, or its requests are being answered. A request:
# none has begun. The rest of a head or a body: since just now (NEW_), or with a deadline. The end: it was refused.
NOTHING, REQUEST, NEW_HEAD, HEAD, NEW_BODY, BODY, END = range(7)


class Limits(NamedTuple):
    """Bounds of a connection; `connections_max` is for all of the process."""

    header_bytes_max: int
    header_timeout_s: float
    body_timeout_s: float
    connections_max: int


class Refused(Exception):
    """Ends the parsing of a request; its answer is in the connection's `_refusal`."""


class Connection(HttpToolsProtocol):
    """uvicorn makes one for each connection."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: Limits,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._awaits, self._since = REQUEST, 0.0
        self._newest, self._unread = 0, 0  # bytes at hand; those since a part of a request began or ended, or body came
        self._timer: asyncio.TimerHandle | None = None
        self._answering: RequestResponseCycle | None = None
        self._refusal: tuple[int, str, str] | None = None

    # -- the life of a connection --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self._await(REQUEST)
        if len(self.connections) > self._limits.connections_max:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_timer()
        if self._answering is not None:  # not always the newest cycle, the only one that uvicorn tells
            self._answering.disconnected = True
            self._answering.message_event.set()

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn closes in any case
        """A client that only sends no more still gets its answers: it may have closed just its half."""
        if self._is_answered or self._awaits in (NEW_BODY, BODY):
            return False
        self.cycle.keep_alive = False
        return True

    def timeout_keep_alive_handler(self) -> None:
        """Close what has rested for long, also when the last answer has not been read yet."""
        self.transport.abort()

    @property
    def _is_answered(self) -> bool:
        """Whether no request waits for its answer."""
        return not self.pipeline and (self.cycle is None or self.cycle.response_complete)

    def _make_room(self) -> None:
        """Close the connection that has been waiting longest, half requests before those that rest between two."""
        others: set[Any] = self.connections - {self}
        waiting = [c for c in others if c._awaits != NOTHING or c._is_answered]
        if not waiting:
            most = self._limits.connections_max
            self._refuse(503, "overloaded", f"{most} connections wait for answers: try again later, or add replicas")
            return
        longest = min(waiting, key=lambda c: (c._awaits == NOTHING, c._rests_since))
        self.connections.discard(longest)
        longest.transport.abort()

    @property
    def _rests_since(self) -> float:
        """A time that is less the longer it has been waiting."""
        return self.timeout_keep_alive_task.when() if self.timeout_keep_alive_task else self._since

    # -- what a client sends -------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._awaits == END:
            return
        self._newest = len(data)
        self._unread += self._newest
        super().data_received(data)
        awaits = self._awaits
        if awaits == NOTHING:
            if self._is_answered:  # only line ends have come, or the rest of a body that was answered before
                self._await(REQUEST)
        elif self._unread > self._limits.header_bytes_max and awaits != END:
            self._refuse(*self._headers_too_large)
        elif awaits in (NEW_HEAD, NEW_BODY):
            self._await(awaits + 1)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._awaits, self._unread = NEW_HEAD, 0

    def on_headers_complete(self) -> None:
        most = self._limits.header_bytes_max
        if self._unread + self._newest > most and self._head_bytes > most:
            self._stop(*self._headers_too_large)
        if b"#" in self.url:
            self._stop(400, "bad_request", "the request's target has a #: percent-encode it as %23")
        if [name for name, _ in self.headers].count(b"host") != 1 and self.parser.get_http_version() == "1.1":
            self._stop(400, "bad_request", "send the header host, once")
        super().on_headers_complete()
        self.headers = []  # those after the body are not among the request's
        self._awaits, self._unread = NEW_BODY, 0

    @property
    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def _unsupported_upgrade_warning(self) -> None:
        """Said to nobody: an upgrade is an offer, which any client may make with every request."""

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._unread = 0

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._awaits, self._unread = NOTHING, 0

    # -- deadlines -----------------------------------------------------------------------------------------

    def _await(self, what: int) -> None:
        self._awaits, self._since = what, self.loop.time()
        self._stop_timer()
        self._timer = self.loop.call_later(self._allowed_s, self._is_due)

    @property
    def _allowed_s(self) -> float:
        if self._awaits == END:
            return LINGER_S
        return self._limits.body_timeout_s if self._awaits == BODY else self._limits.header_timeout_s

    def _is_due(self) -> None:
        self._timer = None
        if self._awaits == END:
            self.transport.abort()
        elif self._awaits == REQUEST:
            self.transport.close()
        elif self._awaits != NOTHING:
            if self.flow.read_paused or (self._awaits == HEAD and not self._is_answered):
                self._await(self._awaits)  # it is us who do not read, or have not answered the request before
                return
            what = "headers" if self._awaits == HEAD else "body"
            self._refuse(408, "timeout", f"the request's {what} did not arrive within {self._allowed_s:g} s")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- refusals ------------------------------------------------------------------------------------------

    @property
    def _headers_too_large(self) -> tuple[int, str, str]:
        most = self._limits.header_bytes_max
        return 431, "headers_too_large", f"the request's line and headers have more than {most} bytes"

    def _stop(self, *refusal: Any) -> NoReturn:
        self._refusal = refusal
        raise Refused

    def send_400_response(self, msg: str) -> None:
        """uvicorn calls it when the parser, or one of the methods it calls, has failed."""
        self._refuse(*(self._refusal or (400, "bad_request", msg)))

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Answer what is being received, as far as that can be, and read no more requests."""
        awaited, cycle = self._awaits, self.cycle
        self._unset_keepalive_if_required()
        self._await(END)
        in_body = awaited in (NEW_BODY, BODY)
        if not in_body and not self._is_answered:
            self._stop_timer()
            cycle.keep_alive = False  # closes when the requests before have been answered
            return
        if in_body:
            if self.pipeline or cycle.response_started:
                self.transport.abort()
                return
            self.scope["state"][REFUSED_STATUS] = status
            cycle.disconnected = True
            cycle.message_event.set()
        self._answer(status, code, message)

    def _answer(self, status: int, code: str, message: str) -> None:
        found = problems.error(status, code, message)
        headers = [*found.raw_headers, (b"connection", b"close")]
        lines = [STATUS_LINE[status], *(b"%s: %s\r\n" % header for header in headers), b"\r\n", bytes(found.body)]
        self.transport.write(b"".join(lines))
        self.transport.write_eof()


def connections(limits: Limits) -> Callable[..., Connection]:
    """What uvicorn makes connections with."""

    def made(*arguments: Any, **named: Any) -> Connection:
        return Connection(*arguments, **named, limits=limits)

    return made
