"""How search cost grows with the rows and the partitions, and what a build costs over FAISS: `make bench-growth`.

Measured is the layout a partition settles at when its rows arrive at a steady rate: every 5 s a checkpoint brings
its share of CHECKPOINT_ROWS as a flat segment, `merge_policy.next_build` is followed until it wants nothing, and
again as for a quiet partition once all have arrived. That leaves a few large segments, and rows too few for an
index, which are scanned exactly, as by a replica that has just started; one that follows has codes of them
(decision 10). No tail (up to one checkpoint of newest rows more), no dead rows, no Kafka, no HTTP.

Only segments that are searched are built; a partition's rows are every n-th of the base, so that a smaller size
is a prefix of a larger.

Searches are `searcher.search` in one thread of this process, one query at a time, default index parameters.
p50 and p99 are of wall time, so they hold what else the machine does; `cpu` is the thread's own time per search.
Exponents are slopes of a straight line through log(cost) over log(rows), least squares. A fixed cost per segment
is part of the cost, so a small exponent at small sizes says little about large ones: the last step is shown too.
How many segments a size settles at is no smooth function of it: read the exponents beside that column.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks import machine, sift
from benchmarks.report import shown
from tidemark import layout, merge_policy, searcher
from tidemark.ann import index, ivf
from tidemark.ann.exact import use_one_thread_per_search
from tidemark.collection import Collection, IndexParameters
from tidemark.record import hash_ids, row_digests
from tidemark.rows import Rows
from tidemark.segment import Segment
from tidemark.segment_files import write_segment
from tidemark.view import View

ROWS = (100_000, 250_000, 500_000, 1_000_000, 2_000_000)
PARTITIONS = (1, 4, 12)
CHECKPOINT_ROWS = 20_000  # of all partitions: 4,000 records a second at the default interval of 5 s
SEGMENT_ROWS_MAX = 4_000_000  # the default of builder.segment_rows_max
WARM_UP, ROUNDS = 200, 3
BUILD_ROWS, BUILD_ROUNDS = 400_000, 2
SEED = 1
COLLECTION = Collection("sift", "sift", sift.DIMENSION, "l2")
PARAMETERS = COLLECTION.index
RESULTS = Path(__file__).parent / "results" / "growth-latest.json"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Planned:
    """A segment to be: its partition's rows from `first` up to `stop`."""

    first: int
    stop: int
    built: bool = False

    @property
    def rows(self) -> int:
        return self.stop - self.first


def settled(rows: int, checkpoint_rows: int) -> list[Planned]:
    """The segments of one partition after so many rows have arrived, a checkpoint at a time."""
    segments: list[Planned] = []
    for first in range(0, rows, checkpoint_rows):
        segments.append(Planned(first, min(rows, first + checkpoint_rows)))
        _build_what_is_wanted(segments, quiet=False)
    _build_what_is_wanted(segments, quiet=True)
    return segments


def _build_what_is_wanted(segments: list[Planned], quiet: bool) -> None:
    while taken := _wanted(segments, quiet):
        at = segments.index(taken[0])
        made = Planned(taken[0].first, taken[-1].stop)
        assert made.rows == sum(segment.rows for segment in taken), "the policy merges neighbours here"
        if index.kind_for(made.rows, PARAMETERS) != "flat":
            made = Planned(made.first, made.stop, True)
        segments[at : at + len(taken)] = [made]


def _wanted(segments: Sequence[Planned], quiet: bool) -> list[Planned]:
    candidates = [merge_policy.Candidate(str(at), s.rows, 0, s.built) for at, s in enumerate(segments)]
    names = merge_policy.next_build(candidates, PARAMETERS.ann_rows_min, SEGMENT_ROWS_MAX, quiet)
    return [segments[int(name)] for name in names]


