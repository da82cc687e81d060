"""Groups of rows by a value: the nearest groups, and the nearest rows of each, however many rows one group has."""

import json
from typing import Any

import numpy as np
import pytest

from tests.messages import upsert
from tests.test_searcher import COLLECTION, ORIGIN
from tests.views import apply, opened
from tidemark import grouped
from tidemark.filters.grammar import Filter
from tidemark.filters.parsing import parse
from tidemark.mirror import ViewMirror
from tidemark.searcher import K_MAX
from tidemark.view import View


def view_of(documents: list[Any]) -> View:
    """Rows whose distance from the origin grows with their number."""
    view = opened(COLLECTION)
    apply(
        view,
        [
            upsert(row, b"%d" % row, [np.sqrt(row), 0, 0, 0], None if one is None else json.dumps(one).encode())
            for row, one in enumerate(documents)
        ],
    )
    return view


def groups(view: View, k: int, size: int, filter_: Filter | None = None) -> list[tuple[Any, list[int]]]:
    mirror = ViewMirror(COLLECTION, view.place)
    found = grouped.search(mirror, ORIGIN, k, size, ("kind",), filter_ or Filter())
    return [(group.value, [int(hit.id) for hit in group.hits]) for group in found.groups]


def test_groups_behind_one_with_more_rows_than_a_search_answers_are_found() -> None:
    count = K_MAX + 500
    view = view_of([*({"kind": "near"} for _ in range(count)), {"kind": "far"}, {"kind": 7}, {"kind": "far"}])
    assert groups(view, 3, 2) == [("near", [0, 1]), ("far", [count, count + 2]), (7, [count + 1])]
    assert groups(view, 1, 2) == [("near", [0, 1])]


def test_a_group_whose_rows_lie_far_apart_is_filled() -> None:
    documents = [{"kind": "usual"} for _ in range(2_000)]
    documents[0] = documents[1_500] = documents[1_900] = {"kind": "seldom"}
    assert groups(view_of(documents), 2, 3) == [("seldom", [0, 1_500, 1_900]), ("usual", [1, 2, 3])]


def test_a_row_is_in_the_group_of_each_of_its_values_once() -> None:
    documents = [None, {"kind": ["a", "b", "a"]}, {"kind": "b"}, {"kind": [1, True, 1.5, None, {}]}, {"kind": 1.5}]
    expected = [("a", [1]), ("b", [1, 2]), (1, [3]), (True, [3])]
    found = groups(view_of(documents), 9, 3)
    assert found == expected
    assert [type(value) for value, _ in found] == [str, str, int, bool]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_groups_are_made_of_rows_that_match(k: int) -> None:
    documents = [{"kind": row % 4, "even": row % 2 == 0} for row in range(40)]
    assert groups(view_of(documents), k, 2, parse({"even": False})) == [(1, [1, 5]), (3, [3, 7])][:k]


def test_nothing_is_grouped_where_no_row_has_a_value() -> None:
    assert groups(view_of([{}, None, {"kind": None}, {"kind": {}}]), 3, 3) == []
