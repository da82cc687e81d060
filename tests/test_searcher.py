"""Searching while one thread writes: no id is ever missing, none is answered twice, none comes back."""

import itertools
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.messages import delete, upsert
from tests.view_logs import Disk
from tests.views import apply, codes_made, opened, page, quantizer_of
from tidemark import searcher
from tidemark.collection import Collection, IndexKind, IndexParameters
from tidemark.collection_index import CollectionIndex
from tidemark.errors import BadQuery
from tidemark.live_rows import LiveRows
from tidemark.manifest import SegmentEntry
from tidemark.mirror import Snapshot, ViewMirror
from tidemark.record import decode
from tidemark.rows import Rows
from tidemark.segment import Segment, merged
from tidemark.segment_files import write_segment
from tidemark.view import View

DIMENSION = 4
COLLECTION = Collection(name="c", topic="t", dimension=DIMENSION, metric="l2")
SECONDS = 2.5
TURNS_LEAST = 12
BATCHES_A_TURN = 12
FIXED = [b"fixed-%d" % number for number in range(150)]
FLAT = IndexParameters(kind="flat")
PARTITIONS = (0, 1)


def partition_of(id_: bytes) -> int:
    return id_[-1] % 3 == 0


class Writer:
    """Moves the fixed ids about, and creates and deletes others, in a leader per partition and in one follower of both.

    What it is about to apply it writes down first: the readers check against that.
    """

    def __init__(self, directory: Path, kind: IndexKind) -> None:
        self.directory = directory
        self.collection = replace(COLLECTION, index=IndexParameters(kind=kind, ann_rows_min=64))
        self.leaders = [View(self.collection, shared=True, tail_rows=64) for _ in PARTITIONS]
        self.follower = View(self.collection, shared=True, tail_rows=64)
        for partition in PARTITIONS:
            self.leaders[partition].open(partition, [], 0, -1, 0)
            self.follower.open(partition, [], 0, -1, 0)
        self.index = CollectionIndex(self.follower, 0.97, ann_rows_min=64, coded_rows_min=20, dead_min=100)
        self.mirrors = [ViewMirror(self.collection, view.place) for view in (*self.leaders, self.follower)]
        self.written: dict[bytes, list[int]] = {id_: [] for id_ in FIXED}
        self.deleted: dict[bytes, int] = {}
        self.rng = np.random.default_rng(0)
        self.offset = 0
        self.names = itertools.count(1)
        self.turns = 0

    def batch(self, ids: Sequence[bytes], gone: Sequence[bytes]) -> None:
        messages = []
        for id_ in ids:
            self.written.setdefault(id_, []).append(self.offset)
            vector = self.rng.normal(size=DIMENSION)
            messages.append(upsert(self.offset, id_, vector, partition=partition_of(id_)))
            self.offset += 1
        for id_ in gone:
            self.deleted[id_] = self.offset
            messages.append(delete(self.offset, id_, partition_of(id_)))
            self.offset += 1
        for partition in PARTITIONS:
            if some := [message for message in messages if message.partition() == partition]:
                apply(self.leaders[partition], some)
        apply(self.follower, messages)

    def some(self, count: int) -> list[bytes]:
        return [FIXED[at] for at in self.rng.integers(len(FIXED), size=count)]

    def turn(self) -> None:
        self.turns += 1
        for _ in range(BATCHES_A_TURN):
            self.batch(self.some(20), [])
            self.index.turn(may_train=False)
        gone = [b"ghost-%d" % (self.turns - 2)] if self.turns > 2 else []
        self.batch([*self.some(20), b"ghost-%d" % self.turns], gone)
        if self.turns % 4 == 0:
            self.checkpoint(self.turns // 4 % 2)
        if self.turns % 6 == 0:
            self.build(self.turns // 6 % 2)
        if self.turns % 5 == 1:
            self.new_quantizer()
        self.follower.move_few()

    def checkpoint(self, partition: int) -> None:
        """The leader saves, and the follower takes what it has saved over, now and then announced before."""
        leader = self.leaders[partition]
        state = leader.partitions[partition]
        rows = leader.unsaved_rows(partition)
        leader.saved(partition, None if rows is None else self.write(partition, rows, FLAT))
        for segment in state.segments:
            segment.save_dead_rows(1, next(self.names))
        position, digest = state.position, state.digest
        known = {segment.name: segment for segment in self.follower.partitions[partition].segments}
        segments = [known.get(segment.name) or self.open(partition, segment.entry) for segment in state.segments]
        if self.turns % 8 == 0:
            self.follower.prepare(segments)
            self.follower.announce([segment for segment in segments if segment.name not in known])
            self.index.want(segments)
        for _ in range(self.turns % 3):
            self.batch(self.some(9), [])
            self.index.turn(may_train=False)
        self.follower.follow(partition, segments, position, 0, digest, kept_rows_max=self.turns % 3 * 40)
        self.follower.forget(segments)
        self.follower.announce([])
        self.index.want([])

    def open(self, partition: int, entry: SegmentEntry) -> Segment:
        return Segment(self.directory / entry.name, entry, DIMENSION, "l2", partition)

    def write(self, partition: int, rows: Rows, parameters: IndexParameters) -> Segment:
        directory = self.directory / f"seg-{next(self.names)}"
        return self.open(partition, write_segment(directory, rows, "l2", parameters, seed=1))

    def build(self, partition: int) -> None:
        inputs = self.leaders[partition].partitions[partition].segments
        if not inputs:
            return
        dead = {segment.name: segment.dead_mask() for segment in inputs}
        rows = merged(inputs)
        self.batch(self.some(20), [])
        built = self.write(partition, rows, self.collection.index) if len(rows) else None
        self.leaders[partition].install(partition, built, [segment.name for segment in inputs], dead)

    def new_quantizer(self) -> None:
        quantizer = quantizer_of(self.follower, seed=self.turns) if self.collection.index.kind == "ivfpq" else None
        if quantizer is not None:
            self.index.offer((self.index.version or 0) + 1, quantizer)


class Reader:
    def __init__(self, writer: Writer, seed: int) -> None:
        self.writer = writer
        self.rng = np.random.default_rng(seed)
        self.rounds = 0

    def turn(self) -> None:
        self.rounds += 1
        for mirror in self.writer.mirrors:
            self.search(mirror)
            self.get(mirror)

    def search(self, mirror: ViewMirror) -> None:
        queries = self.rng.normal(size=(1, DIMENSION)).astype(np.float32)
        fixed = {id_ for id_ in FIXED if partition_of(id_) in mirror.positions}
        for k, exact in ((len(FIXED) + 40, True), (len(FIXED) + 40, False), (10, True), (10, False)):
            answer = searcher.search(mirror, queries, k, exact=exact)
            hits = answer.hits[0]
            ids = [hit.id for hit in hits]
            assert len(ids) == len(set(ids)), "an id was answered twice"
            if k > len(FIXED):
                assert not fixed - set(ids), "an id was missing"
            else:
                assert len(ids) == k, "the answer was short"
            for hit in hits:
                self.check(hit, answer.positions[hit.partition])

    def get(self, mirror: ViewMirror) -> None:
        id_ = FIXED[int(self.rng.integers(len(FIXED)))]
        positions = mirror.positions
        if partition_of(id_) in positions:
            hit = searcher.get(mirror, id_)
            assert hit is not None, "an id was missing"
            self.check(hit, positions[partition_of(id_)])
        for ghost, offset in list(self.writer.deleted.items())[-3:]:
            if offset < mirror.positions.get(partition_of(ghost), 0):
                assert searcher.get(mirror, ghost) is None, "a deleted id came back"

    def check(self, hit: searcher.Hit, position: int) -> None:
        newest = max((offset for offset in self.writer.written[hit.id][:] if offset < position), default=-1)
        assert hit.offset >= newest, "an older version than that at the position was answered"
        assert not self.writer.deleted.get(hit.id, position) < position, "a deleted id came back"
        assert np.isfinite(hit.vector).all()


@pytest.mark.parametrize("kind", ["ivfpq", "hnsw", "flat"])
def test_searches_beside_a_writer_miss_nothing_repeat_nothing_and_revive_nothing(
    tmp_path: Path, kind: IndexKind
) -> None:
    writer = Writer(tmp_path, kind)
    writer.batch(FIXED, [])
    readers = [Reader(writer, seed) for seed in range(3)]
    failures: list[BaseException] = []
    end = time.monotonic() + SECONDS

    def run(turning: Writer | Reader) -> None:
        try:
            while (time.monotonic() < end or writer.turns <= TURNS_LEAST) and not failures:
                turning.turn()
        except BaseException as failure:  # shown by the test's own thread
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(one,)) for one in (writer, *readers)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads change places within a verb, not only between them
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
        writer.index.close()
    if failures:
        raise failures[0]
    assert all(reader.rounds for reader in readers)
    for partition in PARTITIONS:
        assert writer.leaders[partition].partitions[partition].digest == writer.follower.partitions[partition].digest


class Interrupted(ViewMirror):
    """A mirror whose writer takes a step right after the n-th time a search has looked at its parts."""

    def interrupt(self, step: Callable[[], None], look: int) -> None:
        self._step, self._looks = step, look

    def snapshot(self) -> Snapshot:
        found = super().snapshot()
        self._looks = getattr(self, "_looks", 0) - 1
        if self._looks == 0:
            self._step()
        return found


def saved_view(directory: Path, ids: int, tail_rows: int = 8) -> View:
    view = opened(COLLECTION, tail_rows=tail_rows)
    apply(view, [upsert(at, b"%d" % at, [at, 0, 0, 0]) for at in range(ids)])
    save(view, directory)
    return view


def save(view: View, directory: Path) -> None:
    rows = view.unsaved_rows(0)
    assert rows is not None
    entry = write_segment(directory, rows, "l2", FLAT, seed=1)
    view.saved(0, Segment(directory, entry, DIMENSION, "l2"))


ORIGIN = np.zeros((1, DIMENSION), np.float32)


@pytest.mark.parametrize("look", [1, 2, 3, 4])
@pytest.mark.parametrize("exact", [False, True])
def test_rows_that_went_to_a_new_segment_during_a_search_are_found(tmp_path: Path, look: int, exact: bool) -> None:
    view = saved_view(tmp_path / "one", 2, tail_rows=1)

    def move_both_and_save() -> None:
        apply(view, [upsert(2, b"0", [5, 0, 0, 0]), upsert(3, b"1", [6, 0, 0, 0])])
        save(view, tmp_path / "two")

    mirror = Interrupted(COLLECTION, view.place)
    mirror.interrupt(move_both_and_save, look)
    answer = searcher.search(mirror, ORIGIN, 10, exact=exact)
    found = [(hit.id, hit.offset) for hit in answer.hits[0]]
    assert found == [(b"0", 2), (b"1", 3)] or (look > 2 and found == [(b"0", 0), (b"1", 1)])


class CodedMeanwhile(ViewMirror):
    """A mirror in which more rows are coded right after its lists were searched."""

    def __init__(self, view: View, index: CollectionIndex) -> None:
        super().__init__(COLLECTION, view.place)
        self._index_of_view = index

    def snapshot(self) -> Snapshot:
        found = super().snapshot()
        return replace(found, index=self) if found.index is not None else found  # type: ignore[arg-type]

    @property
    def coded(self) -> int:
        opened = super().snapshot().index
        assert opened is not None
        return opened.coded

    def candidates(self, *asked: Any) -> Any:
        opened = super().snapshot().index
        assert opened is not None
        found = opened.candidates(*asked)
        codes_made(self._index_of_view)
        return found


def test_rows_that_are_coded_during_a_search_are_found() -> None:
    view = opened(COLLECTION)
    index = CollectionIndex(view, 0.97, ann_rows_min=64, coded_rows_min=1)
    apply(view, [upsert(at, b"%d" % at, [at + 1, at % 7, 0, 0]) for at in range(100)])
    quantizer = quantizer_of(view)
    assert quantizer is not None
    index.offer(1, quantizer)
    codes_made(index)
    apply(view, [upsert(100, b"newest", [0, 0, 0, 0])])
    hits = searcher.search(CodedMeanwhile(view, index), ORIGIN, 1).hits[0]
    index.close()
    assert [hit.id for hit in hits] == [b"newest"]
    assert index.uncoded_of(view.tails[-1]) == 0


@pytest.mark.parametrize("exact", [False, True])
def test_a_search_ends_only_after_it_has_seen_that_rows_moved_however_slow_their_writer_is(
    tmp_path: Path, exact: bool
) -> None:
    view = saved_view(tmp_path / "one", 2, tail_rows=1)
    apply(view, [upsert(2, b"0", [5, 0, 0, 0]), upsert(3, b"1", [6, 0, 0, 0])])
    killed, ended = threading.Event(), threading.Event()

    def stop_there(killed_rows: object) -> None:
        killed.set()
        assert ended.wait(20)

    view.when_killed = stop_there
    saving = threading.Thread(target=save, args=(view, tmp_path / "two"))

    def begin_to_save() -> None:
        saving.start()
        assert killed.wait(20)

    mirror = Interrupted(COLLECTION, view.place)
    mirror.interrupt(begin_to_save, look=2)
    try:
        answer = searcher.search(mirror, ORIGIN, 10, exact=exact)
    finally:
        ended.set()
        saving.join()
    assert [(hit.id, hit.offset) for hit in answer.hits[0]] == [(b"0", 2), (b"1", 3)]


@pytest.mark.parametrize("look", [1, 2, 3, 4])
@pytest.mark.parametrize("exact", [False, True])
def test_an_id_that_moves_during_a_search_is_answered_once(tmp_path: Path, look: int, exact: bool) -> None:
    view = saved_view(tmp_path / "one", 3)
    mirror = Interrupted(COLLECTION, view.place)
    mirror.interrupt(lambda: apply(view, [upsert(3, b"0", [9, 0, 0, 0])]), look)
    answer = searcher.search(mirror, ORIGIN, 10, exact=exact)
    assert sorted(hit.id for hit in answer.hits[0]) == [b"0", b"1", b"2"]
    offset = next(hit.offset for hit in answer.hits[0] if hit.id == b"0")
    assert offset == 3 or look > 2


def test_of_two_versions_of_an_id_the_newer_is_answered_at_its_own_place() -> None:
    view = opened(COLLECTION)
    apply(view, [upsert(at, b"%d" % at, [at, 0, 0, 0]) for at in range(3)])
    # What a reader may see in the middle of `apply`: the new row is there, the old one not yet dead.
    view._append(decode({0: [upsert(3, b"0", [9, 0, 0, 0])]}, COLLECTION)[0])
    hits = searcher.search(ViewMirror(COLLECTION, view.place), ORIGIN, 10).hits[0]
    assert [(hit.id, hit.offset) for hit in hits] == [(b"1", 1), (b"2", 2), (b"0", 3)]


@pytest.mark.parametrize("exact", [False, True])
def test_two_versions_of_an_id_in_one_tail_do_not_push_another_out(exact: bool) -> None:
    view = opened(COLLECTION)
    apply(view, [upsert(at, b"%d" % at, [at, 0, 0, 0]) for at in range(20)])
    view._append(decode({0: [upsert(20 + at, b"%d" % at, [0, at, 0, 0]) for at in range(10)]}, COLLECTION)[0])
    hits = searcher.search(ViewMirror(COLLECTION, view.place), ORIGIN, 20, exact=exact).hits[0]
    assert sorted(hit.id for hit in hits) == sorted(b"%d" % at for at in range(20))


@pytest.mark.parametrize("limit", [1, 7, 20, 21])
def test_a_page_has_each_id_once_and_its_full_size_while_rows_are_replaced(limit: int) -> None:
    view = opened(COLLECTION)
    apply(view, [upsert(at, b"%d" % at, [at, 0, 0, 0]) for at in range(20)])
    batch = decode({0: [upsert(20 + at, b"%d" % at, [0, at, 0, 0]) for at in range(10)]}, COLLECTION)[0]
    both_live, mirror = threading.Event(), ViewMirror(COLLECTION, view.place)

    def replace_slowly() -> None:
        """As `apply` does, with time between the new rows and the end of the old ones."""
        old = view._old_in_tails(batch)
        with view._changing():
            view._append(batch)
            both_live.set()
            time.sleep(0.05)
            view._kill(old)

    replacing = threading.Thread(target=replace_slowly)
    replacing.start()
    assert both_live.wait(20)
    found_now = [(hit.id, hit.offset) for hit in page(mirror, None, limit)]
    replacing.join()
    assert len(found_now) == len({id_ for id_, _ in found_now}) == min(limit, 20)
    assert [offset for _, offset in found_now] == sorted(offset for _, offset in found_now)
    after = None
    found: dict[bytes, int] = {}
    while some := page(mirror, after, limit):
        found |= {hit.id: hit.offset for hit in some}
        after = (some[-1].partition, some[-1].offset)
    assert found == {b"%d" % at: at + 20 if at < 10 else at for at in range(20)}


@pytest.mark.parametrize(
    ("query", "metric"),
    [
        ([[1, 2, 3]], "l2"),
        ([1, 2, 3, 4], "l2"),
        ([[1, 2, 3, float("nan")]], "l2"),
        ([[1, 2, 3, float("inf")]], "cosine"),
        ([[3e38, 2, 3, 4]], "l2"),
        ([[3e38, 2, 3, 4]], "ip"),
        ([[0, 0, 0, 0]], "cosine"),
    ],
)
def test_a_query_that_cannot_be_answered_is_refused(query: list[float], metric: str) -> None:
    collection = Collection(name="c", topic="t", dimension=DIMENSION, metric=metric)  # type: ignore[arg-type]
    with pytest.raises(BadQuery):
        searcher.prepare_queries(np.array(query, np.float32), collection)


def test_a_cosine_query_is_normalised_whatever_its_length() -> None:
    collection = Collection(name="c", topic="t", dimension=DIMENSION, metric="cosine")
    for scale in (1e-40, 1, 3e38):
        prepared = searcher.prepare_queries(np.array([[scale, 0, 0, 0]], np.float32), collection)
        assert prepared == pytest.approx(np.array([[1, 0, 0, 0]]))


@pytest.mark.parametrize("what", ["page", "exact"])
def test_a_page_and_an_exact_search_end_though_rows_of_another_partition_die_all_the_while(
    what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    collection = Collection(name="c", topic="t", dimension=2, metric="l2")
    view = opened(collection, (0, 1))
    apply(view, [upsert(offset, b"%d" % offset, [float(offset), 0.0]) for offset in range(50)])
    Disk(tmp_path).save(view)
    mirror, numbers, looks = ViewMirror(collection, view.place), LiveRows.numbers, itertools.count()

    def slow(live: LiveRows) -> Any:
        """A batch is applied in the time that it takes to list the rows that live."""
        look = next(looks)
        assert look < 20, "begins again and again"
        apply(view, [upsert(look, b"x", [-1.0, 0.0], partition=1)])
        return numbers(live)

    monkeypatch.setattr(LiveRows, "numbers", slow)
    if what == "page":
        assert len(page(mirror, None, 20)) == 20
    else:
        found = searcher.search(mirror, np.zeros((1, 2), np.float32), 20, exact=True)
        assert len(found.hits[0]) == 20
