"""The fence of one partition's directory: who writes it has made a mark `epoch-<N>`, and none is higher.

Invariants: a mark is created exclusively, so an epoch has one writer for ever; the highest mark is never removed,
so a writer that slept through any number of checkpoints still sees that it was replaced. Marks alone decide: a
manifest's version may be free again, because obsolete manifests are removed. Knows nothing of what is written.
"""

from collections.abc import Iterable
from pathlib import Path

from tidemark import files, layout
from tidemark.errors import StaleOwner


def highest_mark(names: Iterable[str]) -> int:
    """The highest epoch that has a mark among a directory's names, 0 when there is none."""
    return max((layout.mark_epoch(name) or 0 for name in names), default=0)


class Fence:
    """One writer's side of it; `epoch` is 0 until `take`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.epoch = 0

    def take(self, above: int) -> None:
        """Make a mark that nobody has made, of an epoch above the one given: from now on older writers find out."""
        self.epoch = above + 1
        while not files.create_empty(self._directory / layout.mark_name(self.epoch)):
            self.epoch += 1

    @property
    def holds(self) -> bool:
        """Whether ours is the highest mark."""
        return self.epoch >= highest_mark(files.names(self._directory))

    def check(self, names: Iterable[str] | None = None) -> None:
        """Raise StaleOwner unless ours is the highest mark; `names` is a listing of the directory just made."""
        highest = highest_mark(files.names(self._directory) if names is None else names)
        if highest > self.epoch:
            raise StaleOwner(
                f"{self._directory} was claimed under epoch {highest}, ours is {self.epoch}: another consumer owns "
                "this partition; this one stops writing it"
            )
