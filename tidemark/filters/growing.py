"""Rows that are appended, asked by range: columns are made of whole chunks when they are first needed, once each.

Any thread may ask; a row that exists never changes. Knows nothing of tails: `Rows` says what is asked of them.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tidemark.filters.columns import Columns
from tidemark.filters.documents import read
from tidemark.filters.evaluate import Mask, Part, mask
from tidemark.filters.grammar import Filter
from tidemark.filters.joining import join
from tidemark.filters.plain import matches
from tidemark.filters.shredding import chunks, shred

CHUNK = 4_096
# Fewer rows are read one by one: the columns of a few cost 0.1 ms whatever their number.
FEW = 48


class Rows(Protocol):
    """Rows of which some exist already."""

    def id_of(self, row: int) -> bytes: ...

    def metadata_of(self, row: int) -> bytes | None: ...

    def rows_of(self, ids: Sequence[bytes]) -> NDArray[np.int64]:
        """The rows that hold one of the ids."""


class Growing:
    """Asks `rows` for what it needs of them, and keeps the columns of their chunks."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._columns: dict[int, Columns] = {}
        self._lock = threading.Lock()

    def mask(self, filter_: Filter, first: int, stop: int) -> Mask:
        """Which of the rows [first, stop), which exist, match: bool (stop - first,)."""
        if stop - first <= FEW:
            return np.fromiter((self._matches(filter_, row) for row in range(first, stop)), np.bool_, stop - first)
        return np.concatenate([mask(filter_, part) for _, part in self.parts(first, stop)])

    def parts(self, first: int, stop: int) -> Iterator[tuple[int, Part]]:
        """The rows [first, stop), which exist, as parts, each with the number of its first row."""
        ends = [first, *range((first // CHUNK + 1) * CHUNK, stop, CHUNK), stop]
        for start, end in pairwise(ends):
            yield start, self._part(start, end)

    @property
    def nbytes(self) -> int:
        """Memory of the columns."""
        return sum(columns.nbytes for columns in self._columns.values())

    def _matches(self, filter_: Filter, row: int) -> bool:
        return matches(filter_, read(self._rows.metadata_of(row)), self._rows.id_of(row))

    def _part(self, first: int, stop: int) -> "_Range":
        return _Range(self._rows, first, stop, self._chunk(first // CHUNK) if stop - first == CHUNK else None)

    def _chunk(self, number: int) -> Columns:
        with self._lock:
            if number not in self._columns:
                texts = [self._rows.metadata_of(row) for row in range(number * CHUNK, (number + 1) * CHUNK)]
                self._columns[number] = join([shred(some) for some in chunks(texts)])
            return self._columns[number]


@dataclass(frozen=True, slots=True)
class _Range:
    """Some of the rows, one after the other, as a part that a filter can be asked of."""

    rows: Rows
    first: int
    stop: int
    columns: Columns | None

    @property
    def row_count(self) -> int:
        return self.stop - self.first

    def documents(self, rows: NDArray[np.int64]) -> list[bytes | None]:
        return [self.rows.metadata_of(row) for row in (rows + self.first).tolist()]

    def rows_of(self, ids: Sequence[bytes]) -> NDArray[np.int64]:
        rows = self.rows.rows_of(ids) - self.first
        return rows[(rows >= 0) & (rows < self.row_count)]
