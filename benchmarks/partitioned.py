"""A topic of 12 partitions with a million rows, end to end: recall, restart, and what the index costs a row.

Part of `make bench`; by itself, `python -m benchmarks.partitioned`. The rows come in three parts, each settled before
the next: 6 %, then up to half of them, for which the quantizer is trained again, then the rest, for which it is not.
`index_cpu_us_a_row` is of the third part: the CPU time of all processes from its first record until nothing is being
built any more, less that of the same rows under kind `flat`, which are applied, checkpointed and never indexed. What a
training takes is in `building.py`.
`index_bytes_a_row` is the replica's private and shared memory once it has been started again, when no vector is in
memory that is not of a file, beyond that of an empty replica: more than the index, never less.
"""

import argparse
import os
import sys
import time
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from benchmarks import machine, sift
from benchmarks.client import SearchClient
from benchmarks.deployment import Deployment, Shape
from benchmarks.report import shown
from tidemark.collection import IndexKind

PARTITIONS = 12
PARTS = (0.06, 0.5, 1.0)  # of all rows, those that are there after each part
SERVICES = ("follower", "worker", "consumer", "builder")


class Indexed:
    """A deployment that has taken in all rows and has come to rest; `cpu_us` is a row's, of the last part."""

    def __init__(self, stack: ExitStack, rows: int, partitions: int, kind: IndexKind) -> None:
        self.data = sift.load(rows)
        shape = Shape(f"sift-{kind}", sift.DIMENSION, "l2", partitions, kind)
        self.deployment = Deployment(stack, shape)
        self.empty_mb = self._empty_mb()
        self.deployment.start("consumer")
        self._api = self.deployment.start("api")
        first = 0
        for end in (int(rows * share) for share in PARTS):
            before = self._spent_s()
            self.deployment.produce(self.data.base[first:end], first)
            self.deployment.wait_until_applied(end)
            self.deployment.settle()
            self.cpu_us = (self._spent_s() - before) / (end - first) * 1e6
            first = end

    def _spent_s(self) -> float:
        spent = self.deployment.cpu_s()
        return sum(spent.get(role, 0.0) for role in SERVICES)

    def _empty_mb(self) -> float:
        api = self.deployment.start("api")
        self.deployment.ready().close()
        found = machine.private_rss_mb(api.pid)
        self.deployment.stop(api)
        return found

    def recall(self, client: SearchClient) -> float:
        truth: NDArray[np.int64] = self.data.ground_truth()
        _, found = client.measure(self.data.queries, 0.0)
        near = [{f"v{row}" for row in line} for line in truth.tolist()]
        return sum(len(a.intersection(b)) for a, b in zip(near, found, strict=True)) / truth.size

    def restarted(self) -> tuple[float, SearchClient]:
        """Seconds until the api is ready again, and a client of it."""
        self.deployment.stop(self._api)
        started = time.perf_counter()
        self._api = self.deployment.start("api")
        client = self.deployment.ready()
        return time.perf_counter() - started, client

    def memory_mb(self) -> float:
        return machine.private_rss_mb(self._api.pid) - self.empty_mb


def figures(rows: int, seconds: float, partitions: int = PARTITIONS) -> dict[str, float]:
    """`seconds`: of searches for the latencies."""
    with ExitStack() as stack:
        unindexed_us = Indexed(stack, rows, partitions, "flat").cpu_us
    with ExitStack() as stack:
        indexed = Indexed(stack, rows, partitions, "ivfpq")
        found = {"index_cpu_us_a_row": indexed.cpu_us - unindexed_us}
        found["partitioned_ready_s"], client = indexed.restarted()
        stack.callback(client.close)
        found["partitioned_recall"] = indexed.recall(client)
        latencies, _ = client.measure(indexed.data.queries, seconds)
        found["partitioned_p50_ms"], found["partitioned_p99_ms"] = np.percentile(latencies, (50, 99)).tolist()
        found["index_bytes_a_row"] = indexed.memory_mb() * 2**20 / rows
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--partitions", type=int, default=PARTITIONS)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    found = figures(options.rows, options.seconds, options.partitions)
    sys.stdout.write(f"\n{machine.heading(machine.describe(seed=0))}; seed 0\n")
    print(f"SIFT {options.rows:,} x {sift.DIMENSION}, {options.partitions} partitions\n\n| figure | value |\n|---|---|")
    for name, value in found.items():
        print(f"| {name} | {shown(value)} |")


if __name__ == "__main__":
    main()
