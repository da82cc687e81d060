"""What more dimensions cost: text embeddings of 384-d, the same rotated into 768 and 1,536, beside SIFT's 128.

Part of `make bench`; by itself, `python -m benchmarks.dimensions`. A backlog is compared with one of SIFT rows that
has as many bytes, in MB a second until all is searchable; searches with those of as many SIFT rows, each calibrated
to the same recall. Rotated embeddings (`embeddings.py`) are as far from each other as the real ones; codes and
vectors are as long as any of that many dimensions.
"""

import argparse
import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks import backlog, embeddings, machine, sift
from benchmarks.client import connected
from benchmarks.deployment import Deployment, Shape
from tidemark.collection import Metric

DIMENSIONS = (384, 768, 1_536)
WARM_UP_S = 1.0


@dataclass(frozen=True, slots=True)
class Line:
    """One backlog taken in, and searched once it has come to rest; times in ms."""

    name: str
    rows: int
    dimension: int
    mb_per_s: float
    p50: float
    p99: float
    recall: float


def measure(name: str, base: NDArray[np.float32], queries: NDArray[np.float32], metric: Metric, seconds: float) -> Line:
    rows, dimension = base.shape
    truth = _truth(base, queries, metric)
    with ExitStack() as stack:
        deployment = Deployment(stack, Shape("wide", dimension, metric))
        deployment.produce(base)
        consumer = deployment.start("consumer")
        deployment.start("api")
        client = connected(deployment.port, "wide")
        stack.callback(client.close)
        rates = backlog.watch(client, "wide", rows, consumer)
        deployment.settle()
        client.measure(queries[:200], WARM_UP_S)
        latencies, found = client.measure(queries, seconds)
    near = [{f"v{row}" for row in line} for line in truth.tolist()]
    recall = sum(len(a.intersection(b)) for a, b in zip(near, found, strict=True)) / truth.size
    p50, p99 = np.percentile(latencies, (50, 99)).tolist()
    line = Line(name, rows, dimension, rates.searchable_per_s * base[0].nbytes / 1e6, p50, p99, recall)
    sys.stderr.write(f"{line}\n")
    return line


def _truth(base: NDArray[np.float32], queries: NDArray[np.float32], metric: Metric) -> NDArray[np.int64]:
    import faiss

    kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    found: NDArray[np.int64] = faiss.knn(np.ascontiguousarray(queries), np.ascontiguousarray(base), 10, kind)[1]
    return found


def lines(rows: int, seconds: float, dimensions: tuple[int, ...] = DIMENSIONS) -> list[Line]:
    """SIFT in as many rows, then each dimension after SIFT in as many bytes."""
    found = [_sift(rows, seconds)]
    for dimension in dimensions:
        found.append(_sift(rows * dimension // sift.DIMENSION, seconds))
        text = embeddings.load(rows, dimension=dimension)
        found.append(measure("text", text.base, text.queries, "cosine", seconds))
    return found


def _sift(rows: int, seconds: float) -> Line:
    data = sift.load(rows)
    return measure("SIFT", data.base, data.queries, "l2", seconds)


def figures(rows: int, seconds: float) -> dict[str, float]:
    """Of each dimension: MB a second over SIFT's at equal bytes, the median search over SIFT's at equal rows."""
    like, *pairs = lines(rows, seconds)
    found = {}
    for equal_bytes, line in zip(pairs[::2], pairs[1::2], strict=True):
        found[f"backlog_mb_{line.dimension}d_over_128d"] = line.mb_per_s / equal_bytes.mb_per_s
        found[f"search_{line.dimension}d_over_128d"] = line.p50 / like.p50
        found[f"recall_{line.dimension}d"] = line.recall
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=embeddings.ROWS)
    parser.add_argument("--seconds", type=float, default=10.0, help="of searches in each")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    found = lines(options.rows, options.seconds)
    print(f"\n{machine.heading(machine.describe(seed=0))}; seed 0\n")
    print(
        "| data | rows | dimension | backlog MB/s | search p50 ms | p99 ms | recall@10 |\n|---|---|---|---|---|---|---|"
    )
    for line in found:
        print(
            f"| {line.name} | {line.rows:,} | {line.dimension:,} | {line.mb_per_s:.0f} "
            f"| {line.p50:.2f} | {line.p99:.2f} | {line.recall:.3f} |"
        )


if __name__ == "__main__":
    main()
