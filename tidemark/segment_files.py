"""The files of a segment: written once and fsynced, verified by their checksums, removed when nobody needs them.

Invariants: a segment's files never change once a manifest names them; what a failed write has begun is removed.
Used by `checkpoint.py`, by the builder, and by `segment.py`, which opens what is written here.
"""

import contextlib
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import xxhash

from tidemark import files, layout
from tidemark.ann import index
from tidemark.collection import IndexParameters, Metric
from tidemark.errors import CorruptCheckpoint, StoreUnavailable
from tidemark.manifest import FileEntry, SegmentEntry
from tidemark.rows import Rows

HASHED_BYTES = 2 * 2**20


def write_segment(
    directory: Path,
    rows: Rows,
    metric: Metric,
    parameters: IndexParameters,
    seed: int,
) -> SegmentEntry:
    """Write and fsync a new segment directory; the caller makes it known by a manifest.

    Raises StoreUnavailable when the disk does not take it; what was begun is removed then.
    """
    try:
        files.make_directory(directory)
        return _written(directory, rows, metric, parameters, seed)
    except BaseException as error:
        with contextlib.suppress(StoreUnavailable):
            remove_segment_files(directory)
        if isinstance(error, FileNotFoundError):  # somebody has removed what was just written
            raise files.unavailable("reading", directory, error) from error
        raise


def _written(directory: Path, rows: Rows, metric: Metric, parameters: IndexParameters, seed: int) -> SegmentEntry:
    files.write(directory / layout.VECTORS, np.ascontiguousarray(rows.vectors, "<f4").data.cast("B"))
    with files.writing(directory / layout.ROWS) as file:
        _write_columns(file, rows)
    kind = index.kind_for(len(rows), parameters)
    search = index.SearchParameters()
    names = [layout.VECTORS, layout.ROWS]
    if kind != "flat":
        built, search = index.build(rows.vectors, metric, parameters, seed)
        with files.writing(directory / layout.INDEX) as file:
            index.write(built, file)
        names.append(layout.INDEX)
        if len(built.outliers):
            files.write(directory / layout.OUTLIERS, built.outliers.astype("<u4").tobytes())
            names.append(layout.OUTLIERS)
    files.fsync_directory(directory)
    files.fsync_directory(directory.parent)
    return SegmentEntry(
        name=directory.name,
        kind=kind,
        rows=len(rows),
        effort=search.effort,
        k_factor=search.k_factor,
        recall=search.recall,
        reach=search.reach,
        files={name: file_entry(directory / name) for name in names},
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
