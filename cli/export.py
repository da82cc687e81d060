"""`tidemark export`: a collection's checkpoints as a plain FAISS index and a Parquet file. Services need not run."""

import json
from dataclasses import asdict
from pathlib import Path

import typer

from cli.exits import NotFound, WrongUsage
from cli.generations import check_collection, check_generation
from tidemark import generation
from tidemark.export import Exported
from tidemark.export import export as write
from tidemark.printable import printable
from tidemark.settings import Settings


def export(settings: Settings, collection: str, directory: Path, name: str | None) -> Exported:
    """Write the directory; raises NotFound for a collection, generation or checkpoint that is not there."""
    check_collection(settings, collection)
    directory = directory.absolute()
    _check_is_free(directory)
    root = settings.checkpoint_root
    if name is not None:
        check_generation(settings, collection, name)
    name = name or generation.current(root, collection)
    if name is None:
        raise NotFound(f"collection {collection!r} has no checkpoint in {root}: start the consumer")
    made = write(root, settings.collection(collection), generation.read(root, collection, name), directory)
    if made is None:
        raise NotFound(f"generation {name!r} of {collection!r} has no checkpoint yet: wait for the consumer's first")
    return made


def _check_is_free(directory: Path) -> None:
    if directory.is_symlink() or directory.exists():
        raise WrongUsage(f"{directory} is there already: name a directory that is not")
    if not directory.parent.is_dir():
        raise WrongUsage(f"{directory.parent} is not a directory: make it first")


def show(exported: Exported, directory: Path, as_json: bool) -> None:
    for passed_over in exported.damaged:
        typer.echo(f"warning: passed over a damaged checkpoint: {printable(passed_over)}", err=True)
    if as_json:
        typer.echo(json.dumps(asdict(exported)))
        return
    reached = ", ".join(f"partition {number} at {position}" for number, position in exported.positions.items())
    typer.echo(f"{directory}: {exported.rows} rows of {exported.collection} ({exported.generation}), {reached}")
    searched = ", ".join(f"{name} {value}" for name, value in exported.search.items())
    typer.echo(f"{exported.index}, {searched or 'exact'}, recall@10 {exported.recall:.3f}")
