"""A view that another process of this machine writes, for searching: nothing is copied, nothing is locked.

The files of its segments were verified by the process that opened them first; here they are only mapped. Opening
takes milliseconds, so `refresh` is called on a side thread as well, which opens what is announced as `coming`
before a search needs it.
"""

import threading
import time
from pathlib import Path

import msgspec

from tidemark.collection import Collection
from tidemark.errors import StoreUnavailable
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

    @property
    def searcher(self) -> PartitionSearcher:  # type: ignore[override]
        """The snapshot now. Its position is read first: the structure read after it holds all before it."""
        position = int(self._words[POSITION])
        fence()
        self.refresh()
        return PartitionSearcher(*self._held, position)

    def refresh(self) -> None:
        """Open what the newest structure names; raises StoreUnavailable when it cannot be opened."""
        if self._version == self._structure.version:
            return
        with self._lock:
            for _ in range(ATTEMPTS):
                version, content = self._structure.read()
                if version == self._version:
                    return
                try:
                    self._open(_decode(content))
                except FileNotFoundError as error:  # a newer structure does without it
                    problem = error
                    time.sleep(RETRY_S)
                    continue
                self._version = version
                return
        raise StoreUnavailable(f"partition {self.partition} of {self.collection.name!r} cannot be opened: {problem}")

    def _open(self, structure: Structure) -> None:
        coming = {place.live: self._segment(place) for place in [*structure.segments, *structure.coming]}
        self._tails = {place: self._tail(place) for place in structure.tails}
        segments = tuple(coming[place.live] for place in structure.segments)
        self._segments = coming
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
