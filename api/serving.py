"""Which generation of each collection is served: one follower each, swapped when CURRENT names another.

A new generation is followed beside the one served until it has reached the same positions; then it is put in
its place by one assignment, and the old one is kept a little longer for searches under way. A follower that
failed is replaced the same way, by one that starts from the newest checkpoint.
"""

import logging
import threading
import time

import msgspec

from api.follower import Follower
from api.status import CollectionStatus, ReplicaStatus
from tidemark import generation
from tidemark.collection import Collection
from tidemark.errors import CorruptCheckpoint, StoreUnavailable
from tidemark.settings import Settings
from tidemark.shared_memory import Document
from tidemark.topic_watch import TopicWatch

logger = logging.getLogger(__name__)

TURN_EVERY_S = 0.05
CURRENT_EVERY_S = 0.5
OLD_KEPT_S = 5.0
RETRY_S, RETRY_S_MAX = 1.0, 30.0
# So near to the positions served, the old follower stops reading for a moment to be overtaken exactly.
NEAR_OFFSETS = 5_000
FROZEN_S_MAX = 3.0
# Before the first checkpoint there is no generation: the log is served from its start under this name.
FIRST_GENERATION = "g000001"


class Served:
    """One collection as it is served now."""

    def __init__(self, settings: Settings, collection: Collection) -> None:
        self.collection = collection
        self.watch = TopicWatch(settings, collection)
        self.next: Follower | None = None
        self._settings = settings
        self._said: str | None = None
        self.follower = self._new(self._current() or FIRST_GENERATION)
        self._wanted = self.follower.generation
        self._current_due = self._retry_at = 0.0
        self._retry_s = RETRY_S
        self._frozen_at: float | None = None
        self._old: list[tuple[float, Follower]] = []

    def _new(self, name: str) -> Follower:
        return Follower(self._settings, self.collection, name, self.watch)

    def _current(self) -> str | None:
        """What CURRENT names; when it cannot be read, what is served stays, and that is said once."""
        try:
            name, problem = generation.current(self._settings.checkpoint_root, self.collection.name), None
        except (CorruptCheckpoint, StoreUnavailable) as error:
            name, problem = None, str(error)
        if problem is not None and problem != self._said:
            logger.error("CURRENT not followed: %s", problem)
        self._said = problem
        return name

    @property
    def generation(self) -> str:
        return self.follower.generation

    @property
    def status(self) -> CollectionStatus:
        """What is told of it, as of now."""
        facts = self.watch.facts
        following = self.next.generation if self.next else None
        return CollectionStatus(self.follower.document.name, following, (facts.committed if facts else None) or {})

    def start(self) -> None:
        self.watch.start()
        self.follower.start()

    def turn(self) -> None:
        """Follow CURRENT, replace what failed, swap in what has caught up, close what is old."""
        now = time.monotonic()
        if now >= self._current_due:
            self._current_due = now + CURRENT_EVERY_S
            self._want(self._current() or self._wanted)
        self._drop_next_if_useless(now)
        served_is_wrong = self.follower.failed or self.follower.generation != self._wanted
        if served_is_wrong and self.next is None and now >= self._retry_at:
            logger.info("%s: catching up with generation %s", self.collection.name, self._wanted)
            self.next = self._new(self._wanted)
            self.next.start()
        if self.next is not None and self._overtaken(self.next, now):
            self._swap(self.next, now)
        for since, old in [entry for entry in self._old if now - entry[0] > OLD_KEPT_S]:
            self._old.remove((since, old))
            old.close()

    def _want(self, generation: str) -> None:
        """CURRENT names it: tell the follower that serves another one, whose advice may have been followed."""
        if generation != self._wanted:
            self._wanted, self._retry_at, self._retry_s = generation, 0.0, RETRY_S
        self.follower.replacement = None if generation == self.follower.generation else generation

    def _drop_next_if_useless(self, now: float) -> None:
        if self.next is None or not (self.next.failed or self.next.generation != self._wanted):
            return
        if self.next.failed:
            self._retry_at = now + self._retry_s
            self._retry_s = min(RETRY_S_MAX, 2 * self._retry_s)
        self.next.close()
        self.next, self.follower.frozen, self._frozen_at = None, False, None

    def _overtaken(self, follower: Follower, now: float) -> bool:
        """Whether it has reached what is served; when near, what is served is frozen so that it can."""
        if follower.error or not any(followed.opened for followed in follower.partitions):
            return False
        behind = self._behind(follower)
        if behind == 0:
            return True
        if self._frozen_at is None and behind is not None and behind <= NEAR_OFFSETS:
            self.follower.frozen, self._frozen_at = True, now
        elif self._frozen_at is not None and now - self._frozen_at > FROZEN_S_MAX:
            self.follower.frozen = False
            if now - self._frozen_at > 2 * FROZEN_S_MAX:
                self._frozen_at = None
        return False

    def _behind(self, follower: Follower) -> int | None:
        """Offsets the new follower is behind what is served; None when not known.

        Positions of another log (the topic was made again) are no measure: then its own log's end is.
        """
        new = {followed.partition: followed for followed in follower.partitions}
        behind = 0
        for old in self.follower.partitions:
            if not old.opened:
                continue
            other = new.get(old.partition)
            if other is None or not other.opened:
                return None
            if other.topic is not None and old.topic is not None and other.topic != old.topic:
                lag = other.offset_lag
                if lag is None:
                    return None
                behind += lag
            else:
                behind += max(0, old.position - other.position)
        return behind

    def _swap(self, follower: Follower, now: float) -> None:
        follower.caught_up_once = follower.caught_up_once or self.follower.caught_up_once
        self._old.append((now, self.follower))
        self.follower, self.next, self._frozen_at = follower, None, None
        self._retry_s = RETRY_S
        self._old[-1][1].frozen = True
        logger.info("%s: serving generation %s", self.collection.name, self.generation)

    def close(self) -> None:
        self.watch.close()
        for follower in (self.follower, self.next, *(old for _, old in self._old)):
            if follower is not None:
                follower.close()


class Serving:
    """All collections, and the thread that watches CURRENT; `document` tells the HTTP workers of them."""

    def __init__(self, settings: Settings, document: Document) -> None:
        self._document = document
        self.collections = {c.name: Served(settings, c) for c in settings.all_collections()}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch-current", daemon=True)

    def start(self) -> None:
        self._publish()
        for served in self.collections.values():
            served.start()
        self._thread.start()

    def _watch(self) -> None:
        while not self._closing.wait(TURN_EVERY_S):
            for served in self.collections.values():
                try:
                    served.turn()
                except Exception:
                    logger.exception("%s: CURRENT not followed", served.collection.name)
                    self._closing.wait(1.0)
            self._publish()

    def _publish(self) -> None:
        """Tell the workers which follower serves each collection."""
        found = {name: served.status for name, served in self.collections.items()}
        self._document.write(msgspec.json.encode(ReplicaStatus(time.monotonic(), found)))

    def close(self) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)
        for served in self.collections.values():
            served.close()
