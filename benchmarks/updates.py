"""Searches while rows are updated, everything on the same cores: `make bench-updates`, the README's first table.

Real text embeddings (`embeddings.py`) in a topic of 12 partitions, and of one, for comparison. Broker, consumer and
api run with their defaults; one client searches over HTTP with 2 ms between an answer and the next search. It does so
with nothing else going on, at 1,000 and at 5,000 updates a second (`swaps.py`), and idle again, REST_S after the last
update: some minutes each. At 1,000 a second it is also seen what the processes take when nobody searches.

Broker and load stand for other machines, but take their cores from the same two; the load alone has a low priority.
recall@10 is of default searches against all vectors, before the updates and after them.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import embeddings, machine, swaps
from benchmarks.client import SearchClient
from benchmarks.deployment import Deployment, Shape, cores
from benchmarks.report import reached, shown

TOPIC = "text"
PAUSE_S, REST_S, LEAD_S, WARM_UP_S = 0.002, 10.0, 3.0, 2.0
RATES = (1_000, 5_000)
QUIET_S_MAX = 60.0  # of updates that nobody searches during
PARTITIONS = (12, 1)
ROLES = ("follower", "worker", "consumer", "builder", "broker")
RESULTS = Path(__file__).parent / "results" / "updates-latest.json"
# figure: what it must reach; of 12 partitions
REACH = {
    "p50_at_1000_over_idle": "<= 1.3",
    "p99_at_1000_over_idle": "<= 1.6",
    "p50_at_5000_over_idle": "<= 1.5",
    "p99_at_5000_over_idle": "<= 2.5",
    "p50_afterwards_over_idle": "<= 1.1",
    "p50_idle_over_1_partition": "<= 1.2",
    "follower_cores_at_1000_unsearched": "<= 0.15",
    "follower_cores_at_1000": "<= 0.2",
    "follower_cores_unsearched_over_1_partition": "<= 1.3",
    "recall": ">= 0.95",
    "recall_afterwards": ">= 0.95",
}


@dataclass(frozen=True, slots=True)
class Phase:
    """One line of the table: latencies in ms (None where nobody searched), and the cores each process took."""

    name: str
    p50: float | None
    p99: float | None
    searches_per_s: float
    updates_per_s: float
    cores: dict[str, float]
    segments: int
    unbuilt_rows: int


class Run:
    """A deployment with `rows` embeddings loaded; `owners` says which embedding each id has by now."""

    def __init__(self, stack: ExitStack, partitions: int, rows: int, dimension: int) -> None:
        self.data = embeddings.load(rows, dimension=dimension)
        self.owners = np.arange(rows)
        self.deployment = Deployment(stack, Shape(TOPIC, dimension, "cosine", partitions))
        self._seed = 0
        self.deployment.produce(self.data.base)
        np.save(self.deployment.directory / "vectors.npy", self.data.base)
        for module in ("consumer", "api"):
            self.deployment.start(module)
        self.client: SearchClient = self.deployment.ready()
        stack.callback(self.client.close)
        self.deployment.wait_until_applied(rows)
        self.deployment.settle()

    def phase(self, name: str, seconds: float, rate: int = 0, searched: bool = True) -> Phase:
        """Search, or wait, for so many seconds while so many updates a second arrive."""
        with self._updated(rate, seconds + LEAD_S) as updated:
            if rate:
                time.sleep(LEAD_S)
            if searched:
                self.client.measure(self.data.queries[:200], WARM_UP_S, PAUSE_S)
            waits = np.empty(0)
            with cores(self.deployment) as taken:
                if searched:
                    waits, _ = self.client.measure(self.data.queries, seconds, PAUSE_S)
                else:
                    time.sleep(seconds)
            state = self.deployment.index_state()
        p50, p99 = np.percentile(waits, (50, 99)).tolist() if searched else (None, None)
        found = Phase(name, p50, p99, len(waits) / seconds, updated.get("per_s", 0.0), taken, **state)
        sys.stderr.write(f"{found}\n")
        return found

    @contextmanager
    def _updated(self, rate: int, seconds: float) -> Iterator[dict[str, float]]:
        """Updates at this rate, in the background; the context ends after the last of them."""
        found: dict[str, float] = {}
        if not rate:
            yield found
            return
        self._seed += 1
        directory = self.deployment.directory
        np.save(directory / "owners.npy", self.owners)
        command = [sys.executable, "-m", "benchmarks.swaps", self.deployment.kafka.bootstrap_servers, TOPIC]
        command += [str(directory / "vectors.npy"), str(directory / "owners.npy")]
        command += ["--rate", f"{rate}", "--seconds", f"{seconds + WARM_UP_S}", "--seed", f"{self._seed}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            yield found
            done = json.loads(process.communicate()[0])
        found["per_s"] = done["updates"] / done["seconds"]
        self.owners = swaps.owners_after(self.owners, self._seed, done["updates"])

    def recall(self) -> float:
        """recall@10 of default searches against the vectors that the ids have now."""
        _, found = self.client.measure(self.data.queries, 0.0)
        ids = np.argsort(self.owners)  # of each vector; owners is a permutation
        truth = ids[self.data.ground_truth()]
        near = [{f"v{id_}" for id_ in line} for line in truth.tolist()]
        return sum(len(a.intersection(b)) for a, b in zip(near, found, strict=True)) / truth.size


def measure(partitions: int, rows: int, dimension: int, seconds: float) -> tuple[list[Phase], dict[str, float]]:
    """All phases with so many partitions, and recall before and after."""
    with ExitStack() as stack:
        run = Run(stack, partitions, rows, dimension)
        recall = {"recall": run.recall()}
        phases = [run.phase("idle", seconds)]
        quiet = min(seconds, QUIET_S_MAX)
        phases.append(run.phase(f"{RATES[0]:,} updates/s, unsearched", quiet, RATES[0], searched=False))
        phases += [run.phase(f"{rate:,} updates/s", seconds, rate) for rate in RATES]
        time.sleep(REST_S)
        phases.append(run.phase("idle afterwards", seconds))
        return phases, recall | {"recall_afterwards": run.recall()}


def figures(phases: Sequence[Phase], recall: dict[str, float]) -> dict[str, float]:
    """The ratios of one number of partitions."""
    idle, unsearched, *loaded, afterwards = phases
    assert idle.p50 and idle.p99 and afterwards.p50
    found = dict(recall)
    for rate, phase in zip(RATES, loaded, strict=True):
        assert phase.p50 and phase.p99
        found[f"p50_at_{rate}_over_idle"] = phase.p50 / idle.p50
        found[f"p99_at_{rate}_over_idle"] = phase.p99 / idle.p99
        found[f"follower_cores_at_{rate}"] = phase.cores["follower"]
    found[f"follower_cores_at_{RATES[0]}_unsearched"] = unsearched.cores["follower"]
    found["p50_afterwards_over_idle"] = afterwards.p50 / idle.p50
    return found


# -- the report --------------------------------------------------------------------------------------------------------


def report(found: dict[int, tuple[list[Phase], dict[str, float]]], options: argparse.Namespace, load: float) -> None:
    about = machine.describe(seed=0)
    print(f"\n{machine.heading(about)}; seed 0; {options.rows:,} text embeddings x {options.dimension}, cosine")
    print(f"{options.minutes:g} minutes each; load of the machine when it was started, in processes: {load:.1f}\n")
    print(f"| partitions | | p50 ms | p99 ms | searches/s | {' | '.join(ROLES)} | segments | unbuilt rows |")
    print("|---|---|---|---|---|" + "---|" * (len(ROLES) + 2))
    for partitions, (phases, _) in found.items():
        for phase in phases:
            print(f"| {partitions} | {' | '.join(_cells(phase))} |")
    ratios = {partitions: figures(*measured) for partitions, measured in found.items()}
    for partitions, its in ratios.items():
        if partitions != 1 and 1 in found:
            its["p50_idle_over_1_partition"] = (found[partitions][0][0].p50 or 0.0) / (found[1][0][0].p50 or 1.0)
            unsearched = f"follower_cores_at_{RATES[0]}_unsearched"
            its["follower_cores_unsearched_over_1_partition"] = its[unsearched] / ratios[1][unsearched]
    judged = PARTITIONS[0] if PARTITIONS[0] in ratios else max(ratios)
    print(f"\n| figure | {' | '.join(f'{p} partitions' for p in ratios)} | reach | reached by {judged} |")
    print("|---|" + "---|" * (len(ratios) + 2))
    for name, reach in REACH.items():
        values = " | ".join(shown(its[name]) if name in its else "" for its in ratios.values())
        value = ratios[judged].get(name)
        print(f"| {name} | {values} | {reach} | {'' if value is None else reached(value, reach)} |")
    RESULTS.parent.mkdir(exist_ok=True)
    lines = {partitions: [asdict(phase) for phase in phases] for partitions, (phases, _) in found.items()}
    document = {"machine": about, "load": load, "options": vars(options), "phases": lines, "figures": ratios}
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")


def _cells(phase: Phase) -> list[str]:
    def cell(value: float | None, digits: int = 2) -> str:
        return "" if value is None else f"{value:,.{digits}f}"

    return [
        phase.name,
        cell(phase.p50),
        cell(phase.p99),
        cell(phase.searches_per_s, 0),
        *(cell(phase.cores.get(role)) for role in ROLES),
        f"{phase.segments}",
        f"{phase.unbuilt_rows:,}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="of each phase")
    parser.add_argument("--rows", type=int, default=embeddings.ROWS)
    parser.add_argument("--dimension", type=int, default=embeddings.DIMENSION, help="more: the same, rotated")
    parser.add_argument("--partitions", type=int, nargs="+", default=PARTITIONS, metavar="N")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        embeddings.load(options.rows, dimension=options.dimension)
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")
    load = os.getloadavg()[0]
    found: dict[int, Any] = {}
    for partitions in options.partitions:
        found[partitions] = measure(partitions, options.rows, options.dimension, options.minutes * 60)
    report(found, options, load)


if __name__ == "__main__":
    main()
