"""What the consumer asks of its builder child, and what the child answers: values of one JSON line each.

`builder.py` sends the jobs, `build.py` does them.
"""

import base64
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidemark import layout
from tidemark.collection import Collection, IndexParameters
from tidemark.manifest import CodesEntry, SegmentEntry
from tidemark.quantizers import Quantizers


class Place(msgspec.Struct, frozen=True):
    """A generation of a collection, in a checkpoint store."""

    root: str
    collection: Collection
    generation: str

    @property
    def quantizers(self) -> Quantizers:
        return Quantizers(Path(self.root), self.collection, self.generation)

    def directory(self, partition: int) -> Path:
        return Path(self.root) / layout.partition_directory(self.collection.name, self.generation, partition)


class Train(msgspec.Struct, frozen=True, tag="train"):
    """Look whether the generation wants a quantizer, and make it. `drifted`: a version whose codes got worse, or 0."""

    place: Place
    index: IndexParameters
    drifted: int


class Trained(msgspec.Struct, frozen=True, tag="trained"):
    """The newest version there is now, 0 for none; whether it was made just now; the rows that all partitions have."""

    version: int
    made: bool
    live_rows: int


class ToCode(msgspec.Struct, frozen=True):
    """A segment, and the name of the file that gets its codes."""

    entry: SegmentEntry
    name: str


class Code(msgspec.Struct, frozen=True, tag="code"):
    place: Place
    partition: int
    quantizer: int
    segments: list[ToCode]


class Coded(msgspec.Struct, frozen=True, tag="coded"):
    """The codes by their segments' names."""

    codes: dict[str, CodesEntry]


class Input(msgspec.Struct, frozen=True):
    """A segment to read, and which of its rows to leave out (bitmap, base64)."""

    entry: SegmentEntry
    dead: str

    @classmethod
    def of(cls, entry: SegmentEntry, dead: NDArray[np.bool_]) -> "Input":
        return cls(entry, base64.b64encode(np.packbits(dead, bitorder="little").tobytes()).decode())

    def dead_rows(self) -> NDArray[np.int64]:
        packed = np.frombuffer(base64.b64decode(self.dead), np.uint8)
        return np.flatnonzero(np.unpackbits(packed, count=self.entry.rows, bitorder="little"))


class Merge(msgspec.Struct, frozen=True, tag="merge"):
    """Write one segment from the rows of several; with codes of a version of the quantizer, unless it is 0."""

    place: Place
    partition: int
    output: str
    inputs: list[Input]
    index: IndexParameters
    quantizer: int


class Merged(msgspec.Struct, frozen=True, tag="merged"):
    """The finished segment; None when no row was left."""

    entry: SegmentEntry | None


Job = Train | Code | Merge
Result = Trained | Coded | Merged


def without_dead_file(entry: SegmentEntry) -> SegmentEntry:
    """What of a segment never changes: which rows are dead is told beside it."""
    files = {name: file for name, file in entry.files.items() if name != entry.dead_file}
    return msgspec.structs.replace(entry, files=files, dead_rows=0, dead_file=None)
