"""The indexer: fetch -> decode -> apply -> checkpoint -> commit, for every partition this member owns.

Invariants: one thread, the owner, has the views and the log reader, and it never waits for a broker: questions are
asked by `TopicWatch`, partitions are taken over on side threads, commits and dead letters are answered later. Offsets
are committed only after the manifest that holds them is durable; a checkpoint passes a bad record only after its dead
letter is acknowledged; whatever happens, the next owner replays from the manifest. What goes wrong with one partition
stops that partition, is said (`status`, and beside its committed offset) and is tried again. HTTP threads read
`status`, replaced by one assignment.
Start reading at `run`; `take_over.py` makes an owned partition, `partition.py` is one, `builds.py` says what the child
process `builder.py` codes and merges.
"""

import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from consumer.bounds import Bounds
from consumer.builder import Builder
from consumer.builds import Builds
from consumer.dead_letter import DeadLetters
from consumer.partition import OwnedPartition
from consumer.quantizing import KnownQuantizers
from consumer.status import PartitionStatus, Status, WaitingStatus
from consumer.take_over import Cause, Waiting, open_served
from consumer.told import Told
from tidemark import files, generation
from tidemark.collection import Collection
from tidemark.crash_point import reach
from tidemark.errors import CorruptCheckpoint, FsyncFailed, StaleOwner, StoreUnavailable, TidemarkError, TopicMissing
from tidemark.log import Fetched, Log, Partition, Start
from tidemark.record import decode
from tidemark.settings import Settings
from tidemark.topic import Topics
from tidemark.topic_watch import TopicFacts, TopicWatch

logger = logging.getLogger(__name__)

POLL_S = 0.05
# Nobody searches here: while there is no backlog, few larger batches leave the cores to those who do.
GATHER_S = 0.02
FEW_FETCHES = {"fetch.min.bytes": 262_144, "fetch.wait.max.ms": 100}
CURRENT_EVERY_S = 1.0
STATUS_EVERY_S = 0.2
STALL_S = 60.0
# How long a partition that is let go may wait for its dead letters; what is not acknowledged is read again.
LETTERS_S = 5.0
# Checkpoints are read and hashed by so many threads.
TAKE_OVERS = 4


