"""Prometheus metrics of a replica: histograms of requests and searches, and the followers' state at each scrape.

Requests are counted by all HTTP workers together (prometheus_client's multiprocess mode, in files of the directory
that `counts.py` keeps), so it does not matter which of them is scraped. Labels are collection, partition, route and
status; never an id.
"""

import os
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, values
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from api.freshness import BUCKETS_S, Waits
from api.mirror import FollowerMirror, PartitionMirror, Replica
from api.status import IndexStatus

_BUCKETS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0)
_LABELS = ["collection", "partition"]
_TEXTS = {
    "log_end_offset": "End of the log as last seen",
    "applied_offset": "Next offset to apply",
    "checkpoint_offset": "Position of the newest manifest taken over",
    "lag_records": "Offsets not applied yet",
    "open_transaction_offsets": "Offsets that wait behind an open transaction",
    "lag_seconds": "Age of the oldest record not applied",
    "live_rows": "Rows that can be found",
    "dead_rows": "Rows replaced or deleted",
    "unbuilt_rows": "Rows without an index yet",
    "segments": "Segments",
    "segment_recall_min": "Least recall@10 of a segment with a graph, as measured when it was built",
    "segments_below_recall_target": "Segments whose graph misses the recall target",
    "tail_bytes": "Memory of rows and deletes that no checkpoint holds yet",
    "partition_problem": "1 while the partition does not follow its log, waits or cannot be served, else 0",
    "bad_records": "Bad records passed over (the consumer writes the dead letters)",
}
_INDEX_TEXTS = {
    "index_entries": "Rows in the collection's index, dead ones too",
    "index_dead_entries": "Dead rows in the collection's index",
    "index_bytes": "Memory of the collection's index",
    "index_quantizer_version": "The consumers' quantizer that it uses, 0 for one of the replica's own",
    "index_recall": "Recall@10 of the collection's index, as calibrated",
    "index_below_recall_target": "1 while the collection's index misses the recall target, else 0",
}


def count_as(number: int) -> None:
    """Count from now on in the file of the worker of this number; before any metric is made."""
    values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]


class Metrics:
    """What this worker counts, and the text of all workers' counts."""

    def __init__(self, replica: Replica) -> None:
        none = CollectorRegistry()  # in multiprocess mode they are read from files, not from a registry
        self._requests = Counter("tidemark_http_requests", "HTTP requests", ["route", "status"], registry=none)
        self._seconds = Histogram(
            "tidemark_http_request_seconds", "Time of HTTP requests", ["route"], buckets=_BUCKETS, registry=none
        )
        self._searches = Histogram(
            "tidemark_search_seconds", "Time of searches", ["collection"], buckets=_BUCKETS, registry=none
        )
        self._registry = CollectorRegistry()
        MultiProcessCollector(self._registry)  # type: ignore[no-untyped-call]
        self._registry.register(_FollowerCollector(replica))
        ProcessCollector(registry=self._registry, pid=os.getppid)
        ProcessCollector(registry=self._registry, namespace="tidemark_worker")

    def observe(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def searched(self, collection: str, seconds: float) -> None:
        self._searches.labels(collection).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _FollowerCollector(Collector):
    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    def collect(self) -> Iterator[Any]:
        gauges = {name: GaugeMetricFamily(f"tidemark_{name}", text, labels=_LABELS) for name, text in _TEXTS.items()}
        of_index = {
            name: GaugeMetricFamily(f"tidemark_{name}", text, labels=["collection"])
            for name, text in _INDEX_TEXTS.items()
        }
        visible = HistogramMetricFamily(
            "tidemark_visible_latency_seconds", "From a record's timestamp to searchable", labels=_LABELS
        )
        fetched = HistogramMetricFamily(
            "tidemark_apply_latency_seconds", "From a record's fetch to searchable", labels=_LABELS
        )
        ready = GaugeMetricFamily("tidemark_ready", "1 when caught up once", labels=["collection"])
        twice = GaugeMetricFamily(
            "tidemark_ids_in_two_partitions", "Ids of a sample that live in two partitions", labels=["collection"]
        )
        for name, served in self._replica.collections.items():
            ready.add_metric([name], int(served.not_ready() is None))
            if not served.is_open:
                continue
            follower = served.follower()
            twice.add_metric([name], follower.status.ids_in_two_partitions)
            if follower.status.index is not None:
                for what, figure in _index_values(follower.status.index, served.recall_target).items():
                    of_index[what].add_metric([name], figure)
            recalls = _recalls(follower)
            for partition in follower.partitions:
                status = partition.status
                labels = [name, str(partition.number)]
                for gauge, value in _values(partition, recalls[partition.number], served.recall_target).items():
                    if value is not None:
                        gauges[gauge].add_metric(labels, value)
                visible.add_metric(labels, _buckets(status.visible), status.visible.sum_s)
                fetched.add_metric(labels, _buckets(status.fetched), status.fetched.sum_s)
        yield from (*gauges.values(), *of_index.values(), visible, fetched, ready, twice)


def _recalls(follower: FollowerMirror) -> dict[int, list[float]]:
    """By partition, those of its segments that have a graph."""
    found: dict[int, list[float]] = defaultdict(list)
    for segment in follower.view.snapshot().segments if follower.view else ():
        if segment.has_graph:
            found[segment.partition].append(segment.entry.recall)
    return found


def _index_values(index: IndexStatus, recall_target: float) -> dict[str, float]:
    return {
        "index_entries": index.entries,
        "index_dead_entries": index.dead,
        "index_bytes": index.bytes,
        "index_quantizer_version": index.version,
        "index_recall": index.recall,
        "index_below_recall_target": int(index.recall < recall_target),
    }


def _values(partition: PartitionMirror, recalls: list[float], recall_target: float) -> dict[str, float | None]:
    status, time_lag = partition.status, partition.time_lag_ms
    return {
        "log_end_offset": status.end,
        "applied_offset": status.position,
        "checkpoint_offset": status.checkpointed,
        "lag_records": partition.offset_lag,
        "open_transaction_offsets": status.open_transaction_offsets,
        "lag_seconds": None if time_lag is None else time_lag / 1000,
        "live_rows": status.live_rows if status.opened else None,
        "dead_rows": status.dead_rows if status.opened else None,
        "unbuilt_rows": status.unbuilt_rows if status.opened else None,
        "segments": status.segments if status.opened else None,
        "segment_recall_min": min(recalls, default=None),
        "segments_below_recall_target": sum(each < recall_target for each in recalls) if status.opened else None,
        "tail_bytes": status.tail_bytes,
        "partition_problem": int(partition.problem is not None),
        "bad_records": status.bad_records,
    }


def _buckets(waits: Waits) -> list[tuple[str, float]]:
    total = 0
    buckets = []
    for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), waits.counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets
