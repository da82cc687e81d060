"""The builder's child: a real child process, beside a disk that fails too; no broker."""

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from consumer.build import run
from consumer.builder import Builder
from consumer.builds import Builds
from consumer.jobs import Input, Merge, Merged, Trained
from consumer.partition import OwnedPartition
from consumer.quantizing import Known, KnownQuantizers
from tests import golden
from tests.messages import delete, upsert
from tests.rows import embeddings, quantizer_of
from tests.services import wait_until
from tests.views import codes_made, open_checkpoint
from tidemark import files, searcher
from tidemark.checkpoint import Checkpoints
from tidemark.collection import Collection, IndexKind, IndexParameters
from tidemark.collection_index import CollectionIndex
from tidemark.generation import Generation
from tidemark.manifest import TopicIdentity
from tidemark.mirror import ViewMirror
from tidemark.quantizers import Quantizers
from tidemark.record import decode
from tidemark.segment import Segment
from tidemark.settings import ConsumerSettings
from tidemark.view import View

TOPIC = TopicIdentity("cluster", "topic")
DIMENSION, ROWS_MIN = 8, 400


def _collection(kind: IndexKind) -> Collection:
    return Collection("docs", "docs", DIMENSION, "l2", index=IndexParameters(kind=kind, ann_rows_min=ROWS_MIN))


def _owned(root: Path, kind: IndexKind = "ivfpq", number: int = 0) -> OwnedPartition:
    """A partition taken over; what is in its newest checkpoint is there."""
    collection = _collection(kind)
    checkpoints, view = Checkpoints(root, collection, "g000001", number, grace_s=0), View(collection)
    loaded = open_checkpoint(checkpoints, view)
    assert checkpoints.claim(TOPIC, loaded, 0)
    generation = Generation("g000001", 0, "earliest", collection.index)
    position = view.partitions[number].position
    return OwnedPartition(("docs", number), collection, generation, TOPIC, view, checkpoints, position, 0)


def _apply(owned: OwnedPartition, count: int, known: Known | None = None, seed: int = 0, scale: float = 1.0) -> None:
    """And have it in a checkpoint; then nothing has come for a while."""
    at = owned.state.position
    vectors = scale * embeddings(count, DIMENSION, seed)
    messages = [upsert(at + n, b"%d" % (at + n), vector) for n, vector in enumerate(vectors)]
    owned.view.apply(decode({owned.partition[1]: messages}, owned.collection)[0])
    owned.checkpoint(known)
    owned.last_record_at = 0.0


class Process:
    """What a consumer has of its builder."""

    def __init__(self, root: Path) -> None:
        self.builder, self.quantizers = Builder(1), KnownQuantizers(root)
        self.builds = Builds(self.builder, self.quantizers, ConsumerSettings())

    def advance(self, *owned: OwnedPartition) -> None:
        self.builds.advance(owned)

    def until(self, fact: Callable[[], object], *owned: OwnedPartition) -> None:
        wait_until(lambda: (self.advance(*owned), fact())[1], 30, "it is built")

    def close(self) -> None:
        self.builder.stop()
        self.quantizers.close()

    def until_settled(self, *owned: OwnedPartition) -> None:
        self.until(lambda: self.builds.settled(owned, owned), *owned)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    made = Process(tmp_path)
    yield made
    made.close()


def test_a_quantizer_is_trained_on_all_partitions_and_all_their_rows_are_coded(
    tmp_path: Path, process: Process
) -> None:
    first, second, anothers = (_owned(tmp_path, number=number) for number in range(3))
    _apply(anothers, 150, seed=3)
    _apply(first, 150, seed=1)
    process.until_settled(first, second)
    found = Quantizers(tmp_path, first.collection, "g000001")
    assert found.newest() is None  # 300 rows are too few
    _apply(second, 150, seed=2)
    process.until_settled(first, second)
    newest = found.newest()
    assert newest is not None and (newest.version, newest.quantizer.row_count) == (1, 450)
    assert (first.unbuilt_rows, second.unbuilt_rows, anothers.unbuilt_rows) == (0, 0, 150)
    known = process.builds.known(first)
    _apply(first, 50, known, seed=4)
    assert [segment.entry.quantizer for segment in first.state.segments] == [1, 1]  # at once
    for owned in (first, second):
        manifest = owned.checkpoint(known)
        loaded = Checkpoints(tmp_path, owned.collection, "g000001", owned.partition[1]).load()
        assert loaded is not None and not loaded.damaged
        for segment in loaded.segments:
            codes = newest.quantizer.encode(segment.vectors)
            assert segment.codes is not None
            assert np.array_equal(segment.codes[0], codes.lists) and np.array_equal(segment.codes[1], codes.codes)
        assert all(entry.codes_file for entry in manifest.segments)


