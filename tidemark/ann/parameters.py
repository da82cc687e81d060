"""How an index is searched to reach its recall target: found by calibration (`calibration.py`), kept beside it."""

import math
from dataclasses import dataclass, replace

# Recall is measured on so many neighbours. For more of them the effort grows with the square root of their number.
CALIBRATION_K = 10


@dataclass(frozen=True, slots=True)
class SearchParameters:
    """Of lists: `effort` is the number of lists that a row typically probes.

    A query probes those whose centroid is at most `1 + reach` times as far as its third nearest centroid, within
    bounds (`centroids.py`); with `reach` 0 just the `effort` nearest. In either case it probes as many more as it
    takes to hold the share `living` of all rows that are alive. `k_factor` times k candidates are ranked exactly.
    Of a graph: `effort` is efSearch. `recall` is recall@10 as measured on some of the rows.
    """

    effort: int = 0
    k_factor: int = 1
    recall: float = 1.0
    reach: float = 0.0
    living: float = 0.0

    def scaled(self, factor: float) -> "SearchParameters":
        """For more neighbours or more recall: `factor` times the lists and the rows in them."""
        if factor == 1.0:
            return self
        effort, living = max(1, math.ceil(self.effort * factor)), min(1.0, self.living * factor)
        return replace(self, effort=effort, reach=self.reach * factor, living=living)

    def for_neighbours(self, k: int, effort: float) -> "SearchParameters":
        """For so many neighbours, with `effort` times what that takes."""
        return self.scaled(effort * max(1.0, math.sqrt(k / (CALIBRATION_K + 1))))
