"""The view: every verb leaves exactly the state that applying the log from the start would give."""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.messages import delete, message, upsert
from tests.model import Model, Operation
from tidemark import searcher
from tidemark.collection import Collection, IndexParameters
from tidemark.record import Message, decode
from tidemark.segment import Segment, merged
from tidemark.segment_files import write_segment
from tidemark.view import View

COLLECTION = Collection(name="c", topic="t", dimension=2, metric="l2")
FLAT = IndexParameters(kind="flat")
ANN = IndexParameters(kind="hnsw", ann_rows_min=64)
QUERY = np.array([[0, 0]], np.float32)


class Log:
    """Messages with ascending offsets; `model(position)` is the truth as of a position."""

    def __init__(self, first: int = 0) -> None:
        self.first = first
        self.messages: list[Message] = []
        self.operations: list[Operation] = []

    @property
    def end(self) -> int:
        return self.first + len(self.messages)

    def put(self, id_: bytes, x: float) -> Message:
        vector = np.array([x, 1], np.float32)
        self.operations.append(Operation(self.end, id_, vector, None))
        self.messages.append(upsert(self.end, id_, vector))
        return self.messages[-1]

    def drop(self, id_: bytes) -> Message:
        self.operations.append(Operation(self.end, id_, None))
        self.messages.append(delete(self.end, id_))
        return self.messages[-1]

    def fill(self, count: int, ids: int, seed: int = 0) -> list[Message]:
        """So many records over so few ids, one in five a delete."""
        rng = np.random.default_rng(seed)
        return [
            self.drop(b"%d" % id_) if what == 0 else self.put(b"%d" % id_, float(rng.integers(100)))
            for id_, what in zip(rng.integers(ids, size=count), rng.integers(5, size=count), strict=True)
        ]

    def model(self, position: int) -> Model:
        return Model().apply(operation for operation in self.operations if operation.offset < position)

    def between(self, start: int, stop: int) -> list[Message]:
        return self.messages[start - self.first : stop - self.first]


def apply(view: View, messages: Sequence[Message]) -> None:
    view.apply(decode({0: messages}, view.collection)[0])


class Disk:
    """Segment directories of one partition, with the checkpoints a manifest would name."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.numbers = itertools.count(1)

    def write(self, rows: object, parameters: IndexParameters = FLAT) -> Segment:
        directory = self.directory / f"seg-{next(self.numbers)}"
        entry = write_segment(directory, rows, "l2", parameters, seed=1)  # type: ignore[arg-type]
        return Segment(directory, entry, 2, "l2")

    def save(self, view: View) -> None:
        rows = view.unsaved_rows()
        view.saved(None if rows is None else self.write(rows))

    def checkpoint(self, view: View) -> "Checkpoint":
        self.save(view)
        for segment in view.searcher.segments:
            segment.save_dead_rows(1, next(self.numbers))
        return Checkpoint(view)


class Checkpoint:
    def __init__(self, view: View) -> None:
        self.position, self.leader_epoch, self.digest = view.position, view.leader_epoch, view.digest
        self.entries = [(segment.directory, segment.entry) for segment in view.searcher.segments]

    def segments(self) -> list[Segment]:
        return [Segment(directory, entry, 2, "l2") for directory, entry in self.entries]


def assert_is(view: View, model: Model) -> None:
    """Ids, vectors, offsets, counts and digest are the model's, by scan, get and search."""
    hits = list(searcher.scan([view], None, 10**6))
    assert len(hits) == len({hit.id for hit in hits})
    assert {hit.id: (hit.offset, hit.vector.tolist()) for hit in hits} == {
        id_: (row.offset, [] if row.vector is None else row.vector.tolist()) for id_, row in model.rows.items()
    }
    assert [hit.offset for hit in hits] == sorted(hit.offset for hit in hits)
    for id_ in model.rows:
        hit = searcher.get([view], id_)
        assert hit is not None
        assert (hit.id, hit.offset) == (id_, model.rows[id_].offset)
    answer = searcher.search([view], QUERY, 1_000, exact=True)
    assert sorted(hit.id for hit in answer.hits[0]) == sorted(model.rows)
    assert [hit.distance for hit in answer.hits[0]] == model.nearest(QUERY[0], 1_000)
    assert answer.positions == {0: view.position}
    assert view.live_rows == len(model.rows)
    assert view.digest == model.digest
    total = view.tail_rows + sum(segment.rows for segment in view.searcher.segments)
    assert view.dead_rows == total - len(model.rows)


