"""Memory of the rows that one follower's partitions hold until checkpoints have them, all partitions together.

A partition is held when it has taken more than `HELD_OVER_LEFT` times what is left of `api.tail_bytes_max`. One
partition alone takes four fifths of it; there is always something left, so a partition whose consumer is dead does
not stop the others, and all of them together never take more than the maximum and a batch. (Switches share their
buffers among ports so: Choudhury and Hahne, "Dynamic queue length thresholds", 1998.) What partitions keep in memory
although checkpoints have it is shared out in the same way. Used by the follower's thread.
"""

HELD_OVER_LEFT = 4
# A held partition reads on when it has taken this share of what would hold it.
RESUME_SHARE = 0.8
# Rows that stay in tails although checkpoints have them, of all partitions: a segment of few rows costs a take-over
# that its rows, which are in the lists already, do not need. So many of 128-d take 75 MB.
KEPT_ROWS_MAX = 131_072
# So much does not come between two looks at all partitions.
ROOMY_BYTES = 512 * 2**20


class TailMemory:
    """What each partition has taken is told by `note`, in bytes and rows.

    `full` says why nobody may take more, whatever it has; None when nothing does.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.full: str | None = None
        self._taken: dict[int, tuple[int, int]] = {}
        self._total = self._row_count = 0
        self._limit = HELD_OVER_LEFT * bytes_max

    def note(self, partition: int, taken: int, row_count: int = 0) -> None:
        before, rows_before = self._taken.get(partition, (0, 0))
        self._total += taken - before
        self._row_count += row_count - rows_before
        self._taken[partition] = taken, row_count
        self._limit = max(0, HELD_OVER_LEFT * (self.bytes_max - self._total))

    def taken(self, partition: int) -> int:
        return self._taken.get(partition, (0, 0))[0]

    @property
    def is_roomy(self) -> bool:
        """Whether what comes in the next fraction of a second will not be too much."""
        return self.bytes_max - self._total > ROOMY_BYTES

    def is_short(self, partition: int) -> bool:
        """Whether the partition has to wait; when nothing is `full`, never when it has taken nothing."""
        return self.full is not None or self._taken.get(partition, (0, 0))[0] > self._limit

    def has_room(self, partition: int) -> bool:
        """Whether a partition that waited may go on."""
        return self.full is None and self.taken(partition) <= RESUME_SHARE * self._limit

    @property
    def kept_bytes_max(self) -> int:
        """What a partition may keep in memory although checkpoints have it: what is left of half of the maximum."""
        return max(0, self.bytes_max // 2 - self._total)

    @property
    def kept_rows_max(self) -> int:
        """The same in rows."""
        return max(0, KEPT_ROWS_MAX - self._row_count)
