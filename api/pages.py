"""Stored rows as JSON: one by id, and page by page in the order of partition and offset."""

from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from api.mirror import FollowerMirror
from api.problems import NotFound
from api.search import raw_json, stored
from tidemark import id as ids
from tidemark import searcher
from tidemark.errors import BadQuery


def record(follower: FollowerMirror, text: str) -> dict[str, Any]:
    """The stored row of an id; raises NotFound."""
    found = stored(follower, ids.from_text(text, follower.collection.id_format))
    if found is None:
        raise NotFound(f"collection {follower.collection.name!r} holds no id {text[:80]!r}")
    return _as_json(follower, *found)


def page(follower: FollowerMirror, cursor: str, limit: int) -> dict[str, Any]:
    """Up to `limit` rows after the cursor of the page before; an empty cursor starts."""
    hits = list(islice(searcher.scan(follower.views, _position(cursor), limit), limit))
    last = f"{hits[-1].partition}-{hits[-1].offset}" if len(hits) == limit else None
    found = [(hit, np.array(hit.vector)) for hit in hits]
    live = [_as_json(follower, hit, vector) for hit, vector in found if not np.isnan(vector[0])]  # killed meanwhile
    return {"vectors": live, "cursor": last}


def _position(cursor: str) -> tuple[int, int] | None:
    if not cursor:
        return None
    partition, _, offset = cursor.partition("-")
    if not (partition.isascii() and partition.isdigit() and offset.isascii() and offset.isdigit()) or len(cursor) > 30:
        raise BadQuery(f"cursor {cursor[:80]!r}: give the cursor of the page before as it was")
    return int(partition), min(int(offset), 2**63 - 2)


def _as_json(follower: FollowerMirror, hit: searcher.Hit, vector: NDArray[np.float32]) -> dict[str, Any]:
    return {
        "id": ids.to_text(hit.id, follower.collection.id_format),
        "metadata": raw_json(hit.metadata),
        "vector": vector,
        "partition": hit.partition,
        "offset": hit.offset,
        "timestamp_ms": hit.timestamp,
    }
