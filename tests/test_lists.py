"""The lists of a collection: what was appended is found, by any process, in whatever order and however much died."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.rows import embeddings, unit
from tests.searching import all_alive, filled, nearest, recall
from tidemark.ann import exact, lists
from tidemark.ann.lists import Lists, Place
from tidemark.ann.open_lists import Alive, OpenLists
from tidemark.ann.quantizer import OUTLIER, Quantizer
from tidemark.collection import Metric

ROWS, DIMENSION, TARGET = 8_000, 16, 0.95


def rows_of(metric: Metric, count: int = ROWS, dimension: int = DIMENSION, seed: int = 0) -> NDArray[np.float32]:
    rows = embeddings(count, dimension, seed)
    return rows if metric == "l2" else unit(rows)


@pytest.fixture(scope="module")
def trained() -> dict[Metric, Quantizer]:
    metrics: tuple[Metric, ...] = ("l2", "cosine", "ip")
    return {metric: Quantizer.train(rows_of(metric), metric, ROWS, TARGET, seed=1) for metric in metrics}


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
def test_searches_reach_the_recall_asked_for_on_queries_not_seen(
    trained: dict[Metric, Quantizer], metric: Metric
) -> None:
    rows = rows_of(metric, ROWS + 200)
    queries = np.ascontiguousarray(rows[ROWS:])
    opened = OpenLists(trained[metric], filled(trained[metric], rows))
    for k, allowed in ((1, 0.05), (10, 0.03), (100, 0.05)):
        alive = np.arange(len(rows)) < ROWS
        assert recall(opened, rows, queries, k, alive) >= TARGET - allowed


def by_codes(quantizer: Quantizer, rows: NDArray[np.float32], queries: NDArray[np.float32]) -> NDArray[np.float32]:
    """Distances (nq, n) of queries to what the rows' codes stand for, smaller is nearer."""
    decoded = quantizer.decode(quantizer.encode(rows).codes)
    if quantizer.metric == "l2":
        return np.square(queries[:, None] - decoded[None]).sum(axis=2)
    return -(queries @ decoded.T)


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_a_search_of_all_lists_finds_what_is_nearest_by_codes(trained: dict[Metric, Quantizer], metric: Metric) -> None:
    quantizer, rows = trained[metric], rows_of(metric, 3_000, seed=5)
    opened = OpenLists(quantizer, filled(quantizer, rows))
    queries = rows_of(metric, 20, seed=6)
    everything = replace(quantizer.parameters, effort=quantizer.lists, reach=0.0, k_factor=8)
    numbers = opened.candidates(queries, 10, Alive(all_alive(3_000)), parameters=everything)
    distances = by_codes(quantizer, rows, queries)
    worst = np.sort(distances, axis=1)[:, 79]
    spread = np.ptp(distances, axis=1)
    for line, found in enumerate(numbers):
        assert len(set(found.tolist())) == 80 and found.min() >= 0
        # FAISS adds up in whole numbers of a 255th of a codebook's range.
        assert (distances[line, found] <= worst[line] + 0.03 * spread[line]).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), sizes=st.lists(st.integers(1, 700), min_size=1, max_size=12))
