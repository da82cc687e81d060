"""Which segments to build or merge next: pure functions of their sizes and dead shares.

`next_build` is for segments that each have an index of their own (hnsw, and flat, where being of some size counts as
one): their number and their dead rows cost every search, so rows are rewritten about log(n) times. `next_merge` is for
rows that one index finds whatever segment they are in: it is there for the room that dead rows take and for the number
of files, and rewrites as seldom as can be.
"""

from collections.abc import Sequence
from dataclasses import dataclass

# Merge when this many segments are within one tier: fewer means more rewriting, more means more to search.
TIER_SEGMENTS = 4
# While records arrive, so many checkpoints without an index are made one that has it.
UNBUILT_SEGMENTS = 2
TIER_RATIO = 4
DEAD_SHARE_MAX = 0.2
# Of segments that one index finds: while records arrive, and when all is quiet. With eight of a tier, each four times
# the one before, rows are rewritten once for each time their number has grown eightfold.
FILES_TIER_SEGMENTS, QUIET_TIER_SEGMENTS = 8, 4
FILES_DEAD_SHARE_MAX, QUIET_DEAD_SHARE_MAX = 0.25, 0.1
# Segments of fewer rows are of one tier: a file is opened as soon as a larger one.
SMALL_ROWS = 4_096


@dataclass(frozen=True, slots=True)
class Candidate:
    """What the policy needs to know of a segment. `built`: its rows are in an index, or are never to be."""

    name: str
    live_rows: int
    dead_rows: int
    built: bool

    @property
    def dead_share(self) -> float:
        return self.dead_rows / max(1, self.live_rows + self.dead_rows)


def next_merge(segments: Sequence[Candidate], rows_max: int, quiet: bool = False, held: bool = False) -> list[str]:
    """Names of the segments to be made one, or of one to be written without its dead rows; empty when all is well.

    `quiet`: nothing new arrives, so what is left is tidied up.
    `held`: reading waits for rows without codes to become fewer, and no quantizer is to come: dead ones go.
    """
    unbuilt = [segment for segment in segments if not segment.built]
    if held and any(segment.dead_rows for segment in unbuilt):
        return [segment.name for segment in unbuilt]
    share, rows = (QUIET_DEAD_SHARE_MAX, 1) if quiet else (FILES_DEAD_SHARE_MAX, SMALL_ROWS // TIER_RATIO)
    dead = [segment for segment in segments if segment.dead_share > share and segment.dead_rows >= rows]
    if dead:
        return _with_smaller(max(dead, key=lambda segment: segment.dead_rows), segments, rows_max)
    return _one_tier(segments, rows_max, QUIET_TIER_SEGMENTS if quiet else FILES_TIER_SEGMENTS, SMALL_ROWS)


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
    if tier := _one_tier(built, rows_max, TIER_SEGMENTS):
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


def _with_smaller(one: Candidate, segments: Sequence[Candidate], rows_max: int) -> list[str]:
    """This one, and all that are smaller, as many as may be in one segment: they cost little beside it."""
    taken, rows = {one.name}, one.live_rows
    for segment in sorted((s for s in segments if s is not one), key=lambda s: s.live_rows):
        rows += segment.live_rows
        if segment.live_rows > one.live_rows or rows > rows_max:
            break
        taken.add(segment.name)
    return [segment.name for segment in segments if segment.name in taken]


def _one_tier(segments: Sequence[Candidate], rows_max: int, count: int, small_rows: int = 1) -> list[str]:
    """So many segments of like size that together are not too large; those of up to `small_rows` are alike."""
    by_size = sorted(segments, key=lambda segment: segment.live_rows)
    for first in range(len(by_size) - count + 1):
        tier = by_size[first : first + count]
        rows = sum(segment.live_rows for segment in tier)
        if tier[-1].live_rows <= TIER_RATIO * max(small_rows, tier[0].live_rows) and rows <= rows_max:
            taken = {segment.name for segment in tier}
            return [segment.name for segment in segments if segment.name in taken]
    return []
