"""What a partition's view must answer, the slow and obvious way: a dict, and brute force in float64.

It shares no code with the view: the digest is written down again, from docs/format.md, in Python integers.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import xxhash
from numpy.typing import NDArray

_MASK = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Operation:
    """One good record: an upsert, or a delete (vector None)."""

    offset: int
    id: bytes
    vector: NDArray[np.float32] | None
    metadata: bytes | None = None


@dataclass(slots=True)
class Model:
    rows: dict[bytes, Operation] = field(default_factory=dict)

    def apply(self, operations: Iterable[Operation]) -> "Model":
        for operation in operations:
            if operation.vector is None:
                self.rows.pop(operation.id, None)
            else:
                self.rows[operation.id] = operation
        return self

    @property
    def digest(self) -> int:
        return sum(map(row_digest, self.rows.values())) & _MASK

    def nearest(self, query: NDArray[np.float32], k: int) -> list[float]:
        """The k smallest squared L2 distances."""
        return sorted(squared_distance(row, query) for row in self.rows.values())[:k]


def squared_distance(row: Operation, query: NDArray[np.float32]) -> float:
    assert row.vector is not None
    return float(((row.vector.astype(np.float64) - query) ** 2).sum())


def row_digest(row: Operation) -> int:
    assert row.vector is not None
    mixed = xxhash.xxh3_64_intdigest(row.vector.astype("<f4").tobytes())
    mixed ^= (xxhash.xxh3_64_intdigest(row.id) * 0x9E3779B97F4A7C15) & _MASK
    mixed = (mixed + row.offset * 0xD1342543DE82EF95) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return mixed ^ (mixed >> 31)
