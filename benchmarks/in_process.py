"""Searches in one thread of one process: by partitions, and over FAISS alone. Part of `make bench`.

The same rows in 1, 12 and 48 partitions, as `growth.py` lays them out, and in an index as a user of FAISS would build
it (`plain_faiss.py`), tuned to the recall that ours is calibrated to. By itself, `python -m benchmarks.in_process`.
"""

import argparse
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np

from benchmarks import growth, machine, sift
from benchmarks.copies import Copies
from benchmarks.plain_faiss import PlainFaiss
from benchmarks.report import shown
from tidemark.ann.exact import use_one_thread_per_search

PARTITIONS = (1, 12, 48)
ROUNDS = 3


def figures(rows: int) -> dict[str, float]:
    """Medians in ms, their ratios, and recall; `faiss_qps` too, of one thread."""
    data = sift.load(rows)
    found = plain(data)
    quantizer = growth.trained(Copies(data), rows)
    for partitions in PARTITIONS:
        with (
            tempfile.TemporaryDirectory(prefix="tidemark-growth-") as directory,
            closing(growth.Replica(Copies(data), rows, partitions, quantizer, Path(directory))) as replica,
        ):
            measured = growth.measure(replica.mirror, data.ground_truth(), data.queries)
        found[f"p50_{partitions}_ms"], found[f"recall_{partitions}"] = measured["p50"], measured["recall"]
        found[f"p50_{partitions}_over_1"] = measured["p50"] / found["p50_1_ms"]
    del found["p50_1_over_1"]
    return found | {"p50_1_over_faiss": found["p50_1_ms"] / found["faiss_p50_ms"]}


def plain(data: sift.Sift) -> dict[str, float]:
    """FAISS alone, one thread, one query at a time."""
    made = PlainFaiss(data.base)
    made.tune(data.queries, data.ground_truth(), growth.COLLECTION.index.recall_target)
    use_one_thread_per_search()
    waits = []
    for query in np.tile(np.ascontiguousarray(data.queries), (ROUNDS, 1)):
        before = time.perf_counter()
        made.search(query[None])
        waits.append((time.perf_counter() - before) * 1e3)
    return {
        "faiss_p50_ms": float(np.median(waits)),
        "faiss_qps": 1e3 / float(np.mean(waits)),
        "faiss_recall": made.recall,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    found = figures(options.rows)
    print(f"\n{machine.heading(machine.describe(growth.SEED))}; SIFT {options.rows:,} x {sift.DIMENSION}, one thread\n")
    print("| figure | value |\n|---|---|")
    for name, value in found.items():
        print(f"| {name} | {shown(value)} |")


if __name__ == "__main__":
    main()
