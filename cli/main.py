"""The commands of `tidemark`: options and help. stdout carries results, stderr messages; `--json` gives JSON.

What a command does is in the module of its noun, imported when the command runs: help answers at once.
Exit codes are in `exits.py`.
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cli import exits
from tidemark import __version__

# Plain help: it can be piped and searched, and errors stay short.
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
Config = Annotated[
    Path | None,
    typer.Option("--config", help="Settings file; default: that of the last `up` here, else ./tidemark.toml."),
]
Api = Annotated[
    str | None,
    typer.Option("--api", help="Address of the api; default: the running `up`'s, else that of ./tidemark.toml."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Collection = Annotated[str, typer.Argument(help="Name of the collection.")]
Generation = Annotated[str, typer.Argument(help="Name of the generation, such as g000001.")]


def main() -> None:
    """Entry point: errors an operator can act on are a message and an exit code."""
    exits.run(app)


def _version(shown: bool) -> None:
    if shown:
        typer.echo(f"tidemark {__version__}")
        raise typer.Exit


@app.callback()
def tidemark(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """A vector index that is a materialised view of a Kafka topic."""


# -- running ---------------------------------------------------------------------------------------------------


@app.command()
def up(
    config: Annotated[
        Path | None, typer.Option("--config", help="Settings file; default: ./tidemark.toml, else the sample's.")
    ] = None,
    api_port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port of the api, 0 = a free one.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say only what goes wrong.")] = False,
) -> None:
    """Start a broker, the consumer, the api and sample data; Ctrl-C stops all of it.

    Example: tidemark up --api-port 0
    """
    from cli.up import Up

    Up(config, api_port, quiet).run()


@app.command()
def sample(config: Config = None) -> None:
    """Load the sample data into the collection `docs` of services that run already; `up` does so by itself.

    Example: tidemark sample --config tidemark.toml
    """
    from cli.sample_load import load_sample

    loaded = load_sample(config)
    typer.echo("the sample data is there already" if loaded is None else f"{loaded} documents are loaded")


@app.command()
def consumer(config: Config = None) -> None:
    """Run the indexer service.

    Example: tidemark consumer --config tidemark.toml
    """
    _become("consumer", config)


@app.command()
def api(config: Config = None) -> None:
    """Run the search service.

    Example: tidemark api --config tidemark.toml
    """
    _become("api", config)


def _become(module: str, config: Path | None) -> None:
    from tidemark import service

    arguments = ["--config", str(config)] if config else []
    os.execv(sys.executable, service.python(module, *arguments))


@app.command()
def healthcheck(url: Annotated[str | None, typer.Argument(help="Default: the api's /healthz.")] = None) -> None:
    """Exit 0 when a health address answers 200, else 1; for containers.

    Example: tidemark healthcheck http://127.0.0.1:8081/healthz
    """
    from cli.healthcheck import check

    check(url)


# -- vectors ---------------------------------------------------------------------------------------------------


@app.command()
def produce(
    collection: Collection,
    file: Annotated[str, typer.Argument(help="An .npy or .jsonl file, or - for JSON lines on stdin.")],
    id_prefix: Annotated[str, typer.Option(help="For .npy: ids are this and the row number.")] = "",
    ids: Annotated[Path | None, typer.Option(help="For .npy: a file with one id per line.")] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Produce vectors to a collection's topic.

    A JSON line is {"id", "vector", "metadata"} (metadata may be left out), or {"id", "deleted": true}.

    Example: tidemark produce docs vectors.npy --id-prefix doc-
    """
    from cli.produce import produce_file

    done = produce_file(collection, file, id_prefix, ids, config)
    reached = ", ".join(f"partition {number} at {position}" for number, position in done.positions.items())
    text = f"{done.records} records in {done.seconds:.2f} s ({done.rate:,.0f}/s); {reached or 'nothing to produce'}"
    typer.echo(json.dumps(done.to_json()) if as_json else text)


