"""The lists of a view: made, and made anew, while searches go on that find what an exact scan finds."""

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.messages import delete, upsert
from tests.rows import FLAT, embeddings
from tests.view_logs import Checkpoint, Disk, follow
from tests.views import apply, codes_made, opened
from tidemark import searcher
from tidemark.ann.parameters import SearchParameters
from tidemark.ann.quantizer import Encoded, Quantizer
from tidemark.collection import Collection, IndexKind, IndexParameters, Metric
from tidemark.collection_index import CollectionIndex
from tidemark.mirror import ViewMirror
from tidemark.quantizers import Versioned
from tidemark.record import Message
from tidemark.segment import Segment
from tidemark.segment_files import write_segment

DIMENSION, ROWS, K = 16, 4_000, 10
VECTORS = embeddings(3 * ROWS, DIMENSION)
TARGET = 0.97


def collection_of(dimension: int = DIMENSION, metric: Metric = "l2", kind: IndexKind = "ivfpq") -> Collection:
    parameters = IndexParameters(kind=kind, ann_rows_min=64)
    return Collection(name="c", topic="t", dimension=dimension, metric=metric, index=parameters)


class Replica:
    """A view with the lists that are kept for it, and another process's side of it."""

    def __init__(self, collection: Collection | None = None, partitions: int = 1, **options: Any) -> None:
        self.collection = collection or collection_of()
        of_view = options.pop("tail_rows", 65_536), options.pop("reclaimed_after_s", 60.0)
        self.view = opened(self.collection, range(partitions), *of_view)
        options = {"ann_rows_min": 64, "coded_rows_min": 64, "dead_min": 100} | options
        self.index = CollectionIndex(self.view, TARGET, **options)
        self.mirror = ViewMirror(self.collection, self.view.place)
        self.offset = 0

    def put(self, vectors: NDArray[np.float32], first: int = 0, partition: int = 0) -> None:
        """Upsert rows `id-<first>` and those after."""
        for start in range(0, len(vectors), 2_000):
            apply(self.view, self._messages(vectors[start : start + 2_000], first + start, partition))

    def _messages(self, vectors: NDArray[np.float32], first: int, partition: int) -> list[Message]:
        self.offset += len(vectors)
        offsets = range(self.offset - len(vectors), self.offset)
        rows = zip(offsets, range(first, first + len(vectors)), vectors, strict=True)
        return [upsert(offset, b"id-%d" % n, vector, partition=partition) for offset, n, vector in rows]

    def drop(self, first: int, stop: int, partition: int = 0) -> None:
        self.offset += stop - first
        gone = zip(range(self.offset - stop + first, self.offset), range(first, stop), strict=True)
        apply(self.view, [delete(offset, b"id-%d" % n, partition) for offset, n in gone])

    def coded(self, vectors: NDArray[np.float32] | None = None, version: int = 1, seed: int = 0) -> "Replica":
        self.index.offer(version, trained(self.collection, VECTORS[:ROWS] if vectors is None else vectors, seed))
        codes_made(self.index)
        return self

    def turn_until(self, fact: Callable[[], bool], may_train: bool = True, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while not fact():
            assert time.monotonic() < deadline, "did not become true in time"
            self.index.turn(may_train)
            time.sleep(0.002)

    def recall(self, queries: NDArray[np.float32], k: int = K) -> float:
        """Of the k nearest rows; rows as near as the k-th are as good."""
        queries = searcher.prepare_queries(queries, self.collection)
        exact, found = (searcher.search(self.mirror, queries, k, exact=exact).hits for exact in (True, False))
        shares = []
        for nearest, line in zip(exact, found, strict=True):
            assert len({hit.id for hit in line}) == len(line) == len(nearest)
            worst = nearest[-1].distance
            shares.append(np.mean([hit.distance <= worst + 1e-5 * abs(worst) for hit in line]))
        return float(np.mean(shares))

    def entries(self) -> NDArray[np.int64]:
        """The row numbers that the lists hold, dead or alive."""
        assert self.index.lists is not None
        memory = self.index.lists.memory
        lines = zip(memory.starts[:-1].tolist(), memory.sizes.tolist(), strict=True)
        held = [memory.numbers[start : start + size] for start, size in lines]
        return np.concatenate([*held, memory.outliers[1 : 1 + int(memory.outliers[0])]])

    def assert_counts(self) -> None:
        """Each living row is in the lists once, but for the newest; the dead ones among the entries are counted."""
        assert self.index.lists is not None
        entries = self.entries()
        living = self.mirror.live.are_live(np.maximum(entries, 0)) & (entries >= 0)
        assert len(np.unique(entries[living])) == np.count_nonzero(living)
        assert self.index.lists.dead == np.count_nonzero(~living)
        assert self.index.lists.entries == len(entries)

    @property
    def ranked_exactly(self) -> int:
        """How many rows a search compares beside those that the lists lead it to."""
        snapshot = self.mirror.snapshot()
        coded = snapshot.index.coded if snapshot.index else 0
        newest = sum(tail.stop - max(coded, tail.start) for tail in snapshot.tails if tail.stop > coded)
        return newest + sum(segment.live_count for segment in snapshot.unindexed)


def trained(collection: Collection, vectors: NDArray[np.float32], seed: int = 0, nlist: int = 0) -> Quantizer:
    prepared = vectors if collection.metric != "cosine" else searcher.prepare_queries(vectors, collection)
    return Quantizer.train(prepared, collection.metric, len(prepared), TARGET, seed, nlist=nlist)


QUANTIZER = trained(collection_of(), VECTORS[:ROWS])
FOUR_LISTS = trained(collection_of(), VECTORS[:ROWS], nlist=4)
QUERIES = np.ascontiguousarray(VECTORS[: 2 * ROWS : 40] + np.float32(0.01))


# Quantizers.


def test_without_a_quantizer_one_is_trained_after_a_while_and_only_where_there_are_rows_enough() -> None:
    made = Replica(ann_rows_min=2_000, own_quantizer_after_s=0.3)
    made.put(VECTORS[:1_900])
    started = time.monotonic()
    made.turn_until(lambda: time.monotonic() > started + 0.5)
    assert (made.index.version, made.index.idle) == (None, True)
    assert made.recall(QUERIES) == 1
    made.put(VECTORS[1_900:ROWS], 1_900)
    made.turn_until(lambda: time.monotonic() > started + 1, may_train=False)
    assert made.index.version is None
    made.turn_until(lambda: made.index.version == 0)
    assert made.ranked_exactly == 0
    assert made.recall(QUERIES) >= 0.95


def test_a_quantizer_that_is_offered_is_used_and_an_older_one_is_not() -> None:
    made = Replica()
    made.put(VECTORS[:ROWS])
    for version, used in ((4, 4), (3, 4), (4, 4), (6, 6)):
        made.index.offer(version, QUANTIZER)
        codes_made(made.index)
        assert made.index.version == used
        snapshot = made.mirror.snapshot()
        assert snapshot.index is not None
        assert made.view.index is not None and made.view.index.version == used
    assert made.ranked_exactly == 0
    assert made.recall(QUERIES) >= 0.95


def test_another_quantizer_of_a_number_used_before_or_of_a_lower_one_is_used(tmp_path: Path) -> None:
    """As when the checkpoints were restored, or begun again. One that was used before and left is not used again."""
    made = Replica(drifted_rows_max=500)
    made.put(VECTORS[:ROWS])
    for version, quantizer in ((3, QUANTIZER), (3, FOUR_LISTS), (1, QUANTIZER)):
        made.index.offer(version, quantizer)
        assert not made.index.settled
        codes_made(made.index)
        assert made.index.lists is not None
        assert (made.index.version, made.index.lists.place.lists) == (version, quantizer.lists)
        assert made.recall(QUERIES) >= 0.9
    made.put(100 + VECTORS[ROWS : ROWS + 600], ROWS)
    made.turn_until(lambda: made.index.version == 0)  # they are unlike the others
    made.index.offer(1, QUANTIZER)
    codes_made(made.index)
    assert made.index.version == 0


def test_one_that_was_trained_here_is_replaced_by_the_consumers_first() -> None:
    made = Replica(own_quantizer_after_s=0)
    made.put(VECTORS[:ROWS])
    made.turn_until(lambda: made.index.version == 0)
    made.coded()
    assert made.index.version == 1
    assert made.recall(QUERIES) >= 0.95


def test_a_newer_quantizer_takes_over_without_a_failed_or_a_worse_search() -> None:
    made = Replica(partitions=2)
    made.put(VECTORS[:ROWS])
    made.put(VECTORS[ROWS : 2 * ROWS], ROWS, partition=1)
    made.coded()
    recalls: list[tuple[int | None, float]] = []
    failures: list[BaseException] = []
    ended = threading.Event()

    def search() -> None:
        try:
            while not ended.is_set():
                recalls.append((made.index.version, made.recall(QUERIES[::2])))
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for version in (2, 3):
            made.coded(VECTORS[: 2 * ROWS], version, seed=version)
            seen = len(recalls)
            made.turn_until(lambda seen=seen: len(recalls) > seen + 4 or bool(failures))  # type: ignore[misc]
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert {version for version, _ in recalls} >= {2, 3}
    assert min(recall for _, recall in recalls) >= 0.93
    for version in (2, 3):
        assert np.mean([recall for number, recall in recalls if number == version]) >= 0.95


def test_rows_unlike_those_trained_on_are_ranked_exactly_until_there_is_a_quantizer_for_them() -> None:
    for unlike in (embeddings(ROWS, DIMENSION, seed=9) * np.float32(3), VECTORS[:ROWS] * np.float32(40)):
        made = Replica(drifted_rows_max=3_000)
        made.put(VECTORS[:ROWS])
        made.coded()
        made.put(unlike[:2_000], ROWS)
        codes_made(made.index)
        assert made.ranked_exactly >= 1_900
        queries = np.concatenate([QUERIES, unlike[::20] + np.float32(0.01)])
        assert made.recall(queries) >= 0.95
        assert made.index.has([])
        made.put(unlike[2_000:], ROWS + 2_000)
        made.turn_until(lambda made=made: made.index.version == 0)  # type: ignore[misc]
        codes_made(made.index)
        assert made.ranked_exactly == 0
        assert made.recall(queries) >= 0.95
        assert made.index.lists is not None and made.index.lists.outliers < 500


def test_segments_of_rows_unlike_those_trained_on_are_ranked_exactly_too(tmp_path: Path) -> None:
    made = Replica(drifted_rows_max=3_000)
    made.put(VECTORS[:ROWS])
    made.coded()
    unlike = embeddings(ROWS, DIMENSION, seed=9) * np.float32(3)
    queries = np.concatenate([QUERIES, unlike[::20] + np.float32(0.01)])
    for number in (0, 1):
        leader = opened(made.collection, (1,))
        rows = unlike[number * 2_000 : number * 2_000 + 2_000]
        apply(leader, [upsert(n, b"%d-%d" % (number, n), vector, partition=1) for n, vector in enumerate(rows)])
        segment = Disk(tmp_path / str(number)).checkpoint(leader, 1).segments()
        state = made.view.partitions.get(1)
        made.view.open(1, [*(state.segments if state else ()), *segment], 2_000, 0, 0)
        if number == 0:
            codes_made(made.index)
            assert made.ranked_exactly == 2_000
            assert made.index.settled
            assert made.recall(queries) >= 0.95
    made.turn_until(lambda: made.index.version == 0)
    codes_made(made.index)
    assert made.ranked_exactly == 0
    assert made.recall(queries) >= 0.95


# Making lists anew.


def test_a_list_without_room_is_made_anew_with_room() -> None:
    collection = collection_of(dimension=2)
    made = Replica(collection, tail_rows=200_000)
    spread = np.random.default_rng(0).normal(size=(2_000, 2)).astype(np.float32)
    made.put(spread)
    made.coded(spread)
    first = made.index.lists
    made.put(np.tile(spread[:1], (70_000, 1)), 2_000)
    codes_made(made.index)
    assert made.index.lists is not first
    assert made.ranked_exactly <= 64
    made.assert_counts()
    assert made.recall(spread[::20]) >= 0.95


def test_lists_are_made_anew_when_a_quarter_of_the_entries_is_dead() -> None:
    made = Replica()
    made.put(VECTORS[:ROWS])
    made.coded()
    first = made.index.lists
    made.drop(0, ROWS // 6)
    codes_made(made.index)
    assert made.index.lists is first
    made.assert_counts()
    made.drop(ROWS // 6, ROWS // 4)
    time.sleep(0.3)
    made.turn_until(lambda: made.index.lists is not first, timeout_s=5)
    codes_made(made.index)
    made.assert_counts()
    assert made.index.lists is not None and made.index.lists.dead == 0
    assert made.recall(QUERIES) >= 0.95


def test_at_rest_lists_are_tidied_up_when_three_in_a_hundred_entries_are_dead() -> None:
    made = Replica(rest_s=0.5)
    made.put(VECTORS[:ROWS])
    made.coded()
    first = made.index.lists
    made.drop(0, ROWS // 20)
    made.turn_until(lambda: made.index.lists is not first, timeout_s=10)
    made.drop(ROWS // 20, ROWS // 20 + ROWS // 50)
    second, ended = made.index.lists, time.monotonic() + 1.5
    made.turn_until(lambda: time.monotonic() > ended)
    assert made.index.lists is second


def test_what_dies_while_lists_are_made_is_counted_in_them() -> None:
    made = Replica(partitions=2)
    made.put(VECTORS[:ROWS])
    made.put(VECTORS[ROWS : 2 * ROWS], ROWS, partition=1)
    for version in (1, 2):
        made.index.offer(version, QUANTIZER)
        while made.index.version != version:
            made.index.turn(may_train=False)
            made.put(VECTORS[2 * ROWS : 2 * ROWS + 50], version * 50)
            made.drop(ROWS + version * 1_000, ROWS + version * 1_000 + 50, partition=1)
        codes_made(made.index)
        made.assert_counts()


@pytest.mark.parametrize("seed", range(4))
def test_updates_beside_the_side_thread_leave_exact_counts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    made = Replica(tail_rows=1_024, coded_rows_min=100, dead_min=10**9)
    made.put(VECTORS[:2_000])
    made.coded()
    for _ in range(150):
        first = int(rng.integers(2_000))
        made.put(VECTORS[first : first + 40], first)
        made.index.turn(may_train=False)
    codes_made(made.index)
    made.assert_counts()
    assert made.recall(QUERIES) >= 0.95


# The bound.


BOUND = ROWS * (FOUR_LISTS.code_bytes + 8)


def test_lists_at_their_bound_say_so_and_everything_is_found_until_there_is_room_again() -> None:
    made = Replica(bytes_max=BOUND, tail_rows=1_024)
    made.put(VECTORS[: ROWS // 2])
    made.index.offer(1, FOUR_LISTS)
    codes_made(made.index)
    assert made.index.problem is None and made.ranked_exactly == 0
    for first in range(ROWS // 2, 2 * ROWS, 500):
        made.put(VECTORS[first : first + 500], first)
        codes_made(made.index)
    assert made.index.problem is not None and "api.index_bytes_max" in made.index.problem
    assert made.index.has(made.view.segments)
    assert made.index.lists is not None and made.index.lists.memory_bytes < 1.25 * BOUND
    assert made.ranked_exactly > ROWS // 2
    assert made.recall(QUERIES) >= 0.95
    made.drop(0, 7 * ROWS // 4)
    time.sleep(0.3)
    made.turn_until(lambda: made.index.problem is None and made.ranked_exactly < 64, timeout_s=10)
    assert made.recall(np.ascontiguousarray(VECTORS[7 * ROWS // 4 : 2 * ROWS : 10])) >= 0.95


def test_lists_that_are_made_anew_keep_within_the_bound(tmp_path: Path) -> None:
    made = Replica(partitions=3, bytes_max=BOUND, tail_rows=1_024)
    made.put(VECTORS[: 2 * ROWS])
    for p, rows in ((1, 3 * ROWS // 4), (2, ROWS // 8)):
        checkpoint = leader_checkpoint(tmp_path / str(p), VECTORS[2 * ROWS : 2 * ROWS + rows], made.collection)
        made.view.open(p, checkpoint.segments(), checkpoint.position, 0, checkpoint.digest)
    for version in (1, 2):
        made.index.offer(version, FOUR_LISTS)
        codes_made(made.index)
        assert made.index.version == version
        assert made.index.lists is not None
        assert BOUND // 2 < made.index.lists.memory_bytes < 1.25 * BOUND  # of whole pages
        assert made.index.problem is not None
        made.assert_counts()
        assert made.recall(QUERIES) >= 0.95


# Segments.


def leader_checkpoint(directory: Path, vectors: NDArray[np.float32], collection: Collection) -> Checkpoint:
    leader = opened(collection)
    apply(leader, [upsert(n, b"id-%d" % n, vector) for n, vector in enumerate(vectors)])
    return Disk(directory).checkpoint(leader)


def test_segments_are_coded_before_they_are_taken(tmp_path: Path) -> None:
    made = Replica(partitions=2)
    made.put(VECTORS[ROWS : 2 * ROWS], ROWS, partition=1)
    made.coded()
    checkpoint = leader_checkpoint(tmp_path, VECTORS[:ROWS], made.collection)
    segments = checkpoint.segments()
    made.view.prepare(segments)
    made.view.announce(segments)
    made.index.want(segments)
    assert not made.index.has(segments)
    codes_made(made.index)
    assert made.index.has(segments)
    assert not any(hit.partition == 0 for hit in searcher.search(made.mirror, QUERIES[:1], 100).hits[0])
    follow(made.view, checkpoint, segments)
    made.view.announce([])
    made.index.want([])
    assert made.ranked_exactly == 0
    assert made.recall(QUERIES) >= 0.95
    made.drop(0, 100)
    made.assert_counts()


def test_rows_that_a_segment_takes_over_while_they_were_replaced_are_counted_as_dead(tmp_path: Path) -> None:
    made = Replica()
    checkpoint = leader_checkpoint(tmp_path, VECTORS[:ROWS], made.collection)
    made.put(VECTORS[:ROWS])
    made.coded()
    segments = checkpoint.segments()
    made.view.prepare(segments)
    made.index.want(segments)
    codes_made(made.index)
    made.put(VECTORS[ROWS : ROWS + 300], 50)
    follow(made.view, checkpoint, segments, kept_rows_max=0)
    made.index.want([])
    assert made.view.segments == segments
    codes_made(made.index)
    made.assert_counts()
    assert made.recall(QUERIES) >= 0.95


def test_segments_that_were_coded_and_not_taken_are_forgotten_even_in_the_midst(tmp_path: Path) -> None:
    made = Replica()
    made.put(VECTORS[:ROWS])
    made.coded()
    checkpoint = leader_checkpoint(tmp_path, VECTORS[ROWS : 2 * ROWS], made.collection)
    for turns in (0, 1, 1, 2, 50):
        segments = checkpoint.segments()
        made.view.prepare(segments)
        made.index.want(segments)
        for _ in range(turns):
            made.index.turn(may_train=False)
            time.sleep(0.001 * turns)
        made.view.forget(segments)
        made.index.want([])
        codes_made(made.index)
        made.view.space.reclaim(before=float("inf"))
        time.sleep(0.26)
        made.index.turn(may_train=False)
    assert (made.entries() >= 0).all()
    made.assert_counts()
    assert made.recall(QUERIES) >= 0.95


def test_a_segment_with_the_row_numbers_of_one_that_is_gone_is_not_taken_for_coded(tmp_path: Path) -> None:
    made = Replica()
    made.put(VECTORS[2 * ROWS :], 2 * ROWS)
    made.coded()
    bases = []
    for number in (0, 1):
        vectors = VECTORS[number * ROWS : (number + 1) * ROWS]
        checkpoint = leader_checkpoint(tmp_path / str(number), vectors, made.collection)
        made.view.open(1, checkpoint.segments(), checkpoint.position, 0, checkpoint.digest)
        bases.append(made.view.segments[0].base)
        if number == 0:
            codes_made(made.index)
            assert made.ranked_exactly == 0
            made.view.open(1, [], 0, -1, 0)
            made.view.space.reclaim(before=float("inf"))
    assert bases[0] == bases[1]
    assert made.ranked_exactly == ROWS
    assert made.recall(np.ascontiguousarray(VECTORS[ROWS : 2 * ROWS : 40])) >= 0.95
    codes_made(made.index)
    assert made.ranked_exactly == 0
    assert made.recall(np.ascontiguousarray(VECTORS[ROWS : 2 * ROWS : 40])) >= 0.95


@pytest.mark.parametrize(
    ("version", "quantizer", "read"), [(1, QUANTIZER, True), (2, QUANTIZER, False), (1, FOUR_LISTS, False)]
)
def test_codes_beside_a_segment_are_read_when_they_are_of_the_quantizer_used(
    tmp_path: Path, version: int, quantizer: Quantizer, read: bool
) -> None:
    made = Replica()
    leader = opened(made.collection)
    apply(leader, [upsert(n, b"id-%d" % n, vector) for n, vector in enumerate(VECTORS[:500])])
    rows = leader.unsaved_rows(0)
    assert rows is not None
    in_list_3 = Encoded(np.full(500, 3, np.uint32), np.zeros((500, QUANTIZER.code_bytes), np.uint8), 0.0)
    entry = write_segment(tmp_path / "s", rows, "l2", FLAT, 1, Versioned(version, quantizer), in_list_3)
    made.view.open(0, [Segment(tmp_path / "s", entry, DIMENSION, "l2")], 500, 0, 0)
    made.index.offer(1, QUANTIZER)
    codes_made(made.index)
    assert made.index.lists is not None
    assert (int(made.index.lists.memory.sizes[3]) == 500) == read
    if not read:
        assert made.recall(QUERIES) >= 0.95


def test_row_numbers_that_lists_still_hold_are_not_given_again(tmp_path: Path) -> None:
    made = Replica(tail_rows=1_024, dead_min=4_096, reclaimed_after_s=0.0)
    made.put(VECTORS[:600])
    made.coded(VECTORS[:4_000])
    disk, rng = Disk(tmp_path), np.random.default_rng(1)
    for turn in range(6):  # every id anew: so few entries die that the lists stay as they are
        made.put(VECTORS[rng.permutation(4_000)[:600]])
        codes_made(made.index)
        if turn % 2 == 0:
            disk.save(made.view)
            codes_made(made.index)
        answer = searcher.search(made.mirror, VECTORS[5_000:5_020], 600)
        assert [len(hits) for hits in answer.hits] == [600] * 20


def test_what_a_quantizer_was_calibrated_to_is_measured_on_the_rows_there_are() -> None:
    made = Replica()
    made.put(VECTORS[:ROWS])
    quantizer = trained(made.collection, VECTORS[:ROWS], 0)
    told_wrong = msgspec.structs.replace(quantizer._head, parameters=SearchParameters(effort=1, k_factor=1, recall=1.0))
    made.index.offer(1, Quantizer(told_wrong, quantizer.empty_index()))
    codes_made(made.index)
    assert made.index.lists is not None
    assert made.index.lists.parameters.effort > 1
    assert made.recall(QUERIES) >= 0.95


def test_rows_that_the_lists_do_not_have_yet_do_not_count_against_their_searches() -> None:
    made = Replica(coded_rows_min=100_000)
    made.put(VECTORS[:ROWS])
    made.coded()
    assert made.index.lists is not None and made.index._used is not None
    before = made.index.lists.parameters
    made.put(VECTORS[ROWS : ROWS + ROWS // 5])  # a fifth of the ids anew
    made.index._measured(made.index._used, made.index.lists)
    assert made.index.lists.parameters.effort <= 2 * before.effort
    assert made.index.lists.parameters.k_factor <= before.k_factor
    assert made.index.lists.parameters.recall >= TARGET - 0.01


def test_row_numbers_come_back_without_a_checkpoint() -> None:
    made = Replica(tail_rows=1_024, reclaimed_after_s=0.0)
    made.put(VECTORS[:600])
    made.coded(VECTORS[:4_000])
    rng, last, bases = np.random.default_rng(1), made.view.tails[-1], set[int]()
    for _ in range(300):
        made.put(VECTORS[rng.permutation(4_000)[:600]])
        codes_made(made.index)
        newest = made.view.tails[-1]
        if newest is not last and newest.base in bases:
            return
        last = newest
        bases.add(newest.base)
    raise AssertionError(f"{len(bases)} tails had numbers of their own")


def test_codes_whose_file_is_gone_are_made_anew(tmp_path: Path) -> None:
    made = Replica()
    leader = opened(made.collection)
    apply(leader, [upsert(n, b"id-%d" % n, vector) for n, vector in enumerate(VECTORS[:500])])
    rows = leader.unsaved_rows(0)
    assert rows is not None
    entry = write_segment(tmp_path / "s", rows, "l2", FLAT, 1, Versioned(1, QUANTIZER))
    assert entry.codes_file is not None
    made.view.open(0, [Segment(tmp_path / "s", entry, DIMENSION, "l2")], 500, 0, 0)
    (tmp_path / "s" / entry.codes_file).unlink()
    made.index.offer(1, QUANTIZER)
    codes_made(made.index)
    assert made.index.lists is not None and made.index.lists.entries == 500
    assert made.recall(QUERIES) >= 0.95


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_collections_of_other_kinds_have_no_lists(kind: IndexKind) -> None:
    made = Replica(collection_of(kind=kind), own_quantizer_after_s=0)
    made.put(VECTORS[:ROWS])
    made.index.offer(1, QUANTIZER)
    for _ in range(20):
        made.index.turn()
        time.sleep(0.005)
    assert (made.index.version, made.index.lists, made.view.index) == (None, None, None)
    assert made.recall(QUERIES) == 1


# Recall.


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("dimension", [1, 2, 3, 384])
def test_any_metric_and_dimension_is_searched_as_by_an_exact_scan(metric: Metric, dimension: int) -> None:
    vectors = embeddings(3_000, dimension, rank=min(8, dimension))
    made = Replica(collection_of(dimension, metric), partitions=3)
    for p in range(3):
        made.put(vectors[p * 1_000 : p * 1_000 + 1_000], p * 1_000, p)
    made.coded(vectors)
    assert made.ranked_exactly == 0
    assert made.recall(np.ascontiguousarray(vectors[::30] * np.float32(1.01))) >= 0.95
    made.put(vectors[:40] + np.float32(0.1), 500)
    assert made.ranked_exactly == 40
    assert made.recall(np.ascontiguousarray(vectors[::30] * np.float32(1.01))) >= 0.95


def test_4096_dimensions_are_searched_as_by_an_exact_scan() -> None:
    vectors = embeddings(600, 4_096)
    made = Replica(collection_of(4_096, "cosine"))
    made.put(vectors)
    made.coded(vectors)
    assert made.ranked_exactly == 0
    assert made.recall(vectors[::10]) >= 0.95


def _odd_rows() -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    far = VECTORS[:ROWS].copy()
    far[::100] *= np.float32(1_000)
    clusters = np.concatenate([100 * rng.normal(size=DIMENSION) + rng.normal(size=(800, DIMENSION)) for _ in range(5)])
    return {
        "duplicates": np.tile(VECTORS[:1], (2_000, 1)),
        "zeros": np.zeros((2_000, DIMENSION), np.float32),
        "zeros among others": np.concatenate([np.zeros((500, DIMENSION), np.float32), VECTORS[:1_500]]),
        "each four times": np.repeat(VECTORS[:1_000], 4, axis=0),
        "some far out": far,
        "cluster after cluster": clusters.astype(np.float32),
    }


@pytest.mark.parametrize("name", _odd_rows())
@pytest.mark.parametrize("early", [False, True])
def test_odd_rows_are_searched_as_by_an_exact_scan(name: str, early: bool) -> None:
    """Also by a quantizer that has seen the first of them only."""
    vectors = _odd_rows()[name]
    made = Replica(drifted_rows_max=1_000)
    made.put(vectors[:700] if early else vectors)
    made.coded(vectors[:700] if early else vectors)
    if early:
        for first in range(700, len(vectors), 300):
            made.put(vectors[first : first + 300], first)
            codes_made(made.index)
            assert made.recall(np.ascontiguousarray(vectors[: first + 300 : 5])) >= 0.95
    made.turn_until(lambda: made.index.idle)
    assert made.ranked_exactly < 1_100
    assert made.recall(np.ascontiguousarray(vectors[::5])) >= 0.95


# What a search costs.


def faiss_calls(function: Callable[[], object]) -> Counter[str]:
    """How often which function of FAISS's was called."""
    calls: Counter[str] = Counter()

    def note(_frame: object, event: str, called: Any) -> None:
        if event == "c_call" and "swigfaiss" in str(getattr(called, "__module__", "")):
            calls[called.__name__] += 1

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls


def test_a_search_calls_faiss_as_often_for_many_segments_of_many_partitions_as_for_one(
    tmp_path: Path,
) -> None:
    counts = []
    for partitions in (1, 24):
        made = Replica(partitions=partitions)
        for p in range(partitions):
            leader = opened(made.collection, (p,))
            some = range(p, ROWS, partitions)
            apply(leader, [upsert(at, b"%d" % n, VECTORS[n], partition=p) for at, n in enumerate(some)])
            checkpoint = Disk(tmp_path / f"{partitions}-{p}").checkpoint(leader, p)
            follow(made.view, checkpoint)
        made.coded()
        made.put(VECTORS[:30], 0)
        assert len(made.mirror.snapshot().segments) == partitions
        assert made.ranked_exactly == 30
        searcher.search(made.mirror, QUERIES[:1], K)
        calls = faiss_calls(lambda made=made: searcher.search(made.mirror, QUERIES[:1], K))  # type: ignore[misc]
        counts.append(calls)
        assert sum(n for name, n in calls.items() if "search_preassigned" in name) == 1
        assert sum(n for name, n in calls.items() if "by_idx" in name) == 1
    assert counts[0] == counts[1]


def test_lists_are_made_however_many_rows_are_outliers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemark.ann.lists.OUTLIERS_LEAST", 10)
    replica = Replica()
    replica.put(VECTORS[:1_000] + np.float32(1e6))
    replica.coded(VECTORS[:ROWS])
    assert replica.index.lists is not None and replica.index.lists.outliers == 1_000
    assert replica.recall(VECTORS[:5] + np.float32(1e6)) == 1
