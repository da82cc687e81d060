"""Tidemark and its peers side by side, in one run on one machine: `make bench-peers`.

The same SIFT rows go into each, effort is tuned until recall@10 reaches 0.95, then one client searches, one query at a
time; servers also while a second process inserts. Each peer runs in a process of its own, one after the other, so that
none can disturb the next. Every peer is optional; one that is not installed, or fails, is left out and said so.
Their packages are beside the project's in an environment of their own, `.venv/peers`, which `make bench-peers` makes.

Qdrant and Weaviate are measured where `--qdrant URL` and `--weaviate URL` say that one runs; a collection is made
and removed there. Graphs are all built with M 16 and efConstruction 200. Tidemark and Chroma are searched over HTTP
with the same bare client, Qdrant and Weaviate with their own gRPC clients; LanceDB, hnswlib and usearch are calls in
one process, Milvus Lite is gRPC to a thread of it. Encoding the query and decoding the ids is part of every search.
hnswlib and usearch keep vectors in memory and nothing else, no log and no file: they are here as the floor.

Tidemark, Chroma and LanceDB are then filled again with the metadata of `benchmarks/conditions.py` and asked for the
rows that each condition picks, tuned for each to the same recall; LanceDB has an index on each of the two columns.

Prints two tables and writes benchmarks/results/peers.json. Names of figures after VectorDBBench:
insert_seconds: until all rows are acknowledged; searchable_after_insert_seconds: until a search finds the last one;
indexed_after_searchable_seconds: until all are in an index. The rates are rows over the sum of these.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from benchmarks import machine, sift
from benchmarks.peers.measure import INSERT_LEAD_S, RECALL, Figures, extra_rows, measure, measure_filtered
from benchmarks.peers.peer import K, Place
from benchmarks.peers.stores import FILTERED, PEERS
from benchmarks.report import shown

T = TypeVar("T")
RESULTS = Path(__file__).parent.parent / "results" / "peers.json"
QUIET = {
    "ANONYMIZED_TELEMETRY": "False",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
FILTERED_COLUMNS = ("peer", "condition", "effort", "recall", "p50_ms", "p99_ms", "problem")
COLUMNS = (
    *("peer", "version", "index", "effort", "recall", "insert_seconds", "searchable_after_insert_seconds"),
    *("indexed_after_searchable_seconds", "searchable_per_s", "indexed_per_s", "p50_ms", "p99_ms", "qps"),
    *("p99_ms_while_inserting", "p99_while_inserting_over_idle", "inserted_per_s"),
)


def measure_apart(work: Callable[[str, Place, float], T], name: str, rows: int, url: str, seconds: float) -> T | str:
    """What `work` found of one peer in a process of its own, or why there is nothing."""
    if find_spec(PEERS[name][1]) is None:
        return f"{PEERS[name][1]} is not installed"
    with (
        tempfile.TemporaryDirectory(prefix="tidemark-peers-") as directory,
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process,
    ):
        try:
            return process.submit(work, name, Place(Path(directory), rows, url), seconds).result()
        except Exception as error:  # whatever goes wrong in one peer must not end the run
            return f"{type(error).__name__}: {error}".splitlines()[0]


def report(found: list[Figures], filtered: list[Figures], left_out: dict[str, str], rows: int) -> None:
    about = machine.describe(seed=0)
    print(f"\n{machine.heading(about)}; seed 0; SIFT {rows:,} x {sift.DIMENSION}, recall@{K} >= {RECALL}\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for figures in found:
        print(f"| {' | '.join(_cell(figures.get(column, '')) for column in COLUMNS)} |")
    print(f"\n| {' | '.join(FILTERED_COLUMNS)} |\n|{'---|' * len(FILTERED_COLUMNS)}")
    for figures in filtered:
        print(f"| {' | '.join(_cell(figures.get(column, '')) for column in FILTERED_COLUMNS)} |")
    for name, why in left_out.items():
        print(f"\n{name} left out: {why}")
    RESULTS.parent.mkdir(exist_ok=True)
    document = {"machine": about, "rows": rows, "peers": found, "filtered": filtered, "left_out": left_out}
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")


def _filtered(name: str, rows: int, seconds: float) -> list[Figures]:
    started = time.perf_counter()
    answer = measure_apart(measure_filtered, name, rows, "", seconds)
    said = answer if isinstance(answer, str) else "done"
    sys.stderr.write(f"{name}, with conditions: {said}, {time.perf_counter() - started:.1f} s\n")
    return [{"peer": name, "problem": answer}] if isinstance(answer, str) else answer


def _cell(value: float | str) -> str:
    return value if isinstance(value, str) else shown(value)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="Tidemark beside its peers.")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=10.0, help="of searches, idle and while inserting")
    parser.add_argument("--only", default="", help=f"some of: {','.join(PEERS)}")
    parser.add_argument("--qdrant", default="", metavar="URL", help="a Qdrant that runs, such as http://127.0.0.1:6333")
    parser.add_argument("--weaviate", default="", metavar="URL", help="a Weaviate, such as http://127.0.0.1:8080")
    arguments = parser.parse_args()
    urls = {"qdrant": arguments.qdrant, "weaviate": arguments.weaviate}
    names = arguments.only.split(",") if arguments.only else list(PEERS)
    if unknown := set(names) - set(PEERS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(PEERS)}")
    os.environ.update(QUIET)
    sift.load(arguments.rows + extra_rows(arguments.seconds + 2 * INSERT_LEAD_S))
    sift.load(arguments.rows).ground_truth(K)
    found: list[Figures] = []
    left_out: dict[str, str] = {}
    for name in names:
        if not urls.get(name, "none needed"):
            left_out[name] = f"no address given (--{name} URL)"
            continue
        started = time.perf_counter()
        answer = measure_apart(measure, name, arguments.rows, urls.get(name, ""), arguments.seconds)
        if isinstance(answer, str):
            left_out[name] = answer
        else:
            found.append(answer)
        sys.stderr.write(
            f"{name}: {answer if isinstance(answer, str) else 'done'}, {time.perf_counter() - started:.1f} s\n"
        )
    filtered = [
        line for name in names if name in FILTERED for line in _filtered(name, arguments.rows, arguments.seconds)
    ]
    report(found, filtered, left_out, arguments.rows)
