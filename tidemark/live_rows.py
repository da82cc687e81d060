"""Which rows of a segment or a tail live: a bit each, in memory that other processes may share.

Invariants: one writer clears bits; any number of readers, also FAISS's selectors, look without locks; a cleared
bit is never set again. Used by `segment.py` and `tail.py`.
"""

import numpy as np
from numpy.typing import NDArray

from tidemark.shared_memory import Region, room

# While no more of its rows are dead an index is taken to lead a search, for what it is estimated to cost; beyond,
# it may find too few, and a segment is soon built anew (merge_policy.py).
DEAD_SHARE_LED = 0.2


class LiveRows:
    """The bits of `rows` rows, little-endian bit order; `dead` counts those cleared."""

    def __init__(self, region: Region, rows: int, new: bool) -> None:
        """Take them from a region; `new` memory starts with all rows alive."""
        self._rows = rows
        self._words: NDArray[np.int64] = region.take(np.int64, 1)
        self.bitmap: NDArray[np.uint8] = region.take(np.uint8, _bytes(rows))
        if new:
            self.bitmap[:] = 0xFF

    @staticmethod
    def size(rows: int) -> int:
        """Bytes they take of a region."""
        return room(np.int64, 1) + room(np.uint8, _bytes(rows))

    @property
    def dead(self) -> int:
        return int(self._words[0])

    def kill(self, rows: NDArray[np.int64]) -> None:
        """Clear the bits of rows that live."""
        bits = (~(np.uint8(1) << (rows & 7).astype(np.uint8))).astype(np.uint8)
        np.bitwise_and.at(self.bitmap, rows >> 3, bits)
        self._words[0] += len(rows)

    def dead_mask(self, rows: int | None = None) -> NDArray[np.bool_]:
        """Which of the first `rows` rows (of all) are dead, bool (rows,)."""
        count = self._rows if rows is None else rows
        return np.equal(np.unpackbits(self.bitmap[: _bytes(count)], count=count, bitorder="little"), 0)

    def numbers(self) -> NDArray[np.int64]:
        """The rows that live now, ascending; where nearly all are dead it takes no more than a look at the bitmap."""
        bitmap = self.bitmap.copy()
        some = np.flatnonzero(bitmap)
        if 16 * len(some) > len(bitmap):
            return np.flatnonzero(np.unpackbits(bitmap, count=self._rows, bitorder="little"))
        bits = np.unpackbits(bitmap[some], bitorder="little").reshape(-1, 8)
        rows: NDArray[np.int64] = (some[:, None] * 8 + np.arange(8))[bits != 0]
        return rows[: np.searchsorted(rows, self._rows)]  # the last byte may have more bits than there are rows

    def are_live(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        mask: NDArray[np.bool_] = self.bitmap[rows >> 3] >> (rows & 7).astype(np.uint8) & 1 != 0
        return mask

    def is_live(self, row: int) -> bool:
        return bool(self.bitmap[row >> 3] >> (row & 7) & 1)


def _bytes(rows: int) -> int:
    return (rows + 7) // 8
