"""Generations of a collection: which ones exist, how each is built, and which one is served (CURRENT).

A generation is one build of the collection from the log. A replay makes a new one beside the one served and
then switches CURRENT, one atomic replace; switching back is the same call. The first generation, g000001, is made
by whichever consumer starts first, and never by a replay, so an unfinished replay is never taken for it.
Only names and small JSON files: the rows are in `checkpoint.py`.
"""

import shutil
from pathlib import Path
from typing import Any

import msgspec

from tidemark import files, layout
from tidemark.caught_up import now_ms
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
        return msgspec.json.decode(files.read(path), type=_Current).generation
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise CorruptCheckpoint(
            f"{path}: is not readable ({error}): run `tidemark promote {collection} GENERATION` to write it again"
        ) from None


def read(root: Path, collection: str, name: str) -> Generation:
    path = root / layout.generation_file(collection, name)
    try:
        return msgspec.json.decode(files.read(path), type=Generation)
    except FileNotFoundError:
        known = ", ".join(names(root, collection)) or "none"
        raise BadConfiguration(f"collection {collection!r} has no generation {name!r}; there are: {known}") from None
    except msgspec.DecodeError as error:
        raise CorruptCheckpoint(f"{path}: is not readable ({error})") from None


def names(root: Path, collection: str) -> list[str]:
    """The generations present, oldest first."""
    found = [name for name in files.names(root / collection) if layout.generation_number(name) is not None]
    with files.operation("looking for generations in", root / collection):
        return sorted(name for name in found if (root / layout.generation_file(collection, name)).exists())


def create(root: Path, collection: Collection, start: str) -> Generation:
    """Make the next generation, not served yet; the first number is left to the consumers."""
    while True:
        present = [layout.generation_number(name) or 0 for name in names(root, collection.name)]
        made = _create(root, collection, layout.generation_name(max(present, default=1) + 1), start)
        if made is not None:
            return made


def _create(root: Path, collection: Collection, name: str, start: str) -> Generation | None:
    """None when the name is taken."""
    made = Generation(name, now_ms(), start, collection.index)
    path = root / layout.generation_file(collection.name, name)
    return made if files.create(path, msgspec.json.encode(made)) else None


def promote(root: Path, collection: str, name: str) -> None:
    """Serve a generation: consumer and api replicas follow within seconds."""
    read(root, collection, name)
    files.replace(root / layout.current(collection), _switch_to(name))


def _switch_to(name: str) -> bytes:
    return msgspec.json.encode(_Current(name, now_ms()))


def drop(root: Path, collection: str, name: str) -> None:
    """Remove a generation that is not served, with all its files."""
    read(root, collection, name)
    if current(root, collection) == name:
        raise BadConfiguration(f"generation {name!r} of {collection!r} is served: promote another one first")
    directory = root / collection / name
    with files.operation("removing", directory):
        shutil.rmtree(directory)


def served(root: Path, collection: Collection) -> Generation:
    """The generation served, made as the first one when there is none (the consumer's start).

    Consumers that start at once get the same one. Raises CorruptCheckpoint when CURRENT is missing and there are
    later generations: which of them was served, or whether a replay is not finished yet, nobody can tell.
    """
    if current(root, collection.name) is None:
        first = layout.generation_name(1)
        later = [name for name in names(root, collection.name) if name != first]
        if later and current(root, collection.name) is None:  # else it was made just now
            raise CorruptCheckpoint(
                f"{root / layout.current(collection.name)} is missing, and there are generations {', '.join(later)}: "
                f"wait for the first replay to end, or run `tidemark promote {collection.name} GENERATION`"
            )
        _create(root, collection, first, "earliest")
        files.create(root / layout.current(collection.name), _switch_to(first))  # whoever was first has decided
    name = current(root, collection.name)
    assert name is not None
    return read(root, collection.name, name)


def describe(generation: Generation) -> dict[str, Any]:
    return {
        "generation": generation.name,
        "created_ms": generation.created_ms,
        "start": generation.start,
        "index": msgspec.to_builtins(generation.index),
    }
