"""Which generation of each collection is served: one follower each, swapped when CURRENT names another.

A new generation is followed beside the one served until it has reached the same positions; then it is put in
its place by one assignment, and the old one is kept a little longer for searches under way.
"""

import contextlib
import logging
import threading
import time

from api.follower import Follower
from tidemark import generation
from tidemark.collection import Collection
from tidemark.errors import CorruptCheckpoint
from tidemark.settings import Settings

logger = logging.getLogger(__name__)

CURRENT_EVERY_S = 0.25
OLD_KEPT_S = 5.0
# Before the first checkpoint there is no generation: the log is served from its start under this name.
FIRST_GENERATION = "g000001"


class Served:
    """One collection as it is served now."""

    def __init__(self, settings: Settings, collection: Collection) -> None:
        self.collection = collection
        self.follower = Follower(settings, collection, self._current(settings) or FIRST_GENERATION)
        self.next: Follower | None = None
        self._settings = settings
        self._old: list[tuple[float, Follower]] = []

    def _current(self, settings: Settings) -> str | None:
        with contextlib.suppress(CorruptCheckpoint):  # said by whoever writes it; what is served stays
            return generation.current(settings.checkpoint_root, self.collection.name)
        return None

    @property
    def generation(self) -> str:
        return self.follower.generation

    def not_ready(self) -> str | None:
        """Why the collection is not ready, None when it is."""
        follower = self.follower
        if follower.caught_up_once:
            return None
        return follower.problem or "catching up with the log for the first time"

    def follow_current(self) -> None:
        """Start following what CURRENT names, swap it in when it has caught up, close what is old."""
        name = self._current(self._settings)
        wanted = self.next.generation if self.next else self.follower.generation
        if name is not None and name != wanted:
            self._follow(name)
        if self.next is not None and self._has_caught_up(self.next):
            self._old.append((time.monotonic(), self.follower))
            self.follower, self.next = self.next, None
            logger.info("%s: serving generation %s", self.collection.name, self.generation)
        for since, old in list(self._old):
            if time.monotonic() - since > OLD_KEPT_S:
                self._old.remove((since, old))
                old.close()

    def _follow(self, name: str) -> None:
        if self.next is not None:
            self.next.close()
            self.next = None
        if name != self.follower.generation:
            logger.info("%s: catching up with generation %s", self.collection.name, name)
            self.next = Follower(self._settings, self.collection, name)
            self.next.start()

    def _has_caught_up(self, follower: Follower) -> bool:
        reached = follower.positions
        return follower.problem is None and all(
            reached.get(partition, -1) >= position for partition, position in self.follower.positions.items()
        )

    def close(self) -> None:
        for follower in (self.follower, self.next, *(old for _, old in self._old)):
            if follower is not None:
                follower.close()


class Serving:
    """All collections, and the thread that watches CURRENT."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.collections = {c.name: Served(settings, c) for c in settings.all_collections()}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch-current", daemon=True)

    def start(self) -> None:
        for served in self.collections.values():
            served.follower.start()
        self._thread.start()

    def _watch(self) -> None:
        while not self._closing.wait(CURRENT_EVERY_S):
            for served in self.collections.values():
                try:
                    served.follow_current()
                except Exception:
                    logger.exception("%s: CURRENT not followed", served.collection.name)

    def close(self) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)
        for served in self.collections.values():
            served.close()
