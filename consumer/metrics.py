"""The consumer's own small HTTP port: Prometheus metrics and health, both from the published status.

Nothing here touches the Kafka consumer or a view: a scrape cannot slow indexing. Healthy means that the loop
has turned lately, never that a broker is reachable.
"""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from consumer.pages import Page, Pages
from consumer.status import PartitionStatus, Status, WaitingStatus
from tidemark.errors import BadConfiguration

# A turn includes a checkpoint; a slow disk may take seconds over one, a wedged loop never comes back.
ALIVE_S = 60.0

_GAUGES: dict[str, tuple[str, Callable[[PartitionStatus], float | None]]] = {
    "log_end_offset": ("End of the log as last seen", lambda p: p.end),
    "applied_offset": ("Next offset to apply", lambda p: p.applied),
    "checkpoint_offset": ("Position of the newest checkpoint", lambda p: p.checkpointed),
    "committed_offset": ("Offset committed to the group", lambda p: p.committed),
    "checkpoint_age_seconds": ("Seconds since the newest checkpoint", lambda p: p.checkpoint_age_s),
    "lag_records": ("Offsets not applied yet", lambda p: max(0, p.end - p.applied)),
    "live_rows": ("Rows that can be found", lambda p: p.live_rows),
    "dead_rows": ("Rows replaced or deleted, not yet merged away", lambda p: p.dead_rows),
    "unbuilt_rows": ("Rows without an index yet", lambda p: p.unbuilt_rows),
    "segments": ("Segments", lambda p: p.segments),
    "quantizer_version": ("Newest version of the quantizer, 0 for none", lambda p: p.quantizer),
    "quantizer_recall": ("Recall@10 by its codes, on the rows that it was trained on", lambda p: p.quantizer_recall),
    "uncoded_rows": ("Rows of segments without codes of the newest quantizer", lambda p: p.uncoded_rows),
    "segment_recall_min": ("Least recall@10 of a segment with a graph", lambda p: min(p.recalls, default=None)),
    "segments_below_recall_target": (
        "Segments whose graph misses the recall target",
        lambda p: sum(recall < p.recall_target for recall in p.recalls),
    ),
    "owner_epoch": ("Epoch of this writer", lambda p: p.writer_epoch),
    "partition_held": ("1 while reading is held back at a bound", lambda p: int(p.held)),
    "checkpoint_problem": ("1 while checkpoints or reading stand still", lambda p: int(p.problem is not None)),
}
_LABELS = ["collection", "partition"]


class StatusCollector(Collector):
    """Turns the newest status into metric families at each scrape."""

    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status

    def collect(self) -> Iterator[Any]:
        status = self._status()
        for name, (text, value) in _GAUGES.items():
            gauge = GaugeMetricFamily(f"tidemark_{name}", text, labels=_LABELS)
            for partition in status.partitions:
                if (found := value(partition)) is not None:
                    gauge.add_metric([partition.collection, str(partition.partition)], found)
            yield gauge
        applied = CounterMetricFamily("tidemark_records_applied", "Records read from the log", labels=_LABELS)
        bad = CounterMetricFamily("tidemark_dead_letters", "Bad records", labels=[*_LABELS, "reason"])
        for partition in status.partitions:
            labels = [partition.collection, str(partition.partition)]
            applied.add_metric(labels, partition.records)
            for reason, count in partition.bad.items():
                bad.add_metric([*labels, reason], count)
        refused = GaugeMetricFamily("tidemark_partition_refused", "1 while it cannot be taken over", labels=_LABELS)
        for waiting in status.waiting:
            refused.add_metric([waiting.collection, str(waiting.partition)], int(waiting.problem is not None))
        yield applied
        yield bad
        yield refused
        yield GaugeMetricFamily("tidemark_building_rows", "Rows being built now", value=status.building_rows)
        yield GaugeMetricFamily(
            "tidemark_partitions_not_taken_over", "Assigned, but not owned", value=len(status.waiting)
        )


def health(status: Status) -> tuple[int, dict[str, Any]]:
    """HTTP status and body of /healthz."""
    silent = time.monotonic() - status.turned_at
    told: list[PartitionStatus | WaitingStatus] = [*status.waiting, *status.partitions]
    body = {
        "alive": silent < ALIVE_S,
        "turned_seconds_ago": round(silent, 3),
        "partitions": len(status.partitions),
        "topics": status.topics,
        "problems": {
            f"{each.topic}[{each.partition}]": {"problem": each.problem, "since_ms": each.since_ms}
            for each in told
            if each.problem
        },
    }
    return (200 if silent < ALIVE_S else 503), body


def serve(status: Callable[[], Status], host: str, port: int) -> Pages:
    """Serve /metrics and /healthz from a daemon thread; raises BadConfiguration when the port is in use."""
    registry = CollectorRegistry()
    registry.register(StatusCollector(status))
    ProcessCollector(registry=registry)

    def metrics() -> Page:
        return Page(generate_latest(registry), "text/plain; version=0.0.4; charset=utf-8")

    def healthz() -> Page:
        code, body = health(status())
        return Page(json.dumps(body).encode(), "application/json", code)

    try:
        return Pages(host, port, {"/metrics": metrics, "/healthz": healthz})
    except OSError as error:
        raise BadConfiguration(
            f"consumer.port: cannot listen on {host}:{port} ({error.strerror}): stop what uses it, or set another port"
        ) from error
