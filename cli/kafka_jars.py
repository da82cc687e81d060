"""Apache Kafka's jars: fetched once by exact coordinates, each checked against its pinned SHA-256.

`kafka_jars.lock` is the closed list. The cache is shared by all runs of a user and safe to fill from several
processes: a jar appears under its name only whole and verified. Knows nothing of running a broker.
"""

import hashlib
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import Progress

from tidemark.errors import BadConfiguration, BrokerUnreachable

KAFKA_VERSION = "4.4.0"
_THREADS = 8


@dataclass(frozen=True, slots=True)
class Jar:
    """A Maven artifact: `path` is its place in a repository, `size` in bytes."""

    coordinates: str
    sha256: str
    size: int

    @property
    def path(self) -> str:
        group, artifact, version = self.coordinates.split(":")
        return f"{group.replace('.', '/')}/{artifact}/{version}/{self.name}"

    @property
    def name(self) -> str:
        _, artifact, version = self.coordinates.split(":")
        return f"{artifact}-{version}.jar"


def pinned() -> list[Jar]:
    lines = Path(__file__).with_name("kafka_jars.lock").read_text().splitlines()
    fields = [line.split() for line in lines if not line.startswith("#")]
    return [Jar(coordinates, sha256, int(size)) for coordinates, sha256, size in fields]


def cache_directory() -> Path:
    """Where downloads are kept: TIDEMARK_CACHE_DIR, else the user's cache directory."""
    if own := os.environ.get("TIDEMARK_CACHE_DIR"):
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tidemark"
    except RuntimeError:  # a user without a home
        raise BadConfiguration("no home directory to keep Kafka's jars in: name one in TIDEMARK_CACHE_DIR") from None


def repository() -> str:
    """The Maven repository asked: TIDEMARK_MAVEN_REPOSITORY, else Maven Central."""
    if own := os.environ.get("TIDEMARK_MAVEN_REPOSITORY"):
        return own.rstrip("/")
    from jgo.constants import MAVEN_CENTRAL_URL

    return str(MAVEN_CENTRAL_URL)


def fetched(jars: list[Jar]) -> list[Path]:
    """Paths of the jars in the cache, fetching what is missing; raises BrokerUnreachable with what to do."""
    directory = cache_directory() / f"kafka-{KAFKA_VERSION}"
    directory.mkdir(parents=True, exist_ok=True)
    missing = [jar for jar in jars if not _is_whole(directory / jar.name, jar)]
    if missing:
        _fetch_all(missing, directory)
    return [directory / jar.name for jar in jars]


def _is_whole(path: Path, jar: Jar) -> bool:
    """Its content was checked before it got its name; the size shows a disk that lost the end of it."""
    return path.is_file() and path.stat().st_size == jar.size


def _fetch_all(jars: list[Jar], directory: Path) -> None:
    megabytes = sum(jar.size for jar in jars) / 1e6
    client = httpx.Client(timeout=60.0, follow_redirects=True, limits=httpx.Limits(max_connections=_THREADS))
    title = f"fetching Apache Kafka {KAFKA_VERSION} ({megabytes:.0f} MB)"
    with _advance_shown(title, jars) as done, client, ThreadPoolExecutor(_THREADS) as pool:
        for size in pool.map(lambda jar: _fetch(client, jar, directory), jars):
            done(size)


@contextmanager
def _advance_shown(title: str, jars: list[Jar]) -> Iterator[Callable[[int], None]]:
    console = Console(stderr=True)
    if not console.is_terminal:
        sys.stderr.write(title + "\n")
        yield lambda size: None
        return
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(title, total=sum(jar.size for jar in jars))
        yield lambda size: progress.advance(task, size)


def _fetch(client: httpx.Client, jar: Jar, directory: Path) -> int:
    url = f"{repository()}/{jar.path}"
    try:
        answer = client.get(url).raise_for_status()
    except httpx.HTTPError as error:
        raise BrokerUnreachable(
            f"{jar.coordinates} could not be fetched from {repository()} ({error or type(error).__name__}): check the "
            "network, name another Maven repository in TIDEMARK_MAVEN_REPOSITORY, or use a broker of your own "
            "with KAFKA_BOOTSTRAP_SERVERS"
        ) from error
    found = hashlib.sha256(answer.content).hexdigest()
    if found != jar.sha256:
        raise BrokerUnreachable(
            f"{jar.coordinates} from {repository()} has SHA-256 {found}, pinned is {jar.sha256}: it was not kept; "
            "the repository serves another file than Maven Central did"
        )
    temporary = directory / f".{jar.name}.{secrets.token_hex(4)}"
    temporary.write_bytes(answer.content)
    os.replace(temporary, directory / jar.name)
    return jar.size
