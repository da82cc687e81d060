"""Bodies and parameters of requests, read: what they ask for, checked, or BadQuery with what is wrong.

A large body is read in steps of a few ms, between which other threads run. Types are in `schemas.py`.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from api.body import LARGE_BYTES, in_steps
from api.schemas import (
    HITS_MAX,
    QUERIES_MAX,
    WRITES_MAX,
    SearchOptions,
    SearchRequest,
    Vector,
    WriteRequest,
)
from tidemark import id as ids
from tidemark.collection import DIMENSION_MAX, IdFormat
from tidemark.errors import BadQuery
from tidemark.filters.grammar import Filter, Path
from tidemark.filters.parsing import parse
from tidemark.filters.paths import parse_path
from tidemark.json_text import why_not_json

Queries = NDArray[np.float32]
T = TypeVar("T")


class _Parts(msgspec.Struct, forbid_unknown_fields=True):
    """A search body whose queries are still undecoded, and so is the rest."""

    vector: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    vectors: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    id: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    k: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    exact: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    effort: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    min_positions: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    timeout_ms: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    include: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    allow_partial: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    filter: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    explain: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    max_distance: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    group_by: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    group_size: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)


_search_decoder = msgspec.json.Decoder(SearchRequest)
_parts_decoder = msgspec.json.Decoder(_Parts)
_vector_decoder = msgspec.json.Decoder(Vector)
_write_decoder = msgspec.json.Decoder(WriteRequest)


def search_request(body: bytes, id_format: IdFormat = "utf8") -> tuple[SearchRequest, Queries | None]:
    """What a search body asks for, checked, and its queries; none when it asks by id. Raises BadQuery."""
    if len(body) > LARGE_BYTES:
        return _large_search_request(body, id_format)
    request = decoded(_search_decoder, body)
    vectors = request.vectors if request.vector is None else [request.vector]
    request = _checked(request, None if vectors is None else len(vectors), id_format)
    if vectors is None:
        return request, None
    if len({len(vector) for vector in vectors}) != 1:
        raise BadQuery(_RAGGED)
    with np.errstate(over="ignore"):
        return request, np.array(vectors, np.float64).astype(np.float32)


def _large_search_request(body: bytes, id_format: IdFormat) -> tuple[SearchRequest, Queries | None]:
    """As `search_request`, in steps of a few ms, between which other threads run."""
    parts = {name: bytes(part) for name, part in msgspec.structs.asdict(decoded(_parts_decoder, body)).items() if part}
    given = {name: parts.pop(name) for name in ("vector", "vectors") if parts.get(name, b"null") != b"null"}
    for name, part in parts.items():
        if len(part) > LARGE_BYTES:
            raise BadQuery(f"{name} has {len(part)} bytes, at most {LARGE_BYTES}")
    request = decoded(_search_decoder, b"{%s}" % b",".join(b'"%s":%s' % (n.encode(), p) for n, p in parts.items()))
    found = {
        name: list(map(numbers, in_steps(islice(_lines(part, name), QUERIES_MAX + 1)))) for name, part in given.items()
    }
    request = msgspec.structs.replace(request, **{name: [] for name in found})
    vectors = found.get("vector", found.get("vectors"))
    request = _checked(request, None if vectors is None else len(vectors), id_format)
    if vectors is None:
        return request, None
    if len({len(vector) for vector in vectors}) != 1:
        raise BadQuery(_RAGGED)
    return request, np.stack(vectors)


_RAGGED = "vectors: all queries must have the same number of numbers"


def _lines(part: bytes, name: str) -> Iterator[bytes]:
    """The queries of a part that is well-formed JSON: arrays of numbers, in which no bracket can be but their own."""
    if name == "vector":
        yield part
        return
    if not part.startswith(b"["):
        raise BadQuery("vectors: send an array of queries")
    at = 1
    while (end := part.find(b"]", at)) < len(part) - 1:
        yield part[at : end + 1].lstrip(b" \t\r\n,")
        at = end + 1
    if part[at:end].strip():
        raise BadQuery("vectors: each query is an array of numbers")


def numbers(vector: bytes | msgspec.Raw) -> NDArray[np.float32]:
    """An array of numbers as it was sent, as float32 (beyond float32: infinite); raises BadQuery."""
    sent = bytes(vector)
    if len(sent) > LARGE_BYTES and sent.count(b",") >= DIMENSION_MAX:
        raise BadQuery(f"a vector has more than {DIMENSION_MAX} numbers")
    found = decoded(_vector_decoder, sent)
    with np.errstate(over="ignore"):
        return np.array(found, np.float64).astype(np.float32)


def filter_of(document: Any, id_format: IdFormat) -> Filter:
    """A filter as decoded JSON, read; raises BadQuery."""
    return parse(document, lambda text: ids.from_text(text, id_format))


def filter_in(text: str, id_format: IdFormat) -> Filter:
    """A filter as JSON in a parameter, read; raises BadQuery."""
    try:
        document = msgspec.json.decode(text.encode())
    except (ValueError, RecursionError) as error:
        raise BadQuery(f"filter: is not JSON: {why_not_json(text.encode(errors='replace'), error)}") from None
    return filter_of(document, id_format)


def path_of(text: str, name: str) -> Path:
    """A path in a request, read; raises BadQuery."""
    try:
        return parse_path(text)
    except ValueError as error:
        raise BadQuery(f"{name}: {error}") from None


def _checked(request: SearchRequest, queries: int | None, id_format: IdFormat) -> SearchRequest:
    """The request with its filter read."""
    if sum(part is not None for part in (request.vector, request.vectors, request.id)) != 1:
        raise BadQuery("give exactly one of vector, vectors and id")
    if queries is not None and not 1 <= queries <= QUERIES_MAX:
        raise BadQuery(f"vectors holds {queries} queries: 1 to {QUERIES_MAX} at once")
    _check_hits(queries or 1, request.k)
    unknown = set(request.include) - {"metadata", "vector"}
    if unknown:
        raise BadQuery(f"include: {sorted(unknown)[0]!r} is not known; there are metadata and vector")
    if request.group_by is not None:
        path_of(request.group_by, "group_by")
        if request.vectors is not None:
            raise BadQuery("group_by: answers one query: give vector or id")
        _check_hits(request.group_size, request.k)
    if request.filter is None:
        return request
    return msgspec.structs.replace(request, filter=filter_of(request.filter, id_format))


def binary_request(
    body: bytes, dimension: int, parameters: Mapping[str, str], id_format: IdFormat = "utf8"
) -> tuple[SearchRequest, Queries]:
    """What queries in bytes and the parameters beside them ask for: one, or as many as `queries` says."""
    try:
        asked = msgspec.convert(dict(parameters), SearchOptions, strict=False)
    except msgspec.ValidationError as error:
        raise BadQuery(str(error)) from None
    queries = _from_bytes(body, dimension, asked.queries)
    _check_hits(len(queries), asked.k)
    vectors: list[Vector] | None = None if asked.queries is None else []
    request = SearchRequest(
        vectors=vectors,
        k=asked.k,
        exact=asked.exact,
        effort=asked.effort,
        allow_partial=asked.allow_partial,
        filter=None if asked.filter is None else filter_in(asked.filter, id_format),
        explain=asked.explain,
        max_distance=asked.max_distance,
    )
    return request, queries


def _from_bytes(body: bytes, dimension: int, count: int | None) -> Queries:
    """Queries as little-endian float32, (count, dimension); without a count it is one."""
    wanted = 4 * dimension * (count or 1)
    if len(body) != wanted:
        holds = f"the body has {len(body)} bytes, {count or 1} x {dimension} little-endian float32 have {wanted}"
        whole, rest = divmod(len(body), 4 * dimension)
        if whole > 1 and not rest:
            holds += f": {whole} queries are sent with the parameter queries={whole} (at most {QUERIES_MAX})"
            holds += ", numbers of eight bytes not at all"
        raise BadQuery(holds)
    return np.frombuffer(body, "<f4").reshape(-1, dimension)


def _check_hits(queries: int, k: int) -> None:
    if queries * k > HITS_MAX:
        raise BadQuery(f"{queries} queries x k {k} are more than {HITS_MAX} hits: ask in smaller batches")


def write_request(body: bytes) -> WriteRequest:
    request = decoded(_write_decoder, body)
    count = len(request.upserts) + len(request.deletes)
    if not 1 <= count <= WRITES_MAX:
        raise BadQuery(f"the request holds {count} records: 1 to {WRITES_MAX} at once")
    return request


def decoded(decoder: "msgspec.json.Decoder[T]", body: bytes) -> T:
    """The body as one of the shapes; raises BadQuery with why not."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise BadQuery(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadQuery(f"the body is not JSON: {why_not_json(body, error)}") from None
