"""When a generation gets its next quantizer, and what it is trained on: the rows of all partitions on disk.

Looks at the newest manifest of each partition, whoever owns it. Whoever creates the file of a version first has made
it; others that trained at the same time have worked in vain. Runs in the builder child (`build.py`).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from consumer.jobs import Place, Trained
from tidemark import files, layout
from tidemark.ann.quantizer import ROWS_LEAST, Quantizer
from tidemark.checkpoint import Checkpoints, partitions
from tidemark.collection import IndexParameters
from tidemark.errors import CheckpointMismatch, CorruptCheckpoint, NewerFormat
from tidemark.manifest import SegmentEntry
from tidemark.quantizers import Versioned
from tidemark.segment_files import verify_file

logger = logging.getLogger(__name__)

# Of SIFT in its worst order, searches by a quantizer of the first quarter of the rows take 1.4 times as long as by one
# of all rows, by one of a twentieth 2.8 times.
GROWTH = 4
SAMPLE_ROWS = 262_144
# 512 MiB: more dimensions, fewer rows.
SAMPLE_NUMBERS = 2**27


@dataclass(frozen=True, slots=True)
class Part:
    """A segment of any partition."""

    directory: Path
    entry: SegmentEntry


def train(place: Place, index: IndexParameters, drifted: int) -> Trained:
    """Make the next quantizer if the rows on disk want one; raises StoreUnavailable."""
    parts = _parts(place)
    live_rows = sum(part.entry.live_rows for part in parts)
    quantizers = place.quantizers
    newest, taken = quantizers.newest(), quantizers.versions()
    known = newest.version if newest else 0
    if not _wanted(newest, taken, live_rows, index, drifted):
        return Trained(known, False, live_rows)
    version = (taken[-1] if taken else 0) + 1
    sample = _sample(parts, place.collection.dimension, version)
    if len(sample) < ROWS_LEAST:
        return Trained(known, False, live_rows)
    metric = place.collection.metric
    made = Quantizer.train(sample, metric, live_rows, index.recall_target, version, index.nlist)
    created = quantizers.create(version, made)
    quantizers.remove_old()
    return Trained(version, created, live_rows)


def _wanted(
    newest: Versioned | None, taken: Sequence[int], live_rows: int, index: IndexParameters, drifted: int
) -> bool:
    if live_rows < max(index.ann_rows_min, ROWS_LEAST):
        return False
    if newest is None or newest.version < taken[-1]:  # none that can be used, or an older one
        return True
    return newest.version == drifted or live_rows >= GROWTH * newest.quantizer.row_count


def _parts(place: Place) -> list[Part]:
    root, found = Path(place.root), []
    for number in partitions(root, place.collection.name, place.generation):
        checkpoints = Checkpoints(root, place.collection, place.generation, number)
        try:
            manifest = checkpoints.newest_manifest()
        except (CheckpointMismatch, NewerFormat) as error:
            logger.warning("not trained on: %s", error)
            continue
        found += [Part(checkpoints.directory / entry.name, entry) for entry in manifest.segments] if manifest else []
    return found


def _sample(parts: Sequence[Part], dimension: int, seed: int) -> NDArray[np.float32]:
    """Random live rows, as many of each part as is its share; float32 (n, dimension).

    A part whose bytes are damaged or gone is left out: its owner finds that out, too.
    """
    most = min(SAMPLE_ROWS, SAMPLE_NUMBERS // dimension)
    share = min(1.0, most / max(1, sum(part.entry.live_rows for part in parts)))
    sample, end = np.empty((most + len(parts), dimension), np.float32), 0
    random = np.random.default_rng(seed)
    for part in parts:
        count = int(share * part.entry.live_rows + random.random())
        try:
            live = _live_rows(part) if count else np.empty(0, np.int64)
            count = min(count, len(live))
            chosen = np.sort(random.choice(live, count, replace=False))
            sample[end : end + count] = _vectors(part, dimension)[chosen] if count else 0
        except (CorruptCheckpoint, FileNotFoundError) as error:
            logger.warning("not trained on: %s", error)
            continue
        end += count
    return sample[:end]


def _live_rows(part: Part) -> NDArray[np.int64]:
    entry = part.entry
    if entry.dead_file is None:
        return np.arange(entry.rows)
    path = part.directory / entry.dead_file
    verify_file(path, entry.files[entry.dead_file])
    bits = np.frombuffer(files.read(path), np.uint8)
    return np.flatnonzero(np.unpackbits(bits, count=entry.rows, bitorder="little") == 0)


def _vectors(part: Part, dimension: int) -> NDArray[np.float32]:
    path = part.directory / layout.VECTORS
    verify_file(path, part.entry.files[layout.VECTORS])
    with files.reading(path):
        return np.memmap(path, np.dtype("<f4"), "r", shape=(part.entry.rows, dimension))
