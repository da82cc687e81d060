"""Writes over HTTP: checked as the consumer would check them, then produced to the topic, acknowledged by it.

Nothing is produced unless every record of the request is good. A write never touches the index: it comes back
through the log like any other record, and the positions answered tell a search when it has. An id that is
stored already goes to the partition that holds it, whatever partitioner its first producer used; a new one goes
where the collection's partitioner puts it.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence

import orjson
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from api.body import in_steps
from api.mirror import FollowerMirror
from api.requests import numbers
from api.schemas import Upsert, WriteRequest
from tidemark import id as ids
from tidemark import searcher
from tidemark.collection import Collection
from tidemark.errors import BadQuery, BrokerUnreachable, Overloaded
from tidemark.json_text import why_not_json
from tidemark.json_value import check_metadata
from tidemark.kafka_settings import Settings, producer_settings
from tidemark.partitioner import Partitioner
from tidemark.record import Headers, first_unmeasurable, headers_beside, next_position
from tidemark.refusal import Refused

PARTITIONER = -1  # librdkafka's "let the partitioner choose"

Record = tuple[bytes, bytes | None, Headers]
Placed = tuple[int, bytes, bytes | None, Headers]
POLL_S = 0.001


class Writes:
    """Produces records; one per process, used on the event loop, which takes the delivery reports too."""

    def __init__(self, settings: Settings, timeout_s: float, partitioners: Iterable[Partitioner]) -> None:
        self._timeout_s = timeout_s
        timeout = {"message.timeout.ms": int(timeout_s * 1000)}
        self._producers = {name: Producer({**timeout, **producer_settings(settings, name)}) for name in partitioners}

    async def write(
        self, follower: FollowerMirror, request: WriteRequest, seldom: Callable[[float], float]
    ) -> dict[int, int]:
        """Check a request's records and produce them, as `produce` says; raises BadQuery."""
        records = await asyncio.to_thread(_records, follower, request)
        return await self.produce(follower.collection, records, seldom)

    async def produce(
        self, collection: Collection, records: Sequence[Placed], seldom: Callable[[float], float]
    ) -> dict[int, int]:
        """Produce at least one record and wait for the brokers; the positions after the records, per partition.

        `seldom` says how long to sleep between two looks, where one alone would sleep so long.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[dict[int, int]] = loop.create_future()
        positions: dict[int, int] = {}
        left = len(records)

        def finish(error: KafkaError | None, partition: int, position: int) -> None:
            nonlocal left
            left -= 1
            positions[partition] = max(positions.get(partition, 0), position)
            if error is not None and not done.done():
                done.set_exception(BrokerUnreachable(f"the brokers did not take the write: {error.str()}"))
            elif left == 0 and not done.done():
                done.set_result(positions)

        def delivered(error: KafkaError | None, message: Message) -> None:
            position = 0 if error is not None else next_position(message)  # type: ignore[arg-type]  # the client's stubs are wider than what it returns
            loop.call_soon_threadsafe(finish, error, message.partition() or 0, position)

        producer = self._producers[collection.partitioner]
        for partition, key, value, headers in records:
            _produce(producer, collection.topic, partition, key, value, headers, delivered)
        return await self._acknowledged(producer, done, seldom)

    async def _acknowledged(
        self, producer: Producer, done: "asyncio.Future[dict[int, int]]", seldom: Callable[[float], float]
    ) -> dict[int, int]:
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        while not done.done():
            producer.poll(0)
            if asyncio.get_running_loop().time() > deadline:
                done.cancel()
                raise BrokerUnreachable(
                    f"the brokers did not acknowledge the write within {self._timeout_s:g} s: it may still be "
                    "written, in part; sending it again is safe"
                )
            await asyncio.sleep(seldom(POLL_S))
        return done.result()

    def close(self) -> None:
        for producer in self._producers.values():
            producer.flush(5.0)


def _produce(
    producer: Producer,
    topic: str,
    partition: int,
    key: bytes,
    value: bytes | None,
    headers: Headers,
    delivered: Callable[[KafkaError | None, Message], None],
) -> None:
    try:
        producer.produce(topic, value, key, partition, headers=[*headers], on_delivery=delivered)
    except BufferError:
        raise Overloaded(
            "the producer's queue is full, the brokers do not keep up; a part of the request may be written: "
            "send it again later"
        ) from None
    except KafkaException as error:
        if error.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE:
            raise BadQuery(f"id {key[:80]!r}: the record is larger than kafka.message.max.bytes") from None
        raise BrokerUnreachable(f"the write could not be produced: {error.args[0].str()}") from error


def _records(follower: FollowerMirror, request: WriteRequest) -> list[Placed]:
    """Every record of the request, checked, with the partition that holds its id; raises BadQuery."""
    collection = follower.collection
    upserts, deletes = _upserts(request.upserts, collection), _deletes(request.deletes, collection)
    both = {key for key, _, _ in upserts} & {key for key, _, _ in deletes}
    if both:
        text = ids.to_text(both.pop(), collection.id_format)
        raise BadQuery(f"id {text[:80]!r} is in upserts and in deletes: which comes last? Send two requests")
    placed: list[Placed] = []
    for key, value, headers in [*upserts, *deletes]:
        stored = searcher.get(follower.view, key) if follower.view is not None else None
        placed.append((PARTITIONER if stored is None else stored.partition, key, value, headers))
    return placed


def _upserts(upserts: Iterable[Upsert], collection: Collection) -> list[Record]:
    records: list[Record] = []
    for number, upsert in enumerate(in_steps(upserts)):
        try:
            records.append(_upsert(upsert, collection))
        except BadQuery as error:
            raise BadQuery(f"upserts[{number}]: {error}; nothing was written") from None
    return records


def _upsert(upsert: Upsert, collection: Collection) -> Record:
    key = ids.from_text(upsert.id, collection.id_format)
    vector = numbers(upsert.vector).astype("<f4", copy=False)
    if len(vector) != collection.dimension:
        raise BadQuery(
            f"the vector has {len(vector)} numbers, collection {collection.name!r} has dimension {collection.dimension}"
        )
    if problem := first_unmeasurable(vector[None, :], collection.metric):
        raise BadQuery(problem[1])
    metadata = _metadata(upsert)
    if collection.format == "json":
        value = {"vector": vector.tolist(), "metadata": None if metadata is None else orjson.Fragment(metadata)}
        return key, orjson.dumps(value), []
    raw = vector.tobytes()
    return key, raw, headers_beside(raw, metadata, collection)


def _metadata(upsert: Upsert) -> bytes | None:
    """The metadata as it was sent: a JSON object; raises BadQuery."""
    raw = bytes(upsert.metadata).strip()
    if raw in (b"", b"null"):
        return None
    try:
        check_metadata(raw)
        orjson.loads(raw)
    except Refused as refusal:
        raise BadQuery(str(refusal)) from None
    except orjson.JSONDecodeError as error:
        raise BadQuery(f"the metadata is not a JSON object: {why_not_json(raw, error)}") from None
    return raw


def _deletes(deletes: Iterable[str], collection: Collection) -> list[Record]:
    records: list[Record] = []
    for number, text in enumerate(deletes):
        try:
            records.append((ids.from_text(text, collection.id_format), None, []))
        except BadQuery as error:
            raise BadQuery(f"deletes[{number}]: {error}; nothing was written") from None
    return records
