"""Backlogs beyond the bounds of consumer and replica: taken in whole, with every kind of index, and how fast.

Part of `make bench`: three times `consumer.unbuilt_rows_max` with a small cap for each kind, and three million rows
with the caps as they are. Those are 2.5 million distinct rows of SIFT, of which the first half million comes again
under new ids. By itself, `python -m benchmarks.backlog --rows 1000000 --partitions 12`, also for many partitions.
Nothing goes on for long here: whoever stands still ends the run with an error that says where.
"""

import argparse
import math
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from benchmarks import machine, sift
from benchmarks.client import SearchClient, connected
from benchmarks.deployment import Deployment, Shape
from cli.local_kafka import LocalKafka
from tidemark.collection import IndexKind, IndexParameters

ROWS, DISTINCT = 3_000_000, 2_500_000
CAPS = 3  # a backlog is so many times its cap
# A merge of a million rows takes 15 s on two cores that it shares.
STILL_S_MAX = 180.0
LOG_SHOWN = 2_000  # characters of each service's, when nothing moves


@dataclass(frozen=True, slots=True)
class Rates:
    """Rows a second: from the last answer without any row to all searchable, and to all in segments with an index."""

    searchable_per_s: float
    built_per_s: float


def watch(
    client: SearchClient,
    collection: str,
    rows: int,
    consumer: "subprocess.Popen[bytes]",
    kind: IndexKind = "ivfpq",
) -> Rates:
    """Wait until so many rows, one an offset, are searchable and built; raises RuntimeError when nothing moves.

    Without an index (kind flat) rows count as built when a checkpoint has them; so do the last few of a partition.
    """
    started = moved = time.perf_counter()
    searchable, known = 0.0, None
    while True:
        asked = time.perf_counter()
        lag = client.get(f"/collections/{collection}/lag")
        now = time.perf_counter()
        applied, checkpointed = (_sum(lag, name) for name in ("applied_position", "checkpointed_position"))
        if not applied:
            started = asked  # nothing was searchable yet when this was answered
        if not searchable and applied >= rows:
            searchable = now
        few = math.inf if kind == "flat" else IndexParameters().ann_rows_min * len(lag["partitions"])
        if searchable and checkpointed >= rows and lag["unbuilt_rows"] < few:
            return Rates(applied / (searchable - started), applied / (now - started))
        state = (applied, checkpointed, lag["unbuilt_rows"])
        if state != known:
            known, moved = state, now
        if now - moved > STILL_S_MAX or consumer.poll() is not None:
            raise RuntimeError(
                f"{collection}: nothing has moved for {now - moved:.0f} s: of {rows} rows {applied} are searchable, "
                f"{checkpointed} in a checkpoint, {lag['unbuilt_rows']} without an index"
            )
        time.sleep(0.01 if not searchable else 0.1)


def _sum(lag: dict[str, Any], name: str) -> int:
    return sum(partition[name] or 0 for partition in lag["partitions"])


@dataclass(frozen=True, slots=True)
class Backlog:
    """A topic of `rows` rows before any service runs. `cap`: of rows without an index, in consumer and replica."""

    rows: int
    kind: IndexKind = "ivfpq"
    cap: int | None = None
    partitions: int = 1

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.rows}-{self.partitions}"

    @contextmanager
    def taken_in(self, data: sift.Sift, kafka: LocalKafka | None = None) -> Iterator[tuple[SearchClient, Rates]]:
        """The rates at which the real services took it in, which still run until the context ends."""
        with ExitStack() as stack:
            shape = Shape(self.name, sift.DIMENSION, "l2", self.partitions, self.kind)
            deployment = Deployment(stack, shape, kafka)
            for first in range(0, self.rows, len(data.base)):
                deployment.produce(data.base[: self.rows - first], first)
            consumer = deployment.start("consumer", **self._caps())
            deployment.start("api", **self._caps())
            client = connected(deployment.port, self.name)
            stack.callback(client.close)
            try:
                rates = watch(client, self.name, self.rows, consumer, self.kind)
            except RuntimeError as error:
                raise RuntimeError(f"{error}\n{deployment.logs()}") from None
            yield client, rates

    def _caps(self) -> dict[str, str]:
        """Settings of both services."""
        if self.cap is None:
            return {}
        bounds = {
            "CONSUMER__UNBUILT_ROWS_MAX": self.cap,
            "API__TAIL_ROWS_MAX": self.cap,
            "CHECKPOINT__ROWS": self.cap // 4,
        }
        return {f"TIDEMARK_{name}": f"{bound}" for name, bound in bounds.items()}


def figures(kafka: LocalKafka, cap: int, large: bool) -> dict[str, float]:
    """The lines of `make bench`; `large`: with the three million rows, which take some minutes."""
    found: dict[str, float] = {}
    for kind in get_args(IndexKind):
        small = Backlog(CAPS * cap, kind, cap)
        with small.taken_in(sift.load(small.rows), kafka) as (_, rates):
            found[f"backlog_{kind}_built_per_s"] = rates.built_per_s
    if large:
        with Backlog(ROWS).taken_in(sift.load(DISTINCT), kafka) as (_, rates):
            found["backlog_3m_searchable_per_s"] = rates.searchable_per_s
            found["backlog_3m_built_per_s"] = rates.built_per_s
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--kind", choices=get_args(IndexKind), default="ivfpq")
    parser.add_argument("--cap", type=int, help="of rows without an index; the settings' defaults if not given")
    parser.add_argument("--partitions", type=int, default=1)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    backlog = Backlog(options.rows, options.kind, options.cap, options.partitions)
    data = sift.load(min(options.rows, DISTINCT))
    with backlog.taken_in(data) as (client, rates):
        latencies, _ = client.measure(data.queries, 5.0)
    p50, p99 = np.percentile(latencies, (50, 99)).tolist()
    print(f"\n{machine.heading(machine.describe(seed=0))}; seed 0\n")
    print("| rows | kind | cap | partitions | searchable /s | built /s | search p50 ms | p99 ms |")
    print("|---|---|---|---|---|---|---|---|")
    print(
        f"| {backlog.rows:,} | {backlog.kind} | {backlog.cap or 'default'} | {backlog.partitions} "
        f"| {rates.searchable_per_s:,.0f} | {rates.built_per_s:,.0f} | {p50:.2f} | {p99:.2f} |"
    )


if __name__ == "__main__":
    main()