def view_of(tail_rows: int = 4) -> View:
    return View(COLLECTION, 0, tail_rows)


def test_an_empty_view_answers_nothing() -> None:
    view = view_of()
    assert_is(view, Model())
    assert view.unsaved_rows() is None
    view.saved(None)
    assert searcher.get([view], b"a") is None


@pytest.mark.parametrize("batch", [1, 3, 17, 200])
def test_batches_of_any_size_over_many_tails_give_the_same_state(batch: int) -> None:
    view, log = view_of(), Log()
    log.fill(200, ids=30)
    for start in range(0, 200, batch):
        apply(view, log.between(start, start + batch))
        assert_is(view, log.model(view.position))
    assert view.position == 200


def test_the_same_id_over_and_over_is_one_row() -> None:
    view, log = view_of(), Log()
    apply(view, [log.put(b"a", x) for x in range(10)])
    for x in range(10):
        apply(view, [log.put(b"a", x)])
    apply(view, [log.put(b"a", 1), log.drop(b"a"), log.put(b"a", 2)])
    assert_is(view, log.model(log.end))
    assert view.live_rows == 1
    apply(view, [log.put(b"a", 3), log.drop(b"a")])
    assert_is(view, Model())
    assert view.digest == 0


def test_deleting_what_is_not_there_changes_nothing() -> None:
    view, log = view_of(), Log()
    apply(view, [log.drop(b"a")])
    apply(view, [log.put(b"b", 1), log.drop(b"c")])
    apply(view, [log.drop(b"a"), log.drop(b"c")])
    assert_is(view, log.model(log.end))


def test_a_batch_of_bad_records_only_moves_the_position() -> None:
    view, log = view_of(), Log()
    apply(view, [log.put(b"a", 1)])
    apply(view, [message(1, b"a", b"short"), message(2, None, None), message(7, b"b", b"")])
    assert view.position == 8
    assert_is(view, log.model(1))


def test_the_memory_of_rows_and_deletes_is_counted_until_a_checkpoint_has_them() -> None:
    collection = Collection(name="c", topic="t", dimension=128, metric="l2")
    view, vectors = View(collection, 0), np.random.default_rng(0).normal(size=(40_000, 128))
    empty, before = view.tail_bytes, _resident_bytes()
    for first in range(0, 40_000, 2_000):
        rows = enumerate(vectors[first : first + 2_000], first)
        apply(view, [upsert(n, b"id-%d" % n, vector, b'{"text": "%s"}' % (b"x" * 100)) for n, vector in rows])
    of_rows = view.tail_bytes
    assert empty == 0
    assert of_rows == pytest.approx(_resident_bytes() - before, rel=0.25)
    apply(view, [delete(40_000 + n, b"id-%d" % n) for n in range(10_000)])
    assert (view.kept_deletes, view.tail_rows) == (10_000, 40_000)
    assert view.tail_bytes - of_rows > 10_000 * len(b"id-1234")
    view.saved(None)
    assert (view.kept_deletes, view.tail_bytes) == (0, 0)


