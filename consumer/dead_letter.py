"""Dead letters: bad records, kept with their coordinates and reason in a topic of their own.

Invariants: a letter is kept until the brokers have acknowledged it or its partition is let go (`forget`), and
is sent again until then, so a dead-letter topic that is missing, forbidden or down holds up only the partitions
that need it, and goes on by itself. A checkpoint passes a bad record only when `outstanding` is 0 for its
partition. A topic that finds a letter too large gets it cut. A letter may be written twice, never not at all.
Knows nothing of views. `letter.py` is what a letter holds. Used by the owning thread only.
"""

import heapq
import itertools
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from consumer.letter import CONTENT_BYTES_MAX, Letter
from tidemark.kafka_settings import Settings, producer_settings
from tidemark.record import BadRecord

Source = tuple[str, int]

# Bounds of what is not acknowledged: letters of one partition, and bytes of all of them.
LETTERS_MAX = 10_000
BYTES_MAX = 64 * 1024 * 1024
# A bound that was reached is left at this share of it, because each pause costs what was fetched ahead.
LEFT_AT = 0.5
RETRY_S_MIN = 0.5
RETRY_S_MAX = 10.0
IN_FLIGHT_MAX = 20_000
_WAIT_STEP_S = 0.02

# One letter of a batch was refused: each of them is sent again by itself, to see which.
_BATCH_REFUSED = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_RECORD, KafkaError._INVALID_DIFFERENT_RECORD)
_REMEDIES = {
    KafkaError.UNKNOWN_TOPIC_OR_PART: "create the topic",
    KafkaError._UNKNOWN_TOPIC: "create the topic",
    KafkaError._UNKNOWN_PARTITION: "create the topic",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "allow the consumer's Kafka user to write to it",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "allow the consumer's Kafka user to write to it",
    KafkaError.MSG_SIZE_TOO_LARGE: "raise the topic's max.message.bytes, a few hundred bytes are refused",
    KafkaError.NOT_ENOUGH_REPLICAS: "bring the topic's replicas back or lower its min.insync.replicas",
    KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND: "bring the topic's replicas back or lower its min.insync.replicas",
    KafkaError.INVALID_TIMESTAMP: "set the clock of this machine or the topic's message.timestamp.* settings",
    KafkaError.POLICY_VIOLATION: "mend the brokers' policy for this topic",
}
_REMEDY_OTHERWISE = "see that the brokers are up, that the topic has a leader, and what the brokers' logs say"


@dataclass(slots=True)
class _Unacknowledged:
    """The letters of one partition that are not acknowledged; `failed` are those that were refused or lost once."""

    letters: set[Letter] = field(default_factory=set)
    failed: set[Letter] = field(default_factory=set)
    reason: str = ""
    full: bool = False


