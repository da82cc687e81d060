"""Columns of several runs of rows, one after the other, as the columns of all of them."""

import heapq
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tidemark.filters.columns import NO_CODES, NO_STRINGS, Columns, Indices, Node
from tidemark.filters.grammar import Path
from tidemark.filters.shredding import CHUNK_ROWS, CUT_NAMES_MAX, PATHS_MAX, chunks, shred

Names = frozenset[str | int] | None


def columns_of(metadata: Any) -> Columns:
    """The columns of an Arrow array of large binaries: documents as JSON, or null. 2 to 3 us a row."""
    count = len(metadata)
    if metadata.null_count == count:
        return Columns(count, {}, {})
    return join(
        [
            shred(chunk)
            for first in range(0, count, CHUNK_ROWS)
            for chunk in chunks(metadata[first : first + CHUNK_ROWS].to_pylist())
        ]
    )


def join(parts: Sequence[Columns], paths_max: int = PATHS_MAX) -> Columns:
    """The parts' rows in the parts' order; a path that is cut off in one is cut off in all."""
    if len(parts) == 1:
        return parts[0]
    nodes: dict[Path, Node] = {}
    cut: dict[Path, Names] = {}
    for part in parts:
        for path, names in part.cut.items():
            cut[path] = _union(cut.get(path, frozenset()), names)
    for path in _most_frequent_first(parts):
        if len(nodes) <= paths_max and all(part.covers(path) for part in parts) and (not path or path[:-1] in nodes):
            nodes[path] = _joined(path, parts)
        elif path[:-1] in nodes:
            cut[path[:-1]] = _union(cut.get(path[:-1], frozenset()), frozenset(path[-1:]))
    return Columns(sum(part.row_count for part in parts), nodes, cut)


def _union(names: Names, others: Names) -> Names:
    together = None if names is None or others is None else names | others
    return None if together is None or len(together) > CUT_NAMES_MAX else together


def _most_frequent_first(parts: Sequence[Columns]) -> Iterator[Path]:
    """Every path of the parts, each after the path before it."""
    counts: dict[Path, int] = {}
    below: dict[Path, list[Path]] = {}
    for part in parts:
        for path, node in part.nodes.items():
            if path not in counts and path:
                below.setdefault(path[:-1], []).append(path)
            counts[path] = counts.get(path, 0) + node.count
    waiting: list[tuple[int, int, Path]] = [(-counts[()], 0, ())] if () in counts else []
    number = 0
    while waiting:
        _, _, path = heapq.heappop(waiting)
        yield path
        for one in below.get(path, ()):
            number += 1
            heapq.heappush(waiting, (-counts[one], number, one))


def _joined(path: Path, parts: Sequence[Columns]) -> Node:
    found = [part.nodes.get(path) for part in parts]
    nodes = [node for node in found if node is not None]
    owners = [_owners(part, path) for part in parts]
    starts = np.cumsum([0, *owners])
    count = sum(node.count for node in nodes)
    parents: Indices | None = None
    if not all(count == 0 if node is None else node.parents is None for node, count in zip(found, owners, strict=True)):
        parents = np.empty(count, np.int32)
        at = 0
        for node, start in zip(found, starts.tolist(), strict=False):
            if node is not None:
                np.add(
                    np.arange(node.count) if node.parents is None else node.parents,
                    start,
                    out=parents[at : at + node.count],
                    casting="unsafe",
                )
                at += node.count
    codes, dictionary = joined_codes(nodes)
    return Node(
        count=count,
        parents=parents,
        kinds=_kinds(nodes),
        integers=np.concatenate([node.integers for node in nodes]),
        floats=np.concatenate([node.floats for node in nodes]),
        codes=codes,
        dictionary=dictionary,
    )


def _owners(part: Columns, path: Path) -> int:
    """How many entries, or rows, a path's entries belong to."""
    if not path:
        return part.row_count
    above = part.nodes.get(path[:-1])
    return 0 if above is None else above.count


def _kinds(nodes: Sequence[Node]) -> NDArray[np.uint8] | int:
    kinds = {node.kinds if isinstance(node.kinds, int) else -1 for node in nodes}
    if len(kinds) == 1 and -1 not in kinds:
        return kinds.pop()
    return np.concatenate(
        [np.full(node.count, node.kinds, np.uint8) if isinstance(node.kinds, int) else node.kinds for node in nodes]
    )


def joined_codes(nodes: Sequence[Node]) -> tuple[NDArray[np.int32], Any]:
    """The codes of the nodes' strings, one after the other, and the dictionary that they have in common."""
    arrays = [
        pa.DictionaryArray.from_arrays(pa.array(node.codes), node.dictionary) for node in nodes if len(node.codes)
    ]
    if not arrays:
        return NO_CODES, NO_STRINGS
    found = pa.chunked_array(arrays).unify_dictionaries()
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in found.chunks])
    return codes, found.chunk(0).dictionary
