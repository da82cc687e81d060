"""How search cost grows with the rows and the partitions, and what an index costs to make: `make bench-growth`.

A view of all partitions as a replica has it once nothing more arrives: each partition's rows lie in four segments, all
coded by one quantizer. That is trained again when the rows are four times those it was trained for, as consumers do.
Rows are distinct up to 2.5 million; the 10 million are those and three copies of each moved by noise, of half the
distance from a row to its nearest one, so a query's neighbours are three parts copies. A smaller size is a prefix of a
larger one. No dead rows, no Kafka, no HTTP.

Searches are `searcher.search` in one thread of this process, one query at a time, default index parameters.
p50 and p99 are of wall time, so they hold what else the machine does; `cpu` is the thread's own time per search.
Exponents are slopes of a straight line through log(cost) over log(rows), least squares; the last step is shown too.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks import building, machine, sift
from benchmarks.copies import Copies
from benchmarks.report import reached, shown
from tidemark import searcher
from tidemark.ann.exact import use_one_thread_per_search
from tidemark.ann.quantizer import Quantizer
from tidemark.collection import Collection, IndexParameters
from tidemark.collection_index import SAMPLE_ROWS, CollectionIndex
from tidemark.mirror import ViewMirror
from tidemark.record import hash_ids, row_digests
from tidemark.rows import Rows
from tidemark.segment import Segment
from tidemark.segment_files import write_segment
from tidemark.view import View

ROWS, COPIED_ROWS = (250_000, 500_000, 1_000_000, 2_500_000), 10_000_000
# Of each number of partitions, the most rows that are measured.
ROWS_MAX = {1: COPIED_ROWS, 12: 2_500_000, 48: 1_000_000}
SEGMENT_ENDS = (0.6, 0.85, 0.95, 1.0)  # of a partition's rows: a large merge, smaller ones, and what came last
RETRAINED_AT = 4  # times the rows that a quantizer was trained for
WARM_UP, ROUNDS = 200, 3
SEED = 1
EXPONENT_REACH = "<= 0.5"
COLLECTION = Collection("sift", "sift", sift.DIMENSION, "l2")
RESULTS = Path(__file__).parent / "results" / "growth-latest.json"


class Replica:
    """A view of so many partitions, whose rows are all coded; a context manager by `contextlib.closing`."""

    def __init__(self, data: Copies, rows: int, partitions: int, quantizer: Quantizer, directory: Path) -> None:
        self.row_count, self._data, self._directory = rows, data, directory
        self.view = View(COLLECTION, shared=True)
        parameters = COLLECTION.index
        for number in range(partitions):
            first, end = rows * number // partitions, rows * (number + 1) // partitions
            self.view.open(number, self._segments(number, first, end), end - first, -1, 0)
        self._index = CollectionIndex(self.view, parameters.recall_target, parameters.ann_rows_min)
        self._index.offer(1, quantizer)
        self.code()
        self.mirror = ViewMirror(COLLECTION, self.view.place)

    def _segments(self, number: int, first: int, end: int) -> list[Segment]:
        made: list[Segment] = []
        for share in SEGMENT_ENDS:
            stop = first + int((end - first) * share) if share < 1 else end
            start = first + sum(segment.row_count for segment in made)
            directory = self._directory / f"{number}-{len(made)}"
            rows = rows_of(self._data.rows(start, stop), start)
            entry = write_segment(directory, rows, COLLECTION.metric, IndexParameters(kind="flat"), SEED)
            made.append(Segment(directory, entry, COLLECTION.dimension, COLLECTION.metric, number))
        return made

    def code(self) -> None:
        """Put all rows into the lists, but for the few that are not worth it."""
        self._index.turn(may_train=False)
        while not self._index.idle:
            time.sleep(0.005)
            self._index.turn(may_train=False)

    @property
    def lists(self) -> int:
        lists = self._index.lists
        return 0 if lists is None else lists.place.lists

    @property
    def index_bytes(self) -> int:
        lists = self._index.lists
        return 0 if lists is None else lists.memory_bytes

    def close(self) -> None:
        self._index.close()


def rows_of(vectors: NDArray[np.float32], first: int = 0) -> Rows:
    """Rows with ids `v<number>` from `first` on, one offset each, no metadata: what raw records become."""
    numbers = range(first, first + len(vectors))
    ids = [b"v%d" % number for number in numbers]
    offsets, hashes = np.arange(len(numbers), dtype=np.int64), hash_ids(ids)
    return Rows(
        vectors=np.ascontiguousarray(vectors),
        ids=pa.array(ids, pa.large_binary()),
        offsets=offsets,
        timestamps=offsets,
        metadata=pa.nulls(len(numbers), pa.large_binary()),
        digests=row_digests(hashes, offsets, [vector.tobytes() for vector in vectors]),
        hashes=hashes,
    )


def trained(data: Copies, rows: int, known: Quantizer | None = None) -> Quantizer:
    """The quantizer of so many rows: `known`, as long as they are not four times those that it was trained for."""
    if known is not None and rows < RETRAINED_AT * known.row_count:
        return known
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    sample = data.sample(rows, min(rows, SAMPLE_ROWS), SEED)
    return Quantizer.train(sample, COLLECTION.metric, rows, COLLECTION.index.recall_target, SEED)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table; times in ms."""

    partitions: int
    rows: int
    lists: int
    trained_for: int
    p50: float
    p99: float
    cpu: float
    recall: float
    index_bytes_a_row: float
    made_s: float


