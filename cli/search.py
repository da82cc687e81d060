"""`tidemark search`: the query from words, numbers, a file or a stored id, and the hits as a table."""

import json
from pathlib import Path
from typing import Any

from cli import run_files
from cli.exits import WrongUsage
from cli.table import console, table
from tidemark.errors import BadConfiguration

_SUMMARY_CHARACTERS = 100


def query(collection: str, text: str | None, vector: str | None, file: Path | None, id_: str | None) -> dict[str, Any]:
    """The part of the request that says what is near; raises WrongUsage."""
    if sum(part is not None for part in (text, vector, file, id_)) != 1:
        raise WrongUsage("give exactly one of --text, --vector, --vector-file and --id")
    if id_ is not None:
        return {"id": id_}
    if text is not None:
        return {"vector": _from_words(collection, text)}
    return {"vector": _from_json(vector) if vector is not None else _from_file(file)}


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


def _from_json(text: str) -> Any:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise WrongUsage(f"--vector is not JSON ({error}): write a list of numbers, such as '[0.1, 0.2]'") from None
    if not isinstance(found, list):
        raise WrongUsage("--vector is not a list of numbers: write it as '[0.1, 0.2]'")
    return found


def _from_file(file: Path | None) -> Any:
    import numpy as np

    assert file is not None
    try:
        found = np.load(file, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise WrongUsage(f"--vector-file {file} cannot be read: {error}") from None
    if found.size != max(found.shape, default=0):
        raise WrongUsage(f"--vector-file {file} has shape {found.shape}: it must hold one vector")
    return found.ravel().tolist()


def show(answer: dict[str, Any]) -> None:
    """The hits, nearest first."""
    rows = [(hit["id"], f"{hit['distance']:.4f}", _summary(hit.get("metadata"))) for hit in answer["hits"]]
    console().print(table(("id", "distance", "metadata"), rows, right=("distance",)))


def _summary(metadata: Any) -> str:
    if not metadata:
        return ""
    text = metadata.get("summary") if isinstance(metadata, dict) else None
    shown = " ".join(text.split()) if isinstance(text, str) else json.dumps(metadata, ensure_ascii=False)
    return shown if len(shown) <= _SUMMARY_CHARACTERS else shown[: _SUMMARY_CHARACTERS - 1] + "…"
