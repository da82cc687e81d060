"""A file of ids, one a line, for the rows of an .npy file: strictly UTF-8, no line empty, no id twice.

Checked whole before anything is produced, because a row whose id comes again would silently replace the first.
Line ends may be those of Unix or of Windows. Memory: 16 bytes a line.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xxhash

from cli.exits import NotFound
from tidemark import id as ids
from tidemark.collection import IdFormat
from tidemark.errors import BadQuery
from tidemark.json_text import why_not_utf8


class BadInput(NotFound):
    """A row or line that the consumer would put into the dead-letter topic, or that would lose another one."""


def check_file(path: Path) -> None:
    """Raises NotFound unless it is a file."""
    if not path.is_file():
        raise NotFound(f"{path}: is not a regular file" if path.exists() else f"{path}: no such file")


def check(path: Path, prefix: str, id_format: IdFormat) -> int:
    """How many ids it holds; raises BadInput that names the line, or the two lines of one id."""
    check_file(path)
    hashes = np.fromiter((xxhash.xxh3_64_intdigest(key) for key in keys(path, prefix, id_format)), np.uint64)
    ordered = np.sort(hashes)
    if len(again := ordered[1:][ordered[1:] == ordered[:-1]]):
        suspects = set(np.flatnonzero(np.isin(hashes, again)).tolist())
        _refuse_twice(path, keys(path, prefix, id_format), suspects)
    return len(hashes)


def keys(path: Path, prefix: str, id_format: IdFormat) -> Iterator[bytes]:
    """The records' keys in order; the prefix is before each line."""
    with path.open("rb") as lines:
        for number, ended in enumerate(lines, 1):
            line = ended.removesuffix(b"\n").removesuffix(b"\r")
            problem = why_not_utf8(line) or (None if line else "is empty, every line is the id of one row")
            if problem:
                raise BadInput(f"{path}, line {number}: {problem}; nothing was produced")
            try:
                yield ids.from_text(prefix + line.decode(), id_format)
            except BadQuery as error:
                raise BadInput(f"{path}, line {number}: {error}; nothing was produced") from None


def _refuse_twice(path: Path, found: Iterator[bytes], suspects: set[int]) -> None:
    """Of the rows whose hashes come twice, those that are equal."""
    first: dict[bytes, int] = {}
    for row, key in enumerate(found):
        if row in suspects and (before := first.setdefault(key, row)) != row:
            raise BadInput(
                f"{path}, line {row + 1}: is the id of line {before + 1} again: one row would replace the other; "
                "nothing was produced"
            )
