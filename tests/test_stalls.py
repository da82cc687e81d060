"""A client that silently stops delivering a partition is found out and made to read again, in consumer and replica.

Brokers, client and log reader are real. The client loses what it fetches until the partition is assigned again, as one
that has forgotten a partition does, and the minute of silence is taken off the clock's reading.
"""

import time
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Consumer, Message, TopicPartition

from api import follower as api_follower
from api.follower import Follower
from consumer import indexer as consumer_indexer
from consumer.indexer import Indexer
from consumer.told import Told
from tests.services import Deployment
from tests.test_consumer import _upserts
from tidemark.log import Log
from tidemark.topic_watch import TopicWatch

pytestmark = pytest.mark.kafka

MakeDeployment = Callable[..., Deployment]


class Forgetful(Consumer):
    """A consumer that can be made to lose everything until a partition is assigned again."""

    made: "Forgetful"
    loses = False

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        Forgetful.made = self

    def poll(self, timeout: float = -1) -> Message | None:
        message = super().poll(timeout)
        return None if self.loses else message

    def consume(self, num_messages: int = 1, timeout: float = -1) -> list[Message]:
        messages = super().consume(num_messages, timeout)
        return [] if self.loses else messages

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        self.loses = False
        super().incremental_assign(partitions)


def _turn_until(turn: Callable[[], None], fact: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not fact():
        assert time.monotonic() < deadline, what
        turn()


def _lose_ten(deployed: Deployment) -> None:
    Forgetful.made.loses = True
    deployed.produce(_upserts(10, prefix="lost"))


def test_a_consumers_partition_from_which_nothing_comes_although_its_log_grows_is_read_again(
    deploy: MakeDeployment, caplog: pytest.LogCaptureFixture
) -> None:
    deployed = deploy()
    deployed.produce(_upserts(10))
    settings = deployed.settings
    indexer = Indexer(settings, settings.all_collections())
    indexer._log.close()
    log = indexer._log = Log(settings.kafka, settings.consumer.group, make_client=Forgetful)
    indexer._told = Told(log)
    for watch in indexer._watches.values():
        watch.start()
    log.subscribe([deployed.topic], indexer._assigned, indexer._revoked)
    partition = (deployed.topic, 0)
    try:
        _turn_until(lambda: indexer._turn(log), lambda: _position(indexer, partition) == 10, "read")
        _lose_ten(deployed)
        _turn_until(lambda: indexer._turn(log), lambda: indexer._owned[partition].end == 20, "the end is known")
        assert _position(indexer, partition) == 10
        assert "reading again" not in caplog.text
        indexer._owned[partition].last_record_at -= consumer_indexer.STALL_S
        indexer._turn(log)
        assert "reading again" not in caplog.text  # silence before there was anything to read is none
        _turn_until(lambda: indexer._turn(log), lambda: indexer._owned[partition].behind_since is not None, "seen")
        indexer._owned[partition].behind_since -= consumer_indexer.STALL_S  # type: ignore[operator]
        _turn_until(lambda: indexer._turn(log), lambda: _position(indexer, partition) == 20, "read again")
        assert "10 offsets behind and nothing fetched" in caplog.text
    finally:
        indexer._builder.stop()
        log.close()
        indexer._take_overs.shutdown()
        indexer._quantizers.close()
        indexer._dead_letters.close()
        for watch in indexer._watches.values():
            watch.close()


def _position(indexer: Indexer, partition: tuple[str, int]) -> int:
    return indexer._owned[partition].state.position if partition in indexer._owned else -1


def test_a_replicas_partition_from_which_nothing_comes_although_its_log_grows_is_read_again(
    deploy: MakeDeployment, caplog: pytest.LogCaptureFixture
) -> None:
    deployed = deploy()
    deployed.produce(_upserts(10))
    settings, collection = deployed.settings, deployed.settings.collection("docs")
    watch = TopicWatch(settings, collection)
    watch.start()
    follower = Follower(settings, collection, "g000001", watch)
    log = Log(settings.kafka, make_client=Forgetful)

    def positions() -> list[int]:
        return [followed.position for followed in follower.partitions]

    try:
        _turn_until(lambda: follower._turn(log), lambda: positions() == [10], "read")
        _lose_ten(deployed)
        _turn_until(lambda: follower._turn(log), lambda: follower.partitions[0].offset_lag == 10, "the end is known")
        assert positions() == [10]
        assert "reading again" not in caplog.text
        follower.partitions[0].last_record_at -= api_follower.STALL_S
        follower._turn(log)
        assert "reading again" not in caplog.text
        _turn_until(lambda: follower._turn(log), lambda: follower.partitions[0].behind_since is not None, "seen")
        follower.partitions[0].behind_since -= api_follower.STALL_S  # type: ignore[operator]
        _turn_until(lambda: follower._turn(log), lambda: positions() == [20], "read again")
        assert "behind and nothing fetched" in caplog.text
    finally:
        follower.close()
        log.close()
        watch.close()
