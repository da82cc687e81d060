"""`python -m consumer` indexes the configured collections; `python -m consumer replay ...` makes a generation.

The `tidemark` command line starts both; containers may start them directly.
"""

from tidemark import service

service.end_on_signals()  # first of all: as process 1 it would not be stopped while it imports the rest

import argparse
import json
import logging
import os

# To code few rows with several threads of numpy takes ten times the CPU: they spin for each other. The builder too.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import socket
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

from pydantic import ValidationError

from consumer import metrics
from consumer.indexer import Indexer
from consumer.replay import Progress, Replay
from tidemark.ann.exact import simd_level, use_one_thread_per_search
from tidemark.clients import try_settings
from tidemark.collection import Collection, IndexParameters
from tidemark.errors import BadConfiguration
from tidemark.files import DirectoryLock
from tidemark.settings import IndexSettings, Settings, load

logger = logging.getLogger("consumer")

# The last checkpoint and leaving the group, on a slow disk; less than what a container's stop is given.
CLOSE_S = 50.0


def main() -> None:
    arguments = _arguments()
    if arguments.dies_with_parent is not None:
        service.die_with_parent(arguments.dies_with_parent)
    settings = load(arguments.config)
    service.log_to_stderr(settings.log_format)
    try_settings(settings.kafka, settings.consumer.group)
    service.allow_many_files()
    service.give_way(service.CONSUMER_NICE)
    service.run_on(settings.consumer.cpus)
    use_one_thread_per_search()  # the builder has as many as there are; the owning thread codes few rows
    if arguments.command == "replay":
        _replay(settings, arguments)
    else:
        _index(settings)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="consumer", description=__doc__)
    parser.add_argument("--config", type=Path, help="settings file (default: tidemark.toml)")
    parser.add_argument("--dies-with-parent", type=int, metavar="PID", help="stop when this parent dies")
    commands = parser.add_subparsers(dest="command")
    replay = commands.add_parser("replay", help="build a new generation from the topic, then switch to it")
    replay.add_argument("collection")
    replay.add_argument("--from", dest="start", default="earliest", help="earliest, 0=120,1=7 or a time")
    replay.add_argument("--index", default="", help='other parameters as JSON, such as {"kind": "hnsw"}')
    replay.add_argument("--json", action="store_true", help="progress as JSON lines on stdout")
    return parser.parse_args()


def _index(settings: Settings) -> None:
    stopping = service.Stopping()
    lock = DirectoryLock(settings.checkpoint_root / ".consumers" / _member_name(settings), "a consumer")
    indexer = Indexer(settings, settings.all_collections())
    server = metrics.serve(lambda: indexer.status, settings.consumer.host, settings.consumer.port)
    logger.info("metrics and health on port %d; %s", server.server_port, simd_level())
    threading.Thread(target=_exit_if_close_hangs, args=(stopping.come,), daemon=True).start()
    indexer.run(stopping)
    lock.close()
    logger.info("stopped cleanly")


def _member_name(settings: Settings) -> str:
    """What no other running member may be: a static member's id, else an address, else this process."""
    instance = settings.kafka.get("group.instance.id")
    place = f"{socket.gethostname()}-{settings.consumer.port or os.getpid()}"
    return f"{settings.consumer.group}-{instance or place}".replace("/", "_")


def _exit_if_close_hangs(stopping: threading.Event) -> None:
    stopping.wait()
    threading.Event().wait(CLOSE_S)
    logger.error("stopping took more than %.0f s: ended; what is in no checkpoint is read again", CLOSE_S)
    os._exit(service.EXIT_UNAVAILABLE)


def _replay(settings: Settings, arguments: argparse.Namespace) -> None:
    collection = _with_index(settings.collection(arguments.collection), arguments.index)

    def report(progress: Progress) -> None:
        if arguments.json:
            sys.stdout.write(json.dumps(asdict(progress)) + "\n")
            sys.stdout.flush()
        else:
            logger.info("%d of %d offsets, %d rows to build", progress.done, progress.total, progress.unbuilt_rows)

    made = Replay(settings, collection, arguments.start).run(report, service.Stopping())
    sys.stdout.write(json.dumps({"generation": made}) + "\n")


def _with_index(collection: Collection, changes: str) -> Collection:
    if not changes:
        return collection
    try:
        index = IndexSettings.model_validate({**asdict(collection.index), **json.loads(changes)})
    except ValidationError as error:
        problem = error.errors()[0]
        reason = f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
    except (TypeError, ValueError, RecursionError) as error:
        reason = f"not a JSON object: {error}"
    else:
        return replace(collection, index=IndexParameters(**index.model_dump()))
    known = ", ".join(IndexSettings.model_fields)
    raise BadConfiguration(f"--index {changes}: {reason}; parameters: {known}")


if __name__ == "__main__":
    service.run(main)
