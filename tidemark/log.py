"""Reading the log: the only file that imports the Kafka client's consumer.

Invariants: positions are given, never read back (no committed offset, no `auto.offset.reset`); callbacks
never raise, because an exception inside `consume()` would lose its whole batch; the object belongs to one
thread, since any other thread's call would wait for a poll. Knows nothing of vectors.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from tidemark.errors import ClientEnded, LogGap
from tidemark.kafka_settings import Settings, consumer_settings

logger = logging.getLogger(__name__)

Partition = tuple[str, int]

LEAVE_S = 2.0


class Committed(NamedTuple):
    """What a group has committed of a partition: for people, never read back as a position."""

    offset: int
    metadata: str


class LogEnd(NamedTuple):
    """Where a read-committed reader reaches the end of a log, and the newest leader epoch of that log (-1: unknown)."""

    offset: int
    leader_epoch: int


@dataclass(frozen=True, slots=True)
class Start:
    """Where to start reading a partition; the leader epoch makes the broker say when the log was truncated."""

    partition: Partition
    position: int
    leader_epoch: int = -1

    def to_client(self) -> TopicPartition:
        topic, number = self.partition
        if self.leader_epoch < 0:
            return TopicPartition(topic, number, self.position)
        return TopicPartition(topic, number, self.position, leader_epoch=self.leader_epoch)


@dataclass(slots=True)
class Fetched:
    """One fetch: messages per partition in offset order, ends reached, partitions that stopped and why.

    `committed`: offsets that the group's coordinator has taken since the fetch before.
    """

    messages: dict[Partition, list[Any]] = field(default_factory=dict)
    ends: dict[Partition, int] = field(default_factory=dict)
    stopped: dict[Partition, LogGap] = field(default_factory=dict)
    committed: dict[Partition, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def records(self) -> int:
        return sum(map(len, self.messages.values()))


class Log:
    """A Kafka consumer with explicit positions: as a group member (`subscribe`) or alone (`assign`)."""

    def __init__(
        self, settings: Settings, group: str | None = None, make_client: Callable[[dict[str, Any]], Any] = Consumer
    ) -> None:
        client: dict[str, Any] = {"group.id": group or "tidemark-reader", **consumer_settings(settings)}
        if group is None:
            client["client.id"] = client.get("client.id", "tidemark-api")
        else:
            client["group.id"] = group
            if client.get("group.protocol", "classic") == "classic":
                client["partition.assignment.strategy"] = "cooperative-sticky"
        self._callback_errors: list[BaseException] = []
        self._assigned: set[Partition] = set()
        self._changes = 0  # of the assignment
        self._to_check: dict[Partition, TopicPartition] = {}  # restarted, the leader epoch not given to the client yet
        self._answered: list[tuple[KafkaError | None, list[TopicPartition]]] = []  # commits
        client["on_commit"] = lambda error, partitions: self._answered.append((error, partitions))
        self._consumer = make_client(client)

    # -- assignment ----------------------------------------------------------------------------------------

    def subscribe(
        self,
        topics: Sequence[str],
        on_assigned: Callable[[list[Partition]], list[Start]],
        on_revoked: Callable[[list[Partition]], None],
    ) -> None:
        """Join the group. `on_assigned` answers where to start what was assigned; what it leaves out is not read."""

        def assigned(_: Consumer, partitions: list[TopicPartition]) -> None:
            starts: list[Start] = []
            try:
                starts = on_assigned([(p.topic, p.partition) for p in partitions])
            except BaseException as error:
                self._callback_errors.append(error)
            self._assigned |= {start.partition for start in starts}
            self._changes += 1
            self._consumer.incremental_assign([start.to_client() for start in starts])

        def revoked(_: Consumer, partitions: list[TopicPartition]) -> None:
            gone = [(p.topic, p.partition) for p in partitions]
            try:
                on_revoked(gone)
            except BaseException as error:
                self._callback_errors.append(error)
            # Once in here, also of nothing. If not at all, the client takes all of it away itself, and fails where it
            # is not being read. A second time may never be answered, because the first may have ended the membership.
            self._consumer.incremental_unassign(self._no_longer_assigned(gone))

        self._consumer.subscribe(list(topics), on_assign=assigned, on_revoke=revoked, on_lost=revoked)

    def assign(self, starts: Iterable[Start]) -> None:
        """Read exactly these partitions from now on, without a group."""
        starts = list(starts)
        self._assigned = {start.partition for start in starts}
        self._changes += 1
        self._consumer.assign([start.to_client() for start in starts])

    def restart(self, start: Start) -> None:
        """Read one assigned partition again from the position given."""
        self._unassign([start.partition])
        self._assigned.add(start.partition)
        self._changes += 1
        self._consumer.incremental_assign([start.to_client()])
        if start.leader_epoch >= 0:
            self._to_check[start.partition] = start.to_client()
            self._check_epochs()

    def _check_epochs(self) -> None:
        """Have the leader epochs of restarted partitions checked by the brokers, at a seek.

        At an assignment librdkafka does it only while it does not know the leader yet, which a group's member does.
        """
        for partition, start in list(self._to_check.items()):
            with contextlib.suppress(KafkaException):  # not assigned yet: what it delivers is dropped until it is
                self._consumer.seek(start)
                del self._to_check[partition]

    def stop(self, partition: Partition) -> None:
        """Stop reading a partition; its assignment in the group stays."""
        self._unassign([partition])

    def _unassign(self, partitions: Sequence[Partition]) -> None:
        if held := self._no_longer_assigned(partitions):
            self._consumer.incremental_unassign(held)

    def _no_longer_assigned(self, partitions: Sequence[Partition]) -> list[TopicPartition]:
        """Those of the partitions that were being read, which they are not any more, as the client takes them."""
        held = [partition for partition in partitions if partition in self._assigned]
        self._assigned -= set(held)
        self._changes += 1
        for partition in held:
            self._to_check.pop(partition, None)
        return [TopicPartition(*partition) for partition in held]

    # -- reading -------------------------------------------------------------------------------------------

    def fetch(self, most: int, timeout_s: float) -> Fetched:
        """Wait up to `timeout_s` for a first message, then take what has arrived, at most `most`.

        (`consume(n, t)` would wait for n messages or the deadline.) Errors of callbacks are raised here, and
        ClientEnded when the client will fetch nothing any more.
        """
        if self._to_check:
            self._check_epochs()
        before = self._changes
        first = self._consumer.poll(timeout_s)
        messages = [] if first is None else [first, *self._consumer.consume(most - 1, 0)]
        if self._callback_errors:
            raise self._callback_errors.pop(0)
        return self._sorted_out(messages, self._changes == before)

    def _sorted_out(self, messages: list[Message], unchanged: bool) -> Fetched:
        """`unchanged`: no partition came or went since the first of the messages was fetched."""
        fetched = Fetched()
        self._note_commits(fetched)
        if any(map(Message.error, messages)):
            for event in (message for message in messages if message.error() is not None):
                self._note(event, fetched)
            messages = [message for message in messages if message.error() is None]
        if not messages:
            return fetched
        if unchanged and len(self._assigned) == 1 and not self._to_check:
            fetched.messages = {next(iter(self._assigned)): messages}
            return fetched
        for message in messages:
            partition = (message.topic(), message.partition())
            fetched.messages.setdefault(partition, []).append(message)  # type: ignore[arg-type]
        for partition in fetched.messages.keys() - (self._assigned - self._to_check.keys()):
            del fetched.messages[partition]  # taken away since it was fetched, or its epoch is not checked: read later
        return fetched

    def _note(self, event: Message, fetched: Fetched) -> None:
        error = event.error()
        assert error is not None
        topic, number, offset = event.topic(), event.partition(), event.offset()
        code = error.code()
        if code == KafkaError._PARTITION_EOF and topic is not None and number is not None:
            fetched.ends[(topic, number)] = offset or 0  # first: of many partitions there are as many as records
            return
        if error.fatal() or code == KafkaError._FATAL:
            raise ClientEnded(
                f"the Kafka client has ended for good ({error.str()}): start this process again; of members with one "
                "group.instance.id only the newest reads"
            )
        if topic is None or number is None or number < 0:
            fetched.warnings.append(error.str())
        elif code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._LOG_TRUNCATION):
            fetched.stopped[(topic, number)] = LogGap(
                f"{topic}[{number}]: the log does not hold our position any more ({error.str()}): "
                "records were removed or the log was cut back; build a new generation with `tidemark replay`"
            )
        else:
            fetched.warnings.append(f"{topic}[{number}]: {error.str()}")

    def _note_commits(self, fetched: Fetched) -> None:
        while self._answered:
            error, partitions = self._answered.pop(0)
            for at in partitions:
                refused = at.error or error
                if refused is None:
                    fetched.committed[(at.topic, at.partition)] = at.offset
                else:
                    why = f"offset of {at.topic}[{at.partition}] not committed (checkpoints are made all the same)"
                    fetched.warnings.append(f"{why}: {refused.str()}")

    def commit(self, partition: Partition, position: int, metadata: str) -> None:
        """Commit a position and a word for people, without waiting: a fetch tells when it was taken.

        Never read back as truth: the manifest has the positions.
        """
        with contextlib.suppress(KafkaException):  # the group is being left, or has no coordinator: said by the others
            self._consumer.commit(offsets=[TopicPartition(*partition, position, metadata)], asynchronous=True)

    def end_offset(self, partition: Partition) -> int | None:
        """The high watermark as of the last fetch, without asking the broker; None before the first one."""
        try:
            low_high = self._consumer.get_watermark_offsets(TopicPartition(*partition), cached=True)
        except KafkaException:
            return None
        return low_high[1] if low_high and low_high[1] >= 0 else None

    def close(self) -> None:
        """Leave the group; who has partitions lets them go before, because nobody waits for on_revoked here.

        The client waits 5 s for the answer to its request to leave. The broker answers a member's requests in their
        order, and a join only after every other member has joined: one that was killed holds it up until its session
        times out. The request has been sent by then, so its answer is not waited for so long.
        """
        leaving = threading.Thread(target=self._consumer.close, name="leave-group", daemon=True)
        leaving.start()
        leaving.join(LEAVE_S)
        if leaving.is_alive():
            logger.warning("the group did not answer within %g s that we leave it: left without its answer", LEAVE_S)
        if self._callback_errors:
            raise self._callback_errors.pop(0)


class GroupOffsets:
    """The offsets a group has committed, for display only; it joins no group.

    Not by the admin client: librdkafka 2.16 dereferences a null group there when the coordinator is loading.
    """

    def __init__(self, settings: Settings, group: str) -> None:
        left_out = ("group.instance.id", "group.protocol")
        client = {name: value for name, value in consumer_settings(settings).items() if name not in left_out}
        self._consumer = Consumer({**client, "group.id": group})

    def of(self, partitions: Sequence[Partition], timeout_s: float) -> dict[Partition, Committed]:
        """Per partition that has one; raises KafkaException."""
        found = self._consumer.committed([TopicPartition(*partition) for partition in partitions], timeout_s)
        return {(at.topic, at.partition): Committed(at.offset, at.metadata or "") for at in found if at.offset >= 0}
