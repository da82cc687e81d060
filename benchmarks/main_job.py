"""The main job measured end to end in one run on a real Kafka: `make bench` (1 million rows), `make bench-quick`.

Broker, consumer, builder, api, load and search client share the machine's cores, so read the ratios: bare and
ours, idle and under ingestion, are measured minutes apart on the same machine. While searches are measured under
ingestion the broker and the load, which are on other machines in life, have a low priority. `report.py` prints the
README's table and writes benchmarks/results/latest.json; processes that load what is measured are `clients.py` and
`load.py`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition
from numpy.typing import NDArray

from benchmarks import (
    backlog,
    building,
    churn,
    dimensions,
    embeddings,
    fresh,
    in_process,
    machine,
    partitioned,
    sift,
    visibility,
)
from benchmarks.client import SearchClient, connected
from benchmarks.clients import Clients
from benchmarks.deployment import Deployment, Shape
from benchmarks.report import report
from cli.ports import free_port
from cli.sample import Encoder, documents
from tidemark.kafka_settings import consumer_settings, producer_settings

TOPIC = "sift"
CLIENTS = 8
VISIBLE_RATE, INGEST_RATE = 5_000, 20_000
LOAD_LEAD_S = 3.0  # the load has started, and the first of it has been applied, before anything is measured


class Run:
    """One run: a deployment of its own, and the figures found so far."""

    def __init__(self, rows: int, seconds: float, stack: ExitStack, long_s: float = 0.0) -> None:
        self.rows, self.seconds, self.long_s = rows, seconds, long_s
        self.figures: dict[str, float] = {}
        self.data = sift.load(rows)
        self.deployment = Deployment(stack, Shape(TOPIC, sift.DIMENSION, "l2"))

    def client(self) -> SearchClient:
        return self.deployment.client()

    def settle(self) -> None:
        self.deployment.settle()

    # -- the parts, in order -------------------------------------------------------------------------------

    def start_empty(self) -> None:
        """A replica that has nothing to serve: what memory is counted from."""
        api = self.deployment.start("api")
        self.deployment.ready().close()
        self.figures["empty_private_rss_mb"] = machine.private_rss_mb(api.pid)
        self.deployment.stop(api)

    def produce_backlog(self) -> None:
        producer = self.deployment.producer()
        calls = np.empty(self.rows, np.int64)
        for row in range(self.rows):
            value = self.data.base[row].tobytes()
            before = time.perf_counter_ns()
            while True:
                try:
                    producer.produce(TOPIC, value, f"v{row}")
                    break
                except BufferError:
                    producer.poll(0.1)
                    before = time.perf_counter_ns()
            calls[row] = time.perf_counter_ns() - before
            if row % 1_000 == 0:
                producer.poll(0)
        producer.flush()
        self.figures["produce_p50_ms"], self.figures["produce_p99_ms"] = _percentiles(calls / 1e6)

    def consume_bare(self) -> None:
        """The fastest loop of a Python consumer over the same topic: tuned settings, nothing done, best of three."""
        rates = []
        for _ in range(3):
            consumer = Consumer({**consumer_settings(self.deployment.settings.kafka), "group.id": "bare"})
            consumer.assign([TopicPartition(TOPIC, 0, 0)])
            consumer.consume(1, 10)
            started, done = time.perf_counter(), 1
            while done < self.rows:
                done += len(consumer.consume(10_000, 0.1))
            rates.append(done / (time.perf_counter() - started))
            consumer.close()
        self.figures["bare_consume_per_s"] = max(rates)

    def index_backlog(self) -> None:
        """From the last answer without any row to all rows searchable, then to all rows in built segments."""
        self._consumer = self.deployment.start("consumer")
        self._api = self.deployment.start("api")
        client, figures = connected(self.deployment.port, "sift"), self.figures
        rates = backlog.watch(client, "sift", self.rows, self._consumer)
        client.close()
        figures["searchable_per_s"], figures["built_per_s"] = rates.searchable_per_s, rates.built_per_s
        figures["searchable_over_consume"] = figures["searchable_per_s"] / figures["bare_consume_per_s"]

    def search_idle(self) -> None:
        truth = self.data.ground_truth()
        client = self.client()
        client.measure(self.data.queries[:200], 0.5)
        latencies, found = client.measure(self.data.queries, self.seconds)
        client.close()
        figures = self.figures
        figures["http_p50_ms"], figures["http_p99_ms"] = _percentiles(latencies)
        figures["http_qps"] = 1e3 / latencies.mean()
        hits = sum(len({f"v{row}" for row in line.tolist()} & set(ids)) for line, ids in zip(truth, found, strict=True))
        figures["recall_sift"] = hits / truth.size

    def search_in_process(self) -> None:
        """By FAISS alone, and by us without HTTP, also in many partitions."""
        self.figures |= in_process.figures(self.rows)
        self.figures["http_over_faiss"] = self.figures["http_qps"] / self.figures["faiss_qps"]

    def saturate(self) -> None:
        """8 clients search at once, over what FAISS calls alone would do on all cores.

        The clients run on the cores they measure; `clients_cpu_share` says how much of them they take. Searched is
        a replica of its own with one HTTP worker per core (`api.workers = 0`; the default is one) and else the
        defaults, beside the one that all other figures are of, which is idle meanwhile.
        """
        port = free_port()
        api = self.deployment.start("api", TIDEMARK_API__WORKERS="0", TIDEMARK_API__PORT=str(port))
        self.deployment.ready(port).close()
        time.sleep(2.0)  # one worker is ready, the others may not listen yet
        with Clients(CLIENTS, port, "sift", self.rows) as clients:
            clients.start(2.0)  # mapped pages are read for the first time
            clients.wait()
            clients.start(self.seconds)
            found = clients.wait()
        self.deployment.stop(api)
        cores, figures = os.cpu_count() or 1, self.figures
        figures["http_qps_8_clients"] = sum(each.searches / each.seconds for each in found)
        figures["http_8_over_cores"] = figures["http_qps_8_clients"] / (cores * figures["faiss_qps"])
        figures["clients_cpu_share"] = sum(each.cpu_s / each.seconds for each in found) / cores

    def search_under_ingest(self) -> None:
        assert self.deployment.kafka.pid is not None
        machine.give_way(self.deployment.kafka.pid)
        client, figures = self.client(), self.figures
        every = os.sched_getaffinity(0)
        latencies = self._under_ingest(client, every, VISIBLE_RATE)
        figures["http_ingest_5000_p50_ms"], figures["http_ingest_5000_p99_ms"] = _percentiles(latencies)
        figures["search_p99_ingest_5000_over_idle"] = figures["http_ingest_5000_p99_ms"] / figures["http_p99_ms"]
        latencies = self._under_ingest(client, every)
        client.close()
        figures["http_ingest_p50_ms"], figures["http_ingest_p99_ms"] = _percentiles(latencies)
        figures["search_p99_ingest_over_idle"] = figures["http_ingest_p99_ms"] / figures["http_p99_ms"]

    def search_under_long_ingest(self) -> None:
        """A client that never pauses, minutes long: the median of the last fifth over that of the first."""
        client, window = self.client(), self.long_s / 5
        load_process = self._load(INGEST_RATE, self.long_s + LOAD_LEAD_S + 1.0)
        time.sleep(LOAD_LEAD_S)
        started, medians = time.perf_counter(), []
        while time.perf_counter() - started < self.long_s:
            medians.append(float(np.median(client.measure(self.data.queries, window)[0])))
        load_process.communicate()
        client.close()
        self.figures["long_ingest_first_p50_ms"], self.figures["long_ingest_last_p50_ms"] = medians[0], medians[-1]
        self.figures["long_ingest_last_over_first"] = medians[-1] / medians[0]

    def search_under_ingest_apart(self) -> None:
        """The same with searches and their client on one core, all else on the others (`api.cpus`), idle there too."""
        first, *others = sorted(os.sched_getaffinity(0))
        if not others:
            return
        assert self.deployment.kafka.pid is not None
        machine.keep_to(self.deployment.kafka.pid, others)
        rest = ",".join(map(str, others))
        self.deployment.stop(self._api)
        self.deployment.stop(self._consumer)
        self._consumer = self.deployment.start("consumer", TIDEMARK_CONSUMER__CPUS=rest)
        self._api = self.deployment.start("api", TIDEMARK_API__CPUS=str(first), TIDEMARK_API__FOLLOWER_CPUS=rest)
        client = self.deployment.ready()
        self.settle()
        os.sched_setaffinity(0, {first})  # this thread alone
        client.measure(self.data.queries[:500], 1.0)
        idle, _ = client.measure(self.data.queries, self.seconds / 2)
        busy = self._under_ingest(client, others)
        os.sched_setaffinity(0, {first, *others})
        client.close()
        figures = self.figures
        figures["apart_idle_p50_ms"], figures["apart_idle_p99_ms"] = _percentiles(idle)
        figures["apart_ingest_p50_ms"], figures["apart_ingest_p99_ms"] = _percentiles(busy)
        figures["apart_p99_ingest_over_idle"] = figures["apart_ingest_p99_ms"] / figures["apart_idle_p99_ms"]

    def _under_ingest(
        self, client: SearchClient, load_cpus: Iterable[int], rate: int = INGEST_RATE
    ) -> NDArray[np.float64]:
        """Latencies in ms of searches while so many records a second arrive."""
        load_process = self._load(rate, self.seconds + LOAD_LEAD_S + 1.0)
        os.sched_setaffinity(load_process.pid, load_cpus)
        time.sleep(LOAD_LEAD_S)
        latencies, _ = client.measure(self.data.queries, self.seconds)
        done = json.loads(load_process.communicate()[0])
        if rate == INGEST_RATE:
            self.figures["ingested_per_s"] = done["records"] / done["seconds"]
        return latencies

    def _load(self, rate: int, seconds: float) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "benchmarks.load", self.deployment.kafka.bootstrap_servers, TOPIC]
        command += ["--rate", str(rate), "--seconds", str(seconds), "--rows", str(min(self.rows, 200_000))]
        return subprocess.Popen(command, stdout=subprocess.PIPE)

    def visibility(self) -> None:
        """5,000 records a second while one client searches; each is visible when an answer's position has passed it."""
        producer = Producer(producer_settings(self.deployment.settings.kafka))
        producer.produce(TOPIC, self.data.base[0].tobytes(), "v0")
        producer.flush()  # connected: what is measured is not the first second of a producer
        with Clients(1, self.deployment.port, "sift", self.rows) as searching:
            searching.start(self.seconds + 6.0)
            time.sleep(1.0)
            sent, took_s = visibility.send(producer, TOPIC, self.data.base, VISIBLE_RATE, self.seconds)
            found = searching.wait()[0]
        waits = visibility.waits_ms(sent, found.seen)
        self.figures["visible_p50_ms"], self.figures["visible_p99_ms"] = _percentiles(waits)
        self.figures["visible_at_per_s"] = len(sent) / took_s

    def restart(self) -> None:
        """Right after ingestion, while the builder is at work and a checkpoint's rows are read again; then settled."""
        for name in ("ready_after_ingest_s", "ready_s"):
            self.deployment.stop(self._api)
            started = time.perf_counter()
            self._api = self.deployment.start("api")
            client = self.deployment.ready()
            self.figures[name] = time.perf_counter() - started
            if name != "ready_s":
                self.settle()
        client.measure(self.data.queries[:500], 1.0)
        client.close()
        figures = self.figures
        figures["private_rss_mb"] = machine.private_rss_mb(self._api.pid) - figures["empty_private_rss_mb"]
        figures["rss_mb"] = machine.rss_mb(self._api.pid)

    def backlogs(self) -> None:
        """Backlogs beyond the caps, on topics of their own; last, because all services of the other parts end."""
        self.deployment.stop(self._api)
        self.deployment.stop(self._consumer)
        large = self.rows >= 1_000_000
        self.figures |= backlog.figures(self.deployment.kafka, min(30_000, self.rows // 10), large)


def recall_of_text() -> float:
    """recall@10 of an index over the sample documents' vectors, which are too few for one by default."""
    found = documents()
    vectors = Encoder.fit([document.text for document in found])[1]
    held_out = np.random.default_rng(0).choice(len(vectors), 500, replace=False)
    rows = np.ascontiguousarray(np.delete(vectors, held_out, axis=0))
    queries = np.ascontiguousarray(vectors[held_out])
    return fresh.recall(rows, queries, "cosine", seed=0)


def recall_of_churn() -> float:
    """The least recall@10 of any step of the runbooks of `make bench-churn`, smaller."""
    steps = [step for name in churn.RUNBOOKS for step in churn.run(name, rows=100_000, steps=10)]
    return min(step["recall"] for step in steps)


def _percentiles(milliseconds: Any) -> tuple[float, float]:
    return float(np.percentile(milliseconds, 50)), float(np.percentile(milliseconds, 99))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="100,000 rows and short measurements")
    parser.add_argument("--rows", type=int, default=1_000_000)
    arguments = parser.parse_args()
    rows, seconds, long_s = (100_000, 5.0, 20.0) if arguments.quick else (arguments.rows, 20.0, 300.0)
    os.environ["OMP_NUM_THREADS"] = "1"
    with ExitStack() as stack:
        run = Run(rows, seconds, stack, long_s)
        _timed(run.start_empty)
        for part in (run.produce_backlog, run.consume_bare, run.index_backlog, run.settle, run.search_idle):
            _timed(part)
        for part in (run.search_in_process, run.saturate, run.visibility, run.settle, run.search_under_ingest):
            _timed(part)
        for part in (run.restart, run.search_under_ingest_apart, run.search_under_long_ingest, run.backlogs):
            _timed(part)
        run.figures["recall_text"] = recall_of_text()
    run.figures |= partitioned.figures(rows, seconds)
    if embeddings.made():
        run.figures |= dimensions.figures(min(rows, embeddings.ROWS), seconds)
    if not arguments.quick:
        run.figures["recall_churn_min"] = recall_of_churn()
    run.figures["build_over_faiss"] = building.over_faiss(min(rows, 200_000))["build_over_faiss"]
    report(run.figures, rows)


def _timed(part: Any) -> None:
    started = time.perf_counter()
    part()
    sys.stderr.write(f"{part.__name__}: {time.perf_counter() - started:.1f} s\n")


if __name__ == "__main__":
    main()
