"""The consumer's HTTP port: its pages by GET and HEAD, and clients that hold nothing up."""

import contextlib
import socket
import threading
from collections.abc import Iterator

import httpx
import pytest

from consumer import pages
from consumer.pages import CONNECTION_S, CONNECTIONS_MAX, Page, Pages
from tests.raw_http import ask, connected
from tests.services import wait_until


def broken() -> Page:
    raise RuntimeError("no page")


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    made = {"/a": lambda: Page(b"text", "text/plain"), "/b": lambda: Page(b"{}", "application/json", 503), "/c": broken}
    server = Pages("127.0.0.1", 0, made)
    with httpx.Client(base_url=f"http://127.0.0.1:{server.server_port}", timeout=20) as found:
        yield found
    server.shutdown()
    server.server_close()


def test_pages_are_answered_by_get_and_head(client: httpx.Client) -> None:
    for path in ("/a", "/a?name=value"):
        get, head = client.get(path), client.head(path)
        assert (get.status_code, get.text, get.headers["content-type"]) == (200, "text", "text/plain")
        assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "4")
        assert "server" not in get.headers
    assert client.get("/b").status_code == client.head("/b").status_code == 503


def test_what_is_not_there_is_said_in_the_shape_of_all_errors(client: httpx.Client) -> None:
    assert client.get("/nothing").json()["error"]["code"] == "not_found"
    assert client.head("/nothing").status_code == 404
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "NONSENSE"):
        answer = client.request(method, "/a")
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
        assert answer.json()["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /a HTTP/9\r\n\r\n", 400),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET /a HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", 431),
        (b"GET /a HTTP/1.1\r\na: " + b"x" * 70_000 + b"\r\n\r\n", 431),
    ],
    ids=range(5),
)
def test_a_bad_request_gets_a_reason(client: httpx.Client, request_: bytes, status: int) -> None:
    with connected(client) as connection, contextlib.suppress(ConnectionResetError):
        connection.send(request_)
        answer = connection.answer()
        assert (answer.status, answer.json["error"]["code"]) == (status, "bad_request")


def test_a_page_that_cannot_be_made_leaves_the_others(client: httpx.Client) -> None:
    assert client.get("/c").json()["error"]["code"] == "internal"
    assert client.get("/a").status_code == 200


@pytest.mark.parametrize("begin", [b"", b"G", b"GET /a HTTP/1.1\r\n"])
def test_clients_that_send_nothing_more_hold_few_threads_and_nobody_up(client: httpx.Client, begin: bytes) -> None:
    before = threading.active_count()
    with contextlib.ExitStack() as stack:
        for _ in range(4 * CONNECTIONS_MAX):
            stack.enter_context(connected(client)).send(begin)
        assert ask(client, "GET", b"/a").status == 200
        wait_until(lambda: threading.active_count() <= before + CONNECTIONS_MAX + 1, CONNECTION_S / 2)


def test_a_client_that_takes_too_long_is_given_up(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "CONNECTION_S", 0.5)
    with connected(client) as connection:
        connection.send(b"GET /a HTTP/1.1\r\na: ")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while not _has_ended(connection.socket):
                connection.send(b"x")
    assert client.get("/a").status_code == 200


def _has_ended(connection: socket.socket) -> bool:
    connection.settimeout(0.05)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
