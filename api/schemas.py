"""The shapes of requests and answers: msgspec for the vectors' hot path, and the OpenAPI page's schemas.

Requests are decoded by msgspec, which rejects NaN, Infinity, unknown fields and wrong types with a reason;
Pydantic would cost more than the search. The public contract is design section 10.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from api.body import LARGE_BYTES, in_steps
from api.problems import Unsupported
from tidemark.collection import DIMENSION_MAX
from tidemark.errors import BadQuery
from tidemark.json_text import why_not_json
from tidemark.searcher import K_MAX

QUERIES_MAX = 1_000
PAGE_MAX = 1_000
WRITES_MAX = 10_000
EFFORT_MAX = 64.0

# A batch of searches renders at most this many hits; more would hold the interpreter for seconds.
HITS_MAX = 100_000

T = TypeVar("T")
K = Annotated[int, Meta(ge=1, le=K_MAX, description="hits per query")]
Exact = Annotated[bool, Meta(description="scan every row instead of using the indexes")]
Effort = Annotated[float, Meta(gt=0, le=EFFORT_MAX, description="scales the calibrated search effort")]
Count = Annotated[int, Meta(ge=1, le=QUERIES_MAX, description="queries in the body, answered by results; else one")]
AllowPartial = Annotated[bool, Meta(description="answer without partitions that cannot be served now, else 503")]
Vector = list[float]
Partition = Annotated[str, Meta(pattern="^(0|[1-9][0-9]{0,8})$")]
Position = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class SearchRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /collections/{c}/search; exactly one of vector, vectors and id."""

    vector: Vector | None = None
    vectors: list[Vector] | None = None
    id: str | None = None
    k: K = 10
    exact: Exact = False
    effort: Effort = 1.0
    min_positions: Annotated[
        dict[Partition, Position] | None, Meta(description="answer only when these positions are reached, else 412")
    ] = None
    timeout_ms: Annotated[int, Meta(ge=0, le=30_000, description="how long to wait for min_positions")] = 1_000
    include: Annotated[tuple[str, ...], Meta(description="metadata, vector")] = ("metadata",)
    allow_partial: AllowPartial = False
    filter: Any = None


class SearchOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The query parameters beside queries in bytes."""

    k: K = 10
    exact: Exact = False
    effort: Effort = 1.0
    queries: Count | None = None
    allow_partial: AllowPartial = False


class Missing(msgspec.Struct, frozen=True):
    """A partition that the answer does not hold."""

    partition: int
    why: str


class Hit(msgspec.Struct, frozen=True, omit_defaults=True):
    """`distance`: smaller is nearer (l2: squared; cosine: 1 - cos; ip: minus the dot product)."""

    id: str
    distance: float
    metadata: Any = None
    vector: Vector | None = None


class SearchAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    positions: dict[str, int]
    generation: str
    staleness_ms: int | None
    took_ms: float
    partial: bool | None = None
    missing: list[Missing] | None = None
    hits: list[Hit] | None = None
    results: list[list[Hit]] | None = None


class Upsert(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    # Decoded by `numbers`, one after the other: all of a large request at once would stop the event loop.
    vector: Annotated[msgspec.Raw, Meta(extra_json_schema={"type": "array", "items": {"type": "number"}})]
    # Kept as it was sent. A union of Raw and None would refuse everything but null.
    metadata: Annotated[msgspec.Raw, Meta(extra_json_schema={"type": ["object", "null"]})] = msgspec.field(
        default_factory=msgspec.Raw
    )


class WriteRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /collections/{c}/vectors; produced to the topic, all or nothing is validated first."""

    upserts: list[Upsert] = []
    deletes: list[str] = []


class WriteAnswer(msgspec.Struct, frozen=True):
    """`positions` may be given as `min_positions` of a search, which then sees this write."""

    positions: dict[str, int]
    records: int


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """A stored row; cosine collections keep vectors normalised."""

    id: str
    metadata: Any
    vector: Vector
    partition: int
    offset: int
    timestamp_ms: int
    partial: bool | None = None
    missing: list[Missing] | None = None


class Page(msgspec.Struct, frozen=True, omit_defaults=True):
    """`cursor` leads to the next page, null at the end."""

    vectors: list[Record]
    cursor: str | None
    partial: bool | None = None
    missing: list[Missing] | None = None


class ErrorDetail(msgspec.Struct, frozen=True):
    code: str
    message: str


class ErrorAnswer(msgspec.Struct, frozen=True):
    error: ErrorDetail


Queries = NDArray[np.float32]


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
    filter: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)


_search_decoder = msgspec.json.Decoder(SearchRequest)
_parts_decoder = msgspec.json.Decoder(_Parts)
_vector_decoder = msgspec.json.Decoder(Vector)
_write_decoder = msgspec.json.Decoder(WriteRequest)


def search_request(body: bytes) -> tuple[SearchRequest, Queries | None]:
    """What a search body asks for, checked, and its queries; none when it asks by id. Raises BadQuery."""
    if len(body) > LARGE_BYTES:
        return _large_search_request(body)
    request = decoded(_search_decoder, body)
    vectors = request.vectors if request.vector is None else [request.vector]
    _check(request, None if vectors is None else len(vectors))
    if vectors is None:
        return request, None
    if len({len(vector) for vector in vectors}) != 1:
        raise BadQuery(_RAGGED)
    with np.errstate(over="ignore"):
        return request, np.array(vectors, np.float64).astype(np.float32)


def _large_search_request(body: bytes) -> tuple[SearchRequest, Queries | None]:
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
    _check(request, None if vectors is None else len(vectors))
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


def _check(request: SearchRequest, queries: int | None) -> None:
    if sum(part is not None for part in (request.vector, request.vectors, request.id)) != 1:
        raise BadQuery("give exactly one of vector, vectors and id")
    if queries is not None and not 1 <= queries <= QUERIES_MAX:
        raise BadQuery(f"vectors holds {queries} queries: 1 to {QUERIES_MAX} at once")
    _check_hits(queries or 1, request.k)
    unknown = set(request.include) - {"metadata", "vector"}
    if unknown:
        raise BadQuery(f"include: {sorted(unknown)[0]!r} is not known; there are metadata and vector")
    if request.filter is not None:
        raise Unsupported("filter: metadata filters are not built yet; leave it out and filter the hits")


def binary_request(body: bytes, dimension: int, parameters: Mapping[str, str]) -> tuple[SearchRequest, Queries]:
    """What queries in bytes and the parameters beside them ask for: one, or as many as `queries` says."""
    if "filter" in parameters:
        raise Unsupported("filter: metadata filters are not built yet; leave it out and filter the hits")
    try:
        asked = msgspec.convert(dict(parameters), SearchOptions, strict=False)
    except msgspec.ValidationError as error:
        raise BadQuery(str(error)) from None
    queries = _from_bytes(body, dimension, asked.queries)
    _check_hits(len(queries), asked.k)
    vectors: list[Vector] | None = None if asked.queries is None else []
    request = SearchRequest(
        vectors=vectors, k=asked.k, exact=asked.exact, effort=asked.effort, allow_partial=asked.allow_partial
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


def search_options() -> dict[str, Any]:
    """The schemas of the query parameters of a search, by name."""
    found: dict[str, Any] = msgspec.json.schema(SearchOptions)["$defs"]["SearchOptions"]["properties"]
    return found


def components(more: Iterable[type]) -> dict[str, Any]:
    """The schemas of the OpenAPI page; `more`: those that are elsewhere."""
    types = [SearchRequest, SearchAnswer, WriteRequest, WriteAnswer, Record, Page, ErrorAnswer, *more]
    _, found = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    return found
