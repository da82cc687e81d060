"""Whatever a Kafka client writes is applied or dead-lettered, and the next record is read."""

import random
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType
from hypothesis import given
from hypothesis import strategies as st

from tests.any_record import DIMENSION, Case, any_case, outcome
from tests.raw_producer import CODECS, RawRecord, produce
from tests.services import Deployment, wait_until
from tests.test_crash_points import opened
from tidemark.collection import Collection
from tidemark.record import decode

MakeDeployment = Callable[..., Deployment]


class PlainMessage:
    """A message of plain values that behaves as confluent-kafka's does, also for header names that are not UTF-8."""

    def __init__(self, offset: int, record: RawRecord) -> None:
        self._offset = offset
        self._record = record
        self._raised = False

    def key(self) -> bytes | None:
        return self._record.key

    def value(self) -> bytes | None:
        return self._record.value

    def offset(self) -> int:
        return self._offset

    def timestamp(self) -> tuple[int, int]:
        return 1, self._record.timestamp

    def leader_epoch(self) -> int:
        return 0

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        assert not self._raised, "what the client answers now ends the process when it is touched"
        try:
            return [(name.decode(), value) for name, value in self._record.headers] or None
        except UnicodeDecodeError:
            self._raised = True
            raise


@given(st.randoms(use_true_random=False), st.integers(1, 40))
def test_every_record_becomes_a_row_a_delete_or_a_bad_record(generator: Random, count: int) -> None:
    cases = [any_case(generator) for _ in range(count)]
    collection = Collection(name="c", topic="t", dimension=DIMENSION, metric="l2")
    batch, bad = decode({0: [PlainMessage(at, case.record) for at, case in enumerate(cases)]}, collection)
    wanted = outcome(cases)
    assert {record.message.offset() for record in bad} == wanted.bad.keys()
    assert batch.positions == {0: count}
    found = zip(batch.ids, batch.vectors, batch.metadata, strict=True)
    assert {id_: (vector.tobytes(), metadata) for id_, vector, metadata in found} == wanted.rows
    for record in bad:
        offset = record.message.offset()
        assert offset is not None
        readable = all(_is_utf8(name) for name, _ in cases[offset].record.headers)
        assert (record.headers is not None) == readable


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


UNREADABLE = [(b"metadata", b'{"a": 1}'), (b"\xff\xfe", b"1")]


@pytest.mark.parametrize("format_", ["raw", "auto", "json"])
def test_unreadable_headers_matter_only_where_they_decide_something(format_: str) -> None:
    collection = Collection(name="c", topic="t", dimension=1, metric="l2", format=format_)  # type: ignore[arg-type]
    raw, text = np.ones(1, "<f4").tobytes(), b'{"vector": [1]}'
    records = [(b"a", None), (b"b", text if format_ == "json" else raw), (b"", raw)]
    messages = [PlainMessage(at, RawRecord(key, value, UNREADABLE)) for at, (key, value) in enumerate(records)]
    batch, bad = decode({0: messages}, collection)
    assert batch.deleted_ids == [b"a"]
    assert batch.ids == ([b"b"] if format_ == "json" else [])
    assert {record.reason for record in bad} == ({"no_key"} if format_ == "json" else {"no_key", "decode"})
    assert all(record.headers is None for record in bad)
    assert format_ == "json" or "the name of a header is not UTF-8" in bad[-1].detail


def _configure(deployed: Deployment, topic: str, settings: dict[str, int]) -> None:
    entries = [
        ConfigEntry(name, str(value), incremental_operation=AlterConfigOpType.SET) for name, value in settings.items()
    ]
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
    admin = AdminClient({"bootstrap.servers": deployed.bootstrap_servers})
    admin.incremental_alter_configs([resource])[resource].result()


def _produce(deployed: Deployment, cases: list[Case]) -> None:
    """In batches of all codecs."""
    for number, first in enumerate(range(0, len(cases), 40)):
        records = [case.record for case in cases[first : first + 40]]
        assert produce(deployed.bootstrap_servers, deployed.topic, records, CODECS[number % len(CODECS)]) == first


