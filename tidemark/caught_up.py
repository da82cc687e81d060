"""Since when a position is known to hold all that was in the log, by our own clock.

For example: at 12:00:00 the brokers were asked and said that the log ends at 500. When the position reaches 500,
everything written before 12:00:00 is applied, whatever time it is by then and whatever timestamps the records have.
So what is not applied is younger than `as_of_ms`: that is the age that lags and the check of `delete.retention.ms` use.
Producers' clocks do not count, because anybody may set them. Knows nothing of Kafka's client.
"""

import time
from collections import deque

# Ends that the position has not reached yet. When there are so many, newer ones are left out: it costs precision only.
ENDS_MAX = 64


class CaughtUp:
    """One partition's; used by one thread. `as_of_ms` is wall-clock milliseconds, 0 while it is not known."""

    def __init__(self, as_of_ms: int = 0) -> None:
        self.as_of_ms = as_of_ms
        self._ends: deque[tuple[int, int]] = deque()

    def note_end(self, end: int, asked_ms: int) -> None:
        """The log ended at `end` or before when it was asked for, at `asked_ms`: taken before the question was sent."""
        if self._ends and end < self._ends[-1][0]:  # the log was cut back
            self._ends.clear()
        if self._ends and end == self._ends[-1][0]:
            self._ends.pop()
        if len(self._ends) < ENDS_MAX:
            self._ends.append((end, asked_ms))

    def reach(self, position: int) -> None:
        """Everything before this position is applied."""
        while self._ends and self._ends[0][0] <= position:
            asked_ms = self._ends.popleft()[1]
            ahead = self.as_of_ms > now_ms()  # our clock was wrong, and has been set right
            self.as_of_ms = asked_ms if ahead else max(self.as_of_ms, asked_ms)


def now_ms() -> int:
    """Wall-clock milliseconds."""
    return time.time_ns() // 1_000_000
