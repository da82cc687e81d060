"""Rows of a view that no index holds, per partition: every search compares them all."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tidemark.collection_index import CollectionIndex
from tidemark.view import View

NONE = np.iinfo(np.int64).max


class Unbuilt(NamedTuple):
    """By partition number, int64: how many rows live and are in no index, and the least of their offsets (or NONE)."""

    row_counts: NDArray[np.int64]
    first_offsets: NDArray[np.int64]

    def of(self, partition: int) -> tuple[int, int | None]:
        """Of one partition; None where every living row is in an index."""
        if partition >= len(self.row_counts):
            return 0, None
        first = int(self.first_offsets[partition])
        return int(self.row_counts[partition]), None if first == NONE else first

    @classmethod
    def rows_of(cls, view: View, index: CollectionIndex) -> "Unbuilt":
        """As of now; for the view's thread."""
        partitions = max(view.partitions, default=-1) + 1
        found = cls(np.zeros(partitions, np.int64), np.full(partitions, NONE))
        for tail in view.tails:
            stop = tail.row_count
            first = stop - index.uncoded_of(tail)
            living = first + np.flatnonzero(~tail.live.dead_mask(stop)[first:])
            numbers = tail.partitions[living]
            np.add.at(found.row_counts, numbers, 1)
            np.minimum.at(found.first_offsets, numbers, tail.offsets[living])
        for segment in view.segments:
            if segment.row_count and not index.is_coded(segment):
                number = segment.partition
                found.row_counts[number] += segment.live_count
                found.first_offsets[number] = min(found.first_offsets[number], segment.first_offset)
        return found
