"""Measuring one peer in a process of its own: filled, tuned to the recall asked, searched, also while written to."""

import multiprocessing
import os
import time
from bisect import bisect_left
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from benchmarks import conditions, sift
from benchmarks.conditions import Below
from benchmarks.peers.peer import BATCH, K, Peer, Place, Rows, wait_for
from benchmarks.peers.stores import FILTERED, PEERS, WRITERS

RECALL = 0.95
TUNING_QUERIES = 500  # 5,000 neighbours: recall to 0.3%, in seconds also where a search takes 50 ms
# Rows that a second process inserts while searches are measured: a steady trickle that every server can take.
INSERT_RATE, INSERT_BURST_S, INSERT_LEAD_S = 1_000, 0.1, 2.0

Figures = dict[str, float | str]


def measure(name: str, place: Place, seconds: float) -> Figures:
    """Filled, tuned, searched idle and while rows are inserted."""
    data = sift.load(place.rows)
    with ExitStack() as stack:
        peer = PEERS[name][0](stack, place)
        figures: Figures = {"peer": name, "version": peer.version, "index": peer.index}
        figures |= fill(peer, data.base)
        figures |= tune(peer, data.queries, data.ground_truth(K))
        latencies = search_for(peer, data.queries, seconds)
        idle = float(np.percentile(latencies, 99))
        figures |= {"p50_ms": float(np.median(latencies)), "p99_ms": idle, "qps": 1e3 / float(latencies.mean())}
        if peer.address:
            figures |= search_while_inserting(name, peer, data, seconds)
            figures["p99_while_inserting_over_idle"] = float(figures["p99_ms_while_inserting"]) / idle
    return figures


def fill(peer: Peer, base: Rows) -> Figures:
    """Insert all rows, and wait until they are searchable, then indexed."""
    peer.tune(max(peer.efforts))
    started = time.perf_counter()
    peer.insert(base)
    inserted = time.perf_counter()
    last, row = len(base) - 1, np.array(base[-1])
    wait_for(lambda: peer.count() > last and last in peer.search(row), "the last row inserted")
    searchable = time.perf_counter()
    indexed = peer.wait_indexed()
    return {
        "insert_seconds": inserted - started,
        "searchable_after_insert_seconds": searchable - inserted,
        "indexed_after_searchable_seconds": indexed - searchable,
        "searchable_per_s": len(base) / (searchable - started),
        "indexed_per_s": len(base) / (indexed - started),
    }


def tune(peer: Peer, queries: Rows, truth: NDArray[np.int64]) -> Figures:
    """Leave the peer with the least effort that reaches the recall, by bisection; RuntimeError if none does."""
    nearest = [{row for row in line if row >= 0} for line in truth[:TUNING_QUERIES].tolist()]
    recalls: dict[float, float] = {}

    def recall(effort: float) -> float:
        peer.tune(effort)
        hits = sum(len(near.intersection(peer.search(query))) for near, query in zip(nearest, queries, strict=False))
        recalls[effort] = hits / sum(map(len, nearest))
        return recalls[effort]

    found = bisect_left(peer.efforts, RECALL, key=recall)
    if found == len(peer.efforts):
        raise RuntimeError(f"recall is {max(recalls.values()):.3f} at most, {RECALL} was asked")
    effort = peer.efforts[found]
    peer.tune(effort)
    return {"effort": effort, "recall": recalls[effort]}


def search_for(peer: Peer, queries: Rows, seconds: float) -> NDArray[np.float64]:
    """Latencies in ms, one query at a time."""
    latencies: list[float] = []
    deadline = time.perf_counter() + seconds
    while (before := time.perf_counter()) < deadline:
        peer.search(queries[len(latencies) % len(queries)])
        latencies.append((time.perf_counter() - before) * 1e3)
    return np.array(latencies)


def search_while_inserting(name: str, peer: Peer, data: sift.Sift, seconds: float) -> Figures:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as second:
        second.submit(os.getpid).result()  # started: what is measured is not the imports
        inserting = second.submit(insert_steadily, name, peer.address, len(data.base), seconds + 2 * INSERT_LEAD_S)
        time.sleep(INSERT_LEAD_S)
        latencies = search_for(peer, data.queries, seconds)
        per_s = inserting.result()
    return {"p99_ms_while_inserting": float(np.percentile(latencies, 99)), "inserted_per_s": per_s}


def insert_steadily(name: str, address: str, rows: int, seconds: float) -> float:
    """Insert further rows at a steady rate for a time; rows a second, fewer than asked when it takes no more."""
    more = sift.load(rows + extra_rows(seconds)).base[rows:]
    insert = WRITERS[name](address)
    started, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < seconds:
        due = min(int(elapsed * INSERT_RATE), len(more)) - done
        if due:
            insert(rows + done, np.ascontiguousarray(more[done : done + min(due, BATCH)]))
            done += min(due, BATCH)
        time.sleep(INSERT_BURST_S)
    return done / (time.perf_counter() - started)


def extra_rows(seconds: float) -> int:
    return int(INSERT_RATE * (seconds + 2 * INSERT_LEAD_S))


def measure_filtered(name: str, place: Place, seconds: float) -> list[Figures]:
    """Without a condition, then with each: the least effort that reaches the recall, and searches with it."""
    data = sift.load(place.rows)
    values = conditions.columns(data.base)
    asked: list[Below | None] = [None, *conditions.ALL]
    found: list[Figures] = []
    with ExitStack() as stack:
        peer = FILTERED[name](stack, place)
        peer.tune(max(peer.efforts))
        peer.insert_with(data.base, values)
        wait_for(lambda: peer.count() >= place.rows, "all rows")
        peer.wait_indexed()
        for condition in asked:
            numbers = conditions.picked(condition, values) if condition else np.arange(place.rows)
            truth = conditions.ground_truth(data, numbers, K)
            peer.choose(condition)
            figures: Figures = {"peer": name, "condition": str(condition or "none")}
            try:
                figures |= tune(peer, data.queries, truth)
            except RuntimeError as error:
                found.append(figures | {"problem": str(error)})
                continue
            latencies = search_for(peer, data.queries, seconds)
            figures |= {"p50_ms": float(np.median(latencies)), "p99_ms": float(np.percentile(latencies, 99))}
            found.append(figures)
    return found
