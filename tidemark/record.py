"""Decoding Kafka messages into one columnar batch of upserts and deletes (docs/format.md, section 1).

The fast path, `raw` values of the right length, is a `b"".join` and one `np.frombuffer` per batch: no float
is touched by Python. Bad records come back beside the batch with a reason from a closed set; decoding never
raises for what a producer wrote. Within a batch the last record of an id in its partition wins, by offset.
Knows nothing of consumers, topics or segments. Next: `view.py`, which applies a batch.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from typing import NoReturn, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from tidemark import json_value
from tidemark.collection import Collection, Metric
from tidemark.refusal import WHITE_SPACE, Reason, Refused, length_seen, text_seen

KEY_BYTES_MAX = 1024
# The squared distance of two such vectors is still far inside float32 (3.4e38). Beyond it a distance is infinite:
# the row could never be answered, and k-means gives up over it (l2 and ip; cosine normalises first).
SQUARED_NORM_MAX = 1e36
_JSON_CONTENT = re.compile(rb"\s*application/([\w.+-]+\+)?json\b", re.IGNORECASE)

Headers = list[tuple[str, bytes | None]]
# Stands for headers of which a name is not UTF-8: the client raises for them.
_UNREADABLE: Headers = [("", None)]
# By the first two bytes of a value as a little-endian number: white space before a brace or after it, or {".
_MAY_OPEN_JSON = np.zeros((256, 256), np.bool_)  # second byte, first byte
_MAY_OPEN_JSON[np.ix_(list(WHITE_SPACE + b"{"), list(WHITE_SPACE))] = True
_MAY_OPEN_JSON[list(WHITE_SPACE + b'"'), ord("{")] = True
_MAY_OPEN_JSON.shape = (65_536,)


class Message(Protocol):
    """The part of `confluent_kafka.Message` that is read here."""

    def partition(self) -> int | None: ...
    def key(self) -> bytes | None: ...
    def value(self) -> bytes | None: ...
    def offset(self) -> int | None: ...
    def timestamp(self) -> tuple[int, int]: ...
    def headers(self) -> Headers | None: ...
    def leader_epoch(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A message that could not be decoded, and why.

    `headers` are the message's own, None when they cannot be read. Ask here, never the message: after it has
    raised once for a name that is not UTF-8, confluent-kafka's `headers()` hands out tuples that hold null
    pointers, and touching one ends the process.
    """

    message: Message
    reason: Reason
    detail: str
    headers: Headers | None = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Batch:
    """The last operation per partition and id of runs of messages, as columns: partition by partition, by offset.

    `vectors` is float32 (n, dimension), normalised for cosine; the other columns of the upserts have n
    entries too. `digests` is over the vector as the producer wrote it (see `row_digests`).
    By partition: `positions` are the next offsets to apply after this batch, `leader_epochs` and
    `newest_timestamps` (ms) those of the last message.
    """

    partitions: NDArray[np.int32]
    ids: list[bytes]
    hashes: NDArray[np.uint64]
    vectors: NDArray[np.float32]
    offsets: NDArray[np.int64]
    timestamps: NDArray[np.int64]
    metadata: list[bytes | None]
    digests: NDArray[np.uint64]
    deleted_partitions: NDArray[np.int32]
    deleted_ids: list[bytes]
    deleted_hashes: NDArray[np.uint64]
    positions: dict[int, int]
    leader_epochs: dict[int, int]
    newest_timestamps: dict[int, int]


_hash = xxhash.xxh3_64_intdigest


def hash_ids(ids: Sequence[bytes]) -> NDArray[np.uint64]:
    """XXH3 64-bit of each id, uint64 (n,)."""
    return np.fromiter(map(_hash, ids), np.uint64, len(ids))


def row_digests(
    id_hashes: NDArray[np.uint64], offsets: NDArray[np.int64], values: Sequence[bytes]
) -> NDArray[np.uint64]:
    """64-bit digest of each row over id, offset and vector bytes, uint64 (n,).

    The sum of the live rows' digests modulo 2**64 is a partition's digest: independent of order, so it can
    be kept up to date row by row. Mixed with the finaliser of SplitMix64 (Steele et al., 2014).
    """
    mixed = hash_ids(values)
    mixed ^= id_hashes * np.uint64(0x9E3779B97F4A7C15)
    mixed += offsets.astype(np.uint64) * np.uint64(0xD1342543DE82EF95)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def decode(runs: Mapping[int, Sequence[Message]], collection: Collection) -> tuple[Batch, list[BadRecord]]:
    """Decode messages by partition, each run in offset order; at least one message in all.

    The cost is by messages: 500 of 100 partitions take a twentieth more than of one.
    """
    decoder = _Decoder(collection, {partition: messages for partition, messages in runs.items() if messages})
    return decoder.batch(), decoder.bad


