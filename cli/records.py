"""Records to produce, read from files: checked as the consumer would check them, in bounded memory.

An .npy file is mapped and checked in blocks, JSON lines are streamed. A bad row or line raises BadInput with
its number when its turn comes: everything before it was handed out, nothing after it will be.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np

from cli.exits import NotFound
from tidemark import id as ids
from tidemark.collection import Collection
from tidemark.errors import BadConfiguration, BadQuery
from tidemark.record import METADATA_BYTES_MAX, first_unmeasurable

Item = tuple[bytes, bytes | None, bytes | None]  # key, value (None: a delete), metadata
# Rows of an .npy file checked at once: a few MB, and fewer than a millisecond between two blocks.
BLOCK_ROWS = 2_048


class BadInput(NotFound):
    """A row or line that the consumer would put into the dead-letter topic."""


@dataclass(frozen=True, slots=True)
class Records:
    """What to produce, and how many when that is known."""

    items: Iterable[Item]
    total: int | None


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    vector: list[float] | None = None
    metadata: dict[str, Any] | None = None
    deleted: bool = False


def read(source: str, collection: Collection, id_prefix: str, ids_file: Path | None) -> Records:
    """Records of an .npy file, a .jsonl file, or `-` for JSON lines on standard input."""
    path = Path(source)
    if path.suffix != ".npy" and (id_prefix or ids_file):
        raise BadConfiguration("--id-prefix and --ids are for .npy files: JSON lines bring their ids")
    if source == "-":
        return Records(_json_lines(sys.stdin.buffer, "standard input", collection), None)
    if not path.is_file():
        raise NotFound(f"{path}: no such file")
    if path.suffix == ".npy":
        return _matrix(path, collection, id_prefix, ids_file)
    return Records(_json_file(path, collection), None)


# -- JSON lines ----------------------------------------------------------------------------------------------


def _json_file(path: Path, collection: Collection) -> Iterator[Item]:
    with path.open("rb") as lines:
        yield from _json_lines(lines, str(path), collection)


def _json_lines(lines: IO[bytes], name: str, collection: Collection) -> Iterator[Item]:
    decode = msgspec.json.Decoder(_Line).decode
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield _item(decode(line), collection)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, BadQuery) as error:
            raise BadInput(f"{name}, line {number}: {error}") from None


def _item(line: _Line, collection: Collection) -> Item:
    key = ids.from_text(line.id, collection.id_format)
    if line.deleted:
        if line.vector is not None:
            raise BadQuery('"vector" and "deleted": true contradict each other')
        return key, None, None
    if line.vector is None:
        raise BadQuery('neither "vector" nor "deleted": true')
    with np.errstate(over="ignore"):
        vectors = np.array([line.vector], np.float64).astype("<f4")
    if problem := _first_problem(vectors, collection):
        raise BadQuery(problem[1])
    metadata = None if line.metadata is None else msgspec.json.encode(line.metadata)
    if metadata is not None and len(metadata) > METADATA_BYTES_MAX:
        raise BadQuery(f"the metadata has {len(metadata)} bytes, at most {METADATA_BYTES_MAX}")
    return _encoded(key, vectors[0], metadata, collection)


def _encoded(key: bytes, vector: "np.ndarray[Any, Any]", metadata: bytes | None, collection: Collection) -> Item:
    """`raw` bytes with the metadata beside them; one JSON value where the collection takes nothing else."""
    if collection.format != "json":
        return key, vector.tobytes(), metadata
    value: dict[str, Any] = {"vector": vector.tolist()}
    if metadata is not None:
        value["metadata"] = msgspec.Raw(metadata)
    return key, msgspec.json.encode(value), None


def _first_problem(vectors: "np.ndarray[Any, Any]", collection: Collection) -> tuple[int, str] | None:
    """The first row, and why the consumer would refuse it; vectors are float32 (n, d)."""
    if vectors.shape[1] != collection.dimension:
        return 0, (
            f"the vector has {vectors.shape[1]} numbers, "
            f"collection {collection.name!r} has dimension {collection.dimension}"
        )
    return first_unmeasurable(vectors, collection.metric)


# -- .npy ----------------------------------------------------------------------------------------------------


def _matrix(path: Path, collection: Collection, id_prefix: str, ids_file: Path | None) -> Records:
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise BadInput(f"{path}: is not an .npy array: {error}") from None
    if vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise BadInput(f"{path}: has shape {vectors.shape} of {vectors.dtype}: it must be (rows, dimension) of float32")
    if vectors.shape[1] != collection.dimension:
        raise BadInput(
            f"{path}: has {vectors.shape[1]} numbers per row, "
            f"collection {collection.name!r} has dimension {collection.dimension}"
        )
    if ids_file is not None:
        _check_count(ids_file, path, len(vectors))
    return Records(_rows(path, vectors, collection, _names(id_prefix, ids_file)), len(vectors))


def _check_count(ids_file: Path, path: Path, rows: int) -> None:
    if not ids_file.is_file():
        raise NotFound(f"{ids_file}: no such file")
    with ids_file.open("rb") as lines:
        count = sum(1 for _ in lines)
    if count != rows:
        raise BadInput(f"{ids_file}: has {count} lines, {path} has {rows} rows")


def _names(prefix: str, ids_file: Path | None) -> Iterator[str]:
    """The ids in order, without end when they are numbers."""
    if ids_file is None:
        row = 0
        while True:
            yield f"{prefix}{row}"
            row += 1
    with ids_file.open("rb") as lines:
        for line in lines:
            yield prefix + line.decode(errors="replace").rstrip("\r\n")


def _rows(path: Path, vectors: Any, collection: Collection, names: Iterator[str]) -> Iterator[Item]:
    for start in range(0, len(vectors), BLOCK_ROWS):
        with np.errstate(over="ignore"):
            block = np.ascontiguousarray(vectors[start : start + BLOCK_ROWS], "<f4")
        problem = _first_problem(block, collection)
        for row, vector in enumerate(block[: problem[0]] if problem else block, start):
            try:
                key = ids.from_text(next(names), collection.id_format)
            except BadQuery as error:
                raise BadInput(f"{path}, row {row}: {error}") from None
            yield _encoded(key, vector, None, collection)
        if problem:
            raise BadInput(f"{path}, row {start + problem[0]}: {problem[1]}")
