"""The view: every verb leaves exactly the state that applying the logs from their starts would give."""

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.messages import delete, message, upsert
from tests.model import Model
from tests.view_logs import COLLECTION, QUERY, Disk, Log, assert_is, build, follow, view_of
from tests.views import apply, opened, page
from tidemark import searcher
from tidemark.collection import Collection
from tidemark.mirror import ViewMirror
from tidemark.segment import merged
from tidemark.view import View


def test_an_empty_view_answers_nothing() -> None:
    view = view_of()
    assert_is(view, Model())
    assert view.unsaved_rows(0) is None
    view.saved(0, None)
    assert searcher.get(ViewMirror(COLLECTION, view.place), b"a") is None


@pytest.mark.parametrize("batch", [1, 3, 17, 200])
def test_batches_of_any_size_over_many_tails_give_the_same_state(batch: int) -> None:
    view, log = view_of(), Log()
    log.fill(200, ids=30)
    for start in range(0, 200, batch):
        apply(view, log.between(start, start + batch))
        assert_is(view, log.model(view.partitions[0].position))
    assert view.partitions[0].position == 200


def test_the_same_id_over_and_over_is_one_row() -> None:
    view, log = view_of(), Log()
    apply(view, [log.put(b"a", x) for x in range(10)])
    for x in range(10):
        apply(view, [log.put(b"a", x)])
    apply(view, [log.put(b"a", 1), log.drop(b"a"), log.put(b"a", 2)])
    assert_is(view, log.model(log.end))
    assert view.partitions[0].live_rows == 1
    apply(view, [log.put(b"a", 3), log.drop(b"a")])
    assert_is(view, Model())
    assert view.partitions[0].digest == 0


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
    assert view.partitions[0].position == 8
    assert_is(view, log.model(1))


def test_the_memory_of_rows_and_deletes_is_counted_until_a_checkpoint_has_them() -> None:
    collection = Collection(name="c", topic="t", dimension=128, metric="l2")
    view, vectors = opened(collection), np.random.default_rng(0).normal(size=(40_000, 128))
    state = view.partitions[0]
    empty, before = state.tail_bytes, _resident_bytes()
    for first in range(0, 40_000, 2_000):
        rows = enumerate(vectors[first : first + 2_000], first)
        apply(view, [upsert(n, b"id-%d" % n, vector, b'{"text": "%s"}' % (b"x" * 100)) for n, vector in rows])
    of_rows = state.tail_bytes
    assert empty == 0
    assert of_rows == pytest.approx(_resident_bytes() - before, rel=0.25)
    apply(view, [delete(40_000 + n, b"id-%d" % n) for n in range(10_000)])
    assert (state.kept_deletes, state.tail_rows) == (10_000, 40_000)
    assert state.tail_bytes - of_rows > 10_000 * len(b"id-1234")
    view.saved(0, None)
    assert (state.kept_deletes, state.tail_bytes) == (0, 0)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_follower_counts_the_deletes_that_its_checkpoint_does_not_hold(tmp_path: Path) -> None:
    leader, follower, log, disk = view_of(), view_of(tail_rows=64), Log(), Disk(tmp_path)
    log.fill(20, ids=10)
    deletes = [log.drop(b"gone-%d" % number) for number in range(30)]
    apply(leader, log.between(0, 40))
    for start in range(0, log.end, 10):
        apply(follower, log.between(start, start + 10))
    state = follower.partitions[0]
    checkpoint, all_deletes, before = disk.checkpoint(leader), state.kept_deletes, state.tail_bytes
    follow(follower, checkpoint)
    assert all_deletes >= len(deletes) > state.kept_deletes == log.end - 40
    assert 0 < state.tail_bytes < before
    follower.open(0, (), log.end, -1, 0)
    assert (state.kept_deletes, state.tail_bytes) == (0, 0)


def test_moving_over_empty_offsets_never_goes_back() -> None:
    view = view_of()
    view.advance(0, 10)
    view.advance(0, 5)
    assert view.partitions[0].position == ViewMirror(COLLECTION, view.place).positions[0] == 10