class Partitions:
    """The partitions of one table row after the other; a segment built for one size serves the next as well."""

    def __init__(self, data: sift.Sift, partitions: int, directory: Path) -> None:
        self._data, self._count = data, partitions
        self._directory = directory
        self._written: dict[tuple[int, Planned], Segment] = {}

    def views(self, rows: int) -> list[View]:
        """The views of all partitions together holding the first so many rows; what is missing is built."""
        faiss.omp_set_num_threads(os.cpu_count() or 1)
        views = []
        for partition in range(self._count):
            mine = len(range(partition, rows, self._count))
            planned = settled(mine, CHECKPOINT_ROWS // self._count)
            view = View(COLLECTION, partition)
            view.open([self._segment(partition, each) for each in planned], mine, -1, 0)
            views.append(view)
        return views

    def _segment(self, partition: int, planned: Planned) -> Segment:
        key = partition, planned
        if key not in self._written:
            numbers = range(partition, len(self._data.base), self._count)[planned.first : planned.stop]
            parameters = PARAMETERS if planned.built else IndexParameters(kind="flat")
            directory = self._directory / f"{len(self._written)}"
            rows = rows_of(self._data, numbers)
            entry = write_segment(directory, rows, COLLECTION.metric, parameters, planned.rows)
            self._written[key] = Segment(directory, entry, COLLECTION.dimension, COLLECTION.metric)
        return self._written[key]


def rows_of(data: sift.Sift, numbers: range) -> Rows:
    """Rows of the base with ids `v<number>`, one offset each, no metadata: what raw records become."""
    vectors = np.ascontiguousarray(data.base[numbers.start : numbers.stop : numbers.step])
    ids = [b"v%d" % number for number in numbers]
    offsets, hashes = np.arange(len(numbers), dtype=np.int64), hash_ids(ids)
    return Rows(
        vectors=vectors,
        ids=pa.array(ids, pa.large_binary()),
        offsets=offsets,
        timestamps=offsets,
        metadata=pa.nulls(len(numbers), pa.large_binary()),
        digests=row_digests(hashes, offsets, [vector.tobytes() for vector in vectors]),
        hashes=hashes,
    )


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table; times in ms."""

    partitions: int
    rows: int
    segments: int
    unbuilt_rows: int
    nlist_of_largest: int
    p50: float
    p99: float
    cpu: float
    recall: float
    build_s: float


def measure(views: Sequence[View], truth: NDArray[np.int64], queries: NDArray[np.float32]) -> dict[str, float]:
    """Wall p50 and p99 over ROUNDS times all queries, CPU time per search of the least disturbed round, recall@10."""
    use_one_thread_per_search()
    for query in queries[:WARM_UP]:
        searcher.search(views, query[None], 10)
    waits, busy = [], []
    for _ in range(ROUNDS):
        answers = []
        cpu = time.thread_time()
        for query in queries:
            before = time.perf_counter()
            answers.append(searcher.search(views, query[None], 10))
            waits.append((time.perf_counter() - before) * 1e3)
        busy.append((time.thread_time() - cpu) / len(queries) * 1e3)
    found = [{hit.id for hit in answer.hits[0]} for answer in answers]
    hits = sum(len({b"v%d" % row for row in line} & ids) for line, ids in zip(truth.tolist(), found, strict=True))
    p50, p99 = np.percentile(waits, (50, 99))
    return {"p50": float(p50), "p99": float(p99), "cpu": min(busy), "recall": hits / truth.size}


def lines(sizes: Sequence[int], partitions: int) -> Iterator[Line]:
    data = sift.load(sizes[-1])
    with tempfile.TemporaryDirectory(prefix="tidemark-growth-") as directory:
        made = Partitions(data, partitions, Path(directory))
        for rows in sizes:
            started = time.perf_counter()
            views = made.views(rows)
            build_s = time.perf_counter() - started
            segments = [segment for view in views for segment in view.searcher.segments]
            largest = max(segments, key=lambda segment: segment.rows)
            figures = measure(views, sift.load(rows).ground_truth(), data.queries)
            yield Line(
                partitions=partitions,
                rows=rows,
                segments=len(segments),
                unbuilt_rows=sum(view.unbuilt_rows for view in views),
                nlist_of_largest=_nlist(largest),
                build_s=build_s,
                **figures,
            )


def _nlist(segment: Segment) -> int:
    opened: Any = faiss.read_index(str(segment.directory / layout.INDEX), faiss.IO_FLAG_MMAP_IFC)
    return int(opened.nlist)


def exponent(rows: Sequence[int], cost: Sequence[float]) -> float:
    """Slope of log(cost) over log(rows): 0 does not grow, 1 grows as the rows do."""
    return float(np.polyfit(np.log(rows), np.log(cost), 1)[0])


# -- a build against raw FAISS ---------------------------------------------------------------------------------


def build_over_faiss(rows: int) -> dict[str, float]:
    """The build rate of one segment of so many SIFT rows, ours over raw FAISS; the least of BUILD_ROUNDS each.

    Ours, `build_s`: `write_segment`, that is vectors and Arrow columns written, k-means and codebooks trained,
    rows added, search parameters calibrated, index written, all of it fsynced and checksummed; rows are in memory.
    FAISS's, `faiss_build_s`: train, add and `write_index` (no fsync) of an IndexIVFPQFastScan with the same lists,
    code size, iterations, seeds and training rows, on the same cores. The parts of ours that FAISS's has not are
    timed by themselves: `build_calibration_s`, and `build_files_s`, the same segment written without any index.
    `build_effort` and `faiss_build_effort` are the lists that each index has to probe for the same recall: a build
    that is fast because its lists are worse would show there.
    Measured in a child process whose FAISS threads wait asleep, as the consumer's builder is started.
    """
    command = [sys.executable, "-m", "benchmarks.growth", "--build", str(rows)]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def _build_here(rows: int) -> dict[str, float]:
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    source = rows_of(sift.load(rows), range(rows))
    rounds = [_build_round(source) for _ in range(BUILD_ROUNDS)]
    least = {name: min(each[name] for each in rounds) for name in rounds[0]}
    calibrated = least["build_s"] - least["build_calibration_s"]
    return {
        **least,
        "build_rows_per_s": rows / least["build_s"],
        "faiss_build_rows_per_s": rows / least["faiss_build_s"],
        "build_over_faiss": least["faiss_build_s"] / least["build_s"],
        "build_over_faiss_uncalibrated": least["faiss_build_s"] / calibrated,
    }


def _build_round(source: Rows) -> dict[str, float]:
    metric = COLLECTION.metric
    flat = IndexParameters(kind="flat")
    with tempfile.TemporaryDirectory(prefix="tidemark-growth-") as name:
        directory = Path(name)
        build_s, entry = _timed(lambda: write_segment(directory / "ours", source, metric, PARAMETERS, SEED))
        ours: Any = faiss.read_index(str(directory / "ours" / layout.INDEX))
        raw_s, raw = _timed(functools.partial(_build_raw, ours, source.vectors, directory / "raw"))
        files_s, _ = _timed(lambda: write_segment(directory / "flat", source, metric, flat, SEED))
        # By itself, not as a difference of two builds: that would drown in what else the machine does.
        calibration_s, found = _timed(
            lambda: index._calibrate(
                index.Index(raw), source.vectors, PARAMETERS.recall_target, SEED, index.CALIBRATION_QUERIES
            )
        )
    return {
        "build_s": build_s,
        "faiss_build_s": raw_s,
        "build_calibration_s": calibration_s,
        "build_files_s": files_s,
        "build_effort": entry.effort,
        "build_recall": entry.recall,
        "faiss_build_effort": found.effort,
        "faiss_build_recall": found.recall,
    }


def _build_raw(like: Any, vectors: NDArray[np.float32], path: Path) -> Any:
    """What a user of FAISS would write for the same index."""
    quantizer = faiss.IndexFlatL2(like.d)
    raw = faiss.IndexIVFPQFastScan(quantizer, like.d, like.nlist, like.pq.M, like.pq.nbits, faiss.METRIC_L2)
    raw.cp.niter = raw.pq.cp.niter = ivf.TRAINING_ITERATIONS
    raw.cp.seed = raw.pq.cp.seed = 1 + SEED
    raw.cp.max_points_per_centroid = index.TRAINING_ROWS_PER_CENTROID
    raw.cp.min_points_per_centroid = raw.pq.cp.min_points_per_centroid = 1
    training = min(len(vectors), like.nlist * index.TRAINING_ROWS_PER_CENTROID)
    picked = np.sort(np.random.default_rng(SEED).choice(len(vectors), training, replace=False))
    raw.train(vectors[picked])
    raw.add(vectors)
    faiss.write_index(raw, str(path))
    return raw


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    started = time.perf_counter()
    done = work()
    return time.perf_counter() - started, done


# -- the report ------------------------------------------------------------------------------------------------


def report(found: Sequence[Line], build: dict[str, float], build_rows: int, load: float) -> None:
    about = machine.describe(SEED)
    print(f"\n{machine.heading(about)}; seed {SEED}; SIFT x {sift.DIMENSION}, k = 10, one thread")
    print(f"load of the machine when it was started, in processes: {load:.1f} (0 is a machine of our own)\n")
    print("| partitions | rows | segments | unbuilt rows | lists | p50 ms | p99 ms | cpu ms | recall@10 |")
    print("|---|---|---|---|---|---|---|---|---|")
    for line in found:
        print(
            f"| {line.partitions} | {line.rows:,} | {line.segments} | {line.unbuilt_rows:,} "
            f"| {line.nlist_of_largest:,} | {line.p50:.3f} | {line.p99:.3f} | {line.cpu:.3f} | {line.recall:.3f} |"
        )
    exponents = list(_exponents(found))
    print("\n| partitions | exponent of p50 | of cpu | of cpu, last step |\n|---|---|---|---|")
    for each in exponents:
        print(f"| {each['partitions']} | {each['p50']:.2f} | {each['cpu']:.2f} | {each['last']:.2f} |")
    print(f"\nOne segment of {build_rows:,} rows, all cores\n\n| figure | value |\n|---|---|")
    for name, value in build.items():
        print(f"| {name} | {shown(value)} |")
    RESULTS.parent.mkdir(exist_ok=True)
    table = [asdict(line) for line in found]
    result = {
        "machine": about,
        "load": load,
        "lines": table,
        "exponents": exponents,
        "build_rows": build_rows,
        "build": build,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


def _exponents(found: Sequence[Line]) -> Iterator[dict[str, float]]:
    for partitions in dict.fromkeys(line.partitions for line in found):
        some = [line for line in found if line.partitions == partitions]
        if len(some) < 2:
            continue
        rows, cpu = [line.rows for line in some], [line.cpu for line in some]
        yield {
            "partitions": partitions,
            "p50": exponent(rows, [line.p50 for line in some]),
            "cpu": exponent(rows, cpu),
            "last": exponent(rows[-2:], cpu[-2:]),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="up to 250,000 rows, 1 and 4 partitions")
    parser.add_argument("--rows-max", type=int, default=ROWS[-1], help="leave out larger sizes")
    parser.add_argument("--build", type=int, metavar="ROWS", help="only build_over_faiss, as one JSON line")
    options = parser.parse_args()
    if options.build:
        print(json.dumps(_build_here(options.build)))
        return
    rows_max = min(options.rows_max, 250_000) if options.quick else options.rows_max
    sizes = [rows for rows in ROWS if rows <= rows_max]
    if not sizes:
        parser.error(f"--rows-max is {rows_max:,}: the least size is {ROWS[0]:,}")
    load = os.getloadavg()[0]
    found: list[Line] = []
    for partitions in PARTITIONS[:2] if options.quick else PARTITIONS:
        for line in lines(sizes, partitions):
            sys.stderr.write(f"{line}\n")
            found.append(line)
    build_rows = 100_000 if options.quick else BUILD_ROWS
    report(found, build_over_faiss(build_rows), build_rows, load)


if __name__ == "__main__":
    main()