class _Decoder:
    """One call of `decode`: the columns while they are being filtered."""

    def __init__(self, collection: Collection, runs: Mapping[int, Sequence[Message]]) -> None:
        self.collection = collection
        self.bad: list[BadRecord] = []
        self.last = {partition: messages[-1] for partition, messages in runs.items()}
        self.messages: Sequence[Message] = list(chain.from_iterable(runs.values()))
        numbers = np.fromiter(runs, np.int32, len(runs))
        self.partitions: NDArray[np.int32] = np.repeat(numbers, [len(messages) for messages in runs.values()])
        self.kind = type(self.messages[-1])  # its methods are mapped unbound: half the time of a loop in Python
        self.keys = list(map(self.kind.key, self.messages))
        self.values = list(map(self.kind.value, self.messages))
        self.headers: list[Headers | None] | None = None
        self.metadata: list[bytes | None] = []
        self.joined: bytes | None = None  # the values of the upserts one after the other, while they stand as they are

    def batch(self) -> Batch:
        """Bad records go first: a bad value does not replace the version before it."""
        self._drop_bad_keys()
        self._read_values()
        matrix = self._matrix_of_good_rows()
        if None not in self.values and self._ids_differ():
            return self._columns(matrix, self.partitions[:0], [])
        last = self._last_of_each_id()
        number_in_matrix = np.cumsum([value is not None for value in self.values]) - 1
        upserts = [row for row in last if self.values[row] is not None]
        deletes = [row for row in last if self.values[row] is None]
        gone: list[bytes] = [self.keys[row] for row in deletes]  # type: ignore[misc]  # no None is left
        partitions = self.partitions[deletes]
        self._keep(upserts)
        return self._columns(matrix[number_in_matrix[upserts]], partitions, gone)

    def _columns(self, matrix: NDArray[np.float32], gone_from: NDArray[np.int32], gone: list[bytes]) -> Batch:
        ids: list[bytes] = self.keys  # type: ignore[assignment]  # no None is left
        offsets = np.fromiter(map(self.kind.offset, self.messages), np.int64, len(ids))
        timestamps = np.fromiter(map(itemgetter(1), map(self.kind.timestamp, self.messages)), np.int64, len(ids))
        hashes = hash_ids(ids)
        digests = row_digests(hashes, offsets, self.values)  # type: ignore[arg-type]
        if self.collection.metric == "cosine" and len(ids):
            matrix = matrix / np.sqrt(np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64))[:, None]
        return Batch(
            partitions=self.partitions,
            ids=ids,
            hashes=hashes,
            vectors=matrix.astype(np.float32, copy=False),
            offsets=offsets,
            timestamps=timestamps,
            metadata=self.metadata,
            digests=digests,
            deleted_partitions=gone_from,
            deleted_ids=gone,
            deleted_hashes=hash_ids(gone),
            positions={partition: next_position(message) for partition, message in self.last.items()},
            leader_epochs={partition: epoch_of(message) for partition, message in self.last.items()},
            newest_timestamps={partition: message.timestamp()[1] for partition, message in self.last.items()},
        )

    def _written(self) -> list[bytes]:
        """The values of the upserts."""
        return [value for value in self.values if value is not None]

    def _keep(self, rows: list[int]) -> None:
        self.messages = [self.messages[row] for row in rows]
        self.partitions = self.partitions[rows]
        self.keys = [self.keys[row] for row in rows]
        self.values = [self.values[row] for row in rows]
        self.joined = None
        if self.headers is not None:
            self.headers = [self.headers[row] for row in rows]
        if self.metadata:
            self.metadata = [self.metadata[row] for row in rows]

    def _refuse(self, refused: dict[int, tuple[Reason, str]]) -> None:
        for row, (reason, detail) in sorted(refused.items()):
            message = self.messages[row]
            headers = _headers_of([message], self.kind)[0] if self.headers is None else self.headers[row]
            self.bad.append(BadRecord(message, reason, detail, None if headers is _UNREADABLE else headers or []))
        self._keep([row for row in range(len(self.keys)) if row not in refused])

    def _keys_are_plain(self) -> bool:
        """Whether no key needs a closer look; a few passes in C instead of a loop in Python."""
        if None in self.keys:
            return False
        keys: list[bytes] = self.keys  # type: ignore[assignment]
        lengths = set(map(len, keys))
        if self.collection.id_format == "int64":
            return lengths == {8}
        if min(lengths) == 0 or max(lengths) > KEY_BYTES_MAX:
            return False
        return self.collection.id_format == "bytes" or b"".join(keys).isascii()

    def _drop_bad_keys(self) -> None:
        if self._keys_are_plain():
            return
        refused: dict[int, tuple[Reason, str]] = {}
        for row, key in enumerate(self.keys):
            if not key:
                refused[row] = ("no_key", "the message has no key; the key is the id")
            elif len(key) > KEY_BYTES_MAX:
                refused[row] = ("too_large", f"the key has {len(key)} bytes, at most {KEY_BYTES_MAX}")
            elif self.collection.id_format == "int64" and len(key) != 8:
                refused[row] = ("bad_key", f"the key has {len(key)} bytes, an int64 id has 8")
            elif self.collection.id_format == "utf8" and not key.isascii() and not _is_utf8(key):
                refused[row] = ("bad_key", "the key is not UTF-8")
        if refused:
            self._refuse(refused)

    def _ids_differ(self) -> bool:
        return len(set(self.keys)) == len(self.keys)

    def _last_of_each_id(self) -> list[int]:
        """The rows that no later one of the same partition and id replaces, ascending."""
        if self._ids_differ():
            return list(range(len(self.keys)))
        named = zip(self.partitions.tolist(), self.keys, strict=True)
        return sorted(dict(zip(named, range(len(self.keys)), strict=True)).values())

    def _read_values(self) -> None:
        """Turn every value into `row_bytes` of float32, and collect the metadata."""
        self.metadata = [None] * len(self.values)
        if self.collection.format != "json":  # there nothing but the value counts
            self.headers = _headers_of(self.messages, self.kind)
            if not any(self.headers) and self._values_are_plain():
                return
        headers = self.headers or [None] * len(self.values)
        refused: dict[int, tuple[Reason, str]] = {}
        for row, value in enumerate(self.values):
            if value is None:
                continue
            try:
                self.values[row], self.metadata[row] = self._read_value(value, headers[row])
            except Refused as refusal:
                refused[row] = (refusal.reason, str(refusal))
        self.joined = None
        if refused:
            self._refuse(refused)

    def _values_are_plain(self) -> bool:
        """Whether every value is raw; one in 2,000 of random floats starts like JSON and takes a second look."""
        written, size = self._written(), self.collection.row_bytes
        if not set(map(len, written)) <= {size}:
            return False
        self.joined = joined = b"".join(written)
        if self.collection.format == "raw":
            return True
        rows = np.flatnonzero(_MAY_OPEN_JSON[np.frombuffer(joined, "<u2")[:: size // 2]])
        return not any(json_value.is_record(written[row]) for row in rows)

    def _read_value(self, value: bytes, headers: Headers | None) -> tuple[bytes, bytes | None]:
        if headers is _UNREADABLE:
            raise Refused(
                "decode",
                "the name of a header is not UTF-8, so no header can be read, and metadata or content-type may be "
                "among them: write header names as UTF-8",
            )
        named = dict(headers or [])
        if self._is_json(value, named):
            return json_value.read(value, self.collection.dimension)
        if len(value) != self.collection.row_bytes:
            self._refuse_length(value)
        metadata = named.get("metadata")
        if metadata is not None:
            json_value.check_metadata(metadata)
        return value, metadata

    def _refuse_length(self, value: bytes) -> NoReturn:
        collection = self.collection
        if (seen := text_seen(value)) is None:
            raise Refused("dimension", length_seen(value, collection.row_bytes, collection.dimension))
        says = f'collection {collection.name!r} has format = "raw"' if collection.format == "raw" else None
        says = says or ("its content-type says that it is not JSON" if json_value.opens_object(value) else None)
        raise Refused("decode", f"{seen}; {says}" if says else seen)

    def _is_json(self, value: bytes, headers: dict[str, bytes | None]) -> bool:
        if self.collection.format != "auto":
            return self.collection.format == "json"
        content = headers.get("content-type")
        if content:
            return bool(_JSON_CONTENT.match(content))
        if len(value) == self.collection.row_bytes:
            return json_value.is_record(value)
        return json_value.opens_object(value)

    def _matrix_of_good_rows(self) -> NDArray[np.float32]:
        """float32 (n, dimension) of the upserts; rows that are not finite or have no direction are refused."""
        joined = b"".join(self._written()) if self.joined is None else self.joined
        matrix = np.frombuffer(joined, dtype="<f4").reshape(-1, self.collection.dimension)
        bad = ~self._are_measurable(matrix)
        zero = np.zeros(len(matrix), np.bool_)
        if self.collection.metric == "cosine":
            with np.errstate(invalid="ignore"):  # a signalling NaN
                zero[:] = ~matrix.any(axis=1)
        if not (bad.any() or zero.any()):
            return matrix
        rows = [row for row, value in enumerate(self.values) if value is not None]
        refused: dict[int, tuple[Reason, str]] = {
            rows[i]: ("not_finite", "the vector holds NaN, an infinity or numbers beyond what float32 can measure")
            for i in np.flatnonzero(bad)
        }
        for i in np.flatnonzero(zero):
            refused[rows[i]] = ("zero_norm", "a zero vector has no direction under cosine")
        self._refuse(refused)
        return matrix[~(bad | zero)]

    def _are_measurable(self, matrix: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Whether each row is finite, and its distances are too; a NaN compares false."""
        with np.errstate(over="ignore", invalid="ignore"):
            if self.collection.metric == "cosine":  # 0 x finite is 0, 0 x (infinity or NaN) is NaN
                good: NDArray[np.bool_] = matrix @ np.zeros(matrix.shape[1], np.float32) == 0
            else:
                good = np.einsum("ij,ij->i", matrix, matrix) <= SQUARED_NORM_MAX
        return good


def first_unmeasurable(vectors: NDArray[np.float32], metric: Metric) -> tuple[int, str] | None:
    """The first row of (n, dimension) that the consumer would refuse, and why: for who writes to the topic."""
    with np.errstate(over="ignore", invalid="ignore"):
        finite: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(vectors), axis=1)
        if metric == "cosine":
            good = finite & vectors.any(axis=1)
        else:
            good = finite & (np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64) <= SQUARED_NORM_MAX)
    if good.all():
        return None
    row = int(np.argmin(good))
    if not finite[row]:
        return row, "the vector holds NaN, an infinity or a number beyond float32"
    if metric == "cosine":
        return row, "a zero vector has no direction under cosine"
    return row, f"the vector's squared length is beyond {SQUARED_NORM_MAX:g}: distances would be infinite"


def _headers_of(messages: Sequence[Message], kind: type[Message]) -> list[Headers | None]:
    """Each message's headers, asked for once; `_UNREADABLE` where the client raises (see BadRecord)."""
    found: list[Headers | None] = []
    read = map(kind.headers, messages)
    while len(found) < len(messages):
        try:
            found.extend(read)  # keeps what came before an error
        except Exception:
            found.append(_UNREADABLE)
    return found


def headers_beside(value: bytes | None, metadata: bytes | None, collection: Collection) -> Headers:
    """The headers that a writer puts beside a value: its metadata, and what keeps it from being read as JSON.

    A `raw` value has no content-type otherwise, because a batch without headers is decoded fastest.
    """
    headers: Headers = [] if metadata is None else [("metadata", metadata)]
    if collection.format == "auto" and value is not None and json_value.is_record(value):
        headers.append(("content-type", b"application/octet-stream"))
    return headers


def next_position(message: Message) -> int:
    """The position after a message: the one place where an offset becomes a position."""
    offset = message.offset()
    assert offset is not None
    return offset + 1


def epoch_of(message: Message) -> int:
    """The leader epoch the message was written under, -1 when the broker did not say."""
    epoch = message.leader_epoch()
    return -1 if epoch is None else epoch


def _is_utf8(key: bytes) -> bool:
    try:
        key.decode()
    except UnicodeDecodeError:
        return False
    return True
