"""The commands of `tidemark`. stdout carries results, stderr messages; `--json` gives the results as JSON.

Exit codes: 0 done, 1 not found, 2 wrong usage, 69 something is not available, 78 wrong configuration.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from cli import run_files
from cli.produce import produce as produce_records
from cli.produce import read
from cli.sample import Encoder
from tidemark import __version__, generation, service
from tidemark.errors import BadConfiguration, BadQuery, BrokerUnreachable, TidemarkError
from tidemark.topic import Topics

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=True)
Config = Annotated[Path | None, typer.Option("--config", help="Settings file; default: the running `up`'s.")]
Api = Annotated[str | None, typer.Option("--api", help="Address of the api, such as http://127.0.0.1:8080.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
CollectionName = Annotated[str, typer.Argument(help="Name of the collection.")]


def main() -> None:
    """Entry point: errors an operator can act on are one line and an exit code."""
    service.run(app)


def _version(shown: bool) -> None:
    if shown:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def tidemark(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """A vector index that is a materialised view of a Kafka topic."""


@app.command()
def up(
    config: Config = None,
    api_port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port of the api, 0 = a free one.")] = None,
) -> None:
    """Start a broker, the consumer, the api and sample data; Ctrl-C stops all of it. Example: tidemark up"""
    from cli.up import Up

    Up(config, api_port).run()


def _become(module: str, config: Path | None) -> None:
    arguments = ["--config", str(config)] if config else []
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])


@app.command()
def consumer(config: Config = None) -> None:
    """Run the indexer service. Example: tidemark consumer --config tidemark.toml"""
    _become("consumer", config)


@app.command()
def api(config: Config = None) -> None:
    """Run the search service. Example: tidemark api --config tidemark.toml"""
    _become("api", config)


@app.command()
def produce(
    collection: CollectionName,
    source: Annotated[str, typer.Argument(help="An .npy or .jsonl file, or - for JSON lines on stdin.")],
    id_prefix: Annotated[str, typer.Option(help="For .npy: ids are this and the row number.")] = "",
    ids: Annotated[Path | None, typer.Option(help="For .npy: a file with one id per line.")] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Produce vectors to a collection's topic. Example: tidemark produce docs vectors.npy --id-prefix doc-"""
    settings = run_files.settings(config)
    found = settings.collection(collection)
    Topics(settings.kafka).identity(found.topic)
    done = produce_records(settings.kafka, found.topic, read(source, found, id_prefix, ids), f"to {found.topic}")
    if as_json:
        typer.echo(json.dumps(done.to_json()))
    else:
        typer.echo(f"{done.records} records in {done.seconds:.2f} s ({done.rate:,.0f}/s); positions {done.positions}")


@app.command()
def search(
    collection: CollectionName,
    text: Annotated[str | None, typer.Option(help="Words, for the sample collection.")] = None,
    vector: Annotated[str | None, typer.Option(help="A JSON list of numbers.")] = None,
    vector_file: Annotated[Path | None, typer.Option(help="An .npy file with one vector.")] = None,
    id: Annotated[str | None, typer.Option(help="The id of a stored row.")] = None,
    k: Annotated[int, typer.Option("-k", help="Hits.")] = 10,
    exact: Annotated[bool, typer.Option(help="Scan every row.")] = False,
    api: Api = None,
    as_json: AsJson = False,
) -> None:
    """Find the nearest rows. Example: tidemark search docs --text "parse a json string" """
    query = _query(text, vector, vector_file, id)
    answer = _call("POST", f"/collections/{collection}/search", api, {**query, "k": k, "exact": exact})
    if as_json:
        typer.echo(json.dumps(answer))
        return
    table = Table("id", "distance", "metadata")
    for hit in answer["hits"]:
        metadata = hit["metadata"]
        shown = metadata.get("summary", json.dumps(metadata)) if isinstance(metadata, dict) else ""
        table.add_row(hit["id"], f"{hit['distance']:.4f}", str(shown)[:80])
    Console().print(table)


def _query(text: str | None, vector: str | None, file: Path | None, id_: str | None) -> dict[str, Any]:
    if sum(part is not None for part in (text, vector, file, id_)) != 1:
        raise BadConfiguration("give exactly one of --text, --vector, --vector-file and --id")
    if id_ is not None:
        return {"id": id_}
    if text is not None:
        if not run_files.encoder_path().exists():
            raise BadConfiguration("--text needs the sample data of `tidemark up`; use --vector for other collections")
        try:
            return {"vector": Encoder.load(run_files.encoder_path()).encode(text).tolist()}
        except ValueError as error:
            raise BadConfiguration(str(error)) from None
    try:
        found = json.loads(vector) if vector is not None else np.load(file or "", allow_pickle=False).ravel().tolist()
    except (ValueError, OSError) as error:
        raise BadConfiguration(f"the vector cannot be read: {error}") from None
    return {"vector": found}


@app.command()
def lag(
    collection: Annotated[str | None, typer.Argument(help="One collection; default: all.")] = None,
    watch: Annotated[bool, typer.Option(help="Show it again every second until Ctrl-C.")] = False,
    api: Api = None,
    as_json: AsJson = False,
) -> None:
    """Show how far behind the log the index is. Example: tidemark lag --watch"""
    while True:
        path = f"/collections/{collection}/lag" if collection else "/lag"
        answer = _call("GET", path, api)
        if as_json:
            typer.echo(json.dumps(answer))
        else:
            Console().print(_lag_table(answer.get("collections", [answer])))
        if not watch:
            return
        time.sleep(1.0)


