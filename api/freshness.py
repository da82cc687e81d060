"""How long a record took to become searchable, counted as it is applied; read by the metrics.

From the record's timestamp (which a producer's clock may falsify: clamped at 0) to the moment it was applied.
One observation for the oldest and one for the newest record of each batch, so a busy log costs no more.
"""

import bisect
import time

BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0)


class Freshness:
    """A histogram with one writer; `counts` are per bucket, not cumulative, the last one is beyond all."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.sum_s = 0.0
        self.newest_timestamp_ms = 0
        self.applied_at = 0.0

    def observe(self, oldest_ms: int, newest_ms: int, fetched_at: float) -> None:
        now = time.time()
        for timestamp_ms in (oldest_ms, newest_ms):
            waited = max(0.0, now - timestamp_ms / 1000)
            self.counts[bisect.bisect_left(BUCKETS_S, waited)] += 1
            self.sum_s += waited
        self.newest_timestamp_ms = newest_ms
        self.applied_at = now
