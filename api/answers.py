"""Answers as JSON: hits, groups, and what every answer says beside them.

An answer is written in pieces, between which other threads run; metadata goes in as it was written, unparsed.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from api.mirror import FollowerMirror, Missing
from api.schemas import SearchRequest
from tidemark import id as ids
from tidemark import searcher
from tidemark.errors import BadQuery
from tidemark.grouped import Groups

ANSWER_BYTES_MAX = 256 * 2**20
# So many are written as JSON in one call, in which no other thread runs: with vectors of 3072-d it takes 1 ms.
HITS_TOGETHER = 16
FLOAT32_MAX = float(np.finfo(np.float32).max)  # JSON has no infinity


class _Lists:
    """Lists of hits as JSON; raises BadQuery when together they get too large."""

    def __init__(self, follower: FollowerMirror, request: SearchRequest) -> None:
        self._follower, self._farthest = follower, request.max_distance
        self._metadata, self._vector = "metadata" in request.include, "vector" in request.include
        self._left = ANSWER_BYTES_MAX

    def near(self, hits: Sequence[searcher.Hit]) -> Sequence[searcher.Hit]:
        """Those that are not too far."""
        return hits if self._farthest is None else [hit for hit in hits if hit.distance <= self._farthest]

    def json(self, hits: Sequence[searcher.Hit]) -> Any:
        hits = self.near(hits)
        # Other threads run between two calls of the encoder, not during one.
        parts = [hits[at : at + HITS_TOGETHER] for at in range(0, len(hits), HITS_TOGETHER)]
        texts = [dumped([self._hit(hit) for hit in part])[1:-1] for part in parts]
        self._left -= sum(map(len, texts))
        if self._left < 0:
            raise BadQuery(f"the answer has more than {ANSWER_BYTES_MAX} bytes: ask for fewer hits, or include less")
        return orjson.Fragment(b"[%s]" % b",".join(texts))

    def _hit(self, hit: searcher.Hit) -> dict[str, Any]:
        found: dict[str, Any] = {
            "id": ids.to_text(hit.id, self._follower.collection.id_format),
            "distance": min(max(hit.distance, -FLOAT32_MAX), FLOAT32_MAX),
        }
        if self._metadata:
            found["metadata"] = raw_json(hit.metadata)
        if self._vector:
            found["vector"] = hit.vector
        return found


def encode(
    follower: FollowerMirror,
    answer: searcher.Answer | Groups,
    missing: list[Missing],
    request: SearchRequest,
    started: float,
) -> bytes:
    """The answer as JSON; raises BadQuery when it gets too large."""
    lists = _Lists(follower, request)
    if isinstance(answer, Groups):
        groups = [group for group in answer.groups if lists.near(group.hits)]
        body: dict[str, Any] = {"groups": [{"value": one.value, "hits": lists.json(one.hits)} for one in groups]}
    elif request.vectors is None:
        body = {"hits": lists.json(answer.hits[0])}
    else:
        body = {"results": [lists.json(hits) for hits in answer.hits]}
    body["positions"] = texts_of(answer.positions)
    body["generation"] = follower.generation
    body["staleness_ms"] = follower.staleness_ms
    if request.explain:
        body["plan"] = {name: value for name, value in answer.plan._asdict().items() if value is not None}
    name_missing(body, missing)
    body["took_ms"] = round((time.perf_counter() - started) * 1000, 3)
    return dumped(body)


def texts_of(positions: dict[int, int]) -> dict[str, int]:
    """Positions as answers say them."""
    return {str(partition): position for partition, position in positions.items()}


def name_missing(body: dict[str, Any], missing: list[Missing]) -> None:
    """Say in an answer which partitions it does not hold; nothing when it holds all."""
    if missing:
        body["partial"] = True
        body["missing"] = [{"partition": partition, "why": why} for partition, why in missing]


def dumped(body: Any) -> bytes:
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def raw_json(metadata: bytes | None) -> Any:
    """Metadata as it was written: its bytes go into the answer unparsed."""
    return None if metadata is None else orjson.Fragment(metadata)
