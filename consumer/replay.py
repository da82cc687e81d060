"""Replay: build a new generation of a collection from its topic, beside the one served, then switch.

Reads the log alone (no group), with the same views, checkpoints and builder as the indexer. Every partition
is followed to the log's end and built; then CURRENT is switched, one atomic replace, and the running consumer
takes the new generation over by its next claim. A replay that dies leaves CURRENT as it was.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from consumer.bounds import Bounds
from consumer.builder import Builder
from consumer.builds import Builds
from consumer.dead_letter import DeadLetters
from consumer.partition import OwnedPartition
from consumer.quantizing import KnownQuantizers
from consumer.take_over import checkpoints_of, take_over
from tidemark import generation
from tidemark.checkpoint import Checkpoints
from tidemark.collection import Collection
from tidemark.errors import BadConfiguration, LogGap, StoreUnavailable, TidemarkError
from tidemark.log import Fetched, Log, Partition
from tidemark.manifest import TopicIdentity
from tidemark.record import decode
from tidemark.settings import Settings
from tidemark.topic import Topics
from tidemark.topic_watch import TopicWatch

logger = logging.getLogger(__name__)

POLL_S = 0.1
REPORT_EVERY_S = 1.0
LETTERS_S = 30.0


@dataclass(frozen=True, slots=True)
class Progress:
    """Offsets done and to do over all partitions, and rows still without an index."""

    done: int
    total: int
    unbuilt_rows: int


def starting_positions(topics: Topics, topic: str, partitions: int, start: str) -> dict[Partition, int]:
    """Resolve `earliest`, `0=120,1=7` (offsets) or an ISO 8601 time into positions; raises BadConfiguration."""
    every = [(topic, number) for number in range(partitions)]
    first, end = topics.starts(every), topics.ends(every)
    if start == "earliest":
        return first
    if "=" in start:
        return _offsets(start, first, end, topic)
    at = topics.at_time(every, _milliseconds(start))
    return {partition: end[partition] if found is None else found for partition, found in at.items()}


def _offsets(start: str, first: dict[Partition, int], end: dict[Partition, int], topic: str) -> dict[Partition, int]:
    positions = dict(first)
    for part in start.split(","):
        number, _, offset = part.partition("=")
        if not (number.strip().isdigit() and offset.strip().isdigit()):
            raise BadConfiguration(f"--from {start!r}: write offsets as PARTITION=OFFSET,..., for example 0=120,1=7")
        partition, position = (topic, int(number)), int(offset)
        if partition not in first:
            raise BadConfiguration(f"--from {start!r}: topic {topic!r} has partitions 0 to {len(first) - 1}")
        if not first[partition] <= position <= end[partition]:
            raise BadConfiguration(
                f"--from {start!r}: partition {number} holds offsets {first[partition]} to {end[partition]}"
            )
        positions[partition] = position
    return positions


def _milliseconds(text: str) -> int:
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1000)
    except ValueError:
        raise BadConfiguration(
            f"--from {text!r}: use earliest, offsets (0=120,1=7) or a time (2026-11-23T10:00:00+00:00)"
        ) from None


class Replay:
    """One replay of one collection; `run` returns the new generation's name."""

    def __init__(self, settings: Settings, collection: Collection, start: str) -> None:
        self._settings = settings
        self._collection = collection
        self._topics = Topics(settings.kafka)
        self._watch = TopicWatch(settings, collection)
        self._builder = Builder(settings.consumer.build_threads)
        self._quantizers = KnownQuantizers(settings.checkpoint_root)
        self._builds = Builds(self._builder, self._quantizers, settings.consumer)
        self._dead_letters = DeadLetters(settings.kafka, settings.consumer.group)
        identity = self._topics.identity(collection.topic)
        self._from = starting_positions(self._topics, collection.topic, identity.partitions, start)
        self._start = start
        self._bounds = Bounds.of(settings)
        self._read_before = read_before(settings, collection, identity)
        self._owned: dict[Partition, OwnedPartition] = {}
        self._backlog: dict[Partition, int] = {}
        self._ends: dict[Partition, int] = {}
        self._settled = False

    def run(self, report: Callable[[Progress], None], stopping: Callable[[], bool]) -> str:
        """Build, catch up, switch. Raises LogGap when the log loses records meanwhile."""
        root, collection = self._settings.checkpoint_root, self._collection
        made = generation.create(root, collection, self._start)
        logger.info("replaying %s from %s into generation %s", collection.name, self._start, made.name)
        self._watch.start()
        log = Log(self._settings.kafka)
        try:
            for partition, position in self._from.items():
                checkpoints = checkpoints_of(self._settings, collection, made.name, partition[1])
                self._owned[partition] = take_over(collection, made, checkpoints, self._watch, position)
            log.assign([owned.start for owned in self._owned.values()])
            self._catch_up(log, report, stopping)
        finally:
            self._builder.stop()
            self._quantizers.close()
            self._watch.close()
            log.close()
            self._dead_letters.close()
        generation.promote(root, collection.name, made.name)
        return made.name

    def _catch_up(self, log: Log, report: Callable[[Progress], None], stopping: Callable[[], bool]) -> None:
        self._backlog = self._ends = self._topics.ends(list(self._owned))
        reported = 0.0
        while not self._done():
            if stopping():
                raise TidemarkError("replay stopped; the generation served is as it was")
            self._take(log.fetch(self._settings.consumer.fetch_records, POLL_S))
            self._dead_letters.turn()
            self._note_facts()
            for owned in self._owned.values():
                self._keep_up(owned, log)
            self._builds.advance(self._owned.values(), tidy_up=self._settled)
            if time.monotonic() - reported > REPORT_EVERY_S:
                reported = time.monotonic()
                report(self._progress())
        if not self._dead_letters.wait(list(self._owned), LETTERS_S):
            problems = (self._dead_letters.problem(partition) for partition in self._owned)
            why = next((problem for problem in problems if problem), "no answer")
            raise StoreUnavailable(f"dead letters could not be written ({why}); the generation served is as it was")
        for owned in self._owned.values():
            self._checkpoint(owned)
        report(self._progress())

    def _note_facts(self) -> None:
        facts = self._watch.facts
        if facts is not None:
            for partition, owned in self._owned.items():
                owned.note_facts(facts)
                self._ends[partition] = owned.end

    def _done(self) -> bool:
        """Caught up with the log, on disk, no build under way, and all built that was in the log when we began."""
        if any(owned.state.position < self._ends[partition] for partition, owned in self._owned.items()):
            return False
        if not self._settled:  # once: what still arrives is checkpointed by age, as ever
            self._settled = True
            for owned in self._owned.values():
                owned.checkpoint_wanted = owned.memory_wanted = True
            return False
        behind = [owned for partition, owned in self._owned.items() if owned.built_position < self._backlog[partition]]
        if any(owned.memory_wanted for owned in behind):
            return False
        return self._builds.settled(list(self._owned.values()), behind)

    def _progress(self) -> Progress:
        done = sum(owned.state.position - self._from[p] for p, owned in self._owned.items())
        total = sum(end - self._from[p] for p, end in self._ends.items())
        return Progress(done, total, sum(owned.unbuilt_rows for owned in self._owned.values()))

    def _take(self, fetched: Fetched) -> None:
        for gap in fetched.stopped.values():
            raise LogGap(str(gap))
        for partition, messages in fetched.messages.items():
            owned = self._owned[partition]
            owned.check_age()
            batch, bad = decode({partition[1]: messages}, self._collection)
            for record in bad:
                owned.bad[record.reason] = owned.bad.get(record.reason, 0) + 1
                if (record.message.offset() or 0) >= self._read_before.get(partition, 0):
                    self._dead_letters.send(record, partition, self._collection.dead_letters)
            owned.view.apply(batch)
            owned.last_record_at = time.monotonic()
        for partition, end in fetched.ends.items():
            self._owned[partition].advance(end)

    def _keep_up(self, owned: OwnedPartition, log: Log) -> None:
        checkpoint = self._settings.checkpoint
        due = owned.checkpoint_due(time.monotonic(), checkpoint.interval_s, checkpoint.rows)
        if (due or owned.state.tail_bytes > checkpoint.bytes) and not self._dead_letters.outstanding(owned.partition):
            self._checkpoint(owned)
        letters = "waiting for dead letters" if self._dead_letters.full(owned.partition) else None
        owned.hold_back(log, self._bounds, self._builds.known(owned), letters, self._builder.problem)

    def _checkpoint(self, owned: OwnedPartition) -> None:
        owned.checkpoint(self._builds.known(owned))
        owned.checkpoints.remove_obsolete()


def read_before(settings: Settings, collection: Collection, topic: TopicIdentity) -> dict[Partition, int]:
    """The positions up to which the generation served has read this topic: its bad records are dead letters already.

    What no consumer has read, after a gap or in a new topic, has no dead letters yet: the replay writes them. Those
    that a consumer reads meanwhile may be written twice.
    """
    root, found = settings.checkpoint_root, {}
    served = generation.current(root, collection.name)
    for number in range(topic.partitions if served else 0):
        newest = Checkpoints(root, collection, served or "", number).newest_manifest()
        if newest is not None and newest.topic_id == topic.topic_id and newest.cluster_id == topic.cluster_id:
            found[(collection.topic, number)] = newest.position
    return found
