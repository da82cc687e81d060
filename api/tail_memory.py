"""Memory of the rows that one follower's partitions hold until checkpoints have them, all partitions together.

A partition is held when it has taken more than `HELD_OVER_LEFT` times what is left of `api.tail_bytes_max`. One
partition alone takes four fifths of it; there is always something left, so a partition whose consumer is dead does
not stop the others, and all of them together never take more than the maximum and a batch. (Switches share their
buffers among ports so: Choudhury and Hahne, "Dynamic queue length thresholds", 1998.) Used by the follower's thread.
"""

HELD_OVER_LEFT = 4
# A held partition reads on when it has taken this share of what would hold it.
RESUME_SHARE = 0.8


class TailMemory:
    """What each partition has taken is told by `note`, in bytes."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._taken: dict[int, int] = {}
        self._total = 0

    def note(self, partition: int, taken: int) -> None:
        self._total += taken - self._taken.get(partition, 0)
        self._taken[partition] = taken

    def taken(self, partition: int) -> int:
        return self._taken.get(partition, 0)

    def is_short(self, partition: int) -> bool:
        """Whether the partition has to wait; never when it has taken nothing."""
        return self.taken(partition) > self._limit

    def has_room(self, partition: int) -> bool:
        """Whether a partition that waited may go on."""
        return self.taken(partition) <= RESUME_SHARE * self._limit

    @property
    def _limit(self) -> int:
        return max(0, HELD_OVER_LEFT * (self.bytes_max - self._total))

    @property
    def kept_max(self) -> int:
        """What a partition may keep in memory although checkpoints have it: rows without an index are searched faster
        there. Half of the maximum, shared evenly, so it holds nobody back."""
        return self.bytes_max // 2 // max(1, len(self._taken))
