"""Where the microseconds of a search, of a record and of a build go: `make bench-hot-paths`.

One thread, one process, no Kafka, warm caches: what the code costs by itself, step by step; HTTP by itself too.
A search sees the state of a replica under ingestion: two indexed segments and a tail with codes of most of its rows.
Medians in microseconds over SIFT queries.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Message
from numpy.typing import NDArray

from benchmarks import machine, sift
from benchmarks.client import connected
from benchmarks.growth import rows_of
from cli.ports import free_port
from tidemark import searcher
from tidemark.ann import index, pq
from tidemark.ann.exact import nearest_of_many, use_one_thread_per_search
from tidemark.collection import Collection, IndexParameters
from tidemark.record import decode
from tidemark.segment import Segment
from tidemark.segment_files import write_segment
from tidemark.view import View

COLLECTION = Collection("sift", "sift", sift.DIMENSION, "l2", format="raw")
INDEXED, NEW, BATCH = (400_000, 100_000), 200_000, 400
BACKLOG, BACKLOG_BATCH = 200_000, 4_000
ROUNDS, REQUESTS, K = 1_000, 10_000, 10


def median_us(work: Callable[[int], Any], rounds: int = ROUNDS) -> float:
    """Median time of work(number of the round), after some rounds to warm up."""
    times = np.empty(rounds)
    for number in range(-50, rounds):
        before = time.perf_counter()
        work(number)
        times[max(0, number)] = time.perf_counter() - before
    return float(np.median(times)) * 1e6


def segments(data: sift.Sift, directory: Path) -> list[Segment]:
    made: list[Segment] = []
    first = 0
    for rows in INDEXED:
        path = directory / f"{len(made)}"
        entry = write_segment(path, rows_of(data, range(first, first + rows)), "l2", IndexParameters(), seed=1)
        made.append(Segment(path, entry, sift.DIMENSION, "l2", shared=True))
        first += rows
    return made


def messages(data: sift.Sift, rows: Sequence[int], first_offset: int) -> list[Any]:
    return [
        Message(
            topic="sift",
            partition=0,
            offset=offset,
            key=b"v%d" % row,
            value=data.base[row].tobytes(),
            timestamp=(1, 1),
            leader_epoch=0,
        )
        for offset, row in enumerate(rows, first_offset)
    ]


def timed(view: View, batch: Sequence[Any]) -> NDArray[np.float64]:
    """Seconds to decode a batch, and to apply it."""
    before = time.perf_counter()
    decoded = decode({0: batch}, COLLECTION)[0]
    between = time.perf_counter()
    view.apply(decoded)
    return np.array([between - before, time.perf_counter() - between])


def backlog_path(data: sift.Sift) -> dict[str, float]:
    """A follower's first catching up: large batches of rows that are all new, in memory that is shared."""
    view, spent = View(COLLECTION, 0, shared=True), np.zeros(2)
    for first in range(0, BACKLOG, BACKLOG_BATCH):
        spent += timed(view, messages(data, range(first, first + BACKLOG_BATCH), first))
    decoding, applying = spent / BACKLOG * 1e6
    return {"backlog: decode, a record": decoding, "backlog: apply, a record": applying}


def record_path(data: sift.Sift, view: View) -> dict[str, float]:
    """Half of the records are new, the other half replace rows of segments; codes are made as they come."""
    found = sum(INDEXED)
    random = np.random.default_rng(0)
    spent, encoding, start = np.zeros(2), 0.0, view.position
    for first in range(0, NEW, BATCH):
        new = found + first + np.arange(BATCH)
        rows = np.where(np.arange(BATCH) % 2, new, random.integers(0, found, BATCH)).tolist()
        spent += timed(view, messages(data, rows, start + first))
        before = time.perf_counter()
        if work := view.codes_wanted():
            work()
        encoding += time.perf_counter() - before
    decoding, applying = spent / NEW * 1e6
    return {
        "decode, a record": decoding,
        "apply, a record": applying,
        "codes, a row (with training)": encoding / NEW * 1e6,
    }


