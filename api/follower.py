"""A follower: one thread that keeps the views of one generation of one collection as new as the log.

    open the newest checkpoint -> tail the log from its positions -> take over newer manifests' segments

Invariants: only this thread changes its views; searches read them without locks; a manifest is opened and
verified on a side thread, so applying never waits for a disk. It writes nothing: no checkpoint, no offset.
Whatever goes wrong is kept as `problem` and tried again from the newest checkpoint; it never ends silently.
"""

import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from api.freshness import Freshness
from tidemark.checkpoint import Checkpoints, Loaded
from tidemark.collection import Collection
from tidemark.errors import TidemarkError
from tidemark.log import Fetched, Log, Partition, Start
from tidemark.log_check import check_identity, check_log
from tidemark.manifest import TopicIdentity
from tidemark.record import decode
from tidemark.settings import Settings
from tidemark.topic import Topics
from tidemark.view import View

logger = logging.getLogger(__name__)

POLL_S = 0.02
MANIFEST_EVERY_S = 0.25
IDENTITY_EVERY_S = 30.0
RETRY_S_MAX = 10.0


class Followed:
    """One partition: its view, and the checkpoints it follows."""

    def __init__(self, collection: Collection, checkpoints: Checkpoints, partition: int) -> None:
        self.view = View(collection, partition)
        self.checkpoints = checkpoints
        self.version = 0
        self.checkpointed: int | None = None
        self.end: int | None = None
        self.topic: TopicIdentity | None = None
        self.opening: Future[Loaded | None] | None = None
        self.problem: str | None = None
        self.bad_records = 0
        self.freshness = Freshness()

    def take(self, loaded: Loaded) -> None:
        """Take over a checkpoint's segments, keeping what we applied beyond it."""
        manifest = loaded.manifest
        self.view.follow(loaded.segments, manifest.position, manifest.leader_epoch, manifest.digest)
        self.version = loaded.newest_version
        self.checkpointed = manifest.position
        for damage in loaded.damaged:
            logger.error("damaged checkpoint passed over: %s", damage)

    @property
    def offset_lag(self) -> int | None:
        """Offsets not applied yet; None when the end of the log is not known."""
        return None if self.end is None else max(0, self.end - self.view.position)


