"""Taking a partition over: from being assigned to being owned, again and again until it works.

The order: load the newest checkpoint, check that it belongs to this log, claim it, and only then read on. Nothing
is ever skipped silently: each mismatch is an error that says what to do, and the partition is refused. What was
refused is tried again with back-off, and at once when what it was refused for has changed: another generation is
served, or the topic is another one. The work is done on side threads, because it reads all files of a checkpoint and
waits for brokers; the owning thread alone changes what is here.
"""

import logging
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field

from consumer.partition import OwnedPartition
from tidemark import generation
from tidemark.caught_up import CaughtUp, now_ms
from tidemark.checkpoint import Checkpoints, Loaded
from tidemark.collection import Collection
from tidemark.errors import BrokerUnreachable, LogGap, StaleOwner
from tidemark.generation import Generation
from tidemark.log import Partition
from tidemark.log_check import check_log
from tidemark.manifest import TopicIdentity
from tidemark.settings import Settings
from tidemark.topic_watch import TopicFacts, TopicWatch
from tidemark.view import View

logger = logging.getLogger(__name__)

CLAIM_ATTEMPTS = 5
RETRY_S, RETRY_S_MAX = 1.0, 60.0
# Who slept while another took its partition over learns that from its next heartbeats (3 s by default): it must not
# take it back before.
STALE_RETRY_S = 10.0
FACTS_S = 10.0

# What a refusal was for: the generation that CURRENT named, and the topic's identity.
Cause = tuple[str | None, TopicIdentity | None]


@dataclass(slots=True)
class Waiting:
    """A partition that is assigned to this process and not owned yet; used by the owning thread only.

    `problem` says why it was refused, since `since_ms` (wall clock); None before the first attempt has ended.
    What still goes on for it on a side thread after it was `revoked` claims nothing.
    """

    partition: Partition
    collection: Collection
    problem: str | None = None
    since_ms: int = field(default_factory=now_ms)
    opening: Future[OwnedPartition] | None = None
    tried: Cause = (None, None)
    retry_at: float = 0.0
    committed: int | None = None
    told: str | None = None
    stale: bool = False
    revoked: threading.Event = field(default_factory=threading.Event)
    _retry_s: float = RETRY_S

    def due(self, cause: Cause) -> bool:
        """Whether to try now: the back-off is over, or what it was refused for has changed."""
        return self.opening is None and (time.monotonic() >= self.retry_at or cause != self.tried)

    def refuse(self, error: Exception) -> None:
        """Keep why it was refused, and when it is tried again."""
        problem = str(error)
        if problem != self.problem:
            logger.error("partition not taken over: %s", problem)
            if self.problem is None:
                self.since_ms = now_ms()
        self.problem = problem
        self.stale = isinstance(error, StaleOwner)
        self.opening = None
        self.retry_at = time.monotonic() + max(self._retry_s, STALE_RETRY_S if self.stale else 0.0)
        self._retry_s = min(RETRY_S_MAX, 2 * self._retry_s)


def open_served(
    settings: Settings, collection: Collection, number: int, watch: TopicWatch, revoked: threading.Event
) -> OwnedPartition:
    """Take over a partition of the generation that is served; see `take_over`."""
    served = generation.served(settings.checkpoint_root, collection)
    checkpoints = checkpoints_of(settings, collection, served.name, number)
    return take_over(collection, served, checkpoints, watch, revoked=revoked)


def checkpoints_of(settings: Settings, collection: Collection, made: str, number: int) -> Checkpoints:
    """The checkpoints of a partition of a generation, to be written."""
    grace_s = settings.checkpoint.grace_s
    return Checkpoints(settings.checkpoint_root, collection, made, number, grace_s=grace_s)


def take_over(
    collection: Collection,
    made: Generation,
    checkpoints: Checkpoints,
    watch: TopicWatch,
    first: int | None = None,
    revoked: threading.Event | None = None,
) -> OwnedPartition:
    """Load, check and claim a partition; raises an error of tidemark.errors that says what to do.

    Without any checkpoint it starts at `first`, by default where the log starts. It blocks: for files and brokers.
    """
    partition = (collection.topic, checkpoints.partition)
    for _ in range(CLAIM_ATTEMPTS):
        newest = checkpoints.newest_manifest()
        facts = facts_after(watch, time.monotonic())  # asked after it was read: its position is not beyond their end
        bounds = facts.bounds(partition[1])
        if bounds is None:
            raise LogGap(f"{partition[0]}[{partition[1]}]: the topic has {facts.identity.partitions} partitions now")
        if newest is not None:
            check_log(newest, partition, facts.identity, bounds)
        loaded = checkpoints.load()
        if loaded is not None:
            if newest is None or loaded.manifest.version > newest.version:
                continue
            for damage in loaded.damaged:
                logger.error("damaged checkpoint passed over, its records are replayed: %s", damage)
            check_log(loaded.manifest, partition, facts.identity, bounds)
        if revoked is not None and revoked.is_set():  # a claim would fence its new owner
            raise StaleOwner(f"{partition[0]}[{partition[1]}]: it was revoked before it was taken over")
        start = bounds.first if first is None else first
        if checkpoints.claim(facts.identity, loaded, start):
            owned = _opened(partition, collection, made, facts.identity, checkpoints, loaded, start)
            owned.note_facts(facts)  # from its first turn on it knows whether it is behind
            return owned
    raise StaleOwner(f"{partition[0]}[{partition[1]}]: other writers keep claiming it; not taken over")


def facts_after(watch: TopicWatch, at: float) -> TopicFacts:
    """What the brokers say, identity included, asked after a monotonic time; raises what the watch says if nothing."""
    deadline = time.monotonic() + FACTS_S
    while (facts := watch.facts) is None or facts.identity_at <= at:
        if time.monotonic() > deadline:
            raise watch.error or BrokerUnreachable(f"the brokers did not answer within {FACTS_S:g} s")
        watch.ask_identity_now()
        watch.ask_now()
        time.sleep(0.01)
    return facts


def _opened(
    partition: Partition,
    collection: Collection,
    made: Generation,
    topic: TopicIdentity,
    checkpoints: Checkpoints,
    loaded: Loaded | None,
    first: int,
) -> OwnedPartition:
    view, number, as_of_ms = View(collection), partition[1], now_ms()
    if loaded is None:
        view.open(number, (), first, -1, 0)
    else:
        manifest = loaded.manifest
        view.open(number, loaded.segments, manifest.position, manifest.leader_epoch, manifest.digest)
        as_of_ms = manifest.caught_up_ms
    version, position = checkpoints.version, view.partitions[number].position
    return OwnedPartition(
        partition,
        collection,
        made,
        topic,
        view,
        checkpoints,
        position,
        version,
        caught_up=CaughtUp(as_of_ms),
        checkpointed_as_of_ms=as_of_ms,
    )
