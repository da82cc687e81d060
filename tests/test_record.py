"""Decoding: every bad record has its reason, the last record of an id wins, and nothing a producer writes raises."""

import json
from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.messages import delete, message, raw_bytes, upsert, upsert_json
from tests.model import Operation, row_digest
from tidemark.collection import Collection, Metric
from tidemark.json_value import METADATA_BYTES_MAX
from tidemark.record import (
    KEY_BYTES_MAX,
    BadRecord,
    Batch,
    Headers,
    Message,
    decode,
    first_unmeasurable,
    hash_ids,
    headers_beside,
    row_digests,
)
from tidemark.refusal import REASONS

NAN, INF = float("nan"), float("inf")
GOOD = raw_bytes([1, 2, 3])


def collection(**changes: Any) -> Collection:
    return Collection(**{"name": "c", "topic": "t", "dimension": 3, "metric": "l2", **changes})


def decoded(*messages: Message, **changes: Any) -> tuple[Batch, list[BadRecord]]:
    return decode({7: messages}, collection(**changes))


def the_bad_one(one: Message, **changes: Any) -> str:
    batch, bad = decoded(one, **changes)
    assert (batch.ids, batch.deleted_ids, len(bad)) == ([], [], 1)
    assert bad[0].message is one
    assert bad[0].reason in REASONS
    assert bad[0].detail
    assert batch.positions == {7: one.offset() + 1}  # type: ignore[operator]
    return bad[0].reason


@pytest.mark.parametrize(
    ("key", "id_format", "reason"),
    [
        (None, "utf8", "no_key"),
        (b"", "utf8", "no_key"),
        (b"", "bytes", "no_key"),
        (None, "int64", "no_key"),
        (b"x" * (KEY_BYTES_MAX + 1), "utf8", "too_large"),
        (b"x" * (KEY_BYTES_MAX + 1), "bytes", "too_large"),
        (b"\xff\xfe", "utf8", "bad_key"),
        ("\ud800".encode("utf-8", "surrogatepass"), "utf8", "bad_key"),
        (b"1234567", "int64", "bad_key"),
        (b"123456789", "int64", "bad_key"),
    ],
)
@pytest.mark.parametrize("value", [GOOD, None])
def test_a_bad_key_is_refused_with_its_reason(key: bytes, id_format: str, reason: str, value: bytes | None) -> None:
    assert the_bad_one(message(7, key, value), id_format=id_format) == reason


@pytest.mark.parametrize(
    ("key", "id_format"),
    [
        (b"x" * KEY_BYTES_MAX, "utf8"),
        ("sjön".encode(), "utf8"),
        (b"a\0b", "utf8"),
        (b"\xff", "bytes"),
        (b"\0" * 8, "int64"),
    ],
)
def test_a_good_key_is_the_id(key: bytes, id_format: str) -> None:
    batch, bad = decoded(message(7, key, GOOD), id_format=id_format)
    assert (batch.ids, bad) == ([key], [])


def deep(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "dimension"),
        (GOOD[:-1], "dimension"),
        (GOOD + b"\0", "dimension"),
        (raw_bytes([1, NAN, 3]), "not_finite"),
        (raw_bytes([1, 2, INF]), "not_finite"),
        (raw_bytes([-INF, 2, 3]), "not_finite"),
        (b"\x01\x00\xa0\x7f" * 3, "not_finite"),  # signalling NaNs
        (raw_bytes([1, 2, 3e38]), "not_finite"),  # its distances would be infinite
        (b'{"vector": [1, 2, 1e39]}', "not_finite"),
        (b'{"vector": [1, 2, -1e39]}', "not_finite"),
        (b'{"vector": [1, 2, 1e999]}', "decode"),
        (b'{"vector": [1, 2, NaN]}', "decode"),
        (b'{"vector": [1, 2, null]}', "decode"),
        (b'{"vector": [1, 2, "3"]}', "decode"),
        (b'{"vector": [1, 2, 3]', "decode"),
        (b'{"vector": [1, 2, 3]} x', "decode"),
        (b'{"embedding": [1, 2, 3]}', "decode"),
        (b'{"vector": ' + deep(100_000) + b"}", "decode"),
        (b'{"vector": [1, 2, 3], "more": ' + deep(100_000) + b"}", "decode"),
        (b'{"vector": [1, 2, 3], "metadata": {"a": ' + deep(10_000) + b"}}", "decode"),
        (b'{"vector": [1, 2]}', "dimension"),
        (b'{"vector": []}', "dimension"),
        (b'{"vector": [1, 2, 3, 4]}', "dimension"),
        (b'{"vector": [1, 2, 3], "metadata": [1]}', "decode"),
        (b'{"vector": [1, 2, 3], "metadata": "a"}', "decode"),
        (b'{"vector": [1, 2, 3], "metadata": 1}', "decode"),
        (b'{"vector": [1, 2, 3], "metadata": {"a": "' + b"x" * METADATA_BYTES_MAX + b'"}}', "too_large"),
        (b'{"vector": [1, 2, 3], "metadata": {"a": "\xff"}}', "decode"),
    ],
)
def test_a_bad_value_is_refused_with_its_reason(value: bytes, reason: str) -> None:
    assert the_bad_one(message(7, b"a", value)) == reason


