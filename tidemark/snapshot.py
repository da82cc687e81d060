"""What a view tells other processes of itself: where its rows, bits, lists and positions lie.

`View` (view.py) writes, `ViewMirror` (mirror.py) reads. Between them lie regions of shared memory: words (counters), a
position per partition, the bits of the row space, tails, lists, and a document, the structure, which names the parts.
Values only. Whoever reads a position before the structure finds everything before that position.
"""

import msgspec

from tidemark.ann.lists import Place as ListsPlace
from tidemark.manifest import SegmentEntry
from tidemark.tail import TailPlace

WORDS = 8
# `KILLS` counts the batches that killed rows whose newer versions are visible; `MOVES` how often rows got other
# numbers: when it has changed during a search of the lists, that search may lack rows. `CHANGES` is odd while a row may
# live in two versions or at two numbers, and while positions are behind the rows.
KILLS, MOVES, CHANGES = range(3)
# Positions have a place each, by partition number.
PARTITIONS_MAX = 2**17


class SegmentPlace(msgspec.Struct, frozen=True):
    """Where another process finds a segment, and its rows' numbers from `base` on.

    `indexed`: its living rows are in the lists. Its entry names no files but those that a search opens.
    """

    partition: int
    base: int
    directory: str
    entry: SegmentEntry
    indexed: bool


class IndexPlace(msgspec.Struct, frozen=True):
    """The lists, and the region that holds the quantizer's bytes, which were made by `version` of it (0: locally)."""

    lists: ListsPlace
    quantizer: str
    quantizer_bytes: int
    version: int


class Structure(msgspec.Struct, frozen=True):
    """The partitions, segments and tails of a view; `coming` may soon be among the segments and can be opened."""

    partitions: list[int]
    segments: list[SegmentPlace]
    tails: list[TailPlace]
    coming: list[SegmentPlace]
    index: IndexPlace | None


class ViewPlace(msgspec.Struct, frozen=True):
    """Where another process finds a view: names of regions, and how many row numbers there are."""

    words: str
    positions: str
    structure: str
    alive: str
    capacity: int
