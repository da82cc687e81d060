"""What a view knows of one of its partitions: values, written by the view's thread alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tidemark.segment import Segment

# What CPython takes for a row's entry in the dictionary of recent ids, and for a delete beside its id.
RECENT_BYTES, DELETE_BYTES = 160, 112


@dataclass(slots=True)
class PartitionState:
    """One partition of a view, as of its position (the next offset to apply); written by the view's thread only.

    `tail_rows`, `tail_bytes`: what no segment holds yet. `segments` are in the order of the log but for merged ones.
    """

    number: int
    position: int = 0
    digest: int = 0
    leader_epoch: int = -1
    segments: tuple[Segment, ...] = ()
    live_rows: int = 0
    tail_rows: int = 0
    row_bytes: int = 0
    delete_bytes: int = 0
    recent: dict[bytes, int] = field(default_factory=dict)
    deletes: list[tuple[int, bytes]] = field(default_factory=list)
    checkpoint: int = 0  # `deletes` has all that was deleted from this position on
    held_from: int = 0  # the tails hold all living rows that were applied from this position on

    @property
    def kept_deletes(self) -> int:
        """Deletes that no checkpoint holds yet: they are kept in memory as rows are."""
        return len(self.deletes)

    @property
    def tail_bytes(self) -> int:
        """Memory of the rows that no segment holds yet, their ids and metadata, and of the deletes."""
        return self.row_bytes + RECENT_BYTES * self.tail_rows + self.delete_bytes

    @property
    def dead_rows(self) -> int:
        held = sum(segment.row_count for segment in self.segments) + self.tail_rows
        return max(0, held - self.live_rows)

    def forget_deletes(self, before: int) -> None:
        """Those before a position are in a checkpoint now."""
        self.deletes = [(at, id_) for at, id_ in self.deletes if at > before]
        self.delete_bytes = delete_bytes_of([id_ for _, id_ in self.deletes])


def delete_bytes_of(deleted: Sequence[bytes]) -> int:
    return sum(map(len, deleted)) + DELETE_BYTES * len(deleted)
