"""The quantizers of a generation: numbered files in its directory, shared by all of its partitions.

Invariants: a file is created whole or not at all and never changes; of several consumers that make the same version
the first one wins; a number is never used twice, unless the directory is restored or begun again: so codes are told by
their quantizer's identity, too, which is the checksum at the end of its file. Only bytes that match it are used. The
newest `KEPT` versions stay; of older ones an empty file keeps the number, and codes of them count as none.
Knows nothing of who makes one when (consumer/training.py), nor of segments.
"""

import logging
import os
from pathlib import Path
from typing import NamedTuple

import xxhash

from tidemark import files, layout
from tidemark.ann.quantizer import Quantizer
from tidemark.collection import Collection
from tidemark.crash_point import reach
from tidemark.errors import CorruptCheckpoint, NewerFormat

logger = logging.getLogger(__name__)

# Replicas use the version before the newest until all rows have codes of the newest.
KEPT = 3
_WHAT, _FORMAT = b"tidemark quantizer ", b"1\n"
_CHECKSUM_BYTES = 16


class Versioned(NamedTuple):
    version: int
    quantizer: Quantizer


class Quantizers:
    """The quantizers of one generation of a collection, read and made by any process."""

    def __init__(self, root: Path, collection: Collection, generation: str) -> None:
        self._collection = collection
        self._directory = root / layout.generation_directory(collection.name, generation)

    def versions(self) -> list[int]:
        """The numbers that are taken, oldest first; raises StoreUnavailable."""
        names = files.names(self._directory)
        return sorted(version for name in names if (version := layout.quantizer_version(name)) is not None)

    def read(self, version: int) -> Quantizer:
        """One quantizer; raises CorruptCheckpoint, NewerFormat, FileNotFoundError and StoreUnavailable."""
        path = self._path(version)
        quantizer = _parsed(files.read(path), str(path))
        if quantizer.dimension != self._collection.dimension:
            raise CorruptCheckpoint(
                f"{path}: is of {quantizer.dimension} dimensions, the collection has {self._collection.dimension}"
            )
        return quantizer

    def newest(self, known: Versioned | None = None) -> Versioned | None:
        """The newest one that can be used; None when there is none, or none newer than the one `known`.

        When the one known is not there any more, or its number is another's, any is newer: the directory was restored
        or begun again. What cannot be used is passed over and said. Raises StoreUnavailable.
        """
        versions = self.versions()
        above = known.version if known is not None and versions and self._has(known) else 0
        for version in reversed(versions[-KEPT:]):
            if version <= above:
                return None
            try:
                return Versioned(version, self.read(version))
            except FileNotFoundError:
                continue
            except (CorruptCheckpoint, NewerFormat) as error:
                logger.error("quantizer passed over: %s", error)
        return None

    def _has(self, known: Versioned) -> bool:
        """Whether the file of its number is its own; an emptied one is."""
        path = self._path(known.version)
        try:
            with files.reading(path), path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _CHECKSUM_BYTES))
                return not size or file.read().hex() == known.quantizer.identity
        except FileNotFoundError:
            return False

    def create(self, version: int, quantizer: Quantizer) -> bool:
        """Make a version durable; False when another consumer was first. Raises StoreUnavailable."""
        created = files.create(self._path(version), _sealed(quantizer.to_bytes()))
        reach("quantizer-durable")
        return created

    def remove_old(self) -> None:
        """Empty the files of all but the newest versions; raises StoreUnavailable."""
        for version in self.versions()[:-KEPT]:
            path = self._path(version)
            with files.operation("looking at", path):
                has_content = path.stat().st_size > 0
            if has_content:
                files.replace(path, b"")

    def _path(self, version: int) -> Path:
        return self._directory / layout.quantizer_name(version)


def _sealed(content: bytes) -> bytes:
    return _WHAT + _FORMAT + content + xxhash.xxh3_128_digest(content)


def _parsed(data: bytes, source: str) -> Quantizer:
    if data.startswith(_WHAT) and not data.startswith(_WHAT + _FORMAT):
        raise NewerFormat(f"{source}: another version of Tidemark wrote this quantizer")
    content = data[len(_WHAT + _FORMAT) : -_CHECKSUM_BYTES]
    is_whole = content and xxhash.xxh3_128_digest(content) == data[-_CHECKSUM_BYTES:]
    if not is_whole or not data.startswith(_WHAT):
        raise CorruptCheckpoint(f"{source}: the checksum does not match its {len(data)} bytes")
    return Quantizer.from_bytes(content)
