"""How long a record took to become searchable, counted as it is applied; read by the metrics.

From the record's timestamp (which a producer's clock may falsify: clamped at 0), and from the fetch that brought
it, to the moment it was applied. Two observations per batch, its oldest and its newest record (one where they are of
the same millisecond), so a busy log costs no more. Records that are only caught up with are not counted: their age
says nothing about us.
"""

from bisect import bisect_left

import msgspec

BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0)


class Waits(msgspec.Struct):
    """A histogram with one writer; `counts` are per bucket, not cumulative, the last one is beyond all."""

    counts: list[int] = msgspec.field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    sum_s: float = 0.0

    def observe(self, waited_s: float) -> None:
        self.counts[bisect_left(BUCKETS_S, waited_s)] += 1
        if waited_s > 0:
            self.sum_s += waited_s


class Freshness:
    """`visible` counts from the record's timestamp, `fetched` from its fetch."""

    def __init__(self) -> None:
        self.visible = Waits()
        self.fetched = Waits()

    def observe(self, oldest_ms: int, newest_ms: int, fetched_at: float, now: float) -> None:
        """A batch is searchable `now`; like `fetched_at` in seconds of the wall clock."""
        self.fetched.observe(now - fetched_at)
        self.visible.observe(now - oldest_ms / 1000)
        if newest_ms != oldest_ms:
            self.visible.observe(now - newest_ms / 1000)
