"""One partition of a follower: its view, the checkpoints it follows, and what is known of its log.

Changed by the follower's thread only; everything read elsewhere is replaced by one assignment. `problem` says
why the partition does not follow its log, and goes away by itself when it does again.
"""

import logging
import time
from concurrent.futures import Future
from pathlib import Path

from api.freshness import Freshness
from api.status import PartitionStatus
from tidemark.checkpoint import Checkpoints, Loaded
from tidemark.collection import Collection
from tidemark.log import Log, Start
from tidemark.log_check import check_identity, check_position, remedy
from tidemark.manifest import Manifest, TopicIdentity
from tidemark.segment import Segment
from tidemark.topic_watch import TopicFacts, TopicWatch
from tidemark.view import View

logger = logging.getLogger(__name__)

# HTTP workers look for new segments every 10 ms, and open one in a few.
ANNOUNCED_S = 0.1
RETRY_S, RETRY_S_MAX = 0.5, 10.0
# A held partition reads on when a checkpoint has taken this share of the cap's rows over.
RESUME_SHARE = 0.8


class Followed:
    """`reading`: assigned in the log. `held`: stopped at the cap of `rows_max` rows in memory."""

    def __init__(
        self, collection: Collection, root: Path, generation: str, number: int, watch: TopicWatch, rows_max: int
    ) -> None:
        self.partition = (collection.topic, number)
        self.view = View(collection, number, shared=True, kept_rows_max=2 * rows_max // 3)
        self.checkpoints = Checkpoints(root, collection, generation, number, shared=True)
        self.manifest: Manifest | None = None
        self.version = 0
        self.topic: TopicIdentity | None = None
        self.opened = self.reading = self.held = self.at_end = False
        self.opening: Future[Loaded | None] | None = None
        self.announced: tuple[float, Loaded] | None = None
        self.problem: str | None = None
        self.end: int | None = None
        self.state = (0, 0)
        self.caught_up_ms = 0
        self.last_record_at = time.monotonic()
        self.bad_records = 0
        self.freshness = Freshness()
        self.retry_at = 0.0
        self._retry_s = RETRY_S
        self._stopped_at = 0.0
        self._watch = watch
        self._rows_max = rows_max

    @property
    def checkpointed(self) -> int | None:
        return None if self.manifest is None else self.manifest.position

    @property
    def start(self) -> Start:
        return Start(self.partition, self.view.position, self.view.leader_epoch)

    @property
    def offset_lag(self) -> int | None:
        """Offsets not applied yet; None when the end of the log is not known now, or is not that of our log."""
        if self.end is None or self.problem or not self.opened or self._watch.facts is None:
            return None
        return max(0, self.end - self.view.position)

    @property
    def status(self) -> PartitionStatus:
        """What is told of it, as of now."""
        position, digest = self.state
        return PartitionStatus(
            view=self.view.place,
            opened=self.opened,
            state=self._state(),
            problem=self.problem or self.waiting,
            end=self.end,
            position=position,
            digest=digest,
            lag_known=self.offset_lag is not None,
            caught_up_ms=self.caught_up_ms,
            newest_timestamp_ms=self.freshness.newest_timestamp_ms,
            checkpointed=self.checkpointed,
            manifest=self.version or None,
            bad_records=self.bad_records,
            visible=self.freshness.visible,
            fetched=self.freshness.fetched,
        )

    def _state(self) -> str:
        if not self.opened:
            return "opening"
        if self.problem:
            return "stopped"
        if self.held:
            return "waiting"
        return "following" if self.reading else "starting"

    # -- checkpoints ---------------------------------------------------------------------------------------

    def announce(self, loaded: Loaded) -> bool:
        """Give the HTTP workers time to open a checkpoint's segments before they are searched.

        False when there is nothing to wait for: nothing is searched yet, or the segments are opened again anyway.
        """
        if not self.opened or self.view.position < loaded.manifest.position:
            return False
        self.view.announce(loaded.segments)
        self.announced = (time.monotonic() + ANNOUNCED_S, loaded)
        return True

    def take(self, loaded: Loaded) -> bool:
        """Take over a checkpoint, keeping what we applied beyond it; True when that moved us forward."""
        for damage in loaded.damaged:
            logger.error("damaged checkpoint passed over: %s", damage)
        self.version = max(self.version, loaded.newest_version)
        if self.manifest is not None and loaded.manifest.version <= self.manifest.version:
            return False
        manifest = loaded.manifest
        ahead = not self.opened or self.view.position < manifest.position
        segments = self._with_dead_rows_of(loaded) if ahead else loaded.segments
        self.view.follow(segments, manifest.position, manifest.leader_epoch, manifest.digest)
        self.manifest, self.opened = manifest, True
        if self.topic is None:
            self.topic = TopicIdentity(manifest.cluster_id, manifest.topic_id)
        self.publish()
        return ahead

    def _with_dead_rows_of(self, loaded: Loaded) -> list[Segment]:
        """The segments as of the manifest: one that we held is as of our older position, so it is opened again."""
        held = set(self.view.searcher.segments)
        pairs = zip(loaded.segments, loaded.manifest.segments, strict=True)
        return [segment.reopened(entry) if segment in held else segment for segment, entry in pairs]

    def open_empty(self, facts: TopicFacts) -> None:
        """There is no checkpoint yet: follow the log from its start."""
        number = self.partition[1]
        if number in facts.starts:
            self.view.open((), facts.starts[number], -1, 0)
            self.opened = True
            self.publish()

    # -- the log -------------------------------------------------------------------------------------------

    def may_start(self, now: float) -> bool:
        return self.opened and not self.reading and not self.held and now >= self.retry_at

    def start_reading(self, log: Log, facts: TopicFacts) -> None:
        """Read on from our position; raises TopicReplaced or LogGap when that would skip something."""
        bounds = facts.bounds(self.partition[1])
        if bounds is None or facts.asked_at <= self._stopped_at:
            return
        name, advice = f"{self.partition[0]}[{self.partition[1]}]", remedy(self.view.collection.name)
        check_identity(name, self.topic or facts.identity, facts.identity, advice)
        as_of_ms = max(self.caught_up_ms, self.manifest.created_ms if self.manifest else time.time_ns() // 1_000_000)
        check_position(name, self.view.position, as_of_ms, bounds, advice)
        self.topic = self.topic or facts.identity
        log.restart(self.start)
        self.reading, self.at_end, self.problem = True, False, None
        self.last_record_at = time.monotonic()
        self._retry_s = RETRY_S

    def stop_reading(self, log: Log) -> None:
        if self.reading:
            self.end = max(self.end or 0, log.end_offset(self.partition) or 0)  # the brokers told us less lately
            log.stop(self.partition)
        self.reading, self._stopped_at = False, time.monotonic()

    def refuse(self, problem: str) -> None:
        """Say why the partition does not follow its log, and when it is tried again."""
        if problem != self.problem:
            logger.error("%s", problem)
        self.problem = problem
        self.retry_at = time.monotonic() + self._retry_s
        self._retry_s = min(RETRY_S_MAX, 2 * self._retry_s)

    def hold_back(self, log: Log) -> None:
        """Stop reading at the cap, until a newer manifest takes rows over."""
        rows = self.view.tail_rows
        if self.reading and rows > self._rows_max:
            self.stop_reading(log)
            self.held = True
            logger.warning("%s[%d]: %s", *self.partition, self.waiting)
        elif self.held and rows <= RESUME_SHARE * self._rows_max:
            self.held = False

    @property
    def waiting(self) -> str | None:
        """What a held partition waits for, None when it is not held."""
        return f"waiting for the consumer's checkpoint: {self.view.tail_rows} rows in memory" if self.held else None

    def note_end(self, log: Log, facts: TopicFacts | None) -> None:
        """Where the log ends. After an end-of-partition the high watermark may count what is not committed yet."""
        position = self.view.position
        seen = log.end_offset(self.partition) if self.reading and not self.at_end else None
        told = facts.ends.get(self.partition[1]) if facts else None
        before = self.end if not self.at_end else None
        known = [end for end in (seen, told, before) if end is not None]
        if known:
            self.end = max(position, *known)
            if self.end == position and not self.problem:
                self.caught_up_ms = time.time_ns() // 1_000_000

    def publish(self) -> None:
        """Position and digest that belong together, for other threads."""
        self.state = (self.view.position, self.view.digest)
