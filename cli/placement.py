"""Ids that live in two partitions, found in the newest checkpoints; and how the ids there were placed.

A producer that chooses partitions otherwise than the others leaves an id twice: each copy is found, and a delete
reaches one of them. Reads only files whose checksums match. Memory: 8 bytes a live row, and what is shown.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tidemark import layout
from tidemark.manifest import Manifest, SegmentEntry
from tidemark.partitioner import PARTITIONERS, Partitioner, partition_of
from tidemark.segment_files import verify_file

# Of each segment, evenly: enough to tell one partitioner from another.
IDS_LOOKED_AT = 1_000
# Doubled ids whose copies are read; beyond it they are counted by their hashes alone.
DOUBLED_READ_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Copy:
    """A live row of an id."""

    partition: int
    offset: int
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class Placement:
    """What the checkpoints hold. `doubled`: the copies of ids that are in several partitions, by key."""

    rows: int
    doubled_count: int
    doubled: dict[bytes, list[Copy]]
    looked_at: int
    fits: dict[Partitioner, int]  # of those looked at, how many are where it puts them

    @property
    def explained_by(self) -> Partitioner | None:
        """The partitioner that put every id where it is; None when none did, or there are no ids."""
        found = [name for name, count in self.fits.items() if count == self.looked_at]
        return found[0] if self.looked_at and found else None


class _Rows:
    """The columns of a segment that say which ids live in it."""

    def __init__(self, directory: Path, entry: SegmentEntry) -> None:
        for name in (layout.ROWS, *([entry.dead_file] if entry.dead_file else [])):
            verify_file(directory / entry.name / name, entry.files[name])
        table = pa.ipc.open_file(pa.memory_map(str(directory / entry.name / layout.ROWS))).read_all().combine_chunks()
        self._columns: dict[str, Any] = {name: table.column(name).chunk(0) for name in table.column_names if len(table)}
        self._live = np.ones(entry.rows, np.bool_)
        if entry.dead_file:
            bits = np.fromfile(directory / entry.name / entry.dead_file, np.uint8)
            self._live = np.unpackbits(bits, count=entry.rows, bitorder="little") == 0

    def live_hashes(self) -> NDArray[np.uint64]:
        if not self._columns:
            return np.empty(0, np.uint64)
        order = self._columns["sorted_row"].to_numpy()
        hashes: NDArray[np.uint64] = self._columns["sorted_hash"].to_numpy()[self._live[order]]
        return hashes

    def of_hashes(self, wanted: NDArray[np.uint64]) -> Iterator[tuple[bytes, int, int]]:
        """Id, offset and timestamp of the live rows with these hashes."""
        if not self._columns:
            return
        hashes, order = self._columns["sorted_hash"].to_numpy(), self._columns["sorted_row"].to_numpy()
        for row in order[np.isin(hashes, wanted) & self._live[order]].tolist():
            column = self._columns
            yield column["id"][row].as_py(), column["offset"][row].as_py(), column["timestamp"][row].as_py()

    def some_ids(self, count: int) -> list[bytes]:
        rows = np.flatnonzero(self._live)
        chosen = rows[:: max(1, len(rows) // count)][:count]
        return [self._columns["id"][row].as_py() for row in chosen.tolist()]


def examine(checkpoints: dict[int, tuple[Path, Manifest]], partitions: int) -> Placement:
    """Look through the checkpoint of each partition: its directory and manifest; `partitions` has the topic.

    Raises CorruptCheckpoint, and FileNotFoundError when a file was removed as obsolete meanwhile.
    """
    rows = sum(manifest.live_rows for _, manifest in checkpoints.values())
    hashes, end = np.empty(rows, np.uint64), 0
    fits, looked_at = dict.fromkeys(PARTITIONERS, 0), 0
    for partition, found in _segments(checkpoints):
        live = found.live_hashes()
        hashes[end : end + len(live)] = live
        end += len(live)
        for key in found.some_ids(IDS_LOOKED_AT):
            looked_at += 1
            for name in PARTITIONERS:
                fits[name] += partition_of(key, partitions, name) == partition
    hashes = hashes[:end]
    hashes.sort()
    again = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
    doubled = _copies(checkpoints, again[:DOUBLED_READ_MAX])
    return Placement(rows, len(doubled) + max(0, len(again) - DOUBLED_READ_MAX), doubled, looked_at, fits)


def _copies(checkpoints: dict[int, tuple[Path, Manifest]], hashes: NDArray[np.uint64]) -> dict[bytes, list[Copy]]:
    """The ids themselves decide: two may share a hash."""
    found: dict[bytes, list[Copy]] = {}
    if len(hashes):
        for partition, rows in _segments(checkpoints):
            for key, offset, timestamp in rows.of_hashes(hashes):
                found.setdefault(key, []).append(Copy(partition, offset, timestamp))
    return {key: copies for key, copies in sorted(found.items()) if len(copies) > 1}


def _segments(checkpoints: dict[int, tuple[Path, Manifest]]) -> Iterator[tuple[int, _Rows]]:
    for partition, (directory, manifest) in sorted(checkpoints.items()):
        for entry in manifest.segments:
            yield partition, _Rows(directory, entry)
