"""The shapes of requests and answers: msgspec for the vectors' hot path, and the OpenAPI page's schemas.

Requests are decoded by msgspec, which rejects NaN, Infinity, unknown fields and wrong types with a reason;
Pydantic would cost more than the search. The public contract is design section 10.
"""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from api.problems import Unsupported
from tidemark.errors import BadQuery
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
    filter: Any = None


class SearchOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The query parameters beside queries in bytes."""

    k: K = 10
    exact: Exact = False
    effort: Effort = 1.0


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
    hits: list[Hit] | None = None
    results: list[list[Hit]] | None = None


class Upsert(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    vector: Vector
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


class Record(msgspec.Struct, frozen=True):
    """A stored row; cosine collections keep vectors normalised."""

    id: str
    metadata: Any
    vector: Vector
    partition: int
    offset: int
    timestamp_ms: int


class Page(msgspec.Struct, frozen=True):
    """`cursor` leads to the next page, null at the end."""

    vectors: list[Record]
    cursor: str | None


class ErrorDetail(msgspec.Struct, frozen=True):
    code: str
    message: str


class ErrorAnswer(msgspec.Struct, frozen=True):
    error: ErrorDetail


_search_decoder = msgspec.json.Decoder(SearchRequest)
_write_decoder = msgspec.json.Decoder(WriteRequest)


def search_request(body: bytes) -> SearchRequest:
    """Decode and check a search body; raises BadQuery with what to change."""
    request = _decoded(_search_decoder, body)
    if sum(part is not None for part in (request.vector, request.vectors, request.id)) != 1:
        raise BadQuery("give exactly one of vector, vectors and id")
    if request.vectors is not None and not 1 <= len(request.vectors) <= QUERIES_MAX:
        raise BadQuery(f"vectors holds {len(request.vectors)} queries: 1 to {QUERIES_MAX} at once")
    _check_hits(len(request.vectors or [0]), request.k)
    unknown = set(request.include) - {"metadata", "vector"}
    if unknown:
        raise BadQuery(f"include: {sorted(unknown)[0]!r} is not known; there are metadata and vector")
    if request.filter is not None:
        raise Unsupported("filter: metadata filters are not built yet; leave it out and filter the hits")
    return request


def binary_request(queries: int, parameters: Mapping[str, str]) -> SearchRequest:
    """What the parameters beside queries in bytes ask for; one query is answered with `hits`."""
    if "filter" in parameters:
        raise Unsupported("filter: metadata filters are not built yet; leave it out and filter the hits")
    try:
        asked = msgspec.convert(dict(parameters), SearchOptions, strict=False)
    except msgspec.ValidationError as error:
        raise BadQuery(str(error)) from None
    _check_hits(queries, asked.k)
    vectors: list[Vector] | None = [] if queries > 1 else None
    return SearchRequest(vectors=vectors, k=asked.k, exact=asked.exact, effort=asked.effort)


def _check_hits(queries: int, k: int) -> None:
    if queries * k > HITS_MAX:
        raise BadQuery(f"{queries} queries x k {k} are more than {HITS_MAX} hits: ask in smaller batches")


def write_request(body: bytes) -> WriteRequest:
    request = _decoded(_write_decoder, body)
    count = len(request.upserts) + len(request.deletes)
    if not 1 <= count <= WRITES_MAX:
        raise BadQuery(f"the request holds {count} records: 1 to {WRITES_MAX} at once")
    return request


def _decoded(decoder: "msgspec.json.Decoder[T]", body: bytes) -> T:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadQuery(str(error)) from None
    except RecursionError:
        raise BadQuery("the JSON is nested too deeply") from None


def queries_from_json(request: SearchRequest) -> NDArray[np.float32]:
    """The request's vectors as float32 (nq, d); lengths must agree."""
    vectors = [request.vector] if request.vector is not None else request.vectors
    assert vectors is not None
    if len({len(vector) for vector in vectors}) != 1:
        raise BadQuery("vectors: all queries must have the same number of numbers")
    with np.errstate(over="ignore"):
        return np.array(vectors, np.float64).astype(np.float32)


def queries_from_bytes(body: bytes, dimension: int) -> NDArray[np.float32]:
    """One or several queries as little-endian float32; float32 (nq, dimension)."""
    if not body or len(body) % (4 * dimension):
        raise BadQuery(f"the body has {len(body)} bytes: send queries of {dimension} little-endian float32 each")
    queries = np.frombuffer(body, "<f4").reshape(-1, dimension)
    if len(queries) > QUERIES_MAX:
        raise BadQuery(f"the body holds {len(queries)} queries: at most {QUERIES_MAX} at once")
    return queries


def search_options() -> dict[str, Any]:
    """The schemas of the query parameters of a search, by name."""
    found: dict[str, Any] = msgspec.json.schema(SearchOptions)["$defs"]["SearchOptions"]["properties"]
    return found


def components() -> dict[str, Any]:
    """The schemas of the OpenAPI page."""
    types = [SearchRequest, SearchAnswer, WriteRequest, WriteAnswer, Record, Page, ErrorAnswer]
    _, found = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    return found
