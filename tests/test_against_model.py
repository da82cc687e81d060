"""Leaders and a follower against dicts: any order of their verbs leaves what the logs say, no more, no less.

There is a leader for each partition, as in consumers: it applies each batch at once, saves, builds in two steps and
is reopened. The follower has one view of all partitions, as in a replica: it applies the same logs later, in other
batches, takes over the leaders' checkpoints whenever it likes, and codes rows, by quantizers that come and go.
Another process's side of each view, a mirror, is what is searched.
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from numpy.typing import NDArray

from tests.messages import delete, message, raw_bytes, upsert
from tests.model import Model, Operation, squared_distance
from tests.views import codes_made, page, quantizer_of
from tidemark import searcher
from tidemark.collection import Collection, IndexKind, IndexParameters
from tidemark.collection_index import CollectionIndex
from tidemark.manifest import SegmentEntry
from tidemark.mirror import ViewMirror
from tidemark.record import Message, decode
from tidemark.rows import Rows
from tidemark.segment import Segment, merged
from tidemark.segment_files import write_segment
from tidemark.view import View

DIMENSION = 3
COLLECTION = Collection(name="c", topic="t", dimension=DIMENSION, metric="l2")
FLAT = IndexParameters(kind="flat")
IDS = 160
PARTITIONS = (0, 3)
TAIL_ROWS = 32
BAD_VALUES = (b"", b"short", raw_bytes([1, float("nan"), 1]), b'{"vector": [1]}')


def id_of(number: int) -> bytes:
    return b"id-%d" % number if number % 5 else b"id-%d\0" % number


def partition_of(number: int) -> int:
    return PARTITIONS[number % 3 == 0]


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


class Leader:
    """The view of one partition and what it has written."""

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.messages: list[Message] = []
        self.operations: list[Operation] = []
        self.offset = 0
        self.checkpoints = [Checkpoint(0, -1, 0, [])]
        self.build: Build | None = None
        self.open([])

    def open(self, segments: list[Segment]) -> None:
        last = self.checkpoints[-1]
        self.view = View(COLLECTION, shared=True, tail_rows=TAIL_ROWS)
        self.state = self.view.open(self.partition, segments, last.position, last.leader_epoch, last.digest)
        self.mirror = ViewMirror(COLLECTION, self.view.place)

    def between(self, start: int, stop: int) -> list[Message]:
        return [one for one in self.messages if start <= (one.offset() or 0) < stop]

    def model(self, position: int) -> Model:
        return Model().apply(operation for operation in self.operations if operation.offset < position)

    def applies(self) -> None:
        if new := self.between(self.state.position, self.offset):
            self.view.apply(decode({self.partition: new}, COLLECTION)[0])

    def next(self) -> None:
        self.offset += 3 if self.offset % 13 == 0 else 1


class ManyViews(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="tidemark-"))
        self.names = 0
        self.touched: set[bytes] = {id_of(0)}
        self.leaders = {partition: Leader(partition) for partition in PARTITIONS}
        self.follower = View(COLLECTION, shared=True, tail_rows=TAIL_ROWS)
        for partition in PARTITIONS:
            self.follower.open(partition, [], 0, -1, 0)
        self.index = CollectionIndex(self.follower, 0.97, ann_rows_min=64, coded_rows_min=5, dead_min=16)
        self.mirror = ViewMirror(COLLECTION, self.follower.place)
        self.checked: dict[str, object] = {}

    def teardown(self) -> None:
        self.index.close()
        shutil.rmtree(self.directory)

    # -- the logs ------------------------------------------------------------------------------------------

    def _upsert(self, number: int, salt: int) -> None:
        leader, id_, vector = self._leader(number), id_of(number), vector_of(number, salt)
        metadata = b'{"salt":%d}' % salt if salt % 2 else None
        leader.messages.append(upsert(leader.offset, id_, vector, metadata, leader.partition))
        leader.operations.append(Operation(leader.offset, id_, vector, metadata))
        leader.next()

    def _delete(self, number: int) -> None:
        leader, id_ = self._leader(number), id_of(number)
        leader.messages.append(delete(leader.offset, id_, leader.partition))
        leader.operations.append(Operation(leader.offset, id_, None))
        leader.next()

    def _bad(self, number: int, sort: int) -> None:
        leader = self._leader(number)
        key = id_of(number) if sort else None
        leader.messages.append(message(leader.offset, key, BAD_VALUES[sort], partition=leader.partition))
        leader.next()

    def _leader(self, number: int) -> Leader:
        self.touched.add(id_of(number))
        return self.leaders[partition_of(number)]

    def _leaders_apply(self) -> None:
        for leader in self.leaders.values():
            leader.applies()

    @rule(numbers=st.lists(st.integers(0, IDS - 1), min_size=1, max_size=12), salt=st.integers(0, 50))
    def upserts(self, numbers: list[int], salt: int) -> None:
        for step, number in enumerate(numbers):
            self._upsert(number, salt + step)
        self._leaders_apply()

    @rule(first=st.integers(0, IDS - 1), count=st.integers(30, 100), salt=st.integers(0, 50))
    def upserts_in_bulk(self, first: int, count: int, salt: int) -> None:
        for number in range(first, first + count):
            self._upsert(number % IDS, salt)
        self._leaders_apply()

    @rule(numbers=st.lists(st.integers(0, IDS - 1), min_size=1, max_size=30))
    def deletes(self, numbers: list[int]) -> None:
        for number in numbers:
            self._delete(number)
        self._leaders_apply()

    @rule(records=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=20))
    def all_sorts_over_few_ids(self, records: list[tuple[int, int, int]]) -> None:
        for number, sort, salt in records:
            if sort == 0:
                self._delete(number)
            elif sort == 1:
                self._bad(number, salt % len(BAD_VALUES))
            else:
                self._upsert(number, salt)
        self._leaders_apply()

    @rule(numbers=st.lists(st.integers(0, IDS - 1), min_size=1, max_size=3))
    def bad_records_only(self, numbers: list[int]) -> None:
        for number in numbers:
            self._bad(number, number % len(BAD_VALUES))
        self._leaders_apply()

    @initialize(many=st.sampled_from([True, True, True, False]))
    def begins_with_rows_and_a_quantizer(self, many: bool) -> None:
        if many:
            for first in range(0, 150, 10):
                self.upserts_in_bulk(first, 10, first // 5)
            self.follower_applies(200, PARTITIONS, False)
            self.a_quantizer_is_made(0)
            self.follower_codes()

    # -- the leaders ---------------------------------------------------------------------------------------

    def _name(self) -> str:
        self.names += 1
        return f"seg-{self.names}"

    def _write(self, leader: Leader, rows: Rows, parameters: IndexParameters) -> Segment:
        entry = write_segment(self.directory / self._name(), rows, "l2", parameters, seed=self.names)
        return self._open(leader, entry)

    def _open(self, leader: Leader, entry: SegmentEntry) -> Segment:
        return Segment(self.directory / entry.name, entry, DIMENSION, "l2", leader.partition)

    @rule(which=st.sampled_from(PARTITIONS))
    def save(self, which: int) -> None:
        leader = self.leaders[which]
        rows = leader.view.unsaved_rows(which)
        leader.view.saved(which, None if rows is None else self._write(leader, rows, FLAT))

    @rule(which=st.sampled_from(PARTITIONS))
    def checkpoint(self, which: int) -> None:
        self.save(which)
        self.names += 1
        state = self.leaders[which].state
        for segment in state.segments:
            segment.save_dead_rows(1, self.names)
        entries = [segment.entry for segment in state.segments]
        checkpoint = Checkpoint(state.position, state.leader_epoch, state.digest, entries)
        self.leaders[which].checkpoints.append(checkpoint)

    @rule(
        which=st.sampled_from(PARTITIONS),
        chosen=st.sets(st.integers(0, 5), min_size=1),
        kind=st.sampled_from(["ivfpq", "hnsw", "flat"]),
    )
    def start_build(self, which: int, chosen: set[int], kind: IndexKind) -> None:
        leader = self.leaders[which]
        segments = leader.state.segments
        if leader.build is not None or not segments:
            return
        inputs = [segment for at, segment in enumerate(segments) if at in {one % len(segments) for one in chosen}]
        leader.build = Build(
            inputs=[segment.name for segment in inputs],
            dead={segment.name: segment.dead_mask() for segment in inputs},
            rows=merged(inputs),
            kind=kind,
        )

    @rule(which=st.sampled_from(PARTITIONS))
    def finish_build(self, which: int) -> None:
        leader = self.leaders[which]
        if leader.build is None:
            return
        build, leader.build = leader.build, None
        parameters = IndexParameters(kind=build.kind, ann_rows_min=64)
        built = self._write(leader, build.rows, parameters) if len(build.rows) else None
        leader.view.install(which, built, build.inputs, build.dead)

    @rule(which=st.sampled_from(PARTITIONS))
    def reopen(self, which: int) -> None:
        """The process ended: its memory and its build are gone, the log is replayed from the checkpoint."""
        leader = self.leaders[which]
        leader.build = None
        leader.open([self._open(leader, entry) for entry in leader.checkpoints[-1].entries])
        leader.applies()

    # -- the follower --------------------------------------------------------------------------------------

    @rule(records=st.integers(1, 150), which=st.sampled_from([(0,), (3,), PARTITIONS]), coded=st.booleans())
    def follower_applies(self, records: int, which: tuple[int, ...], coded: bool) -> None:
        runs = {
            partition: new[:records]
            for partition in which
            if (new := self.leaders[partition].between(self._position(partition), self.leaders[partition].offset))
        }
        if runs:
            self.follower.apply(decode(runs, COLLECTION)[0])
        if coded:
            codes_made(self.index)

    def _position(self, partition: int) -> int:
        return self.follower.partitions[partition].position

    @rule(which=st.sampled_from(PARTITIONS), back=st.integers(0, 2), kept=st.integers(0, 100), early=st.booleans())
    def follower_follows(self, which: int, back: int, kept: int, early: bool) -> None:
        leader = self.leaders[which]
        taken = leader.checkpoints[max(0, len(leader.checkpoints) - 1 - back)]
        known = {segment.name: segment for segment in self.follower.partitions[which].segments}
        ahead = self._position(which) < taken.position
        segments = [
            self._open(leader, entry) if ahead or entry.name not in known else known[entry.name]
            for entry in taken.entries
        ]
        if early:
            self.follower.prepare(segments)
            self.follower.announce([segment for segment in segments if segment not in known.values()])
            self.index.want(segments)
            codes_made(self.index)
        self.follower.follow(which, segments, taken.position, taken.leader_epoch, taken.digest, kept_rows_max=kept)
        self.follower.forget(segments)
        self.follower.announce([])
        self.index.want([])

    @rule(seed=st.integers(0, 5))
    def a_quantizer_is_made(self, seed: int) -> None:
        quantizer = quantizer_of(self.follower, seed)
        if quantizer is not None:
            self.index.offer((self.index.version or 0) + 1, quantizer)

    @rule()
    def follower_codes(self) -> None:
        codes_made(self.index)

    @rule()
    def follower_gives_memory_back(self) -> None:
        self.follower.move_few()

    # -- what must hold ------------------------------------------------------------------------------------

    @invariant()
    def the_leaders_are_what_the_logs_say(self) -> None:
        for leader in self.leaders.values():
            self._check(leader.view, leader.mirror, {leader.partition})
            assert not leader.messages or leader.state.position == (leader.messages[-1].offset() or 0) + 1

    @invariant()
    def the_follower_is_what_the_logs_say_at_its_positions(self) -> None:
        self._check(self.follower, self.mirror, set(PARTITIONS))
        self.touched = set(sorted(self.touched)[:1])

    def _check(self, view: View, mirror: ViewMirror, partitions: set[int]) -> None:
        coded = self.index.lists.coded if view is self.follower and self.index.lists else 0
        state = (mirror.place, mirror.kills, mirror.moves, mirror.positions, mirror.snapshot(), coded)
        if self.checked.get(str(partitions)) == state:
            return
        self.checked[str(partitions)] = state
        models = {p: self.leaders[p].model(view.partitions[p].position) for p in partitions}
        hits = {(hit.partition, hit.id): hit for hit in page(mirror, None, 10 * IDS)}
        assert {place: (hit.offset, hit.vector.tolist(), hit.metadata) for place, hit in hits.items()} == {
            (p, id_): (row.offset, [] if row.vector is None else row.vector.tolist(), row.metadata)
            for p, model in models.items()
            for id_, row in model.rows.items()
        }
        for p, model in models.items():
            assert view.partitions[p].live_rows == len(model.rows)
            assert view.partitions[p].digest == model.digest
        together = Model({id_: row for model in models.values() for id_, row in model.rows.items()})
        for id_ in sorted(self.touched)[:20]:
            hit = searcher.get(mirror, id_)
            assert (None if hit is None else hit.offset) == (
                together.rows[id_].offset if id_ in together.rows else None
            )
        queries = np.array([[3, 2, 1], [0, 0, 0]], np.float32)
        positions = {p: view.partitions[p].position for p in partitions}
        for k in (1, 10, 10 * IDS):
            self._check_search(mirror, together, positions, queries, k)

    def _check_search(
        self, mirror: ViewMirror, model: Model, positions: dict[int, int], queries: NDArray[np.float32], k: int
    ) -> None:
        for exact in (True, False):
            answer = searcher.search(mirror, queries, k, exact=exact)
            assert answer.positions == positions
            for query, line in zip(queries, answer.hits, strict=True):
                assert len({hit.id for hit in line}) == len(line) == min(k, len(model.rows))
                distances = [hit.distance for hit in line]
                assert distances == [squared_distance(model.rows[hit.id], query) for hit in line]
                if exact:
                    assert distances == model.nearest(query, k)


ManyViews.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestManyViews = ManyViews.TestCase
