"""Which segments to build or merge next: a pure function of their sizes and dead shares.

Size-tiered: rows are rewritten about log(n) times, and a partition settles at a few large segments. A built
segment is rebuilt when more than a fifth of it is dead, because dead rows cost search effort.
"""

from collections.abc import Sequence
from dataclasses import dataclass

# Merge when this many segments are within one tier: fewer means more rewriting, more means more to search.
TIER_SEGMENTS = 4
# While records arrive, so many checkpoints without an index are made one that has it.
UNBUILT_SEGMENTS = 2
TIER_RATIO = 4
DEAD_SHARE_MAX = 0.2


@dataclass(frozen=True, slots=True)
class Candidate:
    """What the policy needs to know of a segment."""

    name: str
    live_rows: int
    dead_rows: int
    built: bool

    @property
    def dead_share(self) -> float:
        return self.dead_rows / max(1, self.live_rows + self.dead_rows)


def next_build(
    segments: Sequence[Candidate], ann_rows_min: int, rows_max: int, quiet: bool = False, held: bool = False
) -> list[str]:
    """Names of the segments to be made one, in their order; empty when all is well.

    `quiet`: nothing new arrives, so what is left is tidied up; else each row is rewritten as seldom as can be.
    `held`: reading waits for unbuilt rows to become fewer, so whatever makes them fewer comes first.
    """
    unbuilt = [segment for segment in segments if not segment.built]
    enough = sum(segment.live_rows for segment in unbuilt) >= ann_rows_min
    if held and unbuilt and (enough or any(segment.dead_rows for segment in unbuilt)):
        return [segment.name for segment in unbuilt]
    if enough and not quiet and len(unbuilt) >= UNBUILT_SEGMENTS:
        return [segment.name for segment in unbuilt]
    if unbuilt and ((quiet and enough) or len(unbuilt) > TIER_SEGMENTS):
        return _with_small_neighbours(unbuilt, segments, rows_max)
    built = [segment for segment in segments if segment.built]
    if tier := _one_tier(built, rows_max):
        return tier
    smallest = sorted(built, key=lambda segment: segment.live_rows)[:1]
    if quiet and len(together := _with_small_neighbours(smallest, segments, rows_max)) > 1:
        return together
    return next(([segment.name] for segment in built if segment.dead_share > DEAD_SHARE_MAX), [])


def _with_small_neighbours(some: Sequence[Candidate], segments: Sequence[Candidate], rows_max: int) -> list[str]:
    """These, and built segments at most twice as large as they are together: those would be merged next anyway."""
    taken = {segment.name for segment in some}
    rows = sum(segment.live_rows for segment in some)
    for segment in sorted((s for s in segments if s.built and s not in some), key=lambda s: s.live_rows):
        if segment.live_rows > 2 * rows or rows + segment.live_rows > rows_max:
            break
        taken.add(segment.name)
        rows += segment.live_rows
    return [segment.name for segment in segments if segment.name in taken]


def _one_tier(built: Sequence[Candidate], rows_max: int) -> list[str]:
    by_size = sorted(built, key=lambda segment: segment.live_rows)
    for first in range(len(by_size) - TIER_SEGMENTS + 1):
        tier = by_size[first : first + TIER_SEGMENTS]
        rows = sum(segment.live_rows for segment in tier)
        if tier[-1].live_rows <= TIER_RATIO * max(1, tier[0].live_rows) and rows <= rows_max:
            taken = {segment.name for segment in tier}
            return [segment.name for segment in built if segment.name in taken]
    return []
