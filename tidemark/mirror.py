"""A view that another process of this machine writes, for searching: nothing is copied, nothing is locked.

The files of its segments were verified by the process that opened them first; here they are only mapped. Opening
takes milliseconds, so `refresh` is called on a side thread as well, which opens what is announced as `coming`
before a search needs it. What cannot be opened makes a view that is not searched: `problem` says why, and the side
thread goes on trying.
"""

import contextlib
import threading
import time
from pathlib import Path
from typing import NoReturn

import msgspec

from tidemark.caught_up import now_ms
from tidemark.collection import Collection
from tidemark.errors import CorruptCheckpoint, StoreUnavailable
from tidemark.segment import Segment
from tidemark.shared_memory import Document, Region, fence
from tidemark.snapshot import (
    POSITION,
    PartitionSearcher,
    SearchedView,
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


class ViewMirror(SearchedView):
    """Any thread may read it; raises FileNotFoundError when made from a place whose owner has let go of it."""

    def __init__(self, collection: Collection, place: ViewPlace) -> None:
        super().__init__(collection, place.partition, Region.open(place.words))
        self.place = place
        self._structure = Document(Region.open(place.structure))
        self._version = 0
        self._segments: dict[str, Segment] = {}
        self._tails: dict[TailPlace, Tail] = {}
        self._held: tuple[tuple[Segment, ...], tuple[Tail, ...]] = ((), ())
        self._lock = threading.Lock()
        self.problem: str | None = None
        self.problem_since_ms: int | None = None
        self._failed = 0  # the version of the structure that `problem` is about
        self._retry_at = 0.0

    @property
    def searcher(self) -> PartitionSearcher:  # type: ignore[override]
        """The snapshot now. Its position is read first: the structure read after it holds all before it."""
        position = int(self._words[POSITION])
        fence()
        self.refresh()
        return PartitionSearcher(*self._held, position)

    def refresh(self) -> None:
        """Open what the newest structure names; raises StoreUnavailable when it cannot be opened.

        When the same structure could not be opened a moment ago, that is said again at once.
        """
        if self._version == self._structure.version:
            return
        if self._failed == self._structure.version and time.monotonic() < self._retry_at:
            raise StoreUnavailable(self.problem)
        with self._lock:
            self._refresh(ATTEMPTS if self.problem is None else 1)

    def _refresh(self, attempts: int) -> None:
        while True:
            version, content = self._structure.read()
            if version == self._version:
                return
            try:
                self._open(_decode(content))
            except FileNotFoundError as error:  # a newer structure does without it
                attempts -= 1
                if attempts <= 0:
                    self._fail(version, error)
                time.sleep(RETRY_S)
            except _NOT_OPENED as error:
                self._fail(version, error)
            else:
                self._version, self.problem, self.problem_since_ms = version, None, None
                return

    def _fail(self, version: int, error: Exception) -> NoReturn:
        self.problem = f"partition {self.partition} of {self.collection.name!r} cannot be opened here: {error}"
        self.problem_since_ms = self.problem_since_ms or now_ms()
        self._failed, self._retry_at = version, time.monotonic() + FAILED_RETRY_S
        raise StoreUnavailable(self.problem) from error

    def _open(self, structure: Structure) -> None:
        opened = {place.live: self._segment(place) for place in structure.segments}
        self._tails = {place: self._tail(place) for place in structure.tails}
        segments = tuple(opened[place.live] for place in structure.segments)
        for place in structure.coming:
            with contextlib.suppress(*_NOT_OPENED):  # when it is searched that is told
                opened[place.live] = self._segment(place)
        self._segments = opened
        # The same segments stay the same object: searcher.get compares them so.
        self._held = (self._held[0] if segments == self._held[0] else segments, tuple(self._tails.values()))

    def _segment(self, place: SegmentPlace) -> Segment:
        known = self._segments.get(place.live)
        if known is not None:
            return known
        directory, entry, live = Path(place.directory), place.entry, Region.open(place.live)
        collection = self.collection
        segment = Segment(directory, entry, collection.dimension, collection.metric, entry.files, live=live)
        segment.opened_index  # noqa: B018  # now, not at its first search
        return segment

    def _tail(self, place: TailPlace) -> Tail:
        known = self._tails.get(place)
        if known is None:
            same = (tail for other, tail in self._tails.items() if other.region == place.region)
            held = next(same, None)
            known = held.without(place.first) if held else Tail.open(place, self.collection.dimension)
        return known
