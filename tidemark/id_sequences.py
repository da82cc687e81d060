"""Ids as sequences that copy nothing: few of them are ever read."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidemark.tail import Tail


class Joined(Sequence[bytes]):
    """Two lists, one after the other."""

    def __init__(self, first: Sequence[bytes], second: Sequence[bytes]) -> None:
        self._first, self._second = first, second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def __getitem__(self, at: Any) -> Any:
        return self._first[at] if at < len(self._first) else self._second[at - len(self._first)]


class Ordered(Sequence[bytes]):
    """Ids in another order; read one by one, for few are asked for."""

    def __init__(self, ids: Sequence[bytes], order: NDArray[np.int64]) -> None:
        self._ids, self._order = ids, order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, at: Any) -> Any:
        return self._ids[int(self._order[at])]


class Ids(Sequence[bytes]):
    """The ids of some rows of tails, then those of deletes."""

    def __init__(self, rows: Sequence[tuple[Tail, NDArray[np.int64]]], deleted: Sequence[bytes]) -> None:
        self._rows, self._deleted = rows, deleted
        self._ends = np.cumsum([len(some) for _, some in rows]).tolist()

    def __len__(self) -> int:
        return int(self._ends[-1]) + len(self._deleted)

    def __getitem__(self, row: Any) -> Any:
        number = bisect_right(self._ends, row)
        if number == len(self._rows):
            return self._deleted[row - self._ends[-1]]
        tail, some = self._rows[number]
        return tail.id_of(int(some[row - (self._ends[number - 1] if number else 0)]))
