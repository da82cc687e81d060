"""Search bodies: a large one, decoded in small steps, is taken exactly as a small one is."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import requests
from api.body import LARGE_BYTES
from tests.test_api import BAD_SEARCHES, content
from tidemark.errors import BadQuery

NUMBERS = st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70), max_size=4)
PARTS = {
    "vector": NUMBERS | st.none() | st.just([[1]]) | st.text(max_size=3),
    "vectors": st.lists(NUMBERS, max_size=4) | st.none() | st.just([1, [2]]) | st.just([[1], "]"]) | st.just([[1], {}]),
    "id": st.text(max_size=5) | st.none(),
    "k": st.integers(-1, 1_001),
    "exact": st.booleans(),
    "effort": st.floats(-1, 65),
    "include": st.lists(st.sampled_from(["metadata", "vector", "x"]), max_size=2),
    "min_positions": st.none() | st.dictionaries(st.sampled_from(["0", "1", "x"]), st.integers(-1, 9), max_size=2),
    "timeout_ms": st.integers(-1, 30_001),
    "filter": st.none() | st.sampled_from([{"a": 1}, {"a": [1]}, {"must": [{"has_id": ["x"]}]}, {"a": {"b": 1}}, 3]),
    "explain": st.booleans(),
    "max_distance": st.none() | st.floats(-1, 1),
    "group_by": st.none() | st.sampled_from(["a", ""]),
    "group_size": st.integers(0, 3),
    "allow_partial": st.booleans(),
    "unknown": st.just(1),
}


def taken(body: bytes) -> Any:
    """What a body is taken for: its queries and the rest, or the kind of error."""
    try:
        request, queries = requests.search_request(body)
    except BadQuery as error:
        return type(error)
    rest = {name: getattr(request, name) for name in request.__struct_fields__ if name not in ("vector", "vectors")}
    many = request.vectors is not None
    return rest, many, None if queries is None else (queries.shape, queries.dtype, queries.tobytes())


def large(body: bytes) -> bytes:
    return body.rstrip() + b" " * (LARGE_BYTES + 1)


@given(st.fixed_dictionaries({}, optional=PARTS), st.sampled_from([(",", ":"), (" , ", " : "), (",\n", ":\t")]))
def test_a_large_body_is_taken_as_a_small_one(parts: dict[str, Any], separators: tuple[str, str]) -> None:
    body = json.dumps(parts, separators=separators).encode()
    assert taken(large(body)) == taken(body)


@pytest.mark.parametrize("name", BAD_SEARCHES)
def test_a_bad_search_is_bad_when_it_is_large(name: str) -> None:
    body = content(BAD_SEARCHES[name])
    assert taken(large(body)) == taken(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"vectors": [%s]}' % b",".join([b"[]"] * 200_000),
        b'{"vectors": [%s]}' % b",".join([b"1"] * 200_000),
        b'{"vector": [%s]}' % b",".join([b"1"] * 200_000),
        b'{"vectors": [[%s]]}' % b",".join([b"1"] * 200_000),
        b'{"vector": [1], "min_positions": {%s}}' % b",".join(b'"%d": 1' % n for n in range(20_000)),
        b'{"vector": [1], "include": [%s]}' % b",".join([b'"metadata"'] * 20_000),
        b'{"vector": [1], "filter": "%s"}' % (b"x" * 100_000),
        b'{"id": "%s"}' % (b"x" * 100_000),
        b'{"vectors": [[1]%s' % (b"," * 100_000),
        b"[" * 100_000,
        b"\xff" * 100_000,
        b"",
    ],
    ids=range(12),
)
def test_a_large_body_that_holds_something_else_gets_a_reason(body: bytes) -> None:
    assert taken(large(body)) is BadQuery


def test_large_queries_are_what_was_sent() -> None:
    sent = np.random.default_rng(1).normal(size=(1_000, 96)).astype(np.float32)
    body = json.dumps({"vectors": sent.tolist()}).encode()
    assert len(body) > LARGE_BYTES
    _, queries = requests.search_request(body)
    assert queries is not None and queries.tobytes() == sent.tobytes()