class Follower:
    """Follows one generation; `start` returns at once, `close` waits for the thread."""

    def __init__(self, settings: Settings, collection: Collection, generation: str) -> None:
        self.collection = collection
        self.generation = generation
        self.partitions: tuple[Followed, ...] = ()
        self.problem: str | None = "starting"
        self.caught_up_once = False
        self.turned_at = time.monotonic()
        self._settings = settings
        self._root: Path = settings.checkpoint_root
        self._topics = Topics(settings.kafka)
        self._closing = threading.Event()
        self._opener = ThreadPoolExecutor(1, thread_name_prefix="open-segments")
        self._due: dict[str, float] = {}
        self._thread = threading.Thread(target=self._run, name=f"follow-{collection.name}-{generation}", daemon=True)

    @property
    def views(self) -> list[View]:
        return [followed.view for followed in self.partitions]

    @property
    def positions(self) -> dict[int, int]:
        return {view.partition: view.position for view in self.views}

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._opener.shutdown(wait=False, cancel_futures=True)
        if self._thread.is_alive():
            self._thread.join(timeout=10.0)

    # -- the thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        wait = 0.25
        while not self._closing.is_set():
            log: Log | None = None
            try:
                self._open_checkpoints()
                log = self._open_log()
                self.problem = None
                wait = 0.25
                self._tail(log)
            except TidemarkError as error:
                self._said(str(error))
            except Exception:
                logger.exception("follower of %s failed; starting again", self.collection.name)
                self._said("the follower failed, see the log of the service")
            finally:
                if log is not None:
                    log.close()
            self._closing.wait(wait)
            wait = min(RETRY_S_MAX, wait * 2)

    def _said(self, problem: str) -> None:
        if problem != self.problem:
            logger.error("%s: %s", self.collection.name, problem)
        self.problem = problem
        self.turned_at = time.monotonic()

    def _open_checkpoints(self) -> None:
        """Serve the newest checkpoint, before any broker is asked; a view we already have only moves on."""
        held = {followed.view.partition: followed for followed in self.partitions}
        for number in self._partitions_on_disk():
            if number not in held:
                checkpoints = Checkpoints(self._root, self.collection, self.generation, number)
                held[number] = Followed(self.collection, checkpoints, number)
        for followed in held.values():
            followed.opening = None
            loaded = followed.checkpoints.load(followed.view.searcher.segments)
            if loaded is not None and loaded.newest_version > followed.version:
                followed.take(loaded)
        self.partitions = tuple(held[number] for number in sorted(held))

    def _partitions_on_disk(self) -> list[int]:
        directory = self._root / self.collection.name / self.generation
        found = directory.glob("p*") if directory.is_dir() else []
        return [int(path.name[1:]) for path in found if path.name[1:].isdigit()]

    def _open_log(self) -> Log:
        """Check that the checkpoints belong to this log, and start reading at their positions."""
        topic = self._topics.identity(self.collection.topic)
        every: list[Partition] = [(self.collection.topic, number) for number in range(topic.partitions)]
        first = self._topics.starts(every)
        held = {followed.view.partition: followed for followed in self.partitions}
        for partition in every:
            followed = held.get(partition[1])
            if followed is None:
                checkpoints = Checkpoints(self._root, self.collection, self.generation, partition[1])
                followed = held[partition[1]] = Followed(self.collection, checkpoints, partition[1])
            followed.topic = topic
            if followed.version:
                check_log(followed.checkpoints.read(followed.version), partition, topic, self._topics)
            elif followed.view.position == 0:
                followed.view.open((), first[partition], -1, 0)
        self.partitions = tuple(held[number] for number in sorted(held))
        log = Log(self._settings.kafka)
        log.assign(self._start_of(followed) for followed in self.partitions)
        return log

    def _start_of(self, followed: Followed) -> Start:
        view = followed.view
        return Start((self.collection.topic, view.partition), view.position, view.leader_epoch)

    def _tail(self, log: Log) -> None:
        while not self._closing.is_set():
            self.turned_at = time.monotonic()
            if self._full():
                self._closing.wait(POLL_S)
            else:
                self._take(log.fetch(self._settings.api.fetch_records, POLL_S), log)
            self._now_and_then("manifests", MANIFEST_EVERY_S, lambda: self._follow_manifests(log))
            self._now_and_then("identity", IDENTITY_EVERY_S, self._check_topic)

    def _full(self) -> bool:
        """Whether rows beyond the newest manifest have reached the cap; the consumer's next one frees them."""
        cap = self._settings.api.tail_rows_max
        rows = sum(view.tail_rows for view in self.views)
        self.problem = f"waiting for the consumer's checkpoint: {rows} rows in memory" if rows > cap else None
        return rows > cap

    def _take(self, fetched: Fetched, log: Log) -> None:
        followed_by = {(self.collection.topic, followed.view.partition): followed for followed in self.partitions}
        for partition, messages in fetched.messages.items():
            self._apply(followed_by[partition], messages)
        for partition, end in fetched.ends.items():
            followed_by[partition].view.advance(end)
            followed_by[partition].end = end
        for gap in fetched.stopped.values():
            raise gap
        for partition, followed in followed_by.items():
            end_offset = log.end_offset(partition)
            if end_offset is not None:
                followed.end = max(end_offset, followed.view.position)
        self._note_caught_up()

    def _apply(self, followed: Followed, messages: list[Any]) -> None:
        view = followed.view
        if messages[0].offset() < view.position:
            messages = [message for message in messages if message.offset() >= view.position]
            if not messages:
                return
        fetched_at = time.time()
        batch, bad = decode(messages, self.collection)
        followed.bad_records += len(bad)  # the consumer writes the dead letters
        view.apply(batch)
        followed.freshness.observe(messages[0].timestamp()[1], batch.newest_timestamp, fetched_at)

    def _note_caught_up(self) -> None:
        if not self.caught_up_once:
            lags = [followed.offset_lag for followed in self.partitions]
            allowed = self._settings.api.ready_max_lag
            self.caught_up_once = bool(lags) and all(lag is not None and lag <= allowed for lag in lags)

    # -- manifests and the topic ---------------------------------------------------------------------------

    def _now_and_then(self, what: str, interval_s: float, action: Any) -> None:
        now = time.monotonic()
        if now >= self._due.get(what, 0.0):
            self._due[what] = now + interval_s
            action()

    def _follow_manifests(self, log: Log) -> None:
        for followed in self.partitions:
            if followed.opening is None:
                versions = followed.checkpoints.versions()
                if versions and versions[-1] > followed.version:
                    segments = followed.view.searcher.segments
                    followed.opening = self._opener.submit(followed.checkpoints.load, segments)
            elif followed.opening.done():
                self._take_opened(followed, log)

    def _take_opened(self, followed: Followed, log: Log) -> None:
        assert followed.opening is not None
        opening, followed.opening = followed.opening, None
        try:
            loaded = opening.result()
        except (TidemarkError, OSError) as error:
            followed.problem = str(error)
            logger.error("newer checkpoint not taken over: %s", error)
            return
        followed.problem = None
        if loaded is None or loaded.newest_version <= followed.version:
            return
        behind = followed.view.position < loaded.manifest.position
        followed.take(loaded)
        if behind:
            log.restart(self._start_of(followed))

    def _check_topic(self) -> None:
        """librdkafka does not notice a recreated topic, nor new partitions under `assign`."""
        found = self._topics.identity(self.collection.topic)
        for followed in self.partitions:
            if followed.topic is not None:
                remedy = f"build a new generation with `tidemark replay {self.collection.name} --from earliest`"
                check_identity(self.collection.topic, followed.topic, found, remedy)
        if found.partitions != len(self.partitions):
            raise TidemarkError(
                f"topic {self.collection.topic!r} went from {len(self.partitions)} to {found.partitions} partitions: "
                "reading the new ones too (ids may have moved between partitions: see docs/operations.md)"
            )
