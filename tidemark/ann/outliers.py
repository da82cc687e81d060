"""Rows far beyond the others of their collection: an index neither learns from them nor holds them.

A single row a thousand times as far out as the others takes centroids for itself and leaves all others in one cell of
a codebook; under inner product it is the nearest of half of all queries, whichever list they probe. So such rows are
left to the exact ranking that every search ends with. There are few: at most about `SHARE` of the rows.
Used by `quantizer.py` and `graph.py`. Knows nothing of lists, codes or files.
"""

import numpy as np
from numpy.typing import NDArray

from tidemark.ann.exact import squares_to

# Far out: beyond so many times the distance within which all rows lie but for `SHARE` of them, or for `FEW`. One row
# in a hundred five times as long as the others costs no recall (9,000 x 13 normal numbers), twenty times as long 0.25.
FAR, SHARE, FEW = 4.0, 0.02, 16
# Of so many rows the centre and the distance are found: of 41 left out 20 +- 5 are far, if one row in a hundred is.
SAMPLE_ROWS = 2_048
# A median of so many is exact to a twelfth of the spread, and takes 2 ms at 128-d.
CENTRE_ROWS = 256


class Bulk:
    """Where nearly all of some float32 rows (n, dimension) lie: around the median of every dimension."""

    def __init__(self, centre: NDArray[np.float32], square_max: float) -> None:
        """Within `square_max` of `centre` (dimension,), as squared distance."""
        self.centre, self.square_max = centre, np.float32(square_max)

    @classmethod
    def of(cls, rows: NDArray[np.float32], seed: int) -> "Bulk":
        """Of these rows and of those like them."""
        picked = np.random.default_rng(seed + 2).choice(len(rows), min(len(rows), SAMPLE_ROWS), replace=False)
        centre: NDArray[np.float32] = np.median(rows[picked[:CENTRE_ROWS]], axis=0).astype(np.float32)
        sample = rows[np.sort(picked)]
        last = max(0, len(sample) - 1 - max(FEW, int(SHARE * len(sample))))
        with np.errstate(over="ignore"):  # then no row is far
            square_max = np.float32(FAR**2) * np.partition(squares_to(sample, centre), last)[last]
        return cls(centre, square_max)

    def outliers(self, rows: NDArray[np.float32]) -> NDArray[np.int64]:
        """The numbers of the rows far beyond it, ascending."""
        return np.flatnonzero(squares_to(rows, self.centre) > self.square_max)
