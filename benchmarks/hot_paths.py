"""Where the microseconds of a search, of a record and of a build go: `make bench-hot-paths`.

One thread, one process, no Kafka, warm caches: what the code costs by itself, step by step; HTTP by itself too.
A search sees the state of a replica under ingestion: rows of segments and of tails in the lists, and the newest rows.
Medians in microseconds over SIFT queries.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Message
from numpy.typing import NDArray

from benchmarks import machine, sift
from benchmarks.client import connected
from benchmarks.copies import Copies
from benchmarks.growth import Replica, trained
from cli.ports import free_port
from tidemark import searcher
from tidemark.ann.exact import rank, use_one_thread_per_search
from tidemark.ann.lists import OUTLIER, Lists
from tidemark.ann.quantizer import Quantizer
from tidemark.collection import Collection
from tidemark.collection_index import SAMPLE_ROWS
from tidemark.record import decode
from tidemark.view import View

COLLECTION = Collection("sift", "sift", sift.DIMENSION, "l2", format="raw")
INDEXED, NEW, BATCH = 500_000, 200_000, 400
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
    view, spent = View(COLLECTION, shared=True), np.zeros(2)
    view.open(0, [], 0, -1, 0)
    for first in range(0, BACKLOG, BACKLOG_BATCH):
        spent += timed(view, messages(data, range(first, first + BACKLOG_BATCH), first))
    decoding, applying = spent / BACKLOG * 1e6
    return {"backlog: decode, a record": decoding, "backlog: apply, a record": applying}


def record_path(data: sift.Sift, replica: Replica) -> dict[str, float]:
    """Half of the records are new, the other half replace rows of segments; then the new ones are coded."""
    random, view = np.random.default_rng(0), replica.view
    spent, start = np.zeros(2), view.partitions[0].position
    for first in range(0, NEW, BATCH):
        new = INDEXED + first + np.arange(BATCH)
        rows = np.where(np.arange(BATCH) % 2, new, random.integers(0, INDEXED, BATCH)).tolist()
        spent += timed(view, messages(data, rows, start + first))
    decoding, applying = spent / NEW * 1e6
    coding = cpu_us(replica.code) / NEW
    return {"decode, a record": decoding, "apply, a record": applying, "codes in the lists, a row": coding}


def search_path(data: sift.Sift, replica: Replica) -> dict[str, float]:
    """The whole search of a replica, and its parts in their order, each with its bytes in the caches."""
    mirror, queries = replica.mirror, np.ascontiguousarray(data.queries)
    snapshot, alive, metric = mirror.snapshot(), mirror.alive, COLLECTION.metric
    lists = snapshot.index
    assert lists is not None
    numbers = lists.candidates(queries, K, alive, 1.0)
    newest = searcher.newest(mirror, lists.coded)[1]
    ranked = np.concatenate([numbers, np.broadcast_to(newest, (len(queries), len(newest)))], axis=1)
    found = [searcher.Found(rank(mirror.vectors, queries, ranked, metric), ranked)]
    looked = searcher.Looked(snapshot, found, searcher.Plan("index"))

    def one(values: NDArray[Any], number: int) -> Any:
        return values[number % len(values)][None]

    def nearest(number: int) -> Any:
        return searcher._nearest(looked, number % len(queries), K, COLLECTION)

    return {
        f"lists of {replica.row_count + NEW:,} rows: candidates": median_us(
            lambda n: lists.candidates(one(queries, n), K, alive, 1.0)
        ),
        f"the newest {len(newest):,} rows": median_us(lambda n: searcher.newest(mirror, lists.coded)),
        f"exact ranks of {ranked.shape[1]:,} rows": median_us(
            lambda n: rank(mirror.vectors, one(queries, n), one(ranked, n), metric)
        ),
        "merge and read the ids": median_us(nearest),
        "the whole search": median_us(lambda n: searcher.search(mirror, one(queries, n), K)),
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
    """CPU time a row of what makes an index; the codes also as FAISS makes them."""
    sample = np.ascontiguousarray(rows[:SAMPLE_ROWS])
    quantizer = Quantizer.train(sample, "l2", len(rows), COLLECTION.index.recall_target, seed=0)
    plain = quantizer.empty_index()
    encoded = quantizer.encode(rows)
    expected = np.bincount(encoded.lists[encoded.lists != OUTLIER], minlength=quantizer.lists)
    lists = Lists(quantizer, expected, shared=False)
    parts: dict[str, Callable[[], Any]] = {
        "a quantizer, of a sample": lambda: Quantizer.train(sample, "l2", len(rows), 0.97, seed=0),
        "lists and codes": lambda: quantizer.encode(rows),
        "codes by FAISS": lambda: plain.pq.compute_codes(rows),
        "into the lists": lambda: lists.append(encoded.lists, encoded.codes, np.arange(len(rows))),
    }
    return {f"build: {name}, a row": cpu_us(part) / len(rows) for name, part in parts.items()}


def cpu_us(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return (time.process_time() - started) * 1e6


def main() -> None:
    use_one_thread_per_search()
    data = sift.load(INDEXED + NEW)
    rows = Copies(data)
    with (
        tempfile.TemporaryDirectory(prefix="tidemark-hot-") as directory,
        closing(Replica(rows, INDEXED, 1, trained(rows, INDEXED), Path(directory))) as replica,
    ):
        figures = {**backlog_path(data), **record_path(data, replica), **search_path(data, replica)}
        figures |= http_path(data.queries) | build_path(np.ascontiguousarray(data.base[:INDEXED]))
    about = machine.describe(seed=0)
    versions = f"faiss {about['versions']['faiss-cpu']}, numpy {about['versions']['numpy']}"
    print(f"\n{about['processor']}, {about['cores']} cores; {about['faiss_simd']}; {versions}; seed 0\n")
    print("| step | µs |\n|---|---|")
    for name, value in figures.items():
        print(f"| {name} | {value:,.1f} |")


if __name__ == "__main__":
    main()