BASE64 = b"AACAPwAAAEAAAEBA"
JSON = b'{"vector":[1,2,3]}'
OCTETS, JSON_TYPE = b"application/octet-stream", b"application/json"


@pytest.mark.parametrize(
    ("value", "reason", "words"),
    [
        (b"", "dimension", "empty; a delete is a null value"),
        (b"\xef\xbb\xbf" + b'{"vector": [1, 2, 3]}', "decode", "byte order mark"),
        ('{"vector": [1, 2, 3]}'.encode("utf-16"), "decode", "UTF-16"),
        ('{"vector": [1, 2, 3]}'.encode("utf-16-le"), "decode", "UTF-16"),
        ('{"vector": [1, 2, 3]}'.encode("utf-16-be"), "decode", "UTF-16"),
        (b"[1.0, 2.0, 3.0]", "decode", "a JSON array: write"),
        (b'"%s"' % BASE64, "decode", "a JSON string, perhaps base64"),
        (BASE64, "decode", "looks like base64"),
        (b"0.5, -1e-3, 3.25", "decode", "numbers as text"),
        (b"null", "decode", "a JSON literal"),
        (b'{"vector": "%s"}' % BASE64, "decode", "`vector` is a string, perhaps base64"),
        (b'{"vector": null}', "decode", "Expected `array`, got `null`"),
        (b'{"vector": [[1, 2, 3]]}', "decode", "Expected `float`, got `array`"),
        (b'{"embedding": [1, 2, 3]}', "decode", "missing required field `vector`"),
        (b'{"schema": {"type": "struct"}, "payload": {"vector": [1, 2, 3]}}', "decode", "schemas.enable=false"),
        (b'{"vector": [1, 2, 3], "metadata": {"s": "\\ud800"}}', "decode", "half of a surrogate pair"),
        (b'{"vector": [1, 2, 3], "more": "\\udfff"}', "decode", ""),
        (b'{"vector": [1, 2, 3], "metadata": {"s": "\0"}}', "decode", "invalid character"),
        (b'{"vector": [' + b"9" * 1_000 + b", 2, 3]}", "decode", "out of range"),
        (b'{"vector": [1, 2, 3], "metadata": {"n": ' + b"9" * 60_000 + b"}}", "decode", "out of range"),
        (b'{"vector": [' + b"1," * 100_000 + b"1]}", "dimension", "100001 numbers"),
        (b'{"vector": [' + b"1," * 1_000_000 + b"1]}", "too_large", "at most 262336 for 3 numbers"),
        (b'{"vector": [' + b"9" * 1_000_000 + b"]}", "too_large", "at most"),
        (b" " * 1_000_000 + b'{"vector": [1, 2, 3]}', "too_large", "at most"),
        (b'{"vector": [1, 2, 3], "more": ' + deep(100) + b"}", "decode", "deeper than 100 levels"),
        (np.ones(3).tobytes(), "dimension", "twice as many are float64"),
        (b"\0\0\0\0\1" + GOOD, "dimension", "schema registry"),
        (b"[\0\1\2", "dimension", "the value has 4 bytes, 12 are 3 float32"),
    ],
)
def test_a_bad_value_is_refused_in_words_that_say_what_it_is(value: bytes, reason: str, words: str) -> None:
    _, (found,) = decoded(message(7, b"a", value))
    assert found.reason == reason
    assert words in found.detail
    assert len(found.detail) < 300


