"""Ids that live in two partitions: what producers with different partitioners leave behind, found in a sample.

An id belongs to one partition, else a search finds old versions of it, and a delete may delete nothing. Of the ids
that are applied some are looked up in the other partitions: 20 a second at most, a few partitions a turn, so it costs a
hundredth of the follower's time. What is found is looked at again later, because an id may be moving (deleted in one
partition, written to another), and again and again, so a collection that was mended is so here too.
Used by the follower's thread. `tidemark doctor` looks at all ids.
"""

import time
from collections.abc import Iterator
from typing import NamedTuple

from tidemark.record import Batch
from tidemark.view import View

IDS_MAX, EVERY_S = 20, 1.0
# Ids of one batch in the sample, so that they are of different moments.
OF_BATCH = 4
PARTITIONS_A_TURN = 4
CONFIRM_S = 3.0
# Ids found that are remembered; with more there is nothing new to say.
FOUND_MAX = 1_000


class _Two(NamedTuple):
    first: int
    second: int
    since: float


class TwoPartitions:
    """`offer` what is applied, `turn` the follower's loop; `count` ids are known to live in two partitions now."""

    def __init__(self) -> None:
        self._sample: dict[bytes, int] = {}
        self._found: dict[bytes, _Two] = {}
        self._due = 0.0
        self._work: Iterator[None] = iter(())
        self.count = 0

    def offer(self, batch: Batch) -> None:
        if len(self._sample) < IDS_MAX:
            count = len(batch.ids)
            for at in range(0, count, max(1, -(-count // OF_BATCH))):
                self._sample[batch.ids[at]] = int(batch.partitions[at])

    def turn(self, view: View) -> None:
        """Do a little of the work; once a second there is more."""
        now = time.monotonic()
        if next(self._work, self) is self and now >= self._due and len(view.partitions) > 1:
            self._due = now + EVERY_S
            sample, self._sample = self._sample, {}
            self._work = self._look(view, sample)

    def _look(self, view: View, sample: dict[bytes, int]) -> Iterator[None]:
        for at, number in enumerate(list(view.partitions)):
            elsewhere = [id_ for id_, partition in sample.items() if partition != number]
            for id_ in view.holding(number, elsewhere):
                if len(self._found) < FOUND_MAX:
                    self._found.setdefault(id_, _Two(sample[id_], number, time.monotonic()))
            if at % PARTITIONS_A_TURN == PARTITIONS_A_TURN - 1:
                yield
        for at, id_ in enumerate(list(self._found)[:IDS_MAX]):
            found = self._found.pop(id_)  # the longest not looked at; what stays goes to the end
            if all(view.holding(number, [id_]) for number in found[:2]):
                self._found[id_] = found
            if at % PARTITIONS_A_TURN == PARTITIONS_A_TURN - 1:
                yield
        confirmed_before = time.monotonic() - CONFIRM_S
        self.count = sum(found.since < confirmed_before for found in self._found.values())
