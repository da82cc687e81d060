"""Searching among the rows that match a filter, while views change and beside a writer."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray

from tests.messages import delete, upsert
from tests.model import Model, squared_distance
from tests.test_against_model import IDS, ManyViews
from tests.test_searcher import COLLECTION, DIMENSION, FIXED, ORIGIN, Reader, Writer, partition_of, save
from tests.views import apply, codes_made, opened, quantizer_of
from tidemark import filtered, searcher
from tidemark.collection import IndexKind
from tidemark.collection_index import CollectionIndex
from tidemark.filters.parsing import parse
from tidemark.matching import Matchings
from tidemark.mirror import ViewMirror

# Each with what it says of the metadata, decoded.
FILTERS: list[tuple[Any, Any]] = [
    ({"salt": {"gte": 20}}, lambda metadata: metadata.get("salt", -1) >= 20),
    ({"must": {"is_empty": {"key": "salt"}}}, lambda metadata: "salt" not in metadata),
    ({"salt": [1, 3, 7, 21, 33]}, lambda metadata: metadata.get("salt") in (1, 3, 7, 21, 33)),
    ({"must_not": {"key": "salt", "match": {"value": 9}}}, lambda metadata: metadata.get("salt") != 9),
]


class ManyFilteredViews(ManyViews):
    """Whatever happens to views, a filtered search answers the rows that match: by the index, and exactly."""

    def _check_search(
        self, mirror: ViewMirror, model: Model, positions: dict[int, int], queries: NDArray[np.float32], k: int
    ) -> None:
        for asked, fits in FILTERS:
            rows = {id_: row for id_, row in model.rows.items() if fits(json.loads(row.metadata or b"{}"))}
            matching = Model(rows)
            for ranked in (0, filtered.RANKED_NUMBERS):
                answer = filtered.search(mirror, queries, k, parse(asked), ranked_numbers=ranked)
                assert answer.positions == positions
                assert answer.plan.matches == len(rows)
                for query, line in zip(queries, answer.hits, strict=True):
                    distances = [hit.distance for hit in line]
                    assert {hit.id for hit in line} <= rows.keys()
                    assert distances == [squared_distance(rows[hit.id], query) for hit in line]
                    assert len({hit.id for hit in line}) == len(line) == min(k, len(rows))
                    if answer.plan.kind == "exact" or k > IDS:
                        assert distances == matching.nearest(query, k)


ManyFilteredViews.TestCase.settings = settings(max_examples=15, stateful_step_count=30, deadline=None)
TestManyFilteredViews = ManyFilteredViews.TestCase


class FilteredWriter(Writer):
    """Every row says which batch it came with, and fixed ids that they are."""

    def batch(self, ids: Any, gone: Any) -> None:
        messages = []
        for id_ in ids:
            self.written.setdefault(id_, []).append(self.offset)
            metadata = b'{"fixed":%s,"turn":%d}' % (b"true" if id_ in FIXED else b"false", self.turns)
            vector = self.rng.normal(size=DIMENSION)
            messages.append(upsert(self.offset, id_, vector, metadata, partition_of(id_)))
            self.offset += 1
        for id_ in gone:
            self.deleted[id_] = self.offset
            messages.append(delete(self.offset, id_, partition_of(id_)))
            self.offset += 1
        for partition, leader in enumerate(self.leaders):
            if some := [message for message in messages if message.partition() == partition]:
                apply(leader, some)
        apply(self.follower, messages)


class FilteredReader(Reader):
    def turn(self) -> None:
        self.rounds += 1
        for mirror in self.writer.mirrors:
            queries = self.rng.normal(size=(1, DIMENSION)).astype(np.float32)
            fixed = {id_ for id_ in FIXED if partition_of(id_) in mirror.positions}
            for ranked in (0, filtered.RANKED_NUMBERS):
                k = len(FIXED) + 40
                answer = filtered.search(mirror, queries, k, parse({"fixed": True}), ranked_numbers=ranked)
                ids = [hit.id for hit in answer.hits[0]]
                assert len(ids) == len(set(ids)), "an id was answered twice"
                assert fixed == set(ids), "an id was missing, or does not match"
                for hit in answer.hits[0]:
                    self.check(hit, answer.positions[hit.partition])
            turn = self.writer.turns
            answer = filtered.search(mirror, queries, 20, parse({"turn": {"gte": turn}}))
            assert all(json.loads(hit.metadata or b"")["turn"] >= turn for hit in answer.hits[0])


@pytest.mark.parametrize("kind", ["ivfpq", "hnsw", "flat"])
def test_filtered_searches_beside_a_writer_miss_nothing_and_repeat_nothing(tmp_path: Path, kind: IndexKind) -> None:
    writer = FilteredWriter(tmp_path, kind)
    writer.batch(FIXED, [])
    readers = [FilteredReader(writer, seed) for seed in range(3)]
    failures: list[BaseException] = []
    end = time.monotonic() + 2.0

    def run(turning: Writer | Reader) -> None:
        try:
            while (time.monotonic() < end or writer.turns <= 12) and not failures:
                turning.turn()
        except BaseException as failure:  # shown by the test's own thread
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(one,)) for one in (writer, *readers)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        writer.index.close()
    if failures:
        raise failures[0]
    assert all(reader.rounds for reader in readers)


def rows_view(count: int) -> tuple[Any, ViewMirror]:
    view = opened(COLLECTION, tail_rows=64)
    rng = np.random.default_rng(0)
    for first in range(0, count, 50):
        messages = [
            upsert(
                at,
                b"%d" % at,
                rng.normal(size=DIMENSION),
                b'{"n":%d,"even":%s}' % (at, b"true" if at % 2 == 0 else b"false"),
            )
            for at in range(first, first + 50)
        ]
        apply(view, messages)
    return view, ViewMirror(COLLECTION, view.place)


def test_what_is_known_of_a_filter_is_kept_and_only_new_rows_are_asked(tmp_path: Path) -> None:
    view, mirror = rows_view(500)
    filter_ = parse({"even": True})
    assert mirror.matchings.known_count(filter_, mirror.snapshot()) is None
    assert filtered.search(mirror, ORIGIN, 5, filter_).plan.matches == 250
    assert mirror.matchings.known_count(filter_, mirror.snapshot()) == 250
    bits = mirror.matchings.of(filter_, mirror).bits
    apply(
        view, [upsert(500, b"500", [0, 0, 0, 0], b'{"even":true}'), upsert(501, b"0", [0, 0, 0, 0], b'{"even":false}')]
    )
    answer = filtered.search(mirror, ORIGIN, 1, filter_)
    assert (answer.plan.matches, answer.hits[0][0].id) == (250, b"500")
    assert mirror.matchings.of(filter_, mirror).bits is bits
    save(view, tmp_path / "s")
    assert filtered.search(mirror, ORIGIN, 5, filter_).plan.matches == 250


def test_the_bits_of_all_filters_are_bounded() -> None:
    _, mirror = rows_view(100)
    mirror.matchings = Matchings(bytes_max=3_000)
    for number in range(40):
        filtered.search(mirror, ORIGIN, 1, parse({"n": number}))
        assert mirror.matchings.nbytes <= 3_000
    assert filtered.search(mirror, ORIGIN, 1, parse({"n": 7})).plan.matches == 1


def test_a_filter_by_ids_finds_them_in_tails_and_segments(tmp_path: Path) -> None:
    view, mirror = rows_view(100)
    save(view, tmp_path / "s")
    apply(view, [upsert(100, b"3", [0, 0, 0, 0]), upsert(101, b"new", [1, 0, 0, 0]), delete(102, b"7")])
    answer = filtered.search(mirror, ORIGIN, 9, parse({"has_id": ["3", "5", "7", "new", "never"]}))
    assert {hit.id for hit in answer.hits[0]} == {b"3", b"5", b"new"}


@pytest.mark.parametrize("ranked", [0, filtered.RANKED_NUMBERS])
def test_few_rows_far_from_the_query_are_all_found(ranked: int) -> None:
    view = opened(COLLECTION)
    index = CollectionIndex(view, 0.97, ann_rows_min=64, coded_rows_min=1)
    rng = np.random.default_rng(0)
    places = rng.normal(size=(3_000, DIMENSION))
    places[::300] += 1_000
    apply(
        view,
        [
            upsert(at, b"%d" % at, place, b'{"far":%s}' % (b"true" if at % 300 == 0 else b"false"))
            for at, place in enumerate(places)
        ],
    )
    quantizer = quantizer_of(view)
    assert quantizer is not None
    index.offer(1, quantizer)
    codes_made(index)
    index.close()
    mirror = ViewMirror(COLLECTION, view.place)
    answer = filtered.search(mirror, ORIGIN, 10, parse({"far": True}), ranked_numbers=ranked)
    assert {int(hit.id) for hit in answer.hits[0]} == set(range(0, 3_000, 300))
    assert answer.plan == searcher.Plan("exact" if ranked else "index", 10)
