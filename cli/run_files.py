"""What `tidemark up` leaves for the other commands: `up.json`, the settings it runs with, the sample encoder.

All in the up directory: TIDEMARK_UP_DIR, by default `.tidemark`.
"""

import json
import os
import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from tidemark import files
from tidemark.errors import BadConfiguration
from tidemark.settings import DEFAULT_FILE, Settings, load

PACKAGED_CONFIG = Path(__file__).with_name("tidemark.toml")


def up_directory() -> Path:
    return Path(os.environ.get("TIDEMARK_UP_DIR", ".tidemark")).absolute()


def run_config() -> Path:
    return up_directory() / "tidemark.toml"


def encoder_path() -> Path:
    return up_directory() / "sample-encoder.npz"


def loaded_marker() -> Path:
    return up_directory() / "sample-loaded.json"


def state_path() -> Path:
    return up_directory() / "up.json"


def state() -> dict[str, Any] | None:
    """The content of up.json while an `up` runs, else None."""
    try:
        return json.loads(state_path().read_text())  # type: ignore[no-any-return]
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def settings(config: Path | None) -> Settings:
    """The settings of a command: --config, TIDEMARK_CONFIG, the running `up`'s, else ./tidemark.toml."""
    if config is None and "TIDEMARK_CONFIG" not in os.environ and run_config().exists():
        return load(run_config())
    return load(config)


def api_address(given: str | None) -> str:
    """--api, TIDEMARK_API, the running `up`'s, else the default port."""
    running = state()
    return given or os.environ.get("TIDEMARK_API") or (running["api"] if running else "http://127.0.0.1:8080")


def write_run_config(
    config: Path | None, bootstrap_servers: str, api_port: int | None, consumer_port: int | None
) -> bool:
    """Complete the user's settings with what `up` knows; True when it is the packaged configuration."""
    source = config or (Path(DEFAULT_FILE) if Path(DEFAULT_FILE).exists() else PACKAGED_CONFIG)
    try:
        table = tomllib.loads(source.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfiguration(f"{source}: {error}") from None
    kafka = table.setdefault("kafka", {})
    kafka.setdefault("bootstrap", {}).pop("servers", None) if isinstance(kafka.get("bootstrap"), dict) else None
    kafka["bootstrap.servers"] = bootstrap_servers
    table.setdefault("checkpoint", {}).setdefault("url", (up_directory() / "checkpoints").as_uri())
    if api_port is not None:
        table.setdefault("api", {})["port"] = api_port
    if consumer_port is not None:
        table.setdefault("consumer", {}).setdefault("port", consumer_port)
    files.replace(run_config(), tomli_w.dumps(table).encode())
    load(run_config())  # every mistake in it is said now
    return source == PACKAGED_CONFIG


def write_state(content: dict[str, Any]) -> None:
    files.replace(state_path(), json.dumps(content, indent=1).encode() + b"\n")
