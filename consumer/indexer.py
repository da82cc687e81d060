"""The indexer: fetch -> decode -> apply -> checkpoint -> commit, for every partition this member owns.

Invariants: one thread owns the views and the log reader; offsets are committed only after the manifest that
holds them is durable; a bad record is passed only after its dead letter is acknowledged; whatever happens, the
next owner replays from the manifest. HTTP threads read `status`, replaced by one assignment.
Start reading at `run`; `partition.py` is one partition, `builder.py` the child process that indexes.
"""

import json
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from consumer.builder import Builder
from consumer.dead_letter import DeadLetters
from consumer.partition import OwnedPartition, advance_builds, take_over
from consumer.status import PartitionStatus, Status
from tidemark import generation
from tidemark.checkpoint import Checkpoints
from tidemark.collection import Collection
from tidemark.crash_point import reach
from tidemark.errors import BrokerUnreachable, CorruptCheckpoint, StaleOwner, StoreUnavailable, TidemarkError
from tidemark.log import Fetched, Log, Partition, Start
from tidemark.log_check import check_identity, remedy
from tidemark.record import decode
from tidemark.settings import Settings
from tidemark.topic import Topics

logger = logging.getLogger(__name__)

POLL_S = 0.05
# Nobody searches here: while there is no backlog, few larger batches leave the cores to those who do.
GATHER_S = 0.02
FEW_FETCHES = {"fetch.min.bytes": 262_144, "fetch.wait.max.ms": 100}
CURRENT_EVERY_S = 1.0
IDENTITY_EVERY_S = 30.0
STALL_S = 60.0
DEAD_LETTER_TIMEOUT_S = 30.0


