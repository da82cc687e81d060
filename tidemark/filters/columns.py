"""Metadata as typed columns: for each path that occurs, one `Node` with what stands there in all rows of a part.

A node has an entry for each time its path occurs, in the order of the rows. An entry knows its parent's entry, so
that what holds for entries is told to rows by going up; nothing is lost of arrays, of nesting or of types that differ
from row to row. Paths that were cut off (too many, or too large) are known by name: `covers` says what may be asked
here, everything else is in the JSON. Immutable. Made by `shredding.py`, kept by `columns_file.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tidemark.filters.grammar import ELEMENTS, Path
from tidemark.filters.times import parse_times

NULL, FALSE, TRUE, INTEGER, FLOAT, STRING, LIST, OBJECT = range(8)
NO_INTEGERS: Final = np.empty(0, np.int64)
NO_FLOATS: Final = np.empty(0, np.float64)
NO_CODES: Final = np.empty(0, np.int32)
NO_STRINGS: Final = pa.array([], pa.large_string())

Indices = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Node:
    """What stands at one path: `count` entries.

    `parents`: int32 (count,), ascending, the entry of the parent's node; None when each parent has exactly one.
    `kinds`: uint8 (count,), what an entry is; a number when all are the same.
    `integers` int64, `floats` float64 and `codes` int32 hold the entries of their kind, in order; a code is the
    place of a string in `dictionary`, an Arrow array of large_string.
    """

    count: int
    parents: Indices | None
    kinds: NDArray[np.uint8] | int
    integers: NDArray[np.int64] = field(default_factory=lambda: NO_INTEGERS)
    floats: NDArray[np.float64] = field(default_factory=lambda: NO_FLOATS)
    codes: NDArray[np.int32] = field(default_factory=lambda: NO_CODES)
    dictionary: Any = field(default_factory=lambda: NO_STRINGS)

    def are(self, *kinds: int) -> NDArray[np.bool_]:
        """Which entries are of one of the kinds, bool (count,)."""
        if isinstance(self.kinds, int):
            return np.full(self.count, self.kinds in kinds)
        found: NDArray[np.bool_] = self.kinds == kinds[0] if len(kinds) == 1 else np.isin(self.kinds, kinds)
        return found

    def spread(self, kind: int, found: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """What was found for the entries of one kind, among all entries, bool (count,)."""
        if isinstance(self.kinds, int):
            return found if self.kinds == kind else np.zeros(self.count, np.bool_)
        spread = np.zeros(self.count, np.bool_)
        spread[self.kinds == kind] = found
        return spread

    @cached_property
    def times(self) -> NDArray[np.int64]:
        """The dictionary's strings as times, in microseconds; NO_TIME where one is none."""
        return parse_times(self.dictionary)

    @cached_property
    def places(self) -> Indices:
        """The place of each entry among those of its parent, from 0."""
        if self.parents is None:
            return np.zeros(self.count, np.int32)
        first = np.empty(self.count, np.bool_)
        first[:1] = True
        np.not_equal(self.parents[1:], self.parents[:-1], out=first[1:])
        starts = np.flatnonzero(first)
        return (np.arange(self.count) - np.repeat(starts, np.diff(starts, append=self.count))).astype(np.int32)


@dataclass(frozen=True, eq=False)
class Columns:
    """The nodes of a part's rows by path; the root, (), is a row's document.

    `cut` says of a path which steps beyond it were cut off: some, or None when they were too many to name.
    """

    row_count: int
    nodes: Mapping[Path, Node]
    cut: Mapping[Path, frozenset[str | int] | None]

    def covers(self, path: Path) -> bool:
        """Whether what stands at a path is here and nowhere else."""
        if not self.cut:
            return True
        path = node_path(path)
        for depth in range(len(path)):
            if path[:depth] in self.cut:
                names = self.cut[path[:depth]]
                if path[depth] in names if names is not None else path[: depth + 1] not in self.nodes:
                    return False
        return True

    def owners(self, path: Path, base: Path | None) -> tuple[Indices | None, NDArray[np.bool_] | None]:
        """The entry of `base` (None: the row) that each entry at a path belongs to, and which are at the path.

        None stands for each entry's own number, and for all of them. `path` is below `base`, in which an index means
        each element, because its entries were chosen before.
        """
        owners: Indices | None = None
        chosen: NDArray[np.bool_] | None = None
        for depth in range(len(path), -1 if base is None else len(base), -1):
            node = self.nodes[node_path(path[:depth])]
            step = path[depth - 1] if depth else ""
            if isinstance(step, int) and step != ELEMENTS:
                here = node.places == step
                here = here if owners is None else here[owners]
                chosen = here if chosen is None else chosen & here
            if node.parents is not None:
                owners = node.parents if owners is None else node.parents[owners]
        return owners, chosen

    @property
    def nbytes(self) -> int:
        """Bytes of memory, or of the file, that the columns take."""
        return sum(_node_bytes(node) for node in self.nodes.values())


def node_path(path: Path) -> Path:
    """The path of the node that holds what stands at a path: there, an index is one of the elements."""
    return tuple(ELEMENTS if isinstance(step, int) else step for step in path)


def _node_bytes(node: Node) -> int:
    arrays = (node.parents, node.kinds, node.integers, node.floats, node.codes)
    return sum(part.nbytes for part in arrays if isinstance(part, np.ndarray)) + int(node.dictionary.nbytes)
