"""Which rows of a part match a filter: a bool per row, from its columns, or from its JSON where those do not reach.

Every condition is answered for the entries of one node (`columns.py`), whole arrays at a time, and told to the rows by
going up. A filter inside `nested` is the same with the objects of an array in place of the rows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tidemark.filters.columns import LIST, NULL, OBJECT, STRING, Columns, Node, node_path
from tidemark.filters.grammar import (
    ELEMENTS,
    Condition,
    Filter,
    HasId,
    IsEmpty,
    IsNull,
    Match,
    Nested,
    Path,
    Range,
    Text,
    ValuesCount,
    array_of,
    paths,
)
from tidemark.filters.shredding import CHUNK_ROWS, chunks, shred
from tidemark.filters.values import equal, integers_within, with_text, within, within_time

Mask = NDArray[np.bool_]


class Part(Protocol):
    """Rows that a filter is asked of; they never change."""

    @property
    def row_count(self) -> int: ...

    @property
    def columns(self) -> Columns | None:
        """Their columns, where they have been made."""

    def documents(self, rows: NDArray[np.int64]) -> Sequence[bytes | None]:
        """The metadata of some rows, as it was written."""

    def rows_of(self, ids: Sequence[bytes]) -> NDArray[np.int64]:
        """The rows that hold one of the ids; those of dead rows may be left out."""


def mask(filter_: Filter, part: Part) -> Mask:
    """Which rows match, bool (row_count,). Rows that are dead are answered like others, or not at all."""
    columns = part.columns
    here, there = filter_, Filter()
    if columns is None or not covers(columns, filter_):
        known = tuple(one for one in filter_.must if columns is not None and covers(columns, one))
        here, there = Filter(must=known), replace(filter_, must=tuple(one for one in filter_.must if one not in known))
    found = np.ones(part.row_count, np.bool_)
    if columns is not None:
        found = _Scope(columns, None, part.row_count, lambda ids: _among(part, ids)).filter(here)
    if there != Filter():
        _evaluate_json(there, part, found)
    return found


def covers(columns: Columns, condition: Condition) -> bool:
    """Whether the columns hold everything that a condition looks at."""
    return all(columns.covers((*path, ELEMENTS)) for path in paths(condition))


def _among(part: Part, ids: Sequence[bytes]) -> Mask:
    found = np.zeros(part.row_count, np.bool_)
    found[part.rows_of(ids)] = True
    return found


def _evaluate_json(filter_: Filter, part: Part, found: Mask) -> None:
    """Leave of the rows found those that match."""
    named: dict[tuple[bytes, ...], Mask] = {}

    def has_id(ids: tuple[bytes, ...], rows: NDArray[np.int64]) -> Mask:
        if ids not in named:
            named[ids] = _among(part, ids)
        return named[ids][rows]

    for rows, columns in shredded(part, np.flatnonzero(found), list(paths(filter_))):
        found[rows] = _Scope(columns, None, len(rows), partial(has_id, rows=rows)).filter(filter_)


def shredded(
    part: Part, rows: NDArray[np.int64], wanted: Sequence[Path]
) -> Iterator[tuple[NDArray[np.int64], Columns]]:
    """The rows in runs, each with columns of the paths wanted, made of its JSON: 1 to 2 us a row."""
    for first in range(0, len(rows), CHUNK_ROWS):
        some = rows[first : first + CHUNK_ROWS]
        for chunk in chunks(part.documents(some)):
            here, some = some[: len(chunk)], some[len(chunk) :]
            yield here, shred(chunk, wanted)


@dataclass(frozen=True, slots=True)
class _Scope:
    """What a filter is asked of: `count` rows or, where `base` is the path of an array's elements, those elements."""

    columns: Columns
    base: Path | None
    count: int
    has_id: Callable[[tuple[bytes, ...]], Mask]

    def filter(self, asked: Filter) -> Mask:
        found = np.ones(self.count, np.bool_)
        for one in asked.must:
            found &= self.condition(one)
        for one in asked.must_not:
            found &= ~self.condition(one)
        if asked.should:
            found &= np.logical_or.reduce([self.condition(one) for one in asked.should])
        if asked.min_count:
            counts = np.zeros(self.count, np.int32)
            for one in asked.min_should:
                counts += self.condition(one)
            found &= counts >= asked.min_count
        return found

    def condition(self, asked: Condition) -> Mask:
        if isinstance(asked, Filter):
            return self.filter(asked)
        if isinstance(asked, HasId):
            return self.has_id(asked.ids)
        if isinstance(asked, Nested):
            return self.nested(asked)
        if isinstance(asked, IsEmpty):
            return np.not_equal(self.told(asked.path, self.filled(asked.path)), asked.wanted)
        if isinstance(asked, IsNull):
            null = self.told(asked.path, lambda node: node.are(NULL))
            null |= self.told((*asked.path, ELEMENTS), lambda node: node.are(NULL))
            return np.equal(null, asked.wanted)
        if isinstance(asked, ValuesCount):
            return self.values_count(asked)
        return self.some_value(asked)

    def some_value(self, asked: Match | Text | Range) -> Mask:
        """Some value at the path, or some element of an array there, fits."""

        def fitting(node: Node) -> Mask:
            if isinstance(asked, Match):
                return ~equal(node, asked) & ~node.are(NULL) if asked.negated else equal(node, asked)
            if isinstance(asked, Text):
                return node.spread(STRING, with_text(node.dictionary, asked)[node.codes])
            return within_time(node, asked.bounds) if asked.times else within(node, asked.bounds)

        found = self.told(
            asked.path, lambda node: fitting(node) & ~node.are(LIST) if _has(node, LIST) else fitting(node)
        )
        if self.node((*asked.path, ELEMENTS)) is not None:
            found |= self.told((*asked.path, ELEMENTS), fitting)
        return found

    def filled(self, path: Path) -> Callable[[Node], Mask]:
        """Asks a node which entries are neither null nor an empty array."""

        def asked(node: Node) -> Mask:
            return ~node.are(NULL) & (self.lengths(path, node) > 0) if _has(node, LIST) else ~node.are(NULL)

        return asked

    def values_count(self, asked: ValuesCount) -> Mask:
        found = self.told(asked.path, lambda node: integers_within(self.lengths(asked.path, node), asked.bounds))
        if asked.bounds.hold(0):
            found |= ~self.told(asked.path, lambda node: np.ones(node.count, np.bool_))
        return found

    def lengths(self, path: Path, node: Node) -> NDArray[np.int64]:
        """How many values each entry has: an array its elements, null none, any other one."""
        lengths = np.where(node.are(NULL, LIST), 0, 1)
        elements = self.node((*path, ELEMENTS))
        if elements is not None:
            parents = np.arange(node.count) if elements.parents is None else elements.parents
            lengths += np.bincount(parents, minlength=node.count)
        return lengths

    def nested(self, asked: Nested) -> Mask:
        path = array_of(asked.path)

        def matching(node: Node) -> Mask:
            base = node_path((*(self.base or ()), *path))
            inner = _Scope(self.columns, base, node.count, lambda _: np.zeros(node.count, np.bool_))
            return inner.filter(asked.filter) & node.are(OBJECT)

        return self.told(path, matching)

    def node(self, path: Path) -> Node | None:
        return self.columns.nodes.get(node_path((*(self.base or ()), *path)))

    def told(self, path: Path, found: Callable[[Node], Mask]) -> Mask:
        """Which rows have an entry at the path for which something was found."""
        node = self.node(path)
        if node is None:
            return np.zeros(self.count, np.bool_)
        entries = found(node)
        owners, chosen = self.columns.owners((*(self.base or ()), *path), self.base)
        if chosen is not None:
            entries = entries & chosen
        if owners is None:
            return entries
        rows = np.zeros(self.count, np.bool_)
        rows[owners[entries]] = True
        return rows


def _has(node: Node, kind: int) -> bool:
    return node.kinds == kind if isinstance(node.kinds, int) else bool((node.kinds == kind).any())
