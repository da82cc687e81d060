"""What stands at a path in some rows of a part: how often each value does, and numbers to order rows by.

A row counts once for each distinct value at the path, or in an array there; null, floats and objects are not counted.
To be ordered by, a row has its least number or time at the path, or its greatest.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tidemark.filters.columns import FALSE, FLOAT, INTEGER, STRING, TRUE, Columns, Node, node_path
from tidemark.filters.evaluate import Mask, Part, shredded
from tidemark.filters.grammar import ELEMENTS, Path
from tidemark.filters.joining import joined_codes
from tidemark.filters.times import NO_TIME

Value: TypeAlias = str | int | bool
# The type stands beside the value: in Python True and 1 are the same key.
Counts: TypeAlias = Counter[tuple[type, Value]]
Rows: TypeAlias = NDArray[np.int64]


def count_values(part: Part, path: Path, wanted: Mask) -> Counts:
    """How many of the rows wanted, bool (row_count,), have each value."""
    counts: Counts = Counter()
    for rows, columns in _columns(part, path, wanted):
        for kind, values, owners in _values(columns, path):
            here = wanted[rows][owners]
            for value, count in _counted(values, owners, here):
                counts[kind, value] += count
    return counts


def order_keys(part: Part, path: Path, wanted: Mask, greatest: bool) -> NDArray[np.float64]:
    """What each row wanted is ordered by, float64 (row_count,): a number, or a time in microseconds; NaN for none."""
    keys = np.full(part.row_count, np.nan)
    for rows, columns in _columns(part, path, wanted):
        here = np.full(len(rows), np.nan)
        for numbers, owners in _numbers(columns, path):
            (np.fmax if greatest else np.fmin).at(here, owners, numbers)
        keys[rows] = here
    keys[~wanted] = np.nan
    return keys


def _columns(part: Part, path: Path, wanted: Mask) -> Iterator[tuple[Rows, Columns]]:
    if part.columns is not None and part.columns.covers((*path, ELEMENTS)):
        yield np.arange(part.row_count), part.columns
    else:
        yield from shredded(part, np.flatnonzero(wanted), [path])


def _entries(columns: Columns, path: Path) -> Iterator[tuple[Node, Rows, Mask]]:
    """The nodes of the values, the row of each entry, and which entries are at the path."""
    for where in (path, (*path, ELEMENTS)):
        node = columns.nodes.get(node_path(where))
        if node is not None:
            owners, chosen = columns.owners(where, None)
            yield (
                node,
                np.arange(node.count) if owners is None else owners.astype(np.int64),
                np.ones(node.count, np.bool_) if chosen is None else chosen,
            )


def _values(columns: Columns, path: Path) -> Iterator[tuple[type, Any, Rows]]:
    """Of each type the values, as an array that can be encoded, and the row of each."""
    found = list(_entries(columns, path))
    if not found:
        return
    for kind, type_ in ((STRING, str), (INTEGER, int)):
        chosen = [node.are(kind) & here for node, _, here in found]
        owners = np.concatenate([rows[some] for (_, rows, _), some in zip(found, chosen, strict=True)])
        if len(owners):
            yield type_, _of_kind(kind, [node for node, _, _ in found], chosen), owners
    for kind, value in ((FALSE, False), (TRUE, True)):
        owners = np.concatenate([rows[node.are(kind) & here] for node, rows, here in found])
        if len(owners):
            yield bool, pa.array(np.full(len(owners), value)), owners


def _of_kind(kind: int, nodes: Sequence[Node], chosen: Sequence[Mask]) -> Any:
    kept = [some[node.are(kind)] for node, some in zip(nodes, chosen, strict=True)]
    if kind == INTEGER:
        return pa.array(np.concatenate([node.integers[some] for node, some in zip(nodes, kept, strict=True)]))
    codes, dictionary = joined_codes(nodes)
    return pa.DictionaryArray.from_arrays(pa.array(codes[np.concatenate(kept)]), dictionary)


def _counted(values: Any, owners: Rows, here: Mask) -> Iterator[tuple[Value, int]]:
    encoded = values if isinstance(values, pa.DictionaryArray) else values.dictionary_encode()
    codes, owners = encoded.indices.to_numpy()[here], owners[here]
    if len(owners) > 1 and not (np.diff(owners) > 0).all():  # a value may stand twice in a row
        pairs = np.unique(owners * len(encoded.dictionary) + codes)
        codes = pairs % len(encoded.dictionary)
    counts = np.bincount(codes, minlength=len(encoded.dictionary))
    places = np.flatnonzero(counts)
    return zip(encoded.dictionary.take(pa.array(places)).to_pylist(), counts[places].tolist(), strict=True)


def _numbers(columns: Columns, path: Path) -> Iterator[tuple[NDArray[np.float64], Rows]]:
    for node, owners, here in _entries(columns, path):
        for kind, numbers in ((INTEGER, node.integers), (FLOAT, node.floats)):
            are = node.are(kind)
            yield numbers.astype(np.float64)[here[are]], owners[are & here]
        if len(node.codes):
            times = np.where(node.times == NO_TIME, np.nan, node.times.astype(np.float64))[node.codes]
            are = node.are(STRING)
            yield times[here[are]], owners[are & here]