def _lag_table(collections: list[dict[str, Any]]) -> Table:
    columns = ("log_end_offset", "applied_position", "checkpointed_position", "committed_offset")
    shown = ("offset_lag", "time_lag_ms", "unbuilt_rows", "live_rows")
    table = Table("collection", "p", "end", "applied", "checkpointed", "committed", "lag", "ms", "unbuilt", "rows", "")
    for found in collections:
        for partition in found["partitions"]:
            values = ["?" if partition[name] is None else str(partition[name]) for name in (*columns, *shown)]
            why = partition["problem"] or found["problem"] or ""
            table.add_row(f"{found['collection']} {found['generation']}", str(partition["partition"]), *values, why)
        if not found["partitions"]:
            table.add_row(found["collection"], *[""] * 9, found["problem"] or "")
    return table


@app.command()
def replay(
    collection: CollectionName,
    start: Annotated[str, typer.Option("--from", help="earliest, 0=120,1=7 (offsets) or a time.")] = "earliest",
    index: Annotated[str, typer.Option(help='Other index parameters, such as {"kind": "hnsw"}.')] = "",
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Build a new generation from the topic and serve it. Example: tidemark replay docs --from earliest"""
    settings = run_files.settings(config)
    settings.collection(collection)
    used = config or (run_files.run_config() if "TIDEMARK_CONFIG" not in os.environ else None)
    arguments = ["--config", str(used)] if used and used.exists() else []
    command = [sys.executable, "-m", "consumer", *arguments, "--dies-with-parent", "replay", collection]
    command += ["--from", start, "--json", *(["--index", index] if index else [])]
    made = _follow_replay(command)
    typer.echo(json.dumps({"generation": made}) if as_json else f"generation {made} is served now")


def _follow_replay(command: list[str]) -> str:
    console = Console(stderr=True)
    made = ""
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        assert process.stdout is not None and process.stderr is not None
        task = progress.add_task("replaying", total=None)
        for line in process.stdout:
            found = json.loads(line)
            made = found.get("generation", made)
            if "total" in found:
                progress.update(task, completed=found["done"], total=found["total"])
        message = process.stderr.read()
    if process.returncode:
        sys.stderr.write(message.splitlines()[-1] + "\n" if message else "error: the replay ended early\n")
        raise typer.Exit(process.returncode)
    return made


@app.command()
def promote(
    collection: CollectionName,
    name: Annotated[str, typer.Argument(help="The generation, such as g000001.")],
    config: Config = None,
) -> None:
    """Serve another generation; consumer and api follow by themselves. Example: tidemark promote docs g000001"""
    settings = run_files.settings(config)
    settings.collection(collection)
    generation.promote(settings.checkpoint_root, collection, name)
    typer.echo(f"{collection}: generation {name} is named in CURRENT; the api serves it once it has caught up")


@app.command()
def generations(collection: CollectionName, config: Config = None, as_json: AsJson = False) -> None:
    """List the generations of a collection. Example: tidemark generations docs"""
    settings = run_files.settings(config)
    settings.collection(collection)
    root = settings.checkpoint_root
    served = generation.current(root, collection)
    found = [generation.describe(generation.read(root, collection, n)) for n in generation.names(root, collection)]
    rows = [{**one, "served": one["generation"] == served} for one in found]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    table = Table("generation", "served", "from", "index")
    for row in rows:
        table.add_row(row["generation"], "yes" if row["served"] else "", row["start"], row["index"]["kind"])
    Console().print(table)


@app.command()
def drop(collection: CollectionName, name: Annotated[str, typer.Argument()], config: Config = None) -> None:
    """Remove a generation that is not served. Example: tidemark drop docs g000001"""
    settings = run_files.settings(config)
    generation.drop(settings.checkpoint_root, collection, name)
    typer.echo(f"{collection}: generation {name} is removed")


@app.command()
def healthcheck(url: Annotated[str, typer.Argument()] = "http://127.0.0.1:8080/healthz") -> None:
    """Ask a health address, for containers. Example: tidemark healthcheck http://127.0.0.1:8081/healthz"""
    try:
        healthy = httpx.get(url, timeout=5.0).status_code == 200
    except httpx.HTTPError:
        healthy = False
    raise typer.Exit(0 if healthy else 1)


def _call(method: str, path: str, api: str | None, body: dict[str, Any] | None = None) -> Any:
    """The api's JSON; its errors become ours."""
    address = run_files.api_address(api)
    try:
        answer = httpx.request(method, address + path, json=body, timeout=30.0)
        found = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise BrokerUnreachable(
            f"no api at {address} ({error}): start it with `make up`, or name it with --api"
        ) from None
    except ValueError:
        raise BrokerUnreachable(f"{address} does not answer like a Tidemark api: name it with --api") from None
    if answer.is_success:
        return found
    message = found.get("error", {}).get("message", str(found))
    if answer.status_code == 404:
        typer.echo(f"error: {message}", err=True)
        raise typer.Exit(1)
    if answer.status_code == 422:
        raise BadQuery(message)
    raise TidemarkError(message)


if __name__ == "__main__":
    main()