@pytest.mark.parametrize("format_", ["raw", "json", "auto"])
@pytest.mark.parametrize(
    ("value", "words"),
    [(b"[1.0, 2.0, 3.0]", "a JSON array"), (b"\xef\xbb\xbf{}", "byte order mark"), (BASE64, "base64"), (b"", "empty")],
)
def test_the_words_are_the_same_in_every_format(format_: str, value: bytes, words: str) -> None:
    assert words in decoded(message(7, b"a", value), format=format_)[1][0].detail


def test_json_that_a_format_or_a_content_type_forbids_says_which() -> None:
    assert 'format = "raw"' in decoded(message(1, b"a", JSON), format="raw")[1][0].detail
    octets: Headers = [("content-type", OCTETS)]
    assert "content-type" in decoded(message(1, b"a", JSON, octets))[1][0].detail


def test_duplicate_fields_count_as_the_last_of_them() -> None:
    batch, bad = decoded(
        message(1, b"a", b'{"vector": [9], "vector": [1, 2, 3], "metadata": {}, "metadata": {"a": 1}}')
    )
    assert (bad, batch.vectors.tolist(), batch.metadata) == ([], [[1, 2, 3]], [b'{"a": 1}'])


def nested(levels: int) -> bytes:
    return b'{"vector": [1, 2, 3], "metadata": {"a": ' + deep(levels) + b"}}"


@pytest.mark.parametrize("frames", [0, 700])
def test_the_depth_that_is_read_does_not_depend_on_the_stack_of_who_reads(frames: int) -> None:
    def at(depth: int) -> tuple[Batch, list[BadRecord]]:
        return at(depth - 1) if depth else decoded(message(1, b"a", nested(98)), message(2, b"b", nested(99)))

    batch, bad = at(frames)
    assert batch.ids == [b"a"]
    assert [record.detail for record in bad] == ["not a JSON record: nested deeper than 100 levels"]


def test_brackets_in_strings_are_no_nesting() -> None:
    text = b'"' + b"[{" * 200 + b'\\"' + b"[" * 200 + b'\\\\"'
    batch, bad = decoded(
        message(1, b"a", b'{"vector": [1, 2, 3], "metadata": {"a": ' + text + b"}}"),
        message(2, b"b", b'{"vector": [1, 2, 3], "metadata": {"a": [' + b"[]," * 200 + b"[]]}}"),
    )
    assert (bad, batch.ids) == ([], [b"a", b"b"])


def test_a_batch_of_the_costliest_bad_values_is_refused() -> None:
    most = 60_000
    costly = [
        b'{"vector": [1, 2, 3], "a": "' + b'\\"[' * (most // 3),  # strings that do not end
        b'{"vector": [1, 2, 3], "a": ' + deep(most // 2),
        b'{"vector": [0.' + b"9" * most + b", 1]}",
        b'{"vector": [1e' + b"9" * most + b", 1]}",
        b"1," * most,
        b"A" * most + b"!",
    ]
    batch, bad = decoded(*(message(n, b"%d" % n, costly[n % len(costly)]) for n in range(120)))
    assert (len(batch.ids), len(bad), batch.positions) == (0, 120, {7: 120})


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        (b"", "decode"),
        (b"{", "decode"),
        (b"[]", "decode"),
        (b"null", "decode"),
        (b'{"a": ' + deep(10_000) + b"}", "decode"),
        (b'{"a": "' + b"x" * METADATA_BYTES_MAX + b'"}', "too_large"),
    ],
)
def test_a_bad_metadata_header_is_refused_with_its_reason(metadata: bytes, reason: str) -> None:
    assert the_bad_one(upsert(7, b"a", [1, 2, 3], metadata)) == reason


def test_a_zero_vector_is_bad_under_cosine_only() -> None:
    zero = upsert(7, b"a", [0, -0.0, 0])
    assert the_bad_one(zero, metric="cosine") == "zero_norm"
    assert decoded(zero, metric="ip")[1] == []


