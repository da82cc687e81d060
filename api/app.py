"""The HTTP application: routes of the public contract (design section 10), errors, and its life.

Each route is a few lines: what it does is in search.py, writes.py, lag.py and metrics.py. Bad input is never a
500: every error is `{"error": {"code", "message"}}` with something a caller can act on.
"""

import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import orjson
from fastapi import FastAPI, Query, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, RedirectResponse
from msgspec.structs import asdict
from starlette.exceptions import HTTPException
from starlette.routing import Route

from api import lag, problems, requests, schemas
from api.answers import name_missing
from api.body import BYTES, JSON, Bodies, media_type
from api.docs_page import docs_page
from api.edge import Edge
from api.filter_routes import add_filter_routes
from api.filter_schemas import SCHEMAS
from api.metrics import Metrics
from api.mirror import Replica, Served
from api.pages import PageAsked, page, record
from api.search import Searches
from api.search_route import SEARCH_ROUTE, SearchRoute
from api.writes import Writes
from tidemark import __version__, errors
from tidemark.segment import Segment

logger = logging.getLogger(__name__)

ALIVE_S = 60.0


def create_app(replica: Replica) -> FastAPI:
    """The application over a replica's collections."""
    settings = replica.settings
    searches = Searches(settings)
    writes = Writes(settings.kafka, settings.api.write_timeout_s, {c.partitioner for c in settings.all_collections()})
    bodies = Bodies(settings.api.body_bytes_max)
    metrics = Metrics(replica)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        replica.start()
        yield
        searches.close()
        bodies.close()
        replica.close()
        writes.close()

    app = FastAPI(
        title="Tidemark",
        version=__version__,
        lifespan=life,
        description=_DESCRIPTION,
        redirect_slashes=False,
        docs_url=None,  # FastAPI's pages load their scripts from elsewhere
        redoc_url=None,
    )
    _add_errors(app)
    search = SearchRoute(replica, searches, bodies, metrics)
    app.add_middleware(Edge, body_bytes_max=settings.api.body_bytes_max, metrics=metrics, search=search)
    # Edge answers it; here it is known, so that another method is refused as such.
    app.router.routes.append(Route(SEARCH_ROUTE, search, methods=["POST"], include_in_schema=False))
    _add_collections(app, replica, searches, writes, bodies)
    add_filter_routes(app, replica.served, searches, writes, bodies, _body)
    _add_operations(app, replica, metrics)
    _match_whole_paths(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


_DESCRIPTION = "A vector index that is a materialised view of a Kafka topic."


def _add_errors(app: FastAPI) -> None:
    async def answer(request: Request, problem: Exception) -> Response:
        found = problems.answer_to(problem)
        if found.status_code == 405:
            found.headers["allow"] = ", ".join(_methods(app, request.scope["path"]))
        return found

    async def unexpected(request: Request, problem: Exception) -> Response:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=problem)
        return problems.error(500, "internal", "the service failed; its log says why")

    for kind in problems.KINDS:
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(Exception, unexpected)


def _routes(app: FastAPI) -> list[Route]:
    return [route for route in app.routes if isinstance(route, Route)]


def _match_whole_paths(app: FastAPI) -> None:
    """Starlette's `.` is no line end and its `$` comes before the last one too, while an id may hold any."""
    for route in _routes(app):
        route.path_regex = re.compile(route.path_regex.pattern.removesuffix("$") + r"\Z", re.DOTALL)


def _methods(app: FastAPI, path: str) -> list[str]:
    """What a path can be asked for by, whichever routes answer it."""
    found = {method for route in _routes(app) if route.path_regex.match(path) for method in route.methods or ()}
    return sorted(found | {"HEAD"} if "GET" in found else found)


# -- collections -------------------------------------------------------------------------------------------


