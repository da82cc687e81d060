"""Prometheus metrics of the api: histograms of requests and searches, and the followers' state at each scrape.

Labels are collection, partition, route and status; never an id.
"""

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from api.followed import Followed
from api.freshness import BUCKETS_S, Waits
from api.serving import Serving

_BUCKETS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0)
_LABELS = ["collection", "partition"]
_TEXTS = {
    "log_end_offset": "End of the log as last seen",
    "applied_offset": "Next offset to apply",
    "checkpoint_offset": "Position of the newest manifest taken over",
    "lag_records": "Offsets not applied yet",
    "lag_seconds": "Age of the oldest record not applied",
    "live_rows": "Rows that can be found",
    "dead_rows": "Rows replaced or deleted",
    "unbuilt_rows": "Rows without an index yet",
    "segments": "Segments",
    "bad_records": "Bad records passed over (the consumer writes the dead letters)",
}


class Metrics:
    """All metrics of one process."""

    def __init__(self, serving: Serving) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "tidemark_http_requests", "HTTP requests", ["route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "tidemark_http_request_seconds",
            "Time of HTTP requests",
            ["route"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._searches = Histogram(
            "tidemark_search_seconds", "Time of searches", ["collection"], buckets=_BUCKETS, registry=self._registry
        )
        self._registry.register(_FollowerCollector(serving))
        ProcessCollector(registry=self._registry)

    def observe(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def searched(self, collection: str, seconds: float) -> None:
        self._searches.labels(collection).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _FollowerCollector(Collector):
    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def collect(self) -> Iterator[Any]:
        gauges = {name: GaugeMetricFamily(f"tidemark_{name}", text, labels=_LABELS) for name, text in _TEXTS.items()}
        visible = HistogramMetricFamily(
            "tidemark_visible_latency_seconds", "From a record's timestamp to searchable", labels=_LABELS
        )
        fetched = HistogramMetricFamily(
            "tidemark_apply_latency_seconds", "From a record's fetch to searchable", labels=_LABELS
        )
        ready = GaugeMetricFamily("tidemark_ready", "1 when caught up once", labels=["collection"])
        for name, served in self._serving.collections.items():
            ready.add_metric([name], int(served.not_ready() is None))
            for followed in served.follower.partitions:
                labels = [name, str(followed.partition[1])]
                for gauge, value in _values(followed).items():
                    if value is not None:
                        gauges[gauge].add_metric(labels, value)
                visible.add_metric(labels, _buckets(followed.freshness.visible), followed.freshness.visible.sum_s)
                fetched.add_metric(labels, _buckets(followed.freshness.fetched), followed.freshness.fetched.sum_s)
        yield from (*gauges.values(), visible, fetched, ready)


def _values(followed: Followed) -> dict[str, float | None]:
    view = followed.view
    time_lag = followed.time_lag_ms
    return {
        "log_end_offset": followed.end,
        "applied_offset": view.position,
        "checkpoint_offset": followed.checkpointed,
        "lag_records": followed.offset_lag,
        "lag_seconds": None if time_lag is None else time_lag / 1000,
        "live_rows": view.live_rows,
        "dead_rows": view.dead_rows,
        "unbuilt_rows": view.unbuilt_rows,
        "segments": len(view.searcher.segments),
        "bad_records": followed.bad_records,
    }


def _buckets(waits: Waits) -> list[tuple[str, float]]:
    total = 0
    buckets = []
    for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), waits.counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets
