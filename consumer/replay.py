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

from consumer.builder import Builder
from consumer.partition import OwnedPartition, advance_builds, take_over
from tidemark import generation
from tidemark.checkpoint import Checkpoints
from tidemark.collection import Collection
from tidemark.errors import BadConfiguration, LogGap
from tidemark.log import Fetched, Log, Partition
from tidemark.record import decode
from tidemark.settings import Settings
from tidemark.topic import Topics

logger = logging.getLogger(__name__)

POLL_S = 0.1
REPORT_EVERY_S = 1.0


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
        self._builder = Builder(settings.consumer.build_threads)
        identity = self._topics.identity(collection.topic)
        self._from = starting_positions(self._topics, collection.topic, identity.partitions, start)
        self._start = start
        self._rows_max = settings.consumer.segment_rows_max
        self._owned: dict[Partition, OwnedPartition] = {}
        self._backlog: dict[Partition, int] = {}

    def run(self, report: Callable[[Progress], None], stopping: Callable[[], bool]) -> str:
        """Build, catch up, switch. Raises LogGap when the log loses records meanwhile."""
        root, collection = self._settings.checkpoint_root, self._collection
        made = generation.create(root, collection, self._start)
        logger.info("replaying %s from %s into generation %s", collection.name, self._start, made.name)
        for partition, position in self._from.items():
            checkpoints = Checkpoints(root, collection, made.name, partition[1])
            owned = take_over(partition, collection, made, checkpoints, self._topics, position)
            self._owned[partition] = owned
        log = Log(self._settings.kafka)
        try:
            log.assign([owned.start for owned in self._owned.values()])
            self._catch_up(log, report, stopping)
        finally:
            self._builder.stop()
            log.close()
        generation.promote(root, collection.name, made.name)
        return made.name

    def _catch_up(self, log: Log, report: Callable[[Progress], None], stopping: Callable[[], bool]) -> None:
        self._backlog = ends = self._topics.ends(list(self._owned))
        reported = 0.0
        while not self._done(ends):
            if stopping():
                raise InterruptedError("replay stopped; the generation served is as it was")
            self._take(log.fetch(self._settings.consumer.fetch_records, POLL_S))
            for owned in self._owned.values():
                self._keep_up(owned, log)
            advance_builds(self._builder, self._owned.values(), self._rows_max)
            if time.monotonic() - reported > REPORT_EVERY_S:
                reported = time.monotonic()
                ends = self._topics.ends(list(self._owned))
                report(self._progress(ends))
        for owned in self._owned.values():
            owned.checkpoint()
        report(self._progress(ends))

    def _done(self, ends: dict[Partition, int]) -> bool:
        """Caught up with the log, on disk, no build under way, and all built that was in the log when we began."""
        if any(owned.view.position < ends[partition] for partition, owned in self._owned.items()):
            return False
        for owned in self._owned.values():
            if owned.view.position > owned.checkpointed:
                owned.checkpoint()
        return self._builder.build is None and not any(
            owned.view.built_position < self._backlog[partition] and owned.wanted_build(self._rows_max, quiet=True)
            for partition, owned in self._owned.items()
        )

    def _progress(self, ends: dict[Partition, int]) -> Progress:
        done = sum(owned.view.position - self._from[p] for p, owned in self._owned.items())
        total = sum(end - self._from[p] for p, end in ends.items())
        return Progress(done, total, sum(owned.view.unbuilt_rows for owned in self._owned.values()))

    def _take(self, fetched: Fetched) -> None:
        for gap in fetched.stopped.values():
            raise LogGap(str(gap))
        for partition, messages in fetched.messages.items():
            owned = self._owned[partition]
            batch, bad = decode(messages, self._collection)
            for record in bad:  # already dead-lettered by the consumer: counted, not sent again
                owned.bad[record.reason] = owned.bad.get(record.reason, 0) + 1
            owned.view.apply(batch)
            owned.last_record_at = time.monotonic()
        for partition, end in fetched.ends.items():
            self._owned[partition].view.advance(end)

    def _keep_up(self, owned: OwnedPartition, log: Log) -> None:
        checkpoint = self._settings.checkpoint
        if owned.checkpoint_due(time.monotonic(), checkpoint.interval_s, checkpoint.rows):
            owned.checkpoint()
        owned.hold_back(log, self._settings.consumer.unbuilt_rows_max)
