"""Searches with a condition on metadata, over HTTP, beside those without: `make bench-filters`.

A million SIFT rows with the metadata of `conditions.py` in a topic of 12 partitions; one client without pause. Each
condition is searched by itself, after the searches without one, which are measured again at the end: `over unfiltered`
is over the mean of the two. `first` is the first search with a condition, when nothing about it is known yet.
recall@10 is against an exact search of the rows that the condition picks.
"""

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import conditions, machine, sift
from benchmarks.client import SearchClient
from benchmarks.conditions import Below
from benchmarks.deployment import Deployment, Shape
from benchmarks.report import reached

RECALL_REACH, RATIO_REACH = ">= 0.95", "<= 2"
RESULTS = Path(__file__).parent / "results" / "filters-latest.json"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table; times in ms. `plan`: how the api says that it searched, "" where it does not say."""

    name: str
    matches: int
    recall: float
    p50: float
    p99: float
    first: float
    plan: str


def filter_of(condition: Below) -> dict[str, Any]:
    """The condition as the api takes it."""
    return {condition.field: {"lt": condition.limit}}


def metadata(columns: conditions.Columns) -> list[bytes]:
    """One JSON object a row."""
    names = list(columns)
    lines = zip(*(columns[name].tolist() for name in names), strict=True)
    return [json.dumps(dict(zip(names, line, strict=True))).encode() for line in lines]


def measure(
    client: SearchClient, data: sift.Sift, truth: NDArray[np.int64], seconds: float, condition: Below | None
) -> Line:
    asked: Mapping[str, Any] = {"filter": filter_of(condition)} if condition else {}
    explained = client.requests(data.queries[:1], {**asked, "explain": True} if condition else asked)[0]
    before = time.perf_counter()
    answer = json.loads(client.post(explained))
    first = (time.perf_counter() - before) * 1e3
    latencies, found = client.measure(data.queries, seconds, asked=asked)
    hits = sum(len({f"v{row}" for row in near if row >= 0} & set(ids)) for near, ids in zip(truth, found, strict=True))
    p50, p99 = np.percentile(latencies, (50, 99)).tolist()
    plan = json.dumps(answer.get("plan", "")) if condition else ""
    return Line(str(condition or "no condition"), 0, hits / int((truth >= 0).sum()), p50, p99, first, plan)


def lines(rows: int, partitions: int, seconds: float) -> list[Line]:
    data = sift.load(rows)
    values = conditions.columns(data.base)
    with ExitStack() as stack:
        deployment = Deployment(stack, Shape("sift", sift.DIMENSION, "l2", partitions))
        deployment.produce(data.base, metadata=metadata(values))
        deployment.start("consumer")
        deployment.start("api")
        client = deployment.ready()
        stack.callback(client.close)
        deployment.wait_until_applied(rows)
        deployment.settle()
        everything = data.ground_truth()
        client.measure(data.queries[:500], 1.0)
        found = [_counted(measure(client, data, everything, seconds, None), rows)]
        for condition in conditions.ALL:
            numbers = conditions.picked(condition, values)
            truth = conditions.ground_truth(data, numbers)
            found.append(_counted(measure(client, data, truth, seconds, condition), len(numbers)))
        found.append(_counted(measure(client, data, everything, seconds, None), rows))
    return found


def _counted(line: Line, matches: int) -> Line:
    return Line(**{**asdict(line), "matches": matches})


def report(found: Sequence[Line], options: argparse.Namespace, load: float) -> None:
    about = machine.describe(seed=0)
    print(f"\n{machine.heading(about)}; seed 0; SIFT {options.rows:,} x {sift.DIMENSION}", end="")
    print(f", {options.partitions} partitions; load of the machine when it was started, in processes: {load:.1f}\n")
    print("| condition | matches | recall@10 | p50 ms | p99 ms | first ms | p50 over unfiltered | plan |")
    print("|---|---|---|---|---|---|---|---|")
    unfiltered = (found[0].p50 + found[-1].p50) / 2
    for line in found:
        print(
            f"| {line.name} | {line.matches:,} | {line.recall:.3f} | {line.p50:.2f} | {line.p99:.2f} "
            f"| {line.first:.1f} | {line.p50 / unfiltered:.2f} | {line.plan} |"
        )
    filtered = found[1:-1]
    recall, ratio = min(line.recall for line in filtered), max(line.p50 for line in filtered) / unfiltered
    print("\n| figure | value | reach | reached |\n|---|---|---|---|")
    print(f"| least recall with a condition | {recall:.3f} | {RECALL_REACH} | {reached(recall, RECALL_REACH)} |")
    print(f"| largest p50 over unfiltered | {ratio:.2f} | {RATIO_REACH} | {reached(ratio, RATIO_REACH)} |")
    RESULTS.parent.mkdir(exist_ok=True)
    document = {"machine": about, "load": load, "options": vars(options), "lines": [asdict(line) for line in found]}
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--partitions", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each condition")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    load = os.getloadavg()[0]
    report(lines(options.rows, options.partitions, options.seconds), options, load)


if __name__ == "__main__":
    main()
