"""The settings of both services and the command line: one typed table, from `tidemark.toml` and `TIDEMARK_*`.

Precedence: environment, then the file, then the defaults here. Unknown names are refused with the nearest
known one. librdkafka's own options go through under [kafka]. docs/operations.md lists every setting, and
tests/test_settings.py compares it with this table. The view's modules do not import this one.
"""

import difflib
import os
import tomllib
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlparse

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from tidemark.collection import (
    DIMENSION_MAX,
    Collection,
    IdFormat,
    IndexKind,
    IndexParameters,
    Metric,
    RecordFormat,
)
from tidemark.errors import BadConfiguration
from tidemark.json_text import why_not_utf8
from tidemark.kafka_settings import check
from tidemark.partitioner import Partitioner

DEFAULT_FILE = "tidemark.toml"
_OTHER_VARIABLES = {
    "TIDEMARK_CONFIG",
    "TIDEMARK_UP_DIR",
    "TIDEMARK_CACHE_DIR",
    "TIDEMARK_MAVEN_REPOSITORY",
    "TIDEMARK_CRASH_AT",
    "TIDEMARK_API",
}


_CPUS = r"^(\d+(-\d+)?(,\d+(-\d+)?)*)?$"


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class IndexSettings(_Table):
    """[collections.NAME.index]"""

    kind: IndexKind = Field("ivfpq", description="ivfpq, hnsw or flat (no index, always exact)")
    recall_target: float = Field(0.97, gt=0, le=1, description="recall@10 that searches are calibrated to")
    nlist: int = Field(0, ge=0, description="ivfpq: lists of the collection, 0 = 4 x sqrt(rows)")
    m: int = Field(16, ge=2, le=256, description="hnsw: links per node")
    ef_construction: int = Field(64, ge=4, le=4096, description="hnsw: candidates while building")
    ann_rows_min: int = Field(
        8_192, ge=256, description="rows below which a collection (hnsw: a segment) is searched exactly"
    )


class CollectionSettings(_Table):
    """[collections.NAME]"""

    topic: str = Field("", description="the topic it is a view of; default: the collection's name")
    dimension: int = Field(ge=1, le=DIMENSION_MAX, description="numbers per vector")
    metric: Metric = Field("cosine", description="cosine, l2 or ip")
    format: RecordFormat = Field("auto", description="raw, json or auto (docs/format.md)")
    id_format: IdFormat = Field("utf8", description="how keys are shown: utf8, int64 or bytes (base64)")
    dead_letter_topic: str = Field("", description="where bad records go; default: <topic>.dead-letters")
    partitioner: Partitioner = Field("murmur2", description="how its producers place ids: murmur2, consistent or fnv1a")
    index: IndexSettings = IndexSettings()  # type: ignore[call-arg]


class CheckpointSettings(_Table):
    """[checkpoint]"""

    url: str = Field("file:///var/lib/tidemark", description="where checkpoints are kept: file:///PATH")
    interval_s: float = Field(5.0, gt=0, description="seconds after which a record is in a checkpoint")
    rows: int = Field(131_072, gt=0, description="rows in memory after which a checkpoint is made")
    bytes: int = Field(1 << 30, gt=0, description="bytes in memory, of all partitions, after which one is made")
    grace_s: float = Field(
        60.0, ge=0, description="seconds a manifest and its files are kept for readers after it became obsolete"
    )


class ConsumerSettings(_Table):
    """[consumer]"""

    group: str = Field("tidemark", description="the consumer group")
    host: str = Field("127.0.0.1", description="address of its metrics and health")
    port: int = Field(8081, ge=0, le=65535, description="port of its metrics and health, 0 = a free one")
    fetch_records: int = Field(2_000, ge=1, description="records applied as one batch, at most")
    unbuilt_rows_max: int = Field(1_000_000, gt=0, description="rows without an index at which fetching pauses")
    unbuilt_bytes_max: int = Field(2 << 30, gt=0, description="bytes of such rows' vectors at which it pauses as well")
    segment_rows_max: int = Field(4_000_000, gt=0, description="rows of a merged segment, at most")
    segment_bytes_max: int = Field(4 << 30, gt=0, description="bytes of a merged segment's vectors, at most")
    build_threads: int = Field(0, ge=0, description="threads of the builder, 0 = one per core")
    cpus: str = Field("", pattern=_CPUS, description="cores it and its builder run on, such as 0-3,6; empty: all")


