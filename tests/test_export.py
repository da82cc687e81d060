"""What `tidemark export` writes: plain FAISS and Parquet find in it what Tidemark finds, and nothing that is dead."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from tests.commands import Tidemark, config, one_line
from tests.messages import delete, upsert
from tests.rows import embeddings
from tests.services import DIMENSION, Deployment, vectors
from tests.views import open_checkpoint
from tidemark import generation, layout, searcher
from tidemark.ann.export import Flat
from tidemark.ann.quantizer import Quantizer
from tidemark.checkpoint import Checkpoints
from tidemark.collection import Collection, IndexKind, IndexParameters, Metric
from tidemark.errors import StoreFull
from tidemark.export import BLOCK_ROWS, Exported, export
from tidemark.manifest import TopicIdentity
from tidemark.mirror import ViewMirror
from tidemark.quantizers import Quantizers, Versioned
from tidemark.record import decode
from tidemark.view import View

ROWS = 3_000
PARTITIONS = 2
# A program that has FAISS and pyarrow, and nothing of ours.
STRANGER = """
import json, sys
import faiss, numpy, pyarrow.parquet
directory, queries = sys.argv[1], numpy.load(sys.argv[2])
index = faiss.read_index(f"{directory}/index.faiss")
distances, numbers = index.search(queries, 10)
ids = pyarrow.parquet.read_table(f"{directory}/rows.parquet").column("id").to_pylist()
assert "tidemark" not in sys.modules and len(ids) == index.ntotal
kind, found = type(index).__name__, [[ids[number] for number in line] for line in numbers]
print(json.dumps({"kind": kind, "ids": found, "distances": distances.tolist()}))
"""


def collection(metric: Metric = "l2", kind: IndexKind = "ivfpq", **other: Any) -> Collection:
    parameters = IndexParameters(kind=kind, ann_rows_min=1_000)
    return Collection(name="docs", topic="docs", dimension=DIMENSION, metric=metric, index=parameters, **other)


class Owner:
    """The consumer of one partition, as far as its checkpoints are concerned."""

    def __init__(self, root: Path, made: Collection, partition: int) -> None:
        self.partition, self.collection = partition, made
        self.checkpoints = Checkpoints(root, made, generation.served(root, made).name, partition)
        self.view = View(made)
        self.state = self.view.open(partition, [], 0, -1, 0)
        assert self.checkpoints.claim(TopicIdentity("cluster", "topic"), None, 0)

    def publish(self, records: list[tuple[bytes, NDArray[np.float32] | None]], coded: Versioned | None = None) -> None:
        """Apply them, None for a delete, and make a checkpoint; every other row has metadata."""
        first = self.state.position
        messages = [
            delete(first + n, key, self.partition)
            if vector is None
            else upsert(first + n, key, vector, b'{"n":%d}' % n if n % 2 else None, self.partition)
            for n, (key, vector) in enumerate(records)
        ]
        self.view.apply(decode({self.partition: messages}, self.collection)[0])
        self.checkpoints.publish(self.view, 0, coded)


def quantizer(root: Path, made: Collection, rows: NDArray[np.float32], version: int = 1) -> Versioned:
    trained = Versioned(version, Quantizer.train(rows, made.metric, len(rows), 0.97, seed=version))
    assert Quantizers(root, made, "g000001").create(*trained)
    return trained


def write(
    root: Path, made: Collection, rows: NDArray[np.float32], coded: Callable[[int, int], Versioned | None]
) -> None:
    """Two partitions of two segments each; each tenth row was replaced by another, each tenth deleted."""
    for partition in range(PARTITIONS):
        owner, numbers = Owner(root, made, partition), range(partition, len(rows), PARTITIONS)
        half = len(numbers) // 2
        first = [(b"id-%d" % number, rows[number]) for number in numbers[:half]]
        second = [(b"id-%d" % number, rows[number]) for number in numbers[half:]]
        owner.publish([*first, *((key, vector + 1) for key, vector in second[::5])], coded(partition, 0))
        owner.publish([*second, *((key, None) for key, _ in first[::5])], coded(partition, 1))


def normal(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def ours(root: Path, made: Collection, queries: NDArray[np.float32]) -> list[list[searcher.Hit]]:
    """What Tidemark answers from the same checkpoints."""
    view = View(made, shared=True)
    for partition in range(PARTITIONS):
        assert open_checkpoint(Checkpoints(root, made, "g000001", partition), view) is not None
    prepared = searcher.prepare_queries(queries, made)
    return searcher.search(ViewMirror(made, view.place), prepared, 10).hits


def exported(root: Path, made: Collection, directory: Path) -> Exported:
    found = export(root, made, generation.read(root, "docs", "g000001"), directory)
    assert found is not None
    return found


def theirs(directory: Path, queries: NDArray[np.float32]) -> dict[str, Any]:
    np.save(directory.parent / "queries.npy", queries)
    command = [sys.executable, "-I", "-c", STRANGER, str(directory), str(directory.parent / "queries.npy")]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)  # type: ignore[no-any-return]


def alike(hits: list[list[searcher.Hit]], found: dict[str, Any], metric: Metric) -> float:
    """The share of our hits that were found, all of them with our distances."""
    same = 0
    for ours_, ids, distances in zip(hits, found["ids"], found["distances"], strict=True):
        expected = {hit.id.decode(): hit.distance for hit in ours_}
        as_ours = {"l2": distances, "cosine": [1 - d for d in distances], "ip": [-d for d in distances]}[metric]
        for id_, distance in zip(ids, as_ours, strict=True):
            if id_ in expected:
                same += 1
                assert distance == pytest.approx(expected[id_], rel=1e-4, abs=1e-4)
    return same / sum(map(len, hits))


CLASSES = {"ivfpq": "IndexRefineFlat", "hnsw": "IndexHNSWFlat", "flat": "IndexFlat{}"}


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("kind", CLASSES)
def test_a_program_with_faiss_alone_finds_what_tidemark_finds(tmp_path: Path, kind: IndexKind, metric: Metric) -> None:
    root, made, rows = tmp_path / "root", collection(metric, kind), embeddings(ROWS, DIMENSION)
    coded = quantizer(root, made, normal(rows) if metric == "cosine" else rows)
    write(root, made, rows, lambda *_: coded)
    done = exported(root, made, tmp_path / "out")
    between = (rows[:100] + rows[100:200]) / 2
    queries = np.concatenate([rows[::30], between, embeddings(50, DIMENSION, seed=5)])
    found = theirs(tmp_path / "out", normal(queries) if metric == "cosine" else queries)
    assert found["kind"] == done.index == CLASSES[kind].format("L2" if metric == "l2" else "IP")
    assert alike(ours(root, made, queries), found, metric) >= 0.99
    assert json.loads((tmp_path / "out" / "export.json").read_text()) == {
        **{name: getattr(done, name) for name in Exported.__slots__},
        "positions": {str(number): position for number, position in done.positions.items()},
    }


def test_rows_that_were_replaced_or_deleted_are_not_in_it_and_row_numbers_are_those_of_the_index(
    tmp_path: Path,
) -> None:
    root, made, rows = tmp_path / "root", collection(kind="flat"), embeddings(ROWS, DIMENSION)
    write(root, made, rows, lambda *_: None)
    done = exported(root, made, tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "rows.parquet")
    numbers = [int(id_.removeprefix("id-")) for id_ in table.column("id").to_pylist()]
    deleted = {p + PARTITIONS * n for p in range(PARTITIONS) for n in range(0, ROWS // PARTITIONS // 2, 5)}
    assert sorted(numbers) == [number for number in range(ROWS) if number not in deleted]
    assert done.rows == len(numbers) == table.num_rows
    assert done.positions == {0: 1_800, 1: 1_800}
    assert table.column("partition").to_pylist() == [number % PARTITIONS for number in numbers]
    found = theirs(tmp_path / "out", rows[numbers[::7]])
    assert [line[0] for line in found["ids"]] == [f"id-{number}" for number in numbers[::7]]
    assert max(line[0] for line in found["distances"]) == 0


@pytest.mark.parametrize("which", ["all", "some", "of an older quantizer", "none, and no quantizer"])
def test_rows_are_found_whether_or_not_they_have_codes_of_the_newest_quantizer(tmp_path: Path, which: str) -> None:
    root, made, rows = tmp_path / "root", collection(), embeddings(ROWS, DIMENSION)
    first = None if which.startswith("none") else quantizer(root, made, rows)
    write(root, made, rows, lambda partition, number: None if which == "some" and number == partition else first)
    if which == "of an older quantizer":
        quantizer(root, made, rows, version=2)
    done = exported(root, made, tmp_path / "out")
    assert done.recall >= 0.99
    assert alike(ours(root, made, rows[::10]), theirs(tmp_path / "out", rows[::10]), "l2") >= 0.99


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("kind", ["ivfpq", "hnsw"])
def test_rows_far_beyond_the_others_are_found(tmp_path: Path, kind: IndexKind, metric: Metric) -> None:
    count = 4 * ROWS if kind == "ivfpq" else ROWS  # more lists, so that few of them are probed
    root, made, rows = tmp_path / "root", collection(metric, kind), embeddings(count, DIMENSION)
    far = np.arange(count // 2 + 1, count, 100)  # not deleted
    rows[far] *= np.geomspace(10, 1_000, len(far), dtype=np.float32)[:, None]
    coded = quantizer(root, made, rows)
    assert (coded.quantizer.encode(rows).lists == 0xFFFFFFFF).sum() >= len(far) // 2
    write(root, made, rows, lambda *_: coded)
    exported(root, made, tmp_path / "out")
    queries = np.concatenate([rows[far], rows[count // 2 :: 20]])
    hits, found = ours(root, made, queries), theirs(tmp_path / "out", queries)
    assert [line[0] for line in found["ids"]] == [line[0].id.decode() for line in hits]
    assert alike(hits, found, metric) >= (0.97 if (kind, metric) == ("hnsw", "ip") else 0.99)


def test_an_index_can_be_read_whose_codes_tell_little_apart(tmp_path: Path) -> None:
    rows = normal(20 + vectors(2 * ROWS))
    trained = Quantizer.train(rows, "cosine", len(rows), 0.97, seed=1)
    encoded, flat = trained.encode(rows), Flat(len(rows), DIMENSION, "cosine")
    flat.vectors[:] = rows
    built = flat.with_lists(trained, encoded.lists, encoded.codes)
    assert built.search["k_factor"] == 1_000  # the most that FAISS reads
    with (tmp_path / "index.faiss").open("wb") as file:
        built.write(file)
    assert faiss.read_index(str(tmp_path / "index.faiss")).k_factor == 1_000


# -- columns ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id_format", ["utf8", "int64", "bytes"])
def test_ids_have_the_type_of_their_format_and_metadata_may_be_null(tmp_path: Path, id_format: Any) -> None:
    made = replace(collection(kind="flat"), id_format=id_format)
    keys = {
        "utf8": ["a", "é"],
        "int64": [-5, 2**62],
        "bytes": [b"\x00\xff", b"b"],
    }[id_format]
    as_bytes = [
        key.encode() if isinstance(key, str) else key.to_bytes(8, "big", signed=True) if isinstance(key, int) else key
        for key in keys
    ]
    owner = Owner(tmp_path / "root", made, 3)
    owner.publish(list(zip(as_bytes, np.eye(DIMENSION, dtype=np.float32), strict=False)))
    done = exported(tmp_path / "root", made, tmp_path / "out")
    assert (done.rows, done.positions, done.index) == (2, {3: 2}, "IndexFlatL2")
    assert pq.read_table(tmp_path / "out" / "rows.parquet").to_pylist() == [
        {"id": keys[0], "metadata": None, "partition": 3, "offset": 0, "timestamp": 1_000},
        {"id": keys[1], "metadata": '{"n":1}', "partition": 3, "offset": 1, "timestamp": 1_001},
    ]


def test_more_rows_than_are_copied_at_a_time_stay_in_order(tmp_path: Path) -> None:
    made, rows = collection(kind="flat"), embeddings(BLOCK_ROWS + 100, DIMENSION)
    Owner(tmp_path / "root", made, 0).publish([(b"%d" % n, row) for n, row in enumerate(rows)])
    exported(tmp_path / "root", made, tmp_path / "out")
    found = theirs(tmp_path / "out", rows[::1_000])
    assert [line[0] for line in found["ids"]] == [str(n) for n in range(0, len(rows), 1_000)]


# -- the command -----------------------------------------------------------------------------------------------


@pytest.fixture
def docs(tmp_path: Path) -> Iterator[Path]:
    """The settings file of a collection with two checkpoints in each of two partitions; no service runs."""
    made = collection(kind="flat")
    write(tmp_path / "checkpoints", made, embeddings(200, DIMENSION), lambda *_: None)
    yield Path(config(tmp_path, "nowhere:9092", "docs"))


def run(tidemark: Tidemark, docs: Path, *arguments: str) -> tuple[int, str, str]:
    return tidemark("export", *arguments, "--config", str(docs))


def left(directory: Path) -> list[str]:
    """The names in a directory that only an export may have made."""
    return sorted(path.name for path in directory.iterdir() if path.name not in ("checkpoints", "own.toml"))


def test_the_command_says_what_it_wrote_and_up_to_where(tidemark: Tidemark, docs: Path) -> None:
    code, output, error = run(tidemark, docs, "docs", "out")
    assert (code, error) == (0, "")
    assert output.splitlines() == [
        "out: 180 rows of docs (g000001), partition 0 at 120, partition 1 at 120",
        "IndexFlatL2, exact, recall@10 1.000",
    ]
    assert left(docs.parent) == ["out"]
    assert left(docs.parent / "out") == ["export.json", "index.faiss", "rows.parquet"]
    code, output, _ = run(tidemark, docs, "docs", "other", "--generation", "g000001", "--json")
    assert json.loads(output) == json.loads((docs.parent / "other" / "export.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nope", "out"], 1, "no collection 'nope' is configured; there are: docs"),
        (["docs", "out", "--generation", "g000007"], 1, "has no generation 'g000007'; there are: g000001"),
        (["docs", "checkpoints"], 2, "is there already"),
        (["docs", "no/where"], 2, "is not a directory: make it first"),
    ],
)
def test_what_cannot_be_done_as_it_was_asked_writes_nothing(
    tidemark: Tidemark, docs: Path, arguments: list[str], code: int, message: str
) -> None:
    found, output, error = run(tidemark, docs, *arguments)
    assert (found, output) == (code, "")
    assert message in error and one_line(error)
    assert left(docs.parent) == []


def test_a_collection_without_checkpoints_is_told_and_one_without_rows_is_written(
    tidemark: Tidemark, tmp_path: Path
) -> None:
    docs = Path(config(tmp_path, "nowhere:9092", "docs"))
    assert run(tidemark, docs, "docs", "out")[0] == 1
    generation.served(tmp_path / "checkpoints", collection())
    code, _, error = run(tidemark, docs, "docs", "out")
    assert code == 1 and "has no checkpoint yet" in error
    Owner(tmp_path / "checkpoints", collection(), 0)  # its claim is a checkpoint
    assert run(tidemark, docs, "docs", "out")[0] == 0
    assert pq.read_table(tmp_path / "out" / "rows.parquet").num_rows == 0
    assert json.loads((tmp_path / "out" / "export.json").read_text())["positions"] == {"0": 0}


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_and_said(tidemark: Tidemark, docs: Path) -> None:
    directory = docs.parent / "checkpoints" / "docs" / "g000001" / "p1"
    damaged = sorted(directory.glob("seg-*"))[-1] / layout.VECTORS
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xee")
    code, output, error = run(tidemark, docs, "docs", "out", "--json")
    assert code == 0
    assert error.startswith("warning: passed over a damaged checkpoint: ") and str(damaged) in error
    assert json.loads(output)["positions"] == {"0": 120, "1": 60}


def test_where_no_checkpoint_of_a_partition_is_whole_nothing_is_written(tidemark: Tidemark, docs: Path) -> None:
    for path in (docs.parent / "checkpoints" / "docs" / "g000001" / "p1").glob("manifest-*"):
        path.write_bytes(path.read_bytes()[:-3])
    code, output, error = run(tidemark, docs, "docs", "out")
    assert (code, output) == (69, "")
    assert "no checkpoint is whole" in error and one_line(error)
    assert left(docs.parent) == []


@pytest.mark.parametrize("kind", ["flat", "ivfpq"])
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, small_disk: Path, kind: IndexKind) -> None:
    root, made, rows = tmp_path / "root", collection(kind=kind), embeddings(ROWS, DIMENSION)
    coded = quantizer(root, made, rows)
    write(root, made, rows, lambda *_: coded)
    exported(root, made, small_disk / "out")
    size = sum(-(-path.stat().st_size // 4096) * 4096 for path in (small_disk / "out").iterdir())
    shutil.rmtree(small_disk / "out")
    ballast = small_disk / "ballast"
    for room in (size - 4096, size // 2, 3 * 4096, 4096):
        ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - room))
        with pytest.raises(
            StoreFull, match=r"there is no room for 2700 rows, of which the vectors alone take 0\.2 MiB"
        ):
            exported(root, made, small_disk / "out")
        assert list(small_disk.iterdir()) == [ballast]
        ballast.unlink()


@pytest.mark.kafka
def test_what_a_consumer_wrote_is_exported_while_it_runs(
    deploy: Callable[..., Deployment], tidemark: Tidemark, tmp_path: Path
) -> None:
    made = deploy(PARTITIONS)
    rows = vectors(1_200)
    made.produce([(b"id-%d" % number, row.tobytes()) for number, row in enumerate(rows)])
    made.start("consumer")
    made.wait_until_checkpointed()
    code, output, _ = tidemark("export", "docs", str(tmp_path / "out"), "--config", str(made.config), "--json")
    assert code == 0
    assert json.loads(output)["rows"] == 1_200 and sum(json.loads(output)["positions"].values()) == 1_200
    found = theirs(tmp_path / "out", rows[::10])
    assert [line[0] for line in found["ids"]] == [f"id-{number}" for number in range(0, 1_200, 10)]