@app.command()
def search(
    collection: Collection,
    text: Annotated[str | None, typer.Option(help="Words, for the sample collection.")] = None,
    vector: Annotated[str | None, typer.Option(help="A JSON list of numbers.")] = None,
    vector_file: Annotated[Path | None, typer.Option(help="An .npy file with one vector.")] = None,
    id: Annotated[str | None, typer.Option(help="The id of a stored row.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="How many hits.")] = 10,
    filter: Annotated[str | None, typer.Option(help="JSON: only rows that match (docs/filters.md).")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Scan every row instead of using the indexes.")] = False,
    api: Api = None,
    as_json: AsJson = False,
) -> None:
    """Find the nearest rows.

    Example: tidemark search docs --text "parse a json string" --filter '{"kind": "function"}'
    """
    from cli.remote_api import ask, path_of
    from cli.search import filter_, query, shown
    from cli.table import console

    path = path_of(collection, "search")
    body = {**query(collection, text, vector, vector_file, id), **filter_(filter), "k": k, "exact": exact}
    if as_json:
        typer.echo(ask("POST", path, api, body, read=json.dumps))
    else:
        console().print(ask("POST", path, api, body, read=shown))


# -- the index -------------------------------------------------------------------------------------------------


@app.command()
def lag(
    collection: Annotated[str | None, typer.Argument(help="One collection; default: all.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every second until Ctrl-C.")] = False,
    api: Api = None,
    as_json: AsJson = False,
) -> None:
    """Show how far behind the log the index is.

    Example: tidemark lag --watch
    """
    from cli.lag import show

    show(collection, api, watch, as_json)


@app.command()
def doctor(
    collection: Annotated[str | None, typer.Argument(help="One collection; default: all.")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Say which copies of doubled ids to delete.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --repair: delete them.")] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Check the topics, the checkpoints and where ids are, and say what to do; exit code 1 when something is wrong.

    Example: tidemark doctor docs
    """
    from cli import run_files
    from cli.doctor import run

    if not run(run_files.settings(config), collection, repair, yes, as_json):
        raise typer.Exit(exits.EXIT_NOT_FOUND)


@app.command()
def replay(
    collection: Collection,
    start: Annotated[str, typer.Option("--from", help="earliest, 0=120,1=7 (offsets) or a time.")] = "earliest",
    index: Annotated[str, typer.Option(help='Other index parameters, such as {"kind": "hnsw"}.')] = "",
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Build a new generation from the topic, beside the one served, then serve it.

    Example: tidemark replay docs --from earliest
    """
    from cli import generations, replay, run_files

    generations.check_collection(run_files.settings(config), collection)
    made = replay.replay(collection, start, index, run_files.config_of_a_command(config))
    typer.echo(json.dumps({"generation": made}) if as_json else f"{collection}: generation {made} is served now")


@app.command()
def promote(collection: Collection, name: Generation, config: Config = None) -> None:
    """Serve another generation; consumer and api follow by themselves.

    Example: tidemark promote docs g000001
    """
    from cli import generations, run_files

    generations.promote(run_files.settings(config), collection, name)
    typer.echo(f"{collection}: generation {name} is named in CURRENT; the api serves it once it has caught up")


@app.command()
def drop(collection: Collection, name: Generation, config: Config = None) -> None:
    """Remove a generation that is not served, with its files.

    Example: tidemark drop docs g000001
    """
    from cli import generations, run_files

    generations.drop(run_files.settings(config), collection, name)
    typer.echo(f"{collection}: generation {name} is removed")


@app.command("generations")
def list_generations(collection: Collection, config: Config = None, as_json: AsJson = False) -> None:
    """List the generations of a collection, and which one is served.

    Example: tidemark generations docs
    """
    from cli import generations, run_files

    rows = generations.listed(run_files.settings(config), collection)
    if as_json:
        typer.echo(json.dumps(rows))
    else:
        generations.show(rows)


@app.command()
def export(
    collection: Collection,
    directory: Annotated[Path, typer.Argument(help="A directory that does not exist yet.")],
    generation: Annotated[str | None, typer.Option(help="Such as g000001; default: the one served.")] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Write the newest checkpoints as a FAISS index and a Parquet file, for programs that know nothing of Tidemark.

    Example: tidemark export docs docs-export
    """
    from cli import export, run_files

    made = export.export(run_files.settings(config), collection, directory, generation)
    export.show(made, directory, as_json)


if __name__ == "__main__":
    main()
