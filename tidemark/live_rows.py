"""Which rows of a segment or a tail live: a bit each, in memory that other processes may share.

Invariants: one writer clears bits; any number of readers, also FAISS's selectors, look without locks; a cleared
bit is never set again. Used by `segment.py` and `tail.py`.
"""

import numpy as np
from numpy.typing import NDArray

from tidemark.shared_memory import Region, room


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

    def are_live(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        mask: NDArray[np.bool_] = self.bitmap[rows >> 3] >> (rows & 7).astype(np.uint8) & 1 != 0
        return mask

    def is_live(self, row: int) -> bool:
        return bool(self.bitmap[row >> 3] >> (row & 7) & 1)


def _bytes(rows: int) -> int:
    return (rows + 7) // 8
