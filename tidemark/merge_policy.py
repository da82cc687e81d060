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


def next_build(segments: Sequence[Candidate], ann_rows_min: int, rows_max: int, quiet: bool = False) -> list[str]:
    """Names of the segments to be made one, in their order; empty when all is well.

    `quiet`: nothing new arrives, so what is left is tidied up; else each row is rewritten as seldom as can be.
    """
    unbuilt = [segment for segment in segments if not segment.built]
    enough = sum(segment.live_rows for segment in unbuilt) >= ann_rows_min
    if enough and not quiet and len(unbuilt) >= UNBUILT_SEGMENTS:
        return [segment.name for segment in unbuilt]
    if unbuilt and ((quiet and enough) or len(unbuilt) > TIER_SEGMENTS):
        return _with_small_neighbours(unbuilt, segments, rows_max)
    if tier := _one_tier([segment for segment in segments if segment.built], rows_max):
        return tier
    return next(([s.name] for s in segments if s.built and s.dead_share > DEAD_SHARE_MAX), [])


def _with_small_neighbours(unbuilt: Sequence[Candidate], segments: Sequence[Candidate], rows_max: int) -> list[str]:
    """The unbuilt, and built segments no larger than they are together: those would be merged next anyway."""
    taken = {segment.name for segment in unbuilt}
    rows = sum(segment.live_rows for segment in unbuilt)
    for segment in sorted((s for s in segments if s.built), key=lambda s: s.live_rows):
        if segment.live_rows > rows or rows + segment.live_rows > rows_max:
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
