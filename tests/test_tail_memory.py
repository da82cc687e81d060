"""How partitions share the memory of rows that no checkpoint has yet."""

from hypothesis import given
from hypothesis import strategies as st

from api.tail_memory import KEPT_ROWS_MAX, TailMemory

MAX = 10_000


def test_one_partition_takes_four_fifths_and_goes_on_when_a_checkpoint_has_taken_some() -> None:
    memory = TailMemory(MAX)
    memory.note(0, 8_000)
    assert not memory.is_short(0)
    memory.note(0, 8_001)
    assert memory.is_short(0)
    memory.note(0, 7_700)
    assert not memory.has_room(0)
    memory.note(0, 7_600)
    assert memory.has_room(0)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 500)), max_size=300))
def test_partitions_that_only_take_never_take_more_than_the_maximum_and_a_batch(asked: list[tuple[int, int]]) -> None:
    memory = TailMemory(MAX)
    for partition, more in asked:
        if not memory.is_short(partition):
            memory.note(partition, memory.taken(partition) + more)
    assert sum(memory.taken(partition) for partition in range(6)) <= MAX + 500


@given(st.lists(st.integers(0, 2 * MAX), min_size=1, max_size=6))
def test_a_partition_that_has_given_everything_back_may_always_go_on(taken: list[int]) -> None:
    memory = TailMemory(MAX)
    for partition, size in enumerate(taken):
        memory.note(partition, size)
    memory.note(0, 0)
    assert memory.has_room(0) and not memory.is_short(0)


def test_what_partitions_keep_by_choice_holds_nobody_back() -> None:
    memory = TailMemory(MAX)
    for number in range(7):
        memory.note(number, memory.kept_bytes_max, memory.kept_rows_max)
    assert all(memory.has_room(number) for number in range(7))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2 * KEPT_ROWS_MAX)), max_size=50))
def test_partitions_keep_no_more_rows_together_than_one_could(asked: list[tuple[int, int]]) -> None:
    memory = TailMemory(MAX)
    kept: dict[int, int] = {}
    for partition, row_count in asked:
        memory.note(partition, 0, 0)
        kept[partition] = min(row_count, memory.kept_rows_max)
        memory.note(partition, 0, kept[partition])
    assert sum(kept.values()) <= KEPT_ROWS_MAX


def test_while_it_is_full_nobody_may_take_more_however_little_there_is() -> None:
    memory = TailMemory(MAX)
    memory.note(0, 0)
    memory.full = "the index may not grow"
    assert memory.is_short(0) and not memory.has_room(0)
    memory.full = None
    assert memory.has_room(0) and not memory.is_short(0)
