"""The codes of a part's rows: read from beside a segment or made, kept by row, and put into the lists.

Nothing here knows when that is due: `collection_index.py` does, whose side thread calls it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tidemark.ann.lists import Lists
from tidemark.ann.quantizer import OUTLIER, Quantizer
from tidemark.errors import CorruptCheckpoint, StoreUnavailable
from tidemark.live_rows import LiveRows
from tidemark.manifest import SegmentEntry
from tidemark.part import Part
from tidemark.segment import Segment
from tidemark.tail import Tail

# Rows that are coded at a time: they take 25 ms at 128-d.
CODED_ROWS_MAX = 8_192
# With more outliers than so many, and than this share, rows are unlike those that the quantizer was trained on: each
# outlier is ranked exactly by every search.
OUTLIERS_FEW, OUTLIERS_SHARE = 16, 1 / 8


@dataclass(frozen=True, slots=True)
class Used:
    """A quantizer in use: the consumers' of that version, or our `own`, which is to do until there is a newer one."""

    quantizer: Quantizer
    version: int
    own: bool = False

    def made(self, entry: SegmentEntry) -> bool:
        """Whether the codes that an entry names are of it."""
        return not self.own and entry.is_coded_by(self.version, self.quantizer.identity)


@dataclass(slots=True)
class Coded:
    """The first `count` rows of a part are in the lists, with these lists (n,) and codes (n, code bytes)."""

    part: Part
    lists: NDArray[np.uint32]
    codes: NDArray[np.uint8]
    count: int = 0


class Appended(NamedTuple):
    """Of a part whose first row has the number `base` the rows [first, stop) that lived went to the lists.

    `bitmap`: all that lived, as in LiveRows. The number is given along with the part, which may lose it meanwhile.
    """

    base: int
    coded: Coded
    first: int
    stop: int
    bitmap: NDArray[np.uint8]

    @property
    def died_since(self) -> NDArray[np.int64]:
        live = self.coded.part.live
        rows = LiveRows(self.bitmap & ~live.bitmap, live.row_count).numbers()
        return rows[(rows >= self.first) & (rows < self.stop)]


def codes_of(part: Part, used: Used) -> tuple[Coded, bool]:
    """The codes of all rows that a part has now, and whether its rows are like those that codes are made for.

    Those beside a segment are read, when they are of this quantizer.
    """
    quantizer = used.quantizer
    entry = part.entry if isinstance(part, Segment) else None
    if isinstance(part, Segment) and entry is not None and used.made(entry):
        written = _written_beside(part, entry)
        if written is not None and written[1].shape[1] == quantizer.code_bytes:
            return Coded(part, *written, part.row_count), is_like(quantizer, entry.error, written[0])
    coded = room_for(part, quantizer)
    coded.count = part.row_count
    error = encode(coded, 0, coded.count, quantizer)
    return coded, is_like(quantizer, error, coded.lists[: coded.count])


def _written_beside(segment: Segment, entry: SegmentEntry) -> tuple[NDArray[np.uint32], NDArray[np.uint8]] | None:
    """The codes that an entry of a segment names; None when they are gone, as a newer manifest names newer ones."""
    try:
        return segment.codes_by(entry)
    except (CorruptCheckpoint, StoreUnavailable):
        return None


def encode(coded: Coded, first: int, stop: int, quantizer: Quantizer) -> float:
    """Make the codes of rows [first, stop); their largest error."""
    error = 0.0
    for start in range(first, stop, CODED_ROWS_MAX):
        end = min(stop, start + CODED_ROWS_MAX)
        found = quantizer.encode(coded.part.vectors[start:end])
        coded.lists[start:end], coded.codes[start:end] = found.lists, found.codes
        error = max(error, found.error)
    return error


def completed(coded: Coded, quantizer: Quantizer) -> int:
    """Make the codes of all rows a part has now, for the tails after it may be coded already; how many they are."""
    stop = coded.part.row_count
    encode(coded, coded.count, stop, quantizer)
    return stop


def is_like(quantizer: Quantizer, error: float, lists: NDArray[np.uint32]) -> bool:
    """Whether rows in these lists, whose codes have this error, are like those that the quantizer was trained on."""
    outliers = int(np.count_nonzero(lists == OUTLIER))
    return error <= quantizer.error_max and outliers <= max(OUTLIERS_FEW, OUTLIERS_SHARE * len(lists))


def room_for(part: Part, quantizer: Quantizer) -> Coded:
    rows = part.capacity
    return Coded(part, np.empty(rows, np.uint32), np.empty((rows, quantizer.code_bytes), np.uint8))


def append(lists: Lists, base: int, coded: Coded, first: int, stop: int) -> Appended | None:
    """Add the living ones of rows [first, stop) of a part; None when there is no room for them."""
    live = coded.part.live
    appended = Appended(base, coded, first, stop, live.bitmap.copy())
    rows = LiveRows(appended.bitmap, live.row_count).numbers()
    rows = rows[(rows >= first) & (rows < stop)]
    return appended if lists.append(coded.lists[rows], coded.codes[rows], base + rows) else None


def bytes_of(row_count: int, lists: Lists) -> int:
    """Memory that so many more rows take, at least."""
    return row_count * (lists.place.code_bytes + 8)


def coded_up_to(parts: Iterable[Part], done: Sequence[Appended]) -> int:
    """How many of all rows that tails ever had are in the lists, one after the other."""
    stops = {appended.base: appended.stop for appended in done}
    up_to = 0
    for tail in (part for part in parts if isinstance(part, Tail)):
        stop = stops.get(tail.base, 0)
        up_to = tail.start + stop
        if stop < tail.row_count:
            break
    return up_to