def test_a_follower_counts_the_deletes_that_its_checkpoint_does_not_hold(tmp_path: Path) -> None:
    leader, follower, log, disk = view_of(), view_of(tail_rows=64), Log(), Disk(tmp_path)
    log.fill(20, ids=10)
    deletes = [log.drop(b"gone-%d" % number) for number in range(30)]
    apply(leader, log.between(0, 40))
    for start in range(0, log.end, 10):
        apply(follower, log.between(start, start + 10))
    checkpoint, all_deletes = disk.checkpoint(leader), follower.kept_deletes
    before = follower.tail_bytes
    follower.follow(checkpoint.segments(), checkpoint.position, checkpoint.leader_epoch, checkpoint.digest)
    assert all_deletes >= len(deletes) > follower.kept_deletes == log.end - 40
    assert 0 < follower.tail_bytes < before
    follower.open((), log.end, -1, 0)
    assert (follower.kept_deletes, follower.tail_bytes) == (0, 0)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_moving_over_empty_offsets_never_goes_back() -> None:
    view = view_of()
    view.advance(10)
    view.advance(5)
    assert view.position == 10


def test_metadata_and_nul_bytes_of_ids_survive_a_save(tmp_path: Path) -> None:
    view, disk = view_of(), Disk(tmp_path)
    apply(view, [upsert(0, b"a", [1, 1]), upsert(1, b"a\0", [2, 2], b"{}"), upsert(2, b"\0", [3, 3], b'{"a":1}')])
    for _ in range(2):
        found = {hit.id: hit.metadata for hit in searcher.scan([view], None, 10)}
        assert found == {b"a": None, b"a\0": b"{}", b"\0": b'{"a":1}'}
        disk.save(view)


def test_rows_are_replaced_and_deleted_across_tails_flats_and_built_segments(tmp_path: Path) -> None:
    view, log, disk = view_of(16), Log(), Disk(tmp_path)
    for round_ in range(6):
        apply(view, log.fill(150, ids=200, seed=round_))
        assert_is(view, log.model(log.end))
        disk.save(view)
        assert_is(view, log.model(log.end))
        if round_ % 2:
            build(view, disk, [segment.name for segment in view.searcher.segments])
            assert_is(view, log.model(log.end))
    assert view.searcher.segments[0].is_built


def build(view: View, disk: Disk, names: list[str], meanwhile: Sequence[Message] = ()) -> None:
    """Build the named segments into one, as a builder would; some messages arrive before it is installed."""
    inputs = [segment for segment in view.searcher.segments if segment.name in names]
    dead = {segment.name: segment.dead_mask() for segment in inputs}
    rows = merged(inputs)
    if meanwhile:
        apply(view, meanwhile)
    view.install(disk.write(rows, ANN) if len(rows) else None, [segment.name for segment in inputs], dead)


def test_rows_that_died_during_a_build_are_dead_in_what_was_built(tmp_path: Path) -> None:
    view, log, disk = view_of(16), Log(), Disk(tmp_path)
    for seed in range(3):
        apply(view, log.fill(100, ids=150, seed=seed))
        disk.save(view)
    apply(view, log.fill(40, ids=150, seed=3))
    first, _, last = view.searcher.segments
    build(view, disk, [first.name, last.name], meanwhile=log.fill(60, ids=150, seed=4))
    assert_is(view, log.model(log.end))
    assert len(view.searcher.segments) == 2
    assert view.searcher.segments[0].dead_rows > 0
    apply(view, log.fill(60, ids=150, seed=5))
    assert_is(view, log.model(log.end))


def test_a_build_whose_rows_all_died_leaves_no_row(tmp_path: Path) -> None:
    view, log, disk = view_of(), Log(), Disk(tmp_path)
    apply(view, [log.put(b"a", 1), log.put(b"b", 2)])
    disk.save(view)
    build(view, disk, [view.searcher.segments[0].name], meanwhile=[log.drop(b"a"), log.put(b"b", 3)])
    assert_is(view, log.model(log.end))
    disk.save(view)
    apply(view, [log.drop(b"b")])
    for segment in view.searcher.segments:
        build(view, disk, [segment.name])
    assert view.searcher.segments == ()
    assert_is(view, Model())


