"""Records to produce, read from files: checked as the consumer would check them, in bounded memory.

An .npy file is mapped and checked in blocks, JSON lines are streamed. A bad row or line raises BadInput with
its number when its turn comes: everything before it was handed out, nothing after it will be. A file of ids is
checked whole before the first row (`ids_file.py`). Text is UTF-8 and nothing else: no byte is replaced.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np

from cli import ids_file
from cli.ids_file import BadInput, check_file
from tidemark import id as ids
from tidemark.collection import Collection
from tidemark.errors import BadConfiguration, BadQuery
from tidemark.json_text import why_not_json
from tidemark.json_value import check_metadata
from tidemark.record import first_unmeasurable
from tidemark.refusal import Refused

Item = tuple[bytes, bytes | None, bytes | None]  # key, value (None: a delete), metadata
# Rows of an .npy file checked at once: a few MB, and fewer than a millisecond between two blocks.
BLOCK_ROWS = 2_048


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


def read(source: str, collection: Collection, id_prefix: str, ids_path: Path | None) -> Records:
    """Records of an .npy file, a .jsonl file, or `-` for JSON lines on standard input."""
    path = Path(source)
    if path.suffix != ".npy" and (id_prefix or ids_path):
        raise BadConfiguration("--id-prefix and --ids are for .npy files: JSON lines bring their ids")
    if source == "-":
        return Records(_json_lines(sys.stdin.buffer, "standard input", collection), None)
    check_file(path)
    if path.suffix == ".npy":
        return _matrix(path, collection, id_prefix, ids_path)
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
        except BadQuery as error:
            raise BadInput(f"{name}, line {number}: {error}") from None
        except msgspec.ValidationError as error:
            raise BadInput(f"{name}, line {number}: {error}") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadInput(f"{name}, line {number}: is not JSON: {why_not_json(line, error)}") from None


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
    if metadata is not None:
        try:
            check_metadata(metadata)
        except Refused as refusal:
            raise BadQuery(str(refusal)) from None
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


def _matrix(path: Path, collection: Collection, id_prefix: str, ids_path: Path | None) -> Records:
    vectors = array_of(path)
    if vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise BadInput(f"{path}: has shape {vectors.shape} of {vectors.dtype}: it must be (rows, dimension) of float32")
    if vectors.shape[1] != collection.dimension:
        raise BadInput(
            f"{path}: has {vectors.shape[1]} numbers per row, "
            f"collection {collection.name!r} has dimension {collection.dimension}"
        )
    if ids_path is None:
        keys: Iterator[bytes] = (ids.from_text(f"{id_prefix}{row}", collection.id_format) for row in count())
    else:
        if (lines := ids_file.check(ids_path, id_prefix, collection.id_format)) != len(vectors):
            raise BadInput(f"{ids_path}: has {lines} lines, {path} has {len(vectors)} rows")
        keys = ids_file.keys(ids_path, id_prefix, collection.id_format)
    return Records(_rows(path, vectors, collection, keys), len(vectors))


def array_of(path: Path) -> "np.ndarray[Any, Any]":
    """The array of an .npy file, mapped; raises BadInput for anything else."""
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)  # or numpy would try other kinds of files
        return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, SyntaxError, EOFError, MemoryError, OverflowError) as error:
        raise BadInput(f"{path}: is not an .npy array: {str(error) or type(error).__name__}") from None


def _rows(path: Path, vectors: Any, collection: Collection, keys: Iterator[bytes]) -> Iterator[Item]:
    for start in range(0, len(vectors), BLOCK_ROWS):
        with np.errstate(over="ignore"):
            block = np.ascontiguousarray(vectors[start : start + BLOCK_ROWS], "<f4")
        problem = _first_problem(block, collection)
        for row, vector in enumerate(block[: problem[0]] if problem else block, start):
            try:
                key = next(keys)
            except BadQuery as error:
                raise BadInput(f"{path}, row {row}: {error}") from None
            yield _encoded(key, vector, None, collection)
        if problem:
            raise BadInput(f"{path}, row {start + problem[0]}: {problem[1]}")
