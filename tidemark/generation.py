"""Generations of a collection: which ones exist, how each is built, and which one is served (CURRENT).

A generation is one build of the collection from the log. A replay makes a new one beside the one served and
then switches CURRENT, one atomic replace; switching back is the same call. Only names and small JSON files:
the rows are in `checkpoint.py`.
"""

import shutil
import time
from pathlib import Path
from typing import Any

import msgspec

from tidemark import files, layout
from tidemark.collection import Collection, IndexParameters
from tidemark.errors import BadConfiguration, CorruptCheckpoint


class Generation(msgspec.Struct, frozen=True):
    """How a generation is built: `start` is where in the log it began, `index` its segments' parameters."""

    name: str
    created_ms: int
    start: str
    index: IndexParameters


class _Current(msgspec.Struct, frozen=True):
    generation: str
    switched_ms: int


def current(root: Path, collection: str) -> str | None:
    """The name of the generation served, None before the first one."""
    path = root / layout.current(collection)
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Current).generation
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise CorruptCheckpoint(
            f"{path}: is not readable ({error}): run `tidemark promote {collection} GENERATION` to write it again"
        ) from None


def read(root: Path, collection: str, name: str) -> Generation:
    path = root / layout.generation_file(collection, name)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Generation)
    except FileNotFoundError:
        known = ", ".join(names(root, collection)) or "none"
        raise BadConfiguration(f"collection {collection!r} has no generation {name!r}; there are: {known}") from None
    except msgspec.DecodeError as error:
        raise CorruptCheckpoint(f"{path}: is not readable ({error})") from None


def names(root: Path, collection: str) -> list[str]:
    """The generations present, oldest first."""
    directory = root / collection
    if not directory.is_dir():
        return []
    found = (path.name for path in directory.iterdir() if (path / "generation.json").exists())
    return sorted(name for name in found if layout.generation_number(name) is not None)


def create(root: Path, collection: Collection, start: str) -> Generation:
    """Make the next generation, not served yet."""
    while True:
        present = [layout.generation_number(name) or 0 for name in names(root, collection.name)]
        name = layout.generation_name(max(present, default=0) + 1)
        made = Generation(name, time.time_ns() // 1_000_000, start, collection.index)
        if files.create(root / layout.generation_file(collection.name, name), msgspec.json.encode(made)):
            return made


def promote(root: Path, collection: str, name: str) -> None:
    """Serve a generation: consumer and api replicas follow within seconds."""
    read(root, collection, name)
    switched = _Current(name, time.time_ns() // 1_000_000)
    files.replace(root / layout.current(collection), msgspec.json.encode(switched))


def drop(root: Path, collection: str, name: str) -> None:
    """Remove a generation that is not served, with all its files."""
    read(root, collection, name)
    if current(root, collection) == name:
        raise BadConfiguration(f"generation {name!r} of {collection!r} is served: promote another one first")
    shutil.rmtree(root / collection / name)


def served(root: Path, collection: Collection) -> Generation:
    """The generation served, made as the first one when there is none (the consumer's start)."""
    name = current(root, collection.name)
    if name is None:
        present = names(root, collection.name)
        name = present[-1] if present else create(root, collection, "earliest").name
        promote(root, collection.name, name)
    return read(root, collection.name, name)


def describe(generation: Generation) -> dict[str, Any]:
    return {
        "generation": generation.name,
        "created_ms": generation.created_ms,
        "start": generation.start,
        "index": msgspec.to_builtins(generation.index),
    }