@pytest.mark.parametrize("vector", [[3e38, -3e38, 1], [1e-45, 0, 0], [1e-30, 1e-30, 0]])
def test_cosine_normalises_the_largest_and_the_smallest_vectors(vector: list[float]) -> None:
    batch, bad = decoded(upsert(7, b"a", vector), metric="cosine")
    assert bad == []
    assert np.linalg.norm(batch.vectors[0]) == pytest.approx(1, abs=1e-6)


def test_each_non_finite_row_is_found_among_good_ones_in_any_place() -> None:
    rng = np.random.default_rng(0)
    for dimension in (1, 2, 7, 8, 16, 33, 100):
        vectors = rng.normal(size=(70, dimension)).astype(np.float32)
        hurt = rng.choice(70, 20, replace=False)
        vectors[hurt, rng.integers(dimension, size=20)] = rng.choice([np.nan, np.inf, -np.inf], 20)
        messages = [message(at, b"%d" % at, vector.tobytes()) for at, vector in enumerate(vectors)]
        for metric in ("l2", "cosine"):
            batch, bad = decode({0: messages}, collection(dimension=dimension, metric=metric))
            assert sorted(record.message.offset() for record in bad) == sorted(hurt.tolist())  # type: ignore[type-var]
            assert {record.reason for record in bad} == {"not_finite"}
            assert len(batch.ids) == len(batch.vectors) == 50


def test_a_null_value_is_a_delete() -> None:
    batch, bad = decoded(delete(5, b"a"), upsert(6, b"b", [1, 2, 3]), delete(9, b"c"))
    assert (batch.ids, batch.deleted_ids, bad) == ([b"b"], [b"a", b"c"], [])
    assert batch.positions == {7: 10}
    assert (batch.partitions.tolist(), batch.deleted_partitions.tolist()) == ([7], [7, 7])
    assert batch.offsets.tolist() == [6]
    assert len(batch.deleted_hashes) == 2


@pytest.mark.parametrize("last", [delete(9, b"z"), message(9, None, GOOD)])
def test_a_batch_without_upserts_still_has_the_next_position(last: Message) -> None:
    batch, _ = decoded(delete(8, b"a"), last, metric="cosine")
    assert batch.positions == {7: 10}
    assert batch.vectors.shape == (0, 3)
    assert batch.digests.shape == batch.offsets.shape == (0,)


def test_the_last_record_of_an_id_in_a_batch_wins() -> None:
    batch, bad = decoded(
        upsert(1, b"a", [1, 1, 1]),
        upsert(2, b"b", [2, 2, 2]),
        upsert(3, b"a", [3, 3, 3], b'{"n":3}'),
        delete(4, b"b"),
        delete(5, b"c"),
        upsert(6, b"c", [6, 6, 6]),
    )
    assert bad == []
    assert batch.ids == [b"a", b"c"]
    assert batch.vectors[:, 0].tolist() == [3, 6]
    assert batch.offsets.tolist() == [3, 6]
    assert batch.timestamps.tolist() == [1_003, 1_006]
    assert batch.metadata == [b'{"n":3}', None]
    assert batch.deleted_ids == [b"b"]


@pytest.mark.parametrize("bad_value", [b"short", raw_bytes([1, NAN, 1]), b'{"vector": [1]}'])
def test_a_bad_later_record_leaves_the_earlier_good_one(bad_value: bytes) -> None:
    batch, bad = decoded(
        upsert(1, b"a", [1, 1, 1]), delete(2, b"b"), message(3, b"a", bad_value), message(4, b"b", bad_value)
    )
    assert (batch.ids, batch.offsets.tolist(), batch.deleted_ids) == ([b"a"], [1], [b"b"])
    assert [record.message.offset() for record in bad] == [3, 4]
    assert batch.positions == {7: 5}


def test_a_bad_earlier_record_does_not_hide_the_later_good_one() -> None:
    batch, bad = decoded(message(1, b"a", b"short"), upsert(2, b"a", [2, 2, 2]))
    assert (batch.ids, batch.offsets.tolist(), len(bad)) == ([b"a"], [2], 1)


