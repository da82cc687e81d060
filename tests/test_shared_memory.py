"""What one process writes another one reads: whole, or not at all."""

import mmap
import multiprocessing
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from tidemark.shared_memory import Document, Region, room


def child(name: str, answers: "multiprocessing.Queue[object]") -> None:
    region = Region.open(name)
    answers.put(region.take(np.int64, 3).tolist())
    answers.put(region.take(np.float32, 2, 2).tolist())


def test_another_process_reads_the_arrays_in_the_order_they_were_taken() -> None:
    region = Region(room(np.int64, 3) + room(np.float32, 2, 2), shared=True)
    region.take(np.int64, 3)[:] = [1, 2, 3]
    region.take(np.float32, 2, 2)[:] = [[1, 2], [3, 4]]
    context = multiprocessing.get_context("spawn")
    answers: multiprocessing.Queue[object] = context.Queue()
    process = context.Process(target=child, args=(region.name, answers))
    process.start()
    assert answers.get(timeout=30) == [1, 2, 3]
    assert answers.get(timeout=30) == [[1, 2], [3, 4]]
    process.join()


def test_a_region_can_be_read_after_its_owner_let_go_of_it_but_not_opened() -> None:
    owned = Region(64, shared=True)
    owned.take(np.int64, 8)[0] = 7
    assert owned.name is not None
    name, opened = owned.name, Region.open(owned.name)
    del owned
    assert opened.take(np.int64, 8)[0] == 7
    with pytest.raises(FileNotFoundError):
        Region.open(name)
    another = Region(64, shared=True)  # it may get the same descriptor
    with pytest.raises(FileNotFoundError):
        Region.open(name)
    del another


def test_a_reader_cannot_write() -> None:
    region = Region(64, shared=True)
    assert region.name is not None
    with pytest.raises(ValueError, match="read-only"):
        Region.open(region.name).take(np.int64, 8)[0] = 1


def test_a_region_takes_memory_only_where_it_is_written() -> None:
    def pages() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    before = pages()
    regions = [Region(2**32, shared=shared) for shared in (False, True)]
    for region in regions:
        region.take(np.uint8, 2**32)[2**31] = 1
    assert pages() - before < 2**24


@pytest.mark.parametrize("shared", [False, True])
def test_the_first_array_lies_at_the_first_byte_of_a_file_that_can_be_mapped_again(shared: bool) -> None:
    region = Region(room(np.float32, 10, 3) + room(np.int64, 4), shared)
    first = region.take(np.float32, 10, 3)
    region.take(np.int64, 4)[:] = 7
    assert first.ctypes.data % mmap.PAGESIZE == 0
    again = np.frombuffer(mmap.mmap(region.descriptor, region.size, prot=mmap.PROT_READ), np.float32, 30)
    first[9, 2] = 5
    assert again.tolist() == [0.0] * 29 + [5.0]


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 0), (5, 9), (4_000, 4_100), (100, 20_000), (4_096, 12_288), (0, 65_536)]
)
def test_bytes_are_cleared_and_no_others(start: int, stop: int) -> None:
    region = Region(65_536)
    content = region.take(np.uint8, 65_536)
    content[:] = 1
    region.clear(start, stop)
    assert np.flatnonzero(content == 0).tolist() == list(range(start, stop))


def test_a_region_lets_go_of_its_descriptor() -> None:
    region = Region(64, shared=True)
    opened = Region.open(str(region.name))
    descriptors = [region.descriptor, opened.descriptor]
    assert len(set(descriptors)) == 2
    del region, opened
    assert not any(Path(f"/proc/self/fd/{number}").exists() for number in descriptors)


def test_a_document_is_read_whole_while_it_is_written_again_and_again() -> None:
    document = Document()
    reader = Document(Region.open(document.name))
    assert reader.read() == (0, b"")
    stopping = threading.Event()

    def write() -> None:
        number = 0
        while not stopping.is_set():
            number += 1
            document.write(b"%d" % (number % 10) * (1 + number * 977 % 20_000))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = 0
        while seen < 1_000:
            version, content = reader.read()
            assert len(set(content)) <= 1
            assert version >= seen
            if version:
                assert len(content) == 1 + version * 977 % 20_000
            seen = version
    finally:
        stopping.set()
        writer.join()
