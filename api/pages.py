"""Stored rows as JSON: one by id, and page by page in the order of partition and offset."""

from typing import Any

import numpy as np

from api.follower import Follower
from api.search import NotFound, raw_json
from tidemark import id as ids
from tidemark import searcher
from tidemark.errors import BadQuery


def record(follower: Follower, text: str) -> dict[str, Any]:
    """The stored row of an id; raises NotFound."""
    hit = searcher.get(follower.views, ids.from_text(text, follower.collection.id_format))
    if hit is None:
        raise NotFound(f"collection {follower.collection.name!r} holds no id {text[:80]!r}")
    return _as_json(follower, hit)


def page(follower: Follower, cursor: str, limit: int) -> dict[str, Any]:
    """Up to `limit` rows after the cursor of the page before; an empty cursor starts."""
    hits = list(searcher.scan(follower.views, _position(cursor), limit))
    last = f"{hits[-1].partition}-{hits[-1].offset}" if len(hits) == limit else None
    return {"vectors": [_as_json(follower, hit) for hit in hits], "cursor": last}


def _position(cursor: str) -> tuple[int, int] | None:
    if not cursor:
        return None
    partition, _, offset = cursor.partition("-")
    if not (partition.isascii() and partition.isdigit() and offset.isascii() and offset.isdigit() and len(cursor) < 40):
        raise BadQuery(f"cursor {cursor[:80]!r}: give the cursor of the page before as it was")
    return int(partition), int(offset)


def _as_json(follower: Follower, hit: searcher.Hit) -> dict[str, Any]:
    return {
        "id": ids.to_text(hit.id, follower.collection.id_format),
        "metadata": raw_json(hit.metadata),
        "vector": np.array(hit.vector),
        "partition": hit.partition,
        "offset": hit.offset,
        "timestamp_ms": hit.timestamp,
    }
