"""Recall while rows come and go: `make bench-churn`.

Runbooks in the shape of the NeurIPS'23 big-ann streaming track, over SIFT rows: sliding window, expiration times,
clustered rounds and replacements. A step changes rows through two views, as records would: a consumer's, which makes
checkpoints and lets the real builder work, and a replica's, which takes the checkpoints over and is searched; no
Kafka, no HTTP. When both have come to rest, recall@10 of default searches is measured against brute force over the
rows that live by then, which are kept beside the views in a plain table. `fresh` is the recall of one index made at
that step of the live rows: what a rebuild would give. `--plot` draws all steps.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from confluent_kafka import Message
from numpy.typing import NDArray

from benchmarks import fresh, machine, sift
from consumer.builder import Builder
from consumer.builds import Builds
from consumer.partition import OwnedPartition
from consumer.quantizing import Known, KnownQuantizers
from tidemark import searcher
from tidemark.ann.exact import exact_search, use_one_thread_per_search
from tidemark.checkpoint import Checkpoints
from tidemark.collection import Collection
from tidemark.collection_index import CollectionIndex
from tidemark.generation import Generation
from tidemark.manifest import TopicIdentity
from tidemark.mirror import ViewMirror
from tidemark.record import decode
from tidemark.segment import Segment
from tidemark.settings import ConsumerSettings
from tidemark.view import View

K, QUERIES, BATCH = 10, 500, 5_000
SETTINGS = ConsumerSettings()  # type: ignore[call-arg]  # pydantic has the defaults
COLLECTION = Collection("sift", "sift", sift.DIMENSION, "l2", format="raw")
TOPIC = TopicIdentity("benchmark", "benchmark")
RECALL_MIN = 0.95
Line = dict[str, float]


@dataclass(frozen=True, slots=True)
class Step:
    """Rows of the base to write under ids, and ids to delete."""

    upserts: NDArray[np.int64]  # (n, 2): id, row of the base
    deletes: NDArray[np.int64]


def _same(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.stack([numbers, numbers], axis=1)


NONE = np.empty(0, np.int64)


def sliding_window(data: sift.Sift, steps: int, rng: np.random.Generator) -> Iterator[Step]:
    """Each row lives for half of the steps."""
    parts = np.array_split(np.arange(len(data.base)), steps)
    for number, part in enumerate(parts):
        yield Step(_same(part), parts[number - steps // 2] if number >= steps // 2 else NONE)


def expiration_time(data: sift.Sift, steps: int, rng: np.random.Generator) -> Iterator[Step]:
    """Rows live for short, long and unlimited times, 10 : 2 : 1."""
    lives = rng.choice([steps // 10 + 1, steps // 2, steps + 1], len(data.base), p=np.array([10, 2, 1]) / 13)
    parts = np.array_split(np.arange(len(data.base)), steps)
    ends = np.concatenate([number + lives[part] for number, part in enumerate(parts)])
    for number, part in enumerate(parts):
        yield Step(_same(part), np.flatnonzero(ends == number))


def clustered(data: sift.Sift, steps: int, rng: np.random.Generator) -> Iterator[Step]:
    """Whole regions come at once, and parts of regions go at once: the distribution moves from step to step."""
    kmeans = faiss.Kmeans(sift.DIMENSION, steps, niter=5, seed=1)
    kmeans.train(np.ascontiguousarray(data.base[: 256 * steps]))
    _, nearest = kmeans.index.search(np.ascontiguousarray(data.base), 1)
    for number in range(steps):
        goes = np.flatnonzero(nearest[:, 0] == number - steps // 4) if number >= steps // 4 else NONE
        yield Step(_same(np.flatnonzero(nearest[:, 0] == number)), goes[rng.random(len(goes)) < 0.8])


def replace(data: sift.Sift, steps: int, rng: np.random.Generator) -> Iterator[Step]:
    """A tenth of the ids gets another row in each step, after half of the rows were written."""
    half = len(data.base) // 2
    yield Step(_same(np.arange(half)), NONE)
    for _ in range(steps - 1):
        ids = rng.choice(half, half // 10, replace=False)
        yield Step(np.stack([ids, rng.integers(half, len(data.base), len(ids))], axis=1), NONE)


RUNBOOKS = {run.__name__: run for run in (sliding_window, expiration_time, clustered, replace)}


class Replica:
    """A view that applies what the consumer's does, takes its checkpoints over, and is searched from outside."""

    def __init__(self, owned: OwnedPartition) -> None:
        self._owned, self.view = owned, View(COLLECTION, shared=True)
        self.view.open(0, [], 0, -1, 0)
        parameters = COLLECTION.index
        self.index = CollectionIndex(self.view, parameters.recall_target, parameters.ann_rows_min)
        self.mirror = ViewMirror(COLLECTION, self.view.place)

    def turn(self, known: Known | None) -> None:
        if known is not None and known.newest is not None:
            self.index.offer(known.newest.version, known.newest.quantizer)
        self.index.turn(may_train=False)

    def follow(self, position: int, digest: int) -> None:
        """Take over the segments of the manifest at a position, each after its rows are in the lists."""
        known = {segment.name: segment for segment in self.view.partitions[0].segments}
        segments = [known.get(each.name) or self._opened(each) for each in self._owned.state.segments]
        self.view.prepare(segments)
        self.index.want([segment for segment in segments if segment.name not in known])
        while not self.index.has(segments):
            self.index.turn(may_train=False)
            time.sleep(0.001)
        self.view.follow(0, segments, position, 0, digest)
        self.view.forget(segments)
        self.index.want([])

    def _opened(self, written: Segment) -> Segment:
        return Segment(written.directory, written.entry, COLLECTION.dimension, COLLECTION.metric)

    def rest(self) -> None:
        self.index.turn(may_train=False)
        while not (self.index.idle and self.index.settled):
            time.sleep(0.001)
            self.index.turn(may_train=False)


