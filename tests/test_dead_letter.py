"""Dead letters against a real Kafka: topics that are missing, too small, compacted, and letters of any size."""

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import Consumer, Message, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)

from cli.local_kafka import LocalKafka
from consumer import dead_letter
from consumer.dead_letter import DeadLetters
from tests.messages import message
from tests.services import wait_until
from tidemark.record import BadRecord, Headers
from tidemark.topic import Topics

pytestmark = pytest.mark.kafka

SOURCE = ("docs", 3)
OTHER = ("other", 0)


def bad(offset: int = 7, key: bytes | None = b"k", value: bytes | None = b"v", headers: Headers | None = None) -> Any:
    return BadRecord(message(offset, key, value), "decode", "why it is bad", headers or [])


@pytest.fixture
def letters(kafka: str) -> Iterator[DeadLetters]:
    made = DeadLetters({"bootstrap.servers": kafka}, "a-group")
    yield made
    made.close()


@pytest.fixture
def create(kafka: str) -> Callable[..., str]:
    """Creates a topic of one partition; its name."""

    def make(name: str = "", **config: Any) -> str:
        name = name or f"letters-{uuid.uuid4().hex[:8]}"
        settings = {key.replace("_", "."): str(value) for key, value in config.items()}
        admin = AdminClient({"bootstrap.servers": kafka})
        admin.create_topics([NewTopic(name, 1, 1, config=settings)])[name].result()
        return name

    return make


@pytest.fixture
def read(kafka: str) -> Callable[[str, int], list[Message]]:
    def read_all(topic: str, count: int) -> list[Message]:
        consumer = Consumer({"bootstrap.servers": kafka, "group.id": "letters"})
        consumer.assign([TopicPartition(topic, 0, 0)])
        found: list[Message] = []
        try:
            wait_until(lambda: bool(found.extend(consumer.consume(1000, 0.1)) or len(found) >= count), 20, "letters")
        finally:
            consumer.close()
        assert len(found) == count
        return found

    return read_all


def named(letter: Message) -> dict[str, bytes | None]:
    return dict(letter.headers() or [])


def acknowledged(letters: DeadLetters, *sources: tuple[str, int]) -> bool:
    return letters.wait(sources or [SOURCE], 30.0)


def fails(letters: DeadLetters, source: tuple[str, int]) -> str:
    wait_until(lambda: letters.wait([source], 0.05) or letters.problem(source) is not None, 30, "a failure")
    problem = letters.problem(source)
    assert problem is not None
    return problem


def test_a_letter_has_the_record_as_it_was_with_its_coordinates(
    letters: DeadLetters, create: Callable[..., str], read: Any
) -> None:
    topic = create()
    letters.send(bad(headers=[("color", b"\xff\x00"), ("null", None)]), SOURCE, topic)
    assert letters.outstanding(SOURCE) == 1
    assert acknowledged(letters)
    assert letters.outstanding(SOURCE) == 0
    (letter,) = read(topic, 1)
    assert (letter.key(), letter.value()) == (b"k", b"v")
    assert letter.headers() == [
        ("color", b"\xff\x00"),
        ("null", None),
        ("__connect.errors.topic", b"docs"),
        ("__connect.errors.partition", b"3"),
        ("__connect.errors.offset", b"7"),
        ("tidemark.reason", b"decode"),
        ("__connect.errors.exception.message", b"why it is bad"),
        ("tidemark.group", b"a-group"),
    ]


def test_a_letter_that_its_topic_finds_too_large_is_cut_until_it_fits(
    letters: DeadLetters, create: Callable[..., str], read: Any
) -> None:
    topic = create(max_message_bytes=20_000)
    value = bytes(range(256)) * 800
    letters.send(bad(1, value=value), SOURCE, topic)
    letters.send(bad(2, value=b"small"), SOURCE, topic)
    letters.send(bad(3, key=b"k" * 1_500_000), SOURCE, topic)
    assert acknowledged(letters)
    found = {named(letter)["__connect.errors.offset"]: letter for letter in read(topic, 3)}
    assert found[b"2"].value() == b"small" and "tidemark.truncated" not in named(found[b"2"])
    large = found[b"1"]
    assert value.startswith(large.value()) and len(large.value()) > 5_000
    assert large.key() == b"k" and named(large)["tidemark.truncated"] == b"true"
    assert found[b"3"].key() == b"k" * 1024


