"""The least that a search over HTTP can take: an ASGI application whose answer is always the same (`hot_paths.py`)."""

from starlette.types import Receive, Scope, Send

ANSWER = b'"%s"' % (b"x" * 598)  # JSON, as long as the answer of a search for ten ids


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    await receive()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(ANSWER))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": ANSWER})