def test_the_leader_epoch_is_taken_only_where_none_is_known() -> None:
    view = view_of()
    assert view.note_leader_epoch(0, 0, 3)
    assert not view.note_leader_epoch(0, 0, 4)
    view.advance(0, 10)
    assert not view.note_leader_epoch(0, 9, 4)
    assert view.note_leader_epoch(0, 10, 4)
    assert view.partitions[0].leader_epoch == 4


def test_metadata_and_nul_bytes_of_ids_survive_a_save(tmp_path: Path) -> None:
    view, disk = view_of(), Disk(tmp_path)
    apply(view, [upsert(0, b"a", [1, 1]), upsert(1, b"a\0", [2, 2], b"{}"), upsert(2, b"\0", [3, 3], b'{"a":1}')])
    for _ in range(2):
        found = {hit.id: hit.metadata for hit in page(ViewMirror(COLLECTION, view.place), None, 10)}
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
            build(view, disk, [segment.name for segment in view.segments])
            assert_is(view, log.model(log.end))
    assert view.segments[0].has_graph


def test_rows_that_died_during_a_build_are_dead_in_what_was_built(tmp_path: Path) -> None:
    view, log, disk = view_of(16), Log(), Disk(tmp_path)
    for seed in range(3):
        apply(view, log.fill(100, ids=150, seed=seed))
        disk.save(view)
    apply(view, log.fill(40, ids=150, seed=3))
    first, _, last = view.segments
    build(view, disk, [first.name, last.name], meanwhile=log.fill(60, ids=150, seed=4))
    assert_is(view, log.model(log.end))
    assert len(view.segments) == 2
    assert view.segments[0].dead_rows > 0
    apply(view, log.fill(60, ids=150, seed=5))
    assert_is(view, log.model(log.end))


def test_a_build_whose_rows_all_died_leaves_no_row(tmp_path: Path) -> None:
    view, log, disk = view_of(), Log(), Disk(tmp_path)
    apply(view, [log.put(b"a", 1), log.put(b"b", 2)])
    disk.save(view)
    build(view, disk, [view.segments[0].name], meanwhile=[log.drop(b"a"), log.put(b"b", 3)])
    assert_is(view, log.model(log.end))
    disk.save(view)
    apply(view, [log.drop(b"b")])
    for segment in view.segments:
        build(view, disk, [segment.name])
    assert view.segments == []
    assert_is(view, Model())


def test_builds_are_carried_over_in_the_order_the_builder_read_them(tmp_path: Path) -> None:
    view, log, disk = view_of(), Log(), Disk(tmp_path)
    for ids in ([b"a", b"b"], [b"c", b"d", b"e"]):
        apply(view, [log.put(id_, 1) for id_ in ids])
        disk.save(view)
    second, first = view.segments
    inputs = [first, second]
    dead = {segment.name: segment.dead_mask() for segment in inputs}
    built = disk.write(merged(inputs))
    apply(view, [log.drop(b"b"), log.drop(b"c")])
    view.install(0, built, [segment.name for segment in inputs], dead)
    assert_is(view, log.model(log.end))


def test_a_checkpoint_opened_again_is_the_same_view(tmp_path: Path) -> None:
    view, log, disk = view_of(), Log(), Disk(tmp_path)
    for seed in range(4):
        apply(view, log.fill(30, ids=40, seed=seed))
        checkpoint = disk.checkpoint(view)
    again = view_of()
    again.open(0, checkpoint.segments(), checkpoint.position, checkpoint.leader_epoch, checkpoint.digest)
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
        state = follower.partitions[0]
        for checkpoint in checkpoints[newest:]:
            position = max(state.position, checkpoint.position)
            follow(follower, checkpoint)
            assert state.position == position
            assert_is(follower, log.model(position))
        for start in range(state.position, 120, batch):
            apply(follower, log.between(start, start + batch))
            assert_is(follower, log.model(state.position))


