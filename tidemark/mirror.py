"""A view that another process of this machine writes, for searching: nothing is copied, and no writer is waited for.

The files of its segments were verified by the process that opened them first; here they are only mapped, all vectors
one after the other in one range of addresses (row_space.py). Opening takes milliseconds, so `refresh` is called on a
side thread as well, which opens what is announced as `coming` before a search needs it; a search that meets a newer
structure opens it itself, under a lock of this process. A segment that cannot be opened makes its partition one that
is not searched whole: `problems` says why, `failures` counts the structures of which that was true, and the side thread
goes on trying.
"""

import contextlib
import threading
import time
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidemark.ann.open_lists import Alive, OpenLists
from tidemark.ann.quantizer import Quantizer
from tidemark.caught_up import now_ms
from tidemark.collection import Collection
from tidemark.errors import CorruptCheckpoint, StoreUnavailable
from tidemark.live_rows import LiveRows
from tidemark.matching import Matchings
from tidemark.part import Part
from tidemark.row_space import VectorSpace
from tidemark.segment import Segment
from tidemark.shared_memory import Document, Region, fence
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
from tidemark.tail import Tail, TailPlace

ATTEMPTS, RETRY_S = 100, 0.005
FAILED_RETRY_S = 0.5
# Files that are gone, damaged, too many or not ours to read: numpy, Arrow and FAISS each say so in their way.
_NOT_OPENED = (OSError, ValueError, RuntimeError, CorruptCheckpoint)
_decode = msgspec.json.Decoder(Structure).decode


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a partition cannot be searched whole, and since when (ms of the wall clock)."""

    why: str
    since_ms: int


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """The parts of a view as of one structure; never changed. What it holds stays mapped as long as it is held.

    `parts` are in the order of `bases`, their first rows' numbers. `graphs`: segments that have one.
    `unindexed`: those that have none and are in no lists.
    """

    parts: tuple[Part, ...]
    bases: list[int]
    segments: tuple[Segment, ...]
    tails: tuple[Tail, ...]
    graphs: tuple[Segment, ...]
    unindexed: tuple[Segment, ...]
    partitions: NDArray[np.int64]
    index: OpenLists | None

    @property
    def end(self) -> int:
        """The first row number behind all parts."""
        if not self.parts:
            return 0
        return self.parts[-1].base + self.parts[-1].capacity

    def part_of(self, number: int) -> tuple[Part, int] | None:
        """The part that a row number lies in, and its row there; None when it lies in none."""
        at = bisect_right(self.bases, number) - 1
        if at < 0:
            return None
        part = self.parts[at]
        row = number - part.base
        return (part, row) if row < part.capacity else None


EMPTY = Snapshot((), [], (), (), (), (), np.empty(0, np.int64), None)


class ViewMirror:
    """Any thread may read it; raises FileNotFoundError when made from a place whose owner has let go of it.

    `vectors` is float32 (row numbers, dimension): where no part lies, zeros. `bitmap` has a bit for each that lives.
    """

    def __init__(self, collection: Collection, place: ViewPlace) -> None:
        self.collection = collection
        self.place = place
        self._words: NDArray[np.int64] = Region.open(place.words).take(np.int64, WORDS)
        self._positions: NDArray[np.int64] = Region.open(place.positions).take(np.int64, PARTITIONS_MAX)
        self._structure = Document(Region.open(place.structure))
        self.bitmap: NDArray[np.uint8] = Region.open(place.alive).take(np.uint8, place.capacity // 8)
        self.live = LiveRows(self.bitmap, place.capacity)
        self.alive = Alive(self.bitmap)
        self._space = VectorSpace(collection.dimension, place.capacity)
        self.vectors = self._space.vectors
        self.matchings = Matchings()
        self._version = 0
        self._segments: dict[tuple[int, str], Segment] = {}
        self._tails: dict[TailPlace, Tail] = {}
        self._index: tuple[IndexPlace | None, OpenLists | None] = (None, None)
        self._quantizer: tuple[str, Quantizer] | None = None
        self._held = EMPTY
        self._lock = threading.Lock()
        self.problems: dict[int, Problem] = {}
        self.failures = 0
        self._retry_at = 0.0

    # -- what changes between structures -------------------------------------------------------------------

    @property
    def kills(self) -> int:
        """How often rows were killed; as long as it stays the same, none was."""
        return int(self._words[KILLS])

    @property
    def moves(self) -> int:
        """How often rows got other numbers; as long as it stays the same, none did."""
        return int(self._words[MOVES])

    @property
    def changes(self) -> int:
        """Odd while a row may live twice; as long as it stays the same and is even, every id lives once."""
        return int(self._words[CHANGES])

    @property
    def positions(self) -> dict[int, int]:
        """The next offset to apply of each partition opened, now: read before what is searched at these positions."""
        numbers = self.snapshot().partitions
        return dict(zip(numbers.tolist(), self._positions[numbers].tolist(), strict=True))

    def positions_of(self, partitions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The same of some partitions, int64 (n,), without looking for a newer structure; 0 of one not opened."""
        found: NDArray[np.int64] = self._positions[partitions]
        return found

    def snapshot(self) -> Snapshot:
        """The parts now: everything told before the call is in it."""
        fence()
        self.refresh()
        return self._held

    def living(self) -> tuple[Snapshot, list[tuple[Part, LiveRows]]]:
        """All parts, and which of their rows lived at one moment.

        Until it is found only bits are copied: while batches come without end, what takes as long as one never ends.
        """
        while True:
            kills, moves, snapshot = self.kills, self.moves, self.snapshot()
            living = [(part, LiveRows(part.live.bitmap.copy(), part.live.row_count)) for part in snapshot.parts]
            if (self.kills, self.moves) == (kills, moves):
                return snapshot, living

    # -- opening -------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Open what the newest structure names, and try again what could not be opened.

        Raises StoreUnavailable when nothing of a structure can be read.
        """
        again = bool(self.problems) and time.monotonic() >= self._retry_at
        if self._version != self._structure.version or again:
            with self._lock:
                self._refresh()

    def _refresh(self) -> None:
        attempts = ATTEMPTS
        while True:
            version, content = self._structure.read()
            if version == self._version and (not self.problems or time.monotonic() < self._retry_at):
                return
            try:
                self._open(_decode(content))
            except FileNotFoundError as error:  # a newer structure does without it
                attempts -= 1
                if attempts <= 0:
                    raise StoreUnavailable(f"{self.collection.name!r} cannot be opened here: {error}") from error
                time.sleep(RETRY_S)
            except _NOT_OPENED as error:
                raise StoreUnavailable(f"{self.collection.name!r} cannot be opened here: {error}") from error
            else:
                self._version = version
                return

    def _open(self, structure: Structure) -> None:
        problems: dict[int, Problem] = {}
        opened, segments = self._open_segments(structure.segments, problems)
        tails = {place: self._tail(place) for place in structure.tails}
        index = self._open_index(structure.index)
        for place in structure.coming:
            with contextlib.suppress(*_NOT_OPENED):  # when it is searched that is told
                opened[place.base, place.directory] = self._segment(place)
        unindexed = tuple(
            segments[place.base]
            for place in structure.segments
            if place.base in segments and not (place.indexed and index) and not segments[place.base].has_graph
        )
        self._retry_at = time.monotonic() + FAILED_RETRY_S
        self.failures += bool(problems)
        parts: list[Part] = [*segments.values(), *tails.values()]
        parts.sort(key=lambda part: part.base)
        bases = [part.base for part in parts]
        self._segments, self._tails, self.problems = opened, tails, problems
        self._held = Snapshot(
            parts=tuple(parts),
            bases=bases,
            segments=tuple(segments.values()),
            tails=tuple(tails.values()),
            graphs=tuple(segment for segment in segments.values() if segment.has_graph),
            unindexed=unindexed,
            partitions=np.array(structure.partitions, np.int64),
            index=index,
        )

    def _open_segments(
        self, places: Iterable[SegmentPlace], problems: dict[int, Problem]
    ) -> tuple[dict[tuple[int, str], Segment], dict[int, Segment]]:
        opened: dict[tuple[int, str], Segment] = {}
        segments: dict[int, Segment] = {}
        for place in places:
            try:
                segment = self._segment(place)
            except _NOT_OPENED as error:
                before = self.problems.get(place.partition)
                why = f"partition {place.partition} of {self.collection.name!r} cannot be opened here: {error}"
                problems.setdefault(place.partition, Problem(why, before.since_ms if before else now_ms()))
            else:
                opened[place.base, place.directory] = segments[place.base] = segment
        return opened, segments

    def _segment(self, place: SegmentPlace) -> Segment:
        known = self._segments.get((place.base, place.directory))
        if known is not None:
            return known
        directory, collection = Path(place.directory), self.collection
        live = LiveRows(self.bitmap[place.base // 8 :][: -(-place.entry.rows // 8)], place.entry.rows)
        names = place.entry.files
        segment = Segment(directory, place.entry, collection.dimension, collection.metric, place.partition, names, live)
        segment.base = place.base
        segment.map_in(self._space)
        if segment.has_graph:
            segment.graph  # noqa: B018  # now, not at its first search
        return segment

    def _tail(self, place: TailPlace) -> Tail:
        known = self._tails.get(place)
        if known is not None:
            return known
        live = LiveRows(self.bitmap[place.base // 8 :][: -(-place.capacity // 8)], place.capacity)
        tail = Tail.open(place, self.collection.dimension, live)
        tail.map_in(self._space)
        return tail

    def _open_index(self, place: IndexPlace | None) -> OpenLists | None:
        if place is None:
            return None
        if self._index[0] != place:
            if self._quantizer is None or self._quantizer[0] != place.quantizer:
                written = Region.open(place.quantizer).take(np.uint8, place.quantizer_bytes)
                self._quantizer = (place.quantizer, Quantizer.from_bytes(written.tobytes()))
            self._index = (place, OpenLists(self._quantizer[1], place.lists))
        return self._index[1]
