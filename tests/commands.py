"""The `tidemark` command called in this process, for speed, and settings for it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.services import DIMENSION

Tidemark = Callable[..., tuple[int, str, str]]


def config(directory: Path, servers: str, topic: str, **collection: Any) -> str:
    """A settings file for commands that only need the broker."""
    values = {"topic": topic, "dimension": DIMENSION, "metric": "l2", **collection}
    lines = ["[kafka]", f'"bootstrap.servers" = "{servers}"', "[checkpoint]"]
    lines += [f'url = "{(directory / "checkpoints").as_uri()}"', "[collections.docs]"]
    path = directory / "own.toml"
    path.write_text("\n".join([*lines, *(f"{name} = {json.dumps(value)}" for name, value in values.items())]))
    return str(path)


def one_line(error: str) -> bool:
    return error.startswith("error: ") and error.count("\n") == 1