def test_segments_a_follower_holds_already_are_used_again(tmp_path: Path) -> None:
    leader, log, disk = view_of(), Log(), Disk(tmp_path)
    apply(leader, log.fill(30, ids=20))
    first = disk.checkpoint(leader)
    follower = view_of()
    follow(follower, first)
    more = log.fill(30, ids=20, seed=1)
    apply(leader, more[:15])
    apply(follower, more)
    second = disk.checkpoint(leader)
    held, base = follower.segments, follower.segments[0].base
    follow(follower, second, [*held, *second.segments()[1:]])
    assert follower.segments[0] is held[0]
    assert held[0].base == base
    assert_is(follower, log.model(log.end))


def test_rows_stay_in_memory_while_they_are_few(tmp_path: Path) -> None:
    leader, log, disk = view_of(), Log(), Disk(tmp_path)
    many, few = view_of(tail_rows=64), view_of(tail_rows=64)
    for number in range(3):
        new = log.fill(20, ids=40, seed=number)
        for view in (leader, many, few):
            apply(view, new)
        checkpoint = disk.checkpoint(leader)
        one = log.fill(1, ids=40)
        for view in (many, few):
            apply(view, one)
            follow(view, checkpoint, kept_rows_max=64 if view is many else 25)
            assert_is(view, log.model(log.end))
        apply(leader, one)
    assert many.segments == []
    assert [segment.name for segment in few.segments] == [s.name for s in checkpoint.segments()][:2]


@pytest.mark.parametrize("in_bytes", [False, True])
def test_rows_beyond_what_may_be_kept_go_to_segments_many_at_a_time(tmp_path: Path, in_bytes: bool) -> None:
    """Else every checkpoint would move the rows of the one before."""
    leader, follower, log, disk = view_of(), view_of(tail_rows=200), Log(), Disk(tmp_path)
    kept, segments = [], []
    for number in range(24):
        new = [log.put(b"%d-%d" % (number, n), n) for n in range(10)]
        for view in (leader, follower):
            apply(view, new)
        checkpoint = disk.checkpoint(leader)
        apply(follower, one := [log.put(b"one", number)])
        row_bytes = follower.partitions[0].row_bytes // follower.partitions[0].tail_rows
        limits = (10**6, 80 * row_bytes) if in_bytes else (80, 10**9)
        follow(follower, checkpoint, kept_rows_max=limits[0], kept_bytes_max=limits[1])
        apply(leader, one)
        kept.append(follower.partitions[0].tail_rows)
        segments.append(len(follower.segments))
    assert max(kept) <= 80 + 10
    changes = [later - before for before, later in pairwise(segments) if later != before]
    assert min(changes) >= 3 and len(changes) >= 2
    assert_is(follower, log.model(log.end))


def test_segments_that_are_not_in_the_order_of_the_log_are_all_searched(tmp_path: Path) -> None:
    leader, log, disk = view_of(), Log(), Disk(tmp_path)
    follower = view_of(tail_rows=64)
    for number in range(2):
        new = log.fill(20, ids=200, seed=number)
        apply(leader, new)
        apply(follower, new)
        checkpoint = disk.checkpoint(leader)
    apply(follower, log.fill(1, ids=40))
    follow(follower, checkpoint, checkpoint.segments()[::-1])
    assert len(follower.segments) == 2
    assert_is(follower, log.model(log.end))


def test_an_older_checkpoint_than_the_one_followed_is_passed_over(tmp_path: Path) -> None:
    leader, log, disk = view_of(), Log(), Disk(tmp_path)
    apply(leader, log.fill(30, ids=40))
    old = disk.checkpoint(leader)
    apply(leader, log.fill(30, ids=40, seed=1))
    new = disk.checkpoint(leader)
    follower = view_of()
    follow(follower, new)
    apply(follower, log.fill(10, ids=40, seed=2))
    follow(follower, old)
    assert_is(follower, log.model(log.end))


