"""The shapes of requests and answers about the rows that a filter selects, and filters as they are sent."""

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from api.requests import decoded, filter_of
from api.schemas import AllowPartial, Condition, Missing, Partition, Position
from tidemark.collection import IdFormat
from tidemark.errors import BadQuery
from tidemark.filters.grammar import Filter, leaves

FACETS_MAX = 1_000
# Records of one delete by filter, as many as of one write.
DELETES_MAX = 10_000

T = TypeVar("T")
MinPositions = Annotated[
    dict[Partition, Position] | None, Meta(description="answer only when these positions are reached, else 412")
]
TimeoutMs = Annotated[int, Meta(ge=0, le=30_000, description="how long to wait for min_positions")]


class CountRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /collections/{c}/count; without a filter of all rows."""

    filter: Condition = None
    min_positions: MinPositions = None
    timeout_ms: TimeoutMs = 1_000
    allow_partial: AllowPartial = False


class CountAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """`count` is exact at `positions`."""

    count: int
    positions: dict[str, int]
    partial: bool | None = None
    missing: list[Missing] | None = None


class FacetsRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /collections/{c}/facets; without a filter of all rows."""

    key: Annotated[str, Meta(description="a path into the metadata")]
    filter: Condition = None
    limit: Annotated[int, Meta(ge=1, le=FACETS_MAX)] = 10
    min_positions: MinPositions = None
    timeout_ms: TimeoutMs = 1_000
    allow_partial: AllowPartial = False


class Facet(msgspec.Struct, frozen=True):
    """How many rows have a value."""

    value: str | int | bool
    count: int


class FacetsAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """Most rows first, equally many by value; exact at `positions`."""

    values: list[Facet]
    positions: dict[str, int]
    partial: bool | None = None
    missing: list[Missing] | None = None


class DeleteRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /collections/{c}/vectors/delete; a filter without conditions is refused."""

    filter: Condition
    min_positions: MinPositions = None
    timeout_ms: TimeoutMs = 1_000
    allow_partial: AllowPartial = False


class DeleteAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """`positions` are those after the tombstones, as `min_positions` wants them; `more`: more rows matched."""

    deleted: int
    more: bool
    positions: dict[str, int]
    partial: bool | None = None
    missing: list[Missing] | None = None


SCHEMAS = (CountRequest, CountAnswer, FacetsRequest, FacetsAnswer, DeleteRequest, DeleteAnswer)


def request_of(kind: type[T]) -> Callable[[bytes], T]:
    """What decodes a body of one kind; an empty body is an empty object."""
    decoder = msgspec.json.Decoder(kind)
    return lambda body: decoded(decoder, body or b"{}")


def filter_to_delete_by(document: Any, id_format: IdFormat) -> Filter:
    """A filter with a condition; raises BadQuery for one that would delete everything."""
    found = filter_of(document, id_format)
    if next(leaves(found), None) is None:
        raise BadQuery("filter: has no condition and would delete every row: give one, or delete the rows by id")
    return found
