"""The librdkafka settings every client of Tidemark starts from, and which ones an operator may not set.

Everything else is passed through as written: security, addresses, buffers. Refused are the settings that
Tidemark's guarantees rest on, and those that make librdkafka load or run a file named in the configuration.
"""

from collections.abc import Mapping

from tidemark.errors import BadConfiguration
from tidemark.partitioner import LIBRDKAFKA, Partitioner

Settings = Mapping[str, str | int | float | bool]

_OWNED = {
    "enable.auto.commit",
    "enable.auto.offset.store",
    "auto.offset.reset",
    "enable.partition.eof",
    "isolation.level",
    "partition.assignment.strategy",
}
_RUNS_CODE = {
    "plugin.library.paths",
    "ssl.engine.location",
    "ssl.providers",
    "sasl.kerberos.kinit.cmd",
}


def check(settings: Settings) -> None:
    """Raise BadConfiguration for a setting that must not be passed through."""
    for name in settings:
        if name in _OWNED:
            raise BadConfiguration(f"kafka.{name}: Tidemark sets this itself, its guarantees rest on it: remove it")
        if name in _RUNS_CODE:
            raise BadConfiguration(f"kafka.{name}: would load or run a file from the configuration: not supported")
        if name == "partitioner":
            raise BadConfiguration(
                "kafka.partitioner: ids are placed per collection: set collections.NAME.partitioner instead"
            )
        if name == "transactional.id":
            raise BadConfiguration("kafka.transactional.id: what Tidemark writes is in no transaction: remove it")
        if name.endswith("_cb"):
            raise BadConfiguration(f"kafka.{name}: callbacks cannot be set from a configuration file")
    if not settings.get("bootstrap.servers"):
        raise BadConfiguration(
            "kafka.bootstrap.servers is not set: set it in tidemark.toml or as KAFKA_BOOTSTRAP_SERVERS"
        )


_CONSUMER_ONLY = ("group.", "session.", "heartbeat.", "max.poll.", "fetch.", "queued.", "check.crcs", "client.rack")


def consumer_settings(settings: Settings) -> dict[str, str | int | float | bool]:
    """Settings of a log reader; the operator's come after our tuning and before what we own."""
    tuning: dict[str, str | int | float | bool] = {
        # With the default of 1,000 ms a full local queue stops fetching for a second: 8 x slower at 768-d.
        "fetch.queue.backoff.ms": 5,
        "fetch.error.backoff.ms": 50,
        "queued.min.messages": 200_000,
        "queued.max.messages.kbytes": 131_072,
        "fetch.message.max.bytes": 8_388_608,
        "topic.metadata.refresh.interval.ms": 30_000,
    }
    owned: dict[str, str | int | float | bool] = {
        "enable.auto.commit": False,
        "auto.offset.reset": "error",
        "enable.partition.eof": True,
        "isolation.level": "read_committed",
    }
    return {**tuning, **settings, **owned}


def producer_settings(settings: Settings, partitioner: Partitioner = "murmur2") -> dict[str, str | int | float | bool]:
    """Settings of a producer that loses nothing, does not wait for a batch to fill and places ids as it is told."""
    shared = {name: value for name, value in settings.items() if not name.startswith(_CONSUMER_ONLY)}
    return {"linger.ms": 1, "enable.idempotence": True, "partitioner": LIBRDKAFKA[partitioner], **shared}


def admin_settings(settings: Settings) -> dict[str, str | int | float | bool]:
    return {name: value for name, value in settings.items() if not name.startswith(_CONSUMER_ONLY)}
