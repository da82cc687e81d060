"""The view of one partition: what its log says, as rows that can be searched.

    apply:   find old rows -> append to the tail (visible) -> kill old rows -> publish the new position
    seal:    a full tail gets no more rows, a new one takes over
    save:    all tails become one flat segment on disk (consumer, at a checkpoint)
    install: a built segment takes the place of the segments it was built from (consumer)
    follow:  the segments of a new manifest take the place of ours (api)

Invariants: one thread calls these; any number search, through `searcher`, which is replaced by one
assignment and never changed. A new row is visible before the row it replaces is killed, and a position is
published only after its kills, so a search finds an id's newest version at its position, once.
Knows nothing of Kafka, manifests or HTTP. Reading is in `searcher.py`.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidemark.collection import Collection
from tidemark.record import Batch, hash_ids
from tidemark.rows import Rows, concatenate
from tidemark.segment import Segment
from tidemark.shared_memory import Document, Region, fence, room
from tidemark.snapshot import (
    KILLS,
    POSITION,
    WORDS,
    PartitionSearcher,
    SearchedView,
    SegmentPlace,
    Structure,
    ViewPlace,
)
from tidemark.tail import Tail

# Memory of a tail, taken as it fills: up to 128-d the rows of a checkpoint (131,072) and the batch that ends it, which
# are written as they lie. Each part of a view costs a search 0.1 ms whatever is in it, so a view that is searched by
# other processes has fewer and larger tails, in which rows stay until an index holds them.
TAIL_BYTES, SHARED_TAIL_BYTES = 65 * 2**20, 325 * 2**20
TAIL_ROWS_MIN, TAIL_ROWS_MAX = 1_024, 665_600
# 2,048 rows of 128-d are scanned exactly in 20 to 40 us.
ENCODED_NUMBERS = 2_048 * 128
# Rows of a tail that an index holds by now, at which new rows go to another one: it is memory.
PASSED_OVER_MAX = 131_072
# When new rows are unlike those that a tail's codes were trained on they are scanned exactly up to this number, and
# get another tail beyond it.
DRIFTED_ROWS_MIN = 32_768
DIGEST_MODULUS = 2**64
# What CPython takes for a row's entry in the dictionary of recent ids, and for a delete beside its id.
RECENT_BYTES, DELETE_BYTES = 160, 112


class View(SearchedView):
    """One partition of a collection; see the module's docstring for its verbs. `shared`: see `snapshot.py`.

    `kept_rows_max`: rows of segments without an index that may stay in the tails (see `follow`).
    """

    def __init__(
        self,
        collection: Collection,
        partition: int,
        tail_rows: int | None = None,
        shared: bool = False,
        kept_rows_max: int | None = None,
    ) -> None:
        self._region = Region(room(np.int64, WORDS), shared)
        super().__init__(collection, partition, self._region)
        self._structure = Document() if shared else None
        self.digest = 0
        self.leader_epoch = -1
        tail_bytes = SHARED_TAIL_BYTES if shared else TAIL_BYTES
        self._tail_rows = tail_rows or min(TAIL_ROWS_MAX, max(TAIL_ROWS_MIN, tail_bytes // collection.row_bytes))
        self._kept_rows_max = min(self._tail_rows, kept_rows_max or self._tail_rows)
        self._recent: dict[bytes, int] = {}
        self._deletes: list[tuple[int, bytes]] = []
        self._delete_bytes = 0
        self._checkpoint = 0  # `_deletes` has all that was deleted from this position on
        self._held_from = 0  # the tails hold all rows applied from this position on
        self._show(PartitionSearcher((), (self._new_tail(0),), 0))

    @property
    def place(self) -> ViewPlace:
        """Where another process finds this view."""
        assert self._region.name is not None and self._structure is not None
        return ViewPlace(self.partition, self._region.name, self._structure.name)

    @property
    def kept_deletes(self) -> int:
        """Deletes that no checkpoint holds yet: they are kept in memory as rows are."""
        return len(self._deletes)

    @property
    def tail_bytes(self) -> int:
        """Memory of what no checkpoint (in a follower: no index) holds yet: rows, their ids and metadata, deletes.

        Costs microseconds; for the thread that applies. Rows of a tail that are passed over are not counted, though
        their memory is given back only with their tail.
        """
        tails = self.searcher.tails
        rows = sum(tail.memory_from(tail.first) for tail in tails) + RECENT_BYTES * sum(tail.count for tail in tails)
        return rows + self._delete_bytes

    def _show(self, searcher: PartitionSearcher) -> None:
        """Make a snapshot what searches see, here and in other processes: first what is in it, then its position."""
        before = getattr(self, "searcher", None)
        self.searcher = searcher
        if before is None or searcher.segments is not before.segments or searcher.tails is not before.tails:
            self.announce(())
        fence()
        self._words[POSITION] = searcher.position

    def _change(self, **changes: Any) -> None:
        self._show(self.searcher._replace(**changes))

    def announce(self, coming: Sequence[Segment]) -> None:
        """Tell other processes the structure, and segments that they may open already."""
        if self._structure is not None:
            structure = Structure(
                [_place(segment) for segment in self.searcher.segments],
                [tail.place for tail in self.searcher.tails],
                [_place(segment) for segment in coming],
            )
            self._structure.write(msgspec.json.encode(structure))

    def _new_tail(self, base: int) -> Tail:
        return Tail(self.collection.dimension, self._tail_rows, base, self._region.name is not None)

    # -- apply ---------------------------------------------------------------------------------------------

    def apply(self, batch: Batch) -> None:
        """Make a batch visible to the next search; its records start at or after our position."""
        ids = batch.ids + batch.deleted_ids
        (position,), (leader_epoch,) = batch.positions.values(), batch.leader_epochs.values()
        start = self.searcher.tails[0].start
        old_recent: list[int] = []
        if not self._recent.keys().isdisjoint(ids):
            old_recent = [row for row in map(self._recent.get, ids) if row is not None and row >= start]
        old_in_segments = self._find(np.concatenate([batch.hashes, batch.deleted_hashes]), ids)
        self._append(batch)
        for id_ in batch.deleted_ids:
            self._recent.pop(id_, None)
        self._deletes += [(position, id_) for id_ in batch.deleted_ids]
        self._delete_bytes += _bytes_of(batch.deleted_ids)
        fence()
        self._words[KILLS] += 1  # after the rows are visible, before the first kill: see searcher.py
        fence()
        self._kill(old_recent, old_in_segments)
        if len(batch.digests):
            self.digest = (self.digest + int(batch.digests.sum())) % DIGEST_MODULUS
        self.leader_epoch = leader_epoch
        self._change(position=position)

    def _find(self, hashes: NDArray[np.uint64], ids: list[bytes]) -> list[tuple[Segment, NDArray[np.int64]]]:
        """The live rows of our segments that hold one of the ids.

        Looked up in the order of their hashes: each search goes on where the one before ended, in the same pages.
        """
        if not self.searcher.segments:
            return []
        order = np.argsort(hashes)
        hashes, ordered = hashes[order], _Ordered(ids, order)
        found = ((segment, segment.find(hashes, ordered)) for segment in self.searcher.segments)
        return [(segment, rows) for segment, rows in found if len(rows)]

    def holding(self, ids: list[bytes]) -> set[bytes]:
        """Those of the ids that live here; for the thread that applies."""
        if not ids:
            return set()
        start = self.searcher.tails[0].start
        found = {id_ for id_ in ids if self._recent.get(id_, -1) >= start}
        for segment, rows in self._find(hash_ids(ids), ids):
            found.update(segment.id_of(row) for row in rows.tolist())
        return found

    @property
    def uncoded(self) -> int:
        """Rows of the tail that has most of them without codes; few are not worth it."""
        if self.collection.index.kind == "flat":
            return 0
        rows = max(tail.uncoded for tail in self.searcher.tails)
        return rows if rows >= max(TAIL_ROWS_MIN, ENCODED_NUMBERS // self.collection.dimension) else 0

    def codes_wanted(self) -> Callable[[], None] | None:
        """A piece of work, for any thread, that gives codes to rows in memory; None when there is nothing to do.

        Scans of them then cost a twentieth, for 3 us a row. The work before must have ended.
        """
        last = self.searcher.tails[-1]
        if last.has_drifted and last.rows >= DRIFTED_ROWS_MIN:
            self._change(tails=(*self.searcher.tails, self._new_tail(last.base + last.rows)))
        if not self.uncoded:
            return None
        tail = max(self.searcher.tails, key=lambda tail: tail.uncoded)
        return partial(tail.encode, self.collection.metric, self.collection.index.recall_target)

    def advance(self, position: int) -> None:
        """Move over offsets that hold no records: transaction markers, compacted ends, bad records."""
        if position > self.position:
            self._change(position=position)
            self.leader_epoch = -1  # that of the last record ended before this position, if a leader came in between

    def note_leader_epoch(self, end: int, leader_epoch: int) -> bool:
        """Take the newest leader epoch of a log that ends where we are, when ours is not known; True when it was so."""
        if self.leader_epoch >= 0 or end != self.position:
            return False
        self.leader_epoch = leader_epoch
        return leader_epoch >= 0

    def _append(self, batch: Batch) -> None:
        tail = self.searcher.tails[-1]
        first, count = tail.base + tail.rows, len(batch.ids)
        done = tail.append(batch, 0)
        while done < count:
            tail = self._new_tail(first + done)
            self._change(tails=(*self.searcher.tails, tail))
            done = tail.append(batch, done)
        self._recent.update(zip(batch.ids, range(first, first + count), strict=True))

    def _kill(self, recent: list[int], in_segments: Sequence[tuple[Segment, NDArray[np.int64]]]) -> None:
        killed = 0
        if recent:
            numbers = np.sort(np.array(recent, np.int64))
            for tail in self.searcher.tails:
                first, last = np.searchsorted(numbers, (tail.base, tail.base + tail.rows))
                if last > first:
                    killed += tail.kill(numbers[first:last] - tail.base)
        for segment, rows in in_segments:
            killed += segment.kill(rows)
        self.digest = (self.digest - killed) % DIGEST_MODULUS

    # -- save and install (the consumer) -------------------------------------------------------------------

    def unsaved_rows(self) -> Rows | None:
        """The live rows of all tails, None when there are none."""
        if not self._recent:
            return None
        return concatenate([tail.live_part() for tail in self.searcher.tails])

    def saved(self, segment: Segment | None) -> None:
        """The rows of `unsaved_rows` are on disk as this segment; an empty tail takes over."""
        end = self.searcher.tails[-1].base + self.searcher.tails[-1].rows
        segments = self.searcher.segments if segment is None else (*self.searcher.segments, segment)
        self._change(segments=segments, tails=(self._new_tail(end),))
        self._recent = {}
        self._deletes, self._delete_bytes = [], 0
        self._checkpoint = self._held_from = self.position

    def install(
        self, built: Segment | None, inputs: Sequence[str], dead_when_read: dict[str, NDArray[np.bool_]]
    ) -> None:
        """Put a built segment (None: no row was left) in the place of its inputs, in their first one's place.

        `dead_when_read` has, per input, the rows the builder left out; rows that died since are killed here.
        """
        first_row = 0
        held = {segment.name: segment for segment in self.searcher.segments}
        for name in inputs:
            kept = ~dead_when_read[name]
            died_since = held[name].dead_mask()[kept]
            if built is not None and died_since.any():
                built.kill(first_row + np.flatnonzero(died_since))
            first_row += int(kept.sum())
        segments: list[Segment] = []
        for segment in self.searcher.segments:
            if segment.name not in inputs:
                segments.append(segment)
            elif built is not None and built not in segments:
                segments.append(built)
        self._change(segments=tuple(segments))

    # -- open and follow -----------------------------------------------------------------------------------

    def open(self, segments: Sequence[Segment], position: int, leader_epoch: int, digest: int) -> None:
        """Become exactly the checkpoint given; whatever was in memory is forgotten."""
        end = self.searcher.tails[-1].base + self.searcher.tails[-1].rows
        self.digest = digest
        self.leader_epoch = leader_epoch
        self._change(segments=tuple(segments), tails=(self._new_tail(end),), position=position)
        self._recent = {}
        self._deletes, self._delete_bytes = [], 0
        self._checkpoint = self._held_from = position

    def follow(
        self,
        segments: Sequence[Segment],
        position: int,
        leader_epoch: int,
        digest: int,
        kept_bytes_max: int | None = None,
    ) -> None:
        """Take over the segments of a manifest at `position`, keeping what we applied beyond it.

        Segments without an index are passed over while our tails hold their rows anyway, which have codes there, and
        while those take no more than `kept_bytes_max`.
        Segments that we did not have yet are as of `position`: what was applied since is killed in them.
        A manifest older than the one we hold (the newest is damaged) is passed over: we know more.
        """
        if position < self._checkpoint:
            return
        if self.position <= position:
            self.open(segments, position, leader_epoch, digest)
            return
        held = set(self.searcher.segments)
        segments, start = self._without_held(segments, position, kept_bytes_max)
        self._deletes = [(at, id_) for at, id_ in self._deletes if at > position]
        self._delete_bytes = _bytes_of([id_ for _, id_ in self._deletes])
        self._kill_in_new([segment for segment in segments if segment not in held], self._tails_from(position))
        tails = self._tails_from(start)
        if tails[-1].first > max(PASSED_OVER_MAX, tails[-1].count):
            tails = (*tails, self._new_tail(tails[-1].base + tails[-1].rows))
        self._checkpoint, self._held_from = position, start
        self._change(segments=tuple(segments), tails=tails)
        if len(self._recent) > 2 * sum(tail.count for tail in tails) + TAIL_ROWS_MAX:
            first = tails[0].start
            self._recent = {id_: row for id_, row in self._recent.items() if row >= first}

    def _without_held(
        self, segments: Sequence[Segment], position: int, kept_bytes_max: int | None
    ) -> tuple[Sequence[Segment], int]:
        """The segments to search beside our tails' rows from an offset on, and that offset.

        The last segments are left out that have no index and whose rows are in our tails, while those are few enough.
        """
        kept, start = list(segments), position
        while kept and not kept[-1].is_built and self._held_from <= kept[-1].first_offset < start:
            first = kept[-1].first_offset
            held = list(self._rows_from(first))
            if sum(tail.rows - row for tail, row in held) > self._kept_rows_max:
                break
            if kept_bytes_max is not None and sum(tail.memory_from(row) for tail, row in held) > kept_bytes_max:
                break
            start = first
            kept.pop()
        if any(segment.last_offset >= start for segment in kept):  # not in the order of the log
            return segments, position
        return kept, start

    def _kill_in_new(self, segments: Sequence[Segment], tails: Sequence[Tail]) -> None:
        """Kill in segments as of a manifest what was replaced or deleted since, by the rows of our tails."""
        deleted = [id_ for _, id_ in self._deletes]
        hashes = np.concatenate([*(tail.hashes[tail.first : tail.rows] for tail in tails), hash_ids(deleted)])
        order = np.argsort(hashes)
        ids = _Ordered(_Ids(tails, deleted), order)
        for segment in segments:
            if len(rows := segment.find(hashes[order], ids)):
                segment.kill(np.unique(rows))

    def _tails_from(self, position: int) -> tuple[Tail, ...]:
        """Our tails without the rows before `position`."""
        tails = []
        for tail, first in self._rows_from(position):
            if first == tail.first:
                tails.append(tail)
            elif first < tail.rows or tail is self.searcher.tails[-1]:
                tails.append(tail.without(first))
        return tuple(tails)

    def _rows_from(self, position: int) -> Iterator[tuple[Tail, int]]:
        """Each tail and the first of its own rows that is not before `position`."""
        for tail in self.searcher.tails:
            yield tail, max(tail.first, int(np.searchsorted(tail.offsets[: tail.rows], position)))


class _Ordered(Sequence[bytes]):
    """Ids in another order; read one by one, for few are asked for."""

    def __init__(self, ids: Sequence[bytes], order: NDArray[np.int64]) -> None:
        self._ids, self._order = ids, order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, at: Any) -> Any:
        return self._ids[int(self._order[at])]


class _Ids(Sequence[bytes]):
    """The ids of tails' rows, then those of deletes."""

    def __init__(self, tails: Sequence[Tail], deleted: Sequence[bytes]) -> None:
        self._tails, self._deleted = tails, deleted
        self._ends = np.cumsum([tail.count for tail in tails]).tolist()

    def __len__(self) -> int:
        return int(self._ends[-1]) + len(self._deleted)

    def __getitem__(self, row: Any) -> Any:
        number = bisect_right(self._ends, row)
        if number == len(self._tails):
            return self._deleted[row - self._ends[-1]]
        tail = self._tails[number]
        return tail.id_of(tail.first + row - (self._ends[number - 1] if number else 0))


def _bytes_of(deleted: Sequence[bytes]) -> int:
    return sum(map(len, deleted)) + DELETE_BYTES * len(deleted)


def _place(segment: Segment) -> SegmentPlace:
    assert segment.region.name is not None
    return SegmentPlace(str(segment.directory), segment.entry, segment.region.name)
