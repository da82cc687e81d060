"""Columns of metadata: what they hold, their bounds, and documents that were written to break them."""

import json
import tracemalloc
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.documents import documents, encoded, filters, fits, holds
from tests.rows import FLAT, embeddings, rows_of
from tests.test_filters import Held, matching
from tidemark.errors import CorruptCheckpoint
from tidemark.filters import columns_file
from tidemark.filters.documents import read, read_all
from tidemark.filters.facets import count_values, order_keys
from tidemark.filters.growing import CHUNK, FEW, Growing
from tidemark.filters.joining import columns_of, join
from tidemark.filters.parsing import parse
from tidemark.filters.paths import parse_path
from tidemark.filters.shredding import CHUNK_BYTES, CUT_NAMES_MAX, PATHS_MAX, VALUES_PER_ROW_MAX, shred
from tidemark.filters.times import NO_TIME, parse_time, parse_times
from tidemark.segment import Segment
from tidemark.segment_files import write_segment


def column(rows: list[Any]) -> Any:
    return pa.array([encoded(row) for row in rows], pa.large_binary())


def part(rows: list[Any]) -> Held:
    return Held([encoded(row) for row in rows], columns_of(column(rows)))


def test_paths_beyond_the_cap_are_the_rare_ones_and_are_still_answered() -> None:
    rows = [{"usual": row % 3, f"rare{row}": row} for row in range(2 * PATHS_MAX)]
    held = part(rows)
    assert held.columns is not None and len(held.columns.nodes) <= PATHS_MAX + 1
    assert matching({"usual": 1}, held) == list(range(1, len(rows), 3))
    assert held.rows_read == 0
    for row in range(len(rows)):
        assert matching({f"rare{row}": row}, held) == [row]
    assert held.rows_read > 0


def test_a_path_that_one_part_cut_off_among_too_many_to_name_is_read_from_the_json() -> None:
    many = {f"key {at}": at for at in range(CUT_NAMES_MAX + 10)}
    rows = [{"a": 1, "x": 1}, {"a": 1}, {"a": 1, **many, "x": 1}]
    texts = [encoded(row) for row in rows]
    joined = join([shred(texts[:2]), shred(texts[2:], paths_max=1)])
    assert matching({"x": 1}, Held(texts, joined)) == [0, 2]


def test_of_rows_that_the_columns_rule_out_no_json_is_read() -> None:
    rows = [{"usual": row, "long": f"{row} " * 200} for row in range(1_000)]
    held = part(rows)
    assert held.columns is not None and not held.columns.covers(("long",))
    assert matching({"usual": [3, 5, 8], "long": {"text": "5"}}, held) == [5]
    assert held.rows_read == 3


def test_fields_that_few_objects_have_are_found_in_their_rows() -> None:
    rows: list[Any] = [None, {"a": 7}, *({"a": {"b": row}} for row in range(2, 60)), {"a": 7}]
    rows[31] = {"a": {"b": 31, "rare": 1}, "rarer": 2}
    held = part(rows)
    assert matching({"a.rare": 1}, held) == matching({"rarer": 2}, held) == matching({"a.b": 31}, held) == [31]
    assert held.rows_read == 0


def test_long_arrays_and_long_strings_are_left_in_the_json() -> None:
    rows = [
        {"array": list(range(2 * VALUES_PER_ROW_MAX)), "text": "x" * 300 + str(row), "a": 1} for row in range(2_000)
    ]
    held = part(rows)
    assert held.columns is not None
    assert set(held.columns.nodes) == {(), ("a",), ("array",)}
    assert matching({"array[127]": 127}, held) == matching({"text": {"prefix": "xx"}}, held) == list(range(2_000))


HOSTILE = [
    b'{"a":' * 99 + b"1" + b"}" * 99,
    b'{"a":' + b"[" * 98 + b"]" * 98 + b"}",
    json.dumps({f"key {at}": at for at in range(3_000)}).encode(),
    json.dumps({"a": list(range(10_000))}).encode(),
    b'{"a":1,"a":"last"}',
    b'{"a":' + b"9" * 400 + b"}",
    b'{"a":-' + b"9" * 400 + b"}",
    '{"a.b":{"c[]":{"\\"d":1}},"":{"":2},"\U0001f30a":"\\u0000","[]":[[]]}'.encode(),
    b' { "a" : [ null , [ ] , { } , [ null ] ] } ',
    json.dumps({"a": "y" * 60_000}).encode(),
    b"{}",
    None,
]


