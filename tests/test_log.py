"""The log reader beside a client of Kafka's that does what a real one does only at an unlucky moment."""

from typing import Any

from confluent_kafka import Message, TopicPartition

from tidemark.log import Log, Start

SETTINGS = {"bootstrap.servers": "127.0.0.1:1"}


class RevokesBetweenCalls:
    """Two partitions are assigned; the call after the first message serves a revocation of one of them."""

    def __init__(self, _: dict[str, Any]) -> None:
        self._callbacks: dict[str, Any] = {}

    def subscribe(self, _: list[str], **callbacks: Any) -> None:
        self._callbacks = callbacks

    def poll(self, _: float) -> Message:
        self._callbacks["on_assign"](self, [TopicPartition("t", 0), TopicPartition("t", 1)])
        return Message(topic="t", partition=0, offset=1_000, key=b"id", value=b"")

    def consume(self, _: int, __: float) -> list[Message]:
        self._callbacks["on_revoke"](self, [TopicPartition("t", 0)])
        return []

    def incremental_assign(self, _: list[TopicPartition]) -> None: ...
    def incremental_unassign(self, _: list[TopicPartition]) -> None: ...


def test_a_message_of_a_partition_revoked_within_a_fetch_is_given_to_no_other_one() -> None:
    log = Log(SETTINGS, "group", make_client=RevokesBetweenCalls)
    log.subscribe(["t"], lambda partitions: [Start(partition, 0) for partition in partitions], lambda _: None)
    assert log.fetch(100, 0.0).messages == {}
