"""Bits of rows against a plain list of booleans."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemark.live_rows import LiveRows

ROWS = 203


def made(row_count: int = ROWS, beyond: int = 0xFF) -> LiveRows:
    """No row lives; the bytes behind them are another part's."""
    bitmap = np.full(LiveRows.size(row_count) + 8, beyond, np.uint8)
    bitmap[: LiveRows.size(row_count)] = 0
    return LiveRows(bitmap, row_count)


def check(live: LiveRows, expected: np.ndarray) -> None:  # type: ignore[type-arg]
    count = len(expected)
    assert live.live_count == expected.sum()
    assert live.numbers().tolist() == np.flatnonzero(expected).tolist()
    assert live.dead_mask().tolist() == (~expected).tolist()
    assert live.are_live(np.arange(count)).tolist() == expected.tolist()
    for some in {0, min(1, count), count // 2, count}:
        assert live.dead(some) == some - expected[:some].sum()
        assert live.dead_mask(some).tolist() == (~expected[:some]).tolist()


@given(st.lists(st.tuples(st.booleans(), st.integers(0, ROWS), st.integers(0, ROWS)), max_size=8))
def test_rows_appear_by_ranges_and_die_one_by_one(steps: list[tuple[bool, int, int]]) -> None:
    live, expected = made(), np.zeros(ROWS, np.bool_)
    for appear, one, other in steps:
        if appear:
            live.set(one, other)
            expected[one:other] = True
        else:
            rows = np.array([one, other, one])
            rows = rows[rows < ROWS]
            live.kill(rows)
            expected[rows] = False
    check(live, expected)
    assert live.is_live(0) == expected[0]


@pytest.mark.parametrize("row_count", [0, 1, 7, 8, 9, 63, 64, 65, 1_000])
def test_a_range_is_set_from_any_row_to_any_other(row_count: int) -> None:
    for first in {0, 1, 7, 8, row_count // 2}:
        for stop in {first, first + 1, row_count - 1, row_count}:
            if first <= stop <= row_count:
                live, expected = made(row_count), np.zeros(row_count, np.bool_)
                live.set(first, stop)
                expected[first:stop] = True
                check(live, expected)


def test_neighbours_bytes_are_left_alone() -> None:
    bitmap = np.zeros(4, np.uint8)
    live = LiveRows(bitmap[1:], 16)
    live.set(0, 16)
    assert bitmap.tolist() == [0, 0xFF, 0xFF, 0]
    live.kill(np.arange(16))
    assert bitmap.tolist() == [0, 0, 0, 0]


@given(st.lists(st.booleans(), max_size=70))
def test_all_live_but_the_dead_of_a_mask(dead: list[bool]) -> None:
    live = made(len(dead))
    live.set(0, len(dead))
    live.set_all_but(np.array(dead, np.bool_))
    check(live, ~np.array(dead, np.bool_))


def test_many_random_rows_of_the_same_bytes_die_together() -> None:
    live, rows = made(100_000), np.random.default_rng(0).integers(0, 100_000, 50_000)
    live.set(0, 100_000)
    live.kill(rows)
    expected = np.ones(100_000, np.bool_)
    expected[rows] = False
    check(live, expected)


def test_bits_beyond_the_last_row_count_for_nothing() -> None:
    live = LiveRows(np.full(2, 0xFF, np.uint8), 11)
    check(live, np.ones(11, np.bool_))
    few = LiveRows(np.array([0] * 100 + [0xFF], np.uint8), 801)
    assert few.numbers().tolist() == [800]
