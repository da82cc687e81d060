"""The routes that ask for the rows a filter selects: count, facets, delete by filter.

What they find is exact at the positions they tell. They run on the search threads: a filter that was not asked before
looks at every row, 0.1 s or more for a million. Pages of rows by filter are in `pages.py`.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from api import filter_schemas
from api.answers import name_missing
from api.body import JSON, Bodies, media_type
from api.filter_schemas import DELETES_MAX, CountRequest, DeleteRequest, FacetsRequest, filter_to_delete_by
from api.mirror import FollowerMirror, Missing, Served
from api.requests import filter_of, path_of
from api.search import Searches
from api.writes import Placed, Writes
from tidemark.filters.grammar import Filter
from tidemark.selection import Selection, select

T = TypeVar("T")
Asked = CountRequest | FacetsRequest | DeleteRequest


def add_filter_routes(
    app: FastAPI,
    served: Callable[[str], Served],
    searches: Searches,
    writes: Writes,
    bodies: Bodies,
    body: Callable[[str, Any], dict[str, Any]],
) -> None:
    """Mount the routes; `body` gives what the OpenAPI page says of a request's shape, with an example."""

    async def asked(request: Request, kind: type[T]) -> T:
        media_type(request.scope, JSON)
        return await bodies.decoded(request.receive, filter_schemas.request_of(kind))

    @app.post("/collections/{c}/count", openapi_extra=body("CountRequest", _EXAMPLES["count"]))
    async def count(c: str, request: Request) -> Response:
        """How many rows a filter matches."""
        asks = await asked(request, CountRequest)
        return await _answer(served(c), searches, asks, lambda found: {"count": found.count})

    @app.post("/collections/{c}/facets", openapi_extra=body("FacetsRequest", _EXAMPLES["facets"]))
    async def facets(c: str, request: Request) -> Response:
        """The values that most rows have at a path, and how many have each."""
        asks = await asked(request, FacetsRequest)
        path = path_of(asks.key, "key")
        return await _answer(served(c), searches, asks, lambda found: _facets(found, path, asks))

    @app.post(
        "/collections/{c}/vectors/delete", status_code=202, openapi_extra=body("DeleteRequest", _EXAMPLES["delete"])
    )
    async def delete(c: str, request: Request) -> Response:
        """Produce tombstones for the rows that a filter matches now, some thousand at once."""
        collection = served(c)
        if not media_type(request.scope, JSON):
            raise HTTPException(415, f"send the header content-type: {JSON}")
        asks = await asked(request, DeleteRequest)
        wanted = filter_to_delete_by(asks.filter, collection.collection.id_format)
        with searches.under_way, searches.for_others:
            return await _delete(collection, searches, writes, asks, wanted)


_EXAMPLES: dict[str, Any] = {
    "count": {"filter": {"kind": "b"}},
    "facets": {"key": "kind", "filter": {"year": {"gte": 2024}}, "limit": 10},
    "delete": {"filter": {"must": [{"key": "kind", "match": {"value": "b"}}]}},
}


async def _answer(
    served: Served, searches: Searches, asks: Asked, work: Callable[[Selection], dict[str, Any]]
) -> Response:
    filter_ = filter_of(asks.filter, served.collection.id_format)
    with searches.under_way:
        follower = await _fresh(served, searches, asks)

        def answer() -> dict[str, Any]:
            def selected(view: Any) -> dict[str, Any]:
                found = select(view, filter_)
                return {**work(found), "positions": _named(found.positions)}

            body, missing = follower.read(asks.allow_partial, selected)
            name_missing(body, missing)
            return body

        return _json(await searches.in_pool(answer))


def _facets(found: Selection, path: Any, asks: FacetsRequest) -> dict[str, Any]:
    return {"values": [{"value": value, "count": count} for value, count in found.facets(path, asks.limit)]}


async def _delete(served: Served, searches: Searches, writes: Writes, asks: DeleteRequest, filter_: Filter) -> Response:
    follower = await _fresh(served, searches, asks)
    (records, more), missing = await searches.in_pool(lambda: _tombstones(follower, asks.allow_partial, filter_))
    positions: dict[int, int] = {}
    if records:
        positions = await writes.produce(served.collection, records, searches.for_others.seldom)
    body = {"deleted": len(records), "more": more, "positions": _named(positions)}
    name_missing(body, missing)
    return _json(body, 202)


async def _fresh(served: Served, searches: Searches, asks: Asked) -> FollowerMirror:
    if not asks.min_positions:
        return served.follower()
    return await searches.wait_for(served, asks)


def _tombstones(
    follower: FollowerMirror, allow_partial: bool, filter_: Filter
) -> tuple[tuple[list[Placed], bool], list[Missing]]:
    """A tombstone for each row that matches, the oldest first, at most `DELETES_MAX`; and whether more match."""

    def found(view: Any) -> tuple[list[Placed], bool]:
        hits = [row.hit for row in select(view, filter_).page(None, DELETES_MAX + 1)]
        records: list[Placed] = [(hit.partition, hit.id, None, []) for hit in hits[:DELETES_MAX]]
        return records, len(hits) > DELETES_MAX

    return follower.read(allow_partial, found)


def _named(positions: dict[int, int]) -> dict[str, int]:
    return {str(partition): position for partition, position in positions.items()}


def _json(body: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")
