"""What the consumer says beside its committed offsets: which checkpoint they are, and what is wrong since when.

The group's coordinator keeps a few bytes of metadata beside an offset. It is the one place that the consumer and the
api both reach when the disk is full: the api's `/lag` shows it. For example
`{"manifest": 7, "generation": "g000001", "problem": "...", "since_ms": 1795551747986}`; without `problem` all is well.
Offsets and metadata are for people: nothing reads on from them. Used by the owning thread only.
"""

import json
import time
from typing import Any

from consumer.partition import OwnedPartition
from consumer.take_over import Waiting
from tidemark.caught_up import now_ms
from tidemark.log import Log, Partition
from tidemark.topic_watch import TopicFacts

# The brokers keep at most 4,096 bytes beside an offset; a character is up to four of them, an escaped one six.
CHARACTERS_MAX = 600
# A problem whose words change is told again after so long, and a position that was not taken.
EVERY_S = 10.0


class Told:
    """Commits positions and words for partitions of one log reader; no call waits for an answer."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def checkpointed(self, owned: OwnedPartition) -> None:
        """Commit the position of the checkpoint that was just made."""
        owned.told, owned.told_at = None, time.monotonic()
        self._commit(owned.partition, owned.checkpointed, owned.checkpoint_version, owned.generation.name)

    def taken_over(self, owned: OwnedPartition, waiting: Waiting, facts: TopicFacts | None) -> None:
        """Take back a problem that was said, by this process or the one before: a quiet topic's next checkpoint is far.

        The position is that of the checkpoint that was taken over.
        """
        known = facts.committed.get(owned.partition[1]) if facts and facts.committed else None
        if waiting.told is not None or (known is not None and '"problem"' in known.metadata):
            self.checkpointed(owned)

    def problem_of(self, owned: OwnedPartition) -> None:
        """Say why its checkpoints or its reading stand still, and when that is over.

        A position that no answer has come for is committed again: it was lost in a rebalance or with who committed it.
        """
        problem, now = owned.problem, time.monotonic()
        changed = (problem is None) != (owned.told is None)
        said = problem == owned.told and owned.committed == owned.checkpointed
        if not changed and (said or now - owned.told_at < EVERY_S):
            return
        if problem is None:
            owned.problem_since_ms = None
        elif owned.problem_since_ms is None:
            owned.problem_since_ms = now_ms()
        owned.told, owned.told_at = problem, now
        which = owned.checkpoint_version, owned.generation.name
        self._commit(owned.partition, owned.checkpointed, *which, problem, owned.problem_since_ms)

    def refusal_of(self, waiting: Waiting, made: str | None, facts: TopicFacts | None) -> None:
        """Say why it is not taken over; not where another consumer owns it, because that one speaks for it.

        The offset stays what was committed before, else it is where the log starts; nothing while that is not known.
        """
        if waiting.problem == waiting.told or waiting.stale:
            return
        number = waiting.partition[1]
        position = waiting.committed
        if position is None and facts is not None and facts.committed is not None:
            known = facts.committed.get(number)
            position = known.offset if known else facts.starts.get(number)
        if position is not None:
            waiting.told = waiting.problem
            self._commit(waiting.partition, position, None, made, waiting.problem, waiting.since_ms)

    def _commit(
        self,
        partition: Partition,
        position: int,
        version: int | None,
        made: str | None,
        problem: str | None = None,
        since_ms: int | None = None,
    ) -> None:
        said: dict[str, Any] = {"manifest": version, "generation": made}
        if problem is not None:
            said |= {"problem": problem[:CHARACTERS_MAX], "since_ms": since_ms}
        self._log.commit(partition, position, json.dumps(said, ensure_ascii=False).encode(errors="replace").decode())
