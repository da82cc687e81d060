"""Row numbers are given once at a time; every vector lies where its number says; what is not mapped reads as zeros."""

import gc
import multiprocessing
import os
import resource
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tidemark.row_space import ALIGNMENT, Mapping, RowSpace, VectorSpace, capacity_of
from tidemark.shared_memory import Region, room

spawn = multiprocessing.get_context("spawn")
Queue = "multiprocessing.Queue[object]"


def written(path: Path, row_count: int, dimension: int, value: float = 1) -> Path:
    np.full((row_count, dimension), value, np.float32).tofile(path)
    return path


# Row numbers.


def test_bases_are_aligned_and_ranges_never_overlap() -> None:
    space = RowSpace(8, shared=False, capacity=100 * ALIGNMENT)
    sizes = [1, 0, ALIGNMENT, ALIGNMENT + 1, 5_000]
    bases = [space.allocate(size) for size in sizes]
    assert all(base % ALIGNMENT == 0 for base in bases)
    assert all(base + max(1, size) <= after for base, size, after in zip(bases, sizes, bases[1:], strict=False))
    assert space.used == (1 + 1 + 1 + 2 + 5) * ALIGNMENT


def test_a_freed_range_is_given_again_only_once_reclaimed() -> None:
    space = RowSpace(8, shared=False, capacity=4 * ALIGNMENT)
    first, second = space.allocate(2 * ALIGNMENT), space.allocate(2 * ALIGNMENT)
    space.free(first)
    with pytest.raises(MemoryError, match="1024 row numbers in a row are free: 4096 of 4096 are used"):
        space.allocate(1)
    freed = time.monotonic()
    space.free(second)
    space.reclaim(before=freed)
    assert space.used == 2 * ALIGNMENT
    assert [space.allocate(ALIGNMENT), space.allocate(1)] == [first, first + ALIGNMENT]
    space.reclaim(before=time.monotonic() + 1)
    assert space.allocate(2 * ALIGNMENT) == second


def test_ranges_that_touch_become_one_again() -> None:
    space = RowSpace(8, shared=False, capacity=6 * ALIGNMENT)
    bases = [space.allocate(ALIGNMENT) for _ in range(6)]
    for base in (bases[4], bases[0], bases[2], bases[5], bases[3], bases[1]):
        space.free(base)
        space.reclaim(before=time.monotonic() + 1)
    assert space.used == 0
    assert space.allocate(6 * ALIGNMENT) == 0


@pytest.mark.parametrize("shared", [False, True])
def test_rows_of_a_range_given_again_are_all_dead(shared: bool) -> None:
    space = RowSpace(8, shared, capacity=2**21)
    before, rows, after = space.allocate(5_000), space.allocate(1_000_000), space.allocate(5_000)
    for base, row_count in ((before, 5_000), (rows, 1_000_000), (after, 5_000)):
        space.live(base, row_count).set(0, row_count)
    space.free(rows)
    space.reclaim(before=time.monotonic() + 1)
    assert space.live(space.allocate(1_000_000), 1_000_000).live_count == 0
    assert [space.live(base, 5_000).live_count for base in (before, after)] == [5_000, 5_000]


def test_memory_of_reclaimed_bits_is_given_back() -> None:
    space = RowSpace(8, shared=True, capacity=2**28)
    base = space.allocate(2**28)
    space.live(base, 2**28).set(0, 2**28)
    assert os.fstat(space._region.descriptor).st_blocks * 512 == 2**25
    space.free(base)
    space.reclaim(before=time.monotonic() + 1)
    assert os.fstat(space._region.descriptor).st_blocks == 0


def test_threads_get_ranges_of_their_own() -> None:
    space = RowSpace(8, shared=False, capacity=2**20)
    bases: list[int] = []

    def take() -> None:
        bases.extend(space.allocate(1) for _ in range(200))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(bases)) == 800


