"""`tidemark search`: the query from words, numbers, a file or a stored id, and the hits as a table."""

import json
import os
from pathlib import Path
from typing import Any

from rich.table import Table

from cli import run_files
from cli.exits import WrongUsage
from cli.ids_file import BadInput
from cli.table import table
from tidemark.errors import BadConfiguration
from tidemark.json_text import why_not_utf8

_SUMMARY_CHARACTERS = 100
FLOAT32_MAX = 3.4028234663852886e38


def query(collection: str, text: str | None, vector: str | None, file: Path | None, id_: str | None) -> dict[str, Any]:
    """The part of the request that says what is near; raises WrongUsage."""
    if sum(part is not None for part in (text, vector, file, id_)) != 1:
        raise WrongUsage("give exactly one of --text, --vector, --vector-file and --id")
    if id_ is not None:
        return {"id": _text("--id", id_)}
    if text is not None:
        return {"vector": _from_words(collection, _text("--text", text))}
    if vector is not None:
        return {"vector": _from_json(vector)}
    assert file is not None
    return {"vector": _from_file(file)}


def filter_(given: str | None) -> dict[str, Any]:
    """The part of the request that says which rows are searched, none without one; raises WrongUsage.

    What a filter may say is the api's to know.
    """
    if given is None:
        return {}
    try:
        found = json.loads(_text("--filter", given))
        json.dumps(found, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise WrongUsage(f'--filter is not JSON ({error}): write it as \'{{"module": "json"}}\'') from None
    if not isinstance(found, dict):
        raise WrongUsage('--filter is not a JSON object: write it as \'{"module": "json"}\'')
    return {"filter": found}


def _text(option: str, given: str) -> str:
    """What was typed, when it is text: the shell hands on any bytes, and Python reads them by the locale."""
    raw = os.fsencode(given)
    if problem := why_not_utf8(raw):
        raise WrongUsage(f"{option}: {problem}")
    return raw.decode()


def _from_words(collection: str, text: str) -> list[float]:
    loaded = run_files.sample_loaded()
    if loaded is None or loaded.get("collection") != collection:
        raise WrongUsage(
            f"--text works for the sample data of `tidemark up` only, and {collection!r} in "
            f"{run_files.up_directory()} is not that: use --vector, --vector-file or --id"
        )
    from cli.sample import Encoder

    try:
        return Encoder.load(run_files.encoder_path()).encode(text).tolist()  # type: ignore[no-any-return]
    except ValueError as error:
        raise WrongUsage(f"{error}: try other words") from None
    except OSError as error:
        raise BadConfiguration(f"the sample encoder cannot be read ({error}): start `tidemark up` again") from None


def _from_json(text: str) -> list[float]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WrongUsage(f"--vector is not JSON ({error}): write a list of numbers, such as '[0.1, 0.2]'") from None
    if not isinstance(found, list) or not all(type(number) in (int, float) for number in found):
        raise WrongUsage("--vector is not a list of numbers: write it as '[0.1, 0.2]'")
    return _checked(found, "--vector")


def _from_file(file: Path) -> list[float]:
    from cli.records import array_of

    try:
        found = array_of(file)
    except BadInput as error:
        raise WrongUsage(f"--vector-file {error}") from None
    if found.dtype.kind not in "fiu":
        raise WrongUsage(f"--vector-file {file} holds {found.dtype}: it must hold numbers")
    if found.size != max(found.shape, default=0):
        raise WrongUsage(f"--vector-file {file} has shape {found.shape}: it must hold one vector")
    return _checked(found.ravel().tolist(), f"--vector-file {file}")


def _checked(numbers: list[Any], source: str) -> list[float]:
    """The numbers, which JSON can say and float32 can hold; raises WrongUsage with the first that is not so."""
    if not numbers:
        raise WrongUsage(f"{source} is empty: it must hold the collection's dimension of numbers")
    for place, number in enumerate(numbers):
        if not abs(number) <= FLOAT32_MAX:
            shown = number if isinstance(number, float) else f"{str(number)[:20]}..."
            raise WrongUsage(f"{source}: number {place} is {shown}: it must be a finite float32, mend the query")
    return numbers


def shown(answer: Any) -> Table:
    """The hits of an answer, nearest first."""
    rows = [(str(hit["id"]), f"{hit['distance']:z.4f}", _summary(hit.get("metadata"))) for hit in answer["hits"]]
    return table(("id", "distance", "metadata"), rows, right=("distance",))


def _summary(metadata: Any) -> str:
    if not metadata:
        return ""
    text = metadata.get("summary") if isinstance(metadata, dict) else None
    shown = " ".join(text.split()) if isinstance(text, str) else json.dumps(metadata, ensure_ascii=False)
    return shown if len(shown) <= _SUMMARY_CHARACTERS else shown[: _SUMMARY_CHARACTERS - 1] + "…"