def _add_collections(app: FastAPI, replica: Replica, searches: Searches, writes: Writes, bodies: Bodies) -> None:
    served = replica.served

    @app.post("/collections/{c}/vectors", status_code=202, openapi_extra=_body("WriteRequest", _EXAMPLES["write"]))
    async def write(c: str, request: Request) -> Response:
        """Produce upserts and deletes to the topic; answered when the brokers have acknowledged them."""
        collection = served(c)
        if not media_type(request.scope, JSON):
            # A page in a browser may send anything but JSON across origins without asking first.
            raise HTTPException(415, f"send the header content-type: {JSON}")
        asked = await bodies.decoded(request.receive, requests.write_request)
        with searches.under_way, searches.for_others:
            positions = await writes.write(collection.follower(), asked, searches.for_others.seldom)
        done = {str(partition): position for partition, position in positions.items()}
        return _json({"positions": done, "records": len(asked.upserts) + len(asked.deletes)}, 202)

    @app.get("/collections/{c}/vectors/{id:path}", openapi_extra=_answer("Record"))
    async def get(c: str, id: str, allow_partial: bool = False) -> Response:
        """One stored row by its id."""
        return _json(record(served(c).follower(), id, allow_partial))

    @app.get("/collections/{c}/vectors", openapi_extra=_answer("Page"))
    async def scan(
        c: str,
        request: Request,
        cursor: str = "",
        limit: Annotated[int, Query(ge=1, le=schemas.PAGE_MAX)] = 100,
        allow_partial: bool = False,
        filter: Annotated[str, Query(description="JSON: only rows that match")] = "",
        order_by: Annotated[str, Query(description="a path, -path: the greatest first")] = "",
    ) -> Response:
        """Rows in the order of partition and offset, or of the numbers or times at a path, page by page."""
        _refuse_unknown(request, {"cursor", "limit", "allow_partial", "filter", "order_by"})
        follower = served(c).follower()
        asked = PageAsked.of(filter, order_by, cursor, limit, follower.collection.id_format)
        return await searches.in_pool(lambda: _json(page(follower, asked, allow_partial)))

    @app.get("/collections/{c}")
    async def describe(c: str) -> Response:
        """Configuration, counts and segments."""
        return _json(_description(served(c)))

    @app.get("/collections")
    async def collections() -> Response:
        """The collections' names."""
        return _json({"collections": sorted(replica.collections)})


def _refuse_unknown(request: Request, known: set[str]) -> None:
    for name in request.query_params.keys() - known:
        raise errors.BadQuery(f"parameter {name[:80]!r} is not known; there are: {', '.join(sorted(known))}")


def _description(served: Served) -> dict[str, Any]:
    collection, follower, target = served.collection, served.follower(), served.recall_target
    partitions, index = follower.status.partitions, follower.status.index
    segments = [_segment(segment, target) for segment in follower.view.snapshot().segments] if follower.view else []
    body: dict[str, Any] = {
        "name": collection.name,
        "topic": collection.topic,
        "dimension": collection.dimension,
        "metric": collection.metric,
        "format": collection.format,
        "id_format": collection.id_format,
        "generation": follower.generation,
        "kind": follower.collection.index.kind,
        "live_rows": sum(partition.live_rows for partition in partitions),
        "dead_rows": sum(partition.dead_rows for partition in partitions),
        "unbuilt_rows": sum(partition.unbuilt_rows for partition in partitions),
        "recall_target": target,
        "index": None if index is None else {**asdict(index), "below_recall_target": index.recall < target},
        "segments_below_recall_target": sum(segment["below_recall_target"] for segment in segments),
        "segments": segments,
    }
    name_missing(body, follower.missing)
    return body


def _segment(segment: Segment, recall_target: float) -> dict[str, Any]:
    """`recall`: of its graph, as measured when it was built; null where its rows are in the collection's index."""
    recall = segment.entry.recall if segment.has_graph else None
    return {
        "partition": segment.partition,
        "name": segment.name,
        "kind": segment.entry.kind,
        "rows": segment.row_count,
        "dead_rows": segment.dead_rows,
        "recall": recall,
        "below_recall_target": recall is not None and recall < recall_target,
    }


# -- operations --------------------------------------------------------------------------------------------


