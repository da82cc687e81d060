"""`tidemark lag`: how far each partition is behind its log, once or again every second."""

import json
import sys
import time
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from cli.remote_api import ask, path_of
from cli.table import console, table
from tidemark.printable import printable

INTERVAL_S = 1.0
_COLUMNS = ("partition", "end", "applied", "checkpointed", "committed", "lag", "age", "unbuilt", "rows", "why")
_FIELDS = (
    *("log_end_offset", "applied_position", "checkpointed_position", "committed_offset"),
    *("offset_lag", "time_lag_ms", "unbuilt_rows", "live_rows"),
)


def show(collection: str | None, api: str | None, watch: bool, as_json: bool) -> None:
    """Print the lag; with `watch` until Ctrl-C, in place on a terminal."""
    if not watch:
        console().print(_asked(collection, api, as_json), soft_wrap=as_json)
        return
    try:
        if as_json or not sys.stdout.isatty():
            while True:
                console().print(_asked(collection, api, as_json), soft_wrap=as_json)
                time.sleep(INTERVAL_S)
        with Live(_asked(collection, api, False), console=console(), auto_refresh=False) as live:
            while True:
                time.sleep(INTERVAL_S)
                live.update(_asked(collection, api, False), refresh=True)
    except KeyboardInterrupt:
        return


def _asked(collection: str | None, api: str | None, as_json: bool) -> RenderableType:
    path = "/lag" if collection is None else path_of(collection, "lag")
    return ask("GET", path, api, read=json.dumps if as_json else _shown)


def _shown(answer: Any) -> RenderableType:
    return Group(*[part for found in answer.get("collections", [answer]) for part in _of_collection(found)])


def _of_collection(found: dict[str, Any]) -> list[RenderableType]:
    state = "ready" if found.get("ready") else "not ready"
    heading = f"{found['collection']}  {found.get('generation') or 'no generation yet'}  {state}"
    if found.get("problem"):
        heading += f"  ({found['problem']})"
    if found.get("warning"):
        heading += f"  warning: {found['warning']}"
    rows = [
        (str(partition["partition"]), *(_figure(name, partition.get(name)) for name in _FIELDS), _why(partition))
        for partition in found["partitions"]
    ]
    return [Text(printable(heading), style="bold"), table(_COLUMNS, rows, right=_COLUMNS[:-1])]


def _figure(name: str, value: Any) -> str:
    """What is not known is `?`, never 0."""
    if value is None:
        return "?"
    return _age(value) if name == "time_lag_ms" else str(value)


def _age(milliseconds: int) -> str:
    if milliseconds < 1_000:
        return f"{milliseconds} ms"
    seconds = milliseconds / 1_000
    return f"{seconds:.1f} s" if seconds < 600 else f"{seconds / 60:.0f} min"


def _why(partition: dict[str, Any]) -> str:
    """The reason the api gives, else what the figures say by themselves."""
    told = [str(partition["problem"])] if partition.get("problem") else []
    if partition.get("consumer_problem"):
        told.append(f"consumer: {partition['consumer_problem']}")
    if told:
        return "; ".join(told)
    if partition.get("offset_lag"):
        return "catching up"
    waiting = partition.get("open_transaction_offsets")
    return f"{waiting} offsets wait behind an open transaction" if waiting else ""