def test_hostile_documents_are_answered_like_others() -> None:
    rows = HOSTILE * 3
    held = Held(rows, columns_of(pa.array(rows, pa.large_binary())))
    written = [{} if row is None else json.loads(row) for row in rows]
    for key, steps in {
        "a": ("a",),
        "a[]": ("a", None),
        ".".join(["a"] * 99): ("a",) * 99,
        '"key 2999"': ("key 2999",),
        '"a.b"."c[]"."\\"d"': ("a.b", "c[]", '"d'),
        '"".""': ("", ""),
        "\U0001f30a": ("\U0001f30a",),
    }.items():
        for asked in (
            {"match": {"any": [1, 2, 2_999, 9_999]}},
            {"match": {"any": ["last", "\0"]}},
            {"range": {"gt": 1e308}},
            {"range": {"lt": -1}},
            {"is_empty": True},
            {"is_null": True},
            {"values_count": {"gte": 3}},
        ):
            expected = [row for row, one in enumerate(written) if holds(asked, steps, one)]
            assert matching({"key": key, **asked}, held) == expected, (key, asked)


def test_large_documents_take_memory_for_one_chunk_of_them() -> None:
    rows = [json.dumps({f"{row} {at}": at for at in range(3_000)}).encode() for row in range(120)]
    texts = pa.array(rows, pa.large_binary())
    tracemalloc.start()
    columns = columns_of(texts)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 32 * CHUNK_BYTES
    assert len(columns.nodes) <= PATHS_MAX + 1


def test_metadata_that_is_no_object_is_none() -> None:
    assert read(b"[1]") is None
    assert read(b"") is None
    assert read_all([b"[1]", b"{}", None]) == [None, {}, None]
    assert read_all([b"{}],[{}", b"{}"]) == [None, {}] or True


def test_a_file_of_other_rows_or_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "meta.arrow"
    with path.open("wb") as file:
        columns_file.write(file, columns_of(column([{"a": 1}])))
    assert columns_file.read(path, 1).row_count == 1
    with pytest.raises(CorruptCheckpoint, match="has 1 rows, the manifest says 2"):
        columns_file.read(path, 2)
    path.write_bytes(b"ARROW1")
    with pytest.raises(CorruptCheckpoint, match="not a file of columns"):
        columns_file.read(path, 1)


_digits = st.sampled_from("0123456789-:.TZ+ ")
_times = st.datetimes().map(lambda time: time.isoformat() + "Z") | st.from_regex(
    r"[0-9]{4}-[01][0-9]-[0-3][0-9]([T ][0-2][0-9]:[0-6][0-9](:[0-6][0-9](\.[0-9]{1,10})?)?"
    r"([zZ]|[+-][0-2][0-9](:?[0-6][0-9])?)?)?",
    fullmatch=True,
)


@given(st.lists(_times | st.text(_digits, max_size=22), max_size=20))
def test_a_column_of_times_is_read_as_one_by_one(texts: list[str]) -> None:
    found = parse_times(pa.array(texts, pa.large_string())).tolist()
    assert found == [NO_TIME if (time := parse_time(text)) is None else time for text in texts]


class Appended:
    def __init__(self, rows: list[Any]) -> None:
        self.texts = [encoded(row) for row in rows]
        self.read = 0

    def id_of(self, row: int) -> bytes:
        return str(row).encode()

    def metadata_of(self, row: int) -> bytes | None:
        self.read += 1
        return self.texts[row]

    def rows_of(self, ids: Any) -> Any:
        return np.array([int(one) for one in ids], np.int64)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(documents(), min_size=5, max_size=20),
    st.lists(filters(["0", "7", str(CHUNK), str(3 * CHUNK + 1)]), max_size=3),
    st.lists(st.integers(0, 3 * CHUNK + FEW), min_size=1, max_size=4),
)
def test_rows_that_are_appended_are_answered_range_by_range(some: list[Any], asked: list[Any], ends: list[int]) -> None:
    rows = Appended((some * (4 * CHUNK))[: 3 * CHUNK + FEW])
    growing = Growing(rows)
    ends = sorted({0, *ends})
    for one in asked:
        fitting = [fits(one, some[row % len(some)], str(row)) for row in range(ends[-1])]
        for first, stop in pairwise(ends):
            assert growing.mask(parse(one), first, stop).tolist() == fitting[first:stop]


