"""`python -m api` serves the configured collections over HTTP: a replica.

This process follows the log and writes the views, in memory that its HTTP workers (`worker.py`) share: a search
never waits for the interpreter lock of who applies records. The port is bound here, so one in use is a clear error
and port 0 tells which one it got.
"""

from tidemark import service

service.end_on_signals()  # first of all: as process 1 it would not be stopped while it imports the rest

import gc

gc.disable()  # what is imported stays: looking through it is a tenth of the start

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy's second thread would spin on a core that searches need

import argparse
import logging
import socket
import sys
import threading
from pathlib import Path

from api import counts
from api.workers import Told, Workers
from tidemark.errors import BadConfiguration

logger = logging.getLogger("api")

TURN_S = 0.1
CONNECTIONS_WAITING_MAX = 1024
# How long a thread keeps the interpreter lock while another one waits for it (Python's default: 5 ms).
SWITCH_S = 0.001


def main() -> None:
    parser = argparse.ArgumentParser(prog="api", description=__doc__)
    parser.add_argument("--config", type=Path, help="settings file (default: tidemark.toml)")
    parser.add_argument("--dies-with-parent", type=int, metavar="PID", help="stop when this parent dies")
    arguments = parser.parse_args()
    if arguments.dies_with_parent is not None:
        service.die_with_parent(arguments.dies_with_parent)
    sys.setswitchinterval(SWITCH_S)
    stopping = service.stop_on_signals()
    service.allow_many_files()
    with counts.directory() as directory:
        workers = Workers({"PROMETHEUS_MULTIPROC_DIR": str(directory)})
        try:
            _serve(workers, arguments.config, stopping)
        finally:
            workers.stop()


def _serve(workers: Workers, config: Path | None, stopping: threading.Event) -> None:
    # Imported while the first worker imports what it needs: that takes longest of all.
    from api.serving import Serving
    from tidemark.ann.exact import simd_level
    from tidemark.clients import try_settings
    from tidemark.settings import load
    from tidemark.shared_memory import Document

    if stopping.is_set():
        return
    settings = load(config)
    service.log_to_stderr(settings.log_format)
    try_settings(settings.kafka, settings.consumer.group)
    service.cores(settings.api.follower_cpus)  # refused here, not in a thread
    port = _reserve(settings.api.host, settings.api.port)
    host, number = port.getsockname()[:2]
    document = Document()
    serving = Serving(settings, document)
    serving.start()
    count = settings.api.workers or len(service.cores(settings.api.cpus))

    def tell() -> Told:
        listener = _bound(host, number)
        listener.listen(CONNECTIONS_WAITING_MAX)
        return Told(listener, document.name, config)

    workers.serve(count, tell)
    service.collect_garbage()
    logger.info("listening on http://%s:%d with %d workers; uvloop, httptools; %s", host, number, count, simd_level())
    with port:
        while not stopping.wait(TURN_S):
            workers.turn()
    workers.stop()
    serving.close()


def _reserve(host: str, port: int) -> socket.socket:
    """A socket that keeps the port without listening; the workers' share it."""
    try:
        with socket.create_server((host, port)) as alone:  # what shares a port would not be refused
            number = alone.getsockname()[1]
        return _bound(host, number)
    except OSError as error:
        raise BadConfiguration(
            f"api.port: cannot listen on {host}:{port} ({error.strerror}): stop what uses it, or set another port"
        ) from error


def _bound(host: str, port: int) -> socket.socket:
    found = socket.socket(socket.AF_INET)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    found.bind((host, port))
    return found


if __name__ == "__main__":
    service.run(main)
