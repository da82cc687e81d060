"""What a collection's checkpoints hold, as files for other programs: a FAISS index, a Parquet file, a description.

Invariants: the newest whole checkpoint of each partition is what is exported, its files verified as always; row n of
`rows.parquet` is number n of `index.faiss`; a directory of that name appears whole or not at all. Services need not
run, and may. Knows neither Kafka nor how an index is made (`ann/export.py`).
"""

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tidemark import files
from tidemark.ann.export import Built, Flat
from tidemark.ann.quantizer import ROWS_LEAST, Quantizer
from tidemark.checkpoint import Checkpoints, partitions
from tidemark.collection import Collection, IdFormat, IndexParameters, Metric
from tidemark.errors import StoreFull
from tidemark.generation import Generation
from tidemark.quantizers import Quantizers, Versioned
from tidemark.segment import Segment
from tidemark.segment_files import encode

INDEX, ROWS, DESCRIPTION = "index.faiss", "rows.parquet", "export.json"
# Vectors copied, and rows written, at a time: 16,384 with 1 KB of metadata are 16 MiB.
BLOCK_ROWS = 16_384
# Where the generation has no quantizer, one is trained on as many rows.
TRAINING_ROWS = 131_072

_ID_TYPES = {"utf8": pa.large_string(), "int64": pa.int64(), "bytes": pa.large_binary()}
_DISTANCES: dict[Metric, str] = {
    "l2": "FAISS's distance, the squared Euclidean one",
    "cosine": "1 - FAISS's score; the vectors have length 1: divide a query by its length first",
    "ip": "minus FAISS's score, the inner product",
}


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written; `damaged`: newer checkpoints that could not be used. The fields of export.json."""

    collection: str
    generation: str
    rows: int
    dimension: int
    metric: Metric
    id_format: IdFormat
    positions: dict[int, int]
    damaged: list[str]
    index: str
    search: dict[str, int]
    recall: float
    distance: str


@dataclass(frozen=True, slots=True)
class _Part:
    """A segment, its living rows, ascending, and the lists and codes of all its rows where it has them."""

    segment: Segment
    live: NDArray[np.int64]
    codes: tuple[NDArray[np.uint32], NDArray[np.uint8]] | None

    def blocks(self) -> Iterator[NDArray[np.int64]]:
        for first in range(0, len(self.live), BLOCK_ROWS):
            yield self.live[first : first + BLOCK_ROWS]


def export(root: Path, collection: Collection, generation: Generation, directory: Path) -> Exported | None:
    """Write a new directory with the rows of a generation; None, and nothing is written, without any checkpoint.

    All vectors are in memory once, with a graph twice. Raises StoreUnavailable, CorruptCheckpoint and the other errors
    of `Checkpoints.load`; what was begun is removed then.
    """
    opened = _Opened(root, collection, generation)
    if not opened.positions:
        return None
    temporary = directory.with_name(f".{directory.name}.{secrets.token_hex(6)}.tmp")
    with files.operation("making", temporary):
        temporary.mkdir()
    try:
        exported = opened.write(temporary)
        with files.entering(directory.parent), files.changing("rename", directory):
            os.rename(temporary, directory)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, StoreFull):
            raise StoreFull(f"{directory}: there is no room for {opened.said_size}; nothing was written") from error
        raise
    return exported


class _Opened:
    """The newest checkpoint of each partition of a generation."""

    def __init__(self, root: Path, collection: Collection, generation: Generation) -> None:
        self._collection, self._generation = collection, generation
        self._quantizers = Quantizers(root, collection, generation.name)
        self.positions: dict[int, int] = {}
        self._damaged: list[str] = []
        self._parts: list[_Part] = []
        for number in partitions(root, collection.name, generation.name):
            self._load(Checkpoints(root, collection, generation.name, number))
        self._row_count = sum(len(part.live) for part in self._parts)

    def _load(self, checkpoints: Checkpoints) -> None:
        loaded = checkpoints.load()
        if loaded is None:
            return
        self.positions[checkpoints.partition] = loaded.manifest.position
        self._damaged += loaded.damaged
        # Codes are opened now: the consumer may remove obsolete files meanwhile, but not what is mapped.
        self._parts += [_Part(each, each.live.numbers(), each.codes) for each in loaded.segments]

    @property
    def said_size(self) -> str:
        size = self._row_count * self._collection.row_bytes / 2**20
        return f"{self._row_count} rows, of which the vectors alone take {size:,.1f} MiB"

    def write(self, directory: Path) -> Exported:
        with files.writing(directory / ROWS) as file, pq.ParquetWriter(file, self._schema) as writer:
            for part in self._parts:
                for block in part.blocks():
                    writer.write_batch(self._columns(part.segment, block))
        built = self._built()
        with files.writing(directory / INDEX) as file:
            built.write(file)
        exported = self._described(built)
        files.write(directory / DESCRIPTION, json.dumps(asdict(exported), indent=1).encode() + b"\n")
        files.fsync_directory(directory)
        return exported

    def _described(self, built: Built) -> Exported:
        return Exported(
            collection=self._collection.name,
            generation=self._generation.name,
            rows=self._row_count,
            dimension=self._collection.dimension,
            metric=self._collection.metric,
            id_format=self._collection.id_format,
            positions=self.positions,
            damaged=self._damaged,
            index=built.kind,
            search=built.search,
            recall=round(built.recall, 4),
            distance=_DISTANCES[self._collection.metric],
        )

    # -- columns -------------------------------------------------------------------------------------------

    @property
    def _schema(self) -> Any:
        return pa.schema(
            {
                "id": _ID_TYPES[self._collection.id_format],
                "metadata": pa.large_string(),
                "partition": pa.int32(),
                "offset": pa.int64(),
                "timestamp": pa.int64(),
            }
        )

    def _columns(self, segment: Segment, rows: NDArray[np.int64]) -> Any:
        taken = pa.array(rows)
        metadata = [text or None for text in segment.metadata.take(taken).to_pylist()]
        columns = [
            _ids(segment.ids.take(taken), self._collection.id_format),
            pa.array(metadata, pa.large_binary()).cast(pa.large_string()),
            pa.array(np.full(len(rows), segment.partition, np.int32)),
            pa.array(segment.offsets[rows]),
            pa.array(segment.timestamps[rows]),
        ]
        return pa.record_batch(columns, schema=self._schema)

    # -- index ---------------------------------------------------------------------------------------------

    def _built(self) -> Built:
        parameters, metric = self._generation.index, self._collection.metric
        flat, end = Flat(self._row_count, self._collection.dimension, metric), 0
        for part in self._parts:
            for block in part.blocks():
                np.take(part.segment.vectors, block, axis=0, out=flat.vectors[end : end + len(block)], mode="clip")
                end += len(block)
        if parameters.kind == "flat" or self._row_count < max(parameters.ann_rows_min, ROWS_LEAST):
            return flat.built()
        if parameters.kind == "hnsw":
            return flat.with_graph(parameters)
        quantizer = self._quantizers.newest() or Versioned(0, _trained(flat.vectors, metric, parameters))
        lists, codes = _codes(self._parts, quantizer)
        return flat.with_lists(quantizer.quantizer, lists, codes)


def _ids(keys: Any, id_format: IdFormat) -> Any:
    """An Arrow column of keys as one of ids."""
    if id_format == "int64":
        return pa.array(np.frombuffer(b"".join(keys.to_pylist()), ">i8").astype(np.int64))
    return keys.cast(_ID_TYPES[id_format])


def _trained(vectors: NDArray[np.float32], metric: Metric, parameters: IndexParameters) -> Quantizer:
    count = len(vectors)
    chosen = np.random.default_rng(1).choice(count, min(count, TRAINING_ROWS), replace=False)
    sample = vectors[np.sort(chosen)]
    return Quantizer.train(sample, metric, count, parameters.recall_target, seed=1, nlist=parameters.nlist)


def _codes(parts: Sequence[_Part], quantizer: Versioned) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
    """Of all living rows: those written beside the segments by this quantizer, else made anew."""
    found = [_codes_of(part, quantizer) for part in parts if len(part.live)]
    return np.concatenate([lists for lists, _ in found]), np.concatenate([codes for _, codes in found])


def _codes_of(part: _Part, quantizer: Versioned) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
    if part.codes is not None and part.segment.entry.is_coded_by(quantizer.version, quantizer.quantizer.identity):
        lists, codes = part.codes
        return lists[part.live], codes[part.live]
    made = [encode(quantizer.quantizer, part.segment.vectors[block]) for block in part.blocks()]
    return np.concatenate([each.lists for each in made]), np.concatenate([each.codes for each in made])