class ApiSettings(_Table):
    """[api]"""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8080, ge=0, le=65535, description="port to listen on, 0 = a free one")
    workers: int = Field(1, ge=0, description="HTTP worker processes, 0 = one per core")
    cpus: str = Field("", pattern=_CPUS, description="cores the HTTP workers run on; empty: all")
    follower_cpus: str = Field("", pattern=_CPUS, description="cores the followers of the log run on; empty: all")
    search_threads: int = Field(0, ge=0, description="searches at once per worker, 0 = one per core")
    search_queue_max: int = Field(256, ge=1, description="searches waiting before 429 is answered")
    fetch_records: int = Field(500, ge=1, description="records applied as one batch, at most")
    tail_rows_max: int = Field(
        1_000_000, gt=0, description="rows and deletes in memory at which a partition waits for checkpoints"
    )
    tail_bytes_max: int = Field(
        4 * 2**30, ge=2**20, description="bytes in memory, of all partitions of a collection, at which they wait too"
    )
    index_bytes_max: int = Field(
        8 * 2**30, ge=2**20, description="bytes of a collection's index; beyond, rows are compared one by one"
    )
    ready_max_lag: int = Field(1_000, ge=0, description="offset lag up to which it gets ready")
    header_bytes_max: int = Field(65_536, ge=1024, description="largest request line and headers, together")
    header_timeout_s: float = Field(10.0, gt=0, description="how long a request's line and headers may take to arrive")
    body_bytes_max: int = Field(16 * 1024 * 1024, ge=1024, description="largest request body")
    body_timeout_s: float = Field(60.0, gt=0, description="how long a request's body may take to arrive")
    connections_max: int = Field(1_024, ge=1, description="connections per worker; beyond, the idlest is closed")
    write_timeout_s: float = Field(10.0, gt=0, description="how long a write waits for the brokers")


class Settings(BaseSettings):
    """The whole table; read it with `load`."""

    model_config = SettingsConfigDict(env_prefix="TIDEMARK_", env_nested_delimiter="__", extra="forbid", frozen=True)

    kafka: dict[str, str | int | float | bool] = Field(default_factory=dict)
    checkpoint: CheckpointSettings = CheckpointSettings()  # type: ignore[call-arg]
    consumer: ConsumerSettings = ConsumerSettings()  # type: ignore[call-arg]
    api: ApiSettings = ApiSettings()  # type: ignore[call-arg]
    collections: dict[str, CollectionSettings] = Field(default_factory=dict)
    log_format: Literal["text", "json"] = "text"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        if isinstance(env_settings, EnvSettingsSource):
            # The address of an api that a command asks, not the section [api].
            env_settings.env_vars = {k: v for k, v in env_settings.env_vars.items() if k.upper() != "TIDEMARK_API"}
        return env_settings, init_settings

    @property
    def checkpoint_root(self) -> Path:
        """The checkpoint directory."""
        url = urlparse(self.checkpoint.url)
        path = unquote(url.path)
        if url.scheme != "file" or url.netloc not in ("", "localhost") or not path or "\0" in path:
            raise BadConfiguration(
                f"checkpoint.url is {self.checkpoint.url!r}: only a directory as file:///PATH can be used"
            )
        return Path(path)

    def collection(self, name: str) -> Collection:
        found = self.collections.get(name)
        if found is None:
            known = ", ".join(sorted(self.collections)) or "none"
            raise BadConfiguration(f"no collection {name!r} is configured; there are: {known}")
        return Collection(
            name=name,
            topic=found.topic or name,
            dimension=found.dimension,
            metric=found.metric,
            format=found.format,
            id_format=found.id_format,
            dead_letter_topic=found.dead_letter_topic,
            partitioner=found.partitioner,
            index=IndexParameters(**found.index.model_dump()),
        )

    def all_collections(self) -> list[Collection]:
        return [self.collection(name) for name in sorted(self.collections)]


def load(file: Path | None = None) -> Settings:
    """Read the settings; raises BadConfiguration that names every wrong setting and where it stands."""
    path = file or Path(os.environ.get("TIDEMARK_CONFIG", DEFAULT_FILE))
    table: dict[str, Any] = {}
    try:
        table = read_toml(path)
    except FileNotFoundError:
        if file is not None or "TIDEMARK_CONFIG" in os.environ:
            raise BadConfiguration(f"{path}: no such file") from None
    table["kafka"] = _kafka(table.get("kafka", {}), path)
    _refuse_unknown_variables()
    try:
        settings = Settings(**table)
    except ValidationError as error:
        raise BadConfiguration(_explain(error, path)) from None
    except SettingsError as error:
        raise BadConfiguration(f"environment: {error}: write tables and lists there as JSON") from None
    _check(settings, path)
    return settings


