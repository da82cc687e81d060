"""Fixtures: one real broker for each process of a run, and a deployment per test."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from cli.broker import open_broker
from cli.main import main
from tests.commands import Tidemark
from tests.services import Deployment, deployment
from tidemark.ann.exact import use_one_thread_per_search

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")


@pytest.fixture(autouse=True, scope="session")
def _one_thread_per_search() -> None:
    use_one_thread_per_search()


@pytest.fixture(autouse=True, scope="session")
def named_broker() -> Iterator[str | None]:
    """KAFKA_BOOTSTRAP_SERVERS, taken out of the environment: there it would go before what each test sets."""
    with pytest.MonkeyPatch.context() as environment:
        named = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
        environment.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
        yield named


@pytest.fixture(scope="session")
def kafka(named_broker: str | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Bootstrap servers of a real Kafka."""
    if named_broker:
        yield named_broker
        return
    with open_broker(tmp_path_factory.mktemp("kafka"), fast_start=True) as broker:
        yield broker.bootstrap_servers


@pytest.fixture
def deploy(kafka: str, tmp_path: Path) -> Iterator[Callable[..., Deployment]]:
    """Makes a deployment with a topic of its own; stopped after the test."""
    with ExitStack() as stack:

        def make(partitions: int = 1, **overrides: Any) -> Deployment:
            return stack.enter_context(deployment(tmp_path, kafka, partitions, **overrides))

        yield make


@pytest.fixture
def tidemark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tidemark:
    """Runs a command in an empty directory; its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    for name in ("TIDEMARK_CONFIG", "TIDEMARK_API", "TIDEMARK_UP_DIR", "KAFKA_BOOTSTRAP_SERVERS"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tidemark", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        output = capsys.readouterr()
        return int(ended.value.code or 0), output.out, output.err

    return run


@pytest.fixture
def new_root() -> Iterator[Callable[[], Path]]:
    """A new directory each time, in memory where there is such a place: many orders, and no power loss among them."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as directory:
        numbers = count()
        yield lambda: Path(directory) / str(next(numbers))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB, mounted for the test."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(directory)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    yield directory
    subprocess.run(["umount", "--lazy", str(directory)], check=True)  # lazy: segments that were open are mapped