def test_a_row_found_before_it_was_replaced_keeps_its_vector(tmp_path: Path) -> None:
    view, log, disk = view_of(), Log(), Disk(tmp_path)
    mirror = ViewMirror(COLLECTION, view.place)
    apply(view, [log.put(b"a", 5)])
    in_tail = searcher.get(mirror, b"a")
    disk.save(view)
    in_segment = searcher.get(mirror, b"a")
    apply(view, [log.put(b"a", 6)])
    assert in_tail is not None and in_segment is not None and in_tail.part is not in_segment.part
    assert in_tail.vector.tolist() == in_segment.vector.tolist() == [5, 1]


# Many partitions.


def test_a_search_over_partitions_merges_them_nearest_first() -> None:
    view = opened(COLLECTION, range(3), tail_rows=4)
    for p in range(3):
        apply(view, [upsert(at, b"%d-%d" % (p, at), [at * 3 + p, 0], partition=p) for at in range(5)])
    mirror = ViewMirror(COLLECTION, view.place)
    answer = searcher.search(mirror, QUERY, 7, exact=True)
    assert [hit.distance for hit in answer.hits[0]] == [float(x * x) for x in range(7)]
    assert answer.positions == {0: 5, 1: 5, 2: 5}
    pages: list[bytes] = []
    after = None
    while some := page(mirror, after, 4):
        assert len(some) <= 4
        pages += [hit.id for hit in some]
        after = (some[-1].partition, some[-1].offset)
    assert pages == [b"%d-%d" % (partition, at) for partition in range(3) for at in range(5)]


def test_the_same_id_in_two_partitions_is_two_rows_which_live_and_die_apart(tmp_path: Path) -> None:
    view, disk = opened(COLLECTION, (4, 7), tail_rows=3), Disk(tmp_path)
    mirror = ViewMirror(COLLECTION, view.place)

    def found() -> list[tuple[int, bytes, int]]:
        answers = [searcher.search(mirror, QUERY, 10, exact=exact).hits[0] for exact in (True, False)]
        assert answers[0] == answers[1]
        return sorted((hit.partition, hit.id, hit.offset) for hit in answers[0])

    apply(view, [upsert(at, b"a", [at, 1], partition=p) for p in (4, 7) for at in (0, 1)])
    assert found() == [(4, b"a", 1), (7, b"a", 1)]
    disk.save(view, 4)
    apply(view, [upsert(2, b"a", [2, 1], partition=7)])
    assert found() == [(4, b"a", 1), (7, b"a", 2)]
    disk.save(view, 7)
    apply(view, [delete(2, b"a", partition=4)])
    assert found() == [(7, b"a", 2)]
    assert view.holding(4, [b"a"]) == set() and view.holding(7, [b"a", b"b"]) == {b"a"}
    assert [view.partitions[p].live_rows for p in (4, 7)] == [0, 1]
    assert view.partitions[4].digest == 0


def test_a_batch_that_touches_a_hundred_partitions_leaves_each_as_its_log_says(tmp_path: Path) -> None:
    numbers = range(3, 303, 3)
    view, disk = opened(COLLECTION, numbers, tail_rows=64), Disk(tmp_path)
    logs = {p: Log(partition=p) for p in numbers}
    for round_ in range(4):
        apply(view, [one for p in numbers for one in logs[p].fill(5, ids=6, seed=round_ * 1_000 + p)])
        if round_ == 1:
            for p in numbers[::4]:
                disk.save(view, p)
    assert_are(view, logs)
    assert sum(state.tail_rows for state in view.partitions.values()) < 100 * 4 * 5


def assert_are(view: View, logs: dict[int, Log]) -> None:
    for p, log in logs.items():
        assert_is(view, log.model(log.end), p)


def test_a_partition_is_opened_again_while_the_others_go_on(tmp_path: Path) -> None:
    view, disk = opened(COLLECTION, range(3), tail_rows=8), Disk(tmp_path)
    logs = {p: Log(partition=p) for p in range(3)}
    for p in range(3):
        apply(view, logs[p].fill(30, ids=20, seed=p))
    checkpoint = disk.checkpoint(view, 1)
    other = [(state.position, state.digest, state.tail_bytes, state.tail_rows) for state in _others(view)]
    beyond = logs[1].fill(20, ids=20, seed=9)
    apply(view, beyond)
    view.open(1, checkpoint.segments(), checkpoint.position, checkpoint.leader_epoch, checkpoint.digest)
    assert_is(view, logs[1].model(30), 1)
    assert (view.partitions[1].tail_rows, view.partitions[1].tail_bytes) == (0, 0)
    assert other == [(state.position, state.digest, state.tail_bytes, state.tail_rows) for state in _others(view)]
    apply(view, [*logs[0].fill(5, ids=20), *beyond, *logs[2].fill(5, ids=20)])
    assert_are(view, logs)


