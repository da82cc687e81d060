"""Rows in memory: whole before they count, never moved, read the same by another process's side, of any partition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.messages import message, upsert
from tidemark.collection import Collection
from tidemark.live_rows import LiveRows
from tidemark.record import Batch, decode, hash_ids
from tidemark.row_space import RowSpace, VectorSpace
from tidemark.tail import TEXT_BYTES, Tail

DIMENSION, CAPACITY = 3, 100
COLLECTION = Collection(name="c", topic="t", dimension=DIMENSION, metric="l2")
SPACE = RowSpace(DIMENSION, shared=True, capacity=2**20)


def tail_of(capacity: int = CAPACITY, start: int = 0, shared: bool = True) -> Tail:
    base = SPACE.allocate(capacity)
    return Tail(DIMENSION, capacity, base, start, SPACE.live(base, capacity), shared)


def batch_of(count: int, partitions: tuple[int, ...] = (0,), first: int = 0, text: bytes = b"") -> Batch:
    """So many rows of each partition, with ids `<partition>-<number>`; every other one has metadata."""
    runs = {
        p: [
            upsert(n, b"%d-%d" % (p, n), [n, p, 1], b'{"n": %d%s}' % (n, text) if n % 2 else None, partition=p)
            for n in range(first, first + count)
        ]
        for p in partitions
    }
    return decode(runs, COLLECTION)[0]


def theirs(tail: Tail) -> Tail:
    """The same tail, as another process opens it."""
    return Tail.open(tail.place, DIMENSION, LiveRows(SPACE.bitmap[tail.base // 8 :], tail.capacity))


def test_rows_are_read_as_they_were_appended_by_both_sides() -> None:
    tail = tail_of()
    other = theirs(tail)
    assert (tail.row_count, other.row_count, tail.live.live_count) == (0, 0, 0)
    assert tail.append(batch_of(10, (2, 5)), 0) == 20
    for one in (tail, other):
        assert (one.row_count, one.stop, one.live.live_count) == (20, 20, 20)
        for row in range(20):
            p, n = (2, row) if row < 10 else (5, row - 10)
            assert one.id_of(row) == b"%d-%d" % (p, n)
            assert (one.partition_of(row), one.offset_of(row), one.timestamp_of(row)) == (p, n, 1_000 + n)
            assert one.metadata_of(row) == (b'{"n": %d}' % n if n % 2 else None)
            assert one.vector_of(row).tolist() == [n, p, 1]
        assert one.rows_of(5).tolist() == list(range(10, 20))
        assert one.rows_of(5, from_offset=7).tolist() == [17, 18, 19]
        assert one.rows_of(7).tolist() == []


def test_what_has_no_room_is_left_over_for_the_next_tail() -> None:
    tail, batch = tail_of(capacity=15), batch_of(10)
    assert tail.append(batch, 0) == 10
    more = batch_of(10, first=10)
    assert tail.append(more, 0) == 5
    assert tail.append(more, 5) == 5
    after = tail_of(start=tail.stop)
    assert after.append(more, 5) == 10
    assert [after.id_of(row) for row in range(5)] == [b"0-%d" % n for n in range(15, 20)]
    assert (tail.stop, after.start, after.stop) == (15, 15, 20)


def test_texts_that_have_no_room_are_left_over() -> None:
    tail, texts = tail_of(4_096, shared=False), TEXT_BYTES // 60_000
    value = np.zeros(DIMENSION, np.float32).tobytes()
    metadata = [("metadata", b'{"a": "%s"}' % (b"x" * 59_980))]
    batch = decode({0: [message(n, b"%d" % n, value, metadata) for n in range(texts + 100)]}, COLLECTION)[0]
    stop = tail.append(batch, 0)
    assert texts <= stop < texts + 10
    assert tail.append(batch, stop) == stop
    assert tail.row_count == stop
    assert tail.metadata_of(stop - 1) == metadata[0][1]


def test_rows_that_died_are_found_by_nobody_and_keep_their_vectors() -> None:
    tail = tail_of()
    tail.append(batch_of(10, (0, 1)), 0)
    (hash_,) = hash_ids([b"0-3"])
    assert list(theirs(tail).find(hash_, b"0-3")) == [3]
    tail.live.kill(np.array([3, 12]))
    for one in (tail, theirs(tail)):
        assert list(one.find(hash_, b"0-3")) == []
        assert one.rows_of(0).tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]
        assert one.rows_of(0, only_live=False).tolist() == list(range(10))
        assert one.vector_of(3).tolist() == [3, 0, 1]


def test_an_id_of_two_partitions_is_found_in_both() -> None:
    tail = tail_of()
    runs = {p: [upsert(0, b"same", [p, 0, 0], partition=p)] for p in (1, 2)}
    tail.append(decode(runs, COLLECTION)[0], 0)
    assert list(tail.find(hash_ids([b"same"])[0], b"same")) == [0, 1]


def test_columns_and_batches_of_some_rows_are_those_rows() -> None:
    tail = tail_of()
    tail.append(batch_of(10, (0, 1)), 0)
    for some in (np.arange(20), np.array([1, 3, 18])):
        columns, batch = tail.columns(some), tail.batch(some)
        assert columns.ids.to_pylist() == batch.ids == [tail.id_of(row) for row in some.tolist()]
        assert columns.metadata.to_pylist() == batch.metadata == [tail.metadata_of(row) for row in some.tolist()]
        for name in ("vectors", "offsets", "timestamps", "digests", "hashes"):
            assert (getattr(columns, name) == getattr(batch, name)).all()
            assert (getattr(columns, name) == getattr(tail, name)[some]).all()
        assert batch.partitions.tolist() == [tail.partition_of(row) for row in some.tolist()]
        assert not batch.deleted_ids and not batch.positions


def test_what_is_appended_again_from_a_batch_of_rows_is_the_same() -> None:
    tail, newer = tail_of(), tail_of()
    tail.append(batch_of(20, (0, 1)), 0)
    some = np.array([0, 5, 21, 39])
    newer.append(tail.batch(some), 0)
    for row, before in enumerate(some.tolist()):
        for name in ("id_of", "partition_of", "offset_of", "timestamp_of", "metadata_of"):
            assert getattr(newer, name)(row) == getattr(tail, name)(before)
    assert (newer.vectors[:4] == tail.vectors[some]).all() and (newer.digests[:4] == tail.digests[some]).all()


def test_vectors_lie_at_their_row_numbers_in_another_process_s_space() -> None:
    tail, vectors = tail_of(), VectorSpace(DIMENSION, SPACE.capacity)
    other = theirs(tail)
    other.map_in(vectors)
    tail.append(batch_of(10), 0)
    assert (vectors.vectors[tail.base : tail.base + 10] == tail.vectors[:10]).all()
    assert not vectors.vectors[tail.base + 10 : tail.base + CAPACITY].any()


def test_the_memory_of_rows_is_counted_with_their_texts() -> None:
    tail = tail_of()
    tail.append(batch_of(10, text=b" " * 50), 0)
    sizes = tail.row_bytes(10)
    for row in range(10):
        texts = len(tail.id_of(row)) + len(tail.metadata_of(row) or b"")
        assert sizes[row] - texts == sizes[0] - len(tail.id_of(0)) >= 4 * DIMENSION
    for first, stop in ((0, 10), (0, 0), (3, 7)):
        assert tail.bytes_between(first, stop) == sizes[first:stop].sum()


def test_a_tail_whose_owner_is_gone_cannot_be_opened() -> None:
    tail = tail_of()
    place, live = tail.place, tail.live
    del tail
    with pytest.raises(FileNotFoundError):
        Tail.open(place, DIMENSION, live)


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 3)), max_size=12), st.integers(1, 40))
def test_any_batches_fill_tails_one_after_the_other(batches: list[tuple[int, int]], capacity: int) -> None:
    tails, expected = [tail_of(capacity, shared=False)], list[tuple[int, bytes]]()
    for number, (count, p) in enumerate(batches):
        batch, done = batch_of(count, (p,), first=100 * number), 0
        expected += [(p, id_) for id_ in batch.ids]
        while done < count:
            done = tails[-1].append(batch, done)
            if done < count:
                tails.append(tail_of(capacity, tails[-1].stop, shared=False))
    found = [(tail.partition_of(row), tail.id_of(row)) for tail in tails for row in range(tail.row_count)]
    assert found == expected
    assert all(tail.row_count == capacity for tail in tails[:-1])
    for tail in tails:
        assert tail.live.live_count == tail.row_count
        SPACE.free(tail.base)
    SPACE.reclaim(before=float("inf"))