@pytest.mark.parametrize(
    ("format_", "value", "content_type", "good"),
    [
        ("raw", GOOD, None, True),
        ("raw", JSON, None, False),
        ("raw", GOOD, JSON_TYPE, True),
        ("json", JSON, None, True),
        ("json", GOOD, None, False),
        ("json", JSON, OCTETS, True),
        ("auto", GOOD, None, True),
        ("auto", JSON, None, True),
        ("auto", b" \n\t" + JSON, None, True),
        ("auto", JSON, JSON_TYPE, True),
        ("auto", JSON, b"application/vnd.acme.v1+json; charset=utf-8", True),
        ("auto", JSON, b"Application/JSON", True),
        ("auto", JSON, OCTETS, False),
        ("auto", GOOD, JSON_TYPE, False),
        ("auto", GOOD, b"application/jsonl", True),
        ("auto", JSON, b"", True),
    ],
)
def test_the_content_type_decides_before_the_value_does(
    format_: str, value: bytes, content_type: bytes | None, good: bool
) -> None:
    headers: Headers | None = None if content_type is None else [("content-type", content_type)]
    batch, bad = decoded(message(1, b"a", value, headers), format=format_)
    assert (len(batch.ids), len(bad)) == ((1, 0) if good else (0, 1))
    if good:
        assert batch.vectors.tolist() == [[1, 2, 3]]


def test_a_raw_vector_may_start_with_a_brace() -> None:
    value = b'{"v"' + raw_bytes([2, 3])
    batch, bad = decoded(message(1, b"a", value))
    assert bad == []
    assert batch.vectors.tobytes() == value


def padded(value: bytes, length: int) -> bytes:
    return value + b" " * (length - len(value))


@pytest.mark.parametrize("before", [b"", b" ", b"\n", b"\t\r\n "])
@pytest.mark.parametrize("others", [0, 50])
def test_a_json_record_of_exactly_the_raw_length_is_json_under_auto(before: bytes, others: int) -> None:
    dimension = 12
    value = padded(before + b'{"vector": [1,2,3,4,5,6,7,8,9,10,11,12]}', 4 * dimension)
    around = [upsert(n, b"%d" % n, [n + 1] * dimension) for n in range(others)]
    batch, bad = decoded(*around, message(others, b"a", value), dimension=dimension)
    assert (bad, len(value)) == ([], 48)
    assert batch.vectors[-1].tolist() == list(range(1, 13))
    assert batch.vectors[:-1, 0].tolist() == [n + 1 for n in range(others)]


