"""A collection of its own for a test, with its topic, its consumer and its api as real processes."""

import contextlib
import itertools
import os
import re
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from confluent_kafka import Producer
from numpy.typing import NDArray

from tidemark import service
from tidemark.topic import Topics

DIMENSION = 8
_numbers = itertools.count()


class Process:
    """A service as a child process; its stderr goes to a file."""

    def __init__(self, module: str, config: Path, log: Path, servers: str) -> None:
        self.log = log
        environment = {**os.environ, "KAFKA_BOOTSTRAP_SERVERS": servers}
        with log.open("wb") as output:
            self.child = subprocess.Popen(
                service.python(module, "--config", str(config)), stderr=output, env=environment
            )

    def wait_for_line(self, pattern: str, timeout_s: float = 20.0) -> re.Match[str]:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if found := re.search(pattern, self.log.read_text(errors="replace")):
                return found
            assert self.child.poll() is None, self.log.read_text(errors="replace")
            time.sleep(0.02)
        raise AssertionError(f"{pattern!r} was not logged within {timeout_s} s:\n{self.log.read_text()[-2000:]}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.child.poll() is None:
            self.child.send_signal(number)
        try:
            return self.child.wait(20)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
            raise AssertionError(f"did not stop:\n{self.log.read_text()[-2000:]}") from None


class World:
    """One collection `docs` over a topic of its own; everything started is stopped at the end."""

    def __init__(self, directory: Path, servers: str, partitions: int = 2, **settings: str) -> None:
        self.directory = directory
        self.servers = servers
        self.topic = f"t-{secrets.token_hex(6)}"
        self.settings = settings
        self.processes: list[Process] = []
        self.clients: list[httpx.Client] = []
        if partitions:
            Topics({"bootstrap.servers": servers}).create(self.topic, partitions)
        self.config = directory / "tidemark.toml"
        self.configure()

    def configure(self, **changes: str) -> None:
        self.settings.update(changes)
        setting = self.settings.get
        self.config.write_text(
            f'[checkpoint]\nurl = "file://{self.directory}/checkpoints"\n'
            f"interval_s = {setting('interval_s', '0.3')}\ngrace_s = 5\n"
            f'[consumer]\ngroup = "{self.topic}"\nport = 0\n'
            f"[api]\nport = 0\n{setting('api', '')}\n"
            f'[collections.docs]\ntopic = "{self.topic}"\ndimension = {setting("dimension", str(DIMENSION))}\n'
            f'metric = "{setting("metric", "l2")}"\nid_format = "{setting("id_format", "utf8")}"\n'
            f'format = "{setting("format", "auto")}"\nindex = {{ kind = "ivfpq", ann_rows_min = 256 }}\n'
        )

    def start(self, module: str, servers: str | None = None) -> Process:
        log = self.directory / f"{module}-{next(_numbers)}.log"
        process = Process(module, self.config, log, servers or self.servers)
        self.processes.append(process)
        return process

    def consumer(self) -> Process:
        return self.start("consumer")

    def api(self, servers: str | None = None) -> tuple[Process, httpx.Client]:
        process = self.start("api", servers)
        address = process.wait_for_line(r"listening on (http://[\w.]+:\d+)")[1]
        client = httpx.Client(base_url=address, timeout=20)
        self.clients.append(client)
        return process, client

    def ready_api(self) -> tuple[Process, httpx.Client]:
        process, client = self.api()
        eventually(lambda: client.get("/readyz").status_code == 200)
        return process, client

    def produce(self, vectors: NDArray[np.float32], first: int = 0) -> dict[str, int]:
        """Produce rows with ids `row-<n>` and wait for the broker; the positions after them."""
        positions: dict[str, int] = {}

        def delivered(error: Any, message: Any) -> None:
            assert error is None, error
            name = str(message.partition())
            positions[name] = max(positions.get(name, 0), message.offset() + 1)

        producer = Producer({"bootstrap.servers": self.servers, "partitioner": "murmur2_random", "linger.ms": 1})
        for number, vector in enumerate(vectors, first):
            producer.produce(self.topic, vector.tobytes(), f"row-{number}", on_delivery=delivered)
        assert producer.flush(20) == 0
        return positions

    def close(self) -> None:
        for client in self.clients:
            client.close()
        for process in reversed(self.processes):
            process.stop()


@contextlib.contextmanager
def world(directory: Path, servers: str, partitions: int = 2, **settings: str) -> Iterator[World]:
    made = World(directory, servers, partitions, **settings)
    try:
        yield made
    finally:
        made.close()


def eventually(fact: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not fact():
        assert time.monotonic() < deadline, "did not become true in time"
        time.sleep(0.03)


def rows(count: int, seed: int = 7, dimension: int = DIMENSION) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)