def test_four_times_the_rows_get_another_quantizer_and_all_codes_are_made_anew(
    tmp_path: Path, process: Process
) -> None:
    owned = _owned(tmp_path)
    _apply(owned, 450)
    process.until_settled(owned)
    known = process.builds.known(owned)
    assert known is not None and known.version == 1
    _apply(owned, 1_300, known)
    process.until_settled(owned)
    assert known.version == 1  # a little less than four times as many
    _apply(owned, 500, known)
    process.until(lambda: known.version == 2, owned)
    process.until_settled(owned)
    assert {segment.entry.quantizer for segment in owned.state.segments} == {2}


@pytest.mark.parametrize("scale", [3.0, 100.0])
def test_when_new_rows_are_unlike_those_before_there_is_another_quantizer(
    tmp_path: Path, process: Process, scale: float
) -> None:
    """Their codes are much worse, or they are so far beyond the others that they have none."""
    owned = _owned(tmp_path)
    _apply(owned, 450)
    process.until_settled(owned)
    known = process.builds.known(owned)
    assert known is not None and known.newest is not None
    for _ in range(3):
        _apply(owned, 200, known, 7, scale)
    last = owned.state.segments[-1].entry
    assert last.outliers > 100 if scale > 10 else last.error > known.newest.quantizer.error_max
    process.until(lambda: known.version == 2, owned)
    process.until_settled(owned)
    assert not known.drifted
    assert {segment.entry.quantizer for segment in owned.state.segments} == {2}


def test_when_the_builder_makes_none_for_rows_that_are_unlike_it_is_asked_again_only_when_they_change(
    tmp_path: Path, process: Process
) -> None:
    owned = _owned(tmp_path)
    _apply(owned, 450)
    process.until_settled(owned)
    known = process.builds.known(owned)
    assert known is not None
    for _ in range(3):
        _apply(owned, 200, known, 7, 3)
    assert known.drifted == 1 and known.has_grown(1_050)
    deleted = [delete(owned.state.position + n, b"%d" % n) for n in range(1_000)]
    owned.view.apply(decode({owned.partition[1]: deleted}, owned.collection)[0])
    owned.checkpoint(known)
    owned.last_record_at = 0.0
    process.until_settled(owned)  # 50 rows are too few to train on
    assert (known.version, known.drifted) == (1, 1)
    _apply(owned, 400, known, 7, 3)
    process.until(lambda: known.version == 2, owned)


def test_rows_found_to_be_unlike_while_the_builder_looks_have_it_look_again(tmp_path: Path) -> None:
    index = IndexParameters(ann_rows_min=ROWS_MIN)
    known = Known(tmp_path, _collection("ivfpq"), "g000001", index)
    known.newest = quantizer_of(DIMENSION)
    known.trained(Trained(1, False, 5_000), 5_000, 0)
    assert not known.has_grown(5_000)
    known.drifted = 1
    known.trained(Trained(1, False, 5_000), 5_000, 0)
    assert known.has_grown(5_000)
    known.trained(Trained(1, False, 5_000), 5_000, 1)
    assert not known.has_grown(5_000)