def _add_operations(app: FastAPI, replica: Replica, metrics: Metrics) -> None:
    @app.get("/collections/{c}/lag")
    async def collection_lag(c: str) -> Response:
        """Lag of one collection, per partition and in total."""
        return _json(lag.of_collection(replica.served(c)))

    @app.get("/lag")
    async def all_lag() -> Response:
        """Lag of every collection."""
        found = [lag.of_collection(served) for served in replica.collections.values()]
        return _json({"collections": found})

    @app.get("/healthz")
    async def healthz() -> Response:
        """Alive: the followers' loops turn. What they cannot follow is told beside it."""
        now = time.monotonic()
        turned = {n: s.follower().status.turned_at for n, s in replica.collections.items() if s.is_open}
        turned["CURRENT"] = replica.status.turned_at or now
        silent = {name: round(now - at, 1) for name, at in turned.items() if now - at > ALIVE_S}
        found = {"alive": not silent, "silent_seconds": silent, "problems": lag.problems(replica)}
        return _json(found, 503 if silent else 200)

    @app.get("/readyz")
    async def readyz() -> Response:
        """Ready: every collection has caught up with its log once, follows it, and can be served whole."""
        reasons = {name: why for name, served in replica.collections.items() if (why := served.not_ready())}
        found = {"ready": not reasons, "reasons": reasons, "problems": lag.problems(replica)}
        return _json(found, 503 if reasons else 200)

    @app.get("/metrics")
    async def prometheus() -> Response:
        """Prometheus metrics."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(docs_page(app.openapi()))

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return RedirectResponse("/docs")


def _json(body: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), status, media_type="application/json")


# -- the API page ------------------------------------------------------------------------------------------

_EXAMPLES: dict[str, Any] = {
    "search": {"vector": [0.1, 0.2, 0.3], "k": 10, "include": ["metadata"], "min_positions": {"0": 123}},
    "write": {"upserts": [{"id": "a", "vector": [0.1, 0.2, 0.3], "metadata": {"kind": "b"}}], "deletes": ["c"]},
}
_ANSWERS = {
    "SearchRequest": ("200", "SearchAnswer"),
    "WriteRequest": ("202", "WriteAnswer"),
    "CountRequest": ("200", "CountAnswer"),
    "FacetsRequest": ("200", "FacetsAnswer"),
    "DeleteRequest": ("202", "DeleteAnswer"),
}


def _schema(name: str) -> dict[str, Any]:
    return {"schema": {"$ref": f"#/components/schemas/{name}"}}


def _answer(name: str, status: str = "200") -> dict[str, Any]:
    answers = {status: {"description": "OK", "content": {"application/json": _schema(name)}}}
    for code, text in (("404", "not found"), ("422", "bad request"), ("503", "not ready")):
        answers[code] = {"description": text, "content": {"application/json": _schema("ErrorAnswer")}}
    return {"responses": answers}


def _body(name: str, example: Any) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {**_schema(name), "example": example}}
    status, answer = _ANSWERS[name]
    found = _answer(answer, status)
    refused = {} if name == "WriteRequest" else {"412": "not fresh enough"}
    for code, text in {**refused, "415": "unsupported media type", "429": "overloaded"}.items():
        found["responses"][code] = {"description": text, "content": {"application/json": _schema("ErrorAnswer")}}
    return {"requestBody": {"required": True, "content": content}, **found}


def _search_operation() -> dict[str, Any]:
    operation = _body("SearchRequest", _EXAMPLES["search"])
    operation["requestBody"]["content"][BYTES] = {"schema": {"type": "string", "format": "binary"}}
    collection = {"name": "c", "in": "path", "required": True, "schema": {"type": "string"}}
    for_bytes = [
        {"name": name, "in": "query", "schema": schema, "description": "for an octet-stream body"}
        for name, schema in schemas.search_options().items()
    ]
    return {
        "summary": "Search",
        "operationId": "search",
        "description": "The k nearest rows of one or several queries: JSON, or float32 bytes with k, exact, effort as "
        "parameters; several queries in bytes with `queries`.",
        "parameters": [collection, *for_bytes],
        **operation,
    }


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        found["paths"] = {SEARCH_ROUTE: {"post": _search_operation()}, **found["paths"]}
        found.setdefault("components", {}).setdefault("schemas", {}).update(schemas.components(SCHEMAS))
        app.openapi_schema = found
    return app.openapi_schema
