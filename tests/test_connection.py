"""Bounds of HTTP connections: uvicorn with our protocol over real sockets, in front of a small application."""

import asyncio
import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st

from api.connection import LINGER_S, Limits, connections
from tests.raw_http import Answer, RawConnection, ask, connected
from tests.services import wait_until

HEADER_BYTES, HEADER_S, BODY_S, CONNECTIONS = 8_192, 1.0, 1.5, 16
HEAD = b"GET /small HTTP/1.1\r\nhost: tests\r\n"


class App:
    """Answers with the body's length; `/slow` waits, `/early` answers before the body has come."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.gone = 0  # requests whose client went away before the body was there
        self.slow = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        length, more = 0, scope["path"] != "/early"
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.gone += 1
                return
            length, more = length + len(message["body"]), message["more_body"]
        if scope["path"] == "/slow":
            self.slow += 1
            while not self.go_on.is_set():
                await asyncio.sleep(0.01)
        body = json.dumps({"length": length, "headers": len(scope["headers"]), "path": scope["path"]}).encode()
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@contextlib.contextmanager
def served(**changes: Any) -> Iterator[tuple[App, httpx.Client]]:
    """The application behind a real server with small limits."""
    app = App()
    limits = Limits(HEADER_BYTES, HEADER_S, BODY_S, CONNECTIONS)._replace(**changes)
    config = uvicorn.Config(
        app,
        http=connections(limits),  # type: ignore[arg-type]  # it is only called
        loop="uvloop",
        ws="none",
        lifespan="off",
        log_config=None,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=20) as client:
            try:
                wait_until(lambda: server.started)
                yield app, client
            finally:
                app.go_on.set()
                server.should_exit = True
                thread.join()


@pytest.fixture
def app() -> Iterator[tuple[App, httpx.Client]]:
    with served() as found:
        yield found


@pytest.fixture
def client(app: tuple[App, httpx.Client]) -> httpx.Client:
    return app[1]


def dribble(connection: RawConnection, data: bytes, until: Callable[[], bool]) -> None:
    """Send the same bytes again and again, slowly, until the other side has had enough."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while not until():
            connection.send(data)
            time.sleep(0.02)


def has_answer(connection: RawConnection) -> bool:
    connection.socket.setblocking(False)
    try:
        return bool(connection.socket.recv(1, socket.MSG_PEEK)) or True
    except BlockingIOError:
        return False
    finally:
        connection.socket.settimeout(20)


def assert_refused(answer: Answer, status: int, code: str) -> None:
    assert (answer.status, answer.json["error"]["code"]) == (status, code)
    assert answer.headers["connection"] == "close"


def test_a_connection_on_which_no_request_begins_is_closed(client: httpx.Client) -> None:
    with connected(client) as silent, connected(client) as connection:
        connection.send(b"\r\n")
        assert connection.is_closed()
        assert silent.is_closed()


@pytest.mark.parametrize("begin", [b"G", HEAD, HEAD + b"a: "])
def test_headers_that_come_slowly_are_given_up(client: httpx.Client, begin: bytes) -> None:
    with connected(client) as connection:
        connection.send(begin)
        dribble(connection, b"E" if begin == b"G" else b"x", lambda: has_answer(connection))
        if begin == b"G":  # no method begins so: refused as soon as that is seen
            assert_refused(connection.answer(), 400, "bad_request")
        else:
            assert_refused(connection.answer(), 408, "timeout")
        assert connection.is_closed()


@pytest.mark.parametrize("length", [b"content-length: 100000", b"transfer-encoding: chunked"])
def test_a_body_that_comes_slowly_is_given_up_and_the_application_told(
    app: tuple[App, httpx.Client], length: bytes
) -> None:
    with connected(app[1]) as connection:
        connection.send(b"POST / HTTP/1.1\r\nhost: tests\r\n" + length + b"\r\n\r\n")
        dribble(connection, b"x" if b"length" in length else b"1\r\nx\r\n", lambda: has_answer(connection))
        assert_refused(connection.answer(), 408, "timeout")
        assert connection.is_closed()
    wait_until(lambda: app[0].gone == 1)


def test_a_connection_that_rests_between_requests_is_kept(client: httpx.Client) -> None:
    with connected(client) as connection:
        for pause_s in (1.2 * HEADER_S, 0.0):
            connection.send(HEAD + b"\r\n")
            assert connection.answer().status == 200
            time.sleep(pause_s)


