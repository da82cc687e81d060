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


class CountsUnassigns(RevokesBetweenCalls):
    """Notes each call that takes partitions away."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self.calls: list[int] = []

    def incremental_unassign(self, partitions: list[TopicPartition]) -> None:
        self.calls.append(len(partitions))


def test_a_revocation_is_answered_to_the_client_once_also_of_partitions_that_are_not_read() -> None:
    """Not at all, the client fails; twice, it may wait for the second answer for ever, with the interpreter's lock."""
    clients: list[CountsUnassigns] = []

    def make(settings: dict[str, Any]) -> CountsUnassigns:
        clients.append(CountsUnassigns(settings))
        return clients[0]

    log = Log(SETTINGS, "group", make_client=make)
    log.subscribe(["t"], lambda partitions: [Start(partition, 0) for partition in partitions], lambda _: None)
    log.fetch(100, 0.0)
    assert clients[0].calls == [1]
    log.stop(("t", 1))
    clients[0]._callbacks["on_revoke"](clients[0], [TopicPartition("t", 1)])
    assert clients[0].calls == [1, 1, 0]
