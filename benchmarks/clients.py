"""Search clients that search at once, each a process of its own: `python -m benchmarks.clients PORT COLLECTION`.

A client holds one connection and searches without pause, one query after the other, so its Python takes neither the
interpreter lock of who measures nor that of another client. It says `ready` when its requests are encoded, searches
for as many seconds as each line on stdin says, answers with one JSON line, and ends with its stdin.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from types import TracebackType

import numpy as np

from benchmarks import sift
from benchmarks.client import SearchClient


@dataclass(frozen=True, slots=True)
class Searched:
    """What one client did: searches, the seconds they took, its CPU time, and `seen`, see `SearchClient.search_for`."""

    searches: int
    seconds: float
    cpu_s: float
    p50_ms: float
    p99_ms: float
    seen: list[tuple[float, int]]


class Clients:
    """So many clients of one collection; a context manager that ends them. `rows`: those of the data set."""

    def __init__(self, count: int, port: int, collection: str, rows: int) -> None:
        command = [sys.executable, "-m", "benchmarks.clients", str(port), collection, "--rows", str(rows)]
        self._processes = [
            # Each starts at another query: they are not to find in the caches what another one has just read.
            subprocess.Popen([*command, "--first", f"{number / count}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            for number in range(count)
        ]

    def __enter__(self) -> "Clients":
        for process in self._processes:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError(f"a search client ended with code {process.wait()}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for process in self._processes:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.close()
            process.wait()
            process.stdout.close()

    def start(self, seconds: float) -> None:
        """Have all of them search for a time."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(b"%f\n" % seconds)
            process.stdin.flush()

    def wait(self) -> list[Searched]:
        """What each has done; waits until it has."""
        found = []
        for process in self._processes:
            assert process.stdout is not None
            found.append(Searched(**json.loads(process.stdout.readline())))
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("collection")
    parser.add_argument("--rows", type=int, default=100_000, help="of the data set whose queries are asked")
    parser.add_argument("--first", type=float, default=0.0, help="the query to start at, as a share of all")
    arguments = parser.parse_args()
    client = SearchClient(arguments.port, arguments.collection)
    queries = sift.load(arguments.rows).queries
    requests = client.requests(np.roll(queries, -int(arguments.first * len(queries)), axis=0))
    print("ready", flush=True)
    for line in sys.stdin:
        started, cpu = time.perf_counter(), time.process_time()
        latencies, seen = client.search_for(requests, float(line))
        seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu
        p50, p99 = np.percentile(latencies, (50, 99)).tolist()
        print(json.dumps(asdict(Searched(len(latencies), seconds, cpu_s, p50, p99, seen))), flush=True)
    client.close()


if __name__ == "__main__":
    main()
