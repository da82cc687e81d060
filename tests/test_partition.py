"""When a partition's checkpoint is due, and when its builds wait: no broker, no builder."""

from pathlib import Path

import pytest

from consumer.partition import BACKLOG_OFFSETS, OwnedPartition
from tests.messages import upsert
from tidemark.checkpoint import Checkpoints
from tidemark.collection import Collection
from tidemark.generation import Generation
from tidemark.manifest import TopicIdentity
from tidemark.record import decode
from tidemark.view import View

COLLECTION = Collection("docs", "docs", 4, "l2")
TOPIC = TopicIdentity("cluster", "topic")
INTERVAL_S, ROWS = 5.0, 1_000


@pytest.fixture
def owned(tmp_path: Path) -> OwnedPartition:
    checkpoints = Checkpoints(tmp_path, COLLECTION, "g000001", 0)
    assert checkpoints.claim(TOPIC, None, 0)
    generation = Generation("g000001", 0, "earliest", COLLECTION.index)
    return OwnedPartition(("docs", 0), COLLECTION, generation, TOPIC, View(COLLECTION, 0), checkpoints, 0, 0)


def apply(owned: OwnedPartition, count: int) -> None:
    first = owned.view.position
    messages = [upsert(first + n, b"%d" % (first + n), [first + n, 1, 2, 3]) for n in range(count)]
    owned.view.apply(decode(messages, COLLECTION)[0])


def due(owned: OwnedPartition, now: float) -> bool:
    return owned.checkpoint_due(now, INTERVAL_S, ROWS)


def test_a_record_after_a_long_pause_is_checkpointed_an_interval_later_not_at_once(owned: OwnedPartition) -> None:
    paused_until = owned.clean_at + 3_600
    assert not due(owned, paused_until)
    apply(owned, 1)
    assert not due(owned, paused_until + INTERVAL_S - 0.1)
    assert due(owned, paused_until + INTERVAL_S)


def test_full_memory_is_checkpointed_before_the_interval_has_passed(owned: OwnedPartition) -> None:
    apply(owned, ROWS - 1)
    assert not due(owned, owned.clean_at)
    apply(owned, 1)
    assert due(owned, owned.clean_at)


def test_an_installed_build_is_checkpointed_at_once_or_with_the_rows_in_memory(owned: OwnedPartition) -> None:
    owned.checkpoint_wanted = True
    assert due(owned, owned.clean_at)
    apply(owned, 1)
    assert not due(owned, owned.clean_at)
    assert due(owned, owned.clean_at + INTERVAL_S)


def test_builds_wait_for_a_backlog_until_the_cap_has_stopped_the_fetching(owned: OwnedPartition) -> None:
    for _ in range(5):
        apply(owned, 2_000)
        owned.checkpoint()
    owned.end = owned.view.position + BACKLOG_OFFSETS + 1
    assert owned.wanted_build(10**6, quiet=False) == []
    owned.paused = True
    assert len(owned.wanted_build(10**6, quiet=False)) == 5
    owned.paused, owned.end = False, owned.view.position
    assert len(owned.wanted_build(10**6, quiet=False)) == 5
