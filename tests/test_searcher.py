"""Searching while one thread writes: no id is ever missing, none is answered twice, none comes back."""

import itertools
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.messages import delete, upsert
from tidemark import searcher
from tidemark.collection import Collection, IndexKind, IndexParameters
from tidemark.errors import BadQuery
from tidemark.mirror import ViewMirror
from tidemark.record import Message, decode
from tidemark.segment import Segment, merged
from tidemark.segment_files import write_segment
from tidemark.snapshot import PartitionSearcher, SearchedView
from tidemark.view import View

DIMENSION = 4
COLLECTION = Collection(name="c", topic="t", dimension=DIMENSION, metric="l2")
SECONDS = 2.5
TURNS_LEAST = 12
BATCHES_A_TURN = 12
FIXED = [b"fixed-%d" % number for number in range(150)]


class Writer:
    """Moves the fixed ids about, and creates and deletes others, in a leader and in a follower that is mirrored.

    What it is about to apply it writes down first: the readers check against that.
    """

    def __init__(self, directory: Path, kind: IndexKind) -> None:
        self.directory = directory
        self.parameters = IndexParameters(kind=kind, ann_rows_min=64)
        self.leader = View(COLLECTION, 0, tail_rows=64)
        self.follower = View(COLLECTION, 0, tail_rows=64, shared=True)
        self.mirror = ViewMirror(COLLECTION, self.follower.place)
        self.written: dict[bytes, list[int]] = {id_: [] for id_ in FIXED}
        self.deleted: dict[bytes, int] = {}
        self.rng = np.random.default_rng(0)
        self.offset = 0
        self.names = itertools.count(1)
        self.turns = 0

    def batch(self, ids: list[bytes], gone: list[bytes]) -> None:
        messages = []
        for id_ in ids:
            self.written.setdefault(id_, []).append(self.offset)
            messages.append(upsert(self.offset, id_, self.rng.normal(size=DIMENSION)))
            self.offset += 1
        for id_ in gone:
            self.deleted[id_] = self.offset
            messages.append(delete(self.offset, id_))
            self.offset += 1
        batch, _ = decode({0: messages}, COLLECTION)
        self.leader.apply(batch)
        self.follower.apply(batch)

    def open(self, entry_of: Segment) -> Segment:
        return Segment(entry_of.directory, entry_of.entry, DIMENSION, "l2", shared=True)

    def save(self) -> None:
        rows = self.leader.unsaved_rows()
        segment = None
        if rows is not None:
            directory = self.directory / f"seg-{next(self.names)}"
            entry = write_segment(directory, rows, "l2", IndexParameters(kind="flat"), seed=1)
            segment = Segment(directory, entry, DIMENSION, "l2")
        self.leader.saved(segment)

    def turn(self) -> None:
        self.turns += 1
        for _ in range(BATCHES_A_TURN):
            self.batch([FIXED[at] for at in self.rng.integers(len(FIXED), size=20)], [])
        chosen = [FIXED[at] for at in self.rng.integers(len(FIXED), size=20)]
        self.batch([*chosen, b"ghost-%d" % self.turns], [b"ghost-%d" % (self.turns - 2)] if self.turns > 2 else [])
        if self.turns % 4 == 0:
            self.save()
            for segment in self.leader.searcher.segments:
                segment.save_dead_rows(1, next(self.names))
            position, digest = self.leader.position, self.leader.digest
            segments = [self.open(segment) for segment in self.leader.searcher.segments]
            if self.turns % 8 == 0:
                self.follower.announce(segments)
            for _ in range(self.turns % 3):
                self.batch([FIXED[at] for at in self.rng.integers(len(FIXED), size=9)], [])
            self.follower.follow(segments, position, 0, digest)
        if self.turns % 12 == 0:
            self.build()

    def build(self) -> None:
        inputs = self.leader.searcher.segments
        dead = {segment.name: segment.dead_mask() for segment in inputs}
        rows = merged(inputs)
        self.batch([FIXED[at] for at in self.rng.integers(len(FIXED), size=20)], [])
        directory = self.directory / f"seg-{next(self.names)}"
        entry = write_segment(directory, rows, "l2", self.parameters, seed=1)
        built = Segment(directory, entry, DIMENSION, "l2")
        self.leader.install(built, [segment.name for segment in inputs], dead)


