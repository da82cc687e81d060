"""Selecting rows while one thread writes: every id is selected once, as it was at the positions told."""

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.messages import delete, upsert
from tests.view_logs import COLLECTION, Disk
from tests.views import apply, opened
from tidemark.filters.parsing import parse
from tidemark.mirror import ViewMirror
from tidemark.selection import Order, Row, Selection, select
from tidemark.view import View

IDS, ROUNDS = 200, 60
Write = Callable[[View, int], None]


def _replace_all(view: View, round_: int) -> None:
    """Every id in a new version; the metadata say in which round."""
    first = round_ * IDS
    metadata = json.dumps({"round": round_}).encode()
    apply(view, [upsert(first + n, b"%d" % n, [round_, n], metadata) for n in range(IDS)])


def _is_whole(selection: Selection) -> None:
    """All ids, each once, all of the round that the position tells."""
    rows = selection.page(None, 10 * IDS)
    round_ = selection.positions[0] // IDS - 1
    assert selection.count == len(rows) == len({row.hit.id for row in rows}) == IDS
    assert selection.facets(("round",), 5) == [(round_, IDS)]
    found = selection.ordered_page(Order(("round",)), None, 10 * IDS)
    assert [row.place.key for row in found] == [round_] * IDS


@pytest.mark.parametrize("filter_", [None, {"round": {"gte": 0}}])
def test_a_selection_is_that_of_its_positions_while_all_rows_are_replaced_saved_and_moved(
    tmp_path: Path, filter_: Any
) -> None:
    view, disk = opened(COLLECTION, tail_rows=256), Disk(tmp_path)
    _replace_all(view, 0)
    mirror, ended = ViewMirror(COLLECTION, view.place), threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        try:
            while not ended.is_set():
                _is_whole(select(mirror, parse(filter_)))
        except BaseException as failure:  # shown by the test's own thread
            failures.append(failure)

    reader = threading.Thread(target=read)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        reader.start()
        for round_ in range(1, ROUNDS):
            _replace_all(view, round_)
            if round_ % 7 == 0:
                disk.save(view)
            view.move_few()
    finally:
        ended.set()
        reader.join()
        sys.setswitchinterval(interval)
    assert not failures, failures[0]


def test_rows_of_one_key_are_ordered_by_partition_and_offset_and_pages_divide_them() -> None:
    view = opened(COLLECTION, partitions=(0, 1), tail_rows=64)
    random = np.random.default_rng(3)
    truth = []
    for partition in (1, 0):
        for offset in range(150):
            key = [None, 1, 2, -0.5, 2**60, [3, 0]][random.integers(6)]
            metadata = json.dumps({"k": key}).encode()
            apply(view, [upsert(offset, b"%d-%d" % (partition, offset), [1, 1], metadata, partition)])
            truth.append((key, partition, offset))
        apply(view, [delete(150, b"%d-3" % partition, partition)])
    living = [(key, p, o) for key, p, o in truth if key is not None and o != 3]
    mirror = ViewMirror(COLLECTION, view.place)
    for descending in (False, True):
        sign, best = (-1, max) if descending else (1, min)
        expected = sorted((sign * float(best(k) if isinstance(k, list) else k), p, o) for k, p, o in living)
        for limit in (1, 7, 1_000):
            found: list[Row] = []
            while page := select(mirror, parse(None)).ordered_page(
                Order(("k",), descending), found[-1].place if found else None, limit
            ):
                found += page
            places = [row.place for row in found]
            assert [(sign * place.key, place.partition, place.offset) for place in places] == expected


def test_facets_of_equally_many_rows_are_in_the_order_of_type_and_value() -> None:
    view = opened(COLLECTION)
    values = ["b", "a", 2, 10, True, False, None, 1.5, "a", ["b", "c", "b"]]
    messages = [upsert(n, b"%d" % n, [1, 1], json.dumps({"v": value}).encode()) for n, value in enumerate(values)]
    apply(view, messages)
    found = select(ViewMirror(COLLECTION, view.place), parse(None)).facets(("v",), 10)
    assert found == [("a", 2), ("b", 2), (False, 1), (True, 1), (2, 1), (10, 1), ("c", 1)]
    assert [type(value) for value, _ in found[2:5]] == [bool, bool, int]
