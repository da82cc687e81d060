"""Real services for tests: a consumer and an api as child processes over a configuration of the test's own."""

import contextlib
import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from confluent_kafka import Producer

from tests.ports import own_port
from tidemark.checkpoint import Checkpoints
from tidemark.generation import current
from tidemark.kafka_settings import producer_settings
from tidemark.manifest import Manifest
from tidemark.service import python
from tidemark.settings import Settings, load
from tidemark.topic import Topics

DIMENSION = 16


def wait_until(fact: Callable[[], Any], timeout_s: float = 30.0, what: str = "") -> Any:
    """The first true value of `fact`; fails with what was waited for."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := fact():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout_s} s: {what or fact}")


@dataclass(slots=True)
class Service:
    """A running child process of one of the services."""

    process: subprocess.Popen[bytes]
    log: Path

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")


@dataclass(slots=True)
class Deployment:
    """One collection `docs` on a topic of its own, and the services that a test starts over it."""

    directory: Path
    bootstrap_servers: str
    topic: str
    partitions: int = 1
    api_port: int = field(default_factory=own_port)
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    started: list[Service] = field(default_factory=list)

    def __post_init__(self) -> None:
        tables: dict[str, dict[str, Any]] = {
            "kafka": {"bootstrap.servers": self.bootstrap_servers, "session.timeout.ms": 6000},
            "checkpoint": {"url": (self.directory / "checkpoints").as_uri(), "interval_s": 0.3},
            "consumer": {"port": 0, "group": self.topic},
            "api": {"port": self.api_port},
            "collections.docs": {"topic": self.topic, "dimension": DIMENSION, "metric": "l2"},
            "collections.docs.index": {"ann_rows_min": 512},
        }
        for name, values in self.overrides.items():
            tables.setdefault(name, {}).update(values)
        lines = []
        for name, values in tables.items():
            lines += [f"[{name}]", *(f"{json.dumps(key)} = {json.dumps(value)}" for key, value in values.items())]
        self.config.write_text("\n".join(lines))

    @property
    def config(self) -> Path:
        return self.directory / "tidemark.toml"

    @property
    def settings(self) -> Settings:
        return load(self.config)

    @property
    def checkpoints(self) -> Path:
        return self.settings.checkpoint_root

    def start(self, module: str, *arguments: str, within: Sequence[str] = (), **environment: str) -> Service:
        """Run it with these arguments; `within` are the words of a command that starts it, such as `nice`."""
        log = self.directory / f"{module}-{len(self.started)}.log"
        command = [*within, *python(module, "--config", str(self.config))]
        if not within:
            command += ["--dies-with-parent", str(os.getpid())]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, *arguments],
                stdout=output,
                stderr=output,
                env={**os.environ, **environment},
            )
        service = Service(process, log)
        self.started.append(service)
        return service

    def stop(self) -> None:
        for service in self.started:
            if service.process.poll() is None:
                service.kill()

    # -- producing -----------------------------------------------------------------------------------------

    def produce(self, records: Iterable[tuple[bytes | None, bytes | None]], partition: int = -1) -> None:
        producer = Producer(producer_settings(self.settings.kafka))
        for key, value in records:
            producer.produce(self.topic, value, key, partition)
            producer.poll(0)
        assert producer.flush(30) == 0

    # -- asking --------------------------------------------------------------------------------------------

    def ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        return httpx.request(method, f"http://127.0.0.1:{self.api_port}{path}", timeout=30.0, **request)

    def lag(self) -> dict[str, Any]:
        return self.ask("GET", "/collections/docs/lag").json()  # type: ignore[no-any-return]

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return self.ask("GET", "/readyz").status_code == 200
            return False

        wait_until(ready, 30.0, f"api ready; {self.started[-1].text[-2000:]}")

    def wait_until_applied(self) -> None:
        """The api has applied everything that is in the topic."""
        topics = Topics(self.settings.kafka)
        ends = topics.ends([(self.topic, number) for number in range(self.partitions)])

        def applied() -> bool:
            reached = {p["partition"]: p["applied_position"] for p in self.lag()["partitions"]}
            return all(reached.get(number, -1) >= end for (_, number), end in ends.items())

        wait_until(applied, 30.0, f"applied {ends}")

    def wait_until_checkpointed(self, timeout_s: float = 40.0) -> None:
        """The newest manifest of each partition is at the end of its log."""
        topics = Topics(self.settings.kafka)
        ends = topics.ends([(self.topic, number) for number in range(self.partitions)])
        wait_until(
            lambda: all(self.manifest_position(p[1]) >= end for p, end in ends.items()),
            timeout_s,
            f"checkpointed {ends}; {self.started[-1].text[-3000:] if self.started else ''}",
        )

    def manifest_position(self, partition: int) -> int:
        """The position of the newest checkpoint, -1 when there is none."""
        found = self.find_manifest(partition)
        return -1 if found is None else found.position

    def newest_manifest(self, partition: int = 0) -> Manifest:
        found = self.find_manifest(partition)
        assert found is not None
        return found

    def find_manifest(self, partition: int) -> Manifest | None:
        generation = current(self.checkpoints, "docs")
        if generation is None:
            return None
        checkpoints = Checkpoints(self.checkpoints, self.settings.collection("docs"), generation, partition)
        while versions := checkpoints.versions():
            with contextlib.suppress(FileNotFoundError):  # removed as obsolete meanwhile
                return checkpoints.read(versions[-1])
        return None


def vectors(count: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """float32 (count, DIMENSION)."""
    return np.random.default_rng(seed).standard_normal((count, DIMENSION)).astype(np.float32)


@contextlib.contextmanager
def deployment(directory: Path, bootstrap_servers: str, partitions: int = 1, **overrides: Any) -> Iterator[Deployment]:
    """A fresh topic with its dead-letter topic; whatever was started is killed at the end."""
    topic = f"docs-{uuid.uuid4().hex[:8]}"
    made = Deployment(directory, bootstrap_servers, topic, partitions, overrides=overrides)
    topics = Topics({"bootstrap.servers": bootstrap_servers})
    topics.create(topic, partitions)
    topics.create(f"{topic}.dead-letters", 1)
    try:
        yield made
    finally:
        made.stop()
