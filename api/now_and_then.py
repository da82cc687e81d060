"""Work of a thread's loop that is done now and then, and seldomer when it takes long.

Each kind of work takes three thousandths of the thread's time at most, however many partitions it has to look at.
"""

import time
from collections.abc import Callable

SHARE_MAX = 0.003
# What took so long that it would not be done again for longer than this is done again after this.
INTERVAL_S_MAX = 2.0


class NowAndThen:
    """Kinds of work by their names; used by one thread."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}

    def do(self, what: str, interval_s: float, action: Callable[[], None]) -> None:
        """Do it when it was not done for `interval_s`, or for as long as it may rest."""
        now = time.monotonic()
        if now >= self._due.get(what, 0.0):
            began = time.thread_time()
            action()
            self.rest(what, interval_s, time.thread_time() - began, now)

    def rest(self, what: str, interval_s: float, took_s: float, since: float | None = None) -> None:
        """Not again for a while, because it took so long; `since` is monotonic seconds, None: now."""
        now = time.monotonic() if since is None else since
        self._due[what] = max(self._due.get(what, 0.0), now + max(interval_s, min(INTERVAL_S_MAX, took_s / SHARE_MAX)))