def test_a_letter_fits_into_a_topic_of_a_thousand_bytes(
    letters: DeadLetters, create: Callable[..., str], read: Any
) -> None:
    topic = create(max_message_bytes=1_000)
    long = BadRecord(message(1, b"k" * 5_000, b"v" * 5_000), "too_large", "å" * 2_000, [("h", b"h" * 5_000)])
    letters.send(long, ("t" * 249, 99), topic)
    assert acknowledged(letters, ("t" * 249, 99))
    (letter,) = read(topic, 1)
    headers = named(letter)
    assert letter.value() is not None
    assert headers["tidemark.truncated"] == b"true" and headers["__connect.errors.offset"] == b"1"
    assert headers["__connect.errors.topic"] == b"t" * 249
    assert ("å" * 2_000).encode().startswith(headers.get("__connect.errors.exception.message") or b"")


def test_a_megabyte_of_headers_is_cut_and_the_small_ones_are_kept(
    letters: DeadLetters, create: Callable[..., str], read: Any
) -> None:
    topic = create()
    many: Headers = [("small", b"1"), *((f"h-{n}", b"x" * 1_000) for n in range(1_100)), ("last", None)]
    letters.send(bad(1, headers=many), SOURCE, topic)
    letters.send(bad(2, headers=[("one", b"x" * 1_200_000), ("small", b"1")]), SOURCE, topic)
    assert acknowledged(letters)
    first, second = sorted(read(topic, 2), key=lambda letter: named(letter)["__connect.errors.offset"] or b"")
    assert first.value() == b"v" and named(first)["small"] == b"1" and named(first)["h-0"] == b"x" * 1_000
    assert second.value() == b"v" and named(second)["small"] == b"1" and "one" not in named(second)


def test_letters_are_not_refused_because_they_were_batched_with_others(
    letters: DeadLetters, create: Callable[..., str], read: Any
) -> None:
    topic = create(max_message_bytes=20_000)
    for offset in range(300):
        letters.send(bad(offset, value=b"v" * 1_000), SOURCE, topic)
    assert acknowledged(letters)
    found = read(topic, 300)
    assert {letter.value() for letter in found} == {b"v" * 1_000}
    assert not any("tidemark.truncated" in named(letter) for letter in found)


def test_a_letter_has_no_null_value_and_gets_through_to_a_compacted_topic_without_a_key(
    letters: DeadLetters, create: Callable[..., str], read: Any
) -> None:
    topic = create(cleanup_policy="compact")
    letters.send(bad(1, key=None, value=None), SOURCE, topic)
    letters.send(bad(2, key=b"k", value=None), SOURCE, topic)
    letters.send(bad(3), SOURCE, topic)
    assert acknowledged(letters)
    found = {named(letter)["__connect.errors.offset"]: letter for letter in read(topic, 3)}
    assert {letter.value() for letter in found.values()} == {b"", b"v"}
    assert found[b"1"].key() == b"" and named(found[b"1"])["tidemark.null"] == b"key,value"
    assert found[b"2"].key() == b"k" and named(found[b"2"])["tidemark.null"] == b"value"
    assert "tidemark.null" not in named(found[b"3"])


def test_letters_for_a_missing_topic_wait_and_arrive_when_it_is_created(
    letters: DeadLetters, create: Callable[..., str], read: Any
) -> None:
    there, missing = create(), f"late-{uuid.uuid4().hex[:8]}"
    for offset in range(50):
        letters.send(bad(offset), SOURCE, missing)
    letters.send(bad(), OTHER, there)
    problem = fails(letters, SOURCE)
    assert missing in problem and "create the topic" in problem
    assert acknowledged(letters, OTHER)
    assert letters.problem(OTHER) is None and letters.outstanding(SOURCE) == 50
    create(missing)
    assert acknowledged(letters)
    assert letters.problem(SOURCE) is None
    offsets = {named(letter)["__connect.errors.offset"] for letter in read(missing, 50)}
    assert offsets == {str(offset).encode() for offset in range(50)}