def _others(view: View) -> list[object]:
    return [view.partitions[0], view.partitions[2]]


def test_a_topic_made_anew_starts_at_zero_whatever_the_tails_still_hold_of_the_old_one(tmp_path: Path) -> None:
    view, disk = opened(COLLECTION, (0, 1), tail_rows=500), Disk(tmp_path)
    old, new, other = Log(), Log(), Log(partition=1)
    apply(view, [*old.fill(100, ids=30), *other.fill(50, ids=30)])
    view.open(0, [], 0, -1, 0)
    leader = view_of()
    for view_ in (view, leader):
        apply(view_, new.fill(20, ids=30, seed=5) if view_ is view else new.between(0, 20))
    assert_is(view, new.model(20))
    assert view.partitions[0].tail_rows <= 20
    checkpoint = disk.checkpoint(leader)
    apply(view, new.fill(10, ids=30, seed=6))
    follow(view, checkpoint, kept_rows_max=30)
    assert_are(view, {0: new, 1: other})


# Tails.


def test_a_full_tail_is_given_back_once_none_of_its_rows_live() -> None:
    view, log = view_of(4), Log()
    for _ in range(20):
        apply(view, [log.put(b"%d" % n, n) for n in range(4)])
    assert len(view.tails) <= 3
    assert view.partitions[0].tail_rows <= 12
    assert_is(view, log.model(log.end))


def test_few_living_rows_of_full_tails_are_moved_and_counted_anew() -> None:
    view, logs = opened(COLLECTION, (0, 1), tail_rows=100), {p: Log(partition=p) for p in range(2)}
    for p in (0, 1):
        apply(view, [logs[p].put(b"stays-%d" % n, n) for n in range(5)])
    for round_ in range(8):
        for p in (0, 1):
            apply(view, [logs[p].put(b"%d" % n, n + round_) for n in range(40)])
    before = len(view.tails)
    assert view.tails[0].live.live_count == 10
    bytes_before = [view.partitions[p].tail_bytes for p in (0, 1)]
    view.move_few()
    assert before > len(view.tails) and view.tails[0].live.live_count >= 25
    for p in (0, 1):
        assert view.partitions[p].tail_bytes < bytes_before[p]
        held = sum(int(np.count_nonzero(tail.partitions[: tail.row_count] == p)) for tail in view.tails)
        assert view.partitions[p].tail_rows == held
        rows = [(tail, tail.rows_of(p, only_live=False)) for tail in view.tails]
        assert view.partitions[p].row_bytes == sum(
            int(tail.row_bytes(tail.row_count)[some].sum()) for tail, some in rows
        )
    assert_are(view, logs)
    for p in (0, 1):
        apply(view, [logs[p].put(b"stays-%d" % n, -n) for n in range(4)])
        apply(view, [logs[p].drop(b"stays-4")])
    assert_are(view, logs)


def test_rows_that_were_moved_are_saved_and_followed_as_others(tmp_path: Path) -> None:
    leader, follower, log, disk = view_of(20), view_of(20), Log(), Disk(tmp_path)
    messages = [log.put(b"first-%d" % n, n) for n in range(3)]
    for round_ in range(4):
        messages += [log.put(b"%d" % n, n + round_) for n in range(15)]
    for view in (leader, follower):
        for start in range(0, len(messages), 10):
            apply(view, messages[start : start + 10])
        view.move_few()
    checkpoint = disk.checkpoint(leader)
    assert_is(leader, log.model(log.end))
    apply(follower, [log.put(b"one", 1), log.put(b"first-0", 9), log.drop(b"first-1")])
    follow(follower, checkpoint, kept_rows_max=0)
    assert_is(follower, log.model(log.end))
    assert follower.partitions[0].tail_rows == 2


