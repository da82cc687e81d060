"""Errors as answers: `{"error": {"code", "message"}}` with something a caller can act on; bad input is never a 500."""

import functools

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from tidemark import errors


class NotFound(Exception):
    """Answered as 404."""


class NotReady(Exception):
    """Answered as 503."""


class Incomplete(Exception):
    """Answered as 503: some partitions cannot be served, and the caller has not asked for the others alone."""


# The first kind that a problem is counts.
_STATUS: dict[type[Exception], tuple[int, str]] = {
    errors.BadQuery: (422, "bad_request"),
    NotFound: (404, "not_found"),
    errors.NotFreshEnough: (412, "not_fresh_enough"),
    errors.Overloaded: (429, "overloaded"),
    NotReady: (503, "not_ready"),
    Incomplete: (503, "incomplete"),
    errors.BrokerUnreachable: (503, "broker_unreachable"),
    errors.StoreUnavailable: (503, "not_ready"),
}
_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "unsupported_media_type"}
KINDS: tuple[type[Exception], ...] = (*_STATUS, HTTPException, RequestValidationError)


def error(status: int, code: str, message: str) -> Response:
    """The one shape of every error."""
    headers = {"retry-after": "1"} if status in (429, 503) else None
    return JSONResponse({"error": {"code": code, "message": message}}, status, headers=headers)


@functools.singledispatch
def answer_to(problem: Exception) -> Response:
    """The answer to a problem of one of `KINDS`."""
    status, code = next(known for kind, known in _STATUS.items() if isinstance(problem, kind))
    return error(status, code, str(problem))


@answer_to.register
def _(problem: HTTPException) -> Response:
    return error(problem.status_code, _CODES.get(problem.status_code, "bad_request"), str(problem.detail))


@answer_to.register
def _(problem: RequestValidationError) -> Response:
    first = problem.errors()[0]
    return error(422, "bad_request", f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}")
