"""Records as any Kafka client may write them, at random, each with what must become of it (docs/format.md, 1).

The outcome is known because a record is put together from a key, a value and headers that are each good or bad
by construction: no second decoder is needed to tell.
"""

import json
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from tests.raw_producer import RawRecord

DIMENSION = 16
ROW_BYTES = 4 * DIMENSION


@dataclass(frozen=True, slots=True)
class Case:
    """A record, and its outcome: a row's vector and metadata, a delete, or neither, which is bad."""

    record: RawRecord
    vector: bytes | None = None
    metadata: bytes | None = None
    deletes: bool = False

    @property
    def bad(self) -> bool:
        return self.vector is None and not self.deletes


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is left after some records, by offset from the first: rows by id, and the bad ones."""

    rows: dict[bytes, tuple[bytes, bytes | None]]
    bad: dict[int, RawRecord]


def outcome(cases: list[Case]) -> Outcome:
    rows: dict[bytes, tuple[bytes, bytes | None]] = {}
    for case in cases:
        key = case.record.key or b""
        if case.deletes:
            rows.pop(key, None)
        elif case.vector is not None:
            rows[key] = (case.vector, case.metadata)
    return Outcome(rows, {offset: case.record for offset, case in enumerate(cases) if case.bad})


def any_case(random: Random) -> Case:
    """One record for a collection with `format = "auto"`, utf8 ids, l2 and DIMENSION."""
    key_is_good, key = _key(random)
    headers, readable, header_metadata = _headers(random)
    value, vector, metadata, is_raw = _value(random)
    timestamp = random.choice([1_700_000_000_000, 0, 1, -5, 4_102_444_800_000])
    record = RawRecord(key, value, headers, timestamp)
    if not key_is_good:
        return Case(record)
    if value is None:
        return Case(record, deletes=True)
    if not readable or vector is None:
        return Case(record)
    if is_raw and header_metadata is not None:
        return Case(record, vector, header_metadata) if _is_object(header_metadata) else Case(record)
    return Case(record, vector, metadata)


def _is_object(text: bytes) -> bool:
    return text in _GOOD_METADATA


def _key(random: Random) -> tuple[bool, bytes | None]:
    if random.random() < 0.8:
        return True, random.choice(
            [b"a", b"b", b"c\0d", "sj\u00f6".encode(), b"k" * 1024, b"%d" % random.randrange(99)]
        )
    return False, random.choice([None, b"", b"\xff\xfe", b"\xed\xa0\x80", b"k" * 1025, b"k" * 70_000])


_GOOD_METADATA = (b"{}", b'{"n":1}', b' {"deep": [[["x"]]]} ', b'{"s":"' + b"x" * 60_000 + b'"}')
_BAD_METADATA = (b"", b"null", b"[]", b"\xff", b'{"n":', b'{"s":"' + b"x" * 70_000 + b'"}', b'{"a":' + b"[" * 5_000)


def _headers(random: Random) -> tuple[list[tuple[bytes, bytes | None]], bool, bytes | None]:
    """Headers, whether they can be read, and the metadata among them."""
    headers: list[tuple[bytes, bytes | None]] = []
    metadata: bytes | None = None
    readable = True
    if random.random() < 0.5:
        return headers, readable, metadata
    for _ in range(random.randrange(4)):
        name = random.choice([b"", b"x", "sj\u00f6".encode(), b"n" * 5_000, b"__connect.errors.offset", b"a\tb"])
        headers.append((name, random.choice([None, b"", b"\xff\0", b"v" * 10_000])))
    if random.random() < 0.3:
        metadata = random.choice([*_GOOD_METADATA, *_BAD_METADATA])
        headers.insert(random.randrange(len(headers) + 1), (b"metadata", metadata))
    if random.random() < 0.2:
        readable = False
        headers.insert(random.randrange(len(headers) + 1), (random.choice([b"\xff", b"ok\xc3", b"\xed\xa0\x80"]), b"v"))
    return headers, readable, metadata


def _value(random: Random) -> tuple[bytes | None, bytes | None, bytes | None, bool]:
    """A value, its vector and metadata when it is good, and whether it is raw."""
    numbers = np.array([random.uniform(-9, 9) for _ in range(DIMENSION)], "<f4")
    pick = random.random()
    if pick < 0.3:
        return numbers.tobytes(), numbers.tobytes(), None, True
    if pick < 0.55:
        return _good_json(random, numbers)
    if pick < 0.65:
        return None, None, None, False
    return random.choice(_bad_values(random, numbers)), None, None, False


def _good_json(random: Random, numbers: NDArray[np.float32]) -> tuple[bytes, bytes, bytes | None, bool]:
    if random.random() < 0.5:  # small numbers, filled up to the length of a raw value
        numbers = np.array([random.randrange(9) for _ in range(DIMENSION)], "<f4")
        text = b'{"vector":[%s]}' % b",".join(b"%d" % number for number in numbers)
        return (
            random.choice([b"", b" ", b"\n\t"]) + text + b" " * random.choice([0, ROW_BYTES]),
            numbers.tobytes(),
            None,
            False,
        )
    metadata = random.choice([None, b"{}", b'{"n": [1, {"a": null}]}'])
    fields = b'"vector": %s' % json.dumps(numbers.tolist()).encode()
    if metadata is not None:
        fields += b', "metadata": ' + metadata
    return b"{" + fields + b"}", numbers.tobytes(), metadata, False


def _bad_values(random: Random, numbers: NDArray[np.float32]) -> list[bytes]:
    text = json.dumps({"vector": numbers.tolist()}).encode()
    hurt = numbers.copy()
    hurt[random.randrange(DIMENSION)] = random.choice([np.nan, np.inf, -np.inf, 3e38])
    return [
        b"",
        b"\0",
        numbers.tobytes()[:-1],
        numbers.astype("<f8").tobytes(),
        hurt.tobytes(),
        random.randbytes(random.randrange(ROW_BYTES)),
        text[: random.randrange(1, len(text))],
        text + b"x",
        text.decode().encode("utf-16"),
        b"\xef\xbb\xbf" + text,
        b"[1, 2, 3]",
        b'{"vector": [' + b"9" * 100_000 + b"]}",
        b'{"vector": [' + b"1," * 200_000 + b"1]}",
        b'{"vector": ' + b"[" * 100_000,
        b'{"vector": [1, 2], "metadata": {}}',
        b'{"schema": {}, "payload": ' + text + b"}",
        text[:-1] + b', "metadata": {"s": "\\ud800"}}',
        text[:-1] + b', "metadata": [1]}',
        text[:-1] + b', "metadata": {"s": "' + b"x" * 70_000 + b'"}}',
    ]
