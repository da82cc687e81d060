"""The quantizers of a generation: numbered files in its directory, shared by all of its partitions.

Invariants: a file is created whole or not at all and never changes; of several consumers that make the same version
the first one wins; a number is never used twice, so codes of a version are of one quantizer for ever. Only bytes that
match their checksum are used. The newest `KEPT` versions stay; of older ones an empty file keeps the number, and codes
of them count as none.
Knows nothing of who makes one when (consumer/training.py), nor of segments.
"""

import logging
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

    def newest(self, above: int = 0) -> Versioned | None:
        """The newest one that can be used, of a version above the one given; None when there is none.

        What cannot be used is passed over and said. Raises StoreUnavailable.
        """
        for version in reversed(self.versions()[-KEPT:]):
            if version <= above:
                return None
            try:
                return Versioned(version, self.read(version))
            except FileNotFoundError:
                continue
            except (CorruptCheckpoint, NewerFormat) as error:
                logger.error("quantizer passed over: %s", error)
        return None

    def create(self, version: int, quantizer: Quantizer) -> bool:
        """Make a version durable; False when another consumer was first. Raises StoreUnavailable."""
        created = files.create(self._path(version), _sealed(_WHAT + _FORMAT + quantizer.to_bytes()))
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
    return content + xxhash.xxh3_128_digest(content)


def _parsed(data: bytes, source: str) -> Quantizer:
    content = data[:-_CHECKSUM_BYTES]
    if not content or xxhash.xxh3_128_digest(content) != data[-_CHECKSUM_BYTES:]:
        raise CorruptCheckpoint(f"{source}: the checksum does not match its {len(data)} bytes")
    if not content.startswith(_WHAT + _FORMAT):
        raise NewerFormat(f"{source}: another version of Tidemark wrote this quantizer")
    return Quantizer.from_bytes(content[len(_WHAT + _FORMAT) :])
