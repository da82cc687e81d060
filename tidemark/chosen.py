"""The rows of a view that match a filter and live, as of one moment: a bit each, by row number.

At that moment no row was being replaced, so of every id either the older row is among them or the newer one. As long
as nothing is killed, moved or added, they stay the same, and so do they here.
"""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tidemark.ann.open_lists import Alive
from tidemark.live_rows import LiveRows
from tidemark.matching import Bits, Matching
from tidemark.mirror import Snapshot, ViewMirror
from tidemark.part import Part


class Chosen:
    """See the module's docstring. `count`: how many they are; `snapshot`: the parts that they lie in."""

    def __init__(self, bits: Bits, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._bits, self._live = bits, LiveRows(bits, 8 * len(bits))
        self.count = self._live.live_count

    @cached_property
    def alive(self) -> Alive:
        """What the lists are searched with."""
        return Alive(self._bits, self.count)

    @cached_property
    def numbers(self) -> NDArray[np.int64]:
        """Their numbers, ascending."""
        return self._live.numbers()

    def of(self, part: Part) -> LiveRows:
        """Which of a part's rows they are."""
        return LiveRows(self._bits[part.base >> 3 :], part.row_count)


def choose(view: ViewMirror, matching: Matching) -> Chosen:
    """The rows that match and live now."""
    state = matching.refresh(view), view.kills, view.moves
    known: tuple[object, Chosen] | None = matching.chosen
    if known is not None and known[0] == state and known[1].snapshot is view.snapshot():
        return known[1]
    kills, moves, snapshot, alive = _alive(view)
    version = matching.refresh(view)  # all that lived has been asked
    bits = matching.bits[: len(alive)]
    found = Chosen(alive[: len(bits)] & bits, snapshot)
    matching.chosen = (version, kills, moves), found
    return found


def _alive(view: ViewMirror) -> tuple[int, int, Snapshot, Bits]:
    """The bits of all rows at one moment: only they are copied, for while batches come without end others never end."""
    while True:
        kills, moves, snapshot = view.kills, view.moves, view.snapshot()
        bits = view.bitmap[: (snapshot.end + 7) >> 3].copy()
        if (view.kills, view.moves) == (kills, moves):
            return kills, moves, snapshot, bits
