"""Lag, said honestly: what is not known is null, never 0; why something waits is said beside it.

Reads published values only. Offsets: log end, applied, checkpointed (of the newest manifest taken over),
committed. `time_lag_ms` is the age of the oldest record not applied, 0 when caught up, also when idle.
"""

import time
from typing import Any

from api.follower import Followed, Follower
from api.serving import Served


def staleness_ms(follower: Follower) -> int | None:
    """The largest time lag of the partitions, null when one is not known."""
    lags = [time_lag_ms(followed) for followed in follower.partitions]
    known = [lag for lag in lags if lag is not None]
    return max(known) if known and len(known) == len(lags) else None


def time_lag_ms(followed: Followed) -> int | None:
    """Age of the oldest unapplied record: at most the age of the newest applied one."""
    lag = followed.offset_lag
    if lag is None:
        return None
    if lag == 0:
        return 0
    newest = followed.freshness.newest_timestamp_ms
    return max(0, int(time.time() * 1000) - newest) if newest else None


def of_partition(followed: Followed, committed: int | None) -> dict[str, Any]:
    view = followed.view
    live, dead = view.live_rows, view.dead_rows
    return {
        "partition": view.partition,
        "log_end_offset": followed.end,
        "applied_position": view.position,
        "checkpointed_position": followed.checkpointed,
        "committed_offset": committed,
        "offset_lag": followed.offset_lag,
        "time_lag_ms": time_lag_ms(followed),
        "unbuilt_rows": view.unbuilt_rows,
        "live_rows": live,
        "dead_share": round(dead / max(1, live + dead), 4),
        "segments": len(view.searcher.segments),
        "manifest": followed.version or None,
        "bad_records": followed.bad_records,
        "digest": f"{view.digest:016x}",
        "problem": followed.problem,
    }


def of_collection(served: Served, committed: dict[int, int]) -> dict[str, Any]:
    follower = served.follower
    partitions = [of_partition(f, committed.get(f.view.partition)) for f in follower.partitions]
    lags = [partition["offset_lag"] for partition in partitions]
    return {
        "collection": served.collection.name,
        "generation": served.generation,
        "next_generation": served.next.generation if served.next else None,
        "ready": served.not_ready() is None,
        "problem": follower.problem,
        "offset_lag": None if None in lags or not lags else sum(lags),
        "time_lag_ms": staleness_ms(follower),
        "unbuilt_rows": sum(partition["unbuilt_rows"] for partition in partitions),
        "live_rows": sum(partition["live_rows"] for partition in partitions),
        "partitions": partitions,
    }