def test_what_only_the_tails_hold_is_counted_per_partition_until_it_is_saved(tmp_path: Path) -> None:
    view, disk = opened(COLLECTION, (0, 1), tail_rows=1_000), Disk(tmp_path)
    logs = {p: Log(partition=p) for p in range(2)}
    for p, count in ((0, 10), (1, 20)):
        apply(view, [logs[p].put(b"%d" % n, n) for n in range(count)])
    assert [view.partitions[p].tail_rows for p in (0, 1)] == [10, 20]
    bytes_1 = view.partitions[1].tail_bytes
    disk.save(view, 0)
    assert [view.partitions[p].tail_rows for p in (0, 1)] == [0, 20]
    assert (view.partitions[0].tail_bytes, view.partitions[1].tail_bytes) == (0, bytes_1)
    apply(view, [logs[0].put(b"%d" % n, n + 1) for n in range(4)])
    assert [view.partitions[p].tail_rows for p in (0, 1)] == [4, 20]
    assert view.partitions[0].dead_rows == 4


# Row numbers.


def test_row_numbers_of_what_was_replaced_are_given_again(tmp_path: Path) -> None:
    view, log, disk = View(COLLECTION, tail_rows=16), Log(), Disk(tmp_path)
    view.open(0, [], 0, -1, 0)
    used = []
    for round_ in range(12):
        apply(view, log.fill(40, ids=60, seed=round_))
        disk.save(view)
        build(view, disk, [segment.name for segment in view.segments])
        used.append(view.space.used)
    assert max(used[4:]) <= used[3] + 2 * 1_024


def test_a_row_with_the_number_of_one_that_held_its_id_dies_once(tmp_path: Path) -> None:
    """What a segment that is gone said of a number may be true of its next owner by chance."""
    view, log, disk = View(COLLECTION, tail_rows=16), Log(), Disk(tmp_path)
    view.open(0, [], 0, -1, 0)
    for x in range(12):
        apply(view, [log.put(b"%d" % n, n + x) for n in range(16)])
        if x % 3 == 0:
            disk.save(view)
        if x % 3 == 1:
            build(view, disk, [segment.name for segment in view.segments])
        model = log.model(log.end)
        assert (view.partitions[0].live_rows, view.partitions[0].digest) == (len(model.rows), model.digest)


def test_a_segment_prepared_and_not_taken_gives_its_numbers_back(tmp_path: Path) -> None:
    view, log, disk = view_of(), Log(), Disk(tmp_path)
    other = view_of()
    apply(other, log.fill(30, ids=30))
    segments = disk.checkpoint(other).segments()
    before = view.space.used
    view.prepare(segments)
    base = segments[0].base
    view.announce(segments)
    assert base >= 0 and view.space.used > before
    view.prepare(segments)
    assert segments[0].base == base
    view.forget(segments)
    view.announce([])
    view.space.reclaim(before=float("inf"))
    assert segments[0].base == -1 and view.space.used == before
    view.forget(segments)
    follow(view, disk.checkpoint(other), segments)
    assert_is(view, log.model(log.end))
    view.forget(segments)  # what was taken is kept
    assert_is(view, log.model(log.end))


def test_segments_that_are_gone_are_not_asked_for_ids_and_let_go_of_their_files(tmp_path: Path) -> None:
    view, log, disk = View(COLLECTION, tail_rows=64), Log(), Disk(tmp_path)
    view.open(0, [], 0, -1, 0)
    for round_ in range(6):
        apply(view, log.fill(100, ids=80, seed=round_))
        disk.save(view)
        build(view, disk, [segment.name for segment in view.segments])
    assert _files_mapped(tmp_path) <= {segment.name for segment in view.segments}


def _files_mapped(directory: Path) -> set[str]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {Path(line.split(maxsplit=5)[5]).parent.name for line in lines if str(directory) in line}
