"""What a filter may say, and where a message says that it stands wrong."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.documents import PATHS, filters
from tidemark.errors import BadQuery
from tidemark.filters.grammar import ELEMENTS, Bounds, Filter, IsEmpty, Match, Nested, Range, Text
from tidemark.filters.parsing import CONDITIONS_MAX, DEPTH_MAX, VALUES_MAX, parse
from tidemark.filters.paths import format_path, parse_path
from tidemark.filters.times import parse_time


def test_the_short_form_is_one_condition_for_each_field() -> None:
    asked = {"module": "json", "year": {"gte": 2020, "lt": 2024}, "tags": ["a", "b"], "a.b": {"prefix": "x"}, "n": 0}
    assert parse(asked) == Filter(
        must=(
            Match(("module",), strings=("json",)),
            Range(("year",), Bounds(gte=2020, lt=2024)),
            Match(("tags",), strings=("a", "b")),
            Text(("a", "b"), "prefix", "x"),
            Match(("n",), integers=(0,)),
        )
    )


def test_one_condition_may_stand_for_a_filter_and_for_a_list() -> None:
    condition = {"key": "a", "match": {"value": 1}}
    expected = Match(("a",), integers=(1,))
    assert parse(condition) == parse({"must": condition}) == parse({"must": [condition]}) == Filter(must=(expected,))
    assert parse({"is_empty": {"key": "a"}}) == Filter(must=(IsEmpty(("a",)),))


def test_no_filter_is_the_filter_that_every_row_matches() -> None:
    assert parse(None) == parse({}) == parse({"must": []}) == parse({"must": None}) == Filter()


def test_true_and_1_are_different_filters() -> None:
    assert parse({"a": True}) != parse({"a": 1})
    assert len({parse({"a": True}), parse({"a": 1}), parse({"a": [1]})}) == 2


def test_nested_filters_begin_in_the_elements() -> None:
    asked = {"nested": {"key": "a", "filter": {"must": [{"key": "b", "is_null": False}]}}}
    (found,) = parse(asked).must
    assert isinstance(found, Nested) and found.path == ("a",)


WRONG = [
    (3, "filter: expected a filter, found 3"),
    ({"must": [{"key": "a", "range": {"gte": "x"}}]}, "filter.must[0].range.gte: expected a time"),
    ({"must": [{"key": "a", "range": {"gte": True}}]}, "filter.must[0].range.gte: expected a number"),
    ({"must": [{"key": "a", "range": {"gte": 1, "lt": "2024-01-01"}}]}, "filter.must[0].range.gte: expected a time"),
    ({"must": [{"key": "a", "range": {"min": 1}}]}, "filter.must[0].range.min: is not known; expected gt, gte"),
    ({"must": [{"key": "a", "match": {"value": 1.5}}]}, "filter.must[0].match.value: expected a string, an integer"),
    ({"must": [{"key": "a", "match": {"value": None}}]}, "filter.must[0].match.value: expected a string"),
    ({"must": [{"key": "a", "match": {"value": 2**63}}]}, "filter.must[0].match.value: expected an integer of 64 bits"),
    ({"must": [{"key": "a", "match": {"any": [1, []]}}]}, "filter.must[0].match.any[1]: expected"),
    ({"must": [{"key": "a", "match": {"any": 1}}]}, "filter.must[0].match.any: expected an array, found 1"),
    ({"must": [{"key": "a", "match": {"text": 1}}]}, "filter.must[0].match.text: expected a string, found 1"),
    ({"must": [{"key": "a", "match": {"regex": "x"}}]}, "filter.must[0].match.regex: is not known"),
    ({"must": [{"key": "a", "match": {"value": 1, "any": [1]}}]}, "filter.must[0].match: expected one of"),
    ({"must": [{"key": "a"}]}, "filter.must[0]: expected beside key one of match, range"),
    ({"must": [{"key": "a", "match": {"value": 1}, "range": {}}]}, "filter.must[0]: expected beside key one of"),
    ({"must": [{"key": 1, "match": {"value": 1}}]}, "filter.must[0].key: expected a path, which is a string, found 1"),
    ({"must": [{"key": "a.", "match": {"value": 1}}]}, "filter.must[0].key: expected a key at character 2"),
    ({"must": [{"key": "a[b]", "match": {"value": 1}}]}, "filter.must[0].key: expected a dot"),
    ({"must": [{"key": "", "match": {"value": 1}}]}, "filter.must[0].key: expected a key at character 0"),
    ({"must": [{"keyy": "a", "match": {"value": 1}}]}, "filter.must[0].keyy: is not known"),
    ({"keyy": "a", "match": {"value": 1}}, "filter.keyy: is not known"),
    ({"must": [{"key": "a", "geo_radius": {}}]}, "filter.must[0].geo_radius: is not supported"),
    ({"has_vector": "x"}, "filter.has_vector: is not supported"),
    ({"must": [], "mustnt": []}, "filter.mustnt: is not known; expected must, should, must_not, min_should"),
    ({"min_should": {"conditions": [], "min_count": 0}}, "filter.min_should.min_count: expected an integer of 1"),
    ({"must": {"has_id": [1]}}, "filter.must.has_id[0]: expected an id, which is a string, found 1"),
    ({"must": {"has_id": "a"}}, "filter.must.has_id: expected an array"),
    ({"must": {"key": "a", "is_null": 1}}, "filter.must.is_null: expected true or false, found 1"),
    ({"must": {"key": "a", "values_count": {"gt": -1}}}, "filter.must.values_count.gt: expected an integer of 0"),
    ({"must": {"nested": {"key": "a"}}}, "filter.must.nested.filter: expected a filter, found null"),
    ({"must": {"nested": {"key": "a", "filter": {"must": 1}}}}, "filter.must.nested.filter.must: expected a condition"),
    ({"must": "a"}, "filter.must: expected a condition, found 'a'"),
    ({"year": {"gte": 1, "value": 2}}, "filter.year.gte: is not known"),
    ({"price": 5.0}, "filter.price: expected a string, an integer or a boolean (compare floats by range), found 5.0"),
    ({"a": None}, "filter.a: expected a string, an integer or a boolean, found null"),
    ({"a": {}}, "filter.a: expected one of value"),
    ({"a": [{}]}, "filter.a[0]: expected a string, an integer or a boolean, found an object"),
]


@pytest.mark.parametrize(("asked", "said"), WRONG)
def test_what_is_not_understood_is_refused_with_its_place(asked: Any, said: str) -> None:
    with pytest.raises(BadQuery) as found:
        parse(asked)
    assert str(found.value).startswith(said), str(found.value)


def deep(levels: int) -> Any:
    return {"must": [deep(levels - 1)]} if levels else {"key": "a", "is_null": True}


def test_depth_conditions_and_values_are_bounded() -> None:
    condition = {"key": "a", "is_null": True}
    parse(deep(DEPTH_MAX))
    parse({"must": [condition] * CONDITIONS_MAX})
    parse({"a": list(range(VALUES_MAX))})
    for too_much in (
        deep(DEPTH_MAX + 1),
        deep(900),
        {"must": [condition] * (CONDITIONS_MAX + 1)},
        {"a": list(range(VALUES_MAX)), "b": 1},
        {"must": [{"has_id": ["x"] * VALUES_MAX}, {"has_id": ["y"]}]},
    ):
        with pytest.raises(BadQuery, match="at most"):
            parse(too_much)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["must", "key", "match", "range", "gt", "any", "nested", "filter", "a"]), inner
        )
    ),
    max_leaves=10,
)


@given(_json | filters(["a"]))
def test_any_json_is_a_filter_or_refused(asked: Any) -> None:
    try:
        found = parse(asked)
    except BadQuery as error:
        assert str(error).startswith("filter")
    else:
        assert hash(found) == hash(parse(asked))


def test_paths_are_read_as_documented() -> None:
    for text, steps in PATHS.items():
        assert parse_path(text) == tuple(ELEMENTS if step is None else step for step in steps)
    assert parse_path('"a\\"b\\\\"[][2].c d.é-_') == ('a"b\\', ELEMENTS, 2, "c d", "é-_")


@given(st.lists(st.text(max_size=4) | st.integers(-1, 20), max_size=6).map(lambda steps: ("a", *steps)))
def test_a_path_that_is_written_is_read_as_the_same(path: tuple[str | int, ...]) -> None:
    assert parse_path(format_path(path)) == path


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:00:01Z", 1),
        ("1970-01-01T00:00:01.5z", 1.5),
        ("1970-01-01 00:00:00.1234567+00", 0.123456),
        ("1970-01-01T02:00:00+02:00", 0),
        ("1969-12-31T22:30-0130", 0),
        ("1970-01-02", 86_400),
        ("1969-12-31T23:59:59.25Z", -0.75),
    ],
)
def test_times_are_microseconds_since_1970(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds * 1e6


@pytest.mark.parametrize(
    "text", ["", "1970", "1970-01", "1970-13-01", "0000-01-01", "1970-01-01T24:00:00Z", "1970-01-01T00:00:00+24", "x"]
)
def test_other_texts_are_no_times(text: str) -> None:
    assert parse_time(text) is None
