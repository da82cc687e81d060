"""Stored rows as JSON: one by id, and page by page in the order of partition and offset."""

from typing import Any

from api.mirror import FollowerMirror
from api.search import name_missing, raw_json, stored
from tidemark import id as ids
from tidemark import searcher
from tidemark.errors import BadQuery


def record(follower: FollowerMirror, text: str, allow_partial: bool) -> dict[str, Any]:
    """The stored row of an id; raises NotFound."""
    found, missing = stored(follower, text, allow_partial)
    body = _as_json(follower, found)
    name_missing(body, missing)
    return body


def page(follower: FollowerMirror, cursor: str, limit: int, allow_partial: bool) -> dict[str, Any]:
    """Up to `limit` rows after the cursor of the page before; an empty cursor starts."""
    after = _position(cursor)
    hits, missing = follower.read(allow_partial, lambda view: list(searcher.scan(view, after, limit)))
    last = f"{hits[-1].partition}-{hits[-1].offset}" if len(hits) == limit else None
    body: dict[str, Any] = {"vectors": [_as_json(follower, hit) for hit in hits], "cursor": last}
    name_missing(body, missing)
    return body


def _position(cursor: str) -> tuple[int, int] | None:
    if not cursor:
        return None
    partition, _, offset = cursor.partition("-")
    if not (partition.isascii() and partition.isdigit() and offset.isascii() and offset.isdigit()) or len(cursor) > 30:
        raise BadQuery(f"cursor {cursor[:80]!r}: give the cursor of the page before as it was")
    return int(partition), min(int(offset), 2**63 - 2)


def _as_json(follower: FollowerMirror, hit: searcher.Hit) -> dict[str, Any]:
    return {
        "id": ids.to_text(hit.id, follower.collection.id_format),
        "metadata": raw_json(hit.metadata),
        "vector": hit.vector,
        "partition": hit.partition,
        "offset": hit.offset,
        "timestamp_ms": hit.timestamp,
    }