class Indexer:
    """Owns the views of the partitions assigned to this process; `run` returns when told to stop.

    Each assigned partition is in `_owned` or in `_waiting`, never in both.
    """

    def __init__(self, settings: Settings, collections: Iterable[Collection]) -> None:
        self._settings = settings
        self._root: Path = settings.checkpoint_root
        self._by_topic = {collection.topic: collection for collection in collections}
        self._owned: dict[Partition, OwnedPartition] = {}
        self._waiting: dict[Partition, Waiting] = {}
        self._watches = {c.topic: TopicWatch(settings, c) for c in self._by_topic.values()}
        self._facts: dict[str, TopicFacts] = {}
        self._current: dict[str, str | None] = {}
        self._not_followed: dict[str, str] = {}
        self._take_overs = ThreadPoolExecutor(TAKE_OVERS, thread_name_prefix="take-over")
        self._dead_letters = DeadLetters(settings.kafka, settings.consumer.group)
        self._builder = Builder(settings.consumer.build_threads)
        self._quantizers = KnownQuantizers(self._root)
        self._builds = Builds(self._builder, self._quantizers, settings.consumer)
        self._bounds = Bounds.of(settings)
        self._memory_is_full = False
        self._log = Log({**FEW_FETCHES, **settings.kafka}, settings.consumer.group)
        self._told = Told(self._log)
        self._due: dict[str, float] = {}
        self.status = Status()

    # -- life ----------------------------------------------------------------------------------------------

    def run(self, stopping: Callable[[], bool]) -> None:
        """Join the group and index until `stopping()`; then checkpoint, commit and leave.

        Raises FsyncFailed when the disk may have lost what was written, ClientEnded when the Kafka client has ended:
        only a new process may go on.
        """
        self._refuse_to_start_without_topics()
        for watch in self._watches.values():
            watch.start()
        log = self._log
        try:
            log.subscribe(list(self._by_topic), self._assigned, self._revoked)
            while not stopping():
                self._turn(log)
        finally:
            self._builder.stop()
            self._take_overs.shutdown(wait=False, cancel_futures=True)
            self._quantizers.close()
            self._revoked([*self._waiting, *self._owned])  # checkpoint and commit
            self._dead_letters.close()
            log.close()
            for watch in self._watches.values():
                watch.close()

    def _refuse_to_start_without_topics(self) -> None:
        """A mistake in the settings ends the start, in words; one topic that is missing stops its collection only."""
        topics = Topics(self._settings.kafka)
        missing: list[TopicMissing] = []
        for topic in self._by_topic:
            try:
                topics.identity(topic)
            except TopicMissing as error:
                missing.append(error)
        if len(missing) == len(self._by_topic):
            raise missing[0]
        for problem in missing:
            logger.error("%s", problem)

    def _turn(self, log: Log) -> None:
        fetched = log.fetch(self._settings.consumer.fetch_records, POLL_S)
        self._take(fetched)
        if fetched.records < self._settings.consumer.fetch_records // 2:
            time.sleep(GATHER_S)
        self._dead_letters.turn()
        self._note_facts()
        self._now_and_then("current", CURRENT_EVERY_S, self._follow_current)
        for waiting in list(self._waiting.values()):
            self._advance(waiting)
        files.check_synced()  # a claim on a side thread, or a last checkpoint, may have failed in it
        self._measure_memory()
        for owned in list(self._owned.values()):
            self._checkpoint_if_due(owned)
            if owned.partition in self._owned:  # not by a stale owner, who has let go of it
                known, reason = self._builds.known(owned), self._reason_to_hold(owned)
                owned.hold_back(log, self._bounds, known, reason, self._builder.problem)
                self._told.problem_of(owned)
        self._builds.advance(self._owned.values())
        self._now_and_then("status", STATUS_EVERY_S, self._publish_status)
        self.status = replace(self.status, turned_at=time.monotonic())

    def _now_and_then(self, what: str, interval_s: float, action: Callable[[], None]) -> None:
        now = time.monotonic()
        if now >= self._due.setdefault(what, 0.0):
            self._due[what] = now + interval_s
            action()

    # -- assignment ----------------------------------------------------------------------------------------

    def _assigned(self, partitions: list[Partition]) -> list[Start]:
        """Nothing is read yet: each partition is taken over first, on a side thread."""
        for partition in partitions:
            self._waiting[partition] = Waiting(partition, self._by_topic[partition[0]])
        return []

    def _advance(self, waiting: Waiting) -> None:
        """Take a partition over: begin when it is due, own it when it is done."""
        if waiting.opening is not None and waiting.opening.done():
            try:
                self._own(waiting.opening.result(), waiting)
                return
            except TidemarkError as error:
                waiting.refuse(error)
                self._watches[waiting.partition[0]].ask_identity_now()
                self._tell_of_refusal(waiting)
        cause = self._cause(waiting.collection)
        if waiting.due(cause):
            waiting.tried = cause
            topic, number = waiting.partition
            waiting.opening = self._take_overs.submit(
                open_served, self._settings, waiting.collection, number, self._watches[topic], waiting.revoked
            )

    def _tell_of_refusal(self, waiting: Waiting) -> None:
        made, facts = self._current.get(waiting.collection.name), self._facts.get(waiting.partition[0])
        self._told.refusal_of(waiting, made, facts)

    def _cause(self, collection: Collection) -> Cause:
        facts = self._facts.get(collection.topic)
        return self._current.get(collection.name), facts.identity if facts else None

    def _own(self, owned: OwnedPartition, waiting: Waiting) -> None:
        del self._waiting[owned.partition]
        self._owned[owned.partition] = owned
        self._log.restart(owned.start)
        self._told.taken_over(owned, waiting, self._facts.get(owned.partition[0]))
        logger.info(
            "owns %s[%d] generation %s from position %d (%d rows, epoch %d)",
            *owned.partition,
            owned.generation.name,
            owned.state.position,
            owned.state.live_rows,
            owned.checkpoints.epoch,
        )

    def _revoked(self, partitions: list[Partition]) -> None:
        """Every revocation may be a loss: publish if we still may, and let go."""
        held = [partition for partition in partitions if partition in self._owned]
        self._dead_letters.wait(held, LETTERS_S)
        for partition in partitions:
            if waiting := self._waiting.pop(partition, None):
                waiting.revoked.set()
            if partition in self._owned:
                self._let_go(self._owned[partition])

    def _let_go(self, owned: OwnedPartition) -> None:
        """Make a last checkpoint if there is something to keep and it may be made."""
        del self._owned[owned.partition]
        self._builder.drop(owned.checkpoints)
        try:
            if owned.state.position != owned.checkpointed:
                self._checkpoint(owned)
        except (StaleOwner, StoreUnavailable) as error:
            logger.warning("let go without a checkpoint: %s", error)
        self._dead_letters.forget(owned.partition)

    def _stop_partition(self, owned: OwnedPartition, error: TidemarkError) -> None:
        """Read and write it no more; as long as it is assigned to us it is taken over again when that can be."""
        del self._owned[owned.partition]
        self._builder.drop(owned.checkpoints)
        self._dead_letters.forget(owned.partition)
        self._log.stop(owned.partition)
        waiting = Waiting(owned.partition, owned.collection, committed=owned.committed)
        waiting.tried = self._cause(owned.collection)
        waiting.refuse(error)
        self._waiting[owned.partition] = waiting
        self._tell_of_refusal(waiting)

    # -- records -------------------------------------------------------------------------------------------

    def _take(self, fetched: Fetched) -> None:
        for warning in fetched.warnings:
            logger.warning("kafka: %s", warning)
        for partition, messages in fetched.messages.items():
            if owned := self._owned.get(partition):
                self._or_stop(owned, partial(self._apply, owned, messages))
        for partition, end in fetched.ends.items():
            if owned := self._owned.get(partition):
                self._or_stop(owned, partial(owned.advance, end))
        for partition, position in fetched.committed.items():
            if owned := self._owned.get(partition):
                owned.committed = position
        for partition, gap in fetched.stopped.items():
            if owned := self._owned.get(partition):
                self._stop_partition(owned, gap)

    def _or_stop(self, owned: OwnedPartition, action: Callable[[], None]) -> None:
        try:
            action()
        except TidemarkError as error:
            self._stop_partition(owned, error)

    def _apply(self, owned: OwnedPartition, messages: list[Any]) -> None:
        owned.check_age()
        if messages[0].offset() < owned.state.position:
            messages = [message for message in messages if message.offset() >= owned.state.position]
        if not messages:
            return
        batch, bad = decode({owned.partition[1]: messages}, owned.collection)
        for record in bad:
            owned.bad[record.reason] = owned.bad.get(record.reason, 0) + 1
            self._dead_letters.send(record, owned.partition, owned.collection.dead_letters)
        owned.view.apply(batch)
        owned.records += len(messages)
        owned.last_record_at = time.monotonic()
        reach("applied")

    # -- checkpoints ---------------------------------------------------------------------------------------

    def _measure_memory(self) -> None:
        """Checkpoint the partition with most rows in memory when all together are too many."""
        bytes_max = self._settings.checkpoint.bytes
        in_memory = sum(owned.state.tail_bytes for owned in self._owned.values())
        if in_memory > bytes_max:
            max(self._owned.values(), key=lambda owned: owned.state.tail_bytes).memory_wanted = True
        # Only checkpoints that cannot be made let it get that far.
        self._memory_is_full = in_memory > (bytes_max if self._memory_is_full else 2 * bytes_max)

    def _reason_to_hold(self, owned: OwnedPartition) -> str | None:
        """Why reading is to be held back, besides what the partition itself has."""
        if self._dead_letters.full(owned.partition):
            return f"waiting for dead letters: {self._dead_letters.problem(owned.partition) or 'not acknowledged yet'}"
        if self._memory_is_full and owned.state.tail_bytes:
            return "waiting for a checkpoint: memory is at twice checkpoint.bytes"
        return None

    def _checkpoint_if_due(self, owned: OwnedPartition) -> None:
        checkpoint = self._settings.checkpoint
        if not owned.checkpoint_due(time.monotonic(), checkpoint.interval_s, checkpoint.rows):
            return
        if self._dead_letters.outstanding(owned.partition):
            problem = self._dead_letters.problem(owned.partition)
            if problem is not None and owned.checkpoint_problem is None:
                logger.warning("%s: no checkpoint: %s", owned.name, problem)
            owned.checkpoint_problem = problem
            return
        try:
            self._checkpoint(owned)
        except StaleOwner as error:
            self._stop_partition(owned, error)
        except FsyncFailed:
            raise
        except StoreUnavailable as error:
            owned.checkpoint_failed(str(error))

    def _checkpoint(self, owned: OwnedPartition) -> None:
        """Dead letters acknowledged -> manifest durable -> offsets committed -> obsolete files removed."""
        if self._dead_letters.outstanding(owned.partition):
            raise StoreUnavailable(
                f"{owned.name}: dead letters are not acknowledged "
                f"({self._dead_letters.problem(owned.partition) or 'no answer yet'}); their records are read again"
            )
        reach("dead-letters-acknowledged")
        owned.checkpoint(self._builds.known(owned))
        self._told.checkpointed(owned)
        reach("committed")
        owned.checkpoints.remove_obsolete()
        reach("obsolete-removed")

    # -- now and then --------------------------------------------------------------------------------------

    def _note_facts(self) -> None:
        """Give what the brokers have newly said to the partitions it concerns."""
        for topic, watch in self._watches.items():
            facts = watch.facts
            if facts is None or facts is self._facts.get(topic):
                continue
            self._facts[topic] = facts
            for owned in [owned for owned in self._owned.values() if owned.partition[0] == topic]:
                self._or_stop(owned, partial(owned.note_facts, facts))
                if owned.partition in self._owned:
                    self._wake_if_stalled(owned)

    def _follow_current(self) -> None:
        """Move to the generation that CURRENT names, when it names another one than ours."""
        for collection in self._by_topic.values():
            try:
                self._current[collection.name] = generation.current(self._root, collection.name)
                self._not_followed.pop(collection.name, None)
            except (CorruptCheckpoint, StoreUnavailable, OSError) as error:
                if str(error) != self._not_followed.get(collection.name):
                    logger.error("CURRENT not followed: %s", error)
                self._not_followed[collection.name] = str(error)
        for owned in list(self._owned.values()):
            name = self._current.get(owned.collection.name)
            if name is not None and name != owned.generation.name:
                self._log.stop(owned.partition)
                self._let_go(owned)
                waiting = Waiting(owned.partition, owned.collection, committed=owned.committed, told=owned.told)
                self._waiting[owned.partition] = waiting

    def _wake_if_stalled(self, owned: OwnedPartition) -> None:
        """Read a partition again from our position when its end moves on but nothing arrives."""
        behind, now = owned.end - owned.state.position, time.monotonic()
        if behind <= 0 or owned.held is not None:
            owned.behind_since = None
            return
        owned.behind_since = owned.behind_since or now  # after a long silence the first record is not late
        silent = now - max(owned.behind_since, owned.last_record_at)
        if silent > STALL_S:
            logger.error(
                "%s: %d offsets behind and nothing fetched for %.0f s; reading again", owned.name, behind, silent
            )
            owned.behind_since = now
            self._log.restart(owned.start)

    def _publish_status(self) -> None:
        now = time.monotonic()
        for owned in self._owned.values():
            owned.end = max(owned.end, owned.state.position)
        self.status = Status(
            turned_at=now,
            partitions=tuple(PartitionStatus.of(each, now, self._builds.known(each)) for each in self._owned.values()),
            waiting=tuple(WaitingStatus.of(waiting) for waiting in self._waiting.values()),
            topics={topic: watch.problem for topic, watch in self._watches.items() if watch.problem},
            building_rows=self._builder.build.rows if self._builder.build else 0,
            builder_pid=self._builder.pid,
        )