def test_two_consumers_that_train_at_once_use_the_one_that_was_first(tmp_path: Path) -> None:
    processes = [Process(tmp_path) for _ in range(2)]
    owned = [_owned(tmp_path, number=number) for number in range(2)]
    for each in owned:
        _apply(each, 300, seed=each.partition[1])
    try:
        for process, each in zip(processes, owned, strict=True):
            process.advance(each)
            assert process.builder.build is not None
        for process, each in zip(processes, owned, strict=True):
            process.until_settled(each)
    finally:
        for process in processes:
            process.close()
    found = Quantizers(tmp_path, owned[0].collection, "g000001")
    assert found.versions() == [1]
    quantizer = found.read(1)
    for each in owned:
        for segment in each.state.segments:
            assert segment.codes is not None
            assert np.array_equal(segment.codes[1], quantizer.encode(segment.vectors).codes)


@pytest.mark.parametrize("whole", [0, 1])
def test_instead_of_a_damaged_quantizer_there_is_a_new_one_under_the_next_number(tmp_path: Path, whole: int) -> None:
    owned, process = _owned(tmp_path), Process(tmp_path)
    _apply(owned, 450)
    process.until_settled(owned)
    process.close()
    found = Quantizers(tmp_path, owned.collection, "g000001")
    if whole:
        assert found.create(2, found.read(1))
    path = max(tmp_path.rglob("quantizer-*.bin"))
    path.write_bytes(path.read_bytes()[:-1])
    _apply(owned, 50)
    heir, process = _owned(tmp_path), Process(tmp_path)
    try:
        process.until_settled(heir)
        process.until_settled(heir)
    finally:
        process.close()
    assert found.versions() == list(range(1, 3 + whole))
    assert {segment.entry.quantizer for segment in heir.state.segments} == {2 + whole}


def test_a_merge_copies_codes_of_the_newest_version_and_leaves_dead_rows_out(tmp_path: Path, process: Process) -> None:
    owned = _owned(tmp_path)
    _apply(owned, 450)
    process.until_settled(owned)
    known = process.builds.known(owned)
    _apply(owned, 30, known)
    before = {
        segment.id_of(row): (segment.codes[0][row], segment.codes[1][row].tobytes())
        for segment in owned.state.segments
        if segment.codes is not None
        for row in range(segment.entry.rows)
    }
    deleted = [delete(owned.state.position + n, b"%d" % n) for n in range(200)]
    owned.view.apply(decode({owned.partition[1]: deleted}, owned.collection)[0])
    owned.checkpoint(known)
    owned.last_record_at = 0.0
    process.until(lambda: len(owned.state.segments) == 1, owned)
    (segment,) = owned.state.segments
    assert (segment.entry.rows, segment.dead_rows, segment.entry.quantizer) == (280, 0, 1)
    assert segment.codes is not None
    lists, codes = segment.codes
    assert all(before[segment.id_of(row)] == (lists[row], codes[row].tobytes()) for row in range(280))


def test_when_another_quantizer_has_the_number_of_the_one_before_all_rows_are_coded_anew(
    tmp_path: Path, process: Process
) -> None:
    """As when quantizers are restored from an older copy of the directory than manifests are."""
    owned = _owned(tmp_path)
    _apply(owned, 450)
    process.until_settled(owned)
    known = process.builds.known(owned)
    assert known is not None and known.newest is not None and known.version == 1
    other = quantizer_of(DIMENSION, version=99).quantizer
    path = tmp_path / "docs" / "g000001" / "quantizer-000001.bin"
    path.unlink()
    assert known.place.quantizers.create(1, other)
    entries = [segment.entry for segment in owned.state.segments]
    inputs = [Input.of(each, np.zeros(each.rows, bool)) for each in entries]
    merged = run(Merge(known.place, 0, "seg-000001-000099", inputs, owned.index, 1))
    assert isinstance(merged, Merged) and merged.entry is not None
    assert merged.entry.quantizer_id == other.identity
    segment = Segment(owned.checkpoints.directory / merged.entry.name, merged.entry, DIMENSION, "l2")
    assert segment.codes is not None
    assert (segment.codes[0] == other.encode(segment.vectors).lists).all(), "no codes of the other one are copied"
    process.until(lambda: known.newest is not None and known.newest.quantizer.identity == other.identity, owned)
    process.until_settled(owned)
    assert {segment.entry.quantizer_id for segment in owned.state.segments} == {other.identity}


