"""A compacted topic, really compacted: its rows are right, and deletes that may be gone unread are never passed over.

The broker of these tests cleans logs all the time. Segments are rolled by the records' timestamps.
"""

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource

from cli.local_kafka import LocalKafka
from tests.processes import children
from tests.services import Deployment, deployment, wait_until
from tests.test_consumer import _ids, _upserts
from tidemark.caught_up import now_ms
from tidemark.log import Log, Start

pytestmark = pytest.mark.kafka

Compacted = Callable[..., Deployment]
DAY_MS = 86_400_000
SEGMENT_MS = 1_000
_times_ms = itertools.count(now_ms() - 1_000_000, 2 * SEGMENT_MS)


@pytest.fixture(scope="module")
def cleaning_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Bootstrap servers of a broker whose log cleaner looks for work ten times a second."""
    overrides = {"log.cleaner.backoff.ms": "100"}
    with LocalKafka(tmp_path_factory.mktemp("cleaning"), fast_start=True, overrides=overrides) as kafka:
        yield kafka.bootstrap_servers


@pytest.fixture
def compacted(cleaning_kafka: str, tmp_path: Path) -> Iterator[Compacted]:
    """Makes a deployment over a compacted topic that keeps deletes for the time given."""
    with ExitStack() as stack:

        def make(delete_retention_ms: int = DAY_MS, **overrides: Any) -> Deployment:
            made = stack.enter_context(deployment(tmp_path, cleaning_kafka, **overrides))
            settings = {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.01", "segment.ms": str(SEGMENT_MS)}
            set_config(made, **settings, **{"delete.retention.ms": str(delete_retention_ms)})
            return made

        yield make


def set_config(deployed: Deployment, **values: str) -> None:
    entries = [ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in values.items()]
    resource = ConfigResource(ConfigResource.Type.TOPIC, deployed.topic, incremental_configs=entries)
    admin = AdminClient({"bootstrap.servers": deployed.bootstrap_servers})
    for future in admin.incremental_alter_configs([resource]).values():
        future.result()


def keep_deletes(deployed: Deployment, milliseconds: int) -> None:
    set_config(deployed, **{"delete.retention.ms": str(milliseconds)})


def produce_segments(deployed: Deployment, *segments: Iterable[tuple[bytes, bytes | None]]) -> None:
    """Each of them ends up in a segment of its own, because its records' timestamps are later."""
    producer = Producer({"bootstrap.servers": deployed.bootstrap_servers})
    for records in segments:
        written_ms = next(_times_ms)
        for key, value in records:
            producer.produce(deployed.topic, value, key, 0, timestamp=written_ms)
        assert producer.flush(20) == 0


def offsets(deployed: Deployment) -> dict[bytes, list[int]]:
    """The offsets that the log still holds of each key, deletes as negative ones."""
    log, found, ended = Log({"bootstrap.servers": deployed.bootstrap_servers}), {}, False
    log.assign([Start((deployed.topic, 0), 0)])
    while not ended:
        fetched = log.fetch(1_000, 1.0)
        for message in fetched.messages.get((deployed.topic, 0), []):
            sign = 1 if message.value() is not None else -1
            found.setdefault(message.key(), []).append(sign * message.offset())
        ended = bool(fetched.ends)
    log.close()
    return found


def _wait_until_compacted(deployed: Deployment, gone: Callable[[dict[bytes, list[int]]], bool], what: str) -> None:
    wait_until(lambda: gone(offsets(deployed)), 30, what)


def _deletes(*numbers: int) -> list[tuple[bytes, None]]:
    return [(b"id-%d" % number, None) for number in numbers]


def _digests(deployed: Deployment) -> tuple[str, str]:
    deployed.wait_until_applied()
    return deployed.lag()["partitions"][0]["digest"], f"{deployed.newest_manifest().digest:016x}"