class Run:
    """One runbook: the partition under test, its replica, and the table of what lives."""

    def __init__(self, data: sift.Sift, directory: Path) -> None:
        checkpoints = Checkpoints(directory, COLLECTION, "g000001", 0)
        assert checkpoints.claim(TOPIC, None, 0)
        generation, view = Generation("g000001", 0, "earliest", COLLECTION.index), View(COLLECTION)
        view.open(0, [], 0, -1, 0)
        self.data = data
        self.owned = OwnedPartition(("sift", 0), COLLECTION, generation, TOPIC, view, checkpoints, 0, 0)
        self.replica = Replica(self.owned)
        self._builder, self._quantizers = Builder(0), KnownQuantizers(directory)
        self._builds = Builds(self._builder, self._quantizers, SETTINGS)
        self.rows: dict[int, int] = {}
        self._offset = 0

    @property
    def version(self) -> int:
        """Of the quantizer that the replica uses."""
        return self.replica.index.version or 0

    def close(self) -> None:
        self._builder.stop()
        self._quantizers.close()
        self.replica.index.close()

    def apply(self, step: Step) -> int:
        """Write a step's records in batches; returns their number."""
        records = [(int(id_), int(row)) for id_, row in step.upserts] + [(int(id_), None) for id_ in step.deletes]
        for first in range(0, len(records), BATCH):
            batch = records[first : first + BATCH]
            messages: list[Any] = [self._message(id_, row) for id_, row in batch]
            for view in (self.owned.view, self.replica.view):
                view.apply(decode({0: messages}, COLLECTION)[0])
            self.owned.last_record_at = time.monotonic()
            if self.owned.checkpoint_due(0.0, float("inf"), 65_536):
                self._checkpoint()
            self._turn()
        self.rows.update((id_, row) for id_, row in records if row is not None)
        for id_ in step.deletes.tolist():
            self.rows.pop(id_, None)
        self._checkpoint()
        return len(records)

    def _turn(self) -> None:
        self._builds.advance([self.owned])
        self.replica.turn(self._builds.known(self.owned))

    def _checkpoint(self) -> None:
        self.owned.checkpoint(self._builds.known(self.owned))
        self.replica.follow(self.owned.state.position, self.owned.state.digest)

    def settle(self) -> None:
        """Let the builder do all that the policy wants when nothing more arrives, and the replica after it."""
        self.owned.last_record_at = float("-inf")
        self._turn()
        while not self._builds.settled([self.owned], [self.owned]):
            time.sleep(0.005)
            self._turn()
        self._checkpoint()
        self._turn()
        self.replica.rest()

    def _message(self, id_: int, row: int | None) -> Message:
        value = None if row is None else self.data.base[row].tobytes()
        message = Message(
            topic="sift",
            partition=0,
            offset=self._offset,
            key=b"%d" % id_,
            value=value,
            timestamp=(1, 1),
            leader_epoch=0,
        )
        self._offset += 1
        return message

    def recall(self, queries: NDArray[np.float32]) -> tuple[float, float]:
        """recall@10 of default searches against brute force, and the median time of one search in ms."""
        use_one_thread_per_search()
        ids = np.fromiter(self.rows, np.int64)
        vectors = np.ascontiguousarray(self.data.base[np.fromiter(self.rows.values(), np.int64)])
        truth = exact_search(vectors, queries, K, "l2")[0][:, -1]
        found, waits = 0, []
        for query, worst in zip(queries, truth, strict=True):
            before = time.perf_counter()
            hits = searcher.search(self.replica.mirror, query[None], K).hits[0]
            waits.append((time.perf_counter() - before) * 1e3)
            found += sum(hit.distance <= worst * (1 + 1e-6) for hit in hits)
        assert self.owned.state.live_rows == self.replica.view.partitions[0].live_rows == len(ids)
        return found / (K * len(queries)), float(np.median(waits))

    def fresh_recall(self, queries: NDArray[np.float32]) -> float:
        vectors = np.ascontiguousarray(self.data.base[np.fromiter(self.rows.values(), np.int64)])
        return fresh.recall(vectors, queries, "l2", seed=1)


