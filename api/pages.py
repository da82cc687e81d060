"""Stored rows as JSON: one by id, and page by page in the order of partition and offset, or of a path.

A page's cursor says where its last row stood, not which rows are left: it stays good whatever is written meanwhile.
"""

import math
import re
import struct
from dataclasses import dataclass
from typing import Any

from api.answers import name_missing, raw_json
from api.mirror import FollowerMirror
from api.requests import filter_in, path_of
from api.search import stored
from tidemark import id as ids
from tidemark.collection import IdFormat
from tidemark.errors import BadQuery
from tidemark.filters.grammar import Filter
from tidemark.mirror import ViewMirror
from tidemark.searcher import Hit
from tidemark.selection import Order, Place, Row, select

# The key, where rows are ordered by one, then partition and offset.
_CURSOR = re.compile(r"(?:([0-9a-f]{16})-)?([0-9]{1,10})-([0-9]{1,19})", re.ASCII)


def record(follower: FollowerMirror, text: str, allow_partial: bool) -> dict[str, Any]:
    """The stored row of an id; raises NotFound."""
    found, missing = stored(follower, text, allow_partial)
    body = _as_json(follower, found)
    name_missing(body, missing)
    return body


@dataclass(frozen=True, slots=True)
class PageAsked:
    """Which page of which rows, in which order; without one by partition and offset."""

    filter: Filter
    order: Order | None
    after: Place | None
    limit: int

    @classmethod
    def of(cls, filter_: str, order_by: str, cursor: str, limit: int, id_format: IdFormat) -> "PageAsked":
        """As the query parameters say it; empty ones say nothing. Raises BadQuery."""
        order = None
        if order_by:
            order = Order(path_of(order_by.removeprefix("-"), "order_by"), order_by.startswith("-"))
        return cls(filter_in(filter_ or "null", id_format), order, _place(cursor, order is not None), limit)

    def rows(self, view: ViewMirror) -> list[Row]:
        found = select(view, self.filter)
        if self.order is None:
            return found.page(self.after, self.limit)
        return found.ordered_page(self.order, self.after, self.limit)


def page(follower: FollowerMirror, asked: PageAsked, allow_partial: bool) -> dict[str, Any]:
    """The rows asked for, and the cursor after them, None when there are no more."""
    rows, missing = follower.read(allow_partial, asked.rows)
    last = _cursor(rows[-1].place, asked.order is not None) if len(rows) == asked.limit else None
    body: dict[str, Any] = {"vectors": [_as_json(follower, row.hit) for row in rows], "cursor": last}
    name_missing(body, missing)
    return body


def _cursor(place: Place, ordered: bool) -> str:
    key = f"{struct.pack('>d', place.key).hex()}-" if ordered else ""
    return f"{key}{place.partition}-{place.offset}"


def _place(cursor: str, ordered: bool) -> Place | None:
    if not cursor:
        return None
    found = _CURSOR.fullmatch(cursor)
    if found is None or (found[1] is not None) != ordered:
        raise BadQuery(f"cursor {cursor[:80]!r}: give the cursor of the page before as it was, with the same order_by")
    key = struct.unpack(">d", bytes.fromhex(found[1]))[0] if ordered else 0.0
    if math.isnan(key):
        raise BadQuery(f"cursor {cursor!r}: give the cursor of the page before as it was")
    return Place(int(found[2]), min(int(found[3]), 2**63 - 2), key)


def _as_json(follower: FollowerMirror, hit: Hit) -> dict[str, Any]:
    return {
        "id": ids.to_text(hit.id, follower.collection.id_format),
        "metadata": raw_json(hit.metadata),
        "vector": hit.vector,
        "partition": hit.partition,
        "offset": hit.offset,
        "timestamp_ms": hit.timestamp,
    }
