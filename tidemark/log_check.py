"""Whether a position belongs to a log: the same topic, no gap before the position, no end before it.

The log is never silently skipped: each mismatch is an error with both sides and what to do. Used by whoever opens
a checkpoint to read on from it; what the brokers say is given, `topic_watch.py` has asked them.
"""

from dataclasses import dataclass

from tidemark.caught_up import now_ms
from tidemark.errors import LogGap, TopicReplaced
from tidemark.log import Partition
from tidemark.manifest import Manifest, TopicIdentity


@dataclass(frozen=True, slots=True)
class LogBounds:
    """What the brokers say of one partition's log; `tombstones_kept_ms` is None when it is not compacted."""

    first: int
    end: int
    tombstones_kept_ms: int | None


def remedy(collection: str) -> str:
    return f"build a new generation with `tidemark replay {collection} --from earliest`"


def check_log(manifest: Manifest, partition: Partition, topic: TopicIdentity, log: LogBounds) -> None:
    """Raise TopicReplaced or LogGap unless reading on from the manifest's position skips nothing."""
    name = f"{partition[0]}[{partition[1]}]"
    advice = remedy(manifest.collection)
    check_identity(name, TopicIdentity(manifest.cluster_id, manifest.topic_id), topic, advice)
    check_position(name, manifest.position, manifest.caught_up_ms, log, advice)


def check_position(name: str, position: int, as_of_ms: int, log: LogBounds, advice: str) -> None:
    """Raise LogGap unless the log holds everything since the position, which held all of the log at `as_of_ms`."""
    if position < log.first:
        raise LogGap(
            f"{name}: the checkpoint is at {position}, the log starts at {log.first}: "
            f"{log.first - position} offsets were removed unread; {advice}"
        )
    if position > log.end:
        raise LogGap(f"{name}: the checkpoint is at {position}, the log ends at {log.end}: it was cut back; {advice}")
    if log.end > position:
        check_age(name, position, as_of_ms, log.tombstones_kept_ms, advice)


def check_age(name: str, position: int, as_of_ms: int, kept_ms: int | None, advice: str) -> None:
    """Raise LogGap when deletes beyond the position may be gone before they are read: for a reader that is behind.

    The position held all of the log at `as_of_ms`; `kept_ms` is for how long the topic keeps deletes, None: for ever.
    """
    age_ms = now_ms() - as_of_ms
    if kept_ms is not None and age_ms > kept_ms:
        raise LogGap(
            f"{name}: position {position} is {age_ms // 1000} s old and the topic is compacted with "
            f"delete.retention.ms={kept_ms}: deletes may have been removed unread; {advice}"
        )


def check_identity(name: str, known: TopicIdentity, found: TopicIdentity, advice: str) -> None:
    """Raise TopicReplaced when the topic is not the one the checkpoint was made from."""
    if known.cluster_id != found.cluster_id:
        raise TopicReplaced(
            f"{name}: the checkpoint is of cluster {known.cluster_id}, this is cluster {found.cluster_id}: "
            f"point kafka.bootstrap.servers at the right one, or {advice}"
        )
    if known.topic_id != found.topic_id:
        raise TopicReplaced(
            f"{name}: the checkpoint is of topic id {known.topic_id}, the topic's id is {found.topic_id}: "
            f"it was deleted and created again; {advice}"
        )