def read_toml(path: Path) -> dict[str, Any]:
    """A settings file; raises FileNotFoundError, and BadConfiguration when it is there and cannot be read."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BadConfiguration(f"{path}: cannot be read: {error.strerror}") from None
    if problem := why_not_utf8(raw):
        raise BadConfiguration(f"{path}: is not valid TOML: {problem}")
    try:
        return tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadConfiguration(f"{path}: is not valid TOML: {error}") from None


def _kafka(table: Any, path: Path) -> dict[str, Any]:
    """The [kafka] table with dotted names: TOML reads `bootstrap.servers = ...` as nested tables."""
    if not isinstance(table, dict):
        raise BadConfiguration(f"{path}: [kafka] must be a table of librdkafka options")
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, below in value.items():
                walk(f"{prefix}.{name}" if prefix else name, below)
        else:
            flat[prefix] = value

    walk("", table)
    if servers := os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        flat["bootstrap.servers"] = servers
    return flat


def _refuse_unknown_variables() -> None:
    sections = [_variable(name) for name in Settings.model_fields]
    for name in os.environ:
        known = name in _OTHER_VARIABLES or any(
            name == section or name.startswith(section + "__") for section in sections
        )
        if name.startswith("TIDEMARK_") and not known:
            raise BadConfiguration(f"environment variable {name} is not a setting{_nearest(name, _variables())}")


def _variable(*parts: str) -> str:
    return "TIDEMARK_" + "__".join(part.upper() for part in parts)


def _variables() -> list[str]:
    """Every setting that has a variable of its own, and the sections."""
    found = []
    for section, field in Settings.model_fields.items():
        model = field.annotation
        below = model.model_fields if isinstance(model, type) and issubclass(model, BaseModel) else ()
        found += [_variable(section), *(_variable(section, name) for name in below)]
    return found


def _explain(error: ValidationError, path: Path) -> str:
    lines = []
    for problem in error.errors():
        parts = [str(part) for part in problem["loc"]]
        where = ".".join(parts)
        source = f"environment variable {_variable(*parts)}" if _variable(*parts) in os.environ else str(path)
        if problem["type"] == "extra_forbidden":
            lines.append(f"{source}: unknown setting {where}{_nearest(where, _known_names(problem['loc']))}")
        else:
            lines.append(f"{source}: {where}: {problem['msg']} (it is {problem['input']!r})")
    return "\n".join(lines)


def _known_names(location: tuple[int | str, ...]) -> list[str]:
    """Full names of the settings that may stand beside the one at `location`."""
    above = [str(part) for part in location[:-1]]
    model: Any = Settings
    for depth, part in enumerate(above):
        if depth == 1 and above[0] == "collections":
            model = CollectionSettings  # the part is a collection's name
        elif part != "collections":
            field = model.model_fields.get(part)
            model = field.annotation if field else None
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return []
    return [".".join([*above, name]) for name in model.model_fields]


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _check(settings: Settings, path: Path) -> None:
    check(settings.kafka)
    if not settings.collections:
        raise BadConfiguration(f"{path}: no collection is configured: add a [collections.NAME] table")
    owner: dict[str, str] = {}
    for collection in settings.all_collections():
        other = owner.setdefault(collection.topic, collection.name)
        if other != collection.name:
            raise BadConfiguration(
                f"{path}: collections {other!r} and {collection.name!r} both read topic {collection.topic!r}: "
                "one topic is the log of one collection"
            )
    _refuse_letters_that_come_back({collection.topic: collection for collection in settings.all_collections()}, path)
    settings.checkpoint_root  # noqa: B018  # refuses a checkpoint.url we cannot use


def _refuse_letters_that_come_back(by_topic: dict[str, Collection], path: Path) -> None:
    """A bad record that is bad again wherever its dead letter is read would be written for ever."""
    for first in by_topic.values():
        met, at = [first], by_topic.get(first.dead_letters)
        while at is not None and at not in met:
            met.append(at)
            at = by_topic.get(at.dead_letters)
        if at is first:
            names = ", ".join(repr(collection.name) for collection in met)
            raise BadConfiguration(
                f"{path}: dead letters of collection {first.name!r} come back to its topic {first.topic!r} (through "
                f"collections {names}): give one of them a dead_letter_topic that none reads"
            )