@pytest.mark.parametrize(
    "value",
    [
        b'{"vector": [1, 2, 3]',  # no object
        b'{"victor": [1, 2, 3]}',  # not the field
        b'[{"vector": [1, 2, 3]}]',
        b"\x0b" + b'{"vector": [1, 2, 3]}',  # a vertical tab is no white space in JSON
        b'{"vector": [1, 2, 3]}\0',
        b'{"vector": ' + b"[" * 200 + b"]" * 200 + b"}",  # deeper than is parsed
    ],
)
def test_a_value_of_exactly_the_raw_length_that_is_no_json_record_is_raw_under_auto(value: bytes) -> None:
    dimension = -(-len(value) // 4)
    value = padded(value, 4 * dimension)
    batch, bad = decoded(message(1, b"a", value), dimension=dimension, metric="cosine")
    assert bad == []
    as_raw, _ = decoded(message(1, b"a", value), dimension=dimension, metric="cosine", format="raw")
    assert batch.digests.tolist() == as_raw.digests.tolist()


@pytest.mark.parametrize("metadata", [None, b'{"a": 1}'])
def test_a_raw_vector_whose_bytes_read_as_json_is_raw_with_the_headers_of_our_writers(metadata: bytes | None) -> None:
    value = padded(b'{"vector": [1, 2]}', 20)
    cosine = {"dimension": 5, "metric": "cosine"}
    headers = headers_beside(value, metadata, collection(**cosine))
    batch, bad = decoded(message(1, b"a", value, headers), **cosine)
    assert (bad, batch.ids, batch.metadata) == ([], [b"a"], [metadata])
    assert the_bad_one(message(1, b"a", value), **cosine) == "dimension"
    assert headers_beside(raw_bytes([1] * 5), metadata, collection(**cosine)) == headers[:-1]


def test_an_object_with_a_bad_vector_is_bad_also_at_the_raw_length() -> None:
    assert the_bad_one(message(1, b"a", padded(b'{"vector": "AAAA"}', 24)), dimension=6) == "decode"
    assert the_bad_one(message(1, b"a", padded(b'{"vector": [1, 2]}', 24)), dimension=6) == "dimension"


def test_a_raw_vector_may_start_with_any_two_bytes() -> None:
    rest = raw_bytes([1, 2])
    messages = [message(n, b"%d" % n, n.to_bytes(2, "big") + b"\1\2" + rest) for n in range(65_536)]
    batch, bad = decoded(*messages)
    assert bad == []
    assert len(batch.ids) == 65_536


def test_metadata_is_kept_as_it_was_written() -> None:
    batch, bad = decoded(
        upsert(1, b"a", [1, 2, 3]),
        upsert(2, b"b", [1, 2, 3], b"{}"),
        upsert(3, b"c", [1, 2, 3], b' {"n" : 1} '),
        upsert_json(4, b"d", [1, 2, 3]),
        upsert_json(5, b"e", [1, 2, 3], metadata=None),
        upsert_json(6, b"f", [1, 2, 3], metadata={}),
        upsert_json(7, b"g", [1, 2, 3], metadata={"n": [1, {"å": None}]}),
    )
    assert bad == []
    assert batch.metadata[:6] == [None, b"{}", b' {"n" : 1} ', None, None, b"{}"]
    assert json.loads(batch.metadata[6] or b"") == {"n": [1, {"å": None}]}


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
def test_the_digest_is_the_same_for_a_vector_written_raw_or_as_json(metric: str) -> None:
    vector = [0.1, -2.5, 3e-7]
    raw, _ = decoded(upsert(1, b"a", vector), metric=metric)
    text, _ = decoded(upsert_json(1, b"a", vector, metadata={"a": 1}), metric=metric)
    assert raw.digests.tolist() == text.digests.tolist()
    assert raw.vectors.tobytes() == text.vectors.tobytes()


@given(st.binary(min_size=1, max_size=20), st.integers(0, 2**62), st.lists(st.floats(width=32), min_size=3, max_size=3))
def test_the_digest_is_the_one_in_the_format_document(id_: bytes, offset: int, vector: list[float]) -> None:
    row = Operation(offset, id_, np.array(vector, np.float32))
    hashes = hash_ids([id_])
    digests = row_digests(hashes, np.array([offset], np.int64), [np.array(vector, "<f4").tobytes()])
    assert int(digests[0]) == row_digest(row)


def test_the_digest_depends_on_id_offset_and_vector() -> None:
    batch, _ = decoded(upsert(1, b"a", [1, 2, 3]), upsert(2, b"b", [1, 2, 3]))
    other, _ = decoded(upsert(1, b"b", [1, 2, 3]), upsert(2, b"a", [1, 2, 3.0000002]))
    assert len({*batch.digests.tolist(), *other.digests.tolist()}) == 4


VALUES = st.one_of(
    st.none(),
    st.binary(max_size=30),
    st.binary(min_size=12, max_size=12),
    st.binary(max_size=20).map(lambda rest: b'{"vector":' + rest),
    st.lists(st.one_of(st.floats(), st.integers()), min_size=2, max_size=4).map(
        lambda v: json.dumps({"vector": v}).encode()
    ),
    st.recursive(st.none() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=4)).map(
        lambda part: json.dumps({"vector": [1, 2, 3], "metadata": part}).encode()
    ),
)
HEADERS = st.none() | st.lists(
    st.tuples(
        st.sampled_from(["metadata", "content-type", "other"]),
        st.none() | st.binary(max_size=20) | st.sampled_from([b"{}", JSON_TYPE, OCTETS]),
    ),
    max_size=3,
)
KEYS = st.none() | st.binary(max_size=9) | st.sampled_from([b"a", b"b", b"12345678"])


