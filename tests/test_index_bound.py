"""An index that may not grow: what it does not hold is compared by every search, so there is a bound to it as well."""

import time
from collections.abc import Callable

import pytest

from api.follower import Follower
from tests.services import Deployment, vectors
from tidemark.log import Log
from tidemark.topic_watch import TopicWatch

pytestmark = pytest.mark.kafka
MakeDeployment = Callable[..., Deployment]
BEYOND_MAX = 2_000


def turn_until(follower: Follower, log: Log, fact: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not fact():
        assert time.monotonic() < deadline, f"{what}: {follower.problem}"
        follower._turn(log)


def test_reading_waits_at_the_bound_and_goes_on_when_a_checkpoint_has_fewer_rows(
    deploy: MakeDeployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.follower.UNBUILT_ROWS_MAX", BEYOND_MAX)
    made = deploy(api={"index_bytes_max": 2**20})
    settings, collection = made.settings, made.settings.collection("docs")
    watch = TopicWatch(settings, collection)
    watch.start()
    follower, log = Follower(settings, collection, "g000001", watch), Log(settings.kafka)
    numbers = vectors(20_000)
    try:
        made.produce((b"id-%d" % n, numbers[n].tobytes()) for n in range(10_000))
        turn_until(follower, log, lambda: follower.index.problem is not None, "the index has all the memory it may")
        made.produce((b"id-%d" % n, numbers[n].tobytes()) for n in range(10_000, 14_000))
        turn_until(follower, log, lambda: bool(follower.partitions[0].held), "held")
        made.produce((b"id-%d" % n, numbers[n].tobytes()) for n in range(14_000, 20_000))
        (partition,) = follower.partitions
        assert partition.problem is None
        assert partition.waiting is not None and "api.index_bytes_max is 1048576" in partition.waiting
        assert 10_000 + BEYOND_MAX < partition.position <= 14_000
        consumer = made.start("consumer")
        turn_until(follower, log, lambda: made.manifest_position(0) == 20_000, consumer.text)
        made.produce((b"id-%d" % n, None) for n in range(5_000, 20_000))
        turn_until(follower, log, lambda: partition.position == 35_000 and partition.reading, "goes on")
        assert partition.applied.live_rows == 5_000
        assert partition.trouble is None
    finally:
        follower.close()
        log.close()
        watch.close()