class Indexer:
    """Owns the views of the partitions assigned to this process; `run` returns when told to stop."""

    def __init__(self, settings: Settings, collections: Iterable[Collection]) -> None:
        self._settings = settings
        self._root: Path = settings.checkpoint_root
        self._by_topic = {collection.topic: collection for collection in collections}
        self._owned: dict[Partition, OwnedPartition] = {}
        self._failed: dict[Partition, TidemarkError] = {}
        self._topics = Topics(settings.kafka)
        self._dead_letters = DeadLetters(settings.kafka, settings.consumer.group)
        self._builder = Builder(settings.consumer.build_threads)
        self._log: Log | None = None
        self._due: dict[str, float] = {}
        self.status = Status()

    # -- life ----------------------------------------------------------------------------------------------

    def run(self, stopping: Callable[[], bool]) -> None:
        """Join the group and index until `stopping()`; then checkpoint, commit and leave."""
        for topic in self._by_topic:
            self._topics.identity(topic)
        self._log = Log({**FEW_FETCHES, **self._settings.kafka}, self._settings.consumer.group)
        try:
            self._log.subscribe(list(self._by_topic), self._assigned, self._revoked)
            while not stopping():
                self._turn(self._log)
        finally:
            self._builder.stop()
            self._log.close()  # on the way, every partition is revoked: checkpoint and commit
            self._dead_letters.close()

    def _turn(self, log: Log) -> None:
        fetched = log.fetch(self._settings.consumer.fetch_records, POLL_S)
        self._take(fetched)
        self._dead_letters.turn()
        if fetched.records < self._settings.consumer.fetch_records // 2:
            time.sleep(GATHER_S)
        now = time.monotonic()
        for owned in list(self._owned.values()):
            self._checkpoint_if_due(owned, now)
            owned.hold_back(log, self._settings.consumer.unbuilt_rows_max)
        advance_builds(self._builder, self._owned.values(), self._settings.consumer.segment_rows_max)
        self._now_and_then("current", CURRENT_EVERY_S, self._follow_current)
        self._now_and_then("identity", IDENTITY_EVERY_S, self._check_topics)
        self._publish_status(now)

    def _now_and_then(self, what: str, interval_s: float, action: Callable[[], None]) -> None:
        now = time.monotonic()
        if now >= self._due.setdefault(what, now + interval_s):
            self._due[what] = now + interval_s
            action()

    # -- assignment ----------------------------------------------------------------------------------------

    def _assigned(self, partitions: list[Partition]) -> list[Start]:
        return [owned.start for partition in partitions if (owned := self._open(partition)) is not None]

    def _open(self, partition: Partition) -> OwnedPartition | None:
        """Take a partition over; None when it cannot be, which is kept and said until it is reassigned."""
        collection = self._by_topic[partition[0]]
        self._failed.pop(partition, None)
        try:
            served = generation.served(self._root, collection)
            grace_s = self._settings.checkpoint.grace_s
            checkpoints = Checkpoints(self._root, collection, served.name, partition[1], grace_s=grace_s)
            owned = take_over(partition, collection, served, checkpoints, self._topics)
        except TidemarkError as error:
            logger.error("partition not taken over: %s", error)
            self._failed[partition] = error
            return None
        logger.info(
            "owns %s[%d] generation %s from position %d (%d rows, epoch %d)",
            *partition,
            served.name,
            owned.view.position,
            owned.view.live_rows,
            checkpoints.epoch,
        )
        self._owned[partition] = owned
        return owned

    def _revoked(self, partitions: list[Partition]) -> None:
        """Every revocation may be a loss: publish if we still may, and let go."""
        for partition in partitions:
            self._failed.pop(partition, None)
            owned = self._owned.pop(partition, None)
            if owned is None:
                continue
            self._builder.drop(owned.checkpoints)
            try:
                if owned.stopped is None and owned.view.position != owned.checkpointed:
                    self._checkpoint(owned)
            except (StaleOwner, StoreUnavailable) as error:
                logger.warning("let go without a checkpoint: %s", error)
            self._dead_letters.forget(partition)

    def _stop_partition(self, owned: OwnedPartition, error: TidemarkError) -> None:
        logger.error("stopped: %s", error)
        owned.stopped = error
        self._builder.drop(owned.checkpoints)
        assert self._log is not None
        self._log.stop(owned.partition)

    # -- records -------------------------------------------------------------------------------------------

    def _take(self, fetched: Fetched) -> None:
        for warning in fetched.warnings:
            logger.warning("kafka: %s", warning)
        for partition, messages in fetched.messages.items():
            if owned := self._owned.get(partition):
                self._apply(owned, messages)
        for partition, end in fetched.ends.items():
            if owned := self._owned.get(partition):
                owned.view.advance(end)
                owned.end = max(owned.end, end)
        for partition, gap in fetched.stopped.items():
            if owned := self._owned.get(partition):
                self._stop_partition(owned, gap)

    def _apply(self, owned: OwnedPartition, messages: list[Any]) -> None:
        if messages[0].offset() < owned.view.position:
            messages = [message for message in messages if message.offset() >= owned.view.position]
        if not messages:
            return
        batch, bad = decode(messages, owned.collection)
        for record in bad:
            owned.bad[record.reason] = owned.bad.get(record.reason, 0) + 1
            self._dead_letters.send(record, owned.partition, owned.collection.dead_letters)
        owned.view.apply(batch)
        owned.records += len(messages)
        owned.last_record_at = time.monotonic()
        reach("applied")

    # -- checkpoints ---------------------------------------------------------------------------------------

    def _checkpoint_if_due(self, owned: OwnedPartition, now: float) -> None:
        checkpoint = self._settings.checkpoint
        if owned.stopped is None and owned.checkpoint_due(now, checkpoint.interval_s, checkpoint.rows):
            try:
                self._checkpoint(owned)
            except StaleOwner as error:
                self._stop_partition(owned, error)

    def _checkpoint(self, owned: OwnedPartition) -> None:
        """Dead letters acknowledged -> manifest durable -> offsets committed -> obsolete files removed."""
        if not self._dead_letters.wait([owned.partition], DEAD_LETTER_TIMEOUT_S):
            why = self._dead_letters.problem(owned.partition) or "dead letters are not acknowledged by the brokers"
            raise StoreUnavailable(f"{owned.partition[0]}[{owned.partition[1]}]: {why}")
        reach("dead-letters-acknowledged")
        manifest = owned.checkpoint()
        assert self._log is not None
        named = json.dumps({"manifest": manifest.version, "generation": manifest.generation})
        refused = self._log.commit({owned.partition: manifest.position}, named)
        if refused is None:
            owned.committed = manifest.position
        else:
            logger.warning("offsets not committed (the checkpoint is made all the same): %s", refused)
        reach("committed")
        owned.checkpoints.remove_obsolete()
        reach("obsolete-removed")

    # -- now and then --------------------------------------------------------------------------------------

    def _follow_current(self) -> None:
        """Move to the generation that CURRENT names, when it names another one than ours."""
        for owned in list(self._owned.values()):
            try:
                name = generation.current(self._root, owned.collection.name)
            except CorruptCheckpoint as error:
                logger.error("CURRENT not followed: %s", error)
                continue
            if name is not None and name != owned.generation.name:
                self._switch_generation(owned)

    def _switch_generation(self, owned: OwnedPartition) -> None:
        assert self._log is not None
        self._revoked([owned.partition])
        self._log.stop(owned.partition)
        opened = self._open(owned.partition)
        if opened is not None:
            self._log.restart(opened.start)

    def _check_topics(self) -> None:
        """librdkafka does not notice a topic that was deleted and created again: compare its id."""
        for owned in list(self._owned.values()):
            if owned.stopped is not None:
                continue
            name = f"{owned.partition[0]}[{owned.partition[1]}]"
            try:
                found = self._topics.identity(owned.partition[0])
                check_identity(name, owned.topic, found, remedy(owned.collection.name))
                self._wake_if_stalled(owned)
            except BrokerUnreachable as error:
                logger.warning("%s", error)
            except TidemarkError as error:
                self._stop_partition(owned, error)

    def _wake_if_stalled(self, owned: OwnedPartition) -> None:
        """Read a partition again from our position when its end moves on but nothing arrives."""
        end = self._topics.ends([owned.partition])[owned.partition]
        owned.end = max(owned.end, end)
        silent = time.monotonic() - owned.last_record_at
        if end > owned.view.position and silent > STALL_S and not owned.paused:
            logger.error(
                "%s[%d]: %d offsets behind and nothing fetched for %.0f s; reading again",
                *owned.partition,
                end - owned.view.position,
                silent,
            )
            assert self._log is not None
            owned.last_record_at = time.monotonic()
            self._log.restart(owned.start)

    def _publish_status(self, now: float) -> None:
        assert self._log is not None
        partitions = []
        for owned in self._owned.values():
            owned.end = max(owned.end, self._log.end_offset(owned.partition) or -1, owned.view.position)
            partitions.append(PartitionStatus.of(owned, now))
        self.status = Status(
            turned_at=now,
            partitions=tuple(partitions),
            failed={f"{topic}[{number}]": str(error) for (topic, number), error in self._failed.items()},
            building_rows=self._builder.build.rows if self._builder.build else 0,
            builder_pid=self._builder.pid,
        )
