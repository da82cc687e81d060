"""Columns as a file: `meta.arrow`, an Arrow IPC file beside a segment's other files, read where it lies.

One row for each node, parents first (docs/format.md, section "meta.arrow"). Written once; who reads it has verified its
checksum before.
"""

import json
from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from tidemark.errors import CorruptCheckpoint
from tidemark.filters.columns import Columns, Node
from tidemark.filters.grammar import Path

_SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "count": pa.int64(),
        "cut": pa.string(),
        "kind": pa.uint8(),
        "kinds": pa.large_list(pa.uint8()),
        "parents": pa.large_list(pa.int32()),
        "integers": pa.large_list(pa.int64()),
        "floats": pa.large_list(pa.float64()),
        "codes": pa.large_list(pa.int32()),
        "strings": pa.large_list(pa.large_string()),
    }
)
_ARRAYS = ("kinds", "parents", "integers", "floats", "codes")


def write(file: BinaryIO, columns: Columns) -> None:
    """Write the columns; the caller makes the file durable."""
    nodes = list(columns.nodes.values())
    names = [columns.cut.get(path, frozenset()) for path in columns.nodes]
    batch = pa.record_batch(
        [
            pa.array([json.dumps(path) for path in columns.nodes], pa.string()),
            pa.array([node.count for node in nodes], pa.int64()),
            pa.array([_cut_text(one) for one in names], pa.string()),
            pa.array([node.kinds if isinstance(node.kinds, int) else None for node in nodes], pa.uint8()),
            *(_lists(_SCHEMA.field(name).type, [_array(node, name) for node in nodes]) for name in _ARRAYS),
            _lists(_SCHEMA.field("strings").type, [node.dictionary for node in nodes]),
        ],
        schema=_SCHEMA.with_metadata({"rows": str(columns.row_count)}),
    )
    with pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


def read(path: FilePath, row_count: int) -> Columns:
    """The columns of a file, which stays mapped; raises CorruptCheckpoint when it is not of so many rows."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        rows = int(reader.schema.metadata[b"rows"])
        batch = reader.get_batch(0)
        found = {name: batch.column(name) for name in _SCHEMA.names}
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise CorruptCheckpoint(f"{path}: is not a file of columns: {error}") from None
    if rows != row_count:
        raise CorruptCheckpoint(f"{path}: has {rows} rows, the manifest says {row_count}")
    paths: list[Path] = [tuple(json.loads(text)) for text in found["path"].to_pylist()]
    cut = {path: _cut_names(text) for path, text in zip(paths, found["cut"].to_pylist(), strict=True) if text}
    return Columns(rows, {path: _node(found, place) for place, path in enumerate(paths)}, cut)


def _array(node: Node, name: str) -> Any:
    array = getattr(node, name)
    return pa.array(array) if isinstance(array, np.ndarray) else None


def _lists(kind: Any, values: Sequence[Any]) -> Any:
    """An Arrow array with one list for each of the values; None is null."""
    ends = np.cumsum([0, *(0 if one is None else len(one) for one in values)])
    given = [one for one in values if one is not None]
    flat = pa.concat_arrays(given) if given else pa.array([], kind.value_type)
    missing = pa.array([one is None for one in values], pa.bool_())
    return pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), flat.cast(kind.value_type), mask=missing)


def _node(found: dict[str, Any], place: int) -> Node:
    arrays = {name: found[name][place].values for name in (*_ARRAYS, "strings")}
    numbers = {name: array.to_numpy() for name, array in arrays.items() if array is not None and name != "strings"}
    kinds = numbers.pop("kinds", None)
    return Node(
        count=found["count"][place].as_py(),
        kinds=found["kind"][place].as_py() if kinds is None else kinds,
        parents=numbers.pop("parents", None),
        dictionary=arrays["strings"],
        **numbers,
    )


def _cut_text(names: frozenset[str | int] | None) -> str | None:
    """JSON: the steps that were cut off, null when they were too many to name; no text where none was."""
    if names is None:
        return "null"
    return json.dumps(sorted(names, key=str)) if names else None


def _cut_names(text: str) -> frozenset[str | int] | None:
    names = json.loads(text)
    return None if names is None else frozenset(names)
