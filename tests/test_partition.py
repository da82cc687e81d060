"""When a partition's checkpoint is due, and when its builds wait: no broker, no builder."""

import time
from dataclasses import replace as changed
from pathlib import Path
from typing import cast

import pytest
from msgspec.structs import replace

from consumer.partition import BACKLOG_OFFSETS, Bounds, OwnedPartition
from tests.messages import upsert
from tidemark.checkpoint import Checkpoints
from tidemark.collection import Collection, IndexParameters
from tidemark.generation import Generation
from tidemark.log import Log, Partition, Start
from tidemark.manifest import TopicIdentity
from tidemark.record import decode
from tidemark.view import View

COLLECTION = Collection("docs", "docs", 4, "l2")
TOPIC = TopicIdentity("cluster", "topic")
INTERVAL_S, ROWS = 5.0, 1_000


def owned_in(tmp_path: Path) -> OwnedPartition:
    """A partition claimed in a directory of its own, without any record yet."""
    checkpoints = Checkpoints(tmp_path, COLLECTION, "g000001", 0)
    assert checkpoints.claim(TOPIC, None, 0)
    generation = Generation("g000001", 0, "earliest", COLLECTION.index)
    return OwnedPartition(("docs", 0), COLLECTION, generation, TOPIC, View(COLLECTION, 0), checkpoints, 0, 0)


@pytest.fixture
def owned(tmp_path: Path) -> OwnedPartition:
    return owned_in(tmp_path)


def apply(owned: OwnedPartition, count: int) -> None:
    first = owned.view.position
    messages = [upsert(first + n, b"%d" % (first + n), [first + n, 1, 2, 3]) for n in range(count)]
    owned.view.apply(decode({0: messages}, COLLECTION)[0])


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


def test_builds_wait_for_a_backlog_until_reading_is_held_back(owned: OwnedPartition) -> None:
    for _ in range(5):
        apply(owned, 2_000)
        owned.checkpoint()
    owned.end = owned.view.position + BACKLOG_OFFSETS + 1
    assert owned.wanted_build(10**6, quiet=False) == []
    owned.held = "waiting for the builder"
    assert len(owned.wanted_build(10**6, quiet=False)) == 5
    owned.held, owned.end = None, owned.view.position
    assert len(owned.wanted_build(10**6, quiet=False)) == 5


BOUNDS = Bounds(unbuilt_rows=2_000, unbuilt_bytes=2**40, memory_rows=10**9)


class LogThatNotes:
    """What the log reader was told, in order."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def stop(self, _: Partition) -> None:
        self.told.append("stop")

    def restart(self, start: Start) -> None:
        self.told.append(f"restart {start.position}")


def hold_back(owned: OwnedPartition, log: LogThatNotes, bounds: Bounds = BOUNDS) -> None:
    owned.hold_back(cast(Log, log), bounds)


def test_reading_stops_at_the_bound_and_goes_on_from_the_position_when_the_builder_has_been_there(
    owned: OwnedPartition,
) -> None:
    log = LogThatNotes()
    owned.generation = replace(owned.generation, index=IndexParameters(ann_rows_min=256))
    apply(owned, 2_001)
    hold_back(owned, log)
    assert (log.told, owned.held) == (["stop"], "waiting for the builder: rows without an index are at their bound")
    owned.checkpoint()
    hold_back(owned, log)
    inputs = owned.wanted_build(10**6, quiet=False)
    assert len(inputs) == 1
    owned.view.install(None, [inputs[0].name], {inputs[0].name: inputs[0].dead_mask()})
    hold_back(owned, log)
    assert (log.told, owned.held) == (["stop", "restart 2001"], None)


def test_rows_that_no_build_can_lessen_hold_nothing_back(owned: OwnedPartition) -> None:
    log = LogThatNotes()
    owned.generation = replace(owned.generation, index=IndexParameters(ann_rows_min=8_192))
    for _ in range(3):
        apply(owned, 1_000)
        owned.checkpoint()
        hold_back(owned, log)
    assert log.told == []


def test_dead_rows_without_an_index_are_built_away_when_they_hold_reading_back(owned: OwnedPartition) -> None:
    """Three checkpoints of the same 300 ids: too few live rows for an index, too many rows for the bound."""
    owned.generation = replace(owned.generation, index=IndexParameters(ann_rows_min=400))
    for first in (0, 300, 600):
        messages = [upsert(first + n, b"%d" % n, [n, 1, 2, 3]) for n in range(300)]
        owned.view.apply(decode({0: messages}, COLLECTION)[0])
        owned.checkpoint()
    log = LogThatNotes()
    hold_back(owned, log, changed(BOUNDS, unbuilt_rows=800))
    assert log.told == ["stop"]
    assert len(owned.wanted_build(10**6, quiet=True)) == 3


def test_under_flat_a_settled_segment_is_no_row_without_an_index(owned: OwnedPartition) -> None:
    owned.generation = replace(owned.generation, index=IndexParameters(kind="flat", ann_rows_min=256))
    log = LogThatNotes()
    apply(owned, 2_001)
    owned.checkpoint()
    hold_back(owned, log)
    assert (owned.unbuilt_rows, log.told) == (0, [])


def test_a_checkpoint_that_fails_says_why_and_is_tried_again_later(owned: OwnedPartition) -> None:
    apply(owned, ROWS)
    owned.checkpoint_failed("the disk is full")
    assert owned.problem == "the disk is full"
    assert not due(owned, time.monotonic())
    assert due(owned, owned.checkpoint_retry.at)
    owned.checkpoint()
    assert owned.problem is None
