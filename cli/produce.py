"""Producing records to a topic: bounded memory, a progress bar and a rate, and no record unsaid.

Every record is acknowledged, or counted as not. A bad record of the input stops the run before anything after
it is sent, and the error says how many were produced by then. `records.py` reads the input.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from cli import run_files
from cli.exits import Interrupted
from cli.generations import check_collection
from cli.ids_file import BadInput
from cli.records import Item, Records, read
from tidemark.collection import Collection
from tidemark.errors import BrokerUnreachable
from tidemark.kafka_settings import Settings, producer_settings
from tidemark.printable import printable
from tidemark.record import headers_beside, next_position
from tidemark.topic import Topics

TOPIC_TIMEOUT_S = 5.0
REPORT_EVERY = 1_000
# Without one acknowledgement for this long, what is left counts as not produced.
SILENCE_S = 30.0
# Whole batches matter here, not the first millisecond; the queue bounds our memory.
_BULK: Settings = {"linger.ms": 20, "queue.buffering.max.kbytes": 131_072, "log_level": 0}


@dataclass(slots=True)
class Produced:
    """What was acknowledged: records, seconds, records per second, and the position reached per partition."""

    records: int = 0
    seconds: float = 0.0
    rate: float = 0.0
    positions: dict[int, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def produce_file(collection: str, file: str, id_prefix: str, ids_file: Path | None, config: Path | None) -> Produced:
    """The command: into the topic of a configured collection, which must exist."""
    settings = run_files.settings(config)
    check_collection(settings, collection)
    found = settings.collection(collection)
    records = read(file, found, id_prefix, ids_file)
    Topics({"log_level": 0, **settings.kafka}, timeout_s=TOPIC_TIMEOUT_S).identity(found.topic)
    return produce(settings.kafka, found, records)


class _Deliveries:
    """Counts what the brokers answered; its `delivered` is called from `poll` and `flush`."""

    def __init__(self) -> None:
        self.produced = Produced()
        self.failed = 0
        self.first_failure = ""

    def delivered(self, error: KafkaError | None, message: Any) -> None:
        if error is not None:
            self.failed += 1
            self.first_failure = self.first_failure or error.str()
            return
        produced, partition = self.produced, message.partition() or 0
        produced.records += 1
        produced.positions[partition] = max(produced.positions.get(partition, 0), next_position(message))

    @property
    def answered(self) -> int:
        return self.produced.records + self.failed


def produce(settings: Settings, collection: Collection, records: Records) -> Produced:
    """Produce all, placed by the collection's partitioner, and wait for the brokers.

    Raises BrokerUnreachable when a record was not acknowledged, BadInput for a bad record of the input.
    """
    bulk = {name: value for name, value in _BULK.items() if name not in settings}
    producer = Producer({**producer_settings(settings, collection.partitioner), **bulk})
    deliveries = _Deliveries()
    started = time.perf_counter()
    with _progress(f"to {collection.topic}", records) as advance:
        problem = _send_all(producer, collection, records, deliveries, advance)
        left = _flush(producer, deliveries)
    produced = deliveries.produced
    produced.positions = dict(sorted(produced.positions.items()))
    produced.seconds = round(time.perf_counter() - started, 3)
    produced.rate = round(produced.records / max(produced.seconds, 1e-3))
    if left or deliveries.failed:
        why = deliveries.first_failure or f"no answer for {SILENCE_S:.0f} s"
        raise BrokerUnreachable(
            f"{produced.records} records were produced, {deliveries.failed + left} were not ({why}): "
            "produce the input again, records are upserts by id"
        )
    if isinstance(problem, BadInput):
        raise BadInput(f"{problem}; nothing after it was sent, {produced.records} records were produced")
    if isinstance(problem, KeyboardInterrupt):
        raise Interrupted(f"interrupted: {produced.records} records were produced")
    if problem is not None:
        raise problem
    return produced


def _send_all(
    producer: Producer,
    collection: Collection,
    records: Records,
    deliveries: _Deliveries,
    advance: Callable[[int], None],
) -> BaseException | None:
    """Hand everything to the producer; what ended it early is returned, so that what was sent is waited for."""
    sent = 0
    try:
        for item in records.items:
            _send(producer, collection, item, deliveries)
            sent += 1
            if sent % REPORT_EVERY == 0:
                advance(sent)
    except (Exception, KeyboardInterrupt) as error:
        return error
    finally:
        advance(sent)
    return None


def _send(producer: Producer, collection: Collection, item: Item, deliveries: _Deliveries) -> None:
    key, value, metadata = item
    headers: list[Any] = [*headers_beside(value, metadata, collection)]
    while True:
        try:
            producer.produce(collection.topic, value, key, headers=headers, on_delivery=deliveries.delivered)
            producer.poll(0)
            return
        except BufferError:
            producer.poll(0.1)
        except KafkaException as error:
            raise BadInput(f"id {key[:60]!r}: Kafka refuses it: {error.args[0].str()}") from None


def _flush(producer: Producer, deliveries: _Deliveries) -> int:
    """Wait as long as the brokers answer anything; returns how many records are left without an answer."""
    heard, answered = time.monotonic(), deliveries.answered
    while left := producer.flush(0.5):
        if deliveries.answered != answered:
            heard, answered = time.monotonic(), deliveries.answered
        elif time.monotonic() - heard > SILENCE_S:
            return left
    return 0


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")


@contextmanager
def _progress(title: str, records: Records) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, nothing elsewhere; yields a function that takes the number done."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(printable(title), total=records.total)
        yield lambda done: progress.update(task, completed=done)