def test_builds_are_carried_over_in_the_order_the_builder_read_them(tmp_path: Path) -> None:
    view, log, disk = view_of(), Log(), Disk(tmp_path)
    for ids in ([b"a", b"b"], [b"c", b"d", b"e"]):
        apply(view, [log.put(id_, 1) for id_ in ids])
        disk.save(view)
    second, first = view.searcher.segments
    inputs = [first, second]
    dead = {segment.name: segment.dead_mask() for segment in inputs}
    built = disk.write(merged(inputs))
    apply(view, [log.drop(b"b"), log.drop(b"c")])
    view.install(built, [segment.name for segment in inputs], dead)
    assert_is(view, log.model(log.end))


def test_a_checkpoint_opened_again_is_the_same_view(tmp_path: Path) -> None:
    view, log, disk = view_of(), Log(), Disk(tmp_path)
    for seed in range(4):
        apply(view, log.fill(30, ids=40, seed=seed))
        checkpoint = disk.checkpoint(view)
    again = view_of()
    again.open(checkpoint.segments(), checkpoint.position, checkpoint.leader_epoch, checkpoint.digest)
    assert_is(again, log.model(log.end))
    apply(again, log.fill(30, ids=40, seed=9))
    assert_is(again, log.model(log.end))


@pytest.mark.parametrize("own", [0, 29, 40, 41, 55, 60, 61, 120])
@pytest.mark.parametrize("batch", [3, 50])
@pytest.mark.parametrize("tail_rows", [4, 30, 200])
def test_following_a_checkpoint_at_any_position_gives_the_state_of_the_log(
    tmp_path: Path, own: int, batch: int, tail_rows: int
) -> None:
    leader, log, disk = view_of(), Log(), Disk(tmp_path)
    log.fill(120, ids=25)
    checkpoints = []
    for start, stop in ((0, 20), (20, 41), (41, 60)):
        apply(leader, log.between(start, stop))
        checkpoints.append(disk.checkpoint(leader))
    for newest in range(3):
        follower = view_of(tail_rows)
        for start in range(0, own, batch):
            apply(follower, log.between(start, min(own, start + batch)))
        for checkpoint in checkpoints[newest:]:
            position = max(follower.position, checkpoint.position)
            follower.follow(checkpoint.segments(), checkpoint.position, checkpoint.leader_epoch, checkpoint.digest)
            assert follower.position == position
            assert_is(follower, log.model(position))
        for start in range(follower.position, 120, batch):
            apply(follower, log.between(start, start + batch))
            assert_is(follower, log.model(follower.position))


def test_segments_a_follower_holds_already_are_used_again(tmp_path: Path) -> None:
    leader, log, disk = view_of(), Log(), Disk(tmp_path)
    apply(leader, log.fill(30, ids=20))
    first = disk.checkpoint(leader)
    follower = view_of()
    follower.open(first.segments(), first.position, first.leader_epoch, first.digest)
    more = log.fill(30, ids=20, seed=1)
    apply(leader, more[:15])
    apply(follower, more)
    second = disk.checkpoint(leader)
    held = follower.searcher.segments
    follower.follow([*held, *second.segments()[1:]], second.position, second.leader_epoch, second.digest)
    assert follower.searcher.segments[0] is held[0]
    assert_is(follower, log.model(log.end))


def test_rows_stay_in_memory_until_an_index_holds_them_while_they_are_few(tmp_path: Path) -> None:
    leader, log, disk = view_of(), Log(), Disk(tmp_path)
    many, few = view_of(tail_rows=64), View(COLLECTION, 0, tail_rows=64, kept_rows_max=25)
    for number in range(3):
        new = log.fill(20, ids=40, seed=number)
        for view in (leader, many, few):
            apply(view, new)
        checkpoint = disk.checkpoint(leader)
        for view in (many, few):
            apply(view, log.fill(1, ids=40) if view is many else log.between(log.end - 1, log.end))
            view.follow(checkpoint.segments(), checkpoint.position, checkpoint.leader_epoch, checkpoint.digest)
            assert_is(view, log.model(log.end))
        apply(leader, log.between(log.end - 1, log.end))
    assert many.searcher.segments == ()
    assert [segment.name for segment in few.searcher.segments] == [s.name for s in checkpoint.segments()][:2]


