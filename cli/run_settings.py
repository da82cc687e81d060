"""The settings `tidemark up` runs with: the user's file, completed with what only `up` knows.

What the user gives is kept: only the broker's address, the checkpoint's place and the ports are filled in, and
written as one settings file into the up directory, which the services and the other commands read. The ports
go into the environment too, because that is stronger than a file.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import tomli_w

from cli import run_files
from cli.ports import free_port, is_free
from tidemark import files
from tidemark.errors import BadConfiguration
from tidemark.settings import DEFAULT_FILE, Settings, load, read_toml

PACKAGED_CONFIG = Path(__file__).with_name("tidemark.toml")
# Stands for the broker's address while the rest is checked, before there is one.
_NOT_KNOWN_YET = "127.0.0.1:1"


class RunSettings:
    """One run's settings: read and checked at once, so that a mistake is said before anything starts."""

    def __init__(self, config: Path | None) -> None:
        named = config or (Path(found) if (found := os.environ.get("TIDEMARK_CONFIG")) else None)
        self.source = named or (Path(DEFAULT_FILE) if Path(DEFAULT_FILE).exists() else PACKAGED_CONFIG)
        self._table = _read(self.source)
        self._table.setdefault("checkpoint", {}).setdefault("url", (run_files.up_directory() / "checkpoints").as_uri())
        self._checked()

    @property
    def is_sample(self) -> bool:
        """Whether these are the settings that come with the program."""
        return self.source == PACKAGED_CONFIG

    @property
    def named_servers(self) -> str | None:
        """The broker that the settings file names."""
        kafka = self._table.get("kafka", {})
        nested = kafka.get("bootstrap")  # TOML reads bootstrap.servers = ... as a table
        found = kafka.get("bootstrap.servers") or (nested.get("servers") if isinstance(nested, dict) else None)
        return str(found) if found else None

    def choose_ports(self, api_port: int | None) -> None:
        """The api's port as given, and the consumer's, another one when it is in use; raises BadConfiguration."""
        if api_port is not None:
            self._set_port("api", api_port)
        settings = self._checked()
        if not is_free(settings.api.port, settings.api.host):
            raise BadConfiguration(
                f"port {settings.api.port} is in use: stop what uses it, or start with `--api-port 0` for a free one"
            )
        self._set_port("api", settings.api.port or free_port())
        consumer = settings.consumer
        if not is_free(consumer.port, consumer.host):
            if "port" in consumer.model_fields_set:
                raise BadConfiguration(f"consumer.port {consumer.port} is in use: set another one, or 0 for a free one")
            self._set_port("consumer", free_port())

    def _set_port(self, service: str, port: int) -> None:
        self._table.setdefault(service, {})["port"] = port
        os.environ[f"TIDEMARK_{service.upper()}__PORT"] = str(port)

    def write(self, bootstrap_servers: str, is_local: bool) -> Settings:
        """Complete them with the broker's address and leave them in the up directory."""
        if is_local:
            self._rejoin_soon()
        settings = self._checked(bootstrap_servers)
        table = self._completed(bootstrap_servers)
        table["checkpoint"] = {**table["checkpoint"], "url": settings.checkpoint.url}
        files.replace(run_files.run_config(), tomli_w.dumps(table).encode())
        return settings

    def _rejoin_soon(self) -> None:
        """With a broker of our own nothing but a crash makes a member silent: 6 s, Kafka's least, instead of 45.

        So long a new consumer waits for its partitions when the one before it was killed.
        """
        kafka = self._table.setdefault("kafka", {})
        if "session" not in kafka:  # TOML reads session.timeout.ms = ... as a table
            kafka.setdefault("session.timeout.ms", 6_000)

    def _completed(self, bootstrap_servers: str) -> dict[str, Any]:
        kafka = dict(self._table.get("kafka", {}))
        if isinstance(nested := kafka.get("bootstrap"), dict):
            kafka["bootstrap"] = {name: value for name, value in nested.items() if name != "servers"}
        return {**self._table, "kafka": {**kafka, "bootstrap.servers": bootstrap_servers}}

    def _checked(self, bootstrap_servers: str = "") -> Settings:
        """Load them as the services will; a mistake is said of the file the user wrote."""
        servers = bootstrap_servers or self.named_servers or _NOT_KNOWN_YET
        with tempfile.NamedTemporaryFile(suffix=".toml") as file:
            file.write(tomli_w.dumps(self._completed(servers)).encode())
            file.flush()
            try:
                return load(Path(file.name))
            except BadConfiguration as error:
                raise BadConfiguration(str(error).replace(file.name, str(self.source))) from None


def _read(source: Path) -> dict[str, Any]:
    try:
        table = read_toml(source)
    except FileNotFoundError:
        raise BadConfiguration(f"{source}: no such file") from None
    for name in ("kafka", "checkpoint", "api", "consumer"):
        if not isinstance(table.get(name, {}), dict):
            raise BadConfiguration(f"{source}: {name} must be a table: write [{name}]")
    return table