def look(name: str, capacity: int, questions: Queue, answers: Queue) -> None:
    bitmap = Region.open(name).take(np.uint8, capacity // 8)
    answers.put(np.flatnonzero(np.unpackbits(bitmap, bitorder="little")).tolist())
    questions.get(timeout=30)
    answers.put(np.flatnonzero(np.unpackbits(bitmap, bitorder="little")).tolist())


def test_another_process_sees_rows_appear_and_die() -> None:
    space = RowSpace(8, shared=True, capacity=2**16)
    space.allocate(100)
    live = space.live(space.allocate(100), 100)
    live.set(3, 6)
    questions: Queue = spawn.Queue()
    answers: Queue = spawn.Queue()
    process = spawn.Process(target=look, args=(space.name, space.capacity, questions, answers))
    process.start()
    assert answers.get(timeout=30) == [1_027, 1_028, 1_029]
    live.kill(np.array([4]))
    live.set(9, 10)
    questions.put(None)
    assert answers.get(timeout=30) == [1_027, 1_029, 1_033]
    process.join()


@pytest.mark.parametrize("dimension", [1, 3, 128, 1_536, 65_536])
def test_a_space_of_any_dimension_has_addresses_and_takes_no_memory(dimension: int) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    before = resident()
    rows, vectors = RowSpace(dimension, shared=True), VectorSpace(dimension, capacity_of(dimension))
    assert rows.capacity == len(vectors.vectors) >= 2**22
    assert vectors.vectors[rows.capacity - 1].max() == 0
    assert resident() - before < 2**23


# Vectors.


@pytest.mark.parametrize("dimension", [1, 3, 100, 65_536])
def test_a_file_lies_at_its_place_and_zeros_around_it(tmp_path: Path, dimension: int) -> None:
    space = VectorSpace(dimension, 8 * ALIGNMENT)
    held = [
        space.map_file(ALIGNMENT, written(tmp_path / "one", 70, dimension), 70),
        space.map_file(2 * ALIGNMENT, written(tmp_path / "two", 1_030, dimension, 2), 1_030),
    ]
    expected = np.zeros(8 * ALIGNMENT, np.float32)
    expected[ALIGNMENT : ALIGNMENT + 70], expected[2 * ALIGNMENT : 2 * ALIGNMENT + 1_030] = 1, 2
    assert np.array_equal(space.vectors[:, 0], expected)
    assert np.array_equal(space.vectors[:, -1], expected)
    del held
    assert space.vectors[:, 0].max() == 0


def test_memory_of_another_object_lies_at_its_place_and_shows_what_is_written_later() -> None:
    space, region = VectorSpace(8, 8 * ALIGNMENT), Region(room(np.float32, 2_048, 8) + 64)
    rows = region.take(np.float32, 2_048, 8)
    held = space.map_region(2 * ALIGNMENT, region, 2_048)
    rows[5] = 5
    assert space.vectors[2 * ALIGNMENT + 5].tolist() == [5.0] * 8
    del held


def read(name: str, answers: Queue) -> None:
    space = VectorSpace(8, 8 * ALIGNMENT)
    region = Region.open(name)
    held = space.map_region(ALIGNMENT, region, 1_024)
    del region
    answers.put(space.vectors[ALIGNMENT + 7].tolist())
    del held
    answers.put(space.vectors[ALIGNMENT + 7].tolist())


def test_another_process_maps_memory_by_its_name() -> None:
    region = Region(room(np.float32, 1_024, 8), shared=True)
    region.take(np.float32, 1_024, 8)[7] = 7
    answers: Queue = spawn.Queue()
    process = spawn.Process(target=read, args=(region.name, answers))
    process.start()
    assert answers.get(timeout=30) == [7.0] * 8
    assert answers.get(timeout=30) == [0.0] * 8
    process.join()


def test_vectors_stay_as_long_as_somebody_holds_their_mapping_whatever_becomes_of_the_file(tmp_path: Path) -> None:
    space, path = VectorSpace(8, 4 * ALIGNMENT), written(tmp_path / "one", 10, 8)
    held = [space.map_file(0, path, 10)]
    path.unlink()
    assert space.vectors[9, 7] == 1
    held.clear()
    assert space.vectors[9, 7] == 0


def test_the_end_of_an_older_mapping_leaves_a_newer_one_at_its_place(tmp_path: Path) -> None:
    space = VectorSpace(16, 16 * ALIGNMENT)
    old: list[Mapping] = [space.map_file(0, written(tmp_path / "old", 5_000, 16, 1), 5_000)]
    new = space.map_file(ALIGNMENT, written(tmp_path / "new", 1_500, 16, 2), 1_500)
    old.clear()
    found: NDArray[np.float32] = space.vectors[: 8 * ALIGNMENT, 3]
    expected = np.zeros(8 * ALIGNMENT, np.float32)
    expected[ALIGNMENT : ALIGNMENT + 1_500] = 2
    assert np.array_equal(found, expected)
    del new
    assert found.max() == 0


def test_the_end_of_a_newer_mapping_leaves_zeros_at_its_place(tmp_path: Path) -> None:
    space = VectorSpace(16, 16 * ALIGNMENT)
    old = space.map_file(0, written(tmp_path / "old", 5_000, 16, 1), 5_000)
    new = [space.map_file(ALIGNMENT, written(tmp_path / "new", ALIGNMENT, 16, 2), ALIGNMENT)]
    new.clear()
    assert space.vectors[[0, ALIGNMENT, 2 * ALIGNMENT, 4_999], 0].tolist() == [1, 0, 1, 1]
    del old
    assert space.vectors[:5_000].max() == 0


def test_who_reads_while_a_place_is_mapped_and_unmapped_sees_one_or_the_other_and_never_nothing(tmp_path: Path) -> None:
    space, row_count = VectorSpace(16, 16 * ALIGNMENT), 5 * ALIGNMENT
    paths = [written(tmp_path / str(value), row_count, 16, value) for value in (1, 2)]
    stopping, seen = threading.Event(), set()

    def read_on() -> None:
        while not stopping.is_set():
            seen.update(np.unique(space.vectors[:row_count, ::5]).tolist())

    thread = threading.Thread(target=read_on)
    thread.start()
    held: list[Mapping] = []
    until = time.monotonic() + 0.3
    while time.monotonic() < until or len(seen) < 3:
        for path in paths:
            held.append(space.map_file(0, path, row_count))
            del held[:-2]
        held.clear()
    stopping.set()
    thread.join()
    assert seen == {0, 1, 2}


def test_a_mapping_collected_while_another_thread_maps_is_unmapped_after_all(tmp_path: Path) -> None:
    space, path = VectorSpace(16, 64 * ALIGNMENT), written(tmp_path / "one", 1_000, 16)

    def map_again_and_again(base: int) -> None:
        for _ in range(300):
            cycle: list[object] = [space.map_file(base * ALIGNMENT, path, 1_000)]
            cycle.append(cycle)  # only the collector ends it, whoever runs it

    gc.set_threshold(20)
    try:
        threads = [threading.Thread(target=map_again_and_again, args=(base,)) for base in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        gc.set_threshold(700)
    gc.collect()
    assert space._mapped == {}
    assert space.vectors[: 4 * ALIGNMENT].max() == 0


def test_a_file_that_is_too_short_is_refused(tmp_path: Path) -> None:
    space, path = VectorSpace(8, 4 * ALIGNMENT), written(tmp_path / "one", 10, 8)
    with pytest.raises(OSError, match="one: has 320 bytes, 11 vectors of 32 bytes take 352"):
        space.map_file(0, path, 11)
    with pytest.raises(FileNotFoundError):
        space.map_file(0, tmp_path / "none", 1)
    with pytest.raises(OSError, match="has 64 bytes"):
        space.map_region(0, Region(64), 3)
    assert space.vectors.max() == 0


@pytest.mark.parametrize("base", [-ALIGNMENT, 1, 4 * ALIGNMENT])
def test_a_place_outside_the_space_is_refused(tmp_path: Path, base: int) -> None:
    space, path = VectorSpace(8, 4 * ALIGNMENT), written(tmp_path / "one", 10, 8)
    with pytest.raises(ValueError, match="are not in a space of 4096"):
        space.map_file(base, path, 10)


def test_an_empty_part_is_mapped_as_nothing(tmp_path: Path) -> None:
    space = VectorSpace(8, 4 * ALIGNMENT)
    assert space.map_file(0, written(tmp_path / "none", 0, 8), 0)
    assert space.vectors.max() == 0


@pytest.mark.parametrize("dimension", [128, 768, 4_096])
def test_a_process_has_addresses_for_twenty_collections_while_all_generations_are_switched(dimension: int) -> None:
    spaces = [VectorSpace(dimension, capacity_of(dimension)) for _ in range(40)]
    assert len(spaces) == 40


def test_addresses_that_a_process_may_not_have_are_an_error_with_the_limits() -> None:
    with pytest.raises(OSError, match="ulimit -v"):
        VectorSpace(65_536, 2**33)


def kernel_mappings() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


def test_what_was_unmapped_counts_no_more_for_the_limit_of_mappings(tmp_path: Path) -> None:
    space, path = VectorSpace(8, capacity_of(8)), written(tmp_path / "one", 10, 8)
    before = kernel_mappings()
    held = [space.map_file(2 * n * ALIGNMENT, path, 10) for n in range(200)]
    assert kernel_mappings() >= before + 200
    held.clear()
    assert kernel_mappings() < before + 20


def test_a_mapping_is_touched_before_it_is_searched(tmp_path: Path) -> None:
    def faults() -> int:
        return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt

    space, path = VectorSpace(8, capacity_of(8)), written(tmp_path / "one", 400_000, 8)
    held = space.map_file(0, path, 400_000)
    held.touch()
    before = faults()
    assert space.vectors[:400_000:512, 0].sum() == 782
    assert faults() - before < 20


def test_the_addresses_are_given_back(tmp_path: Path) -> None:
    before = kernel_mappings()
    for number in range(50):
        space = VectorSpace(8, capacity_of(8))
        held = space.map_file(0, written(tmp_path / str(number), 10, 8), 10)
        vectors = space.vectors
        del space
        assert vectors[9, 0] == 1
        del held, vectors
    assert kernel_mappings() < before + 20


def test_a_child_that_was_forked_reads_on_and_unmaps_only_its_own(tmp_path: Path) -> None:
    space = VectorSpace(8, 4 * ALIGNMENT)
    held = [space.map_file(0, written(tmp_path / "one", 10, 8), 10)]
    child = os.fork()
    if child == 0:
        right = space.vectors[9, 0] == 1
        held.clear()
        os._exit(0 if right and space.vectors[9, 0] == 0 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert space.vectors[9, 0] == 1
    held.clear()