class Reader:
    def __init__(self, writer: Writer, seed: int) -> None:
        self.writer = writer
        self.rng = np.random.default_rng(seed)
        self.rounds = 0

    def turn(self) -> None:
        self.rounds += 1
        for view in (self.writer.leader, self.writer.follower, self.writer.mirror):
            self.search(view)
            self.get(view)

    def search(self, view: SearchedView) -> None:
        queries = self.rng.normal(size=(1, DIMENSION)).astype(np.float32)
        for k, exact in ((len(FIXED) + 40, True), (10, True), (10, False)):
            answer = searcher.search([view], queries, k, exact=exact)
            position = answer.positions[0]
            hits = answer.hits[0]
            ids = [hit.id for hit in hits]
            assert len(ids) == len(set(ids)), "an id was answered twice"
            if k > len(FIXED):
                assert not set(FIXED) - set(ids), "an id was missing"
            else:
                assert len(ids) == k, "the answer was short"
            for hit in hits:
                self.check(hit, position)

    def get(self, view: SearchedView) -> None:
        id_ = FIXED[int(self.rng.integers(len(FIXED)))]
        position = view.position
        hit = searcher.get([view], id_)
        assert hit is not None, "an id was missing"
        self.check(hit, position)
        for ghost, offset in list(self.writer.deleted.items())[-3:]:
            position = view.position
            if offset < position:
                assert searcher.get([view], ghost) is None, "a deleted id came back"

    def check(self, hit: searcher.Hit, position: int) -> None:
        newest = max((offset for offset in self.writer.written[hit.id][:] if offset < position), default=-1)
        assert hit.offset >= newest, "an older version than that at the position was answered"
        assert not self.writer.deleted.get(hit.id, position) < position, "a deleted id came back"
        assert np.isfinite(hit.vector).all()


@pytest.mark.parametrize("kind", ["ivfpq", "hnsw"])
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
    if failures:
        raise failures[0]
    assert all(reader.rounds for reader in readers)
    assert writer.leader.digest == writer.follower.digest


class Interrupted:
    """A view whose writer takes a step right after the n-th time a reader has looked at `searcher`."""

    def __init__(self, view: View, step: Callable[[], None], look: int = 1) -> None:
        self._view, self._step, self._looks = view, step, look
        self.collection, self.partition = view.collection, view.partition

    @property
    def kills(self) -> int:
        return self._view.kills

    @property
    def searcher(self) -> PartitionSearcher:
        found = self._view.searcher
        self._looks -= 1
        if self._looks == 0:
            self._step()
        return found


def saved_view(directory: Path, ids: int, tail_rows: int = 8) -> View:
    view = View(COLLECTION, 0, tail_rows)
    apply(view, [upsert(at, b"%d" % at, [at, 0, 0, 0]) for at in range(ids)])
    save(view, directory)
    return view


def apply(view: View, messages: Sequence[Message]) -> None:
    view.apply(decode({0: messages}, COLLECTION)[0])


def save(view: View, directory: Path) -> None:
    rows = view.unsaved_rows()
    assert rows is not None
    entry = write_segment(directory, rows, "l2", IndexParameters(kind="flat"), seed=1)
    view.saved(Segment(directory, entry, DIMENSION, "l2"))


ORIGIN = np.zeros((1, DIMENSION), np.float32)


def test_rows_that_went_to_a_new_segment_during_a_search_are_found(tmp_path: Path) -> None:
    view = saved_view(tmp_path / "one", 2, tail_rows=1)

    def move_both_and_save() -> None:
        apply(view, [upsert(2, b"0", [5, 0, 0, 0]), upsert(3, b"1", [6, 0, 0, 0])])
        save(view, tmp_path / "two")

    answer = searcher.search([Interrupted(view, move_both_and_save)], ORIGIN, 10)  # type: ignore[list-item]
    assert [(hit.id, hit.offset) for hit in answer.hits[0]] == [(b"0", 2), (b"1", 3)]


@pytest.mark.parametrize("look", [1, 2, 3])
def test_an_id_that_moves_during_a_search_is_answered_once(tmp_path: Path, look: int) -> None:
    view = saved_view(tmp_path / "one", 3)

    def move() -> None:
        apply(view, [upsert(3, b"0", [9, 0, 0, 0])])

    answer = searcher.search([Interrupted(view, move, look)], ORIGIN, 10)  # type: ignore[list-item]
    assert sorted(hit.id for hit in answer.hits[0]) == [b"0", b"1", b"2"]
    offset = next(hit.offset for hit in answer.hits[0] if hit.id == b"0")
    assert offset == (0 if look == 3 else 3)


def test_of_two_versions_of_an_id_the_newer_is_answered_at_its_own_place() -> None:
    view = View(COLLECTION, 0)
    apply(view, [upsert(at, b"%d" % at, [at, 0, 0, 0]) for at in range(3)])
    # What a reader may see in the middle of `apply`: the new row is there, the old one not yet dead.
    view._append(decode({0: [upsert(3, b"0", [9, 0, 0, 0])]}, COLLECTION)[0])
    hits = searcher.search([view], ORIGIN, 10).hits[0]
    assert [(hit.id, hit.offset) for hit in hits] == [(b"1", 1), (b"2", 2), (b"0", 3)]


def test_two_versions_of_an_id_in_one_tail_do_not_push_another_out() -> None:
    view = View(COLLECTION, 0)
    apply(view, [upsert(at, b"%d" % at, [at, 0, 0, 0]) for at in range(20)])
    view._append(decode({0: [upsert(20 + at, b"%d" % at, [0, at, 0, 0]) for at in range(10)]}, COLLECTION)[0])
    hits = searcher.search([view], ORIGIN, 20).hits[0]
    assert sorted(hit.id for hit in hits) == sorted(b"%d" % at for at in range(20))


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
