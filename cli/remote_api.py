"""Asking the api over HTTP: which address, and what its errors mean for a command's exit code."""

from typing import Any
from urllib.parse import urlparse

import httpx

from cli import run_files
from cli.exits import NotFound, WrongUsage
from tidemark.errors import TidemarkError

TIMEOUT_S = 30.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class ApiUnreachable(TidemarkError):
    """No Tidemark api answers at the address: start it, or name another address."""


def address(given: str | None) -> str:
    """--api, TIDEMARK_API, the running `up`'s, else the default port; with a scheme, without a last slash."""
    found = run_files.api_address(given).rstrip("/")
    return found if "://" in found else f"http://{found}"


def get(url: str, timeout_s: float) -> httpx.Response:
    """GET without a proxy to this machine; raises httpx.HTTPError or httpx.InvalidURL."""
    return httpx.get(url, timeout=timeout_s, trust_env=urlparse(url).hostname not in _LOOPBACK)


def ask(method: str, path: str, given: str | None, body: dict[str, Any] | None = None) -> Any:
    """The api's JSON. Raises ApiUnreachable, NotFound (404), WrongUsage (another 4xx) or TidemarkError."""
    base = address(given)
    trust_env = urlparse(base).hostname not in _LOOPBACK
    try:
        answer = httpx.request(method, base + path, json=body, timeout=TIMEOUT_S, trust_env=trust_env)
        found = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ApiUnreachable(
            f"no api at {base} ({error or type(error).__name__}): "
            "start it with `tidemark up`, or name it with --api or TIDEMARK_API"
        ) from None
    except ValueError:
        raise ApiUnreachable(f"{base} does not answer like a Tidemark api: name it with --api") from None
    if answer.is_success:
        return found
    raise _error(answer.status_code, found, base)


def _error(status: int, found: Any, base: str) -> TidemarkError:
    detail = found.get("error") if isinstance(found, dict) else None
    if not isinstance(detail, dict):
        return ApiUnreachable(f"{base} does not answer like a Tidemark api (HTTP {status}): name it with --api")
    message = str(detail.get("message", detail))
    if status in (404, 412):
        return NotFound(message)
    if status in (400, 413, 422):
        return WrongUsage(message)
    return TidemarkError(message)
