"""When a partition's checkpoint is due, and when its builds wait: no broker, no builder."""

import time
from dataclasses import replace as changed
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace

from consumer.bounds import Bounds
from consumer.partition import BACKLOG_OFFSETS, CODED_ROWS, OwnedPartition
from consumer.quantizing import Known
from tests.messages import upsert
from tests.rows import quantizer_of
from tidemark.checkpoint import Checkpoints
from tidemark.collection import Collection, IndexParameters
from tidemark.generation import Generation
from tidemark.log import Log, Partition, Start
from tidemark.manifest import TopicIdentity
from tidemark.record import decode
from tidemark.segment_files import write_codes
from tidemark.view import View

COLLECTION = Collection("docs", "docs", 4, "l2")
TOPIC = TopicIdentity("cluster", "topic")
INTERVAL_S, ROWS = 5.0, 1_000
QUANTIZER = quantizer_of(4)


def owned_in(tmp_path: Path) -> OwnedPartition:
    """A partition claimed in a directory of its own, without any record yet."""
    checkpoints = Checkpoints(tmp_path, COLLECTION, "g000001", 0)
    assert checkpoints.claim(TOPIC, None, 0)
    generation = Generation("g000001", 0, "earliest", COLLECTION.index)
    view = View(COLLECTION)
    view.open(0, [], 0, -1, 0)
    return OwnedPartition(("docs", 0), COLLECTION, generation, TOPIC, view, checkpoints, 0, 0)


@pytest.fixture
def owned(tmp_path: Path) -> OwnedPartition:
    return owned_in(tmp_path)


def known_of(owned: OwnedPartition, trained: bool = False) -> Known:
    """What is known of its quantizer, which is there or not."""
    known = Known(owned.checkpoints.root, COLLECTION, "g000001", owned.index)
    known.newest = QUANTIZER if trained else None
    return known


def apply(owned: OwnedPartition, count: int) -> None:
    first = owned.state.position
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


def _names(owned: OwnedPartition, known: Known) -> tuple[list[str], list[str]]:
    """Segments to be coded, and to be merged."""
    coded, merged = owned.wanted_codes(known), owned.wanted_merge(10**6, False, known)
    return [segment.name for segment in coded], [segment.name for segment in merged]


def test_builds_wait_for_a_backlog_until_reading_is_held_back(owned: OwnedPartition) -> None:
    known = known_of(owned)
    for _ in range(8):
        apply(owned, 2_000)
        owned.checkpoint(known)
    known.newest = QUANTIZER
    every = [segment.name for segment in owned.state.segments]
    owned.end = owned.state.position + BACKLOG_OFFSETS + 1
    assert _names(owned, known) == ([], [])
    owned.held = "waiting for the builder"
    assert _names(owned, known) == (every, every)
    owned.held, owned.end = None, owned.state.position
    assert _names(owned, known) == (every, every)


def test_rows_without_any_codes_are_coded_first_and_not_too_many_at_once(
    owned: OwnedPartition, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = known_of(owned, trained=True)
    for coded in (True, False, True):
        apply(owned, 100)
        owned.checkpoint(known if coded else None)
    first, without, last = (segment.name for segment in owned.state.segments)
    assert _names(owned, known)[0] == [without]
    assert owned.unbuilt_rows == 100 and owned.built_position == 100
    known.newest = quantizer_of(4, version=2)
    assert _names(owned, known)[0] == [without, first, last]
    monkeypatch.setattr("consumer.partition.CODED_ROWS", 250)
    assert CODED_ROWS >= 250 and _names(owned, known)[0] == [without, first]


BOUNDS = Bounds(unbuilt_rows=2_000, unbuilt_bytes=2**40, memory_rows=10**9)


class LogThatNotes:
    """What the log reader was told, in order."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def stop(self, _: Partition) -> None:
        self.told.append("stop")

    def restart(self, start: Start) -> None:
        self.told.append(f"restart {start.position}")


def hold_back(owned: OwnedPartition, log: LogThatNotes, bounds: Bounds = BOUNDS, known: Known | None = None) -> None:
    owned.hold_back(cast(Log, log), bounds, known)


def _with_index(owned: OwnedPartition, **index: Any) -> None:
    owned.generation = replace(owned.generation, index=IndexParameters(**index))


def test_reading_stops_at_the_bound_and_goes_on_from_the_position_when_the_builder_has_been_there(
    owned: OwnedPartition,
) -> None:
    log = LogThatNotes()
    _with_index(owned, kind="hnsw", ann_rows_min=256)
    apply(owned, 2_001)
    hold_back(owned, log)
    assert (log.told, owned.held) == (["stop"], "waiting for the builder: rows without an index are at their bound")
    owned.checkpoint()
    hold_back(owned, log)
    inputs = owned.wanted_merge(10**6, False, None)
    assert len(inputs) == 1
    owned.view.install(0, None, [inputs[0].name], {inputs[0].name: inputs[0].dead_mask()})
    hold_back(owned, log)
    assert (log.told, owned.held) == (["stop", "restart 2001"], None)


def test_codes_let_reading_go_on_that_was_stopped_at_the_bound(owned: OwnedPartition) -> None:
    log, known = LogThatNotes(), known_of(owned)
    _with_index(owned, ann_rows_min=256)
    apply(owned, 2_001)
    owned.checkpoint(known)
    hold_back(owned, log, known=known)
    assert log.told == ["stop"]
    known.newest = QUANTIZER
    (segment,) = owned.wanted_codes(known)
    name = owned.checkpoints.new_codes_name(segment.name, known.version)
    codes = write_codes(segment.directory, name, segment.vectors, QUANTIZER)
    owned.take_codes({segment.name: codes}, known)
    hold_back(owned, log, known=known)
    assert (log.told, owned.unbuilt_rows, owned.checkpoint_wanted) == (["stop", "restart 2001"], 0, True)


@pytest.mark.parametrize("kind", ["hnsw", "ivfpq"])
def test_rows_that_no_build_can_lessen_hold_nothing_back(owned: OwnedPartition, kind: str) -> None:
    log = LogThatNotes()
    _with_index(owned, kind=kind, ann_rows_min=8_192)
    for _ in range(3):
        apply(owned, 1_000)
        owned.checkpoint()
        hold_back(owned, log, known=known_of(owned) if kind == "ivfpq" else None)
    assert log.told == []


@pytest.mark.parametrize("kind", ["hnsw", "ivfpq"])
def test_dead_rows_without_an_index_are_built_away_when_they_hold_reading_back(
    owned: OwnedPartition, kind: str
) -> None:
    """Three checkpoints of the same 300 ids: too few live rows for an index, too many rows for the bound."""
    _with_index(owned, kind=kind, ann_rows_min=400)
    known = known_of(owned) if kind == "ivfpq" else None
    for first in (0, 300, 600):
        messages = [upsert(first + n, b"%d" % n, [n, 1, 2, 3]) for n in range(300)]
        owned.view.apply(decode({0: messages}, COLLECTION)[0])
        owned.checkpoint()
    log = LogThatNotes()
    hold_back(owned, log, changed(BOUNDS, unbuilt_rows=800), known)
    assert log.told == ["stop"]
    assert len(owned.wanted_merge(10**6, True, known)) == 3


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
