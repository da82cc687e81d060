"""One owned partition: its view, its checkpoints, and what stands between it and the log.

`take_over` is the order on assignment: load the checkpoint, check that it belongs to this log (invariant 8),
claim, and only then say where to start reading. Nothing is ever skipped silently: each mismatch is an error
that stops this partition and says what to do.
"""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from consumer.builder import Build, Builder
from tidemark.caught_up import now_ms
from tidemark.checkpoint import Checkpoints, Loaded
from tidemark.collection import Collection, IndexParameters
from tidemark.crash_point import reach
from tidemark.errors import StaleOwner, TidemarkError
from tidemark.generation import Generation
from tidemark.log import Log, Partition, Start
from tidemark.log_check import check_log
from tidemark.manifest import Manifest, SegmentEntry, TopicIdentity
from tidemark.merge_policy import Candidate, next_build
from tidemark.segment import Segment
from tidemark.topic import Topics
from tidemark.view import View

logger = logging.getLogger(__name__)

CLAIM_ATTEMPTS = 5
BACKLOG_OFFSETS = 50_000
# Nothing has arrived for so long: time to tidy up.
QUIET_S = 1.0


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
    checkpoint_at: float = field(default_factory=time.monotonic)
    clean_at: float = field(default_factory=time.monotonic)
    checkpoint_wanted: bool = False
    committed: int | None = None
    end: int = -1
    paused: bool = False
    stopped: TidemarkError | None = None
    records: int = 0
    bad: dict[str, int] = field(default_factory=dict)
    last_record_at: float = field(default_factory=time.monotonic)

    @property
    def index(self) -> IndexParameters:
        return self.generation.index

    @property
    def start(self) -> Start:
        return Start(self.partition, self.view.position, self.view.leader_epoch)

    def candidates(self) -> list[Candidate]:
        """What the merge policy needs to know; under `flat` every segment counts as built once it is merged."""
        return [
            Candidate(s.name, s.live_count, s.dead_rows, s.is_built or self._is_settled(s.rows))
            for s in self.view.searcher.segments
        ]

    def _is_settled(self, rows: int) -> bool:
        return self.index.kind == "flat" and rows >= self.index.ann_rows_min

    @property
    def quiet(self) -> bool:
        """Whether nothing has arrived for a while."""
        return time.monotonic() - self.last_record_at > QUIET_S

    def wanted_build(self, rows_max: int, quiet: bool) -> list[Segment]:
        """The segments to make one next; empty when all is well, or while the partition is stopped.

        During a backlog builds wait until the cap of rows without an index stops the fetching: they would take the
        cores from those who make records searchable.
        """
        if self.stopped is not None or (self.is_behind and not self.paused):
            return []
        names = next_build(self.candidates(), self.index.ann_rows_min, rows_max, quiet)
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

    def hold_back(self, log: Log, unbuilt_rows_max: int) -> None:
        """Pause fetching at the cap of rows without an index, until the builder has caught up by a fifth."""
        rows = self.view.unbuilt_rows
        if self.stopped is None and not self.paused and rows > unbuilt_rows_max:
            log.pause(self.partition)
            self.paused = self.checkpoint_wanted = True
            logger.warning("%s[%d]: %d rows wait for an index, fetching pauses", *self.partition, rows)
        elif self.paused and rows < 0.8 * unbuilt_rows_max:
            log.restart(self.start)
            self.paused = False

    def checkpoint_due(self, now: float, interval_s: float, rows: int) -> bool:
        """By the age of the oldest record not in one, or by rows in memory; at once when only segments have changed."""
        if self.view.position == self.checkpointed and not self.checkpoint_wanted:
            self.clean_at = now
            return False
        if self.checkpoint_wanted and not self.view.tail_rows:
            return True
        return now - self.clean_at >= interval_s or self.view.tail_rows >= rows

    def checkpoint(self) -> Manifest:
        """Make the view durable; positions up to the manifest's may be committed afterwards."""
        manifest = self.checkpoints.publish(self.view, now_ms())
        self.checkpointed = manifest.position
        self.checkpoint_version = manifest.version
        self.checkpoint_at = self.clean_at = time.monotonic()
        self.checkpoint_wanted = False
        return manifest


def advance_builds(builder: Builder, partitions: Iterable[OwnedPartition], rows_max: int) -> None:
    """Install the build that has ended, if one has, and give out the next, if one is wanted."""
    partitions = list(partitions)
    if finished := builder.finished():
        build, result = finished
        for owned in partitions:
            if owned.checkpoints is build.checkpoints:
                owned.install(build, result.entry)
    if builder.idle:
        for owned in sorted(partitions, key=lambda owned: -owned.view.unbuilt_rows):
            if inputs := owned.wanted_build(rows_max, owned.quiet):
                builder.start(owned.checkpoints, owned.collection, owned.index, inputs)
                return


def take_over(
    partition: Partition,
    collection: Collection,
    generation: Generation,
    checkpoints: Checkpoints,
    topics: Topics,
    first: int | None = None,
) -> OwnedPartition:
    """Load, check and claim a partition; raises an error of tidemark.errors that says what to do.

    Without any checkpoint it starts at `first`, by default where the log starts.
    """
    topic = topics.identity(partition[0])
    if first is None:
        first = topics.starts([partition])[partition]
    for _ in range(CLAIM_ATTEMPTS):
        loaded = checkpoints.load()
        if loaded is not None:
            for damage in loaded.damaged:
                logger.error("damaged checkpoint passed over, its records are replayed: %s", damage)
            check_log(loaded.manifest, partition, topic, topics)
        if checkpoints.claim(topic, loaded, first):
            return _opened(partition, collection, generation, topic, checkpoints, loaded, first)
    raise StaleOwner(f"{partition[0]}[{partition[1]}]: other writers keep claiming it; not taken over")


def _opened(
    partition: Partition,
    collection: Collection,
    generation: Generation,
    topic: TopicIdentity,
    checkpoints: Checkpoints,
    loaded: Loaded | None,
    first: int,
) -> OwnedPartition:
    view = View(collection, partition[1])
    if loaded is None:
        view.open((), first, -1, 0)
    else:
        manifest = loaded.manifest
        view.open(loaded.segments, manifest.position, manifest.leader_epoch, manifest.digest)
    return OwnedPartition(
        partition, collection, generation, topic, view, checkpoints, view.position, checkpoints.version
    )
