"""The nearest groups of rows: those whose values at a path are equal, by their nearest rows, and the nearest of each.

A row with several values at the path, in an array, is in the group of each. Strings, integers and booleans make
groups; a row with none of these is in no group.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tidemark import filtered
from tidemark.filters.documents import INTEGER_MAX, INTEGER_MIN, read
from tidemark.filters.facets import Value
from tidemark.filters.grammar import Filter, IsEmpty, Match, Path
from tidemark.filters.plain import flat_values_at
from tidemark.mirror import ViewMirror
from tidemark.searcher import K_MAX, Hit, Plan

# So many rows are looked at for each that is wanted, and at least so many; then others, in which the groups found are
# left out, so many times.
LOOKED_AT, LOOKED_AT_LEAST, ROUNDS_MAX = 4, 100, 16
Key = tuple[type, Value]


class Group(NamedTuple):
    """Rows with a value in common, nearest first."""

    value: Value
    hits: list[Hit]


class Groups(NamedTuple):
    """Groups, the one with the nearest row first; the positions they reflect, and how they were looked for."""

    groups: list[Group]
    positions: dict[int, int]
    plan: Plan


def search(
    view: ViewMirror,
    query: NDArray[np.float32],
    k: int,
    size: int,
    path: Path,
    filter_: Filter,
    effort: float = 1.0,
    exact: bool = False,
) -> Groups:
    """The k nearest groups of a prepared query (1, dimension), and the `size` nearest rows of each."""
    looked_at = min(K_MAX, max(LOOKED_AT_LEAST, LOOKED_AT * k * size))
    first = filtered.search(view, query, looked_at, _with(filter_, IsEmpty(path, False)), effort, exact)
    hits, found, whole = first.hits[0], dict[Key, list[Hit]](), set[Key]()
    for _ in range(ROUNDS_MAX):
        known = set(found)
        for hit in hits:
            for key in _keys(hit, path):
                if key not in known:
                    found.setdefault(key, []).append(hit)
        if len(hits) < looked_at:  # there are no more
            whole |= found.keys() - known
        if len(found) >= k or len(hits) < looked_at or len(found) == len(known):
            break
        others = _with(filter_, _match(path, found, negated=True))
        hits = filtered.search(view, query, looked_at, others, effort, exact).hits[0]
    groups = []
    for key in list(found)[:k]:
        rows = found[key]
        if len(rows) < size and key not in whole:
            alike = _with(filter_, _match(path, [key]))
            rows = filtered.search(view, query, size, alike, effort, exact).hits[0] or rows
        groups.append(Group(key[1], rows[:size]))
    return Groups(groups, first.positions, first.plan)


def _with(filter_: Filter, condition: IsEmpty | Match) -> Filter:
    return Filter(must=(filter_, condition))


def _match(path: Path, keys: list[Key] | dict[Key, list[Hit]], negated: bool = False) -> Match:
    def of(kind: type) -> tuple[Value, ...]:
        return tuple(value for type_, value in keys if type_ is kind)

    return Match(path, of(str), of(int), of(bool), negated)  # type: ignore[arg-type]


def _keys(hit: Hit, path: Path) -> Iterator[Key]:
    """The groups that a row is in, each once."""
    seen = set()
    for value in flat_values_at(path, read(hit.metadata) or {}):
        kind = type(value)
        if kind in (str, bool) or (kind is int and INTEGER_MIN <= value <= INTEGER_MAX):
            if (kind, value) not in seen:
                yield kind, value
            seen.add((kind, value))