@pytest.mark.parametrize("kind", ["hnsw", "flat"])
def test_a_collection_of_another_kind_gets_no_quantizer(tmp_path: Path, process: Process, kind: IndexKind) -> None:
    owned = _owned(tmp_path, kind)
    _apply(owned, 450)
    process.until_settled(owned)
    assert [segment.entry.kind for segment in owned.state.segments] == [kind]
    assert not list(tmp_path.rglob("quantizer-*")) and not list(tmp_path.rglob("codes-*"))


@pytest.mark.parametrize("step", ["quantizer-durable", "codes-durable"])
def test_a_builder_killed_after_it_has_written_is_told_and_what_it_has_left_is_used_or_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    monkeypatch.setenv("TIDEMARK_CRASH_AT", step)
    owned, process = _owned(tmp_path), Process(tmp_path)
    _apply(owned, 450)
    try:
        process.until(lambda: process.builder.problem, owned)
        assert len(list(tmp_path.rglob("quantizer-*.bin"))) == 1
        assert not list(tmp_path.rglob("codes-*"))
        monkeypatch.delenv("TIDEMARK_CRASH_AT")
        process.until_settled(owned)
    finally:
        process.close()
    assert Quantizers(tmp_path, owned.collection, "g000001").versions() == [1]
    assert owned.unbuilt_rows == 0


@pytest.mark.parametrize("removal_fails", [False, True])
def test_a_build_that_cannot_be_used_leaves_nothing_and_is_not_made_again_at_once(
    tmp_path: Path, process: Process, removal_fails: bool
) -> None:
    owned, builder, fails = _owned(tmp_path, "hnsw"), process.builder, True
    for _ in range(2):
        _apply(owned, 200)

    def failing(operation: str, path: Path) -> None:
        if fails and operation == "reading" and path.name == "index.faiss":
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), str(path))
        if fails and removal_fails and operation == "removing":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    def advance() -> bool:
        process.advance(owned)
        return builder.problem is not None

    with files.watched(failing):
        wait_until(advance, 30, "a build fails")
        until = time.monotonic() + 0.8
        while time.monotonic() < until:
            advance()
        assert len(list(owned.checkpoints.directory.glob("seg-*"))) == 2 + removal_fails
        fails = False
        wait_until(lambda: not advance(), 30, "a build is used")
    assert [segment.entry.kind for segment in owned.state.segments] == ["hnsw"]


@pytest.mark.parametrize("number", [1, 2])
def test_a_checkpoint_of_an_earlier_format_is_taken_over_coded_and_searched(
    tmp_path: Path, process: Process, number: int
) -> None:
    collection = replace(golden.COLLECTION, index=IndexParameters(ann_rows_min=256))
    shutil.copytree(golden.ROOTS[number], tmp_path, dirs_exist_ok=True)
    checkpoints, view = Checkpoints(tmp_path, collection, "g000001", 0, grace_s=0), View(collection, shared=True)
    loaded = open_checkpoint(checkpoints, view)
    assert checkpoints.claim(TOPIC, loaded, 0)
    made = Generation("g000001", 0, "earliest", collection.index)
    owned = OwnedPartition(("docs", 0), collection, made, TOPIC, view, checkpoints, view.partitions[0].position, 0)
    process.until_settled(owned)
    known = process.builds.known(owned)
    owned.checkpoint(known)
    again = checkpoints.load()
    assert again is not None and not again.damaged
    assert all(segment.codes is not None for segment in again.segments if segment.entry.kind == "flat")
    assert known is not None and known.newest is not None
    index = CollectionIndex(view, collection.index.recall_target, 256)
    index.offer(*known.newest)
    codes_made(index)
    try:
        mirror = ViewMirror(collection, view.place)
        vectors = searcher.prepare_queries(embeddings(3 * golden.ROWS, collection.dimension), collection)
        exact, found = (searcher.search(mirror, vectors, 10, exact=exact).hits for exact in (True, False))
        same = sum(len({h.id for h in a} & {h.id for h in b}) for a, b in zip(exact, found, strict=True))
        assert same >= 0.95 * 10 * len(vectors)
    finally:
        index.close()