def measure(mirror: ViewMirror, truth: NDArray[np.int64], queries: NDArray[np.float32]) -> dict[str, float]:
    """Wall p50 and p99 over ROUNDS times all queries, CPU time per search of the least disturbed round, recall@10."""
    use_one_thread_per_search()
    for query in queries[:WARM_UP]:
        searcher.search(mirror, query[None], 10)
    waits, busy = [], []
    for _ in range(ROUNDS):
        answers = []
        cpu = time.thread_time()
        for query in queries:
            before = time.perf_counter()
            answers.append(searcher.search(mirror, query[None], 10))
            waits.append((time.perf_counter() - before) * 1e3)
        busy.append((time.thread_time() - cpu) / len(queries) * 1e3)
    found = [{hit.id for hit in answer.hits[0]} for answer in answers]
    hits = sum(len({b"v%d" % row for row in line} & ids) for line, ids in zip(truth.tolist(), found, strict=True))
    p50, p99 = np.percentile(waits, (50, 99))
    return {"p50": float(p50), "p99": float(p99), "cpu": min(busy), "recall": hits / truth.size}


def lines(sizes: Sequence[int], partitions: int) -> Iterator[Line]:
    """One line for each size, ascending."""
    data = Copies(sift.load(min(sizes[-1], ROWS[-1])))
    quantizer: Quantizer | None = None
    for rows in sizes:
        started = time.perf_counter()
        quantizer = trained(data, rows, quantizer)
        with (
            tempfile.TemporaryDirectory(prefix="tidemark-growth-") as directory,
            closing(Replica(data, rows, partitions, quantizer, Path(directory))) as replica,
        ):
            made_s = time.perf_counter() - started
            yield Line(
                partitions=partitions,
                rows=rows,
                lists=replica.lists,
                trained_for=quantizer.row_count,
                index_bytes_a_row=replica.index_bytes / rows,
                made_s=made_s,
                **measure(replica.mirror, data.ground_truth(rows), data.queries),
            )


def exponent(rows: Sequence[int], cost: Sequence[float]) -> float:
    """Slope of log(cost) over log(rows): 0 does not grow, 1 grows as the rows do."""
    return float(np.polyfit(np.log(rows), np.log(cost), 1)[0])


# -- the report ------------------------------------------------------------------------------------------------


def report(found: Sequence[Line], build: dict[str, float], build_rows: int, load: float) -> None:
    about = machine.describe(SEED)
    print(f"\n{machine.heading(about)}; seed {SEED}; SIFT x {sift.DIMENSION}, k = 10, one thread")
    print(f"load of the machine when it was started, in processes: {load:.1f} (0 is a machine of our own)\n")
    print("| partitions | rows | lists | trained for | p50 ms | p99 ms | cpu ms | recall@10 | index bytes a row |")
    print("|---|---|---|---|---|---|---|---|---|")
    for line in found:
        print(
            f"| {line.partitions} | {line.rows:,} | {line.lists:,} | {line.trained_for:,} | {line.p50:.3f} "
            f"| {line.p99:.3f} | {line.cpu:.3f} | {line.recall:.3f} | {line.index_bytes_a_row:.0f} |"
        )
    exponents = list(_exponents(found))
    print(
        "\n| partitions | exponent of p50 | reach | reached | of cpu | of cpu, last step |\n|---|---|---|---|---|---|"
    )
    for each in exponents:
        said = f"{EXPONENT_REACH} | {reached(each['p50'], EXPONENT_REACH)}"
        print(f"| {each['partitions']} | {each['p50']:.2f} | {said} | {each['cpu']:.2f} | {each['last']:.2f} |")
    print(f"\nAn index of {build_rows:,} rows, all cores\n\n| figure | value |\n|---|---|")
    for name, value in build.items():
        print(f"| {name} | {shown(value)} |")
    RESULTS.parent.mkdir(exist_ok=True)
    result = {
        "machine": about,
        "load": load,
        "lines": [asdict(line) for line in found],
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
    parser.add_argument("--quick", action="store_true", help="up to 500,000 rows, 1 and 12 partitions")
    parser.add_argument("--rows-max", type=int, default=COPIED_ROWS, help="leave out larger sizes")
    options = parser.parse_args()
    rows_max = min(options.rows_max, ROWS[1]) if options.quick else options.rows_max
    if rows_max < ROWS[0]:
        parser.error(f"--rows-max is {rows_max:,}: the least size is {ROWS[0]:,}")
    load = os.getloadavg()[0]
    found: list[Line] = []
    for partitions, most in list(ROWS_MAX.items())[: 2 if options.quick else None]:
        sizes = [rows for rows in (*ROWS, COPIED_ROWS) if rows <= min(rows_max, most)]
        for line in lines(sizes, partitions):
            sys.stderr.write(f"{line}\n")
            found.append(line)
    build_rows = min(rows_max, 500_000)
    report(found, building.over_faiss(build_rows), build_rows, load)


if __name__ == "__main__":
    main()
