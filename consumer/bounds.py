"""The bounds at which a partition's reading is held back: rows without an index, and rows in memory.

Each bound that holds it is left again, by a checkpoint or by a build, and while nothing of these can come it does not
hold. What holds it from outside, such as dead letters, is not here. Values and reasons in words; changes nothing.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from consumer.quantizing import Known
from tidemark.merge_policy import next_build
from tidemark.settings import Settings

if TYPE_CHECKING:
    from consumer.partition import OwnedPartition

# A partition that is held back reads on at this share of the bound, or at half of the rows in memory.
RESUME_SHARE, RESUME_MEMORY_SHARE = 0.8, 0.5


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a partition may have before its reading is held back."""

    unbuilt_rows: int
    unbuilt_bytes: int
    memory_rows: int

    @classmethod
    def of(cls, settings: Settings) -> "Bounds":
        consumer = settings.consumer
        # Only a checkpoint that cannot be made lets more rows than `checkpoint.rows` gather in memory.
        return cls(consumer.unbuilt_rows_max, consumer.unbuilt_bytes_max, 2 * settings.checkpoint.rows)

    def reached(self, owned: "OwnedPartition", known: Known | None, builder: str | None) -> str | None:
        """Which bound is reached and can be left again, in words; `builder` is what is wrong with the builder."""
        share = RESUME_SHARE if owned.held else 1.0
        rows, row_bytes, least = owned.unbuilt_rows, owned.collection.row_bytes, owned.index.ann_rows_min
        # Fewer rows than get an index can never become fewer by a build.
        rows_max, bytes_max = max(self.unbuilt_rows, least), max(self.unbuilt_bytes, least * row_bytes)
        if (rows > share * rows_max or rows * row_bytes > share * bytes_max) and _become_fewer(owned, known):
            why = f"; {builder}" if builder else ""
            return f"waiting for the builder: rows without an index are at their bound{why}"
        in_memory = owned.state.tail_rows + owned.state.kept_deletes
        if in_memory > self.memory_rows * (RESUME_MEMORY_SHARE if owned.held else 1.0):
            return "waiting for a checkpoint: rows in memory are at their bound"
        return None


def _become_fewer(owned: "OwnedPartition", known: Known | None) -> bool:
    """Whether a checkpoint or a build that is to come lessens the rows without an index."""
    if owned.state.tail_rows:
        return True
    candidates, least = owned.candidates(), owned.index.ann_rows_min
    if known is None:
        return bool(next_build(candidates, least, 2**62, True, True))
    unbuilt = [each for each in candidates if not each.built]
    trained = known.newest is not None or sum(each.live_rows for each in candidates) >= least
    return bool(unbuilt) and (trained or any(each.dead_rows for each in unbuilt))
