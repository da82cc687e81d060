"""`python -m api` serves the configured collections over HTTP.

FAISS is given one OpenMP thread per search before it is imported: with more, one query costs several times the
CPU. The socket is bound here, so a port in use is a clear error and port 0 tells which one it got.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import logging
import signal
import socket
import sys
from pathlib import Path

import httptools  # noqa: F401  # uvicorn falls back to h11, 3.5 times slower, when one is missing
import uvicorn
import uvloop  # noqa: F401

from api.app import create_app
from tidemark import service
from tidemark.errors import BadConfiguration
from tidemark.exact import simd_level
from tidemark.settings import load

logger = logging.getLogger("api")


# How long the followers' threads keep the interpreter lock while a search waits for it (Python's default: 5 ms).
SWITCH_S = 0.0005


def main() -> None:
    parser = argparse.ArgumentParser(prog="api", description=__doc__)
    parser.add_argument("--config", type=Path, help="settings file (default: tidemark.toml)")
    parser.add_argument("--dies-with-parent", action="store_true", help="stop when the starting process dies")
    arguments = parser.parse_args()
    if arguments.dies_with_parent:
        service.die_with_parent()
    sys.setswitchinterval(SWITCH_S)
    settings = load(arguments.config)
    service.log_to_stderr(settings.log_format)
    listener = _listen(settings.api.host, settings.api.port)
    host, port = listener.getsockname()[:2]
    logger.info("listening on http://%s:%d; uvloop, httptools; %s", host, port, simd_level())
    config = uvicorn.Config(
        create_app(settings),
        loop="uvloop",
        http="httptools",
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        limit_concurrency=2 * settings.api.search_queue_max,
        timeout_keep_alive=75,  # longer than clients and proxies keep a connection: they close it, not we
        timeout_graceful_shutdown=3,
    )
    # uvicorn stops on SIGTERM and SIGINT, then raises the signal again for who was there before it: exit 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    try:
        listener = socket.create_server((host, port), backlog=1024)
    except OSError as error:
        raise BadConfiguration(
            f"api.port: cannot listen on {host}:{port} ({error.strerror}): stop what uses it, or set another port"
        ) from error
    listener.set_inheritable(True)
    return listener


if __name__ == "__main__":
    service.run(main)
