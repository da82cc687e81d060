"""Logs of one partition each for tests of views, the segments they are saved as, and what must then be found."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.messages import delete, upsert
from tests.model import Model, Operation
from tests.views import apply, opened, page
from tidemark import searcher
from tidemark.collection import Collection, IndexParameters
from tidemark.mirror import ViewMirror
from tidemark.record import Message
from tidemark.rows import Rows
from tidemark.segment import Segment, merged
from tidemark.segment_files import write_segment
from tidemark.view import View

COLLECTION = Collection(name="c", topic="t", dimension=2, metric="l2")
FLAT = IndexParameters(kind="flat")
ANN = IndexParameters(kind="hnsw", ann_rows_min=64)
QUERY = np.array([[0, 0]], np.float32)


class Log:
    """Messages with ascending offsets; `model(position)` is the truth as of a position."""

    def __init__(self, partition: int = 0) -> None:
        self.partition = partition
        self.messages: list[Message] = []
        self.operations: list[Operation] = []

    @property
    def end(self) -> int:
        return len(self.messages)

    def put(self, id_: bytes, x: float) -> Message:
        vector = np.array([x, 1], np.float32)
        self.operations.append(Operation(self.end, id_, vector, None))
        self.messages.append(upsert(self.end, id_, vector, partition=self.partition))
        return self.messages[-1]

    def drop(self, id_: bytes) -> Message:
        self.operations.append(Operation(self.end, id_, None))
        self.messages.append(delete(self.end, id_, self.partition))
        return self.messages[-1]

    def fill(self, count: int, ids: int, seed: int = 0) -> list[Message]:
        """So many records over so few ids, one in five a delete."""
        rng = np.random.default_rng(seed)
        return [
            self.drop(b"%d" % id_) if what == 0 else self.put(b"%d" % id_, float(rng.integers(100)))
            for id_, what in zip(rng.integers(ids, size=count), rng.integers(5, size=count), strict=True)
        ]

    def model(self, position: int) -> Model:
        return Model().apply(operation for operation in self.operations if operation.offset < position)

    def between(self, start: int, stop: int) -> list[Message]:
        return self.messages[start:stop]


class Disk:
    """Segment directories, with the checkpoints that manifests would name."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.numbers = itertools.count(1)

    def write(self, rows: Rows, parameters: IndexParameters = FLAT, partition: int = 0) -> Segment:
        directory = self.directory / f"seg-{next(self.numbers)}"
        entry = write_segment(directory, rows, "l2", parameters, seed=1)
        return Segment(directory, entry, rows.vectors.shape[1], "l2", partition)

    def save(self, view: View, partition: int = 0) -> None:
        rows = view.unsaved_rows(partition)
        view.saved(partition, None if rows is None else self.write(rows, partition=partition))

    def checkpoint(self, view: View, partition: int = 0) -> "Checkpoint":
        self.save(view, partition)
        for segment in view.partitions[partition].segments:
            segment.save_dead_rows(1, next(self.numbers))
        return Checkpoint(view, partition)


class Checkpoint:
    def __init__(self, view: View, partition: int = 0) -> None:
        state = view.partitions[partition]
        self.partition, self.dimension = partition, view.collection.dimension
        self.position, self.leader_epoch, self.digest = state.position, state.leader_epoch, state.digest
        self.entries = [(segment.directory, segment.entry) for segment in state.segments]

    def segments(self) -> list[Segment]:
        return [Segment(directory, entry, self.dimension, "l2", self.partition) for directory, entry in self.entries]


def view_of(tail_rows: int = 4) -> View:
    return opened(COLLECTION, tail_rows=tail_rows)


def follow(view: View, checkpoint: Checkpoint, segments: Sequence[Segment] | None = None, **kept: Any) -> None:
    taken = checkpoint.segments() if segments is None else segments
    place = (checkpoint.position, checkpoint.leader_epoch, checkpoint.digest)
    view.follow(checkpoint.partition, taken, *place, **kept)


def build(view: View, disk: Disk, names: list[str], meanwhile: Sequence[Message] = ()) -> None:
    """Build the named segments into one, as a builder would; some messages arrive before it is installed."""
    inputs = [segment for segment in view.segments if segment.name in names]
    dead = {segment.name: segment.dead_mask() for segment in inputs}
    rows = merged(inputs)
    if meanwhile:
        apply(view, meanwhile)
    view.install(0, disk.write(rows, ANN) if len(rows) else None, [segment.name for segment in inputs], dead)


def assert_is(view: View, model: Model, partition: int = 0) -> None:
    """A partition's ids, vectors, offsets, counts and digest are the model's, by scan, get and search."""
    mirror, state = ViewMirror(view.collection, view.place), view.partitions[partition]
    hits = [hit for hit in page(mirror, None, 10**6) if hit.partition == partition]
    assert len(hits) == len({hit.id for hit in hits})
    assert {hit.id: (hit.offset, hit.vector.tolist()) for hit in hits} == {
        id_: (row.offset, [] if row.vector is None else row.vector.tolist()) for id_, row in model.rows.items()
    }
    assert [hit.offset for hit in hits] == sorted(hit.offset for hit in hits)
    assert view.holding(partition, list(model.rows)) == set(model.rows)
    for exact in (True, False):
        answer = searcher.search(mirror, QUERY, 1_000, exact=exact)
        found = [hit for hit in answer.hits[0] if hit.partition == partition]
        assert sorted(hit.id for hit in found) == sorted(model.rows)
        assert [hit.distance for hit in found] == model.nearest(QUERY[0], 1_000)
        assert answer.positions[partition] == state.position
    if len(view.partitions) == 1:
        for id_ in model.rows:
            hit = searcher.get(mirror, id_)
            assert hit is not None
            assert (hit.id, hit.offset) == (id_, model.rows[id_].offset)
    assert state.live_rows == len(model.rows)
    assert state.digest == model.digest
    assert state.dead_rows == state.tail_rows + sum(segment.row_count for segment in state.segments) - len(model.rows)
