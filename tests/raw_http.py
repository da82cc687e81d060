"""HTTP over a bare socket, byte for byte as a test writes it: clients put paths and headers in order first."""

import contextlib
import json
import socket
from collections.abc import Iterator
from http.client import HTTPResponse
from typing import Any, NamedTuple

import httpx


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class RawConnection:
    """One connection to a service; `sendall` what is to go over it."""

    def __init__(self, client: httpx.Client, timeout_s: float = 20.0) -> None:
        assert client.base_url.port is not None
        self.socket = socket.create_connection((client.base_url.host, client.base_url.port), timeout_s)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self, method: str = "GET") -> Answer:
        """The next answer; nothing of what follows it is read."""
        response = HTTPResponse(_Unbuffered(self.socket), method=method)  # type: ignore[arg-type]  # it needs makefile only
        response.begin()
        body = response.read()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, body)

    def is_closed(self) -> bool:
        """Waits until the other side has closed."""
        with contextlib.suppress(ConnectionResetError):
            while self.socket.recv(65_536):
                pass
        return True

    def close(self) -> None:
        self.socket.close()


class _Unbuffered:
    """A socket whose file takes no byte beyond what is asked for: the next answer is still there."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def makefile(self, mode: str) -> Any:
        return self._connection.makefile(mode, buffering=0)


@contextlib.contextmanager
def connected(client: httpx.Client, timeout_s: float = 20.0) -> Iterator[RawConnection]:
    connection = RawConnection(client, timeout_s)
    try:
        yield connection
    finally:
        connection.close()


def ask(client: httpx.Client, method: str, target: bytes, *headers: bytes, body: bytes = b"") -> Answer:
    """One request with exactly this target."""
    with connected(client) as connection:
        lines = [method.encode() + b" " + target + b" HTTP/1.1", b"host: tests", b"connection: close", *headers]
        if body:
            lines.append(b"content-length: %d" % len(body))
        connection.send(b"\r\n".join([*lines, b"", b""]) + body)
        return connection.answer(method)