def test_a_compacted_log_is_read_on_and_replayed_to_the_same_rows_and_its_gaps_are_no_gaps(
    compacted: Compacted,
) -> None:
    deployed = compacted()
    first = deployed.start("consumer")
    deployed.start("api")
    produce_segments(deployed, _upserts(100), [*_upserts(50, seed=1), *_deletes(60, 61)], _upserts(1, prefix="roll"))
    deployed.wait_until_checkpointed()
    assert first.terminate() == 0
    produce_segments(deployed, _upserts(100, seed=2), _upserts(100, seed=3), [*_deletes(70, 71)], _upserts(1))
    _wait_until_compacted(deployed, lambda log: len(log[b"id-99"]) == 1 and log[b"id-99"] > [153], "one of each id")
    second = deployed.start("consumer")
    deployed.wait_until_checkpointed()
    assert "not taken over" not in second.text
    kept = {b"id-%d" % number for number in range(100)} - {b"id-70", b"id-71"} | {b"roll-0"}
    assert _ids(deployed) == kept
    assert len(set(_digests(deployed))) == 1
    produce_segments(deployed, _deletes(80, 81))
    deployed.wait_until_checkpointed()
    assert second.terminate() == 0
    keep_deletes(deployed, 1)  # a delete's time is counted from its first cleaning
    produce_segments(deployed, *([(b"roll-%d" % number, b"\0" * 64)] for number in range(3)))
    time.sleep(0.1)
    produce_segments(deployed, *([(b"roll-%d" % number, b"\1" * 64)] for number in range(3)))
    _wait_until_compacted(deployed, lambda log: b"id-80" not in log, "no delete is left")
    keep_deletes(deployed, DAY_MS)
    deployed.start("consumer")
    deployed.wait_until_checkpointed()
    before = _digests(deployed)
    assert len(set(before)) == 1
    replay = deployed.start("consumer", "replay", "docs")
    assert replay.process.wait(60) == 0, replay.text
    wait_until(lambda: deployed.lag()["generation"] == "g000002", 20, "the replay's generation is served")
    assert _digests(deployed) == before
    assert _ids(deployed) == kept - {b"id-80", b"id-81"} | {b"roll-1", b"roll-2"}


def test_claims_do_not_renew_the_age_of_a_position_and_one_that_is_too_old_is_refused_until_deletes_are_kept_longer(
    compacted: Compacted,
) -> None:
    deployed = compacted()
    first = deployed.start("consumer")
    deployed.produce(_upserts(50))
    deployed.wait_until_checkpointed()
    assert first.terminate() == 0
    read = deployed.newest_manifest()
    deployed.produce([*_upserts(10, prefix="more"), *_deletes(7)])
    claims = deployed.start("consumer", TIDEMARK_CRASH_AT="claimed")
    wait_until(lambda: claims.process.poll() is not None, 30, claims.text)
    claimed = deployed.newest_manifest()
    assert claimed.writer_epoch == read.writer_epoch + 1
    assert (claimed.position, claimed.caught_up_ms) == (read.position, read.caught_up_ms)
    keep_deletes(deployed, 1)
    refused, api = deployed.start("consumer"), deployed.start("api")
    for service in (refused, api):
        wait_until(lambda service=service: "deletes may have been removed unread" in service.text, 30, service.text)
    assert len(_ids(deployed)) == 50
    keep_deletes(deployed, DAY_MS)
    deployed.wait_until_checkpointed()
    assert len(_ids(deployed)) == 59
    wait_until(lambda: len(set(_digests(deployed))) == 1, 30, "the api follows")


def test_a_checkpoint_at_the_logs_end_is_never_too_old_and_is_renewed_while_nothing_comes(compacted: Compacted) -> None:
    deployed = compacted()
    first = deployed.start("consumer")
    deployed.produce(_upserts(50))
    deployed.wait_until_checkpointed()
    assert first.terminate() == 0
    keep_deletes(deployed, 1)
    second = deployed.start("consumer")
    wait_until(lambda: "owns" in second.text, 30, second.text)
    read = deployed.newest_manifest()
    wait_until(lambda: deployed.newest_manifest().caught_up_ms > read.caught_up_ms + 1_000, 20, "it is renewed")
    assert deployed.newest_manifest().position == read.position
    assert "removed unread" not in second.text


@pytest.mark.torture
def test_who_was_suspended_for_longer_than_deletes_are_kept_applies_nothing_that_came_meanwhile(
    compacted: Compacted,
) -> None:
    deployed = compacted(5_000, kafka={"session.timeout.ms": 45_000})
    consumer, api = deployed.start("consumer"), deployed.start("api")
    deployed.produce(_upserts(50))
    deployed.wait_until_checkpointed()
    deployed.wait_until_ready()
    deployed.wait_until_applied()
    for service in (consumer, api):
        service.process.send_signal(signal.SIGSTOP)
        for child in children(service.process.pid):
            os.kill(child, signal.SIGSTOP)
    produce_segments(deployed, _upserts(50, seed=1, prefix="more"))
    time.sleep(6.0)
    for service in (consumer, api):
        for child in children(service.process.pid):
            os.kill(child, signal.SIGCONT)
        service.process.send_signal(signal.SIGCONT)
    for service in (consumer, api):
        wait_until(lambda service=service: "deletes may have been removed unread" in service.text, 30, service.text)
    assert len(_ids(deployed)) == 50
    assert deployed.lag()["partitions"][0]["live_rows"] == 50
