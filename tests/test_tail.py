"""Rows in memory by codes: as good as the exact scan, and never a row that is dead, passed over or unknown to them."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.messages import delete, upsert
from tests.rows import embeddings
from tidemark import searcher
from tidemark.ann import index
from tidemark.collection import Collection, IndexParameters, Metric
from tidemark.mirror import ViewMirror
from tidemark.record import decode
from tidemark.tail import Tail
from tidemark.view import View

DIMENSION, ROWS, K = 32, 6_000, 10
COLLECTION = Collection(name="c", topic="t", dimension=DIMENSION, metric="l2")
VECTORS = embeddings(ROWS, DIMENSION)
QUERIES = VECTORS[::60] + np.float32(0.01)


@pytest.fixture(autouse=True)
def codes_of_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemark.view.ENCODED_NUMBERS", 1_024 * DIMENSION)


def put(view: View, first: int, vectors: NDArray[np.float32]) -> None:
    messages = [upsert(first + n, b"id-%d" % (first + n), vector) for n, vector in enumerate(vectors)]
    view.apply(decode({0: messages}, COLLECTION)[0])


def encode(view: View) -> None:
    if work := view.codes_wanted():
        work()


def coded(vectors: NDArray[np.float32] = VECTORS) -> View:
    view = View(COLLECTION, 0, tail_rows=65_536)
    put(view, 0, vectors)
    encode(view)
    return view


def ids(view: View | ViewMirror, exact: bool) -> list[list[bytes]]:
    return [[hit.id for hit in hits] for hits in searcher.search([view], QUERIES, K, exact=exact).hits]


def recall(view: View | ViewMirror) -> float:
    found = zip(ids(view, exact=False), ids(view, exact=True), strict=True)
    return sum(len(set(some) & set(all_)) for some, all_ in found) / (K * len(QUERIES))


def test_codes_find_what_the_exact_scan_finds_for_an_eighth_of_its_cost() -> None:
    view = coded()
    assert view.searcher.scan_cost == pytest.approx(index.CODES_SCAN_COST * ROWS)
    assert recall(view) >= 0.95


def test_rows_added_after_the_codes_are_found_too() -> None:
    view = coded(VECTORS[:5_000])
    put(view, 5_000, VECTORS[5_000:])
    assert recall(view) >= 0.95
    hits = searcher.search([view], VECTORS[5_900:5_901], 1).hits[0]
    assert [hit.id for hit in hits] == [b"id-5900"]


def test_more_codes_are_made_of_new_rows_with_the_codebooks_at_hand() -> None:
    view = coded(VECTORS[:2_000])
    put(view, 2_000, VECTORS[2_000:])
    assert view.searcher.scan_cost > 4_000
    encode(view)
    assert view.searcher.scan_cost == pytest.approx(index.CODES_SCAN_COST * ROWS)
    assert recall(view) >= 0.95


def test_a_row_that_died_before_or_after_its_code_was_made_is_not_answered() -> None:
    view = coded(VECTORS[:3_000])
    gone = [b"id-%d" % row for row in range(0, 3_000, 3)]
    view.apply(decode({0: [delete(3_000 + n, id_) for n, id_ in enumerate(gone)]}, COLLECTION)[0])
    put(view, 4_000, VECTORS[3_000:])
    encode(view)
    assert not {id_ for hits in ids(view, exact=False) for id_ in hits} & set(gone)
    assert recall(view) >= 0.95


def test_rows_passed_over_are_not_answered_although_they_have_codes() -> None:
    view = coded()
    view.follow([], 4_000, -1, 0)
    assert view.live_rows == ROWS - 4_000
    answered = {int(id_[3:]) for hits in ids(view, exact=False) for id_ in hits}
    assert answered
    assert min(answered) >= 4_000


def test_another_process_searches_by_the_codes_where_they_were_made() -> None:
    view = View(COLLECTION, 0, tail_rows=8_192, shared=True)
    mirror = ViewMirror(COLLECTION, view.place)
    put(view, 0, VECTORS)
    assert mirror.searcher.scan_cost == ROWS
    encode(view)
    assert mirror.searcher.scan_cost == pytest.approx(index.CODES_SCAN_COST * ROWS)
    assert recall(mirror) >= 0.95
    view.follow([], 4_000, -1, 0)
    assert mirror.live_rows == ROWS - 4_000
    assert recall(mirror) >= 0.95


def test_rows_too_many_for_codes_to_tell_apart_are_searched_exactly() -> None:
    collection = Collection(name="c", topic="t", dimension=2, metric="l2")
    vectors = np.random.default_rng(0).normal(size=(40_000, 2)).astype(np.float32)
    view = View(collection, 0, tail_rows=65_536)
    view.apply(decode({0: [upsert(n, b"%d" % n, vector) for n, vector in enumerate(vectors)]}, collection)[0])
    for _ in range(10):
        encode(view)
    assert view.searcher.scan_cost > len(vectors) / 4
    assert searcher.search([view], vectors[7:8], 1).hits[0][0].id == b"7"


def test_a_collection_without_an_index_makes_no_codes() -> None:
    collection = Collection(name="c", topic="t", dimension=DIMENSION, metric="l2", index=IndexParameters(kind="flat"))
    view = View(collection, 0, tail_rows=8_192)
    view.apply(decode({0: [upsert(n, b"%d" % n, vector) for n, vector in enumerate(VECTORS)]}, collection)[0])
    encode(view)
    assert view.searcher.scan_cost == ROWS


def test_a_tail_whose_codes_are_full_holds_them_all() -> None:
    tail_rows = 2_048
    view = View(COLLECTION, 0, tail_rows=tail_rows)
    put(view, 0, VECTORS[: 2 * tail_rows])
    for _ in range(2):
        encode(view)
    assert all(
        isinstance(tail, Tail) and tail.scan_cost == pytest.approx(index.CODES_SCAN_COST * tail_rows)
        for tail in view.searcher.tails
    )
    assert recall(view) >= 0.95


def test_rows_unlike_those_the_codes_were_trained_on_get_another_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemark.view.DRIFTED_ROWS_MIN", 4_000)
    view = coded(VECTORS[:2_000])
    other = embeddings(4_000, DIMENSION, seed=9) * np.float32(20)
    put(view, 2_000, other[:1_500])
    encode(view)
    assert view.searcher.tails[0].has_drifted
    put(view, 3_500, other[1_500:])
    encode(view)
    assert [tail.rows for tail in view.searcher.tails] == [6_000, 0]
    more = other + np.float32(1)
    put(view, 6_000, more)
    encode(view)
    assert view.searcher.tails[1].scan_cost == pytest.approx(index.CODES_SCAN_COST * len(other))
    hits = searcher.search([view], more[::50], 1).hits
    assert [hit.id for (hit,) in hits] == [b"id-%d" % (6_000 + row) for row in range(0, len(more), 50)]


@pytest.mark.parametrize("dimension", [1, 3, 6, 17, 48])
@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
def test_rows_coded_bit_by_bit_and_passed_over_are_searched_like_an_exact_scan(dimension: int, metric: Metric) -> None:
    collection = Collection(name="c", topic="t", dimension=dimension, metric=metric)
    vectors = embeddings(5_000, dimension, rank=min(8, dimension))
    view = View(collection, 0, tail_rows=8_192, shared=True)
    mirror = ViewMirror(collection, view.place)
    first = 0
    for stop in (2_100, 3_150, 4_190, 5_000):
        messages = [upsert(n, b"%d" % n, vectors[n]) for n in range(first, stop)]
        view.apply(decode({0: messages}, collection)[0])
        encode(view)
        first = stop
    view.follow([], 1_900, -1, 0)
    queries = searcher.prepare_queries(vectors[2_000::150], collection)
    exact, found = (searcher.search([mirror], queries, K, exact=exact).hits for exact in (True, False))
    assert min(int(hit.id) for hits in found for hit in hits) >= 1_900
    same = sum(len({hit.id for hit in a} & {hit.id for hit in b}) for a, b in zip(exact, found, strict=True))
    assert same >= 0.9 * K * len(queries)


@pytest.mark.parametrize("left", [3, 40])
def test_of_a_tail_with_codes_whose_rows_are_nearly_all_dead_those_that_live_are_found(left: int) -> None:
    view = coded()
    kept = {b"id-%d" % row for row in range(0, ROWS, ROWS // left)}
    gone = [id_ for row in range(ROWS) if (id_ := b"id-%d" % row) not in kept]
    view.apply(decode({0: [delete(ROWS + n, id_) for n, id_ in enumerate(gone)]}, COLLECTION)[0])
    assert ids(view, exact=False) == ids(view, exact=True)
    assert all(len(hits) == min(K, left) for hits in ids(view, exact=False))
