"""A view seen from another process: the same rows while it is written; what cannot be opened is tried again."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.messages import upsert
from tests.view_logs import COLLECTION, QUERY, Disk, Log, build
from tests.views import apply, opened
from tidemark import layout, searcher
from tidemark.mirror import FAILED_RETRY_S, ViewMirror
from tidemark.view import View

# Searches the view whose place it is given until its position is 400, then says what it has seen.
READER = """
import sys, msgspec, numpy as np
from tidemark import searcher
from tidemark.mirror import ViewMirror
from tidemark.snapshot import ViewPlace
from tests.view_logs import COLLECTION, QUERY
mirror = ViewMirror(COLLECTION, msgspec.json.decode(sys.argv[1], type=ViewPlace))
print("open", flush=True)
rounds = 0
while True:
    position = mirror.positions[0]
    for exact in (True, False):
        hits = searcher.search(mirror, QUERY, 1_000, exact=exact).hits[0]
        assert len({hit.id for hit in hits}) == len(hits) == 40, len(hits)
        assert all(hit.vector[0] ** 2 + hit.vector[1] ** 2 == hit.distance for hit in hits)
    rounds += 1
    if position >= 400:
        break
print(rounds, sorted((hit.id.decode(), hit.offset) for hit in hits), mirror.problems)
"""


def test_another_process_searches_the_same_rows_while_they_are_written(tmp_path: Path) -> None:
    view, log, disk = opened(COLLECTION, tail_rows=16), Log(), Disk(tmp_path)
    apply(view, [log.put(b"%d" % n, n) for n in range(40)])
    command = [sys.executable, "-c", READER, msgspec.json.encode(view.place).decode()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None and reader.stderr is not None
        assert reader.stdout.readline() == "open\n", reader.stderr.read()
        rng = np.random.default_rng(0)
        while log.end < 400:
            apply(view, [log.put(b"%d" % n, float(rng.integers(100))) for n in rng.integers(40, size=10)])
            if log.end % 50 == 0:
                disk.save(view)
            if log.end % 100 == 0:
                build(view, disk, [segment.name for segment in view.segments])
            view.move_few()
            time.sleep(0.005)
        output, errors = reader.communicate(timeout=60)
    assert reader.returncode == 0, errors
    expected = sorted((id_.decode(), row.offset) for id_, row in log.model(log.end).rows.items())
    rounds, told = output.split(" ", 1)
    assert int(rounds) >= 1 and told == f"{expected} {{}}\n"


def test_a_segment_that_cannot_be_opened_is_a_problem_of_its_partition_until_it_can_be(tmp_path: Path) -> None:
    view, disk = opened(COLLECTION, (3, 8)), Disk(tmp_path)
    for p in (3, 8):
        apply(view, [upsert(n, b"%d-%d" % (p, n), [n, p], partition=p) for n in range(5)])
        disk.save(view, p)
    (hidden,) = view.partitions[3].segments
    path = hidden.directory / layout.VECTORS
    path.rename(path.with_suffix(".hidden"))
    mirror = ViewMirror(COLLECTION, view.place)
    for exact in (True, False):
        hits = searcher.search(mirror, QUERY, 10, exact=exact).hits[0]
        assert sorted(hit.id for hit in hits) == [b"8-%d" % n for n in range(5)]
    assert list(mirror.problems) == [3]
    problem = mirror.problems[3]
    assert "partition 3 of 'c' cannot be opened here" in problem.why and layout.VECTORS in problem.why
    apply(view, [upsert(5, b"8-5", [1, 1], partition=8)])
    assert len(searcher.search(mirror, QUERY, 10).hits[0]) == 6
    time.sleep(FAILED_RETRY_S)
    mirror.refresh()
    assert mirror.problems[3].since_ms == problem.since_ms
    path.with_suffix(".hidden").rename(path)
    time.sleep(FAILED_RETRY_S)
    assert len(searcher.search(mirror, QUERY, 20).hits[0]) == 11
    assert mirror.problems == {}


def test_a_segment_that_was_open_stays_open_when_its_files_go(tmp_path: Path) -> None:
    view, log, disk = opened(COLLECTION), Log(), Disk(tmp_path)
    apply(view, [log.put(b"%d" % n, n) for n in range(5)])
    disk.save(view)
    mirror = ViewMirror(COLLECTION, view.place)
    mirror.refresh()
    for file in view.segments[0].directory.iterdir():
        file.unlink()
    view.announce()
    assert len(searcher.search(mirror, QUERY, 10).hits[0]) == 5
    assert mirror.problems == {}


def test_what_is_told_to_come_is_opened_before_it_is_searched(tmp_path: Path) -> None:
    view, other, log, disk = opened(COLLECTION), opened(COLLECTION), Log(), Disk(tmp_path)
    apply(other, [log.put(b"%d" % n, n) for n in range(5)])
    segments = disk.checkpoint(other).segments()
    mirror = ViewMirror(COLLECTION, view.place)
    view.prepare(segments)
    view.announce(segments)
    mirror.refresh()
    for file in segments[0].directory.iterdir():
        file.unlink()
    assert searcher.search(mirror, QUERY, 10).hits[0] == []
    view.open(0, segments, 5, 0, 0)
    assert len(searcher.search(mirror, QUERY, 10).hits[0]) == 5


def test_a_view_whose_owner_is_gone_cannot_be_opened() -> None:
    view = opened(COLLECTION)
    place = view.place
    del view
    with pytest.raises(FileNotFoundError):
        ViewMirror(COLLECTION, place)


def test_row_numbers_that_another_part_has_got_show_its_vectors(tmp_path: Path) -> None:
    view, log, disk = View(COLLECTION, shared=True, tail_rows=1_024), Log(), Disk(tmp_path)
    view.open(0, [], 0, -1, 0)
    mirror = ViewMirror(COLLECTION, view.place)
    bases: list[int] = []
    for x in range(8):
        apply(view, [log.put(b"%d" % n, 10 * x + n) for n in range(10)])
        disk.save(view)
        build(view, disk, [segment.name for segment in view.segments])
        view.space.reclaim(before=float("inf"))
        for exact in (True, False):
            hits = searcher.search(mirror, QUERY, 10, exact=exact).hits[0]
            assert [hit.vector.tolist() for hit in hits] == [[10 * x + n, 1] for n in range(10)]
        bases += [segment.base for segment in view.segments]
    assert len(set(bases)) < len(bases)


def test_threads_that_refresh_together_see_each_structure_whole(tmp_path: Path) -> None:
    view, log, disk = opened(COLLECTION, tail_rows=16), Log(), Disk(tmp_path)
    apply(view, [log.put(b"%d" % n, n) for n in range(30)])
    mirror, failures, ended = ViewMirror(COLLECTION, view.place), list[BaseException](), threading.Event()

    def look() -> None:
        try:
            while not ended.is_set():
                snapshot = mirror.snapshot()
                assert [part.base for part in snapshot.parts] == list(snapshot.bases)
                assert len(searcher.search(mirror, QUERY, 100).hits[0]) == 30
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=look) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for round_ in range(30):
            apply(view, [log.put(b"%d" % n, round_ + n) for n in range(30)])
            disk.save(view)
            if round_ % 3 == 0:
                build(view, disk, [segment.name for segment in view.segments])
    finally:
        ended.set()
        sys.setswitchinterval(interval)
        for thread in threads:
            thread.join()
    assert not failures
