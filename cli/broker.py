"""Which Kafka a development run uses: one that is named, one in Docker, or one as a child process.

`open_broker` chooses and logs why. Once a data directory holds a local broker's log it stays with that one:
an engine that happens to run today would bring an empty log, and the checkpoints beside it would not fit it.
Knows nothing of topics or of what runs against the broker.
"""

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cli.local_kafka import NODE_SETTINGS, START_S, STOP_S, LocalKafka, bound
from tidemark.errors import BrokerUnreachable

# Kafka's own image; from 4.0 on it has the group protocol of KIP-848.
IMAGE = "apache/kafka:4.1.1"
ENGINE_ANSWERS_WITHIN_S = 2
_CLIENT_PORT = 9092
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker that answers. `chosen` says which and why; `local` is there when it is our child process."""

    bootstrap_servers: str
    chosen: str
    local: LocalKafka | None = None

    @property
    def pid(self) -> int | None:
        """Our child's; None for another broker, and when the child has ended (`local.start()` helps)."""
        return self.local.pid if self.local else None


@contextmanager
def open_broker(data_dir: Path, *, port: int | None = None, fast_start: bool = False) -> Iterator[Broker]:
    """A broker until the block ends; its data stays. `port` and `fast_start` do not touch a named broker."""
    if named := os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        yield _said(Broker(named, "KAFKA_BOOTSTRAP_SERVERS names it"))
        return
    objection = _objection_to_docker(data_dir)
    if objection is None:
        with _container(data_dir, port) as address:
            yield _said(Broker(address, f"{IMAGE} in Docker, because an engine answers"))
        return
    with LocalKafka(data_dir, port=port, fast_start=fast_start) as local:
        yield _said(Broker(local.bootstrap_servers, f"a child process, because {objection}", local))


def _said(broker: Broker) -> Broker:
    _log.info("Kafka at %s: %s", broker.bootstrap_servers, broker.chosen)
    return broker


def _objection_to_docker(data_dir: Path) -> str | None:
    if (data_dir / "logs" / "meta.properties").exists():
        return f"{data_dir} holds the log of one"
    if not os.environ.get("DOCKER_HOST") and not Path("/var/run/docker.sock").exists():
        return "no Docker engine is here"
    try:
        from testcontainers.core.docker_client import DockerClient
    except ImportError:
        return "testcontainers is not installed"
    try:
        client = DockerClient(timeout=ENGINE_ANSWERS_WITHIN_S).client
        client.ping()
        client.close()
    except Exception as error:  # Docker's client raises its own errors, those of `requests` and of the system
        return f"no Docker engine answers ({error})"
    return None


@contextmanager
def _container(data_dir: Path, port: int | None) -> Iterator[str]:
    """The address of a container of its own; its log is in a named volume, which outlives it."""
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy

    with bound(port or 0) as probe:
        port = int(probe.getsockname()[1])
    ready = LogMessageWaitStrategy("Kafka Server started").with_startup_timeout(int(START_S))
    container = DockerContainer(IMAGE, _wait_strategy=ready)
    engine = container.get_docker_client().host()
    host = "127.0.0.1" if engine == "localhost" else engine
    container.with_envs(**container_environment(host, port))
    container.with_volume_mapping(volume_name(data_dir), "/var/lib/kafka/data", "rw")
    # Docker's client takes an address here; without one the broker would be open to the whole network.
    published = (host, port) if host == "127.0.0.1" else port
    container.ports[f"{_CLIENT_PORT}/tcp"] = published  # type: ignore[assignment]
    try:
        container.start()
    except Exception as error:
        container.stop()
        raise BrokerUnreachable(
            f"{IMAGE} did not start in Docker: {error}; stop the engine to have a local Kafka instead, "
            "or name a broker in KAFKA_BOOTSTRAP_SERVERS"
        ) from error
    try:
        yield f"{host}:{port}"
    finally:
        container.get_wrapped_container().stop(timeout=int(STOP_S))  # in order; the next line would kill it
        container.stop()


def volume_name(data_dir: Path) -> str:
    """One volume for each data directory, the same in every run."""
    return f"tidemark-{hashlib.sha256(os.fsencode(data_dir.absolute())).hexdigest()[:16]}"


def container_environment(host: str, port: int) -> dict[str, str]:
    """The image's settings (KAFKA_A_B stands for a.b) for clients that reach it at host and port.

    The broker also connects to itself, for transactions: by a listener of its own, because the address for
    clients leads nowhere inside the container.
    """
    settings = {
        **NODE_SETTINGS,
        "listener.security.protocol.map": "CLIENT:PLAINTEXT,BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "listeners": f"CLIENT://:{_CLIENT_PORT},BROKER://127.0.0.1:9094,CONTROLLER://127.0.0.1:9093",
        "advertised.listeners": f"CLIENT://{host}:{port},BROKER://127.0.0.1:9094",
        "inter.broker.listener.name": "BROKER",
        "controller.quorum.voters": "1@127.0.0.1:9093",
        "log.dirs": "/var/lib/kafka/data",
    }
    return {f"KAFKA_{name.upper().replace('.', '_')}": value for name, value in settings.items()}
