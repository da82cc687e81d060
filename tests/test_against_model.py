"""A leader and a follower against a dict: any order of their verbs leaves what the log says, no more, no less.

The leader applies each batch at once, saves, builds in two steps and is reopened; the follower applies the
same log later, in other batches, and takes over the leader's checkpoints whenever it likes.
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from numpy.typing import NDArray

from tests.messages import delete, message, raw_bytes, upsert
from tests.model import Model, Operation, squared_distance
from tidemark import searcher
from tidemark.collection import Collection, IndexKind, IndexParameters
from tidemark.manifest import SegmentEntry
from tidemark.record import Message, decode
from tidemark.rows import Rows
from tidemark.segment import Segment, merged
from tidemark.segment_files import write_segment
from tidemark.view import View

DIMENSION = 3
COLLECTION = Collection(name="c", topic="t", dimension=DIMENSION, metric="l2")
FLAT = IndexParameters(kind="flat")
IDS = 160
TAIL_ROWS = 32
BAD_VALUES = (b"", b"short", raw_bytes([1, float("nan"), 1]), b'{"vector": [1]}')


def id_of(number: int) -> bytes:
    return b"id-%d" % number if number % 5 else b"id-%d\0" % number


def vector_of(number: int, salt: int) -> NDArray[np.float32]:
    """Whole numbers, so that float32 distances are exact; many are equal."""
    return np.array([(number * 7 + salt) % 11, (number + salt * 3) % 5, salt % 3], np.float32)


@dataclass(frozen=True)
class Checkpoint:
    position: int
    leader_epoch: int
    digest: int
    entries: list[SegmentEntry]


@dataclass(frozen=True)
class Build:
    inputs: list[str]
    dead: dict[str, NDArray[np.bool_]]
    rows: Rows
    kind: IndexKind


class TwoViews(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="tidemark-"))
        self.messages: list[Message] = []
        self.operations: list[Operation] = []
        self.offset = 0
        self.names = 0
        self.checkpoints = [Checkpoint(0, -1, 0, [])]
        self.build: Build | None = None
        self.touched: set[bytes] = {id_of(0)}
        self.leader = View(COLLECTION, 0, TAIL_ROWS)
        self.follower = View(COLLECTION, 0, TAIL_ROWS)
        self.checked: dict[str, object] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.directory)

    # -- the log -------------------------------------------------------------------------------------------

    def _upsert(self, number: int, salt: int) -> None:
        id_, vector = id_of(number), vector_of(number, salt)
        metadata = b'{"salt":%d}' % salt if salt % 2 else None
        self.messages.append(upsert(self.offset, id_, vector, metadata))
        self.operations.append(Operation(self.offset, id_, vector, metadata))
        self._next(id_)

    def _delete(self, number: int) -> None:
        id_ = id_of(number)
        self.messages.append(delete(self.offset, id_))
        self.operations.append(Operation(self.offset, id_, None))
        self._next(id_)

    def _bad(self, number: int, sort: int) -> None:
        self.messages.append(message(self.offset, id_of(number) if sort else None, BAD_VALUES[sort]))
        self._next(id_of(number))

    def _next(self, id_: bytes) -> None:
        self.touched.add(id_)
        self.offset += 3 if self.offset % 13 == 0 else 1

    def _between(self, start: int, stop: int) -> list[Message]:
        return [one for one in self.messages if start <= (one.offset() or 0) < stop]

    def _model(self, position: int) -> Model:
        return Model().apply(operation for operation in self.operations if operation.offset < position)

    def _leader_applies(self) -> None:
        if new := self._between(self.leader.position, self.offset):
            self.leader.apply(decode({0: new}, COLLECTION)[0])

    @rule(numbers=st.lists(st.integers(0, IDS - 1), min_size=1, max_size=12), salt=st.integers(0, 50))
    def upserts(self, numbers: list[int], salt: int) -> None:
        for step, number in enumerate(numbers):
            self._upsert(number, salt + step)
        self._leader_applies()

    @rule(first=st.integers(0, IDS - 1), count=st.integers(30, 100), salt=st.integers(0, 50))
    def upserts_in_bulk(self, first: int, count: int, salt: int) -> None:
        for number in range(first, first + count):
            self._upsert(number % IDS, salt)
        self._leader_applies()

    @rule(numbers=st.lists(st.integers(0, IDS - 1), min_size=1, max_size=30))
    def deletes(self, numbers: list[int]) -> None:
        for number in numbers:
            self._delete(number)
        self._leader_applies()

    @rule(records=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=20))
    def all_sorts_over_few_ids(self, records: list[tuple[int, int, int]]) -> None:
        for number, sort, salt in records:
            if sort == 0:
                self._delete(number)
            elif sort == 1:
                self._bad(number, salt % len(BAD_VALUES))
            else:
                self._upsert(number, salt)
        self._leader_applies()

    @rule(numbers=st.lists(st.integers(0, IDS - 1), min_size=1, max_size=3))
    def bad_records_only(self, numbers: list[int]) -> None:
        for number in numbers:
            self._bad(number, number % len(BAD_VALUES))
        self._leader_applies()

    # -- the leader ----------------------------------------------------------------------------------------

    def _name(self) -> str:
        self.names += 1
        return f"seg-{self.names}"

    def _write(self, rows: Rows, parameters: IndexParameters) -> Segment:
        return self._open(write_segment(self.directory / self._name(), rows, "l2", parameters, seed=self.names))

    def _open(self, entry: SegmentEntry) -> Segment:
        return Segment(self.directory / entry.name, entry, DIMENSION, "l2")

    @rule()
    def save(self) -> None:
        rows = self.leader.unsaved_rows()
        self.leader.saved(None if rows is None else self._write(rows, FLAT))

    @rule()
    def checkpoint(self) -> None:
        self.save()
        self.names += 1
        for segment in self.leader.searcher.segments:
            segment.save_dead_rows(1, self.names)
        entries = [segment.entry for segment in self.leader.searcher.segments]
        leader = self.leader
        self.checkpoints.append(Checkpoint(leader.position, leader.leader_epoch, leader.digest, entries))

    @precondition(lambda self: self.build is None and self.leader.searcher.segments)
    @rule(chosen=st.sets(st.integers(0, 5), min_size=1), kind=st.sampled_from(["ivfpq", "hnsw", "flat"]))
    def start_build(self, chosen: set[int], kind: IndexKind) -> None:
        segments = self.leader.searcher.segments
        inputs = [segment for at, segment in enumerate(segments) if at in {one % len(segments) for one in chosen}]
        self.build = Build(
            inputs=[segment.name for segment in inputs],
            dead={segment.name: segment.dead_mask() for segment in inputs},
            rows=merged(inputs),
            kind=kind,
        )

    @precondition(lambda self: self.build is not None)
    @rule()
    def finish_build(self) -> None:
        assert self.build is not None
        build, self.build = self.build, None
        parameters = IndexParameters(kind=build.kind, ann_rows_min=64)
        built = self._write(build.rows, parameters) if len(build.rows) else None
        self.leader.install(built, build.inputs, build.dead)

    @rule()
    def reopen(self) -> None:
        """The process ended: its memory and its build are gone, the log is replayed from the checkpoint."""
        last = self.checkpoints[-1]
        self.build = None
        self.leader = View(COLLECTION, 0, TAIL_ROWS)
        self.leader.open([self._open(entry) for entry in last.entries], last.position, last.leader_epoch, last.digest)
        self._leader_applies()

    # -- the follower --------------------------------------------------------------------------------------

    @rule(records=st.integers(1, 150))
    def follower_applies(self, records: int) -> None:
        if new := self._between(self.follower.position, self.offset)[:records]:
            self.follower.apply(decode({0: new}, COLLECTION)[0])

    @rule(back=st.integers(0, 2))
    def follower_follows(self, back: int) -> None:
        taken = self.checkpoints[max(0, len(self.checkpoints) - 1 - back)]
        segments = [self._open(entry) for entry in taken.entries]
        self.follower.follow(segments, taken.position, taken.leader_epoch, taken.digest)

    # -- what must hold ------------------------------------------------------------------------------------

    @invariant()
    def the_leader_is_what_the_log_says(self) -> None:
        self._check("leader", self.leader)
        assert not self.messages or self.leader.position == (self.messages[-1].offset() or 0) + 1

    @invariant()
    def the_follower_is_what_the_log_says_at_its_position(self) -> None:
        self._check("follower", self.follower)
        self.touched = set(sorted(self.touched)[:1])

    def _check(self, name: str, view: View) -> None:
        if self.checked.get(name) is view.searcher:
            return
        self.checked[name] = view.searcher
        model = self._model(view.position)
        hits = {hit.id: hit for hit in searcher.scan([view], None, 10 * IDS)}
        assert {id_: (hit.offset, hit.vector.tolist(), hit.metadata) for id_, hit in hits.items()} == {
            id_: (row.offset, [] if row.vector is None else row.vector.tolist(), row.metadata)
            for id_, row in model.rows.items()
        }
        assert view.live_rows == len(model.rows)
        assert view.digest == model.digest
        for id_ in sorted(self.touched)[:20]:
            hit = searcher.get([view], id_)
            assert (None if hit is None else hit.offset) == (model.rows[id_].offset if id_ in model.rows else None)
        queries = np.array([[3, 2, 1], [0, 0, 0]], np.float32)
        for k in (1, 10, 10 * IDS):
            self._check_search(view, model, queries, k)

    def _check_search(self, view: View, model: Model, queries: NDArray[np.float32], k: int) -> None:
        for exact in (True, False):
            answer = searcher.search([view], queries, k, exact=exact)
            assert answer.positions == {0: view.position}
            for query, line in zip(queries, answer.hits, strict=True):
                assert len({hit.id for hit in line}) == len(line) == min(k, len(model.rows))
                distances = [hit.distance for hit in line]
                assert distances == [squared_distance(model.rows[hit.id], query) for hit in line]
                if exact:
                    assert distances == model.nearest(query, k)


TwoViews.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
test_two_views_against_the_model = TwoViews.TestCase