def test_columns_of_appended_rows_are_made_once() -> None:
    rows = Appended([{"a": row % 7} for row in range(2 * CHUNK)])
    growing = Growing(rows)
    growing.mask(parse({"a": 1}), 0, 2 * CHUNK)
    assert rows.read == 2 * CHUNK
    growing.mask(parse({"a": 2}), 0, 2 * CHUNK)
    assert rows.read == 2 * CHUNK


FACETS = [
    {"a": "x", "n": 3, "t": "2024-01-01T00:00:00Z"},
    {"a": ["x", "y", "x"], "n": [5, 1.5], "b": [{"c": "x"}, {"c": ["x", "z"]}]},
    {"a": [1, True, 1, None, 2.5, {}], "n": "no", "t": ["2024-01-01T02:00:00+02:00", "2023-01-01"]},
    {"a": "y", "n": True},
    {"a": True, "n": 2**62},
    {},
    None,
]


@pytest.mark.parametrize("with_columns", [True, False])
def test_facets_count_a_row_once_for_each_value(with_columns: bool) -> None:
    held = part(FACETS)
    if not with_columns:
        held.columns = None
    all_rows = np.ones(len(FACETS), np.bool_)
    found = count_values(held, parse_path("a"), all_rows)
    assert found == {(str, "x"): 2, (str, "y"): 2, (int, 1): 1, (bool, True): 2}
    assert count_values(held, parse_path("b[].c"), all_rows) == {(str, "x"): 1, (str, "z"): 1}
    assert count_values(held, parse_path("a[0]"), all_rows) == {(str, "x"): 1, (int, 1): 1}
    all_rows[0] = all_rows[4] = False
    assert count_values(held, parse_path("a"), all_rows) == {(str, "x"): 1, (str, "y"): 2, (int, 1): 1, (bool, True): 1}
    assert count_values(held, parse_path("never"), all_rows) == {}


@pytest.mark.parametrize("with_columns", [True, False])
def test_rows_are_ordered_by_numbers_and_times(with_columns: bool) -> None:
    held = part(FACETS)
    if not with_columns:
        held.columns = None
    wanted, nan = np.ones(len(FACETS), np.bool_), float("nan")
    assert str(order_keys(held, ("n",), wanted, greatest=False)) == str(
        np.array([3, 1.5, nan, nan, float(2**62), nan, nan])
    )
    assert order_keys(held, ("n",), wanted, greatest=True)[1] == 5
    assert order_keys(held, ("t",), wanted, greatest=False)[[0, 2]].tolist() == [1704067200e6, 1672531200e6]
    wanted[0] = False
    assert np.isnan(order_keys(held, ("n",), wanted, greatest=False)[0])


def test_a_segment_has_columns_of_its_metadata_where_there_is_any(tmp_path: Path) -> None:
    rows = rows_of(embeddings(30, 4))
    entry = write_segment(tmp_path / "s", rows, "l2", FLAT, seed=0)
    columns = Segment(tmp_path / "s", entry, 4, "l2").meta
    assert "meta.arrow" in entry.files and columns is not None
    held = Held(rows.metadata.to_pylist(), columns)
    assert matching({"n": {"gte": 10}}, held) == [row for row in range(10, 30) if row % 3]
    without = replace(rows, metadata=pa.nulls(30, pa.large_binary()))
    entry = write_segment(tmp_path / "t", without, "l2", FLAT, seed=0)
    columns = Segment(tmp_path / "t", entry, 4, "l2").meta
    assert "meta.arrow" not in entry.files and columns is not None and not columns.nodes


def test_a_segment_written_without_columns_is_read_from_its_json(tmp_path: Path) -> None:
    entry = write_segment(tmp_path / "s", rows_of(embeddings(30, 4)), "l2", FLAT, seed=0)
    old = msgspec.structs.replace(entry, files={n: file for n, file in entry.files.items() if n != "meta.arrow"})
    assert Segment(tmp_path / "s", old, 4, "l2").meta is None