class DeadLetters:
    """Produces dead letters; one per process. No call but `wait` and `close` waits for anything."""

    def __init__(self, settings: Settings, group: str) -> None:
        self._settings = _settings(settings)
        self._group = group
        self._batching = Producer(self._settings)
        # Made when first needed. A broker's limit holds for a whole batch, and one message a batch is 25 times
        # slower (8,000 messages/s against 210,000, 100-byte values, 2 cores), so only what was refused goes this way.
        self._single: Producer | None = None
        self._sources: dict[Source, _Unacknowledged] = {}
        self._ready: deque[Letter] = deque()
        self._later: list[tuple[float, int, Letter]] = []
        self._numbers = itertools.count()
        self._in_flight = 0
        self._bytes = 0

    # -- what is asked of it -------------------------------------------------------------------------------

    def send(self, bad: BadRecord, source: Source, topic: str) -> None:
        """Queue a bad record for its dead-letter topic; `turn` sends it."""
        letter = Letter(bad, source, topic, self._group)
        self._sources.setdefault(source, _Unacknowledged()).letters.add(letter)
        self._bytes += letter.size
        self._ready.append(letter)

    def turn(self) -> None:
        """Take the brokers' answers, and send what is new or due again."""
        self._batching.poll(0)
        if self._single is not None:
            self._single.poll(0)
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            self._ready.append(heapq.heappop(self._later)[2])
        while self._ready and self._in_flight < IN_FLIGHT_MAX:
            letter = self._ready.popleft()
            if not letter.dropped and not self._produce(letter):
                break

    def outstanding(self, source: Source) -> int:
        """Letters of a partition that are not acknowledged."""
        found = self._sources.get(source)
        return len(found.letters) if found else 0

    def full(self, source: Source) -> bool:
        """Whether nothing more of a partition should be read until letters of it are acknowledged.

        A partition without letters is never full, whatever the others hold.
        """
        found = self._sources.get(source)
        if found is None:
            return False
        share = LEFT_AT if found.full else 1.0
        found.full = len(found.letters) >= LETTERS_MAX * share or self._bytes >= BYTES_MAX * share
        return found.full

    def problem(self, source: Source) -> str | None:
        """Why letters of a partition are not written, and what to do; None when none has failed."""
        found = self._sources.get(source)
        if found is None or not found.failed:
            return None
        letters = "a dead letter" if len(found.failed) == 1 else f"{len(found.failed)} dead letters"
        return (
            f"{letters} could not be written to {found.reason}; sending goes on until they "
            "are acknowledged, and no checkpoint passes their records before"
        )

    def forget(self, source: Source) -> None:
        """Let go of a partition's letters: its next owner reads the records again."""
        found = self._sources.pop(source, None)
        for letter in found.letters if found else ():
            letter.dropped = True
            self._bytes -= letter.size

    def wait(self, sources: Iterable[Source], timeout_s: float) -> bool:
        """Turn until every letter of these partitions is acknowledged; False when that took too long."""
        sources = list(sources)
        deadline = time.monotonic() + timeout_s
        while True:
            self.turn()
            if not any(map(self.outstanding, sources)):
                return True
            if time.monotonic() >= deadline:
                return False
            (self._single or self._batching).poll(_WAIT_STEP_S)

    def close(self) -> None:
        """Drop what is not acknowledged."""
        for source in list(self._sources):
            self.forget(source)
        for producer in (self._batching, self._single):
            if producer is not None:
                producer.purge()
                producer.flush(1.0)

    # -- sending -------------------------------------------------------------------------------------------

    def _produce(self, letter: Letter) -> bool:
        """Hand a letter to the client; False when the client's queue is full."""

        def delivered(error: KafkaError | None, _: Message) -> None:
            self._in_flight -= 1
            if letter.dropped:
                return
            if error is None:
                self._acknowledged(letter)
            else:
                self._refused(letter, error)

        key, value, headers = letter.contents()
        try:
            self._producer(letter).produce(letter.topic, value, key, headers=headers, on_delivery=delivered)  # type: ignore[arg-type]  # a null header value is allowed
        except BufferError:
            self._ready.appendleft(letter)
            return False
        except KafkaException as error:
            self._refused(letter, error.args[0])
            return True
        self._in_flight += 1
        return True

    def _producer(self, letter: Letter) -> Producer:
        if not letter.alone:
            return self._batching
        if self._single is None:
            self._single = Producer({**self._settings, "batch.num.messages": 1})
        return self._single

    def _acknowledged(self, letter: Letter) -> None:
        found = self._sources[letter.source]
        found.letters.discard(letter)
        found.failed.discard(letter)
        self._bytes -= letter.size
        if not found.letters:
            del self._sources[letter.source]

    def _refused(self, letter: Letter, error: KafkaError) -> None:
        code = error.code()
        if code in _BATCH_REFUSED and not letter.alone:
            letter.alone = True
            self._ready.append(letter)
        elif code == KafkaError.MSG_SIZE_TOO_LARGE and letter.cut():
            self._ready.append(letter)
        elif code == KafkaError.INVALID_RECORD and not letter.key_required:
            letter.key_required = True  # a compacted topic takes no record without a key
            self._ready.append(letter)
        else:
            self._failed(letter, error)

    def _failed(self, letter: Letter, error: KafkaError) -> None:
        found = self._sources[letter.source]
        found.failed.add(letter)
        found.reason = f"{letter.topic} ({error.str()}): {_REMEDIES.get(error.code(), _REMEDY_OTHERWISE)}"
        wait_s = min(RETRY_S_MAX, RETRY_S_MIN * 2 ** min(letter.failures, 10))
        letter.failures += 1
        heapq.heappush(self._later, (time.monotonic() + wait_s, next(self._numbers), letter))


def _settings(settings: Settings) -> dict[str, str | int | float | bool]:
    """The operator's settings with those that letters rest on."""
    ours = ("request.required.acks", "delivery.timeout.ms", "transactional.id", "message.max.bytes")
    shared = {name: value for name, value in producer_settings(settings).items() if name not in ours}
    tuning: dict[str, str | int | float | bool] = {
        # A failure is said after so long, and a topic that was missing is seen so soon after it was created.
        "message.timeout.ms": 10_000,
        "topic.metadata.propagation.max.ms": 1_000,
        "topic.metadata.refresh.interval.ms": 5_000,
    }
    owned: dict[str, str | int | float | bool] = {
        # Nothing here needs order, and an idempotent producer can fail for good.
        "enable.idempotence": False,
        "acks": "all",
        "message.max.bytes": CONTENT_BYTES_MAX + 1_048_576,
    }
    return {**tuning, **shared, **owned}
