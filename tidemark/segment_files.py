"""The files of a segment: written once and fsynced, verified by their checksums, removed when nobody needs them.

Invariants: a segment's files never change once a manifest names them; what a failed write has begun is removed. Codes
may be added later, as one more file.
Used by `checkpoint.py`, by the builder, and by `segment.py`, which opens what is written here.
"""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from tidemark import files, layout
from tidemark.ann import graph
from tidemark.ann.graph import Graph
from tidemark.ann.quantizer import OUTLIER, Encoded, Quantizer
from tidemark.collection import IndexParameters, Metric
from tidemark.crash_point import reach
from tidemark.errors import CorruptCheckpoint, StoreUnavailable
from tidemark.filters import columns_file
from tidemark.filters.joining import columns_of
from tidemark.manifest import CodesEntry, FileEntry, SegmentEntry
from tidemark.quantizers import Versioned
from tidemark.rows import Rows

HASHED_BYTES = 2 * 2**20
# Vectors encoded at a time, in numbers: 32 MiB, beside which what encoding needs is little.
ENCODED_NUMBERS = 2**23


def write_segment(
    directory: Path,
    rows: Rows,
    metric: Metric,
    parameters: IndexParameters,
    seed: int,
    quantizer: Versioned | None = None,
    encoded: Encoded | None = None,
) -> SegmentEntry:
    """Write and fsync a new segment directory; the caller makes it known by a manifest.

    With a `quantizer` its rows get codes: those given as `encoded`, of the same rows and quantizer, else new ones.
    Raises StoreUnavailable when the disk does not take it; what was begun is removed then.
    """
    try:
        files.make_directory(directory)
        return _written(directory, rows, metric, parameters, seed, quantizer, encoded)
    except BaseException as error:
        with contextlib.suppress(StoreUnavailable):
            remove_segment_files(directory)
        if isinstance(error, FileNotFoundError):  # somebody has removed what was just written
            raise files.unavailable("reading", directory, error) from error
        raise


def _written(
    directory: Path,
    rows: Rows,
    metric: Metric,
    parameters: IndexParameters,
    seed: int,
    quantizer: Versioned | None,
    encoded: Encoded | None,
) -> SegmentEntry:
    files.write(directory / layout.VECTORS, np.ascontiguousarray(rows.vectors, "<f4").data.cast("B"))
    with files.writing(directory / layout.ROWS) as file:
        _write_columns(file, rows)
    names = [layout.VECTORS, layout.ROWS]
    if rows.metadata.null_count < len(rows):
        with files.writing(directory / layout.META) as file:
            columns_file.write(file, columns_of(rows.metadata))
        names.append(layout.META)
    entry = SegmentEntry(name=directory.name, kind="flat", rows=len(rows), files={})
    if parameters.kind == "hnsw" and len(rows) >= max(parameters.ann_rows_min, graph.ROWS_LEAST):
        built = Graph.build(rows.vectors, metric, parameters, seed)
        with files.writing(directory / layout.INDEX) as file:
            built.write(file)
        names.append(layout.INDEX)
        if len(built.outliers):
            files.write(directory / layout.OUTLIERS, built.outliers.astype("<u4").tobytes())
            names.append(layout.OUTLIERS)
        entry = msgspec.structs.replace(
            entry, kind="hnsw", effort=built.parameters.effort, recall=built.parameters.recall
        )
    entry = msgspec.structs.replace(entry, files={name: file_entry(directory / name) for name in names})
    if quantizer is not None:
        encoded = encoded or encode(quantizer.quantizer, rows.vectors)
        path = directory / layout.codes_name(quantizer.version)
        entry = entry.with_codes(_write_codes(path, encoded, quantizer))
    files.fsync_directory(directory)
    files.fsync_directory(directory.parent)
    return entry


