"""A whole Tidemark for one collection, as a user starts it: a real broker, the topic, the consumer and the api.

Every process runs with its defaults on the cores of this machine; what a benchmark wants otherwise it says as a
TIDEMARK_* variable of the one service. Records go in under the ids `v<row>`. Nothing here is timed: the parts of a
deployment are waited for, and `cores` says what each of them takes while something else is measured.
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Producer
from numpy.typing import NDArray

from benchmarks import machine
from benchmarks.client import SearchClient, connected
from cli.local_kafka import LocalKafka
from cli.ports import free_port
from tidemark import service
from tidemark.collection import IndexKind, Metric
from tidemark.kafka_settings import producer_settings
from tidemark.settings import Settings, load
from tidemark.topic import Topics

STILL_S = 5.0  # nothing is being built or merged when segments have stayed the same for so long
BUSY_S = 0.05  # of CPU in half a second: it does more than wait for a job
STOP_S = 30
LOG_SHOWN = 2_000  # characters of each service's, when it has ended
_ROLES = {"api": "follower", "api.worker": "worker", "consumer": "consumer", "consumer.build": "builder"}


@dataclass(frozen=True, slots=True)
class Shape:
    """The one collection and its topic; both have its name, and so has the consumer's group."""

    collection: str
    dimension: int
    metric: Metric
    partitions: int = 1
    kind: IndexKind = "ivfpq"


class Deployment:
    """Broker and topic from the start; `start` brings up a service. Ends with the stack it is made with.

    `kafka`: a broker that runs already, for one of several deployments.
    """

    def __init__(self, stack: ExitStack, shape: Shape, kafka: LocalKafka | None = None) -> None:
        self.shape, self._stack = shape, stack
        self.directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tidemark-bench-")))
        self.port = free_port()
        self.kafka = kafka or stack.enter_context(LocalKafka(self.directory / "kafka"))
        self.settings = self._configured()
        Topics(self.settings.kafka).create(shape.collection, shape.partitions)
        Topics(self.settings.kafka).create(f"{shape.collection}.dead-letters", 1)
        self._running: dict[subprocess.Popen[bytes], str] = {}

    def _configured(self) -> Settings:
        shape, path = self.shape, self.directory / "tidemark.toml"
        path.write_text(
            f'[kafka]\nbootstrap.servers = "{self.kafka.bootstrap_servers}"\n'
            f'[checkpoint]\nurl = "{(self.directory / "checkpoints").as_uri()}"\n'
            f'[consumer]\nport = 0\ngroup = "{shape.collection}"\n[api]\nport = {self.port}\n'
            f"[collections.{shape.collection}]\n"
            f'dimension = {shape.dimension}\nmetric = "{shape.metric}"\nformat = "raw"\n'
            f'index = {{ kind = "{shape.kind}" }}\n'
        )
        return load(path)

    def start(self, module: str, **settings: str) -> "subprocess.Popen[bytes]":
        """A service as a child; `settings` are TIDEMARK_* variables, which go before the file."""
        log = self._stack.enter_context((self.directory / f"{module}.log").open("ab"))
        command = service.python(module, "--config", str(self.directory / "tidemark.toml"))
        command += ["--dies-with-parent", str(os.getpid())]
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **settings})
        self._stack.callback(self.stop, process)
        self._running[process] = module
        return process

    def stop(self, process: "subprocess.Popen[bytes]") -> None:
        """End a service that `start` made; nothing when it was stopped already."""
        if self._running.pop(process, None) is not None:
            process.terminate()
            process.wait(STOP_S)

    def client(self) -> SearchClient:
        return SearchClient(self.port, self.shape.collection)

    def producer(self) -> Producer:
        return Producer({"queue.buffering.max.messages": 1_000_000, **producer_settings(self.settings.kafka)})

    def produce(self, rows: NDArray[np.float32], first: int = 0, metadata: Sequence[bytes] = ()) -> None:
        """All rows, as `v<first>` and so on, each with its metadata if any; acknowledged when it returns."""
        producer = self.producer()
        for number, (row, document) in enumerate(zip_longest(rows, metadata), first):
            headers = [("metadata", document)] if document else []
            while True:
                try:
                    producer.produce(self.shape.collection, row.tobytes(), f"v{number}", headers=headers)
                    break
                except BufferError:
                    producer.poll(0.1)
            if number % 1_000 == 0:
                producer.poll(0)
        producer.flush()

    # -- waiting -----------------------------------------------------------------------------------------------

    def ready(self, port: int | None = None) -> SearchClient:
        """A client of an api that has just been started, as soon as it says that it is ready."""
        client = connected(port or self.port, self.shape.collection)
        while not client.get("/readyz").get("ready"):
            self.check()
            time.sleep(0.01)
        return client

    def wait_until_applied(self, count: int) -> None:
        """Until so many records are searchable."""
        with self._asking() as ask:
            while sum(partition["applied_position"] or 0 for partition in ask("/lag")["partitions"]) < count:
                self.check()
                time.sleep(0.05)

    def settle(self) -> None:
        """Until nothing is being built, merged or trained: nothing new is told, and the builder takes no core."""
        with self._asking() as ask:
            still, known, built = time.perf_counter(), None, 0.0
            while time.perf_counter() - still < STILL_S:
                self.check()
                told, spent = ask(""), self.cpu_s().get("builder", 0.0)
                found = told["segments"], told.get("index")
                if found != known or spent - built > BUSY_S:
                    still, known = time.perf_counter(), found
                built = spent
                time.sleep(0.5)

    def index_state(self) -> dict[str, Any]:
        """Segments and rows without an index, as the api counts them now."""
        with self._asking() as ask:
            return {"segments": len(ask("")["segments"]), "unbuilt_rows": ask("/lag")["unbuilt_rows"]}

    @contextmanager
    def _asking(self) -> Iterator[Callable[[str], Any]]:
        client = connected(self.port, self.shape.collection)
        try:
            yield lambda path: client.get(f"/collections/{self.shape.collection}{path}")
        finally:
            client.close()

    def check(self) -> None:
        """Raises RuntimeError with the end of its log when a service has ended that was not stopped."""
        for process, module in self._running.items():
            if process.poll() is not None:
                raise RuntimeError(f"the {module} ended with code {process.returncode}\n{self.logs()}")

    def logs(self) -> str:
        """The end of each service's log."""
        return "\n".join(path.read_text()[-LOG_SHOWN:] for path in sorted(self.directory.glob("*.log")))

    # -- what the processes take -------------------------------------------------------------------------------

    def cpu_s(self) -> dict[str, float]:
        """CPU time so far of broker, follower, workers, consumer and builder; those of one name are added up."""
        assert self.kafka.pid is not None
        spent = {"broker": machine.cpu_s(self.kafka.pid)}
        for process in self._running:
            for pid in machine.family(process.pid) if process.poll() is None else ():
                role = _ROLES.get(_module(pid), "")
                if role:
                    spent[role] = spent.get(role, 0.0) + machine.cpu_s(pid)
        return spent


@contextmanager
def cores(deployment: Deployment) -> Iterator[dict[str, float]]:
    """Cores each part of a deployment takes, on average, in the time of this context: filled when it ends."""
    found: dict[str, float] = {}
    before, started = deployment.cpu_s(), time.perf_counter()
    yield found
    seconds = time.perf_counter() - started
    for role, spent in deployment.cpu_s().items():
        found[role] = (spent - before.get(role, 0.0)) / seconds


def _module(pid: int) -> str:
    """The module a Python process was started as."""
    words: Sequence[bytes] = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return words[words.index(b"-m") + 1].decode() if b"-m" in words else ""
