"""`tidemark healthcheck`: one request, for containers, whose images have no curl."""

import httpx

from cli.exits import NotFound
from cli.remote_api import address, get

TIMEOUT_S = 5.0


def check(url: str | None) -> None:
    """Raises NotFound, with what was answered, unless the address answers 200."""
    asked = url or address(None) + "/healthz"
    try:
        status = get(asked, TIMEOUT_S).status_code
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise NotFound(f"{asked} does not answer: {error or type(error).__name__}") from None
    if status != 200:
        raise NotFound(f"{asked} answers HTTP {status}")
