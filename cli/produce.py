"""Producing vectors to a topic from files: bounded memory, a progress bar and a rate, and no record unsaid.

Records go out as `raw` float32 with the metadata in a header. Input is checked as the consumer would check it;
the first bad line stops the run before anything after it is sent.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
from confluent_kafka import KafkaError, Message, Producer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tidemark import id as ids
from tidemark.collection import Collection
from tidemark.errors import BadConfiguration, BadQuery, BrokerUnreachable
from tidemark.kafka_settings import Settings, producer_settings
from tidemark.record import next_position

Item = tuple[bytes, bytes | None, bytes | None]  # key, value, metadata
REPORT_EVERY = 5_000


@dataclass(frozen=True, slots=True)
class Records:
    """What to produce, and how many there are when that is known."""

    items: Iterable[Item]
    total: int | None


@dataclass(slots=True)
class Produced:
    """What was acknowledged: records, seconds, records per second, and positions per partition."""

    records: int = 0
    seconds: float = 0.0
    rate: float = 0.0
    positions: dict[int, int] | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    vector: list[float] | None = None
    metadata: dict[str, Any] | None = None
    deleted: bool = False


def produce(settings: Settings, topic: str, records: Records, title: str) -> Produced:
    """Produce all and wait for the brokers; raises BrokerUnreachable when a record was not acknowledged."""
    producer = Producer({"queue.buffering.max.messages": 200_000, **producer_settings(settings)})
    produced = Produced(positions={})
    failed: list[str] = []

    def delivered(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            failed.append(error.str())
            return
        produced.records += 1
        assert produced.positions is not None
        partition = message.partition() or 0
        produced.positions[partition] = max(produced.positions.get(partition, 0), next_position(message))

    started = time.perf_counter()
    with _progress(title, records.total) as step:
        try:
            for count, (key, value, metadata) in enumerate(records.items):
                headers = [] if metadata is None else [("metadata", metadata)]
                _send(producer, topic, key, value, headers, delivered)
                if count % REPORT_EVERY == REPORT_EVERY - 1:
                    step(REPORT_EVERY)
        finally:
            left = producer.flush(60.0)
    produced.seconds = round(time.perf_counter() - started, 3)
    produced.rate = round(produced.records / max(produced.seconds, 1e-9))
    if left or failed:
        raise BrokerUnreachable(
            f"{produced.records} records were produced, {len(failed) + left} were not "
            f"({failed[0] if failed else 'no answer within 60 s'}): produce the file again, it is idempotent by id"
        )
    return produced


def _send(producer: Producer, topic: str, key: bytes, value: bytes | None, headers: Any, delivered: Any) -> None:
    while True:
        try:
            producer.produce(topic, value, key, headers=headers, on_delivery=delivered)
            producer.poll(0)
            return
        except BufferError:
            producer.poll(0.1)


class _progress:  # noqa: N801  # reads as a function
    """A bar on a terminal, nothing elsewhere."""

    def __init__(self, title: str, total: int | None) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task(title, total=total)

    def __enter__(self) -> Any:
        self._progress.start()
        return lambda count: self._progress.advance(self._task, count)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def read(source: str, collection: Collection, id_prefix: str, ids_file: Path | None) -> Records:
    """Records of an .npy file, a .jsonl file, or `-` for JSON lines on standard input."""
    if source == "-":
        return Records(_json_lines(sys.stdin.buffer, "standard input", collection), None)
    path = Path(source)
    if not path.exists():
        raise BadConfiguration(f"{path}: no such file")
    if path.suffix == ".npy":
        return _matrix(path, collection, id_prefix, ids_file)
    return Records(_json_file(path, collection), None)


def _json_file(path: Path, collection: Collection) -> Iterator[Item]:
    with path.open("rb") as lines:
        yield from _json_lines(lines, str(path), collection)


def _json_lines(lines: IO[bytes], name: str, collection: Collection) -> Iterator[Item]:
    decode = msgspec.json.Decoder(_Line).decode
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield _item(decode(line), collection)
        except (msgspec.DecodeError, UnicodeDecodeError, BadQuery) as error:
            raise BadConfiguration(f"{name}, line {number}: {error}; the lines before it were produced") from None


def _item(line: _Line, collection: Collection) -> Item:
    key = ids.from_text(line.id, collection.id_format)
    if line.deleted:
        return key, None, None
    if line.vector is None:
        raise BadQuery('neither "vector" nor "deleted": true')
    with np.errstate(over="ignore"):
        vector = np.array(line.vector, np.float64).astype("<f4")
    _check(vector, collection)
    return key, vector.tobytes(), None if line.metadata is None else msgspec.json.encode(line.metadata)


def _check(vector: np.ndarray[Any, Any], collection: Collection) -> None:
    if vector.shape != (collection.dimension,):
        raise BadQuery(
            f"the vector has {len(vector)} numbers, collection {collection.name!r} has dimension {collection.dimension}"
        )
    if not np.isfinite(vector).all():
        raise BadQuery("the vector holds NaN, an infinity or a number beyond float32")
    if collection.metric == "cosine" and not vector.any():
        raise BadQuery("a zero vector has no direction under cosine")


def _matrix(path: Path, collection: Collection, id_prefix: str, ids_file: Path | None) -> Records:
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise BadConfiguration(f"{path}: is not an .npy array: {error}") from None
    if vectors.ndim != 2 or vectors.shape[1] != collection.dimension:
        raise BadConfiguration(
            f"{path}: has shape {vectors.shape}, collection {collection.name!r} has dimension {collection.dimension}"
        )
    names = ids_file.read_text().splitlines() if ids_file else None
    if names is not None and len(names) != len(vectors):
        raise BadConfiguration(f"{ids_file}: has {len(names)} lines, {path} has {len(vectors)} rows")
    return Records(_rows(path, vectors, collection, id_prefix, names), len(vectors))


def _rows(path: Path, vectors: Any, collection: Collection, prefix: str, names: list[str] | None) -> Iterator[Item]:
    for row in range(len(vectors)):
        with np.errstate(over="ignore"):
            vector = np.asarray(vectors[row]).astype("<f4")
        try:
            _check(vector, collection)
            key = ids.from_text(names[row] if names else f"{prefix}{row}", collection.id_format)
        except BadQuery as error:
            raise BadConfiguration(f"{path}, row {row}: {error}; the rows before it were produced") from None
        yield key, vector.tobytes(), None
