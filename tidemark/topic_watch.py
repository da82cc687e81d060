"""What the brokers say about a topic, asked on a thread of its own so that nobody else waits for them.

`facts` is immutable and replaced by one assignment; older than a few seconds it counts as not known, so a lag
is never 0 because nobody answered. Ends and starts every second, committed offsets every 5 s, identity every 30 s;
each is one question for all partitions. The consumer and the api's replica have one for each collection.
"""

import logging
import threading
import time
from dataclasses import dataclass, replace

from tidemark.caught_up import now_ms
from tidemark.collection import Collection
from tidemark.errors import TidemarkError
from tidemark.log import Committed, Partition
from tidemark.log_check import LogBounds
from tidemark.manifest import TopicIdentity
from tidemark.settings import Settings
from tidemark.topic import Topics

logger = logging.getLogger(__name__)

ENDS_EVERY_S = 1.0
COMMITTED_EVERY_S = 5.0
IDENTITY_EVERY_S = 30.0
KNOWN_FOR_S = 5.0
ASK_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class TopicFacts:
    """Per partition: where its log starts and ends, and what the group has committed (None: that is not known).

    `epochs` are the newest leader epochs, -1 where the broker tells none. `acknowledged` was asked for before `ends`:
    what it is ahead of them was waiting behind an open transaction.
    `asked_at` (monotonic seconds) and `asked_ms` (wall clock) are from before the question, so the answer is not older;
    `identity_at` is the same of the identity, which is asked for less often.
    """

    identity: TopicIdentity
    tombstones_kept_ms: int | None
    starts: dict[int, int]
    ends: dict[int, int]
    epochs: dict[int, int]
    acknowledged: dict[int, int]
    committed: dict[int, Committed] | None
    asked_at: float
    asked_ms: int
    identity_at: float

    def bounds(self, partition: int) -> LogBounds | None:
        if partition not in self.starts:
            return None
        return LogBounds(self.starts[partition], self.ends[partition], self.tombstones_kept_ms)

    def open_transaction_offsets(self, partition: int) -> int | None:
        """How many offsets no read-committed reader sees yet, because a transaction before them is open."""
        if partition not in self.starts:
            return None
        return max(0, self.acknowledged[partition] - self.ends[partition])


class TopicWatch:
    """Asks about one topic until closed; any thread reads. `error` and `problem`: why it was not answered last time."""

    def __init__(self, settings: Settings, collection: Collection) -> None:
        self._group = settings.consumer.group
        self._topic = collection.topic
        self._topics = Topics(settings.kafka, ASK_TIMEOUT_S)
        self._closing = threading.Event()
        self._asking = threading.Event()
        self._identity_due = self._committed_due = 0.0
        self._facts: TopicFacts | None = None
        self.problem: str | None = "asking the brokers"
        self.error: TidemarkError | None = None
        self._thread = threading.Thread(target=self._run, name=f"ask-{collection.topic}", daemon=True)

    @property
    def facts(self) -> TopicFacts | None:
        """What is known now; None when the brokers have not answered lately."""
        facts = self._facts
        return facts if facts is not None and time.monotonic() - facts.asked_at < KNOWN_FOR_S else None

    def ask_identity_now(self) -> None:
        """Look at the topic's identity at the next turn: something does not fit."""
        self._identity_due = 0.0

    def ask_now(self) -> None:
        """Ask without waiting for the next turn; `facts` are newer soon."""
        self._asking.set()

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._asking.set()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._asking.clear()
            try:
                self._ask()
                self.problem = self.error = None
            except TidemarkError as error:
                self._say(str(error))
                self.error = error
            except Exception as error:
                self._say(f"topic {self._topic!r} cannot be looked at: {error}")
            self._asking.wait(ENDS_EVERY_S)

    def _say(self, problem: str) -> None:
        if problem != self.problem:
            logger.warning("%s", problem)
        self.problem = problem
        self._identity_due = 0.0

    def _ask(self) -> None:
        asked_at, asked_ms = time.monotonic(), now_ms()
        known = self._facts
        if known is None or asked_at >= self._identity_due:
            identity = self._topics.identity(self._topic)
            kept_ms = self._topics.tombstones_kept_ms(self._topic)
            self._identity_due = asked_at + IDENTITY_EVERY_S
            committed = known.committed if known else None
            known = TopicFacts(identity, kept_ms, {}, {}, {}, {}, committed, asked_at, asked_ms, asked_at)
        every: list[Partition] = [(self._topic, number) for number in range(known.identity.partitions)]
        starts = {p[1]: first for p, first in self._topics.starts(every).items()}
        acknowledged = {p[1]: end for p, end in self._topics.acknowledged(every).items()}
        found = {p[1]: end for p, end in self._topics.ends_and_epochs(every).items()}
        self._facts = replace(
            known,
            starts=starts,
            ends={number: end.offset for number, end in found.items()},
            epochs={number: end.leader_epoch for number, end in found.items()},
            acknowledged=acknowledged,
            asked_at=asked_at,
            asked_ms=asked_ms,
        )
        if asked_at >= self._committed_due:
            self._committed_due = asked_at + COMMITTED_EVERY_S
            self._facts = replace(self._facts, committed=self._committed(every))

    def _committed(self, every: list[Partition]) -> dict[int, Committed] | None:
        """For display only: whatever goes wrong, it is not known."""
        try:
            return {p[1]: found for p, found in self._topics.committed(self._group, every).items()}
        except Exception as error:
            logger.debug("committed offsets not known: %s", error)
            return None