@given(
    st.lists(st.tuples(KEYS, VALUES, HEADERS), min_size=1, max_size=12),
    st.sampled_from(["raw", "json", "auto"]),
    st.sampled_from(["utf8", "int64", "bytes"]),
    st.sampled_from(["l2", "cosine", "ip"]),
)
@example([(b"a", b"\x01\x00\xa0\x7f" * 3, None)], "auto", "utf8", "cosine")
def test_decoding_never_raises_for_what_a_producer_wrote(
    records: list[tuple[bytes | None, bytes | None, Headers | None]], format_: str, id_format: str, metric: str
) -> None:
    messages = [message(at, *record) for at, record in enumerate(records)]
    batch, bad = decoded(*messages, format=format_, id_format=id_format, metric=metric)
    refused = {record.message.offset() for record in bad}
    assert {key for at, (key, *_) in enumerate(records) if at not in refused} == {*batch.ids, *batch.deleted_ids}
    assert batch.positions == {7: len(messages)}
    assert len({*batch.ids, *batch.deleted_ids}) == len(batch.ids) + len(batch.deleted_ids)
    columns = (batch.hashes, batch.vectors, batch.offsets, batch.timestamps, batch.metadata, batch.digests)
    assert {len(column) for column in columns} == {len(batch.ids)}
    assert np.isfinite(batch.vectors).all()
    assert (np.diff(batch.offsets) > 0).all()


RECORDS = st.tuples(st.sampled_from([0, 3, 2**31 - 1]), KEYS, VALUES, HEADERS)


@given(st.lists(RECORDS, min_size=1, max_size=14), st.sampled_from(["raw", "json", "auto"]))
def test_several_partitions_are_decoded_together_as_each_by_itself(
    records: list[tuple[int, bytes | None, bytes | None, Headers | None]], format_: str
) -> None:
    runs: dict[int, list[Message]] = {8: []}
    for at, (partition, *rest) in enumerate(records):
        runs.setdefault(partition, []).append(message(at, *rest))
    many, bad = decode(runs, collection(format=format_))
    alone = [decode({number: run}, collection(format=format_)) for number, run in runs.items() if run]
    batches = [batch for batch, _ in alone]
    for name in ("ids", "metadata", "deleted_ids"):
        assert getattr(many, name) == list(chain.from_iterable(getattr(one, name) for one in batches))
    columns = ("partitions", "hashes", "vectors", "offsets", "timestamps", "digests", "deleted_partitions")
    for name in (*columns, "deleted_hashes"):
        expected = np.concatenate([getattr(one, name) for one in batches])
        assert getattr(many, name).tobytes() == expected.tobytes()
        assert getattr(many, name).dtype == expected.dtype
    for name in ("positions", "leader_epochs", "newest_timestamps"):
        assert getattr(many, name) == {n: v for one in batches for n, v in getattr(one, name).items()}
    found = {(record.message.offset(), record.reason) for record in bad}
    assert found == {(record.message.offset(), record.reason) for _, some in alone for record in some}


def test_an_id_in_two_partitions_is_two_rows_and_each_partition_has_its_own_end() -> None:
    runs = {
        2: [upsert(1, b"a", [1, 1, 1]), upsert(5, b"a", [5, 5, 5])],
        0: [upsert(3, b"a", [3, 3, 3]), delete(9, b"b")],
        1: [upsert(4, b"b", [4, 4, 4]), message(6, b"a", None, leader_epoch=4)],
    }
    batch, bad = decode(runs, collection())
    assert (batch.ids, batch.partitions.tolist(), batch.offsets.tolist()) == ([b"a", b"a", b"b"], [2, 0, 1], [5, 3, 4])
    assert batch.vectors[:, 0].tolist() == [5, 3, 4]
    assert (batch.deleted_ids, batch.deleted_partitions.tolist(), bad) == ([b"b", b"a"], [0, 1], [])
    assert batch.positions == {2: 6, 0: 10, 1: 7}
    assert batch.leader_epochs == {2: 0, 0: 0, 1: 4}
    assert batch.newest_timestamps == {2: 1_005, 0: 1_009, 1: 1_006}


@pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
@pytest.mark.parametrize("number", [0.0, 1.0, 1e-30, 4e17, 6e17, 3e38, float("inf"), float("nan")])
def test_what_a_producer_checks_is_what_the_consumer_refuses(metric: Metric, number: float) -> None:
    collection = Collection(name="c", topic="t", dimension=4, metric=metric)
    vectors = np.array([[1, 2, 3, 4], [number] * 4], np.float32)
    batch, bad = decode({0: [upsert(n, b"%d" % n, vector) for n, vector in enumerate(vectors)]}, collection)
    problem = first_unmeasurable(vectors, metric)
    assert (problem is None) == (bad == [])
    assert len(batch.ids) == (2 if problem is None else 1)
    assert problem is None or problem[0] == 1
