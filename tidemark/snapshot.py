"""What a search sees of one partition: an immutable snapshot, and the words that change between snapshots.

`View` (view.py) is the writer's side; `ViewMirror` (mirror.py) is the same view in another process. Between them
lie two regions of shared memory: words (kills, position) and a document, the structure, which
names segments and tails. Whoever reads the position before the structure finds everything before it.
"""

from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidemark.collection import Collection
from tidemark.manifest import SegmentEntry
from tidemark.record import hash_ids
from tidemark.segment import Segment
from tidemark.shared_memory import Region
from tidemark.tail import Tail, TailPlace

WORDS = 2
KILLS, POSITION = range(WORDS)


class SegmentPlace(msgspec.Struct, frozen=True):
    """Where another process finds a segment: its files, and the memory that says which rows live."""

    directory: str
    entry: SegmentEntry
    live: str


class Structure(msgspec.Struct, frozen=True):
    """The segments and tails of a snapshot; `coming` may soon be among the segments and can be opened already."""

    segments: list[SegmentPlace]
    tails: list[TailPlace]
    coming: list[SegmentPlace]


class ViewPlace(msgspec.Struct, frozen=True):
    """Where another process finds a view: its words and its structure."""

    partition: int
    words: str
    structure: str


class PartitionSearcher(NamedTuple):
    """An immutable snapshot: everything below `position` is in it, and nothing of it is ever half there."""

    segments: tuple[Segment, ...]
    tails: tuple[Tail, ...]
    position: int

    @property
    def scan_cost(self) -> float:
        """What every search scans, in rows compared exactly."""
        return sum(tail.scan_cost for tail in self.tails) + sum(segment.scan_cost for segment in self.segments)

    @property
    def recalls(self) -> dict[str, float]:
        """Of each segment that has an index, its recall@10 as it was measured when it was built."""
        return {segment.name: segment.entry.recall for segment in self.segments if segment.is_built}


class SearchedView:
    """What is read of a view, whichever process writes it."""

    searcher: PartitionSearcher

    def __init__(self, collection: Collection, partition: int, words: Region) -> None:
        self.collection = collection
        self.partition = partition
        self._words: NDArray[np.int64] = words.take(np.int64, WORDS)

    @property
    def kills(self) -> int:
        """How often rows were killed; as long as it stays the same, none was."""
        return int(self._words[KILLS])

    @property
    def position(self) -> int:
        return int(self._words[POSITION])

    @property
    def live_rows(self) -> int:
        searcher = self.searcher
        in_tails = sum(tail.count - tail.dead_rows for tail in searcher.tails)
        return in_tails + sum(segment.live_count for segment in searcher.segments)

    @property
    def dead_rows(self) -> int:
        searcher = self.searcher
        in_tails = sum(tail.dead_rows for tail in searcher.tails)
        return in_tails + sum(segment.dead_rows for segment in searcher.segments)

    @property
    def tail_rows(self) -> int:
        """Rows in memory, not yet in any checkpoint."""
        return sum(tail.count for tail in self.searcher.tails)

    @property
    def unbuilt_rows(self) -> int:
        """Rows that have not got their index yet: every search scans them all."""
        searcher = self.searcher
        flat = sum(segment.rows for segment in searcher.segments if not segment.is_built)
        return flat + sum(tail.count for tail in searcher.tails)

    @property
    def built_position(self) -> int:
        """The offset of the oldest row that no index holds; our position when there is none."""
        searcher = self.searcher
        flat = [segment.first_offset for segment in searcher.segments if not segment.is_built and segment.rows]
        tails = [int(tail.offsets[tail.first]) for tail in searcher.tails if tail.count]
        return min([*flat, *tails, self.position])

    def recent_row(self, id_: bytes) -> tuple[Tail, int] | None:
        """The tail and row that hold an id's newest version, None when no tail does."""
        hash_ = hash_ids([id_])[0]
        for tail in reversed(self.searcher.tails):
            row = tail.find(hash_, id_)
            if row is not None:
                return tail, row
        return None
