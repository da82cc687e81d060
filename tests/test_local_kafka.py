"""A real broker as a child process: its data, its port, its end, and the jars it is made of."""

import gc
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient

from cli import kafka_jars
from cli.broker import Broker, container_environment, open_broker, volume_name
from cli.kafka_jars import Jar
from cli.local_kafka import LocalKafka
from tests.processes import has_ended
from tidemark.errors import BadConfiguration, BrokerUnreachable, StoreUnavailable
from tidemark.topic import Topics

NO_SERVER = "http://127.0.0.1:1"


# Docker's client does not close the socket that it could not connect.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket")


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker of our own, without Docker, in a path that would need escaping in a properties file."""
    directory = tmp_path_factory.mktemp("kafka")
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
        environment.setenv("DOCKER_HOST", f"unix://{directory.parent}/no.sock")
        with open_broker(directory / "josé, 1=2", fast_start=True) as broker:
            gc.collect()
            yield broker


@pytest.fixture
def broker(opened: Broker) -> LocalKafka:
    """One broker for all tests, running: a test may stop it or kill it."""
    assert opened.local is not None
    if opened.local.pid is None:
        opened.local.start()
    return opened.local


def _until(true: Callable[[], bool], within_s: float = 10.0) -> bool:
    deadline = time.monotonic() + within_s
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _produce(servers: str, topic: str, value: str) -> None:
    producer = Producer({"bootstrap.servers": servers})
    producer.produce(topic, value)
    assert producer.flush(10) == 0


def _read_one(servers: str, topic: str) -> bytes | None:
    options = {"bootstrap.servers": servers, "group.id": "reader", "auto.offset.reset": "earliest"}
    consumer = Consumer(options)
    consumer.subscribe([topic])
    try:
        message = consumer.poll(20)
        return message.value() if message and not message.error() else None
    finally:
        consumer.close()


def test_data_and_port_survive_a_restart(broker: LocalKafka, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    servers = broker.bootstrap_servers
    Topics({"bootstrap.servers": servers}).create("kept", 1)
    _produce(servers, "kept", "a record")
    broker.stop()
    with open_broker(broker.log_path.parent, fast_start=True) as second:
        assert second.chosen.endswith("holds the log of one")  # also when a Docker engine answers
        assert second.bootstrap_servers == servers
        assert _read_one(servers, "kept") == b"a record"


def test_a_killed_broker_is_started_again_on_its_port_and_outlives_the_thread_that_did_it(
    broker: LocalKafka,
) -> None:
    servers, pid = broker.bootstrap_servers, broker.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert _until(lambda: broker.pid is None)
    thread = threading.Thread(target=broker.start)
    thread.start()
    thread.join()
    time.sleep(0.3)  # PR_SET_PDEATHSIG would have ended it at once
    assert broker.pid not in (None, pid)
    assert broker.bootstrap_servers == servers


def test_broker_dies_when_its_parent_is_killed_with_sigkill(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from cli.local_kafka import LocalKafka\n"
        "local = LocalKafka(Path(sys.argv[1]), fast_start=True); local.start()\n"
        "print(local.pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not has_ended(pid)
        parent.kill()
        assert _until(lambda: has_ended(pid))


def test_second_broker_on_one_data_directory_is_refused(broker: LocalKafka) -> None:
    with pytest.raises(StoreUnavailable, match=rf"in use by a Kafka broker \(pid {os.getpid()}\)"):
        LocalKafka(broker.log_path.parent).start()
    assert broker.pid is not None


def test_a_named_port_that_is_in_use_is_refused_even_when_a_kafka_answers_there(
    broker: LocalKafka, tmp_path: Path
) -> None:
    with pytest.raises(BadConfiguration, match=f"port {broker.port} of 127.0.0.1 is in use"):
        LocalKafka(tmp_path, port=broker.port).start()


def test_all_its_files_are_in_the_data_directory_whatever_its_name(broker: LocalKafka) -> None:
    data_dir = broker.log_path.parent
    assert {path.name for path in data_dir.parent.iterdir()} == {data_dir.name}
    assert (data_dir / "logs" / "meta.properties").exists()


def test_it_listens_on_the_loopback_address_only(broker: LocalKafka) -> None:
    assert broker.bootstrap_servers.startswith("127.0.0.1:")
    with socket.socket() as probe:
        probe.bind(("127.0.0.2", broker.port))  # would be taken by a listener on every address


def test_start_failure_shows_the_end_of_the_broker_log(tmp_path: Path) -> None:
    local = LocalKafka(tmp_path, fast_start=True, overrides={"log.retention.hours": "nonsense"})
    for _ in range(2):  # the first one leaves nothing behind that would change the second
        with pytest.raises(BrokerUnreachable, match="Invalid value nonsense for configuration") as raised:
            local.start()
        assert str(local.log_path) in str(raised.value)
        assert "\tat " not in str(raised.value)
        assert local.pid is None


def _served(directory: Path) -> ThreadingHTTPServer:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(directory)))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A Maven repository of our own, and an empty cache."""
    directory = tmp_path / "repository"
    directory.mkdir()
    server = _served(directory)
    monkeypatch.setenv("TIDEMARK_MAVEN_REPOSITORY", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("TIDEMARK_CACHE_DIR", str(tmp_path / "cache"))
    yield directory
    server.shutdown()
    server.server_close()


def _jar(repository: Path, name: str, content: bytes) -> Jar:
    jar = Jar(f"org.example:{name}:1.0", hashlib.sha256(content).hexdigest(), len(content))
    path = repository / jar.path
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return jar


def _cached() -> list[str]:
    return sorted(path.name for path in kafka_jars.cache_directory().rglob("*") if path.is_file())


def test_a_jar_with_a_wrong_checksum_is_refused_and_not_kept(repository: Path) -> None:
    jar = _jar(repository, "forged", b"what was pinned")
    (repository / jar.path).write_bytes(b"something else!")
    with pytest.raises(BrokerUnreachable, match=f"org.example:forged:1.0 .* pinned is {jar.sha256}"):
        kafka_jars.fetched([jar])
    assert _cached() == []


def test_jars_are_fetched_once_from_the_network(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jars = [_jar(repository, f"jar{i}", bytes([i]) * 1000) for i in range(12)]
    paths = kafka_jars.fetched(jars)
    monkeypatch.setenv("TIDEMARK_MAVEN_REPOSITORY", NO_SERVER)
    assert kafka_jars.fetched(jars) == paths
    assert [path.read_bytes()[0] for path in paths] == list(range(12))


def test_a_cache_filled_by_several_at_once_holds_each_jar_whole(repository: Path) -> None:
    jars = [_jar(repository, f"jar{i}", os.urandom(50_000)) for i in range(5)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: kafka_jars.fetched(jars), range(4)))
    found = [hashlib.sha256(path.read_bytes()).hexdigest() for path in results[0]]
    assert found == [jar.sha256 for jar in jars]
    assert _cached() == sorted(jar.name for jar in jars)


def test_an_unreachable_repository_says_what_to_do(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMARK_MAVEN_REPOSITORY", NO_SERVER)
    with pytest.raises(BrokerUnreachable, match=r"TIDEMARK_MAVEN_REPOSITORY.*KAFKA_BOOTSTRAP_SERVERS"):
        kafka_jars.fetched([_jar(repository, "any", b"any")])


def test_every_pinned_jar_has_a_whole_checksum_and_its_own_file_name() -> None:
    pinned = kafka_jars.pinned()
    assert all(len(bytes.fromhex(jar.sha256)) == 32 and jar.size > 0 for jar in pinned)
    assert len({jar.name for jar in pinned}) == len(pinned)
    assert f"org.apache.kafka:kafka_2.13:{kafka_jars.KAFKA_VERSION}" in {jar.coordinates for jar in pinned}


def test_a_broker_named_by_the_environment_is_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "broker.example:9092")
    with open_broker(tmp_path) as chosen:
        assert (chosen.bootstrap_servers, chosen.pid) == ("broker.example:9092", None)
    assert list(tmp_path.iterdir()) == []


def test_without_a_docker_engine_the_broker_is_our_child(opened: Broker, broker: LocalKafka) -> None:
    assert opened.chosen.startswith("a child process, because")
    assert "no Docker engine answers" in opened.chosen or "testcontainers is not installed" in opened.chosen
    assert opened.pid == broker.pid
    assert AdminClient({"bootstrap.servers": opened.bootstrap_servers}).list_topics(timeout=10).brokers


def test_a_container_tells_its_clients_the_published_address_and_itself_another() -> None:
    environment = container_environment("127.0.0.1", 40123)
    assert environment["KAFKA_ADVERTISED_LISTENERS"] == "CLIENT://127.0.0.1:40123,BROKER://127.0.0.1:9094"
    assert environment["KAFKA_INTER_BROKER_LISTENER_NAME"] == "BROKER"
    assert environment["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"


def test_each_data_directory_has_a_volume_of_its_own(tmp_path: Path) -> None:
    assert volume_name(tmp_path / "a") == volume_name(tmp_path / "a")
    assert volume_name(tmp_path / "a") != volume_name(tmp_path / "b")
