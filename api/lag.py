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


def of_partition(partition: PartitionMirror, committed: Committed | None, has_index: bool) -> dict[str, Any]:
    """`built_position` is null where rows are meant to stay without an index."""
    status, word = partition.status, word_of(committed)
    return {
        "partition": partition.number,
        "log_end_offset": status.end,
        "applied_position": status.position if status.opened else None,
        "checkpointed_position": status.checkpointed,
        "built_position": status.built_position if status.opened and has_index else None,
        "committed_offset": None if committed is None else committed.offset,
        "offset_lag": partition.offset_lag,
        "open_transaction_offsets": status.open_transaction_offsets,
        "time_lag_ms": partition.time_lag_ms,
        "caught_up_ms": status.caught_up_ms or None,
        "tail_bytes": status.tail_bytes,
        "unbuilt_rows": status.unbuilt_rows,
        "live_rows": status.live_rows,
        "dead_share": round(status.dead_rows / max(1, status.live_rows + status.dead_rows), 4),
        "segments": status.segments,
        "manifest": status.manifest,
        "bad_records": status.bad_records,
        "digest": f"{status.digest:016x}",
        "state": status.state,
        "problem": partition.problem,
        "problem_since_ms": partition.problem_since_ms,
        "consumer_problem": word.problem,
        "consumer_problem_since_ms": word.since_ms if word.problem else None,
    }


def of_collection(served: Served) -> dict[str, Any]:
    follower, collection = served.follower(), served.status
    committed = collection.committed if collection else {}
    has_index = follower.collection.index.kind != "flat"
    partitions = [of_partition(p, committed.get(p.number), has_index) for p in follower.partitions]
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
        if served.is_open and (found := _problems_of(served.follower()))
    }


def _problems_of(follower: FollowerMirror) -> list[dict[str, Any]]:
    return [
        {"partition": p.number, "problem": p.problem, "since_ms": p.problem_since_ms}
        for p in follower.partitions
        if p.problem
    ]
