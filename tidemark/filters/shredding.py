"""Cutting documents into columns: each path's values side by side, most frequent paths first.

What is done for each value is done by functions written in C over whole columns, because a loop in Python costs as
much as all the rest. Hostile documents cost what their bytes cost: a chunk is bounded in bytes, the paths by PATHS_MAX.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, compress
from itertools import count as counting
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tidemark.filters.columns import (
    FALSE,
    FLOAT,
    INTEGER,
    LIST,
    NO_CODES,
    NO_FLOATS,
    NO_INTEGERS,
    NO_STRINGS,
    NULL,
    OBJECT,
    STRING,
    Columns,
    Indices,
    Node,
    node_path,
)
from tidemark.filters.documents import Document, bounded, read_all
from tidemark.filters.grammar import ELEMENTS, Path

# Beyond these a path is not cut into a column: conditions on it read the JSON.
PATHS_MAX = 256
STRING_BYTES_MEAN_MAX = 256
VALUES_PER_ROW_MAX = 64
# The last two are not asked of so little.
SMALL_BYTES, SMALL_ROWS = 65_536, 1_024
# So many paths that were cut off are known by name, at each place.
CUT_NAMES_MAX = 1_024
# Documents in memory at a time.
CHUNK_ROWS, CHUNK_BYTES = 4_096, 4 * 2**20

_KINDS = {type(None): NULL, bool: FALSE, int: INTEGER, float: FLOAT, str: STRING, list: LIST, dict: OBJECT}
_MISSING = object()

Texts = Sequence[bytes | None]


def shred(texts: Texts, wanted: Iterable[Path] | None = None, paths_max: int = PATHS_MAX) -> Columns:
    """The columns of one chunk of documents; `wanted`: of these paths alone, and then without the bounds above."""
    return _Shredder(read_all(texts), wanted, paths_max).columns()


def chunks(texts: Texts) -> Iterator[Texts]:
    """The documents in runs of at most CHUNK_ROWS and about CHUNK_BYTES."""
    first, size = 0, 0
    for row, text in enumerate(texts):
        size += len(text or b"")
        if row + 1 - first >= CHUNK_ROWS or size >= CHUNK_BYTES:
            yield texts[first : row + 1]
            first, size = row + 1, 0
    if first < len(texts):
        yield texts[first:]


class _Shredder:
    """The nodes of one chunk while they are being made, and the paths still to come, most frequent first."""

    def __init__(self, documents: list[Document | None], wanted: Iterable[Path] | None, paths_max: int) -> None:
        self.row_count = len(documents)
        self.nodes: dict[Path, Node] = {}
        self.cut: dict[Path, set[str | int] | None] = {}
        self.paths_max = paths_max
        self.wanted = None if wanted is None else _prefixes(wanted)
        self.most = max(self.row_count, SMALL_ROWS) * VALUES_PER_ROW_MAX
        self.waiting: list[tuple[int, int, Path, Indices | None, list[Any]]] = []
        self.numbers = counting()
        rows = None
        if None in documents:
            rows = np.array([row for row, one in enumerate(documents) if one is not None], np.int32)
            documents = [one for one in documents if one is not None]
        self.add((), rows, documents)

    def add(self, path: Path, parents: Indices | None, values: list[Any]) -> None:
        if self.wanted is None and len(values) > self.most:
            self.cut_off(path)
        elif values:
            heapq.heappush(self.waiting, (-len(values), next(self.numbers), path, parents, values))

    def cut_off(self, path: Path) -> None:
        """Remember that a path is not here, at the path before it."""
        names = self.cut.setdefault(path[:-1], set())
        if names is not None:
            names.add(path[-1])
            if len(names) > CUT_NAMES_MAX:
                self.cut[path[:-1]] = None

    def columns(self) -> Columns:
        while self.waiting:
            _, _, path, parents, values = heapq.heappop(self.waiting)
            if self.wanted is None and len(self.nodes) > self.paths_max:
                self.cut_off(path)
            else:
                self.make(path, parents, values)
        cut = {path: None if names is None else frozenset(names) for path, names in self.cut.items()}
        return Columns(self.row_count, self.nodes, cut)

    def make(self, path: Path, parents: Indices | None, values: list[Any]) -> None:
        try:
            node, objects, lists = _node(parents, values)
        except OverflowError:
            return self.make(path, parents, list(map(bounded, values)))
        if self.wanted is None and _strings_are_long(node):
            return self.cut_off(path)
        self.nodes[path] = node
        if objects:
            self.add_fields(path, objects, _entries(node, OBJECT))
        if lists:
            self.add_elements((*path, ELEMENTS), lists, _entries(node, LIST))
        return None

    def add_elements(self, path: Path, lists: list[list[Any]], entries: Indices | None) -> None:
        if self.wanted is not None and path not in self.wanted:
            return None
        lengths = np.fromiter(map(len, lists), np.int64, len(lists))
        if self.wanted is None and lengths.sum() > self.most:
            return self.cut_off(path)
        parents = np.repeat(np.arange(len(lists), dtype=np.int32) if entries is None else entries, lengths)
        return self.add(path, parents, list(chain.from_iterable(lists)))

    def add_fields(self, path: Path, objects: list[Document], entries: Indices | None) -> None:
        counts = self.counted(path, objects)
        rare = {key for key, count in counts.items() if 16 * count < len(objects)}
        for key, count in counts.items():
            if count == len(objects):
                self.add((*path, key), entries, list(map(itemgetter(key), objects)))
            elif key not in rare:
                found = [one.get(key, _MISSING) for one in objects]
                here = [value is not _MISSING for value in found]
                self.add((*path, key), _at(entries, np.flatnonzero(here)), list(compress(found, here)))
        if rare:
            self.add_rare(path, objects, entries, rare)

    def add_rare(self, path: Path, objects: list[Document], entries: Indices | None, keys: set[str]) -> None:
        """Fields that few objects have: one pass over the objects for all of them."""
        found: dict[str, tuple[list[int], list[Any]]] = {key: ([], []) for key in keys}
        for place, one in enumerate(objects):
            for key in one.keys() & keys if len(keys) < len(one) else [key for key in one if key in keys]:
                found[key][0].append(place)
                found[key][1].append(one[key])
        for key, (places, values) in found.items():
            self.add((*path, key), _at(entries, np.array(places, np.int64)), values)

    def counted(self, path: Path, objects: list[Document]) -> dict[str, int]:
        """How many objects have each field; of the most frequent ones, the others are cut off."""
        if self.wanted is not None:
            keys = [step for step in self.wanted.get(path, ()) if isinstance(step, str)]
            counts = {key: sum(map(dict.__contains__, objects, (key,) * len(objects))) for key in keys}
            return {key: count for key, count in counts.items() if count}
        frequent = Counter(chain.from_iterable(objects))
        if len(frequent) <= self.paths_max:
            return frequent
        kept = dict(heapq.nsmallest(self.paths_max, frequent.items(), key=lambda one: (-one[1], one[0])))
        for key in frequent:
            if key not in kept:
                self.cut_off((*path, key))
                if self.cut[path] is None:
                    break
        return kept


def _prefixes(paths: Iterable[Path]) -> dict[Path, set[str | int]]:
    """The steps to go on from each path to the paths, and to the elements of what stands there."""
    steps: dict[Path, set[str | int]] = {}
    for path in paths:
        whole = (*node_path(path), ELEMENTS)
        for depth, step in enumerate(whole):
            steps.setdefault(whole[:depth], set()).add(step)
        steps.setdefault(whole, set())
    return steps


def _node(parents: Indices | None, values: list[Any]) -> tuple[Node, list[Document], list[list[Any]]]:
    """The node, and of its values the objects and the lists; OverflowError for an integer beyond 64 bits."""
    types = set(map(type, values))
    by_kind: dict[int, list[Any]]
    kinds: NDArray[np.uint8] | int
    if len(types) == 1:
        kinds = _KINDS[types.pop()]
        by_kind = {kinds: values}
        if kinds == FALSE:
            kinds = np.array(values, np.uint8) + np.uint8(FALSE)
    else:
        kinds = np.fromiter(map(_KINDS.__getitem__, map(type, values)), np.uint8, len(values))
        by_kind = {kind: list(compress(values, kinds == kind)) for kind in sorted(_KINDS[one] for one in types)}
        if FALSE in by_kind:
            kinds[kinds == FALSE] += np.array(by_kind[FALSE], np.uint8)
    codes, dictionary = _encoded(by_kind.get(STRING))
    integers, floats = by_kind.get(INTEGER), by_kind.get(FLOAT)
    node = Node(
        count=len(values),
        parents=parents,
        kinds=kinds,
        integers=np.array(integers, np.int64) if integers else NO_INTEGERS,
        floats=np.array(floats, np.float64) if floats else NO_FLOATS,
        codes=codes,
        dictionary=dictionary,
    )
    return node, by_kind.get(OBJECT, []), by_kind.get(LIST, [])


def _encoded(strings: list[str] | None) -> tuple[NDArray[np.int32], Any]:
    if not strings:
        return NO_CODES, NO_STRINGS
    found = pa.array(strings, pa.large_string()).dictionary_encode()
    return found.indices.to_numpy(), found.dictionary


def _strings_are_long(node: Node) -> bool:
    """Whether the distinct strings take more than so many bytes for each string."""
    return int(node.dictionary.nbytes) > max(SMALL_BYTES, STRING_BYTES_MEAN_MAX * len(node.codes))


def _entries(node: Node, kind: int) -> Indices | None:
    """The entries of a kind; None when it is all of them."""
    if isinstance(node.kinds, int):
        return None
    found: Indices = np.flatnonzero(node.kinds == kind).astype(np.int32)
    return found


def _at(entries: Indices | None, places: NDArray[np.int64]) -> Indices:
    found: Indices = places.astype(np.int32) if entries is None else entries[places]
    return found
