"""Whether a checkpoint belongs to a log: the same topic, no gap before its position, no end before it.

The log is never silently skipped (invariant 8): each mismatch is an error with both sides and what to do. Used
by whoever opens a checkpoint to read on from it, consumer and api alike.
"""

import time

from tidemark.errors import LogGap, TopicReplaced
from tidemark.log import Partition
from tidemark.manifest import Manifest, TopicIdentity
from tidemark.topic import Topics


def check_log(manifest: Manifest, partition: Partition, topic: TopicIdentity, topics: Topics) -> None:
    """Raise TopicReplaced or LogGap unless reading on from the manifest's position skips nothing."""
    name = f"{partition[0]}[{partition[1]}]"
    remedy = f"build a new generation with `tidemark replay {manifest.collection} --from earliest`"
    check_identity(name, TopicIdentity(manifest.cluster_id, manifest.topic_id), topic, remedy)
    first, end = topics.starts([partition])[partition], topics.ends([partition])[partition]
    if manifest.position < first:
        raise LogGap(
            f"{name}: the checkpoint is at {manifest.position}, the log starts at {first}: "
            f"{first - manifest.position} offsets were removed unread; {remedy}"
        )
    if manifest.position > end:
        raise LogGap(
            f"{name}: the checkpoint is at {manifest.position}, the log ends at {end}: it was cut back; {remedy}"
        )
    age_ms = time.time_ns() // 1_000_000 - manifest.created_ms
    kept_ms = topics.tombstones_kept_ms(partition[0])
    if kept_ms is not None and age_ms > kept_ms and end > manifest.position:
        raise LogGap(
            f"{name}: the checkpoint is {age_ms // 1000} s old and the topic is compacted with "
            f"delete.retention.ms={kept_ms}: deletes may have been removed unread; {remedy}"
        )


def check_identity(name: str, known: TopicIdentity, found: TopicIdentity, remedy: str) -> None:
    """Raise TopicReplaced when the topic is not the one the checkpoint was made from."""
    if known.cluster_id != found.cluster_id:
        raise TopicReplaced(
            f"{name}: the checkpoint is of cluster {known.cluster_id}, this is cluster {found.cluster_id}: "
            f"point kafka.bootstrap.servers at the right one, or {remedy}"
        )
    if known.topic_id != found.topic_id:
        raise TopicReplaced(
            f"{name}: the checkpoint is of topic id {known.topic_id}, the topic's id is {found.topic_id}: "
            f"it was deleted and created again; {remedy}"
        )