def test_a_topic_that_takes_nothing_says_so_and_gets_the_letter_once_its_limit_is_raised(
    letters: DeadLetters, create: Callable[..., str], read: Any, kafka: str
) -> None:
    topic = create(max_message_bytes=100)
    letters.send(bad(), SOURCE, topic)
    assert "raise the topic's max.message.bytes" in fails(letters, SOURCE)
    entry = ConfigEntry("max.message.bytes", "100000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.incremental_alter_configs([resource])[resource].result()
    assert acknowledged(letters)
    assert named(read(topic, 1)[0])["__connect.errors.offset"] == b"7"


def test_letters_that_no_broker_takes_are_kept_and_said() -> None:
    letters = DeadLetters({"bootstrap.servers": "127.0.0.1:1", "message.timeout.ms": 500}, "g")
    letters.send(bad(), SOURCE, "nowhere")
    assert not letters.wait([SOURCE], 0.1)
    assert "the brokers are up" in fails(letters, SOURCE)
    assert letters.outstanding(SOURCE) == 1
    letters.forget(SOURCE)
    assert letters.outstanding(SOURCE) == 0 and letters.problem(SOURCE) is None
    letters.close()


def test_a_partition_is_full_at_its_bound_and_not_any_more_when_its_letters_are_acknowledged(
    letters: DeadLetters, create: Callable[..., str]
) -> None:
    topic = create()
    for offset in range(dead_letter.LETTERS_MAX):
        assert not letters.full(SOURCE)
        letters.send(bad(offset), SOURCE, topic)
    assert letters.full(SOURCE) and not letters.full(OTHER)
    assert acknowledged(letters) and not letters.full(SOURCE)


def test_the_bytes_of_all_partitions_have_a_bound_that_holds_up_only_those_with_letters(
    letters: DeadLetters, create: Callable[..., str]
) -> None:
    there, missing = create(), f"never-{uuid.uuid4().hex[:8]}"
    for source, topic, count in ((SOURCE, missing, 5), (OTHER, there, 3)):
        for offset in range(count):
            assert not letters.full(source)
            letters.send(bad(offset, value=bytes(dead_letter.BYTES_MAX // 8)), source, topic)
    assert letters.full(SOURCE) and letters.full(OTHER) and not letters.full(("third", 0))
    assert acknowledged(letters, OTHER)
    assert not letters.full(OTHER)
    assert letters.full(SOURCE), "5 of 8 are left: it is full until half is"
    letters.forget(SOURCE)
    letters.send(bad(), SOURCE, there)
    assert not letters.full(SOURCE)


def test_what_is_forgotten_is_not_sent_again_nor_counted_when_its_answer_comes_late(
    letters: DeadLetters, create: Callable[..., str], read: Any
) -> None:
    topic = create()
    letters.send(bad(1), SOURCE, topic)
    letters.turn()
    letters.forget(SOURCE)
    letters.send(bad(2), SOURCE, topic)
    assert letters.outstanding(SOURCE) == 1
    assert acknowledged(letters)
    letters.send(bad(3), SOURCE, topic)
    letters.forget(SOURCE)
    assert acknowledged(letters)
    assert {named(letter)["__connect.errors.offset"] for letter in read(topic, 2)} == {b"1", b"2"}


@pytest.fixture(scope="module")
def own_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalKafka]:
    """A broker that may be stopped, with access rules; everybody may do what no rule forbids."""
    rules = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "true",
    }
    with LocalKafka(tmp_path_factory.mktemp("own"), fast_start=True, overrides=rules) as broker:
        yield broker


@pytest.fixture
def hasty(own_broker: LocalKafka) -> Iterator[DeadLetters]:
    made = DeadLetters({"bootstrap.servers": own_broker.bootstrap_servers, "message.timeout.ms": 1_000}, "g")
    yield made
    made.close()


def test_letters_sent_while_the_broker_hangs_arrive_when_it_goes_on(own_broker: LocalKafka, hasty: DeadLetters) -> None:
    Topics({"bootstrap.servers": own_broker.bootstrap_servers}).create("letters", 1)
    hasty.send(bad(1), SOURCE, "letters")
    assert acknowledged(hasty)
    assert own_broker.pid is not None
    os.kill(own_broker.pid, signal.SIGSTOP)
    try:
        for offset in range(20):
            hasty.send(bad(offset), SOURCE, "letters")
        assert "the brokers are up" in fails(hasty, SOURCE)
        assert hasty.outstanding(SOURCE) == 20
    finally:
        os.kill(own_broker.pid, signal.SIGCONT)
    assert acknowledged(hasty)
    assert hasty.problem(SOURCE) is None


def test_letters_for_a_topic_that_may_not_be_written_arrive_when_it_may(
    own_broker: LocalKafka, hasty: DeadLetters
) -> None:
    Topics({"bootstrap.servers": own_broker.bootstrap_servers}).create("forbidden", 1)
    admin = AdminClient({"bootstrap.servers": own_broker.bootstrap_servers})
    rule = ("forbidden", ResourcePatternType.LITERAL, "User:ANONYMOUS", "*", AclOperation.WRITE)
    forbids = AclBinding(ResourceType.TOPIC, *rule, AclPermissionType.DENY)
    admin.create_acls([forbids])[forbids].result()
    hasty.send(bad(), SOURCE, "forbidden")
    assert "allow the consumer's Kafka user to write to it" in fails(hasty, SOURCE)
    forbidding = AclBindingFilter(ResourceType.TOPIC, *rule, AclPermissionType.DENY)
    admin.delete_acls([forbidding])[forbidding].result()
    assert acknowledged(hasty)
    assert hasty.problem(SOURCE) is None
