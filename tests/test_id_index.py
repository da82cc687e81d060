"""Every living row is found by its id's hash, however many segments there were and whatever was merged."""

import threading
import weakref
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tidemark.id_index import RATIO, IdIndex
from tidemark.row_space import ALIGNMENT

Pairs = set[tuple[int, int]]


def added(index: IdIndex, hashes: NDArray[np.uint64], base: int) -> None:
    """A segment whose row n has the hash `hashes[n]`."""
    order = np.argsort(hashes)
    index.add(hashes[order], order.astype(np.uint32), base)


def found(index: IdIndex, hashes: list[int]) -> Pairs:
    indices, numbers = index.find(np.array(hashes, np.uint64))
    assert indices.dtype == numbers.dtype == np.int64
    pairs = list(zip(indices.tolist(), numbers.tolist(), strict=True))
    assert pairs == sorted(set(pairs))
    return set(pairs)


def merge_all(index: IdIndex) -> None:
    while (work := index.merge_work()) is not None:
        work()


SEGMENTS = st.lists(st.lists(st.integers(0, 5) | st.sampled_from([2**64 - 1, 2**63]), max_size=30), max_size=12)


@given(SEGMENTS, st.sets(st.tuples(st.integers(0, 11), st.integers(0, 29))), st.booleans(), st.integers(0, 2**33))
def test_all_living_rows_with_a_hash_are_found(
    segments: list[list[int]], dead: set[tuple[int, int]], merged: bool, base: int
) -> None:
    base = base // ALIGNMENT * ALIGNMENT
    killed = {base + ALIGNMENT * segment + row for segment, row in dead}
    index = IdIndex(lambda numbers: ~np.isin(numbers, list(killed)))
    for number, hashes in enumerate(segments):
        added(index, np.array(hashes, np.uint64), base + ALIGNMENT * number)
    if merged:
        merge_all(index)
    wanted = [3, 2**64 - 1, 0, 3, 77]
    every = {
        (at, base + ALIGNMENT * number + row)
        for at, hash_ in enumerate(wanted)
        for number, hashes in enumerate(segments)
        for row, held in enumerate(hashes)
        if held == hash_
    }
    living = {(at, row) for at, row in every if row not in killed}
    assert living <= found(index, wanted) <= every
    assert found(index, []) == set()


def test_a_merge_drops_dead_rows() -> None:
    index = IdIndex(lambda numbers: numbers % 2 == 0)
    for number in range(4):
        added(index, np.arange(100, dtype=np.uint64), number * ALIGNMENT)
    assert (index.level_count, index.row_count) == (1, 4 * 50)
    assert found(index, [7, 8]) == {(1, number * ALIGNMENT + 8) for number in range(4)}


@pytest.mark.parametrize("row_counts", [[1_000] * 300, [1, 10, 100, 1_000, 10_000] * 20, [100_000] * 5 + [300] * 100])
def test_there_are_few_levels_however_many_segments(row_counts: list[int]) -> None:
    generator, index = np.random.default_rng(0), IdIndex()
    for number, row_count in enumerate(row_counts):
        added(index, generator.integers(0, 2**64, row_count, np.uint64), number * 100 * ALIGNMENT)
        merge_all(index)
        sizes = sorted(len(level.hashes) for level in index._levels)
        assert all(larger > RATIO * smaller for smaller, larger in pairwise(sizes))
    assert index.row_count == sum(row_counts)
    assert index.level_count <= 6


def test_large_merges_are_left_to_another_thread_which_may_be_slow() -> None:
    started, going_on = threading.Event(), threading.Event()

    def are_live(numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        started.set()
        assert going_on.wait(30)
        return np.ones(len(numbers), np.bool_)

    index = IdIndex(are_live)
    hashes = np.arange(200_000, dtype=np.uint64)
    added(index, hashes[:100_000], 0)
    added(index, hashes[100_000:], 100 * ALIGNMENT)
    assert not started.is_set()
    work = index.merge_work()
    assert work is not None
    assert index.merge_work() is None
    thread = threading.Thread(target=work)
    thread.start()
    assert started.wait(30)
    added(index, hashes[:10], 200 * ALIGNMENT)
    wanted = {(0, 5), (0, 200 * ALIGNMENT + 5), (1, 100 * ALIGNMENT + 50_000)}
    assert found(index, [5, 150_000]) == wanted
    going_on.set()
    thread.join()
    assert index.level_count == 2
    assert found(index, [5, 150_000]) == wanted


def test_a_forgotten_segment_is_let_go_of_at_once_or_with_the_next_merge() -> None:
    live = np.ones(300 * ALIGNMENT, np.bool_)
    index = IdIndex(lambda numbers: live[numbers])
    hashes = np.arange(100_000, dtype=np.uint64)
    held = weakref.ref(hashes)
    index.add(hashes, np.arange(100_000, dtype=np.uint32), 0)
    del hashes
    live[:100_000] = False
    index.forget(0, 100_000)
    assert (held(), index.row_count) == (None, 0)
    added(index, np.arange(1_000, dtype=np.uint64), 100 * ALIGNMENT)
    added(index, np.arange(1_000, dtype=np.uint64), 101 * ALIGNMENT)
    assert index.merge_work() is None
    live[100 * ALIGNMENT : 101 * ALIGNMENT] = False
    index.forget(100 * ALIGNMENT, 1_000)
    assert index.merge_work() is None  # half of the rows: not worth it
    live[101 * ALIGNMENT :] = False
    index.forget(101 * ALIGNMENT, 1_000)
    merge_all(index)
    assert (index.row_count, index.level_count) == (0, 0)


def test_a_number_that_a_later_segment_got_is_found_once() -> None:
    index = IdIndex()
    for base in (0, ALIGNMENT):
        added(index, np.arange(10, dtype=np.uint64), base)
    index.forget(0, 10)
    added(index, np.arange(10, dtype=np.uint64), 0)
    assert found(index, [4]) == {(0, 4), (0, ALIGNMENT + 4)}
