"""The view of a collection, or of some of its partitions: what their logs say, as rows that can be searched.

    apply:   find old rows -> append to the tail (visible) -> kill old rows -> publish the new positions
    save:    a partition's rows in the tails become one segment on disk (consumer, at a checkpoint)
    install: a built segment takes the place of the segments it was built from (consumer)
    follow:  the segments of a new manifest take the place of ours (api)

A replica has one view of all partitions, a consumer one of each partition that it owns. Rows have numbers in one row
space (row_space.py), and a bit each that says whether they live.
Invariants: one thread calls these; any number of processes search, through `mirror.py`. A new row is visible before
the row it replaces is killed, and a position is published only after its kills, so a search finds an id's newest
version at its position, once. When rows get other numbers (a segment in a tail's place), the new ones live before
the old ones die, and `MOVES` is counted between the two.
Knows nothing of Kafka, manifests or HTTP. Reading is in `searcher.py`.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidemark import layout
from tidemark.collection import Collection
from tidemark.id_index import IdIndex
from tidemark.id_sequences import Ids, Joined, Ordered
from tidemark.live_rows import LiveRows
from tidemark.part import Part
from tidemark.partition_state import PartitionState, delete_bytes_of
from tidemark.record import Batch, hash_ids
from tidemark.row_space import RowSpace
from tidemark.rows import Rows, concatenate
from tidemark.segment import Segment
from tidemark.shared_memory import Document, Region, fence, room
from tidemark.snapshot import (
    CHANGES,
    KILLS,
    MOVES,
    PARTITIONS_MAX,
    WORDS,
    IndexPlace,
    SegmentPlace,
    Structure,
    ViewPlace,
)
from tidemark.tail import Tail

# Memory of a tail, taken as it fills. A consumer's holds the rows of a checkpoint (131,072 of 128-d) and the batch that
# ends it, which are written as they lie. A replica's is given back when its rows are in segments, so it is smaller.
TAIL_BYTES, SHARED_TAIL_BYTES = 65 * 2**20, 16 * 2**20
TAIL_ROWS_MIN, TAIL_ROWS_MAX = 1_024, 665_600
# When fewer of a full tail's rows live, they go to the newest tail, and its memory is given back.
LIVE_SHARE_MIN = 0.25
DIGEST_MODULUS = 2**64
# A process that opened segments may read them for so long after they were replaced.
RECLAIMED_AFTER_S = 60.0

# Files of a segment that its directory may lack: a reader is told whether they are there.
_SEARCHED_FILES = (layout.OUTLIERS, layout.META)


class View:
    """See the module's docstring for its verbs. `shared`: other processes search it; `place` says where it is.

    `when_killed` is told of rows whose bits were cleared, by parts: a base, the rows. `listed_since`: parts that were
    given up before (time.monotonic) are not in the lists.
    """

    def __init__(
        self,
        collection: Collection,
        shared: bool = False,
        tail_rows: int | None = None,
        reclaimed_after_s: float = RECLAIMED_AFTER_S,
    ) -> None:
        self.collection, self._reclaimed_after_s = collection, reclaimed_after_s
        self.partitions: dict[int, PartitionState] = {}
        self.tails: tuple[Tail, ...] = ()
        self.space = RowSpace(collection.dimension, shared)
        self.index: IndexPlace | None = None
        self.indexed: frozenset[int] = frozenset()  # bases of the segments whose living rows are in the lists
        self.listed_since = math.inf
        self.when_killed: Callable[[list[tuple[int, NDArray[np.int64]]]], None] | None = None
        self._alive = LiveRows(self.space.bitmap, self.space.capacity)
        self._words_region = Region(room(np.int64, WORDS), shared)
        self._words: NDArray[np.int64] = self._words_region.take(np.int64, WORDS)
        self._positions_region = Region(room(np.int64, PARTITIONS_MAX), shared)
        self._positions: NDArray[np.int64] = self._positions_region.take(np.int64, PARTITIONS_MAX)
        self._structure = Document() if shared else None
        self._shared = shared
        self._coming: Sequence[Segment] = ()
        self._ids = IdIndex(self._alive.are_live)
        tail_bytes = SHARED_TAIL_BYTES if shared else TAIL_BYTES
        self._tail_rows = tail_rows or min(TAIL_ROWS_MAX, max(TAIL_ROWS_MIN, tail_bytes // collection.row_bytes))
        self._parts: list[Part] = []
        self._bases: NDArray[np.int64] = np.empty(0, np.int64)
        self._rows_in_tails_ever = 0
        self._add_tail()

    @property
    def segments(self) -> list[Segment]:
        return [segment for state in self.partitions.values() for segment in state.segments]

    @property
    def place(self) -> ViewPlace:
        """Where another process finds this view."""
        assert self._structure is not None
        words, positions, alive = self._words_region.name, self._positions_region.name, self.space.name
        assert words is not None and positions is not None and alive is not None
        return ViewPlace(words, positions, self._structure.name, alive, self.space.capacity)

    def announce(self, coming: Sequence[Segment] | None = None) -> None:
        """Tell other processes the structure, and segments that they may open already; None: those told before."""
        self._coming = self._coming if coming is None else coming
        self._tell(self.segments)

    def _tell(self, segments: Iterable[Segment]) -> None:
        if self._structure is not None:
            structure = Structure(
                partitions=list(self.partitions),
                segments=[self._place_of(segment) for segment in segments],
                tails=[tail.place for tail in self.tails],
                coming=[self._place_of(segment) for segment in self._coming],
                index=self.index,
            )
            self._structure.write(msgspec.json.encode(structure))

    def _place_of(self, segment: Segment) -> SegmentPlace:
        opened = {name: file for name, file in segment.entry.files.items() if name in _SEARCHED_FILES}
        entry = msgspec.structs.replace(segment.entry, files=opened, dead_file=None, codes_file=None)
        indexed = segment.base in self.indexed
        return SegmentPlace(segment.partition, segment.base, str(segment.directory), entry, indexed)

    def prepare(self, segments: Iterable[Segment]) -> None:
        """Give segments their row numbers, so that they can be announced and indexed; any thread."""
        for segment in segments:
            if segment.base < 0:
                segment.base = self.space.allocate(segment.row_count)

    def forget(self, segments: Iterable[Segment]) -> None:
        """Segments that were prepared and are not taken after all give their row numbers back."""
        for segment in segments:
            if segment.base >= 0 and segment not in self._parts:
                self._free(segment.base)
                segment.base = -1

    def _reclaim(self) -> None:
        """Let row numbers be given again that no search and no list holds any more."""
        before = time.monotonic() - (self._reclaimed_after_s if self._shared else 0.0)
        self.space.reclaim(min(before, self.listed_since))

    def _free(self, base: int) -> None:
        self.indexed -= {base}
        self.space.free(base)

    # -- apply ---------------------------------------------------------------------------------------------

    def apply(self, batch: Batch) -> None:
        """Make a batch visible to the next search; its records start at or after their partitions' positions."""
        # Row numbers are used again, so an entry of a segment that is gone may lead to a row of a tail.
        old = np.unique(np.concatenate([self._old_in_tails(batch), self._old_in_segments(batch)]))
        with self._changing():
            self._append(batch)
            for number, first, stop in _runs(batch.deleted_partitions):
                self._delete(self.partitions[number], batch.deleted_ids[first:stop], batch.positions[number])
            self._killing()
            self._kill(old)
            for number, position in batch.positions.items():
                state = self.partitions[number]
                state.position, state.leader_epoch = position, batch.leader_epochs[number]
                self._positions[number] = position

    def _old_in_tails(self, batch: Batch) -> NDArray[np.int64]:
        """The numbers of the rows of our tails that hold an id of the batch."""
        found: list[int] = []
        for partitions, ids in ((batch.partitions, batch.ids), (batch.deleted_partitions, batch.deleted_ids)):
            for number, first, stop in _runs(partitions):
                recent, some = self._state(number).recent, ids[first:stop]
                if not recent.keys().isdisjoint(some):
                    found += [row for row in map(recent.get, some) if row is not None]
        return np.array(found, np.int64)

    def _old_in_segments(self, batch: Batch) -> NDArray[np.int64]:
        """The numbers of the living rows of our segments that hold an id of the batch."""
        hashes = np.concatenate([batch.hashes, batch.deleted_hashes])
        partitions = np.concatenate([batch.partitions, batch.deleted_partitions])
        at, numbers = self._ids.find(hashes)
        return self._holding(numbers, partitions[at], Joined(batch.ids, batch.deleted_ids), at)

    def _holding(
        self, numbers: NDArray[np.int64], partitions: NDArray[np.int32], ids: Sequence[bytes], at: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Those of the row numbers that live and really hold the id `ids[at]` of the partition."""
        living = self._alive.are_live(numbers)
        numbers, partitions, at = numbers[living], partitions[living], at[living]
        found: list[int] = []
        for number, partition, place in zip(numbers.tolist(), partitions.tolist(), at.tolist(), strict=True):
            part = self._parts[int(np.searchsorted(self._bases, number, side="right")) - 1]
            row = number - part.base
            if part.partition_of(row) == partition and part.id_of(row) == ids[place]:
                found.append(number)
        return np.array(found, np.int64)

    def _state(self, number: int) -> PartitionState:
        return self.partitions.get(number) or self._meet(number)

    def _meet(self, number: int) -> PartitionState:
        state = self.partitions[number] = PartitionState(number)
        return state

    def _delete(self, state: PartitionState, ids: Sequence[bytes], position: int) -> None:
        for id_ in ids:
            state.recent.pop(id_, None)
        state.deletes += [(position, id_) for id_ in ids]
        state.delete_bytes += delete_bytes_of(ids)

    def _append(self, batch: Batch) -> None:
        done, count = 0, len(batch.ids)
        while done < count:
            tail = self.tails[-1]
            first = tail.row_count
            stop = tail.append(batch, done)
            self._note_appended(batch, tail, first - done, done, stop)
            done = stop
            if done < count:
                self._add_tail()

    def _note_appended(self, batch: Batch, tail: Tail, shift: int, first: int, stop: int) -> None:
        """Rows [first, stop) of the batch are in the tail, at `shift` more."""
        if first == stop:
            return
        starts, base = first + _starts(batch.partitions[first:stop]), tail.base + shift
        ends = np.append(starts[1:], stop)
        digests = np.add.reduceat(batch.digests[:stop], starts).tolist()
        sizes = tail.bytes_between(starts + shift, ends + shift).tolist()
        runs = zip(batch.partitions[starts].tolist(), starts.tolist(), ends.tolist(), digests, sizes, strict=True)
        for number, start, end, digest, size in runs:
            state = self.partitions[number]
            state.recent.update(zip(batch.ids[start:end], range(base + start, base + end), strict=True))
            state.tail_rows += end - start
            state.live_rows += end - start
            state.row_bytes += size
            state.digest = (state.digest + digest) % DIGEST_MODULUS

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Rows may live twice, or be ahead of their partitions' positions, meanwhile."""
        self._words[CHANGES] += 1
        fence()
        yield
        fence()
        self._words[CHANGES] += 1

    def _killing(self) -> None:
        """Rows are visible, the ones they replace are about to be killed."""
        fence()
        self._words[KILLS] += 1
        fence()

    def _kill(self, numbers: NDArray[np.int64]) -> None:
        """Kill rows that were replaced or deleted; their digests are taken from their partitions'."""
        found = self._clear(numbers)
        if not found:
            return
        partitions = np.concatenate([part.partitions_of(rows) for part, rows in found])
        order = np.argsort(partitions, kind="stable")
        partitions, digests = partitions[order], np.concatenate([part.digests[rows] for part, rows in found])[order]
        starts = _starts(partitions)
        counts = np.diff(starts, append=len(partitions)).tolist()
        sums = np.add.reduceat(digests, starts).tolist()
        for number, count, digest in zip(partitions[starts].tolist(), counts, sums, strict=True):
            state = self.partitions[number]
            state.live_rows -= count
            state.digest = (state.digest - digest) % DIGEST_MODULUS

    def _clear(self, numbers: NDArray[np.int64]) -> list[tuple[Part, NDArray[np.int64]]]:
        """Clear the bits of rows; they by the parts they lie in."""
        if not len(numbers):
            return []
        numbers = np.sort(numbers)
        self._alive.kill(numbers)
        found = [
            (self._parts[at], numbers[first:stop] - self._parts[at].base)
            for at, first, stop in _runs(np.searchsorted(self._bases, numbers, side="right") - 1)
        ]
        if self.when_killed is not None:
            self.when_killed([(part.base, rows) for part, rows in found])
        return found

    def holding(self, number: int, ids: Sequence[bytes]) -> set[bytes]:
        """Those of the ids that live in a partition; for the thread that applies."""
        if not ids:
            return set()
        recent = self.partitions[number].recent
        found = {id_ for id_ in ids if id_ in recent}
        at, numbers = self._ids.find(hash_ids(ids))
        partitions = np.full(len(at), number, np.int32)
        for row in self._holding(numbers, partitions, ids, at).tolist():
            part = self._part_of(row)
            found.add(part.id_of(row - part.base))
        return found

    def upkeep(self) -> Callable[[], None] | None:
        """Work that keeps looking up ids cheap, for any thread, one at a time; None when there is none.

        What is given must be done. A consumer's view does it by itself when segments are replaced: 0.1 us a row.
        """
        return self._ids.merge_work()

    def _part_of(self, number: int) -> Part:
        return self._parts[int(np.searchsorted(self._bases, number, side="right")) - 1]

    def advance(self, number: int, position: int) -> None:
        """Move over offsets that hold no records: transaction markers, compacted ends, bad records."""
        state = self.partitions[number]
        if position > state.position:
            state.position = position
            state.leader_epoch = -1  # that of the last record ended before, if a leader came in between
            self._positions[number] = position

    def note_leader_epoch(self, number: int, end: int, leader_epoch: int) -> bool:
        """Take the newest leader epoch of a log that ends where we are, when ours is not known; True when it was so."""
        state = self.partitions[number]
        if state.leader_epoch >= 0 or end != state.position:
            return False
        state.leader_epoch = leader_epoch
        return leader_epoch >= 0

    # -- tails ---------------------------------------------------------------------------------------------

    def _add_tail(self) -> None:
        self._drop_tails()
        base = self.space.allocate(self._tail_rows)
        start = self.tails[-1].stop if self.tails else 0
        live = self.space.live(base, self._tail_rows)
        tail = Tail(self.collection.dimension, self._tail_rows, base, start, live, self._shared)
        self.tails = (*self.tails, tail)
        self._set_parts()
        self.announce()

    def _set_parts(self) -> None:
        self._parts = sorted((*self.segments, *self.tails), key=lambda part: part.base)
        self._bases = np.array([part.base for part in self._parts], np.int64)

    def _drop_tails(self) -> None:
        """Give back the memory of full tails none of whose rows live."""
        dead = [tail for tail in self.tails[:-1] if not tail.live.live_count]
        if dead:
            self.tails = tuple(tail for tail in self.tails if tail not in dead)
            self._set_parts()
            for tail in dead:
                self.space.free(tail.base)
            self._reclaim()
            self._count_tail_rows()

    def _count_tail_rows(self) -> None:
        """Count anew which rows only the tails hold: those of tails that are gone, and those in segments, are none."""
        held_from = np.zeros(max(self.partitions, default=0) + 1, np.int64)
        for number, state in self.partitions.items():
            held_from[number], state.tail_rows, state.row_bytes = state.held_from, 0, 0
        for tail in self.tails:
            count = tail.row_count
            partitions = tail.partitions[:count]
            only_here = tail.offsets[:count] >= held_from[partitions]
            rows = np.bincount(partitions[only_here], minlength=len(held_from)).tolist()
            sizes = np.bincount(partitions[only_here], tail.row_bytes(count)[only_here], len(held_from)).tolist()
            for number, state in self.partitions.items():
                state.tail_rows += int(rows[number])
                state.row_bytes += int(sizes[number])

    def move_few(self) -> None:
        """Move the living rows of full tails that have few to the newest one: their memory is given back.

        Costs at most 10 ms a tail; for the thread that applies, when segments have taken rows over, or a tail is full.
        """
        before = self.tails
        for tail in self.tails[:-1]:
            if tail.live.live_count < LIVE_SHARE_MIN * tail.row_count:
                with self._changing():
                    self._move(tail)
        self._drop_tails()
        if self.tails != before:
            self.announce()

    def _move(self, tail: Tail) -> None:
        rows = tail.live.numbers()
        at, done = tail.batch(rows), 0
        while done < len(rows):
            newest = self.tails[-1]
            first = newest.row_count
            stop = newest.append(at, done)
            for number, start, end in _runs(at.partitions[done:stop]):
                numbers = range(newest.base + first + start, newest.base + first + end)
                self.partitions[number].recent.update(zip(at.ids[done + start : done + end], numbers, strict=True))
            done = stop
            if done < len(rows):
                self._add_tail()
        self._killing()
        self._clear(tail.base + rows)

    # -- save and install (the consumer) -------------------------------------------------------------------

    def unsaved_rows(self, number: int) -> Rows | None:
        """The live rows of a partition that no segment holds, None when there are none."""
        parts = [tail.columns(rows) for tail in self.tails if len(rows := tail.rows_of(number))]
        return concatenate(parts) if parts else None

    def saved(self, number: int, segment: Segment | None) -> None:
        """The rows of `unsaved_rows` are on disk as this segment."""
        state = self.partitions[number]
        segments = state.segments if segment is None else (*state.segments, segment)
        self._replace(state, segments, held_from=state.position)
        state.checkpoint = state.position
        state.forget_deletes(before=state.position)

    def install(
        self, number: int, built: Segment | None, inputs: Sequence[str], dead_when_read: dict[str, NDArray[np.bool_]]
    ) -> None:
        """Put a built segment (None: no row was left) in the place of its inputs, in their first one's place.

        `dead_when_read` has, per input, the rows the builder left out; rows that died since are killed here.
        """
        state, first_row = self.partitions[number], 0
        held = {segment.name: segment for segment in state.segments}
        for name in inputs:
            kept = ~dead_when_read[name]
            died_since = held[name].dead_mask()[kept]
            if built is not None and died_since.any():
                built.kill(first_row + np.flatnonzero(died_since))
            first_row += int(kept.sum())
        segments: list[Segment] = []
        for segment in state.segments:
            if segment.name not in inputs:
                segments.append(segment)
            elif built is not None and built not in segments:
                segments.append(built)
        self._replace(state, segments, state.held_from)

    def _replace(self, state: PartitionState, segments: Sequence[Segment], held_from: int) -> None:
        """Search these segments in the place of the partition's, and of its rows in tails before `held_from`.

        Readers are told of the new ones, which then live, before `MOVES` is counted, and only then the old ones die.
        """
        old = [segment for segment in state.segments if segment not in segments]
        new = [segment for segment in segments if segment not in state.segments]
        self.prepare(new)
        state.segments = (*old, *segments)
        self._set_parts()
        self.announce()
        fence()
        with self._changing():
            for segment in new:
                live = self.space.live(segment.base, segment.row_count)
                live.set_all_but(segment.dead_mask())
                segment.live = live
                self._ids.add(segment.sorted_hashes, segment.sorted_rows, segment.base)
            fence()
            self._words[MOVES] += 1
            fence()
            moved = [tail.base + tail.rows_of(state.number) for tail in self.tails]
            moved = [n[tail.offsets[n - tail.base] < held_from] for n, tail in zip(moved, self.tails, strict=True)]
            dead = [segment.base + segment.live.numbers() for segment in old]
            self._clear(np.concatenate([*moved, *dead]))
        state.segments, state.held_from = tuple(segments), held_from
        self._after_replacing(state, old)

    def _after_replacing(self, state: PartitionState, old: Sequence[Segment]) -> None:
        self._set_parts()
        for segment in old:
            self._ids.forget(segment.base, segment.row_count)
            self._free(segment.base)
        if not self._shared and (work := self.upkeep()) is not None:
            work()
        numbers = np.fromiter(state.recent.values(), np.int64, len(state.recent))
        living = self._alive.are_live(numbers)
        if not living.all():
            kept = zip(state.recent.items(), living.tolist(), strict=True)
            state.recent = {id_: number for (id_, number), lives in kept if lives}
        self._count_tail_rows()
        if not self._tail_is_used:
            self._add_tail()
        self._drop_tails()
        self._reclaim()
        self.announce()

    @property
    def _tail_is_used(self) -> bool:
        """Whether the newest tail has living rows, or is empty."""
        newest = self.tails[-1]
        return not newest.row_count or newest.live.live_count > 0

    # -- open and follow -----------------------------------------------------------------------------------

    def open(
        self, number: int, segments: Sequence[Segment], position: int, leader_epoch: int, digest: int
    ) -> PartitionState:
        """Make a partition exactly the checkpoint given; whatever was in memory of it is forgotten."""
        state = self._state(number)
        state.recent = {}
        self._replace(state, segments, held_from=2**63 - 1)
        state.digest, state.leader_epoch, state.position = digest, leader_epoch, position
        state.live_rows = sum(segment.live_count for segment in segments)
        state.checkpoint = state.held_from = position
        state.forget_deletes(before=2**63 - 1)
        self._positions[number] = position
        return state

    def follow(
        self,
        number: int,
        segments: Sequence[Segment],
        position: int,
        leader_epoch: int,
        digest: int,
        kept_rows_max: int | None = None,
        kept_bytes_max: int | None = None,
    ) -> None:
        """Take over the segments of a manifest at `position`, keeping what we applied beyond it.

        The last segments are passed over while our tails hold their rows anyway, and those are no more, and take no
        more memory, than may be kept. Segments that we did not have yet are as of `position`: what was applied since
        is killed in them. A manifest older than the one we hold (the newest is damaged) is passed over: we know more.
        """
        state = self._state(number)
        if position < state.checkpoint:
            return
        if state.position <= position:
            self.open(number, segments, position, leader_epoch, digest)
            return
        segments, start = self._without_held(state, segments, position, kept_rows_max, kept_bytes_max)
        state.forget_deletes(before=position)
        new = [segment for segment in segments if segment not in state.segments]
        self._kill_in_new(new, state, position)
        if new or len(segments) != len(state.segments):
            self._replace(state, segments, start)
            self.move_few()
        state.checkpoint = position

    def coming(
        self, number: int, segments: Sequence[Segment], position: int, kept_rows_max: int, kept_bytes_max: int
    ) -> list[Segment]:
        """Those of a manifest's segments that `follow` would take over now; not of a partition that is not open."""
        state = self.partitions[number]
        if position < state.checkpoint:
            return []
        if position < state.position:
            segments, _ = self._without_held(state, segments, position, kept_rows_max, kept_bytes_max)
        return [segment for segment in segments if segment not in state.segments]

    def _without_held(
        self,
        state: PartitionState,
        segments: Sequence[Segment],
        position: int,
        kept_rows_max: int | None,
        kept_bytes_max: int | None,
    ) -> tuple[Sequence[Segment], int]:
        """The segments to search beside our tails' rows from an offset on, and that offset."""
        rows_max = self._tail_rows if kept_rows_max is None else kept_rows_max
        bytes_max = 2**62 if kept_bytes_max is None else kept_bytes_max
        if state.tail_rows > rows_max or state.row_bytes > bytes_max:
            rows_max, bytes_max = rows_max // 2, bytes_max // 2  # many at a time, seldom
        kept, start = list(segments), position
        while kept and not kept[-1].has_graph and state.held_from <= kept[-1].first_offset < start:
            row_count, row_bytes = self._held(state.number, kept[-1].first_offset)
            if row_count > rows_max or row_bytes > bytes_max:
                break
            start = kept.pop().first_offset
        if any(segment.last_offset >= start for segment in kept):  # not in the order of the log
            return segments, position
        return kept, start

    def _held(self, number: int, from_offset: int) -> tuple[int, int]:
        """How many rows of a partition the tails hold from an offset on, and their bytes."""
        row_count = row_bytes = 0
        for tail in self.tails:
            rows = tail.rows_of(number, from_offset, only_live=False)
            row_count += len(rows)
            row_bytes += int(tail.row_bytes(tail.row_count)[rows].sum())
        return row_count, row_bytes

    def _kill_in_new(self, segments: Sequence[Segment], state: PartitionState, position: int) -> None:
        """Kill in segments as of a manifest what was replaced or deleted since, by the rows of our tails."""
        rows = [(tail, tail.rows_of(state.number, position)) for tail in self.tails]
        deleted = [id_ for _, id_ in state.deletes]
        hashes = np.concatenate([*(tail.hashes[some] for tail, some in rows), hash_ids(deleted)])
        order = np.argsort(hashes)
        ids = Ordered(Ids(rows, deleted), order)
        for segment in segments:
            if len(found := segment.find(hashes[order], ids)):
                dead = np.unique(found)
                segment.kill(dead)
                if self.when_killed is not None:
                    self.when_killed([(segment.base, dead)])


def _runs(numbers: NDArray[Any]) -> Iterator[tuple[int, int, int]]:
    """Each run of equal numbers: the number, the first place, the place after the last."""
    if not len(numbers):
        return
    starts = _starts(numbers).tolist()
    for first, stop in zip(starts, [*starts[1:], len(numbers)], strict=True):
        yield int(numbers[first]), first, stop


def _starts(numbers: NDArray[Any]) -> NDArray[np.int64]:
    """The first place of each run of equal numbers, of which there is at least one."""
    return np.append(0, np.flatnonzero(numbers[1:] != numbers[:-1]) + 1)
