"""Rows far beyond the others of their segment: an index neither learns from them nor holds them.

A single row a thousand times as far out as the others takes centroids for itself and leaves all others in one cell of
a codebook; under inner product it is the nearest of half of all queries, whichever list they probe. So such rows are
left to the exact ranking that every search ends with. There are few: at most about `SHARE` of the rows.
Used by `index.py` and `codes.py`. Knows nothing of lists, codes or files.
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

    def __init__(self, rows: NDArray[np.float32], seed: int) -> None:
        picked = np.random.default_rng(seed + 2).choice(len(rows), min(len(rows), SAMPLE_ROWS), replace=False)
        self._centre: NDArray[np.float32] = np.median(rows[picked[:CENTRE_ROWS]], axis=0).astype(np.float32)
        sample = rows[np.sort(picked)]
        last = max(0, len(sample) - 1 - max(FEW, int(SHARE * len(sample))))
        self._square_max = np.float32(FAR**2) * np.partition(squares_to(sample, self._centre), last)[last]

    def outliers(self, rows: NDArray[np.float32]) -> NDArray[np.int64]:
        """The numbers of the rows far beyond it, ascending."""
        return np.flatnonzero(squares_to(rows, self._centre) > self._square_max)
