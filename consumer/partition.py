"""One owned partition: its view, its checkpoints, and what stands between it and the log.

`take_over.py` makes it. Here is when a checkpoint is due, what is to be coded and merged, and how reading is held
back at a bound (`bounds.py`). Used by the owning thread only.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from consumer.bounds import Bounds
from consumer.builder import Merging
from consumer.quantizing import Known
from tidemark.caught_up import CaughtUp, now_ms
from tidemark.checkpoint import Checkpoints
from tidemark.collection import Collection, IndexParameters
from tidemark.generation import Generation
from tidemark.log import Log, Partition, Start
from tidemark.log_check import check_age, check_identity, remedy
from tidemark.manifest import CodesEntry, Manifest, SegmentEntry, TopicIdentity
from tidemark.merge_policy import Candidate, next_build, next_merge
from tidemark.partition_state import PartitionState
from tidemark.segment import Segment
from tidemark.topic_watch import TopicFacts
from tidemark.view import View

logger = logging.getLogger(__name__)

BACKLOG_OFFSETS = 50_000
# Rows that are coded in one job, some seconds of it: what is to be coded or merged after it waits so long.
CODED_ROWS = 1_000_000
# Nothing has arrived for so long: time to tidy up.
QUIET_S = 1.0
# Of a compacted topic's `delete.retention.ms`: an idle partition's checkpoint is made anew when it has got so old, so
# that a consumer may be away for the rest of it.
RENEWED_SHARE = 0.25
# A checkpoint that could not be made is tried again after so long, twice as long each time.
RETRY_S, RETRY_S_MAX = 0.5, 30.0


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
    behind_since: float | None = None
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
    def number(self) -> int:
        return self.partition[1]

    @property
    def state(self) -> PartitionState:
        """What the view has of this partition."""
        return self.view.partitions[self.number]

    @property
    def start(self) -> Start:
        return Start(self.partition, self.state.position, self.state.leader_epoch)

    @property
    def problem(self) -> str | None:
        """Why its checkpoints stand still or its reading is held back, None when all is well."""
        return self.checkpoint_problem or self.held

    def note_facts(self, facts: TopicFacts) -> None:
        """Take what the brokers say of the topic; raises TopicReplaced or LogGap when the partition must stop."""
        check_identity(self.name, self.topic, facts.identity, remedy(self.collection.name))
        end = facts.ends.get(self.number)
        if end is None:
            return
        self.end = max(end, self.state.position)
        self.caught_up.note_end(end, facts.asked_ms)
        self.caught_up.reach(self.state.position)
        self.tombstones_kept_ms = facts.tombstones_kept_ms
        if end > self.state.position:
            self.check_age()
        self._renew(end, facts.epochs[self.number])

    def check_age(self) -> None:
        """Raise LogGap when reading on may miss deletes: asked before anything is applied, also while running.

        A process that was suspended meets records before it meets what the brokers say of them.
        """
        advice = remedy(self.collection.name)
        check_age(self.name, self.state.position, self.caught_up.as_of_ms, self.tombstones_kept_ms, advice)

    def advance(self, end: int) -> None:
        """Move to the end of the log, over what no reader sees; raises LogGap."""
        if end > self.state.position:
            self.check_age()
            self.view.advance(self.number, end)

    def _renew(self, end: int, leader_epoch: int) -> None:
        """Have a checkpoint made when only what it says of its position has changed: its age, and its leader epoch."""
        self.checkpoint_wanted |= (
            self.view.note_leader_epoch(self.number, end, leader_epoch) and self.checkpointed == self.state.position
        )
        if self.tombstones_kept_ms is not None:
            older_ms = self.caught_up.as_of_ms - self.checkpointed_as_of_ms  # less than 0 when a clock was ahead
            self.checkpoint_wanted |= not 0 <= older_ms <= RENEWED_SHARE * self.tombstones_kept_ms

    # -- builds --------------------------------------------------------------------------------------------

    def candidates(self) -> list[Candidate]:
        """What the merge policy needs to know, as of the last checkpoint: to count rows alive now costs more."""
        entries = [segment.entry for segment in self.state.segments]
        return [Candidate(e.name, e.live_rows, e.dead_rows, self._is_built(e)) for e in entries]

    def _is_built(self, entry: SegmentEntry) -> bool:
        """Whether its rows are in an index: codes of any version are one, and so is a graph."""
        if entry.kind == "hnsw" or entry.codes_file is not None:
            return True
        # Under `flat` every segment counts as built once it is merged.
        return self.index.kind == "flat" and entry.rows >= self.index.ann_rows_min

    @property
    def unbuilt_rows(self) -> int:
        """Rows without an index, in memory and in segments."""
        entries = (segment.entry for segment in self.state.segments)
        return self.state.tail_rows + sum(entry.rows for entry in entries if not self._is_built(entry))

    @property
    def built_position(self) -> int:
        """The least offset from which on a row may have no index; our position when all have one."""
        waiting = [segment.first_offset for segment in self.state.segments if not self._is_built(segment.entry)]
        in_memory = self.checkpointed if self.state.tail_rows else self.state.position
        return min([*waiting, in_memory])

    @property
    def quiet(self) -> bool:
        """Whether nothing has arrived for a while."""
        return time.monotonic() - self.last_record_at > QUIET_S

    @property
    def _builds_wait(self) -> bool:
        """During a backlog, until a bound holds the reading back: builds would take the cores from those who read."""
        return self.is_behind and self.held is None

    def wanted_codes(self, known: Known) -> list[Segment]:
        """Segments without codes of the newest quantizer, those without any first, as many as a job takes."""
        if self._builds_wait or known.newest is None:
            return []
        uncoded = [segment for segment in self.state.segments if not known.has_coded(segment.entry)]
        taken: list[Segment] = []
        for segment in sorted(uncoded, key=lambda segment: segment.entry.quantizer > 0):
            if taken and sum(s.entry.rows for s in taken) + segment.entry.rows > CODED_ROWS:
                break
            taken.append(segment)
        return taken

    def wanted_merge(self, rows_max: int, quiet: bool, known: Known | None) -> list[Segment]:
        """The segments to make one next; empty when all is well. `known`: the quantizer, of a kind that has one."""
        if self._builds_wait:
            return []
        candidates, held = self.candidates(), self.held is not None
        if known is None:
            names = next_build(candidates, self.index.ann_rows_min, rows_max, quiet or held, held)
        else:
            names = next_merge(candidates, rows_max, quiet, held and known.newest is None)
        return [segment for segment in self.state.segments if segment.name in names]

    @property
    def is_behind(self) -> bool:
        """Whether there is a backlog: it is sooner done when who reads it, here and in the replicas, has the cores."""
        return self.end - self.state.position > BACKLOG_OFFSETS

    def take_codes(self, codes: Mapping[str, CodesEntry], known: Known) -> None:
        """Codes were written beside segments; a checkpoint names them soon after."""
        for segment in self.state.segments:
            if segment.name in codes:
                segment.entry = segment.entry.with_codes(codes[segment.name])
                known.note(codes[segment.name], segment.entry.rows)
        self.checkpoint_wanted = True

    def install(self, build: Merging, entry: SegmentEntry | None) -> None:
        """Put a finished merge in the place of its inputs; a checkpoint names it soon after."""
        built = None
        if entry is not None:
            directory = self.checkpoints.directory / entry.name
            built = Segment(directory, entry, self.collection.dimension, self.collection.metric, self.number)
        self.view.install(self.number, built, build.inputs, build.dead_when_read)
        self.checkpoint_wanted = True
        if entry is not None and entry.recall < self.index.recall_target:
            logger.warning(
                "%s: the graph of segment %s, %d rows, has recall %.3f where index.recall_target asks for %.3f: "
                "searches find more with `effort` or `exact`",
                *(self.name, entry.name, entry.rows, entry.recall, self.index.recall_target),
            )

    # -- bounds --------------------------------------------------------------------------------------------

    def hold_back(
        self, log: Log, bounds: Bounds, known: Known | None, others: str | None = None, builder: str | None = None
    ) -> None:
        """Stop reading at a bound, and read on when it is left.

        `others` is a reason from outside the partition, `builder` what is wrong with the builder.
        The partition is unassigned and assigned again, not paused: librdkafka keeps a pause over an assignment.
        """
        reason = bounds.reached(self, known, builder) or others
        if self.held is None and reason is not None:
            log.stop(self.partition)
            self.checkpoint_wanted = True
            logger.warning("%s: reading stops at position %d, %s", self.name, self.state.position, reason)
        elif self.held is not None and reason is None:
            log.restart(self.start)
            self.last_record_at = time.monotonic()
            logger.info("%s: reading goes on from position %d", self.name, self.state.position)
        self.held = reason

    # -- checkpoints ---------------------------------------------------------------------------------------

    def checkpoint_due(self, now: float, interval_s: float, rows: int) -> bool:
        """By the age of the oldest record not in one, or by rows in memory; at once when only segments have changed."""
        if self.state.position == self.checkpointed and not self.checkpoint_wanted:
            self.clean_at = now
            return False
        if now < self.checkpoint_retry.at:
            return False
        if self.memory_wanted or (self.checkpoint_wanted and (self.held is not None or not self.state.tail_rows)):
            return True
        return now - self.clean_at >= interval_s or self.state.tail_rows + self.state.kept_deletes >= rows

    def checkpoint(self, known: Known | None = None) -> Manifest:
        """Make the view durable; positions up to the manifest's may be committed afterwards."""
        before = {segment.name for segment in self.state.segments}
        manifest = self.checkpoints.publish(self.view, self.caught_up.as_of_ms, known.newest if known else None)
        for entry in manifest.segments:
            if known is not None and entry.codes is not None and entry.name not in before:
                known.note(entry.codes, entry.rows)
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