@pytest.mark.parametrize("name", [b"one", b"many", b"target", b"name"])
def test_headers_that_are_too_large_are_refused(client: httpx.Client, name: bytes) -> None:
    for size in (HEADER_BYTES + 1, 20 * HEADER_BYTES, 2_000_000):
        head = {
            b"one": HEAD + b"a: " + b"x" * size,
            b"many": HEAD + b"a:b\r\n" * (size // 5),
            b"target": b"GET /" + b"x" * size + b" HTTP/1.1\r\nhost: tests\r\n",
            b"name": HEAD + b"x" * size + b": a",
        }[name]
        with connected(client) as connection:
            connection.send(head + b"\r\n\r\n")
            assert_refused(connection.answer(), 431, "headers_too_large")
            assert connection.is_closed()


def test_a_header_of_sixty_four_megabytes_is_not_taken_in(client: httpx.Client) -> None:
    with connected(client) as connection:
        connection.send(HEAD + b"a: ")
        sent = 0
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(1_024):
                connection.send(b"x" * 65_536)
                sent += 65_536
        with contextlib.suppress(ConnectionResetError):
            assert_refused(connection.answer(), 431, "headers_too_large")
    assert client.get("/small").status_code == 200


def test_headers_that_just_fit_are_taken(client: httpx.Client) -> None:
    head = HEAD + b"a: " + b"x" * (HEADER_BYTES - len(HEAD) - 20)
    with connected(client) as connection:
        for _ in range(3):
            connection.send(head + b"\r\n\r\n")
            assert connection.answer().json["headers"] == 2


@pytest.mark.parametrize("endless", [b"a: " + b"x" * 1_000 + b"\r\n", b"1;" + b"x" * 100_000, b"0" * 1_000])
def test_what_is_not_of_a_body_within_it_is_bounded_too(client: httpx.Client, endless: bytes) -> None:
    with connected(client) as connection:
        connection.send(b"POST / HTTP/1.1\r\nhost: tests\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n")
        if endless.startswith(b"a"):
            connection.send(b"0\r\n")
        dribble(connection, endless, lambda: has_answer(connection))
        assert connection.answer().status in (400, 431)


def test_headers_after_a_body_are_not_among_those_of_the_request(client: httpx.Client) -> None:
    body = b"3\r\nabc\r\n0\r\ncontent-encoding: gzip\r\nhost: b\r\n\r\n"
    answer = ask(client, "POST", b"/", b"transfer-encoding: chunked\r\n\r\n" + body[:-4])
    assert answer.json == {"length": 3, "headers": 3, "path": "/"}


def test_requests_sent_at_once_are_answered_in_their_order(client: httpx.Client) -> None:
    count = 300
    with connected(client) as connection:
        requests = b"".join(b"GET /%d HTTP/1.1\r\nhost: tests\r\na: %s\r\n\r\n" % (n, b"x" * 500) for n in range(count))
        sender = threading.Thread(target=connection.send, args=(requests + HEAD,))
        sender.start()
        assert [connection.answer().json["path"] for _ in range(count)] == [f"/{n}" for n in range(count)]
        sender.join()
        connection.send(b"\r\n")
        assert connection.answer().json["path"] == "/small"


@pytest.mark.parametrize("bad", [b"nonsense\r\n\r\n", HEAD + b"host: again\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"])
def test_what_was_asked_before_a_bad_request_is_still_answered(app: tuple[App, httpx.Client], bad: bytes) -> None:
    with connected(app[1]) as connection:
        connection.send(b"GET /slow HTTP/1.1\r\nhost: tests\r\n\r\n" + HEAD + b"\r\n" + bad)
        wait_until(lambda: app[0].slow == 1)
        time.sleep(1.2 * LINGER_S)
        app[0].go_on.set()
        assert [connection.answer().json["path"] for _ in range(2)] == ["/slow", "/small"]
        assert connection.is_closed()


def test_a_client_that_has_closed_its_half_is_still_answered(app: tuple[App, httpx.Client]) -> None:
    with connected(app[1]) as connection:
        connection.send(b"GET /slow HTTP/1.1\r\nhost: tests\r\n\r\n" + HEAD + b"\r\n")
        connection.socket.shutdown(socket.SHUT_WR)
        wait_until(lambda: app[0].slow == 1)
        app[0].go_on.set()
        assert [connection.answer().json["path"] for _ in range(2)] == ["/slow", "/small"]
        assert connection.is_closed()


def test_answers_to_a_client_that_is_gone_fail_nothing(
    app: tuple[App, httpx.Client], caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(1, 4):
        with connected(app[1]) as connection:
            connection.send(b"GET /slow HTTP/1.1\r\nhost: tests\r\n\r\n" + (HEAD + b"\r\n") * number)
            wait_until(lambda number=number: app[0].slow == number)
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    time.sleep(0.2)  # for the resets to arrive
    app[0].go_on.set()
    assert app[1].get("/slow").status_code == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_half_a_request_is_waited_for_from_when_the_one_before_is_answered(app: tuple[App, httpx.Client]) -> None:
    with connected(app[1]) as connection:
        connection.send(b"GET /slow HTTP/1.1\r\nhost: tests\r\n\r\n" + HEAD)
        wait_until(lambda: app[0].slow == 1)
        time.sleep(1.2 * HEADER_S)
        app[0].go_on.set()
        assert connection.answer().json["path"] == "/slow"
        connection.send(b"\r\n")
        assert connection.answer().json["path"] == "/small"


def test_a_request_answered_before_its_body_has_come_leaves_the_connection_usable(client: httpx.Client) -> None:
    with connected(client) as connection:
        connection.send(b"POST /early HTTP/1.1\r\nhost: tests\r\ncontent-length: 300000\r\n\r\n")
        assert connection.answer().json["length"] == 0
        connection.send(b"x" * 300_000 + HEAD + b"\r\n")
        assert connection.answer().json["path"] == "/small"
        connection.send(b"POST /early HTTP/1.1\r\nhost: tests\r\ncontent-length: 300000\r\n\r\n")
        assert connection.answer().json["length"] == 0
        assert connection.is_closed()  # the body never comes


@pytest.mark.parametrize(
    "request_",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\nhost: tests\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"GET /a#b HTTP/1.1\r\nhost: tests\r\n\r\n",
        b"GET /\xc3\xa9 HTTP/1.1\r\nhost: tests\r\n\r\n",
        b"GET  HTTP/1.1\r\nhost: tests\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost : tests\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: tests\r\na\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: tests\r\na: \0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: tests\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: tests\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        b"POST / HTTP/1.1\r\nhost: tests\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: tests\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\nhost: tests\r\ntransfer-encoding: chunked\r\n\r\n1\r\nabc\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_no_request_is_400_in_the_shape_of_all_errors(client: httpx.Client, request_: bytes) -> None:
    with connected(client) as connection:
        connection.send(request_)
        assert_refused(connection.answer(), 400, "bad_request")
        assert connection.is_closed()
    assert client.get("/small").status_code == 200


def test_a_request_of_http_1_0_needs_no_host(client: httpx.Client) -> None:
    with connected(client) as connection:
        connection.send(b"GET /small HTTP/1.0\r\n\r\n")
        assert connection.answer().status == 200
        assert connection.is_closed()


@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket"])
def test_an_upgrade_that_is_not_offered_is_answered_as_if_it_was_not_asked_for(
    client: httpx.Client, upgrade: bytes
) -> None:
    with connected(client) as connection:
        connection.send(HEAD + b"connection: upgrade\r\nupgrade: " + upgrade + b"\r\n\r\n")
        assert connection.answer().status == 200
    assert client.get("/small").status_code == 200


@pytest.mark.parametrize(
    "begin", [b"", b"G", HEAD, b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nx", HEAD + b"\r\n"]
)
def test_idle_connections_keep_nobody_out(begin: bytes) -> None:
    with served(header_timeout_s=60.0, body_timeout_s=60.0) as (app, client), contextlib.ExitStack() as stack:
        first = stack.enter_context(connected(client))
        first.send(b"GET /slow HTTP/1.1\r\nhost: tests\r\n\r\n")
        wait_until(lambda: app.slow == 1)
        for _ in range(3 * CONNECTIONS):
            idle = stack.enter_context(connected(client))
            idle.send(begin)
        for _ in range(3):
            assert ask(client, "GET", b"/small").status == 200
        app.go_on.set()
        assert first.answer().json["path"] == "/slow"


def test_a_connection_too_many_is_told_so_when_all_others_wait_for_answers() -> None:
    with served() as (app, client), contextlib.ExitStack() as stack:
        busy = [stack.enter_context(connected(client)) for _ in range(CONNECTIONS)]
        for number, connection in enumerate(busy):
            connection.send(b"GET /slow HTTP/1.1\r\nhost: tests\r\n\r\n")
            wait_until(lambda number=number: app.slow == number + 1)
        answer = stack.enter_context(connected(client)).answer()
        assert_refused(answer, 503, "overloaded")
        assert answer.headers["retry-after"]
        app.go_on.set()
        assert [connection.answer().status for connection in busy] == [200] * CONNECTIONS


PIECES = [
    *(HEAD, b"\r\n", b"\n", b"GET ", b"/", b" HTTP/1.1", b"host: a\r\n", b"a: b\r\n", b"\0", b"\xff", b"1\r\nx\r\n"),
    *(b"content-length: 3\r\n\r\n", b"transfer-encoding: chunked\r\n\r\n", b"0\r\n\r\n", b"POST / HTTP/1.1\r\n"),
]


@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=8), max_size=12))
@settings(max_examples=60)
def test_whatever_comes_the_next_client_is_served(shared: httpx.Client, parts: list[bytes]) -> None:
    with connected(shared) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.send(b"".join(parts))
            connection.socket.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while received := connection.socket.recv(65_536):
                assert b" 500 " not in received
    assert shared.get("/small").status_code == 200


@pytest.fixture(scope="module")
def shared() -> Iterator[httpx.Client]:
    with served() as (_, client):
        yield client
