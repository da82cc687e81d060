"""Asking the api over HTTP: which address, which path, and what its errors mean for a command's exit code."""

import json
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from cli import run_files
from cli.exits import NotFound, WrongUsage
from tidemark.collection import NAME
from tidemark.errors import TidemarkError

T = TypeVar("T")
TIMEOUT_S = 30.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class ApiUnreachable(TidemarkError):
    """No Tidemark api answers at the address: start it, or name another address."""


def address(given: str | None) -> str:
    """--api, TIDEMARK_API, the running `up`'s, the settings file's, else the default port.

    With a scheme, without a last slash. Raises WrongUsage for what is no address.
    """
    found = run_files.api_address(given)
    base = (found if "://" in found else f"http://{found}").rstrip("/")
    try:
        parts = urlsplit(base)
        parts.port  # noqa: B018  # refuses what is no port
        httpx.URL(base)
        if parts.scheme in ("http", "https") and parts.hostname and not set(base) & set(" ?#"):
            return base
    except (ValueError, httpx.InvalidURL):  # ValueError: urlsplit's, and Unicode's
        pass
    raise WrongUsage(f"{found!r} is not the address of an api: write it as http://HOST:PORT")


def path_of(collection: str, *below: str) -> str:
    """The path of a collection, or of something below it; raises NotFound for what can be no collection's name."""
    if not NAME.fullmatch(collection):
        raise NotFound(f"no collection of that name: {collection!r} (names are {NAME.pattern})")
    return "/".join(("/collections", collection, *below))


def get(url: str, timeout_s: float) -> httpx.Response:
    """GET without a proxy to this machine; raises httpx.HTTPError or httpx.InvalidURL."""
    try:
        host = urlsplit(url).hostname
    except ValueError as error:
        raise httpx.InvalidURL(str(error)) from None
    return httpx.get(url, timeout=timeout_s, trust_env=host not in _LOOPBACK)


def ask(
    method: str, path: str, given: str | None, body: dict[str, Any] | None = None, *, read: Callable[[Any], T]
) -> T:
    """What `read` makes of the api's JSON.

    Raises ApiUnreachable, also for an answer that `read` cannot read, NotFound (404, 412), WrongUsage (another 4xx)
    or TidemarkError.
    """
    base = address(given)
    content = None if body is None else json.dumps(body, allow_nan=False).encode()
    headers = {"content-type": "application/json"} if content else {}
    trust_env = urlsplit(base).hostname not in _LOOPBACK
    try:
        answer = httpx.request(
            method, base + path, content=content, headers=headers, timeout=TIMEOUT_S, trust_env=trust_env
        )
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        raise ApiUnreachable(
            f"no api at {base} ({error or type(error).__name__}): "
            "start it with `tidemark up`, or name it with --api or TIDEMARK_API"
        ) from None
    try:
        found = answer.json()
        if answer.is_success:
            return read(found)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _stranger(base, answer.status_code) from None
    raise _error(answer.status_code, found, base)


def _error(status: int, found: Any, base: str) -> TidemarkError:
    detail = found.get("error") if isinstance(found, dict) else None
    if not isinstance(detail, dict):
        return _stranger(base, status)
    message = str(detail.get("message", detail))
    if status in (404, 412):
        return NotFound(message)
    if status in (400, 413, 422):
        return WrongUsage(message)
    return TidemarkError(message)


def _stranger(base: str, status: int) -> ApiUnreachable:
    return ApiUnreachable(f"{base} does not answer like a Tidemark api (HTTP {status}): name it with --api")
