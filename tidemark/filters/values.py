"""Which entries of a node have a value asked for: by comparing whole arrays, and each distinct string once."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tidemark.filters.columns import FALSE, FLOAT, INTEGER, STRING, TRUE, Node
from tidemark.filters.documents import INTEGER_MAX, INTEGER_MIN
from tidemark.filters.grammar import Bounds, Match, Text
from tidemark.filters.times import NO_TIME
from tidemark.filters.words import contains, words

Mask = NDArray[np.bool_]


def equal(node: Node, asked: Match) -> Mask:
    """Which entries are one of the values, bool (count,)."""
    found = np.zeros(node.count, np.bool_)
    if asked.strings and len(node.codes):
        found |= node.spread(STRING, _with_codes(node.codes, _hits(node.dictionary, asked.strings)))
    if asked.integers and len(node.integers):
        found |= node.spread(INTEGER, _among(node.integers, asked.integers))
    if asked.booleans:
        found |= node.are(*(TRUE if wanted else FALSE for wanted in asked.booleans))
    return found


def within(node: Node, bounds: Bounds) -> Mask:
    """Which entries are numbers within the bounds, bool (count,)."""
    found = np.zeros(node.count, np.bool_)
    if len(node.integers):
        found |= node.spread(INTEGER, integers_within(node.integers, bounds))
    if len(node.floats):
        found |= node.spread(FLOAT, _floats_within(node.floats, bounds))
    return found


def within_time(node: Node, bounds: Bounds) -> Mask:
    """Which entries are times within the bounds, bool (count,)."""
    hits = integers_within(node.times, bounds) & (node.times != NO_TIME)
    return node.spread(STRING, hits[node.codes])


def with_text(strings: Any, asked: Text) -> Mask:
    """Which strings of an Arrow array have the words or characters, bool (n,)."""
    if asked.mode == "prefix":
        return _numpy(pc.starts_with(strings, asked.text))
    if asked.mode == "substring":
        return _numpy(pc.match_substring(strings, asked.text))
    wanted = words(asked.text)
    found = np.zeros(len(strings), np.bool_)
    for place in np.flatnonzero(_may_have(strings, wanted, asked.mode)).tolist():
        found[place] = contains(strings[place].as_py(), wanted, asked.mode)
    return found


def _may_have(strings: Any, wanted: Sequence[str], mode: str) -> Mask:
    """Which strings may have the words: what is not ASCII, Arrow and Python put in lower case differently."""
    if not wanted:
        return np.zeros(len(strings), np.bool_)
    if not all(word.isascii() for word in wanted):
        return np.ones(len(strings), np.bool_)
    lower = pc.utf8_lower(strings)
    each = [_numpy(pc.match_substring(lower, word)) for word in wanted]
    found: Mask = (np.logical_or if mode == "any" else np.logical_and).reduce(each)
    return found


def _hits(dictionary: Any, strings: Sequence[str]) -> Mask:
    """Which strings of a dictionary are wanted, bool (n,)."""
    if len(strings) == 1:
        return _numpy(pc.equal(dictionary, pa.scalar(strings[0], pa.large_string())))
    return _numpy(pc.is_in(dictionary, pa.array(strings, pa.large_string())))


def _with_codes(codes: NDArray[np.int32], hits: Mask) -> Mask:
    wanted = np.flatnonzero(hits)
    found: Mask = np.equal(codes, wanted[0]) if len(wanted) == 1 else hits[codes]
    return found


def _among(numbers: NDArray[np.int64], wanted: Sequence[int]) -> Mask:
    found: Mask = numbers == wanted[0] if len(wanted) == 1 else np.isin(numbers, np.array(wanted, np.int64))
    return found


def integers_within(numbers: NDArray[np.int64], bounds: Bounds) -> Mask:
    """Which are within the bounds. Compared as integers: a bound between two of them is moved to the next."""
    least, most = INTEGER_MIN, INTEGER_MAX
    if bounds.gte is not None:
        least = max(least, math.ceil(bounds.gte))
    if bounds.gt is not None:
        least = max(least, math.floor(bounds.gt) + 1)
    if bounds.lte is not None:
        most = min(most, math.floor(bounds.lte))
    if bounds.lt is not None:
        most = min(most, math.ceil(bounds.lt) - 1)
    if least > most:
        return np.zeros(len(numbers), np.bool_)
    found = numbers >= least if least > INTEGER_MIN else np.ones(len(numbers), np.bool_)
    return found & (numbers <= most) if most < INTEGER_MAX else found


def _floats_within(numbers: NDArray[np.float64], bounds: Bounds) -> Mask:
    """Compared as floats: an integer that is none is moved to the next, which then is within."""
    found = np.ones(len(numbers), np.bool_)
    for bound, included in ((bounds.gt, False), (bounds.gte, True)):
        if bound is not None:
            near = float(bound)
            found &= numbers >= near if near > bound or (included and near == bound) else numbers > near
    for bound, included in ((bounds.lt, False), (bounds.lte, True)):
        if bound is not None:
            near = float(bound)
            found &= numbers <= near if near < bound or (included and near == bound) else numbers < near
    return found


def _numpy(booleans: Any) -> Mask:
    found: Mask = booleans.to_numpy(zero_copy_only=False)
    return found