def test_in_whatever_order_and_batches_rows_come_they_are_found_alike(seed: int, sizes: list[int]) -> None:
    rng = np.random.default_rng(seed)
    quantizer, count = _small(), sum(sizes)
    rows = embeddings(count, 6, seed=seed % 1_000)
    encoded, order = quantizer.encode(rows), rng.permutation(count)
    made = Lists(quantizer, np.zeros(quantizer.lists, np.int64), shared=False)
    for part in np.split(order, np.cumsum(sizes)[:-1]):
        assert made.append(encoded.lists[part], encoded.codes[part], part)
    dead = rng.permutation(count)[: count // 3]
    made.note_dead(encoded.lists[dead])
    assert (made.entries, made.dead) == (count, len(dead))
    alive = np.ones(count, np.bool_)
    alive[dead] = False
    bits = np.packbits(alive, bitorder="little")
    opened = [OpenLists(quantizer, each) for each in (made, filled(quantizer, rows))]
    queries = np.ascontiguousarray(rows[:7])
    ours, theirs = (nearest(each, rows, queries, count, bits) for each in opened)
    for found in (*ours, *theirs):
        assert sorted(found[found >= 0].tolist()) == np.flatnonzero(alive).tolist()


def _small(made: list[Quantizer] = []) -> Quantizer:  # noqa: B006  # trained once
    if not made:
        made.append(Quantizer.train(embeddings(1_000, 6), "l2", 1_000, TARGET, seed=1))
    return made[0]


@pytest.mark.parametrize("k", [10, 100])
def test_where_what_lay_around_a_query_has_died_the_nearest_that_are_left_are_found(k: int) -> None:
    rows = embeddings(20_000, 16, clusters=40)
    quantizer = Quantizer.train(rows, "l2", len(rows), TARGET, seed=1)
    made = filled(quantizer, rows)
    opened, alive = OpenLists(quantizer, made), np.ones(len(rows), np.bool_)
    around = exact.exact_search(rows, rows[:1], 2_000, "l2")[1][0]
    alive[around] = False
    made.note_dead(quantizer.encode(rows).lists[around])
    middle = np.ascontiguousarray(rows[around[:50]])
    assert recall(opened, rows, middle, k, alive) >= TARGET


def test_a_bit_that_is_not_set_is_never_answered(trained: dict[Metric, Quantizer]) -> None:
    quantizer, rows = trained["l2"], rows_of("l2")
    opened, rng = OpenLists(quantizer, filled(quantizer, rows)), np.random.default_rng(0)
    for share in (0.01, 0.5, 0.999, 1.0):
        alive = rng.random(len(rows)) >= share
        for k in (1, 10, 500):
            numbers = opened.candidates(rows[:20], k, Alive(np.packbits(alive, bitorder="little")))
            assert alive[numbers[numbers >= 0]].all()
            assert np.count_nonzero(numbers[0] >= 0) >= min(k, int(alive.sum()))


def test_rows_with_equal_codes_are_answered() -> None:
    rows = np.ones((3_000, 8), np.float32)
    quantizer = Quantizer.train(rows, "l2", 3_000, TARGET, seed=1)
    assert quantizer.parameters.recall == 1.0
    found = nearest(OpenLists(quantizer, filled(quantizer, rows)), rows, rows[:2], 10, all_alive(3_000))
    assert all(len(set(line)) == 10 and min(line) >= 0 for line in found.tolist())


def test_outliers_are_candidates_of_every_search_while_they_are_alive() -> None:
    rows = np.random.default_rng(0).normal(size=(9_000, 13)).astype(np.float32)
    rows[100:130] *= np.float32(1e9)
    quantizer = Quantizer.train(rows[1_000:], "l2", 9_000, TARGET, seed=1)
    made = filled(quantizer, rows)
    assert made.outliers == 30
    opened, alive = OpenLists(quantizer, made), np.ones(9_000, np.bool_)
    alive[100:110] = False
    numbers = opened.candidates(rows[:5], 10, Alive(np.packbits(alive, bitorder="little")))
    assert all(set(range(110, 130)) <= set(line) and not set(range(100, 110)) & set(line) for line in numbers.tolist())
    assert made.append(np.full(1, OUTLIER), np.zeros((1, quantizer.code_bytes), np.uint8), np.array([99]))
    assert made.outliers == 31


def test_what_finds_no_room_is_not_added_at_all(trained: dict[Metric, Quantizer]) -> None:
    quantizer = trained["l2"]
    made = Lists(quantizer, np.zeros(quantizer.lists, np.int64), shared=False)
    codes = np.zeros((lists.ROOM_LEAST, quantizer.code_bytes), np.uint8)
    given = np.zeros(lists.ROOM_LEAST, np.uint32)
    assert made.append(given, codes, np.arange(len(given)))
    assert not made.append(np.array([1, 0, OUTLIER], np.uint32), codes[:3], np.arange(3))
    assert (made.entries, made.outliers) == (lists.ROOM_LEAST, 0)
    assert made.append(given[:5] + np.uint32(1), codes[:5], np.arange(5))


@pytest.mark.parametrize("width", [1, 3, 32, 96, 100, 384, 1_024, 2_047])
@pytest.mark.parametrize("expected", [0, 100, 10**6, 10**9])
def test_any_code_and_any_number_of_rows_has_room_within_the_address_space(width: int, expected: int) -> None:
    rooms = lists._rooms(np.full(4_000, expected), width)
    assert (rooms >= expected).all() and (8 * np.cumsum(rooms) % width == 0).all()
    assert rooms.sum() * (width + 8) <= max(lists.BYTES_MAX, 3 * 4_000 * expected * (width + 8))


def _read(place: Place, quantizer: bytes, rows: NDArray[np.float32], pipe: Connection) -> None:
    opened = OpenLists(Quantizer.from_bytes(quantizer), place)
    alive, missing, searches, rng = Alive(all_alive(len(rows))), 0, 0, np.random.default_rng(0)
    pipe.send("open")
    while not pipe.poll():
        if coded := opened.coded:
            asked = rng.integers(max(0, coded - 50), coded, 4)
            found = nearest(opened, rows, np.ascontiguousarray(rows[asked]), 1, all_alive(len(rows)))
            missing += int(np.count_nonzero(found[:, 0] != asked))
            numbers = opened.candidates(rows[asked], 10, alive)
            missing += int(np.count_nonzero(numbers >= len(rows)) + np.count_nonzero(numbers < -1))
            searches += 1
    pipe.send((missing, searches))


def _in_a_process(target: Callable[..., None], *arguments: object) -> Callable[[], None]:
    process = get_context("spawn").Process(target=target, args=arguments)
    process.start()
    return process.join


def _in_a_thread(target: Callable[..., None], *arguments: object) -> Callable[[], None]:
    thread = threading.Thread(target=target, args=arguments)
    thread.start()
    return thread.join


@pytest.mark.parametrize("start", [_in_a_process, _in_a_thread])
def test_every_row_said_to_be_coded_is_found_while_more_are_added(
    trained: dict[Metric, Quantizer], start: Callable[..., Callable[[], None]]
) -> None:
    quantizer, rows = trained["l2"], rows_of("l2", 60_000, seed=3)
    encoded, rng = quantizer.encode(rows), np.random.default_rng(1)
    made = Lists(quantizer, np.full(quantizer.lists, math.ceil(len(rows) / quantizer.lists)), shared=True)
    ours, theirs = get_context("spawn").Pipe()
    join = start(_read, made.place, quantizer.to_bytes(), rows, theirs)
    assert ours.recv() == "open"
    first = 0
    while first < len(rows):
        end = min(len(rows), first + int(rng.integers(1, 200)))
        part = rng.permutation(np.arange(first, end))
        assert made.append(encoded.lists[part], encoded.codes[part], part)
        made.set_coded(end)
        first = end
        time.sleep(0.001)
    ours.send("end")
    missing, searches = ours.recv()
    join()
    assert missing == 0
    assert searches > 10


def test_parameters_and_counts_are_seen_by_other_readers(trained: dict[Metric, Quantizer]) -> None:
    made = filled(trained["l2"], rows_of("l2"), shared=True)
    opened = OpenLists(trained["l2"], made.place)
    assert opened.parameters == trained["l2"].parameters
    made.set_parameters(replace(opened.parameters, effort=3, living=0.25))
    made.set_coded(77)
    assert (opened.parameters.effort, opened.parameters.living, opened.coded) == (3, 0.25, 77)
    made.note_dead(np.array([0, 0, OUTLIER], np.uint32))
    assert made.dead == 3
    assert made.memory_bytes >= ROWS * (trained["l2"].code_bytes + 8)


@pytest.mark.parametrize("dimension", [1, 2, 3, 17, 32, 128])
@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_codes_lie_as_faiss_lays_them(dimension: int, metric: Metric) -> None:
    rows = embeddings(1_000, dimension, rank=min(8, dimension))
    quantizer = Quantizer.train(rows, metric, 1_000, TARGET, seed=1, nlist=1)
    theirs, codes = quantizer.empty_index(), quantizer.encode(rows).codes
    theirs.add(quantizer.decode(codes))
    made = Lists(quantizer, np.zeros(1, np.int64), shared=False)
    for first in range(0, 1_000, 77):
        part = codes[first : first + 77]
        assert made.append(np.zeros(len(part), np.uint32), part, first + np.arange(len(part)))
    size = 1_024 * quantizer.code_bytes
    laid: NDArray[np.uint8] = faiss.rev_swig_ptr(theirs.invlists.get_codes(0), size)
    assert (made.memory.codes[:size] == laid).mean() > 0.999  # but where two centroids are equal
    assert made.memory.numbers[:1_000].tolist() == list(range(1_000))
