"""`python -m api.worker PARENT_PID NUMBER`: one HTTP worker of a replica, told by it on stdin what to serve.

It only reads the replica's views, so no search waits for the thread that follows the log. FAISS is given one
OpenMP thread per search before it is imported: with more, one query costs several times the CPU.
"""

import gc
import os

gc.disable()  # what is imported stays: looking through it is a tenth of the start
os.environ["OMP_NUM_THREADS"] = "1"

import signal
import socket
import sys

import uvicorn
import uvloop  # noqa: F401  # uvicorn falls back to a slower loop when it is missing

from api.app import create_app
from api.connection import Limits, connections
from api.metrics import count_as
from api.mirror import Replica
from api.workers import Told
from tidemark import service
from tidemark.settings import load
from tidemark.shared_memory import Document, Region

# How long a thread keeps the interpreter lock while another one waits for it (Python's default: 5 ms).
SWITCH_S = 0.0005


def main() -> None:
    service.die_with_parent(int(sys.argv[1]), signal.SIGKILL)
    told = Told.receive(socket.socket(fileno=sys.stdin.fileno()))
    if told is None:
        return
    sys.setswitchinterval(SWITCH_S)
    settings = load(told.config)
    service.log_to_stderr(settings.log_format)
    service.run_on(settings.api.cpus)
    count_as(int(sys.argv[2]))
    replica = Replica(settings, Document(Region.open(told.replica)))
    api = settings.api
    limits = Limits(api.header_bytes_max, api.header_timeout_s, api.body_timeout_s, api.connections_max)
    config = uvicorn.Config(
        create_app(replica),
        loop="uvloop",
        http=connections(limits),  # type: ignore[arg-type]  # it is only called
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,  # longer than clients and proxies keep a connection: they close it, not we
        timeout_graceful_shutdown=3,
    )
    server = uvicorn.Server(config)

    def stop(*_: object) -> None:
        """Before uvicorn has handlers of its own; afterwards it raises the signal again for this one: exit 0."""
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    service.collect_garbage()
    server.run(sockets=[told.listener])


if __name__ == "__main__":
    service.run(main)
