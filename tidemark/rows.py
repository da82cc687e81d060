"""Rows as the parts of a view hand them to each other: as columns to be written, or one by one to be read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows to be written as a segment: float32 vectors (n, dimension) and their Arrow columns."""

    vectors: NDArray[np.float32]
    ids: Any
    offsets: NDArray[np.int64]
    timestamps: NDArray[np.int64]
    metadata: Any
    digests: NDArray[np.uint64]
    hashes: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.vectors)


class Texts:
    """Byte strings by row, one after the other: row r is `heap[ends[r]:ends[r + 1]]`, as in an Arrow column.

    Read one by one, in an eighth of the time that pyarrow takes. `ends` are 64-bit.
    """

    def __init__(self, ends: Any, heap: Any) -> None:
        self._ends = memoryview(ends).cast("B").cast("q")
        self._heap = memoryview(heap)

    def of(self, row: int) -> bytes:
        return bytes(self._heap[self._ends[row] : self._ends[row + 1]])


def texts_of(column: Any) -> Texts:
    """The strings of an Arrow column of large binaries; null is empty."""
    _, ends, heap = column.buffers()
    return Texts(memoryview(ends or bytes(8))[8 * column.offset :], heap or b"")


def concatenate(parts: Sequence[Rows], vectors: NDArray[np.float32] | None = None) -> Rows:
    """The rows of all parts, in the parts' order; one part is not copied. `vectors`: theirs, in one array already."""
    if len(parts) == 1:
        return parts[0]
    return Rows(
        vectors=np.concatenate([part.vectors for part in parts]) if vectors is None else vectors,
        ids=pa.concat_arrays([part.ids for part in parts]),
        offsets=np.concatenate([part.offsets for part in parts]),
        timestamps=np.concatenate([part.timestamps for part in parts]),
        metadata=pa.concat_arrays([part.metadata for part in parts]),
        digests=np.concatenate([part.digests for part in parts]),
        hashes=np.concatenate([part.hashes for part in parts]),
    )