def _letters(deployed: Deployment, count: int) -> dict[int, Any]:
    """The dead letters by the offset of their record."""
    consumer = Consumer({"bootstrap.servers": deployed.bootstrap_servers, "group.id": "letters"})
    consumer.assign([TopicPartition(f"{deployed.topic}.dead-letters", 0, 0)])
    found: dict[int, Any] = {}

    def all_there() -> bool:
        for letter in consumer.consume(1000, 0.2):
            headers = dict(letter.headers() or [])
            assert headers["__connect.errors.topic"] == deployed.topic.encode()
            found[int(headers["__connect.errors.offset"] or b"")] = letter
        return len(found) >= count

    try:
        wait_until(all_there, 30, f"{count} dead letters")
    finally:
        consumer.close()
    return found


@pytest.mark.kafka
def test_any_records_through_kafka_are_searched_or_in_the_dead_letter_topic(deploy: MakeDeployment) -> None:
    deployed = deploy(**{"collections.docs": {"dimension": DIMENSION, "metric": "l2"}})
    _configure(deployed, deployed.topic, {"message.timestamp.after.max.ms": 2**63 - 1, "max.message.bytes": 50_000_000})
    generator = Random(random.getrandbits(64))  # pytest-randomly seeds it and prints the seed
    cases = [any_case(generator) for _ in range(400)]
    consumer = deployed.start("consumer")
    deployed.start("api")
    _produce(deployed, cases)
    deployed.wait_until_checkpointed()
    wanted = outcome(cases)
    read = opened(deployed)
    found = {hit.id: read.get(hit.id) for hit in read.scan()}
    assert {id_: (hit.vector.tobytes(), hit.metadata) for id_, hit in found.items() if hit} == wanted.rows
    letters = _letters(deployed, len(wanted.bad))
    assert letters.keys() == wanted.bad.keys()
    for offset, record in wanted.bad.items():
        _check_letter(letters[offset], record)
    deployed.wait_until_ready()
    deployed.wait_until_applied()
    listed = deployed.ask("GET", "/collections/docs/vectors", params={"limit": 1000}).json()["vectors"]
    assert {row["id"].encode() for row in listed} == wanted.rows.keys()
    assert consumer.process.poll() is None


def _check_letter(letter: Any, record: RawRecord) -> None:
    headers = dict(letter.headers())
    assert "tidemark.truncated" not in headers
    assert (letter.key(), letter.value()) == (record.key, record.value or b"")
    assert headers.get("tidemark.null") == (b"value" if record.value is None else None)
    readable = all(_is_utf8(name) for name, _ in record.headers)
    assert headers.get("tidemark.headers") == (None if readable else b"unreadable")
    if readable:
        own = [(name.decode(), value) for name, value in record.headers if name != b"__connect.errors.offset"]
        assert letter.headers()[: len(own)] == own


@pytest.mark.kafka
def test_records_beyond_what_the_dead_letter_topic_takes_are_cut_and_the_next_is_read(deploy: MakeDeployment) -> None:
    deployed = deploy()
    _configure(deployed, deployed.topic, {"max.message.bytes": 40_000_000})
    _configure(deployed, f"{deployed.topic}.dead-letters", {"max.message.bytes": 20_000})
    many = [(b"h%d" % number, b"x" * 900) for number in range(1_000)]
    good = RawRecord(b"good", np.ones(DIMENSION, "<f4").tobytes())
    for record in (RawRecord(b"a", b"bad", many), RawRecord(None, b"v" * 200_000), RawRecord(b"k" * 200_000, None)):
        produce(deployed.bootstrap_servers, deployed.topic, [record])
    producer = Producer({"bootstrap.servers": deployed.bootstrap_servers, "message.max.bytes": 40_000_000})
    producer.produce(deployed.topic, bytes(12_000_000), b"huge")
    assert producer.flush(30) == 0
    produce(deployed.bootstrap_servers, deployed.topic, [good])
    consumer = deployed.start("consumer")
    deployed.wait_until_checkpointed()
    letters = _letters(deployed, 4)
    assert {dict(letter.headers())["tidemark.truncated"] for letter in letters.values()} == {b"true"}
    assert letters[0].value() == b"bad" and dict(letters[0].headers())["h0"] == b"x" * 900
    assert len(letters[1].value()) > 3_000 and len(letters[3].value()) > 3_000
    assert letters[2].key() == b"k" * 1024 and letters[2].value() == b""
    assert opened(deployed).get(b"good") is not None
    assert consumer.process.poll() is None
