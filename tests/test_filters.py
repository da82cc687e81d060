"""What a filter matches: the columns, one document at a time, a plain reading of the filter, and Qdrant agree."""

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models

from tests.documents import FLOATS, INTEGERS, LARGE, STRINGS, conditions, documents, encoded, filters, fits, table
from tidemark.filters import columns_file
from tidemark.filters.columns import Columns
from tidemark.filters.documents import read
from tidemark.filters.evaluate import mask
from tidemark.filters.joining import columns_of, join
from tidemark.filters.parsing import parse
from tidemark.filters.plain import matches
from tidemark.filters.shredding import shred

Texts = list[bytes | None]


class Held:
    """A part in memory: ids are the row numbers."""

    def __init__(self, texts: Texts, columns: Columns | None) -> None:
        self.texts, self.row_count, self.columns = texts, len(texts), columns
        self.rows_read = 0

    def documents(self, rows: NDArray[np.int64]) -> Sequence[bytes | None]:
        self.rows_read += len(rows)
        return [self.texts[row] for row in rows]

    def rows_of(self, ids: Sequence[bytes]) -> NDArray[np.int64]:
        return np.array([int(one) for one in ids if int(one) < self.row_count], np.int64)


def matching(asked: Any, part: Held) -> list[int]:
    return np.flatnonzero(mask(parse(asked), part)).tolist()


def reread(columns: Columns) -> Columns:
    """The columns, written to a file and read from it."""
    with NamedTemporaryFile() as file:
        columns_file.write(file, columns)  # type: ignore[arg-type]
        file.flush()
        return columns_file.read(Path(file.name), columns.row_count)


def all_ways(texts: Texts, at: int) -> list[Columns | None]:
    """The same rows as columns: made at once, joined of two parts, read from a file, with few paths, and not at all."""
    whole = shred(texts)
    parts = [shred(part) for part in (texts[:at], texts[at:]) if part] or [whole]
    few = [shred(part, paths_max=2) for part in (texts[:at], texts[at:]) if part] or [whole]
    return [whole, join(parts), join(few, paths_max=3), reread(whole), reread(join(few, paths_max=3)), None]


IDS = ["0", "2", "5", "77"]


@settings(max_examples=250, deadline=None)
@given(
    st.lists(documents(LARGE) | st.none(), max_size=12),
    st.lists(filters(IDS, LARGE), min_size=2, max_size=8),
    st.integers(0, 8),
)
def test_columns_and_one_document_at_a_time_agree_with_a_plain_reading_of_the_filter(
    rows: list[Any], asked: list[Any], at: int
) -> None:
    texts = [encoded(row) for row in rows]
    ways = all_ways(texts, at)
    for one in asked:
        expected = [row for row, document in enumerate(rows) if fits(one, document or {}, str(row))]
        found = [row for row, text in enumerate(texts) if matches(parse(one), read(text), str(row).encode())]
        assert found == expected
        for columns in ways:
            assert matching(one, Held(texts, columns)) == expected


def test_every_condition_on_every_kind_of_value_agrees_with_a_plain_reading_of_it() -> None:
    rows = [None, *table([None, True, False, *STRINGS, *INTEGERS, *FLOATS, *LARGE])]
    texts = [encoded(row) for row in rows]
    _, joined, _, _, few, _ = all_ways(texts, 99)
    for number, one in enumerate(conditions(STRINGS, [*INTEGERS, *FLOATS, *LARGE, 0.5])):
        expected = [row for row, document in enumerate(rows) if fits({"must": one}, document or {}, "")]
        assert matching({"must": one}, Held(texts, (joined, few)[number % 2])) == expected, one
        found = [row for row, document in enumerate(rows) if matches(parse({"must": one}), document, b"")]
        assert found == expected, one


@pytest.fixture(scope="module")
def qdrant() -> QdrantClient:
    return QdrantClient(":memory:")


def into(qdrant: QdrantClient, rows: list[Any]) -> None:
    qdrant.delete_collection("rows")
    qdrant.create_collection("rows", models.VectorParams(size=1, distance=models.Distance.DOT))
    qdrant.upsert("rows", [models.PointStruct(id=row, vector=[1.0], payload=one) for row, one in enumerate(rows)])


def found_by(qdrant: QdrantClient, asked: Any) -> list[int]:
    found, _ = qdrant.scroll("rows", scroll_filter=models.Filter.model_validate(asked), limit=10_000)
    return sorted(int(point.id) for point in found)


def test_qdrants_local_mode_matches_the_same_rows_for_every_condition(qdrant: QdrantClient) -> None:
    rows = table([None, True, False, *STRINGS, *INTEGERS, *FLOATS])
    into(qdrant, rows)
    part = Held([encoded(row) for row in rows], columns_of(pa.array([encoded(row) for row in rows], pa.large_binary())))
    for one in conditions(STRINGS, [*INTEGERS, *FLOATS, 0.5]):
        assert matching({"must": one}, part) == found_by(qdrant, {"must": one}), one


@settings(max_examples=150, deadline=None)
@given(st.lists(documents(), min_size=1, max_size=6), st.lists(filters([0, 2, 5, 77]), min_size=2, max_size=8))
def test_qdrants_local_mode_matches_the_same_rows(
    qdrant: QdrantClient, rows: list[dict[str, Any]], asked: list[Any]
) -> None:
    into(qdrant, rows)
    part = Held([encoded(row) for row in rows], None)
    columns = columns_of(pa.array(part.texts, pa.large_binary()))
    for one in asked:
        ours = json.loads(json.dumps(one), object_hook=_with_ids_as_strings)
        assert matching(ours, Held(part.texts, columns)) == found_by(qdrant, one)


def _with_ids_as_strings(value: dict[str, Any]) -> dict[str, Any]:
    return {name: [str(one) for one in some] if name == "has_id" else some for name, some in value.items()}