def encode(quantizer: Quantizer, vectors: NDArray[np.float32]) -> Encoded:
    """Codes of float32 vectors (n, dimension), n > 0, however many there are; in pieces, to need little memory."""
    count = max(1, ENCODED_NUMBERS // vectors.shape[1])
    parts = [quantizer.encode(vectors[first : first + count]) for first in range(0, len(vectors), count)]
    return joined(parts)


def joined(parts: Sequence[Encoded]) -> Encoded:
    """The codes of parts of rows, one after the other."""
    if len(parts) == 1:
        return parts[0]
    weights = [len(part.lists) for part in parts]
    return Encoded(
        np.concatenate([part.lists for part in parts]),
        np.concatenate([part.codes for part in parts]),
        float(np.average([part.error for part in parts], weights=weights)),
    )


def write_codes(directory: Path, name: str, vectors: NDArray[np.float32], quantizer: Versioned) -> CodesEntry:
    """Write and fsync codes of all rows of a segment beside its other files, under a name that nobody has used.

    The caller makes them known by a manifest. Raises StoreUnavailable; what was begun is removed then.
    """
    encoded = encode(quantizer.quantizer, vectors)
    with files.entering(directory):
        written = _write_codes(directory / name, encoded, quantizer)
    reach("codes-durable")
    return written


def _write_codes(path: Path, encoded: Encoded, quantizer: Versioned) -> CodesEntry:
    checksum, size = xxhash.xxh3_128(), 0
    with files.writing(path) as file:
        for column in (np.ascontiguousarray(encoded.lists, "<u4"), np.ascontiguousarray(encoded.codes, np.uint8)):
            content = column.data.cast("B")
            file.write(content)
            checksum.update(content)
            size += len(content)
    outliers = int(np.count_nonzero(encoded.lists == OUTLIER))
    return CodesEntry(
        name=path.name,
        file=FileEntry(size, checksum.hexdigest()),
        quantizer=quantizer.version,
        quantizer_id=quantizer.quantizer.identity,
        error=encoded.error,
        outliers=outliers,
    )


def _write_columns(file: BinaryIO, rows: Rows) -> None:
    order = np.argsort(rows.hashes, kind="stable")
    table = pa.table(
        {
            "id": rows.ids,
            "offset": rows.offsets,
            "timestamp": rows.timestamps,
            "metadata": rows.metadata,
            "digest": rows.digests,
            "sorted_hash": rows.hashes[order],
            "sorted_row": order.astype(np.uint32),
        }
    )
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def file_entry(path: Path) -> FileEntry:
    """Size and checksum of a file as it is on disk now.

    Hashed in pieces, so that a file larger than the memory is no problem.
    """
    checksum = xxhash.xxh3_128()
    size = 0
    with files.reading(path), path.open("rb", buffering=0) as file:
        piece = bytearray(HASHED_BYTES)
        while count := file.readinto(piece):
            checksum.update(memoryview(piece)[:count])
            size += count
    return FileEntry(size, checksum.hexdigest())


def verify_file(path: Path, expected: FileEntry) -> None:
    """Raise CorruptCheckpoint unless the file has exactly the bytes the manifest names.

    A file that cannot be read is StoreUnavailable instead, because that says nothing about its bytes.
    """
    try:
        found = file_entry(path)
    except FileNotFoundError:
        raise CorruptCheckpoint(f"{path}: the file is missing") from None
    if found != expected:
        raise CorruptCheckpoint(
            f"{path}: has {found.bytes} bytes with checksum {found.xxh3_128}, "
            f"the manifest says {expected.bytes} with {expected.xxh3_128}"
        )


def remove_segment_files(directory: Path) -> None:
    """Remove a segment's files and directory; what is already gone is fine, and what a link points to stays."""
    if directory.is_symlink():
        files.remove(directory)
        return
    for name in files.names(directory):
        files.remove(directory / name)
    with files.operation("removing", directory), contextlib.suppress(FileNotFoundError):
        os.rmdir(directory)