def test_segments_that_are_not_in_the_order_of_the_log_are_all_searched(tmp_path: Path) -> None:
    leader, log, disk = view_of(), Log(), Disk(tmp_path)
    follower = view_of(tail_rows=64)
    for number in range(2):
        new = log.fill(20, ids=200, seed=number)
        apply(leader, new)
        apply(follower, new)
        checkpoint = disk.checkpoint(leader)
    apply(follower, log.fill(1, ids=40))
    swapped = checkpoint.segments()[::-1]
    follower.follow(swapped, checkpoint.position, checkpoint.leader_epoch, checkpoint.digest)
    assert len(follower.searcher.segments) == 2
    assert_is(follower, log.model(log.end))


def test_a_tail_that_is_mostly_in_segments_gets_no_more_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemark.view.PASSED_OVER_MAX", 10)
    leader, log, disk = view_of(), Log(), Disk(tmp_path)
    follower = view_of(tail_rows=200)
    new = log.fill(120, ids=300)
    apply(leader, new)
    apply(follower, new)
    follower._kept_rows_max = 5  # the checkpoint is more than may stay
    checkpoint = disk.checkpoint(leader)
    apply(follower, [log.put(b"one", 1), log.put(b"two", 2)])
    follower.follow(checkpoint.segments(), checkpoint.position, checkpoint.leader_epoch, checkpoint.digest)
    assert [tail.count for tail in follower.searcher.tails] == [2, 0]
    apply(follower, [log.put(b"three", 3)])
    assert [tail.count for tail in follower.searcher.tails] == [2, 1]
    assert_is(follower, log.model(log.end))


def test_an_older_checkpoint_than_the_one_followed_is_passed_over(tmp_path: Path) -> None:
    leader, log, disk = view_of(), Log(), Disk(tmp_path)
    apply(leader, log.fill(30, ids=40))
    old = disk.checkpoint(leader)
    apply(leader, log.fill(30, ids=40, seed=1))
    new = disk.checkpoint(leader)
    follower = view_of()
    follower.follow(new.segments(), new.position, new.leader_epoch, new.digest)
    apply(follower, log.fill(10, ids=40, seed=2))
    follower.follow(old.segments(), old.position, old.leader_epoch, old.digest)
    assert_is(follower, log.model(log.end))


def test_a_row_found_before_it_was_replaced_keeps_its_vector() -> None:
    view, log = view_of(), Log()
    apply(view, [log.put(b"a", 5)])
    hit = searcher.get([view], b"a")
    apply(view, [log.put(b"a", 6)])
    assert hit is not None
    assert hit.vector.tolist() == [5, 1]


def test_a_search_over_partitions_merges_them_nearest_first() -> None:
    views = [View(COLLECTION, partition, 4) for partition in range(3)]
    for view in views:
        apply(view, [upsert(at, b"%d-%d" % (view.partition, at), [at * 3 + view.partition, 0]) for at in range(5)])
    answer = searcher.search(views, QUERY, 7, exact=True)
    assert [hit.distance for hit in answer.hits[0]] == [float(x * x) for x in range(7)]
    assert answer.positions == {0: 5, 1: 5, 2: 5}
    pages: list[bytes] = []
    after = None
    while page := list(searcher.scan(views, after, 4)):
        assert len(page) <= 4
        pages += [hit.id for hit in page]
        after = (page[-1].partition, page[-1].offset)
    assert pages == [b"%d-%d" % (partition, at) for partition in range(3) for at in range(5)]
