"""The shapes of requests and answers: msgspec for the vectors' hot path, and the OpenAPI page's schemas.

Requests are decoded by msgspec, which rejects NaN, Infinity, unknown fields and wrong types with a reason;
Pydantic would cost more than the search. The public contract is design section 10.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from tidemark.filters.grammar import Filter
from tidemark.searcher import K_MAX

QUERIES_MAX = 1_000
PAGE_MAX = 1_000
WRITES_MAX = 10_000
EFFORT_MAX = 64.0
GROUP_SIZE_MAX = 100

# A batch of searches renders at most this many hits; more would hold the interpreter for seconds.
HITS_MAX = 100_000

K = Annotated[int, Meta(ge=1, le=K_MAX, description="hits per query")]
Exact = Annotated[bool, Meta(description="scan every row instead of using the indexes")]
Effort = Annotated[float, Meta(gt=0, le=EFFORT_MAX, description="scales the calibrated search effort")]
Count = Annotated[int, Meta(ge=1, le=QUERIES_MAX, description="queries in the body, answered by results; else one")]
Explain = Annotated[bool, Meta(description="answer `plan`: how the search was made, and how many rows match")]
MaxDistance = Annotated[float, Meta(description="leave out hits that are farther")]
Condition = Annotated[Any, Meta(description="which rows, in the grammar of docs/filters.md")]
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
    filter: Condition = None
    explain: Explain = False
    max_distance: MaxDistance | None = None
    group_by: Annotated[str, Meta(description="a path: `k` groups of rows with a value there in common")] | None = None
    group_size: Annotated[int, Meta(ge=1, le=GROUP_SIZE_MAX, description="hits per group")] = 3

    @property
    def rows(self) -> Filter | None:
        """The filter, which has been read."""
        found: Filter | None = self.filter
        return found


class SearchOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The query parameters beside queries in bytes."""

    k: K = 10
    exact: Exact = False
    effort: Effort = 1.0
    queries: Count | None = None
    allow_partial: AllowPartial = False
    filter: Annotated[str, Meta(description="as JSON")] | None = None
    explain: Explain = False
    max_distance: MaxDistance | None = None


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


class Group(msgspec.Struct, frozen=True):
    """Hits that have the value in common."""

    value: str | int | bool
    hits: list[Hit]


class Plan(msgspec.Struct, frozen=True, omit_defaults=True):
    """By the index, or all rows asked were ranked exactly; how many match."""

    kind: Literal["index", "exact"]
    matches: int | None = None


class SearchAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    positions: dict[str, int]
    generation: str
    staleness_ms: int | None
    took_ms: float
    partial: bool | None = None
    missing: list[Missing] | None = None
    hits: list[Hit] | None = None
    results: list[list[Hit]] | None = None
    groups: list[Group] | None = None
    plan: Plan | None = None


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


def search_options() -> dict[str, Any]:
    """The schemas of the query parameters of a search, by name."""
    found: dict[str, Any] = msgspec.json.schema(SearchOptions)["$defs"]["SearchOptions"]["properties"]
    return found


def components(more: Iterable[type]) -> dict[str, Any]:
    """The schemas of the OpenAPI page; `more`: those that are elsewhere."""
    types = [SearchRequest, SearchAnswer, WriteRequest, WriteAnswer, Record, Page, ErrorAnswer, *more]
    _, found = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    return found
