"""The HTTP workers of a replica: child processes that share its port, its segments and its memory.

A worker imports what it needs before it is told what to serve, so the first one can be started before the replica
knows that itself. Each listens with a socket of its own, among which the kernel deals connections out: of one socket
for all, the worker that wakes first takes most. It gets the socket when it is ready, so no connection waits for
one that is not. A worker that ends is started again, with back-off; all of them die with this process.
"""

import contextlib
import json
import logging
import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from tidemark import service

logger = logging.getLogger(__name__)

BACKOFF_S, BACKOFF_S_MAX = 0.2, 10.0
STEADY_S = 30.0
# uvicorn gives requests under way 3 s (worker.py).
STOP_S = 6.0
TOLD_BYTES_MAX = 65_536
_READY = b"r"


class Told(NamedTuple):
    """What a worker is to serve: its listening socket, the name of the replica's document, the settings file."""

    listener: socket.socket
    replica: str
    config: Path | None

    def send(self, to: socket.socket) -> None:
        text = json.dumps({"replica": self.replica, "config": str(self.config) if self.config else None})
        socket.send_fds(to, [text.encode()], [self.listener.fileno()])

    @classmethod
    def receive(cls, source: socket.socket) -> "Told | None":
        """Say that we are ready and wait for it; None when the replica has ended instead."""
        with contextlib.suppress(BrokenPipeError):  # told already
            source.send(_READY)
        text, descriptors, _, _ = socket.recv_fds(source, TOLD_BYTES_MAX, 1)
        if not text:
            return None
        found = json.loads(text)
        config = Path(found["config"]) if found["config"] else None
        return cls(socket.socket(fileno=descriptors[0]), found["replica"], config)


class Workers:
    """One is started at once; `serve` tells it what to serve and adds the others, `turn` now and then keeps them
    running; `stop` lets requests under way end."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = {**os.environ, **environment}
        self._tell: Callable[[], Told] | None = None
        self._workers = [_Worker(0)]
        self._workers[0].start(self._environment)

    def serve(self, count: int, tell: Callable[[], Told]) -> None:
        """`tell` makes what one worker is told, with a new socket."""
        self._tell = tell
        self._workers[0].tell(tell())
        self._workers += [_Worker(number) for number in range(1, count)]
        self.turn()

    def turn(self) -> None:
        """Start what is not running, tell what is ready."""
        assert self._tell is not None
        for worker in self._workers:
            if worker.process is not None and worker.process.poll() is not None:
                worker.ended()
            if worker.process is None and time.monotonic() >= worker.not_before:
                worker.start(self._environment)
            if worker.waits:
                worker.tell(self._tell())

    def stop(self) -> None:
        running = [worker.process for worker in self._workers if worker.process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + STOP_S
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class _Worker:
    """A place for a worker; the one that is started in place of another has its number."""

    def __init__(self, number: int) -> None:
        self._number = number
        self.process: subprocess.Popen[bytes] | None = None
        self.started_at = self.not_before = 0.0
        self._backoff_s = BACKOFF_S
        self._telling: socket.socket | None = None

    def start(self, environment: Mapping[str, str]) -> None:
        self.started_at = time.monotonic()
        self._telling, told = socket.socketpair()
        with told:
            command = service.python("api.worker", str(os.getpid()), str(self._number))
            self.process = subprocess.Popen(command, stdin=told.fileno(), env=environment, process_group=0)

    @property
    def waits(self) -> bool:
        """Whether it is ready to be told."""
        if self._telling is None:
            return False
        with contextlib.suppress(BlockingIOError):
            return self._telling.recv(len(_READY), socket.MSG_DONTWAIT) == _READY
        return False

    def tell(self, told: Told) -> None:
        assert self._telling is not None
        with told.listener, self._telling, contextlib.suppress(BrokenPipeError):  # it has ended: it is started again
            told.send(self._telling)
        self._telling = None

    def ended(self) -> None:
        assert self.process is not None
        if self._telling is not None:
            self._telling.close()
            self._telling = None
        now = time.monotonic()
        if now - self.started_at > STEADY_S:
            self._backoff_s = BACKOFF_S
        logger.error("an HTTP worker ended with code %s; again in %.1f s", self.process.returncode, self._backoff_s)
        self.process, self.not_before = None, now + self._backoff_s
        self._backoff_s = min(BACKOFF_S_MAX, 2 * self._backoff_s)
