"""A broker of a cluster of one with the topic `docs`: it answers metadata only, and once `fenced` names no broker.

So does a real one for a moment when it was suspended for longer than the controller waits, and goes on.
"""

import socketserver
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_METADATA, _API_VERSIONS = 3, 18
_METADATA_VERSION = 8
_UNSUPPORTED_VERSION = 35


class FencedBroker(socketserver.ThreadingTCPServer):
    """Serves until closed; `fenced` may be set at any moment."""

    daemon_threads = True
    fenced = False

    @property
    def address(self) -> str:
        return "{}:{}".format(*self.server_address)

    def answer(self, api: int, version: int, body: bytes) -> bytes:
        if api == _API_VERSIONS:
            known = ((_METADATA, 0, _METADATA_VERSION), (_API_VERSIONS, 0, 0))
            error = _UNSUPPORTED_VERSION if version else 0
            return struct.pack(">hi", error, len(known)) + b"".join(struct.pack(">hhh", *each) for each in known)
        host, port = str(self.server_address[0]).encode(), self.server_address[1]
        broker = struct.pack(f">ih{len(host)}sih", 1, len(host), host, port, -1)
        brokers = struct.pack(">i", 0) if self.fenced else struct.pack(">i", 1) + broker
        asked_for_a_topic = int.from_bytes(body[:4], signed=True) > 0
        topics = struct.pack(">ihh4s?ii", 1, 0, 4, b"docs", False, 0, 0) if asked_for_a_topic else struct.pack(">i", 0)
        return struct.pack(">i", 0) + brokers + struct.pack(">h3si", 3, b"one", 1) + topics + struct.pack(">i", 0)


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, FencedBroker)
        while size := self.rfile.read(4):
            request = self.rfile.read(int.from_bytes(size))
            api, version, number, client = struct.unpack(">hhih", request[:10])
            answer = struct.pack(">i", number) + self.server.answer(api, version, request[10 + client :])
            self.wfile.write(struct.pack(">i", len(answer)) + answer)


@contextmanager
def fenced_broker() -> Iterator[FencedBroker]:
    """Not fenced yet."""
    with FencedBroker(("127.0.0.1", 0), _Handler) as broker:
        threading.Thread(target=broker.serve_forever, daemon=True).start()
        yield broker
        broker.shutdown()
