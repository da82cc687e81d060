"""What `tidemark up` leaves for the other commands: `up.json`, the settings it runs with, the sample encoder.

All in the up directory: TIDEMARK_UP_DIR, by default `.tidemark`. `run_settings.py` writes the settings,
`sample_load.py` the sample's files.
"""

import json
import os
from pathlib import Path
from typing import Any

from tidemark import files
from tidemark.settings import DEFAULT_FILE, Settings, load

DEFAULT_API = "http://127.0.0.1:8080"


def up_directory() -> Path:
    return Path(os.environ.get("TIDEMARK_UP_DIR", ".tidemark")).absolute()


def run_config() -> Path:
    return up_directory() / "tidemark.toml"


def sample_directory() -> Path:
    return up_directory() / "sample"


def encoder_path() -> Path:
    return sample_directory() / "encoder.npz"


def loaded_marker() -> Path:
    return sample_directory() / "loaded.json"


def state_path() -> Path:
    return up_directory() / "up.json"


def state() -> dict[str, Any] | None:
    """The content of up.json while an `up` runs, else None."""
    return _json(state_path())


def sample_loaded() -> dict[str, Any] | None:
    """What is known of the sample data once it was loaded whole, else None."""
    return _json(loaded_marker())


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def config_of_a_command(config: Path | None) -> Path | None:
    """--config, else the last `up`'s; None where the settings find it: TIDEMARK_CONFIG or ./tidemark.toml."""
    if config is None and "TIDEMARK_CONFIG" not in os.environ and run_config().exists():
        return run_config()
    return config


def settings(config: Path | None) -> Settings:
    return load(config_of_a_command(config))


def api_address(given: str | None) -> str:
    """--api, TIDEMARK_API, the running `up`'s, that of the settings file, else the default port."""
    if named := given or os.environ.get("TIDEMARK_API"):
        return named
    if running := state():
        return str(running["api"])
    file = Path(os.environ.get("TIDEMARK_CONFIG", DEFAULT_FILE))
    api = load(file).api if file.exists() else None
    if api is None or not api.port:
        return DEFAULT_API
    host = "127.0.0.1" if api.host in ("", "0.0.0.0", "::") else api.host
    return f"http://[{host}]:{api.port}" if ":" in host else f"http://{host}:{api.port}"


def write_state(content: dict[str, Any]) -> None:
    files.replace(state_path(), json.dumps(content, indent=1).encode() + b"\n")
