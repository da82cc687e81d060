"""The services of docker-compose.yml as `podman run` options: the same image, settings, volumes and restrictions.

A key that is neither translated nor known to be about something else is an error, so that nothing of the file stays
untried without being named here.
"""

from pathlib import Path
from typing import Any

import yaml

from deploy.test_images.engine import words_of

# Order and restarts are the test's own; health checks are run by it one by one; ports are open to the namespace.
_NOT_TRANSLATED = {"build", "depends_on", "healthcheck", "ports", "restart"}
_TRANSLATED = {
    *("image", "read_only", "cap_drop", "security_opt", "tmpfs", "environment", "volumes", "init"),
    *("stop_grace_period", "entrypoint", "command"),
}


class Service:
    """One service of the file: `words` are everything after `podman run`."""

    def __init__(self, name: str, table: dict[str, Any], directory: Path) -> None:
        if unknown := table.keys() - _NOT_TRANSLATED - _TRANSLATED:
            raise ValueError(f"service {name}: {sorted(unknown)} is not translated in {__file__}")
        self.name = name
        self.table = table
        self._directory = directory

    @property
    def health_check(self) -> list[str]:
        return [*self.table["healthcheck"]["test"][1:]]

    @property
    def grace_s(self) -> int:
        return int(self.table.get("stop_grace_period", "10s").removesuffix("s"))

    def options(self, *, init: bool = True) -> list[str]:
        """Without `init` the container's first process is its entrypoint."""
        table = self.table
        options = {
            "network": ["host"],
            "add-host": ["kafka:127.0.0.1"],
            "pull": ["never"],
            "cap-drop": table.get("cap_drop", []),
            "security-opt": [each.removesuffix(":true") for each in table.get("security_opt", [])],
            "tmpfs": table.get("tmpfs", []),
            "env": [f"{name}={_plain(value)}" for name, value in table.get("environment", {}).items()],
            "volume": [self._volume(each) for each in table.get("volumes", [])],
            "stop-timeout": [str(self.grace_s)],
        }
        flags = ["--read-only"] * table.get("read_only", False) + ["--init"] * (init and table.get("init", False))
        return [*words_of(options), *flags]

    def _volume(self, volume: str) -> str:
        source, rest = volume.split(":", 1)
        return f"{(self._directory / source).resolve()}:{rest}" if source.startswith(".") else volume

    def command(self, *instead: str) -> list[str]:
        """Image and command, or another command."""
        return [self.table["image"], *(instead or [_plain(word) for word in self.table.get("command", [])])]


def _plain(value: object) -> str:
    """As compose reads it: ${NAME:-default} is the default here, $$ a dollar."""
    text = str(value)
    for name, default in (("KAFKA_PORT", "9092"), ("TIDEMARK_PORT", "8080")):
        text = text.replace(f"${{{name}:-{default}}}", default)
    return text.replace("$$", "$")


def services(path: Path) -> dict[str, Service]:
    tables: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text())["services"]
    return {name: Service(name, table, path.parent) for name, table in tables.items()}
