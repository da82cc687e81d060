"""Lag, said honestly: what is not known is null, never 0; why something waits is said beside it.

Reads published values only. Offsets: log end, applied, checkpointed (of the newest manifest taken over), built
(before it, every live row is in an index), committed. `time_lag_ms` is the age of the oldest record not applied,
at most; 0 when caught up, also when idle. Everything written before `caught_up_ms` is applied. Records behind an open
transaction are in none of these figures, because nobody who reads committed records sees them:
`open_transaction_offsets` counts them. What the consumer says of a partition comes with the offset that it commits.
Anybody may commit there, so what is not as expected is ignored.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from api.mirror import FollowerMirror, PartitionMirror, Replica, Served
from tidemark.log import Committed


class Word(msgspec.Struct, frozen=True):
    """What the consumer says of a partition, beside the offset it commits; times are ms of the wall clock."""

    problem: str | None = None
    since_ms: Annotated[int, Meta(ge=0, le=2**53)] | None = None


_decode_word = msgspec.json.Decoder(Word).decode


def word_of(committed: Committed | None) -> Word:
    """What the metadata of a committed offset say; nothing where they are of another sort."""
    try:
        return _decode_word(committed.metadata.encode()) if committed else Word()
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return Word()


def of_partition(partition: PartitionMirror, committed: Committed | None) -> dict[str, Any]:
    status, view = partition.status, partition.view
    word = word_of(committed)
    live, dead = (view.live_rows, view.dead_rows) if view else (0, 0)
    return {
        "partition": status.view.partition,
        "log_end_offset": None if status.end is None else max(status.end, partition.position),
        "applied_position": status.position if status.opened else None,
        "checkpointed_position": status.checkpointed,
        "built_position": _built_position(partition),
        "committed_offset": None if committed is None else committed.offset,
        "offset_lag": partition.offset_lag,
        "open_transaction_offsets": status.open_transaction_offsets,
        "time_lag_ms": partition.time_lag_ms,
        "caught_up_ms": status.caught_up_ms or None,
        "tail_bytes": status.tail_bytes,
        "unbuilt_rows": view.unbuilt_rows if view else 0,
        "live_rows": live,
        "dead_share": round(dead / max(1, live + dead), 4),
        "segments": len(view.searcher.segments) if view else 0,
        "manifest": status.manifest,
        "bad_records": status.bad_records,
        "digest": f"{status.digest:016x}",
        "state": status.state,
        "problem": partition.problem,
        "problem_since_ms": partition.problem_since_ms,
        "consumer_problem": word.problem,
        "consumer_problem_since_ms": word.since_ms if word.problem else None,
    }


def _built_position(partition: PartitionMirror) -> int | None:
    """Null where segments are meant to stay without an index."""
    view = partition.view
    return None if view is None or view.collection.index.kind == "flat" else view.built_position


def of_collection(served: Served) -> dict[str, Any]:
    follower, collection = served.follower, served.status
    follower.open_coming()
    committed = collection.committed if collection else {}
    partitions = [of_partition(p, committed.get(p.status.view.partition)) for p in follower.partitions]
    lags = [partition["offset_lag"] for partition in partitions]
    return {
        "collection": served.collection.name,
        "generation": follower.generation,
        "next_generation": collection.next_generation if collection else None,
        "ready": served.not_ready() is None,
        "problem": follower.problem,
        "ids_in_two_partitions": follower.status.ids_in_two_partitions,
        "warning": _warning(follower),
        "offset_lag": None if None in lags or not lags else sum(lags),
        "time_lag_ms": follower.staleness_ms,
        "unbuilt_rows": sum(partition["unbuilt_rows"] for partition in partitions),
        "live_rows": sum(partition["live_rows"] for partition in partitions),
        "partitions": partitions,
    }


def _warning(follower: FollowerMirror) -> str | None:
    """What is wrong with the records themselves, None when nothing is known to be."""
    twice = follower.status.ids_in_two_partitions
    if not twice:
        return None
    return (
        f"{twice} ids of a sample live in two partitions: producers of the topic place ids by different partitioners; "
        f"run `tidemark doctor {follower.collection.name}`"
    )


def problems(replica: Replica) -> dict[str, list[dict[str, Any]]]:
    """Per collection the partitions that are refused, held or cannot be served: why, and since when."""
    return {
        name: found
        for name, served in replica.collections.items()
        if served.status is not None and (found := _problems_of(served.follower))
    }


def _problems_of(follower: FollowerMirror) -> list[dict[str, Any]]:
    return [
        {"partition": p.status.view.partition, "problem": p.problem, "since_ms": p.problem_since_ms}
        for p in follower.partitions
        if p.problem
    ]
