"""One owned partition: its view, its checkpoints, and what stands between it and the log.

`take_over.py` makes it. Here is when a checkpoint is due, which segments are to be built, and when reading is held
back: each bound that holds it is left again, by a checkpoint, by a build or by acknowledged dead letters, and while
nothing of these can come it does not hold. Used by the owning thread only.
"""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from consumer.builder import Build, Builder
from tidemark.caught_up import CaughtUp, now_ms
from tidemark.checkpoint import Checkpoints
from tidemark.collection import Collection, IndexParameters
from tidemark.crash_point import reach
from tidemark.errors import TidemarkError
from tidemark.generation import Generation
from tidemark.log import Log, Partition, Start
from tidemark.log_check import check_age, check_identity, remedy
from tidemark.manifest import Manifest, SegmentEntry, TopicIdentity
from tidemark.merge_policy import Candidate, next_build
from tidemark.segment import Segment
from tidemark.settings import ConsumerSettings, Settings
from tidemark.topic_watch import TopicFacts
from tidemark.view import View

logger = logging.getLogger(__name__)

BACKLOG_OFFSETS = 50_000
# Nothing has arrived for so long: time to tidy up.
QUIET_S = 1.0
# A partition that is held back reads on at this share of the bound.
RESUME_SHARE = 0.8
# Of a compacted topic's `delete.retention.ms`: an idle partition's checkpoint is made anew when it has got so old, so
# that a consumer may be away for the rest of it.
RENEWED_SHARE = 0.25
# A checkpoint that could not be made is tried again after so long, twice as long each time.
RETRY_S, RETRY_S_MAX = 0.5, 30.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a partition may have before its reading is held back: rows without an index, and rows in memory."""

    unbuilt_rows: int
    unbuilt_bytes: int
    memory_rows: int

    @classmethod
    def of(cls, settings: Settings) -> "Bounds":
        consumer = settings.consumer
        # Only a checkpoint that cannot be made lets more rows than `checkpoint.rows` gather in memory.
        return cls(consumer.unbuilt_rows_max, consumer.unbuilt_bytes_max, 2 * settings.checkpoint.rows)


@dataclass(slots=True)
class Retry:
    """When something that failed is tried again."""

    at: float = 0.0
    _wait_s: float = RETRY_S

    def failed(self) -> None:
        self.at = time.monotonic() + self._wait_s
        self._wait_s = min(RETRY_S_MAX, 2 * self._wait_s)


@dataclass(slots=True)
class OwnedPartition:
    """State of a partition while this process owns it; used by the owning thread only."""

    partition: Partition
    collection: Collection
    generation: Generation
    topic: TopicIdentity
    view: View
    checkpoints: Checkpoints
    checkpointed: int
    checkpoint_version: int
    caught_up: CaughtUp = field(default_factory=lambda: CaughtUp(now_ms()))
    checkpointed_as_of_ms: int = field(default_factory=now_ms)
    tombstones_kept_ms: int | None = None
    checkpoint_at: float = field(default_factory=time.monotonic)
    clean_at: float = field(default_factory=time.monotonic)
    checkpoint_wanted: bool = False
    memory_wanted: bool = False
    checkpoint_retry: Retry = field(default_factory=Retry)
    checkpoint_problem: str | None = None
    committed: int | None = None
    end: int = -1
    held: str | None = None
    records: int = 0
    bad: dict[str, int] = field(default_factory=dict)
    last_record_at: float = field(default_factory=time.monotonic)
    told: str | None = None
    told_at: float = field(default_factory=time.monotonic)
    problem_since_ms: int | None = None

    @property
    def name(self) -> str:
        return f"{self.partition[0]}[{self.partition[1]}]"

    @property
    def index(self) -> IndexParameters:
        return self.generation.index

    @property
    def start(self) -> Start:
        return Start(self.partition, self.view.position, self.view.leader_epoch)

    @property
    def problem(self) -> str | None:
        """Why its checkpoints stand still or its reading is held back, None when all is well."""
        return self.checkpoint_problem or self.held

    def note_facts(self, facts: TopicFacts) -> None:
        """Take what the brokers say of the topic; raises TopicReplaced or LogGap when the partition must stop."""
        check_identity(self.name, self.topic, facts.identity, remedy(self.collection.name))
        end = facts.ends.get(self.partition[1])
        if end is None:
            return
        self.end = max(end, self.view.position)
        self.caught_up.note_end(end, facts.asked_ms)
        self.caught_up.reach(self.view.position)
        self.tombstones_kept_ms = facts.tombstones_kept_ms
        if end > self.view.position:
            self.check_age()
        self._renew(end, facts.epochs[self.partition[1]])

    def check_age(self) -> None:
        """Raise LogGap when reading on may miss deletes: asked before anything is applied, also while running.

        A process that was suspended meets records before it meets what the brokers say of them.
        """
        advice = remedy(self.collection.name)
        check_age(self.name, self.view.position, self.caught_up.as_of_ms, self.tombstones_kept_ms, advice)

    def advance(self, end: int) -> None:
        """Move to the end of the log, over what no reader sees; raises LogGap."""
        if end > self.view.position:
            self.check_age()
            self.view.advance(end)

    def _renew(self, end: int, leader_epoch: int) -> None:
        """Have a checkpoint made when only what it says of its position has changed: its age, and its leader epoch."""
        self.checkpoint_wanted |= (
            self.view.note_leader_epoch(end, leader_epoch) and self.checkpointed == self.view.position
        )
        if self.tombstones_kept_ms is not None:
            older_ms = self.caught_up.as_of_ms - self.checkpointed_as_of_ms  # less than 0 when a clock was ahead
            self.checkpoint_wanted |= not 0 <= older_ms <= RENEWED_SHARE * self.tombstones_kept_ms

    # -- builds --------------------------------------------------------------------------------------------

    def candidates(self) -> list[Candidate]:
        """What the merge policy needs to know; under `flat` every segment counts as built once it is merged."""
        return [
            Candidate(s.name, s.live_count, s.dead_rows, s.is_built or self._is_settled(s.rows))
            for s in self.view.searcher.segments
        ]

    def _is_settled(self, rows: int) -> bool:
        return self.index.kind == "flat" and rows >= self.index.ann_rows_min

    @property
    def unbuilt_rows(self) -> int:
        """Rows that a build is to take up, in memory and in segments."""
        waiting = sum(each.live_rows + each.dead_rows for each in self.candidates() if not each.built)
        return waiting + self.view.tail_rows

    @property
    def quiet(self) -> bool:
        """Whether nothing has arrived for a while."""
        return time.monotonic() - self.last_record_at > QUIET_S

    def wanted_build(self, rows_max: int, quiet: bool) -> list[Segment]:
        """The segments to make one next; empty when all is well.

        During a backlog builds wait until a bound has held the reading back: they would take the cores from those who
        make records searchable.
        """
        if self.is_behind and self.held is None:
            return []
        names = next_build(self.candidates(), self.index.ann_rows_min, rows_max, quiet, self.held is not None)
        return [segment for segment in self.view.searcher.segments if segment.name in names]

    @property
    def is_behind(self) -> bool:
        """Whether there is a backlog: it is sooner done when who reads it, here and in the replicas, has the cores."""
        return self.end - self.view.position > BACKLOG_OFFSETS

    def install(self, build: Build, entry: SegmentEntry | None) -> None:
        """Put a finished build in the place of its inputs; a checkpoint names it soon after."""
        built = None
        if entry is not None:
            directory = self.checkpoints.directory / entry.name
            built = Segment(directory, entry, self.collection.dimension, self.collection.metric)
        self.view.install(built, build.inputs, build.dead_when_read)
        self.checkpoint_wanted = True
        if entry is not None and entry.recall < self.index.recall_target:
            logger.warning(
                "%s[%d]: the index of segment %s, %d rows, has recall %.3f where index.recall_target asks for %.3f: "
                "codes cannot tell its rows apart; searches find more with `effort` or `exact`, or with kind hnsw",
                *self.partition,
                entry.name,
                entry.rows,
                entry.recall,
                self.index.recall_target,
            )
        reach("installed")
        logger.info(
            "%s[%d]: built %s of %d rows from %d segments in %.1f s (recall %.3f)",
            *self.partition,
            entry.kind if entry else "nothing",
            build.rows,
            len(build.inputs),
            time.monotonic() - build.started,
            entry.recall if entry else 1.0,
        )

    # -- bounds --------------------------------------------------------------------------------------------

    def hold_back(self, log: Log, bounds: Bounds, others: str | None = None, builder: str | None = None) -> None:
        """Stop reading at a bound, and read on when it is left.

        `others` is a reason from outside the partition, `builder` what is wrong with the builder.

        The partition is unassigned and assigned again, not paused: librdkafka keeps a pause over an assignment.
        """
        reason = self._over(bounds, builder) or others
        if self.held is None and reason is not None:
            log.stop(self.partition)
            self.checkpoint_wanted = True
            logger.warning("%s: reading stops at position %d, %s", self.name, self.view.position, reason)
        elif self.held is not None and reason is None:
            log.restart(self.start)
            self.last_record_at = time.monotonic()
            logger.info("%s: reading goes on from position %d", self.name, self.view.position)
        self.held = reason

    def _over(self, bounds: Bounds, builder: str | None) -> str | None:
        """Which bound is reached and can be left again, in words."""
        share = 1.0 if self.held is None else RESUME_SHARE
        rows, row_bytes = self.unbuilt_rows, self.collection.row_bytes
        # Fewer rows than get an index can never become fewer by a build.
        rows_max = max(bounds.unbuilt_rows, self.index.ann_rows_min)
        bytes_max = max(bounds.unbuilt_bytes, self.index.ann_rows_min * row_bytes)
        if (rows > share * rows_max or rows * row_bytes > share * bytes_max) and self._becomes_fewer:
            why = f"; {builder}" if builder else ""
            return f"waiting for the builder: rows without an index are at their bound{why}"
        in_memory = self.view.tail_rows + self.view.kept_deletes
        if in_memory > bounds.memory_rows * (1.0 if self.held is None else 0.5):
            return "waiting for a checkpoint: rows in memory are at their bound"
        return None

    @property
    def _becomes_fewer(self) -> bool:
        """Whether a checkpoint or a build that is to come lessens the rows without an index."""
        wanted = next_build(self.candidates(), self.index.ann_rows_min, 2**62, True, True)
        return bool(self.view.tail_rows or wanted)

    # -- checkpoints ---------------------------------------------------------------------------------------

    def checkpoint_due(self, now: float, interval_s: float, rows: int) -> bool:
        """By the age of the oldest record not in one, or by rows in memory; at once when only segments have changed."""
        if self.view.position == self.checkpointed and not self.checkpoint_wanted:
            self.clean_at = now
            return False
        if now < self.checkpoint_retry.at:
            return False
        if self.memory_wanted or (self.checkpoint_wanted and (self.held is not None or not self.view.tail_rows)):
            return True
        return now - self.clean_at >= interval_s or self.view.tail_rows + self.view.kept_deletes >= rows

    def checkpoint(self) -> Manifest:
        """Make the view durable; positions up to the manifest's may be committed afterwards."""
        manifest = self.checkpoints.publish(self.view, self.caught_up.as_of_ms)
        self.checkpointed = manifest.position
        self.checkpoint_version = manifest.version
        self.checkpointed_as_of_ms = manifest.caught_up_ms
        self.checkpoint_at = self.clean_at = time.monotonic()
        self.checkpoint_wanted = self.memory_wanted = False
        self.checkpoint_problem, self.checkpoint_retry = None, Retry()
        return manifest

    def checkpoint_failed(self, why: str) -> None:
        """The checkpoint could not be made: the rows stay in memory, and it is tried again."""
        if why != self.checkpoint_problem:
            logger.error("%s: no checkpoint: %s", self.name, why)
        self.checkpoint_problem = why
        self.checkpoint_retry.failed()


def segment_rows_max(settings: ConsumerSettings, collection: Collection) -> int:
    """The most rows of a merged segment: a build has all of them in memory."""
    return min(settings.segment_rows_max, max(1, settings.segment_bytes_max // collection.row_bytes))


def advance_builds(
    builder: Builder, partitions: Iterable[OwnedPartition], settings: ConsumerSettings, tidy_up: bool = False
) -> None:
    """Install the build that has ended, if one has, and give out the next, if one is wanted.

    `tidy_up`: build what is left although records go on arriving.
    """
    partitions = list(partitions)
    if finished := builder.finished():
        build, result = finished
        for owned in partitions:
            if owned.checkpoints is build.checkpoints:
                try:
                    owned.install(build, result.entry)
                    builder.used()
                except TidemarkError as error:
                    builder.not_used(build, f"what was built cannot be used: {error}")
    if builder.idle:
        for owned in sorted(partitions, key=lambda owned: -owned.view.unbuilt_rows):
            most = segment_rows_max(settings, owned.collection)
            if inputs := owned.wanted_build(most, tidy_up or owned.quiet or owned.held is not None):
                builder.start(owned.checkpoints, owned.collection, owned.index, inputs)
                return