def search_path(data: sift.Sift, view: View) -> dict[str, float]:
    queries = np.ascontiguousarray(data.queries)
    figures: dict[str, float] = {}
    for segment in view.searcher.segments:
        figures |= segment_figures(segment, queries)

    def one(number: int) -> Any:
        return queries[number % len(queries)][None]

    tail = view.searcher.tails[0]
    coded = tail.rows - tail.uncoded
    figures[f"tail, {coded:,} rows by codes"] = median_us(
        lambda n: list(tail.search(one(n), K, "l2", tail.first, coded, 1.0, False))
    )
    figures[f"tail, {tail.rows - coded:,} rows exactly"] = median_us(
        lambda n: list(tail.search(one(n), K, "l2", coded, tail.rows, 1.0, False))
    )
    found = searcher._search_partition(view, queries[:1], K, 1.0, False)[1]
    figures["merge and read the ids"] = median_us(lambda n: searcher._nearest(found, 0, K, "l2"))
    figures["the whole search"] = median_us(lambda n: searcher.search([view], one(n), K))
    return figures


def segment_figures(segment: Segment, queries: NDArray[np.float32]) -> dict[str, float]:
    """The search of one segment, and the parts of it: finding candidates by codes, ranking them exactly."""
    assert segment.opened_index is not None
    found, parameters, alive = segment.opened_index, segment.parameters, index.ALL
    wanted = K * parameters.k_factor
    candidates = found.candidates(queries, wanted, parameters, alive)

    def line(values: NDArray[Any], number: int) -> Any:
        return values[number % len(values)][None]

    def rank(number: int) -> Any:
        return index._rank_exactly(segment.vectors, line(queries, number), line(candidates, number), K, "l2")

    name = f"{segment.kind} of {segment.rows:,} rows"
    return {
        name: median_us(lambda n: segment.search(line(queries, n), K, 1.0, False)),
        f"{name}: candidates": median_us(lambda n: found.candidates(line(queries, n), wanted, parameters, alive)),
        f"{name}: exact ranks": median_us(rank),
    }


def http_path(queries: NDArray[np.float32]) -> dict[str, float]:
    """CPU time that uvicorn takes to receive a search and to send an answer, with nothing in between."""
    port = free_port()
    options = f"--port {port} --loop uvloop --http httptools --lifespan off --no-access-log --log-level error"
    command = [sys.executable, "-m", "uvicorn", "benchmarks.constant:app", *options.split()]
    with subprocess.Popen(command) as server:
        client = connected(port, "sift")
        request = client.requests(queries[:1])[0]
        before = machine.cpu_s(server.pid)
        for _ in range(REQUESTS):
            client.post(request)
        spent = machine.cpu_s(server.pid) - before
        client.close()
        server.terminate()
    return {"HTTP alone, CPU of the server": spent / REQUESTS * 1e6}


def build_path(rows: NDArray[np.float32]) -> dict[str, float]:
    """CPU time a row of an index, and of its dearest parts; the codes also as FAISS makes them."""
    made = index.build(rows, "l2", IndexParameters(), seed=0)[0].faiss
    some_rows = rows[: pq.TRAINING_ROWS]
    parts: dict[str, Callable[[], Any]] = {
        "an index": lambda: index.build(rows, "l2", IndexParameters(), seed=0),
        "codes": lambda: pq.Encoder.for_rows_like(made.pq, some_rows).encode(rows),
        "codes by FAISS": lambda: made.pq.compute_codes(rows),
        f"neighbours of {index.CALIBRATION_QUERIES} rows": lambda: nearest_of_many(
            rows, rows[: index.CALIBRATION_QUERIES], 2 * K, "l2"
        ),
    }
    return {f"build: {name}, a row": cpu_us(part) / len(rows) for name, part in parts.items()}


def cpu_us(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return (time.process_time() - started) * 1e6


def main() -> None:
    use_one_thread_per_search()
    rows = sum(INDEXED)
    data = sift.load(rows + NEW)
    with tempfile.TemporaryDirectory(prefix="tidemark-hot-") as directory:
        view = View(COLLECTION, 0, shared=True)
        view.open(segments(data, Path(directory)), rows, 0, 0)
        figures = {**backlog_path(data), **record_path(data, view), **search_path(data, view)}
        figures |= http_path(data.queries) | build_path(data.base[:rows])
    about = machine.describe(seed=0)
    versions = f"faiss {about['versions']['faiss-cpu']}, numpy {about['versions']['numpy']}"
    print(f"\n{about['processor']}, {about['cores']} cores; {about['faiss_simd']}; {versions}; seed 0\n")
    print("| step | µs |\n|---|---|")
    for name, value in figures.items():
        print(f"| {name} | {value:,.1f} |")


if __name__ == "__main__":
    main()