def run(name: str, rows: int, steps: int, seed: int = 0) -> list[Line]:
    """Recall, search time and updates a second after each step."""
    data = sift.load(rows)
    queries = np.ascontiguousarray(data.queries[:QUERIES])
    found: list[Line] = []
    with (
        tempfile.TemporaryDirectory(prefix="tidemark-churn-") as directory,
        closing(Run(data, Path(directory))) as made,
    ):
        for number, step in enumerate(RUNBOOKS[name](data, steps, np.random.default_rng(seed))):
            started = time.perf_counter()
            updates = made.apply(step)
            seconds = time.perf_counter() - started
            made.settle()
            if not made.rows:
                continue
            recall, milliseconds = made.recall(queries)
            line = {"step": number, "rows": len(made.rows), "updates_per_s": updates / seconds, "recall": recall}
            line |= {"fresh": made.fresh_recall(queries), "search_p50_ms": milliseconds}
            found.append(line | {"segments": len(made.owned.state.segments), "quantizer": made.version})
            print(name, json.dumps({key: round(value, 4) for key, value in found[-1].items()}), flush=True)
    return found


def plot(lines: Mapping[str, Sequence[Line]], path: Path, title: str) -> None:
    """A PNG, 1,000 px wide: recall of each runbook, with that of a fresh build, above the time of a search."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(10, 7), layout="constrained")
    for number, (name, steps) in enumerate(lines.items()):
        numbers, colour = [step["step"] for step in steps], f"C{number}"
        above.plot(numbers, [step["recall"] for step in steps], color=colour, label=name)
        above.plot(numbers, [step["fresh"] for step in steps], color=colour, linestyle="--", linewidth=1)
        below.plot(numbers, [step["search_p50_ms"] for step in steps], color=colour)
    above.axhline(RECALL_MIN, color="black", linewidth=1, label=f"to be reached: {RECALL_MIN}")
    above.plot([], [], color="grey", linestyle="--", linewidth=1, label="an index built afresh")
    above.set_ylabel("recall@10")
    above.legend(loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=3, frameon=False)
    below.set(xlabel="step", ylabel="search, p50 ms", ylim=(0, None))
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    for panel in (above, below):
        panel.grid(alpha=0.3)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--plot", type=Path, metavar="PATH", help="also draw the steps, as a PNG")
    options = parser.parse_args()
    about = machine.describe(seed=0)
    made_on = f"{about['processor']}, {about['cores']} cores; SIFT {options.rows:,}, {options.steps} steps, seed 0"
    lines: dict[str, list[Line]] = {}
    table = []
    for name in RUNBOOKS:
        lines[name] = found = run(name, options.rows, options.steps)
        recalls = [line["recall"] for line in found]
        rates = np.median([line["updates_per_s"] for line in found])
        table.append(f"| {name} | {min(recalls):.3f} | {recalls[-1]:.3f} | {found[-1]['fresh']:.3f} | {rates:,.0f} |")
    print(f"\n{made_on}\n")
    print("| runbook | least recall@10 | at the end | of a fresh build | updates/s, median |\n|---|---|---|---|---|")
    print("\n".join(table))
    least = min(line["recall"] for found in lines.values() for line in found)
    print(f"\nrecall_churn_min {least:.3f}")
    if options.plot:
        plot(lines, options.plot, f"Recall while rows come and go\n{made_on}")


if __name__ == "__main__":
    main()
