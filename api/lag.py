"""Lag, said honestly: what is not known is null, never 0; why something waits is said beside it.

Reads published values only. Offsets: log end, applied, checkpointed (of the newest manifest taken over), built
(before it, every live row is in an index), committed. `time_lag_ms` is the age of the oldest record not applied,
at most; 0 when caught up, also when idle.
"""

from typing import Any

from api.followed import Followed
from api.follower import Follower
from api.serving import Served


def staleness_ms(follower: Follower) -> int | None:
    """The largest time lag of the partitions, null when one is not known."""
    lags = [followed.time_lag_ms for followed in follower.partitions]
    known = [lag for lag in lags if lag is not None]
    return max(known) if known and len(known) == len(lags) else None


def of_partition(followed: Followed, committed: int | None) -> dict[str, Any]:
    view = followed.view
    position, digest = followed.state
    live, dead = view.live_rows, view.dead_rows
    return {
        "partition": view.partition,
        "log_end_offset": None if followed.end is None else max(followed.end, position),
        "applied_position": position if followed.opened else None,
        "checkpointed_position": followed.checkpointed,
        "built_position": _built_position(followed),
        "committed_offset": committed,
        "offset_lag": followed.offset_lag,
        "time_lag_ms": followed.time_lag_ms,
        "unbuilt_rows": view.unbuilt_rows,
        "live_rows": live,
        "dead_share": round(dead / max(1, live + dead), 4),
        "segments": len(view.searcher.segments),
        "manifest": followed.version or None,
        "bad_records": followed.bad_records,
        "digest": f"{digest:016x}",
        "state": _state(followed),
        "problem": followed.problem or followed.waiting,
    }


def _state(followed: Followed) -> str:
    if not followed.opened:
        return "opening"
    if followed.problem:
        return "stopped"
    if followed.held:
        return "waiting"
    return "following" if followed.reading else "starting"


def _built_position(followed: Followed) -> int | None:
    """The offset of the oldest row that no index holds; null where segments are meant to stay without one."""
    if followed.view.collection.index.kind == "flat" or not followed.opened:
        return None
    searcher = followed.view.searcher
    flat = [int(segment.offsets.min()) for segment in searcher.segments if not segment.is_built and segment.rows]
    tails = [int(tail.offsets[0]) for tail in searcher.tails if tail.rows]
    return min([*flat, *tails, followed.state[0]])


def of_collection(served: Served) -> dict[str, Any]:
    follower, facts = served.follower, served.watch.facts
    committed = facts.committed if facts else {}
    followed = sorted(follower.partitions, key=lambda followed: followed.partition)
    partitions = [of_partition(f, committed.get(f.partition[1])) for f in followed]
    lags = [partition["offset_lag"] for partition in partitions]
    return {
        "collection": served.collection.name,
        "generation": follower.generation,
        "next_generation": served.next.generation if served.next else None,
        "ready": served.not_ready() is None,
        "problem": follower.problem,
        "offset_lag": None if None in lags or not lags else sum(lags),
        "time_lag_ms": staleness_ms(follower),
        "unbuilt_rows": sum(partition["unbuilt_rows"] for partition in partitions),
        "live_rows": sum(partition["live_rows"] for partition in partitions),
        "partitions": partitions,
    }
