"""Segments: what was written is read back, damage is refused, dead rows stay dead."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rows import FLAT, embeddings, rows_of, segment_of
from tidemark import searcher
from tidemark.ann.exact import exact_search, exact_search_among
from tidemark.collection import Collection, IndexKind, IndexParameters, Metric
from tidemark.errors import CorruptCheckpoint
from tidemark.manifest import SegmentEntry
from tidemark.mirror import ViewMirror
from tidemark.record import hash_ids
from tidemark.segment import Segment, merged
from tidemark.segment_files import remove_segment_files, write_segment
from tidemark.view import View

KINDS: tuple[IndexKind, ...] = ("flat", "hnsw", "ivfpq")


def small(kind: IndexKind) -> IndexParameters:
    return IndexParameters(kind=kind, ann_rows_min=64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 7, 8, 200])
def test_a_segment_is_read_back_as_it_was_written(tmp_path: Path, kind: IndexKind, count: int) -> None:
    vectors = embeddings(count, 5)
    rows = rows_of(vectors, first=40)
    entry = write_segment(tmp_path / "s", rows, "l2", small(kind), seed=1)
    segment = Segment(tmp_path / "s", entry, 5, "l2")
    assert segment.has_graph == (entry.kind == "hnsw") == (kind == "hnsw" and count >= 64)
    assert (segment.row_count, segment.live_count, segment.dead_rows) == (count, count, 0)
    assert segment.codes is None and segment.base == -1
    for row in range(count):
        assert segment.id_of(row) == b"id-%d" % (40 + row)
        assert segment.offset_of(row) == 40 + row
        assert segment.timestamp_of(row) == 1_040 + row
        assert segment.metadata_of(row) == (b'{"n":%d}' % (40 + row) if (40 + row) % 3 else None)
        assert segment.vector_of(row).tolist() == vectors[row].tolist()
        assert segment.live.is_live(row)
    assert segment.digests.tolist() == rows.digests.tolist()


def flip(data: bytearray, at: int) -> bytearray:
    data[at] ^= 1
    return data


DAMAGE: dict[str, Callable[[bytearray], bytearray]] = {
    "first byte": lambda data: flip(data, 0),
    "middle byte": lambda data: flip(data, len(data) // 2),
    "last byte": lambda data: flip(data, len(data) - 1),
    "cut by one": lambda data: data[:-1],
    "cut in half": lambda data: data[: len(data) // 2],
    "empty": lambda data: bytearray(),
    "zero filled": lambda data: bytearray(len(data)),
    "longer": lambda data: data + b"\0",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", KINDS)
def test_damage_to_any_file_is_refused(tmp_path: Path, kind: IndexKind, damage: str) -> None:
    segment = segment_of(tmp_path / "s", embeddings(100, 4), parameters=small(kind))
    segment.kill(np.array([3, 99]))
    segment.save_dead_rows(1, 2)
    assert len(segment.entry.files) == (5 if kind == "hnsw" else 4)
    for name in segment.entry.files:
        path = tmp_path / "s" / name
        whole = path.read_bytes()
        path.write_bytes(DAMAGE[damage](bytearray(whole)))
        with pytest.raises(CorruptCheckpoint, match=name):
            Segment(tmp_path / "s", segment.entry, 4, "l2")
        path.unlink()
        with pytest.raises(CorruptCheckpoint, match="missing"):
            Segment(tmp_path / "s", segment.entry, 4, "l2")
        path.write_bytes(whole)
    Segment(tmp_path / "s", segment.entry, 4, "l2")


def test_every_flipped_byte_is_refused(tmp_path: Path) -> None:
    segment = segment_of(tmp_path / "s", embeddings(3, 2))
    for name in segment.entry.files:
        path = tmp_path / "s" / name
        whole = path.read_bytes()
        for at in range(0, len(whole), max(1, len(whole) // 150)):
            path.write_bytes(flip(bytearray(whole), at))
            with pytest.raises(CorruptCheckpoint):
                Segment(tmp_path / "s", segment.entry, 2, "l2")
        path.write_bytes(whole)


@pytest.mark.parametrize(("change", "dimension"), [({"rows": 11}, 4), ({}, 5), ({"rows": 9}, 4)])
def test_an_entry_of_another_shape_is_refused(tmp_path: Path, change: dict[str, int], dimension: int) -> None:
    entry: SegmentEntry = write_segment(tmp_path / "s", rows_of(embeddings(10, 4)), "l2", FLAT, seed=1)
    with pytest.raises(CorruptCheckpoint):
        Segment(tmp_path / "s", msgspec.structs.replace(entry, **change), dimension, "l2")


@pytest.mark.parametrize("kind", KINDS)
def test_dead_rows_are_saved_and_read_back(tmp_path: Path, kind: IndexKind) -> None:
    vectors = embeddings(101, 4)
    segment = segment_of(tmp_path / "s", vectors, parameters=small(kind))
    segment.save_dead_rows(1, 1)
    assert segment.entry.dead_file is None
    digests = (
        segment.kill(np.array([0, 100])) + segment.kill(np.array([7, 8, 9])) + segment.kill(np.array([], np.int64))
    )
    dead = [0, 7, 8, 9, 100]
    assert digests % 2**64 == sum(map(int, segment.digests[dead])) % 2**64
    segment.save_dead_rows(1, 2)
    first = segment.entry
    segment.save_dead_rows(1, 3)
    assert segment.entry is first
    again = Segment(tmp_path / "s", first, 4, "l2")
    assert np.flatnonzero(again.dead_mask()).tolist() == dead
    assert (again.dead_rows, again.live_count, first.live_rows) == (5, 96, 96)
    again.kill(np.array([1]))
    again.save_dead_rows(1, 4)
    assert again.entry.dead_rows == 6
    assert sorted(name for name in again.entry.files if name.startswith("dead")) == ["dead-000001-0000000004.bits"]
    assert np.flatnonzero(Segment(tmp_path / "s", first, 4, "l2").dead_mask()).tolist() == dead


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_row_keeps_its_vector_for_a_reader_who_found_it_before(tmp_path: Path, kind: IndexKind) -> None:
    vectors = embeddings(70, 4)
    segment = segment_of(tmp_path / "s", vectors, parameters=small(kind))
    before = segment.vector_of(5)
    segment.kill(np.array([5]))
    assert before.tolist() == segment.vector_of(5).tolist() == vectors[5].tolist()


def test_an_id_is_found_once_and_only_while_alive(tmp_path: Path) -> None:
    segment = segment_of(tmp_path / "s", embeddings(500, 2))
    ids = [b"id-499", b"nobody", b"id-0", b"id-7", b""]
    assert sorted(segment.find(hash_ids(ids), ids)) == [0, 7, 499]
    segment.kill(np.array([7]))
    assert sorted(segment.find(hash_ids(ids), ids)) == [0, 499]
    assert segment.find(hash_ids([]), []).tolist() == []


@pytest.mark.parametrize("shared", [0, 12345, 2**64 - 1])
def test_ids_of_equal_hash_are_told_apart(tmp_path: Path, shared: int) -> None:
    segment = segment_of(tmp_path / "s", embeddings(20, 2))
    clash = np.full(20, shared, np.uint64)
    segment.sorted_hashes = clash
    segment.sorted_rows = np.arange(20, dtype=np.uint32)
    ids = [b"id-%d" % number for number in range(0, 25)]
    assert sorted(segment.find(np.full(25, shared, np.uint64), ids)) == list(range(20))
    assert segment.find(np.full(1, shared, np.uint64), [b"nobody"]).tolist() == []
    segment.kill(np.array([19]))
    assert segment.find(np.full(1, shared, np.uint64), [b"id-19"]).tolist() == []


def test_ids_with_nul_bytes_and_of_any_length_are_kept_apart(tmp_path: Path) -> None:
    vectors = embeddings(4, 2)
    ids = [b"a", b"a\0", b"a\0\0", b"\xff" * 1024]
    rows = replace(rows_of(vectors), ids=pa.array(ids, pa.large_binary()), hashes=hash_ids(ids))
    segment = Segment(tmp_path / "s", write_segment(tmp_path / "s", rows, "l2", FLAT, seed=1), 2, "l2")
    for row, id_ in enumerate(ids):
        assert segment.find(hash_ids([id_]), [id_]).tolist() == [row]
        assert segment.id_of(row) == id_


def test_the_live_part_of_several_segments_is_their_live_rows_in_order(tmp_path: Path) -> None:
    first = segment_of(tmp_path / "a", embeddings(10, 3))
    second = segment_of(tmp_path / "b", embeddings(5, 3, seed=1))
    first.kill(np.array([0, 9]))
    second.kill(np.arange(5))
    rows = merged([first, second])
    assert rows.offsets.tolist() == list(range(1, 9))
    assert np.isfinite(rows.vectors).all()
    assert len(merged([second])) == 0


def test_removing_a_segment_twice_is_fine(tmp_path: Path) -> None:
    segment_of(tmp_path / "s", embeddings(10, 3))
    remove_segment_files(tmp_path / "s")
    remove_segment_files(tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("k", [1, 10, 5_000])
def test_among_some_rows_no_others_are_compared(metric: Metric, k: int) -> None:
    vectors = embeddings(100_000, 8)
    among = np.concatenate((np.arange(0, 40_000, 7), np.arange(40_000, 90_000)))
    others = np.ones(len(vectors), np.bool_)
    others[among] = False
    vectors[others] = vectors[0] if metric == "l2" else 1e6  # nearer than any that may be found
    queries = vectors[[0, 700]]
    distances, found = exact_search_among(vectors, among, queries, k, metric)
    wanted_distances, wanted = exact_search(vectors[among], queries, k, metric)
    assert distances == pytest.approx(wanted_distances, abs=1e-4)
    assert np.isin(found, among).all()
    assert (found == among[wanted]).mean() > 0.99  # but for ties


def in_view(segment: Segment, metric: Metric) -> tuple[ViewMirror, View]:
    """The segment as it is searched, with the rows dead that are so now."""
    collection = Collection(name="c", topic="t", dimension=segment.dimension, metric=metric)
    view = View(collection, shared=True)
    view.open(0, [segment], segment.row_count, 0, 0)
    return ViewMirror(collection, view.place), view


@given(
    count=st.integers(70, 1_500),
    dead_share=st.sampled_from([0.0, 0.01, 0.5, 0.9, 0.99, 1.0]),
    k=st.sampled_from([1, 3, 10, 100, 1_000]),
    metric=st.sampled_from(["l2", "ip"]),
    kind=st.sampled_from(["flat", "hnsw"]),
    together=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_searches_find_the_nearest_live_rows_whichever_are_dead(
    tmp_path_factory: pytest.TempPathFactory,
    count: int,
    dead_share: float,
    k: int,
    metric: Metric,
    kind: IndexKind,
    together: bool,
    seed: int,
) -> None:
    vectors = embeddings(count, 8, seed=seed)
    segment = segment_of(tmp_path_factory.mktemp("s") / "s", vectors, metric, small(kind))
    scores = ((vectors - vectors[0]) ** 2).sum(axis=1) if metric == "l2" else -(vectors @ vectors[0])
    rows = np.argsort(scores) if together else np.random.default_rng(seed).permutation(count)
    segment.kill(np.sort(rows[: round(count * dead_share)]))
    live = np.flatnonzero(~segment.dead_mask())
    wanted = np.sort(scores[live])[:k]
    mirror, _view = in_view(segment, metric)
    for exact in (True, False):
        for line in searcher.search(mirror, vectors[[0, 0]], k, exact=exact).hits:
            answered = [hit.row for hit in line]
            assert len(set(answered)) == len(answered) == len(wanted)
            assert np.isin(answered, live).all()
            if exact or len(live) <= k or kind != "hnsw":
                assert scores[answered] == pytest.approx(wanted, abs=1e-3)


def test_a_segment_taken_into_a_row_space_keeps_its_vectors_there_and_its_dead_rows(tmp_path: Path) -> None:
    vectors = embeddings(3_000, 8)
    segment = segment_of(tmp_path / "s", vectors)
    segment.kill(np.array([0, 2_999]))
    mirror, _view = in_view(segment, "l2")
    assert segment.base % 1_024 == 0
    (theirs,) = mirror.snapshot().segments
    assert (mirror.vectors[segment.base : segment.base + 3_000] == vectors).all()
    assert theirs.base == segment.base and theirs.live_count == segment.live_count == 2_998
    segment.save_dead_rows(1, 1)
    again = segment.reopened(segment.entry)
    assert again.is_of(segment.entry) and again.dead_rows == 2
