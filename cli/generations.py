"""The commands about generations: list them, serve another one, remove one. Files of the checkpoint only."""

from typing import Any

from cli.exits import NotFound
from cli.table import console, table
from tidemark import generation
from tidemark.settings import Settings


def listed(settings: Settings, collection: str) -> list[dict[str, Any]]:
    """Every generation, oldest first, and whether it is the one served."""
    root = settings.checkpoint_root
    check_collection(settings, collection)
    served = generation.current(root, collection)
    found = [generation.describe(generation.read(root, collection, n)) for n in generation.names(root, collection)]
    return [{**one, "served": one["generation"] == served} for one in found]


def show(rows: list[dict[str, Any]]) -> None:
    shown = [
        (
            row["generation"],
            "yes" if row["served"] else "",
            row["start"],
            row["index"]["kind"],
            _when(row["created_ms"]),
        )
        for row in rows
    ]
    console().print(table(("generation", "served", "from", "index", "made"), shown))


def promote(settings: Settings, collection: str, name: str) -> None:
    check_generation(settings, collection, name)
    generation.promote(settings.checkpoint_root, collection, name)


def drop(settings: Settings, collection: str, name: str) -> None:
    check_generation(settings, collection, name)
    if generation.current(settings.checkpoint_root, collection) == name:
        raise NotFound(f"generation {name!r} of {collection!r} is served: promote another one first")
    generation.drop(settings.checkpoint_root, collection, name)


def check_collection(settings: Settings, collection: str) -> None:
    """Raises NotFound with the names that there are."""
    if collection not in settings.collections:
        known = ", ".join(sorted(settings.collections))
        raise NotFound(f"no collection {collection!r} is configured; there are: {known}")


def check_generation(settings: Settings, collection: str, name: str) -> None:
    """Raises NotFound with the names that there are."""
    check_collection(settings, collection)
    known = generation.names(settings.checkpoint_root, collection)
    if name not in known:
        raise NotFound(f"collection {collection!r} has no generation {name!r}; there are: {', '.join(known) or 'none'}")


def _when(milliseconds: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(milliseconds / 1_000, UTC).isoformat(timespec="seconds")
