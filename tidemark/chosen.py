"""The rows of a view that match a filter and live, as of one moment: a bit each, by row number.

At that moment no row was being replaced, so of every id either the older row is among them or the newer one.
"""

import numpy as np
from numpy.typing import NDArray

from tidemark.ann.open_lists import Alive
from tidemark.live_rows import LiveRows
from tidemark.matching import Bits, Matching
from tidemark.mirror import Part, Snapshot, ViewMirror


class Chosen:
    """See the module's docstring. `count`: how many they are."""

    def __init__(self, bits: Bits) -> None:
        self._bits, self.live = bits, LiveRows(bits, 8 * len(bits))
        self.count = self.live.live_count

    @property
    def alive(self) -> Alive:
        """What the lists are searched with."""
        return Alive(self._bits, self.count)

    @property
    def numbers(self) -> NDArray[np.int64]:
        """Their numbers, ascending."""
        return self.live.numbers()

    def of(self, part: Part) -> LiveRows:
        """Which of a part's rows they are."""
        return LiveRows(self._bits[part.base >> 3 :], part.row_count)


def choose(view: ViewMirror, matching: Matching) -> tuple[Snapshot, Chosen]:
    """The rows that match and live, and the parts that they lie in."""
    while True:
        kills, moves = view.kills, view.moves
        matching.refresh(view)
        snapshot, bits = view.snapshot(), matching.bits[: len(view.bitmap)]
        chosen = bits & view.bitmap[: len(bits)]
        if (view.kills, view.moves) == (kills, moves):
            return snapshot, Chosen(chosen)
